//! AddPartitionsToTxn (key 24): to the coordinator on the transactional id's home side, which follows the topics.
//!
//! Source: KIP-98, `AddPartitionsToTxnRequest.json` (clients use versions up to 3), `AddPartitionsToTxnResponse.json`.

use super::common::{self, CoordinatorType};
use super::group::GroupApi;
use super::transactions::{self, Beginning, FENCED_SINCE, Names};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::producer::transaction::Identity;
use crate::schema::{Struct, Value};
use crate::session::{Cx, Step};
use std::collections::BTreeSet;
use std::sync::Arc;

const NAMES: Names = ["V3AndBelowTransactionalId", "V3AndBelowProducerId", "V3AndBelowProducerEpoch"];
const TOPICS: &str = "V3AndBelowTopics";
const RESULTS: &str = "ResultsByTopicV3AndBelow";

/// An add partitions to transaction request.
pub(super) struct AddPartitionsToTxn(pub(super) Struct);

impl GroupApi for AddPartitionsToTxn {
    fn group(&self) -> String {
        self.0.str(NAMES[0]).to_owned()
    }

    fn kind(&self) -> CoordinatorType {
        CoordinatorType::Transaction
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        if !transactions::is_fenced(cx, &self.0, home, NAMES) {
            return None;
        }
        self.refusal(cx, transactions::fenced(cx, FENCED_SINCE)).map(Step::Reply)
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.0.clone();
        transactions::to_native(cx, &mut request, home, NAMES);
        for topic in request.structs_mut(TOPICS) {
            let physical = common::physical_name(cx, topic.str("Name"), home);
            topic.set("Name", physical);
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        for topic in response.structs_mut(RESULTS) {
            let name = cx.snapshot.routes.virtual_name(home, topic.str("Name")).to_owned();
            topic.set("Name", name);
        }
        Step::Reply(response)
    }
}

impl Beginning for AddPartitionsToTxn {
    fn takes_in(&self) -> (BTreeSet<Arc<str>>, Option<String>) {
        (self.0.structs(TOPICS).map(|topic| Arc::from(topic.str("Name"))).collect(), None)
    }

    fn producer(&self) -> Identity {
        transactions::client(&self.0, NAMES)
    }

    /// All or nothing, as a broker does it.
    fn refusal(&self, cx: &Cx<'_>, error: i16) -> Option<Struct> {
        let mut response = cx.empty_response()?;
        for topic in self.0.structs(TOPICS) {
            let mut out = response.new_element(RESULTS);
            out.set("Name", topic.get("Name").clone());
            for index in topic.ints("Partitions") {
                let mut partition = out.new_element("ResultsByPartition");
                partition.set("PartitionIndex", Value::Int(index));
                partition.set("PartitionErrorCode", error);
                out.push("ResultsByPartition", partition);
            }
            response.push(RESULTS, out);
        }
        Some(response)
    }

    fn cannot_join(&self) -> Option<i16> {
        Some(code::POLICY_VIOLATION)
    }

    fn is_refused(&self, response: &Struct) -> bool {
        let mut partitions = response.structs(RESULTS).flat_map(|t| t.structs("ResultsByPartition"));
        partitions.any(|partition| partition.i16("PartitionErrorCode") != code::NONE)
    }
}
