//! Names of topics and groups that nobody knows: a misspelt one must not be taken for one that is to come.

use super::Control;
use super::client::request;
use anyhow::ensure;
use crossover_config::similar;
use crossover_core::api::key;
use crossover_core::ids::ClusterSide;
use crossover_core::route::Snapshot;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Similar names that are told.
const SIMILAR_MAX: usize = 3;

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl Control {
    /// Refuses the first of `named` that no cluster lists and no client has asked for. Nobody is refused while a broker
    /// does not answer: the group may be one of its own.
    pub(crate) async fn unknown_group(&self, named: &[String]) -> Option<Refusal> {
        let mut known = self.known_groups();
        if named.iter().all(|group| known.contains(group.as_str())) {
            return None;
        }
        for side in ClusterSide::BOTH {
            known.extend(self.listed_groups(side).await.ok()?);
        }
        unknown_group(named, &known)
    }

    /// Groups that Crossover has seen or moved.
    pub(crate) fn known_groups(&self) -> BTreeSet<Arc<str>> {
        let snapshot = self.runtime.snapshot();
        let mut names: BTreeSet<Arc<str>> = snapshot.groups.homes.keys().cloned().collect();
        names.extend(snapshot.groups.offset_homes.keys().cloned());
        names.extend(self.runtime.shared.groups.names());
        names
    }

    /// All groups of a cluster: each broker lists those that it coordinates.
    async fn listed_groups(&self, side: ClusterSide) -> anyhow::Result<Vec<Arc<str>>> {
        let topology = self.topology(side);
        ensure!(topology.reachable, "the {side} is not reachable");
        let mut names = Vec::new();
        for broker in topology.brokers.keys() {
            let at = self.address(side, *broker)?;
            let answer =
                self.client.call(&at, key::LIST_GROUPS, i16::MAX, &request(key::LIST_GROUPS)).await?;
            let error = answer.i16("ErrorCode");
            ensure!(error == 0, "ListGroups answers error {error}");
            names.extend(answer.structs("Groups").map(|group| Arc::from(group.str("GroupId"))));
        }
        Ok(names)
    }
}

fn unknown_group(named: &[String], known: &BTreeSet<Arc<str>>) -> Option<Refusal> {
    let group = named.iter().find(|group| !known.contains(group.as_str()))?;
    let meant = did_you_mean(group, known.iter().map(|name| &**name));
    Some(Refusal {
        problem: format!(
            "group {group} is not known: neither cluster has it, and no client has used it since Crossover was started"
        ),
        remedy: format!(
            "{meant}`crossover groups` lists those that clients use; a group that is to come can be moved once a member of it has joined"
        ),
    })
}

/// Why a topic has no route: the side that owns its name has no such topic.
pub(crate) fn unknown_topic(snapshot: &Snapshot, topic: &str) -> Refusal {
    let route = snapshot.routes.rules.initial_route(&Arc::from(topic), &snapshot.topologies);
    let (owner, other) = (route.owner, route.owner.other());
    let exists = |side: ClusterSide| snapshot.topology(side).topic(route.physical(side)).is_some();
    let (problem, remedy) = if !snapshot.topology(owner).reachable {
        (
            format!("topic {topic} is not known, and the {owner} cannot be reached to look for it"),
            format!("bring the {owner} up, or correct its bootstrap addresses"),
        )
    } else if exists(other) {
        (
            format!("topic {topic} does not exist on the {owner}, which owns the name; the {other} has one"),
            format!(
                "create it on the {owner}; or let the {other} own it, with a [[route]] of topic = \"{topic}\" and side = \"{other}\" and a restart"
            ),
        )
    } else if !snapshot.topology(other).reachable {
        (
            format!("topic {topic} does not exist on the {owner}; the {other} cannot be reached"),
            format!("{}`crossover status` lists the topics", meant_topic(snapshot, topic)),
        )
    } else {
        (
            format!("topic {topic} does not exist, neither on the {owner} nor on the {other}"),
            format!("{}`crossover status` lists the topics", meant_topic(snapshot, topic)),
        )
    };
    Refusal { problem, remedy }
}

fn meant_topic(snapshot: &Snapshot, topic: &str) -> String {
    did_you_mean(topic, snapshot.routes.topics.keys().map(|name| &**name))
}

/// A question with a space behind it, or a hint.
fn did_you_mean<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    match similar(name, known, SIMILAR_MAX).as_slice() {
        [] => "check its spelling: ".to_owned(),
        found => format!("did you mean {}? ", found.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn a_group_that_nobody_knows_is_refused_with_those_of_similar_names() {
        let known: BTreeSet<Arc<str>> = ["orders-java", "billing"].map(Arc::from).into();
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(unknown_group(&named(&["billing", "orders-java"]), &known), None);
        let refused = unknown_group(&named(&["billing", "orders-jvaa"]), &known).expect("misspelt");
        assert!(refused.problem.starts_with("group orders-jvaa is not known"), "{refused:?}");
        assert!(refused.remedy.starts_with("did you mean orders-java? "), "{refused:?}");
        let refused = unknown_group(&named(&["something else"]), &known).expect("unknown");
        assert!(refused.remedy.starts_with("check its spelling: "), "{refused:?}");
    }

    #[test]
    fn a_topic_that_is_not_there_is_told_by_the_side_that_lacks_it() {
        let both = testing::snapshot(&["orders"], &["orders", "copied"]);
        let said = |snapshot: &Snapshot, topic: &str| {
            let refusal = unknown_topic(snapshot, topic);
            (refusal.problem, refusal.remedy)
        };
        let (problem, remedy) = said(&both, "ordesr");
        assert_eq!(problem, "topic ordesr does not exist, neither on the source nor on the target");
        assert!(remedy.starts_with("did you mean orders? "), "{remedy}");
        let (problem, remedy) = said(&both, "copied");
        assert!(problem.contains("does not exist on the source") && problem.contains("the target has one"));
        assert!(remedy.contains("side = \"target\""), "{remedy}");
        let mut down = both;
        Arc::make_mut(&mut down.topologies[0]).reachable = false;
        let (problem, remedy) = said(&down, "ordesr");
        assert!(problem.contains("is not known") && !problem.contains("does not exist"), "{problem}");
        assert!(remedy.starts_with("bring the source up"), "{remedy}");
    }
}
