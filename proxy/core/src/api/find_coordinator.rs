//! FindCoordinator (key 10): groups and transactional ids at their home sides, at virtual addresses.
//!
//! Source: KIP-699 (batches), `FindCoordinatorRequest.json`, `FindCoordinatorResponse.json`.

use super::common::{self, CoordinatorType};
use super::fan::{self, Ask, Plan};
use super::view;
use crate::error_code as code;
use crate::ids::{ClusterSide, VirtualNode};
use crate::schema::{Struct, Value};
use crate::session::{Cx, Step};
use std::collections::HashMap;

/// What a side has answered, and, of a batch, by key; by [`ClusterSide::index`].
type Told<'a> = [(Option<&'a Struct>, HashMap<&'a str, &'a Struct>); 2];

/// A find coordinator request.
pub(super) struct FindCoordinator {
    request: Struct,
    asked: Vec<ClusterSide>,
}

impl FindCoordinator {
    #[must_use]
    pub(super) fn new(request: Struct) -> FindCoordinator {
        FindCoordinator { request, asked: Vec::new() }
    }

    fn is_batch(cx: &Cx<'_>) -> bool {
        cx.header.api_version >= 4
    }

    fn keys(&self, cx: &Cx<'_>) -> Vec<String> {
        if FindCoordinator::is_batch(cx) {
            self.request.strs("CoordinatorKeys").map(str::to_owned).collect()
        } else {
            vec![self.request.str("Key").to_owned()]
        }
    }

    fn kind(&self) -> Option<CoordinatorType> {
        CoordinatorType::of(self.request.i8("KeyType"))
    }

    /// The side that coordinates a key; `None` for what the proxy does not offer.
    fn side_of(&self, cx: &Cx<'_>, key: &str) -> Option<ClusterSide> {
        Some(match self.kind()? {
            CoordinatorType::Group => cx.snapshot.group_home(key),
            CoordinatorType::Transaction => cx.snapshot.transaction_home(key),
        })
    }

    /// What the key is called in the cluster of a side.
    fn physical(&self, cx: &Cx<'_>, key: &str, side: ClusterSide) -> String {
        match self.kind() {
            Some(CoordinatorType::Transaction) => cx.snapshot.transactions.physical(key, side).into_owned(),
            _ => key.to_owned(),
        }
    }

    /// The coordinator of one key, as an element of `Coordinators`.
    fn coordinator(&self, cx: &Cx<'_>, key: &str, told: &Told<'_>, mut out: Struct) -> Struct {
        out.set("Key", key);
        out.set("NodeId", -1);
        out.set("Port", -1);
        let Some(side) = self.side_of(cx, key) else {
            out.set("ErrorCode", code::INVALID_REQUEST);
            out.set("ErrorMessage", "coordinators of this type are not offered");
            return out;
        };
        let (answer, by_key) = &told[side.index()];
        let found = match FindCoordinator::is_batch(cx) {
            true => by_key.get(self.physical(cx, key, side).as_str()).copied(),
            false => *answer,
        };
        // Also while the group is being moved: kafkajs asks before each JoinGroup, and a member that is sent away here
        // never comes to the rebalance that moves the group.
        let Some(found) = found else { return unavailable(out) };
        let (error, broker) = (found.i16("ErrorCode"), found.i32("NodeId"));
        if error != code::NONE {
            out.set("ErrorCode", error);
            out.set("ErrorMessage", found.get("ErrorMessage").clone());
            return out;
        }
        let node = VirtualNode::new(side, broker);
        match common::address(cx, node).filter(|_| broker >= 0) {
            Some((host, port)) => {
                out.set("NodeId", node.to_virtual());
                out.set("Host", host);
                out.set("Port", i32::from(port));
                out
            }
            None => unavailable(out),
        }
    }
}

fn unavailable(mut out: Struct) -> Struct {
    out.set("ErrorCode", code::COORDINATOR_NOT_AVAILABLE);
    out.set("ErrorMessage", "the coordinator is not available");
    out
}

impl Plan for FindCoordinator {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let keys = self.keys(cx);
        let mut asks = Vec::new();
        for side in ClusterSide::BOTH {
            let mine: Vec<&String> = keys.iter().filter(|k| self.side_of(cx, k) == Some(side)).collect();
            let Some(upstream) = cx.any_upstream(side).filter(|_| !mine.is_empty()) else { continue };
            let mut body = self.request.clone();
            if FindCoordinator::is_batch(cx) {
                let mine = mine.into_iter().map(|key| Value::from(self.physical(cx, key, side)));
                body.set("CoordinatorKeys", mine.collect::<Vec<Value>>());
            } else if let Some(key) = mine.first() {
                body.set("Key", self.physical(cx, key, side));
            }
            self.asked.push(side);
            asks.push(Ask::new(upstream, body));
        }
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        let told = ClusterSide::BOTH.map(|side| {
            let asked = self.asked.iter().position(|asked| *asked == side);
            let answer = asked.and_then(|index| answers.get(index)?.as_ref());
            (answer, common::by_text(answer.filter(|_| FindCoordinator::is_batch(cx)), "Coordinators", "Key"))
        });
        for key in self.keys(cx) {
            let found = self.coordinator(cx, &key, &told, response.new_element("Coordinators"));
            if FindCoordinator::is_batch(cx) {
                response.push("Coordinators", found);
            } else {
                for field in ["ErrorCode", "ErrorMessage", "NodeId", "Host", "Port"] {
                    response.set(field, found.get(field).clone());
                }
            }
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        view::PATIENCE_MS
    }
}

#[cfg(test)]
mod tests {
    use super::super::key;
    use super::*;
    use crate::session::testing::{Rig, Source};

    /// `kafka-consumer-groups.sh --all-groups`: the other connections of the thread wait meanwhile.
    #[test]
    fn a_batch_of_very_many_keys_is_answered_at_once() {
        const MANY: usize = 100_000;
        let keys: Vec<Value> = (0..MANY).map(|key| Value::from(format!("group-{key}").as_str())).collect();
        let mut rig = Rig::new(Source, 0);
        rig.ask(key::FIND_COORDINATOR, 4, |body| body.set("CoordinatorKeys", keys.clone()));
        let sent = rig.one();
        let began = std::time::Instant::now();
        rig.answer(&sent, |body| {
            for key in &keys {
                let mut found = body.new_element("Coordinators");
                found.set("Key", key.clone());
                body.push("Coordinators", found);
            }
        });
        assert_eq!(rig.reply().expect("answered").array("Coordinators").len(), MANY);
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    }
}
