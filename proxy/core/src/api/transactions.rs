//! AddPartitionsToTxn (key 24): transactions live at the default side, and only topics of that side may join one.
//!
//! Source: KIP-98, `AddPartitionsToTxnRequest.json` (clients use versions up to 3), `AddPartitionsToTxnResponse.json`.

use super::common;
use crate::error_code as code;
use crate::schema::{Struct, Value};
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step};

/// `Errors.OPERATION_NOT_ATTEMPTED`.
const OPERATION_NOT_ATTEMPTED: i16 = 55;

const TOPICS: &str = "V3AndBelowTopics";
const RESULTS: &str = "ResultsByTopicV3AndBelow";

/// An add partitions to transaction request.
pub(super) struct AddPartitionsToTxn {
    request: Struct,
}

impl AddPartitionsToTxn {
    #[must_use]
    pub(super) fn new(request: Struct) -> AddPartitionsToTxn {
        AddPartitionsToTxn { request }
    }

    /// All or nothing, as a broker does it: one topic that cannot join refuses the request.
    fn refuse(&self, cx: &Cx<'_>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let default = cx.snapshot.routes.rules.default_side;
        for topic in self.request.structs(TOPICS) {
            let is_foreign = cx.snapshot.routes.owner(topic.str("Name")) != default;
            let mut out = response.new_element(RESULTS);
            out.set("Name", topic.get("Name").clone());
            for index in topic.ints("Partitions") {
                let mut partition = out.new_element("ResultsByPartition");
                partition.set("PartitionIndex", Value::Int(index));
                partition.set(
                    "PartitionErrorCode",
                    if is_foreign { code::POLICY_VIOLATION } else { OPERATION_NOT_ATTEMPTED },
                );
                out.push("ResultsByPartition", partition);
            }
            response.push(RESULTS, out);
        }
        Step::Reply(response)
    }
}

impl Operation for AddPartitionsToTxn {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let default = cx.snapshot.routes.rules.default_side;
        let now = cx.now_ms;
        for topic in self.request.structs(TOPICS) {
            if let Some(route) = cx.snapshot.routes.topic(topic.str("Name")) {
                cx.shared.traffic.note(&route.name, |t| t.transactional_ms = Some(now));
            }
        }
        if self.request.structs(TOPICS).any(|t| cx.snapshot.routes.owner(t.str("Name")) != default) {
            return self.refuse(cx);
        }
        let mut body = self.request.clone();
        for topic in body.structs_mut(TOPICS) {
            let physical = common::physical_name(cx, topic.str("Name"), default);
            topic.set("Name", physical);
        }
        let node = cx.core.node;
        let upstream = cx.upstream(node.side, node.broker, Class::Native);
        if cx.forward(upstream, &body, 0) { Step::Pending } else { Step::Close(CloseReason::UpstreamLost) }
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, _part: u32, answer: Answer) -> Step {
        let Answer::Frame { frame, body_at, version } = answer else {
            return Step::Close(CloseReason::UpstreamLost);
        };
        match cx.decode(cx.header.api_key, &frame, body_at, version) {
            Ok(mut response) => {
                let side = cx.core.node.side;
                for topic in response.structs_mut(RESULTS) {
                    let name = cx.snapshot.routes.virtual_name(side, topic.str("Name")).to_owned();
                    topic.set("Name", name);
                }
                Step::Reply(response)
            }
            Err(reason) => Step::Close(reason),
        }
    }
}
