//! InitProducerId (key 22): a producer without transactions gets an id of the proxy, which means nothing to either
//! cluster until it writes (RULES R6). One with transactions gets its coordinator's, at the home of its transactional id.
//!
//! Source: KIP-98, KIP-360, `InitProducerIdRequest.json`, `InitProducerIdResponse.json`; RULES R30.

use super::common::CoordinatorType;
use super::group::GroupApi;
use super::transactions::{self, NAMES};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::producer::pid;
use crate::producer::transaction::{self, Identity};
use crate::schema::Struct;
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step};
use std::sync::Arc;

/// An init producer id request of a producer without transactions.
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

    /// The cluster is asked for its consent (authorization, quota); its id is not used.
    fn idempotent_request(&self) -> Struct {
        self.request.clone_without(&["ProducerId", "ProducerEpoch"])
    }

    fn ask_other_side(&self, cx: &mut Cx<'_>) -> Step {
        let upstream = cx.any_upstream(cx.core.node.side.other());
        let sent =
            upstream.is_some_and(|upstream| cx.forward(upstream, &self.idempotent_request(), OTHER_SIDE));
        if sent { Step::Pending } else { Step::Close(CloseReason::UpstreamLost) }
    }
}

impl Operation for InitProducerId {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let node = cx.core.node;
        let upstream = cx.upstream(node.side, node.broker, Class::Native);
        let body = self.idempotent_request();
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
                if response.i16("ErrorCode") == code::NONE {
                    response.set("ProducerId", pid::issue(cx.core.next_random()));
                    response.set("ProducerEpoch", 0);
                }
                Step::Reply(response)
            }
            Err(reason) => Step::Close(reason),
        }
    }
}

/// Since this version a fenced producer has a code of its own (KIP-588).
const FENCED_SINCE: i16 = 4;

/// An init producer id request with a transactional id: what was open before is aborted.
pub(super) struct InitTransactions {
    request: Struct,
    /// While it is under way, the id stays at the home that was asked.
    asking: Option<Arc<()>>,
}

impl InitTransactions {
    pub(super) fn new(request: Struct) -> InitTransactions {
        InitTransactions { request, asking: None }
    }

    /// One that has an identity asks for its next epoch (KIP-360).
    fn has_producer(&self) -> bool {
        self.request.has("ProducerId") && self.request.i64("ProducerId") >= 0
    }

    fn id(&self) -> &str {
        self.request.str("TransactionalId")
    }
}

impl GroupApi for InitTransactions {
    fn group(&self) -> String {
        self.id().to_owned()
    }

    fn kind(&self) -> CoordinatorType {
        CoordinatorType::Transaction
    }

    /// It waits while the id is moved for a transaction of another instance: where it was, that one would not be fenced any
    /// more. From now on no move begins.
    fn instead(&mut self, cx: &mut Cx<'_>) -> Option<Step> {
        let home = cx.snapshot.transaction_home(self.id());
        self.asking = cx.shared.transactions.ask_identity(self.id(), home);
        if self.asking.is_some() {
            return None;
        }
        cx.wake_at(cx.now_ms + transactions::RETRY_MS);
        Some(Step::Pending)
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        if !self.has_producer() || !transactions::is_fenced(cx, &self.request, home, NAMES) {
            return None;
        }
        transactions::failed(cx, transactions::fenced(cx, FENCED_SINCE)).map(Step::Reply)
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.request.clone();
        if self.has_producer() {
            transactions::to_native(cx, &mut request, home, NAMES);
        } else {
            let name = cx.snapshot.transactions.physical(self.id(), home).into_owned();
            request.set("TransactionalId", name);
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        if response.i16("ErrorCode") == code::NONE {
            transactions::ended(cx, self.id(), None);
            let pid = transaction::to_client(home, response.i64("ProducerId"));
            response.set("ProducerId", pid);
            cx.shared.transactions.given(self.id(), Identity { pid, epoch: response.i16("ProducerEpoch") });
        }
        Step::Reply(response)
    }
}

#[cfg(test)]
mod tests;
