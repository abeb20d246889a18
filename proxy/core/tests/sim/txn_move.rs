//! What the control tasks do about transactions, as `control/transaction_move.rs` and `control/transactions.rs` do it: they
//! take a transactional id to another home, and wait before a flip until no transaction on its topics is open.

use crate::bugs::Bug;
use crate::coverage::Seen;
use crate::txn_coordinator::{CONCURRENT, LOADING};
use crate::world::{Ev, MS, World, trace};
use crossover_core::ids::ClusterSide;
use crossover_core::producer::carry::DescribedProducer;
use crossover_core::producer::transaction::{self, Identity, TransactionRoute, TransactionTable};
use crossover_core::session::{ErrandDone, Event, Ticket};
use std::collections::BTreeSet;
use std::sync::Arc;

/// As `transaction_move.rs` has them.
const PATIENCE: u64 = 5_000 * MS;
const LOOK_AGAIN: u64 = 10 * MS;
const ALIASES_TRIED: u32 = 20;
const TIMEOUT_MS: i32 = 60_000;
/// As `transactions.rs` has it.
const BEGINNING_MS: i64 = 2_000;

/// A transactional id that is being moved.
pub(crate) struct Move {
    serial: u64,
    conn: usize,
    ticket: Ticket,
    id: Arc<str>,
    from: ClusterSide,
    to: ClusterSide,
    client: Identity,
    native: Identity,
    /// Of the step under way.
    until: u64,
    timeout_ms: i32,
    /// The alias that is tried at the new home.
    first: u32,
    number: u32,
}

/// What happens next of a move.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moving {
    Old,
    New,
    Store,
}

/// What an answer of a coordinator comes to.
enum Heard<T> {
    Well(T),
    Later,
    Failed(&'static str),
}

impl World {
    /// One move of an id at a time. False: not its turn yet.
    pub(crate) fn begin_move(
        &mut self,
        (conn, ticket): (usize, Ticket),
        id: &Arc<str>,
        to: ClusterSide,
        client: Identity,
    ) -> bool {
        if self.moves.iter().any(|known| known.id == *id) {
            return false;
        }
        let snapshot = &self.proxy.snapshot;
        let from = snapshot.transaction_home(id);
        if from == to {
            let is_its = snapshot.transactions.to_native(id, to, client).is_some();
            self.errand_done(conn, ticket, Ok(is_its));
            return true;
        }
        let Some(native) = snapshot.transactions.to_native(id, from, client) else {
            self.errand_done(conn, ticket, Ok(false));
            return true;
        };
        let known = snapshot.transactions.0.get(id).map_or([None, None], |route| route.aliases.map(Some));
        // A side that was home before has seen this producer's sequences.
        let was_there = known[to.index()].is_some() || to == snapshot.routes.rules.default_side;
        let first = known[to.index()].unwrap_or(0) + u32::from(was_there);
        trace!(self, "{id} is to move to the {to} for {client:?}");
        let (serial, until) = (self.fresh(), self.now + PATIENCE);
        let (id, timeout_ms, number) = (Arc::clone(id), TIMEOUT_MS, first);
        let new =
            Move { serial, conn, ticket, id, from, to, client, native, until, timeout_ms, first, number };
        self.moves.push(new);
        self.move_on(serial, Moving::Old);
        true
    }

    fn move_on(&mut self, serial: u64, step: Moving) {
        let after = self.rng.between(50, 3_000);
        self.plan(after, Ev::Move { serial, step });
    }

    pub(crate) fn on_move(&mut self, serial: u64, step: Moving) {
        let Some(place) = self.moves.iter().position(|known| known.serial == serial) else { return };
        let heard = match step {
            Moving::Old => self.ask_old_home(place),
            Moving::New => self.ask_new_home(place),
            Moving::Store => return self.store_move(place),
        };
        match heard {
            Heard::Well(Some(next)) => {
                self.moves[place].until = self.now + PATIENCE;
                self.move_on(serial, next);
            }
            Heard::Well(None) => self.has_moved(place, Ok(false)),
            Heard::Later if self.now < self.moves[place].until => {
                self.plan(LOOK_AGAIN, Ev::Move { serial, step });
            }
            Heard::Later => self.has_moved(place, Err("not within the patience".to_owned())),
            Heard::Failed(why) => self.has_moved(place, Err(why.to_owned())),
        }
    }

    /// Whether the coordinator of a side answers.
    fn coordinator_of(&self, side: ClusterSide) -> Heard<()> {
        let cluster = &self.clusters[side.index()];
        let broker = cluster.transactions.broker;
        match () {
            () if !cluster.is_up(broker) => Heard::Failed("the coordinator cannot be reached"),
            () if cluster.brokers[broker as usize].stalled_until > self.now => Heard::Later,
            () if cluster.transactions.loading_until > self.now => Heard::Later,
            () => Heard::Well(()),
        }
    }

    /// It serves this producer, which has nothing open. `Well(None)`: it serves another one.
    fn ask_old_home(&mut self, place: usize) -> Heard<Option<Moving>> {
        let at = &self.moves[place];
        let side = at.from;
        if !self.proxy.topology(side).reachable {
            return Heard::Well(Some(Moving::New));
        }
        match self.coordinator_of(side) {
            Heard::Well(()) => {}
            Heard::Later => return Heard::Later,
            Heard::Failed(why) => return Heard::Failed(why),
        }
        let name = self.proxy.snapshot.transactions.physical(&at.id, side);
        let Some(known) = self.clusters[side.index()].transactions.all.get(&*name) else {
            return Heard::Well(None);
        };
        match () {
            () if (known.pid, known.epoch) != (at.native.pid, at.native.epoch) => Heard::Well(None),
            () if known.is_open() => Heard::Later,
            () => {
                self.moves[place].timeout_ms = known.timeout_ms;
                Heard::Well(Some(Moving::New))
            }
        }
    }

    /// An identity that the new home has never seen write.
    fn ask_new_home(&mut self, place: usize) -> Heard<Option<Moving>> {
        let at = &self.moves[place];
        let (side, number, timeout_ms) = (at.to, at.number, at.timeout_ms);
        match self.coordinator_of(side) {
            Heard::Well(()) => {}
            Heard::Later => return Heard::Later,
            Heard::Failed(why) => return Heard::Failed(why),
        }
        let name = if number == 0 { at.id.to_string() } else { transaction::alias(&at.id, number) };
        let given = self.init(side, &Arc::from(name), None, timeout_ms);
        let at = &mut self.moves[place];
        match given {
            Ok((pid, 0)) => {
                at.native = Identity { pid, epoch: 0 };
                Heard::Well(Some(Moving::Store))
            }
            Ok(_) if at.number + 1 >= at.first + ALIASES_TRIED => Heard::Failed("too many aliases are known"),
            Ok(_) => {
                at.number += 1;
                self.see(Seen::AliasTaken);
                Heard::Later
            }
            Err(LOADING | CONCURRENT) => Heard::Later,
            Err(_) => Heard::Failed("the new home gives no identity"),
        }
    }

    /// Durable, then shown.
    fn store_move(&mut self, place: usize) {
        if !self.healed && self.rng.chance(20) {
            return self.has_moved(place, Err("the home cannot be stored".to_owned()));
        }
        let at = &self.moves[place];
        let (id, to) = (Arc::clone(&at.id), at.to);
        let known = self.proxy.transactions.0.get(&id);
        let route = TransactionRoute::moved(known, (to, at.number), at.client, at.native);
        trace!(self, "{id} is at home at the {to} now: {route:?}");
        self.proxy.shared.transactions.moved(&id, to);
        Arc::make_mut(&mut self.proxy.transactions).0.insert(id, route);
        self.disk.transactions = Arc::clone(&self.proxy.transactions);
        self.see(if self.moves[place].number > 0 { Seen::IdCameBack } else { Seen::IdMoved });
        self.publish();
        self.has_moved(place, Ok(true));
    }

    fn has_moved(&mut self, place: usize, done: ErrandDone) {
        let at = self.moves.remove(place);
        trace!(self, "the move of {} ends: {done:?}", at.id);
        self.errand_done(at.conn, at.ticket, done);
    }

    /// Whoever waits for it loads the snapshot behind it.
    fn errand_done(&mut self, conn: usize, ticket: Ticket, done: ErrandDone) {
        self.conns[conn].loaded_at = self.now.max(1);
        self.proxy.is_shown = true;
        self.apply(conn, Event::ErrandDone { ticket, done });
        self.proxy.is_shown = false;
    }

    /// The first half of a look at what is open: before the cluster is asked.
    pub(crate) fn look_here(&self) -> bool {
        let topics = [Arc::clone(self.proxy.name())];
        !self.proxy.shared.transactions.open_on(&topics).is_empty()
    }

    /// The second half. Whether the cluster has something open on the topic, or may have: not all of it could be asked.
    pub(crate) fn look_there(&mut self, side: ClusterSide) -> bool {
        let cluster = &self.clusters[side.index()];
        let coordinator = &cluster.transactions;
        let asked = &self.proxy.topology(side).brokers;
        // What coordinates and has come (back) since the last look at the metadata is not asked.
        let is_asked = asked.contains_key(&coordinator.broker);
        let is_complete = is_asked
            && coordinator.loading_until <= self.now
            && asked.keys().all(|broker| cluster.is_up(*broker));
        let tells = is_asked && cluster.is_up(coordinator.broker) && coordinator.loading_until <= self.now;
        let open: Vec<_> = match tells {
            true => coordinator.all.iter().filter(|(_, known)| known.is_open()).collect(),
            false => Vec::new(),
        };
        let is_on_topic =
            |parts: &BTreeSet<usize>| parts.iter().any(|log| (*log as i32) < self.shape.partitions);
        let there = open.iter().any(|(_, known)| is_on_topic(&known.parts));
        let ids: BTreeSet<&str> = open.iter().map(|(name, _)| transaction::of_physical(name)).collect();
        if is_complete {
            self.forget_ended(side, &ids);
        }
        if !is_asked {
            self.refresh(side);
        }
        there || !(is_complete || self.is(Bug::TxnIncomplete))
    }

    /// Of clients that have died: their coordinator has ended what they left.
    fn forget_ended(&self, side: ClusterSide, open: &BTreeSet<&str>) {
        let (registry, now) = (&self.proxy.shared.transactions, self.now_ms());
        for (id, seen) in registry.all_open() {
            let is_of_side = self.proxy.snapshot.transaction_home(&id) == side;
            if is_of_side && now - seen.last_ms > BEGINNING_MS && !open.contains(&*id) {
                registry.end_unless_asked(&id);
            }
        }
    }

    /// From now on no transaction on the topic begins.
    pub(crate) fn close_transactions(&mut self) {
        let name = Arc::clone(self.proxy.name());
        self.proxy.shared.transactions.close(&[name]);
    }

    /// They begin again, at whichever side owns the topic now.
    pub(crate) fn open_transactions(&mut self) {
        let name = Arc::clone(self.proxy.name());
        let revision = self.proxy.snapshot.revision;
        self.proxy.shared.transactions.open(&[name], revision);
    }
}

/// DescribeProducers, as the control tasks read it: of producers as their clients know themselves.
pub(crate) fn described(
    table: &TransactionTable,
    side: ClusterSide,
    rows: &[(i64, i16, i32)],
    now_ms: i64,
) -> Vec<DescribedProducer> {
    let row = |(pid, epoch, last_sequence): &(i64, i16, i32)| {
        let last_sequence = *last_sequence;
        let clients = table.clients_of(side, Identity { pid: *pid, epoch: *epoch });
        clients.map(move |client| DescribedProducer {
            pid: client.pid,
            epoch: i32::from(client.epoch),
            last_sequence,
            last_timestamp_ms: now_ms,
        })
    };
    rows.iter().flat_map(row).collect()
}
