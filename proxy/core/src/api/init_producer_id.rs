//! InitProducerId (key 22): a producer without transactions gets an id of the proxy, which means nothing to either
//! cluster until it writes (RULES R6). One with transactions gets its coordinator's.
//!
//! Source: KIP-98, KIP-360, `InitProducerIdRequest.json`, `InitProducerIdResponse.json`; RULES R30.

use crate::error_code as code;
use crate::producer::pid;
use crate::schema::Struct;
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step};

/// An init producer id request.
pub(super) struct InitProducerId {
    request: Struct,
}

/// Which broker was asked.
const OWN_NODE: u32 = 0;
const OTHER_SIDE: u32 = 1;

impl InitProducerId {
    #[must_use]
    pub(super) fn new(request: Struct) -> InitProducerId {
        InitProducerId { request }
    }

    fn is_transactional(&self) -> bool {
        !self.request.is_null("TransactionalId")
    }

    /// The cluster is asked for its consent (authorization, quota); its id is not used.
    fn idempotent_request(&self) -> Struct {
        let mut body = self.request.clone();
        body.reset("ProducerId");
        body.reset("ProducerEpoch");
        body
    }

    fn ask_other_side(&self, cx: &mut Cx<'_>) -> Step {
        let sent = !self.is_transactional()
            && cx
                .any_upstream(cx.core.node.side.other())
                .is_some_and(|upstream| cx.forward(upstream, &self.idempotent_request(), OTHER_SIDE));
        if sent { Step::Pending } else { Step::Close(CloseReason::UpstreamLost) }
    }
}

impl Operation for InitProducerId {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let node = cx.core.node;
        let upstream = cx.upstream(node.side, node.broker, Class::Native);
        let body = if self.is_transactional() { self.request.clone() } else { self.idempotent_request() };
        if cx.forward(upstream, &body, OWN_NODE) { Step::Pending } else { self.ask_other_side(cx) }
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let (frame, body_at, version) = match answer {
            Answer::Lost { .. } if part == OWN_NODE => return self.ask_other_side(cx),
            Answer::Lost { .. } => return Step::Close(CloseReason::UpstreamLost),
            Answer::Frame { frame, body_at, version } => (frame, body_at, version),
        };
        match cx.decode(cx.header.api_key, &frame, body_at, version) {
            Ok(mut response) => {
                if !self.is_transactional() && response.i16("ErrorCode") == code::NONE {
                    response.set("ProducerId", pid::issue(cx.core.next_random()));
                    response.set("ProducerEpoch", 0);
                }
                Step::Reply(response)
            }
            Err(reason) => Step::Close(reason),
        }
    }
}
