//! Where transactional ids live, and under which identity their producers are known there.
//!
//! A transaction cannot span clusters, and each cluster gives its transactional producers ids of its own. So a
//! transactional id has a home, as a group has; it follows the topics that its next transaction writes to. The producer
//! is not told: it keeps the id and epoch it was given, and the proxy puts those of the new home in their place, in
//! requests and in the batches (protocol.md §3.6, "PID remap"; live.md §6c). Sequences go on as they were, which a log
//! accepts of a producer it has never seen; so a side that is entered again knows the transactional id under an alias,
//! which gives it another producer id there.
//!
//! Both clusters count their producer ids up from 0. Clients see those of the target with a bit that neither cluster
//! reaches, so that no two producers of a partition look the same. transaction.version 2 is not offered (ADR 12): a
//! producer keeps its identity until it asks for another.
//!
//! Source: KIP-98, KIP-360, KIP-890.

use crate::bug::{self, Bug};
use crate::ids::ClusterSide;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Marks a producer id that the target has allocated. Ids of the proxy lie above it.
const TARGET: i64 = 1 << 61;
/// Earlier native identities of a producer that are remembered at each side. They are asked for after a start only, for a log
/// that has seen the producer under none of the later ones.
const EARLIER_MAX: usize = 64;
/// Between a transactional id and the number of its alias.
const ALIAS: &str = ".__crossover.";

/// A producer as a coordinator or a client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub pid: i64,
    pub epoch: i16,
}

/// The home of a transactional id that has moved at least once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionRoute {
    pub home: ClusterSide,
    /// The alias at each side, by [`ClusterSide::index`]; 0 is the transactional id itself.
    pub aliases: [u32; 2],
    /// The producer that began the move, as its client knows it, and as its home does.
    pub client: Identity,
    pub native: Identity,
    /// What the same producer was at each side before, the latest last; at most [`EARLIER_MAX`]: a log may have seen it last
    /// under one of these.
    pub earlier: [Vec<Identity>; 2],
}

/// The homes of all transactional ids that have moved. The others are at home on the default side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionTable(pub BTreeMap<Arc<str>, TransactionRoute>);

/// The transactional id with which the proxy itself writes commits of a group that has members.
#[must_use]
pub fn of_offsets(group: &str) -> String {
    format!("__crossover_offsets.{group}")
}

/// The producer id of `side` as clients see it.
#[must_use]
pub fn to_client(side: ClusterSide, pid: i64) -> i64 {
    match side {
        ClusterSide::Target if (0..TARGET).contains(&pid) && !bug::is(Bug::TxnClientId) => pid | TARGET,
        _ => pid,
    }
}

/// The side that has allocated a producer id that a client shows, and what it is there.
#[must_use]
fn allocated(pid: i64) -> (ClusterSide, i64) {
    match pid {
        TARGET.. => (ClusterSide::Target, pid & !TARGET),
        _ => (ClusterSide::Source, pid),
    }
}

impl TransactionRoute {
    /// The home of a transactional id that moves now, from where it was before.
    #[must_use]
    pub fn moved(
        from: Option<&TransactionRoute>,
        (home, alias): (ClusterSide, u32),
        client: Identity,
        native: Identity,
    ) -> TransactionRoute {
        let mut aliases = from.map_or([0, 0], |route| route.aliases);
        aliases[home.index()] = alias;
        let mut earlier = <[Vec<Identity>; 2]>::default();
        if let Some(from) = from.filter(|from| from.client == client) {
            earlier.clone_from(&from.earlier);
            let natives = &mut earlier[from.home.index()];
            natives.push(from.native);
            natives.drain(..natives.len().saturating_sub(EARLIER_MAX));
        }
        TransactionRoute { home, aliases, client, native, earlier }
    }

    fn was(&self, side: ClusterSide, native: Identity) -> bool {
        (self.home == side && self.native == native) || self.earlier[side.index()].contains(&native)
    }
}

impl TransactionTable {
    #[must_use]
    pub fn home(&self, id: &str, default: ClusterSide) -> ClusterSide {
        self.0.get(id).map_or(default, |route| route.home)
    }

    /// The name of a transactional id in the cluster of `side`.
    #[must_use]
    pub fn physical<'a>(&self, id: &'a str, side: ClusterSide) -> Cow<'a, str> {
        match self.0.get(id).map_or(0, |route| route.aliases[side.index()]) {
            0 => Cow::Borrowed(id),
            number => Cow::Owned(alias(id, number)),
        }
    }

    /// The producer at its home, by what its client shows. `None`: it is not the one that the home serves; another one
    /// has taken its transactional id over.
    #[must_use]
    pub fn to_native(&self, id: &str, home: ClusterSide, client: Identity) -> Option<Identity> {
        // The home's coordinator fences this one too, once there was a newer.
        if let Some(route) = self.0.get(id).filter(|route| route.client == client && route.home == home) {
            return Some(route.native);
        }
        let (side, pid) = allocated(client.pid);
        (side == home).then_some(Identity { pid, ..client })
    }

    /// The clients' producers of which a row of `side` tells (DescribeProducers).
    pub fn clients_of(&self, side: ClusterSide, native: Identity) -> impl Iterator<Item = Identity> {
        let own = Identity { pid: to_client(side, native.pid), ..native };
        let moved = self.0.values().filter(move |r| r.was(side, native) && r.client != own);
        std::iter::once(own).chain(moved.map(|route| route.client))
    }
}

/// The name of a transactional id in a cluster that it has left before.
#[must_use]
pub fn alias(id: &str, number: u32) -> String {
    format!("{id}{ALIAS}{number}")
}

/// The transactional id that a cluster's name stands for.
#[must_use]
pub fn of_physical(name: &str) -> &str {
    match name.rsplit_once(ALIAS) {
        Some((id, number)) if number.parse::<u32>().is_ok_and(|number| number > 0) => id,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::ClusterSide::{Source, Target};
    use super::*;

    fn identity(pid: i64, epoch: i16) -> Identity {
        Identity { pid, epoch }
    }

    fn table() -> TransactionTable {
        let route = TransactionRoute {
            home: Target,
            aliases: [0, 2],
            client: identity(1000, 3),
            native: identity(7, 0),
            earlier: [vec![], vec![identity(5, 1)]],
        };
        TransactionTable(BTreeMap::from([(Arc::from("pay"), route)]))
    }

    #[test]
    fn trap_4_ids_that_both_clusters_have_given_are_two_to_clients() {
        assert_ne!(to_client(Source, 1000), to_client(Target, 1000));
        for (side, pid) in [(Source, 0), (Source, TARGET - 1), (Target, 0), (Target, TARGET - 1)] {
            assert_eq!(allocated(to_client(side, pid)), (side, pid));
            assert!(!crate::producer::pid::is_issued(to_client(side, pid)));
        }
        assert_eq!([to_client(Target, -1), to_client(Source, -1)], [-1, -1]);
    }

    #[test]
    fn trap_7_a_producer_that_was_moved_goes_by_its_home_s_identity() {
        let table = table();
        assert_eq!(table.home("pay", Source), Target);
        assert_eq!(table.to_native("pay", Target, identity(1000, 3)), Some(identity(7, 0)));
        // One that has asked its new home for an identity.
        let own = identity(to_client(Target, 7), 1);
        assert_eq!(table.to_native("pay", Target, own), Some(identity(7, 1)));
        // One that was fenced at the old home, and one that never moved.
        assert_eq!(table.to_native("pay", Target, identity(1000, 2)), None);
        assert_eq!(table.to_native("other", Source, identity(5, 0)), Some(identity(5, 0)));
        assert_eq!(table.to_native("other", Source, own), None);
    }

    #[test]
    fn a_row_of_the_home_tells_of_the_producer_under_both_its_names() {
        let told: Vec<_> = table().clients_of(Target, identity(7, 0)).collect();
        assert_eq!(told, [identity(to_client(Target, 7), 0), identity(1000, 3)]);
        let earlier: Vec<_> = table().clients_of(Target, identity(5, 1)).collect();
        assert_eq!(earlier, [identity(to_client(Target, 5), 1), identity(1000, 3)]);
        assert_eq!(table().clients_of(Source, identity(5, 1)).count(), 1, "another cluster's");
        let newer: Vec<_> = table().clients_of(Target, identity(7, 1)).collect();
        assert_eq!(newer, [identity(to_client(Target, 7), 1)]);
    }

    #[test]
    fn what_a_producer_was_before_is_remembered_until_there_is_another_one() {
        let client = identity(1000, 3);
        let mut route = TransactionRoute::moved(None, (Target, 0), client, identity(7, 0));
        for turn in 0..2 * i64::try_from(EARLIER_MAX).unwrap() {
            let (alias, native) = (u32::try_from(turn).unwrap() + 1, identity(100 + turn, 0));
            let home = if turn % 2 == 0 { Source } else { Target };
            route = TransactionRoute::moved(Some(&route), (home, alias), client, native);
        }
        assert_eq!(route.earlier.each_ref().map(Vec::len), [EARLIER_MAX, EARLIER_MAX]);
        route = TransactionRoute::moved(Some(&route), (Source, 200), client, identity(300, 0));
        assert_eq!(route.earlier[1].first(), Some(&identity(101, 0)), "the oldest goes");
        assert_eq!((route.aliases, route.earlier[1].len()), ([200, 128], EARLIER_MAX));
        let next = TransactionRoute::moved(Some(&route), (Target, 129), identity(1000, 4), identity(9, 0));
        assert_eq!((next.earlier, next.aliases), ([vec![], vec![]], [200, 129]));
    }

    #[test]
    fn an_alias_stands_for_its_id_and_nothing_else_does() {
        assert_eq!(table().physical("pay", Target), "pay.__crossover.2");
        assert_eq!(table().physical("pay", Source), "pay");
        assert_eq!(of_physical("pay.__crossover.2"), "pay");
        for name in ["pay", "pay.__crossover.", "pay.__crossover.0", "pay.__crossover.x", ""] {
            assert_eq!(of_physical(name), name);
        }
    }
}
