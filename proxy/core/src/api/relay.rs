//! Requests that any broker of the client's own side answers: sent on as they are, the answer is passed back.

use crate::schema::Struct;
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step};

/// A request for the client's own broker.
pub(super) struct Relay {
    request: Struct,
}

impl Relay {
    #[must_use]
    pub(super) fn new(request: Struct) -> Relay {
        Relay { request }
    }
}

impl Operation for Relay {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let node = cx.core.node;
        let upstream = cx.upstream(node.side, node.broker, Class::Native);
        if cx.forward(upstream, &self.request, 0) {
            Step::Pending
        } else {
            Step::Close(CloseReason::UpstreamLost)
        }
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, _part: u32, answer: Answer) -> Step {
        match answer {
            Answer::Lost { .. } => Step::Close(CloseReason::UpstreamLost),
            Answer::Frame { frame, body_at, version } => {
                match cx.decode(cx.header.api_key, &frame, body_at, version) {
                    Ok(response) => Step::Reply(response),
                    Err(reason) => Step::Close(reason),
                }
            }
        }
    }
}
