//! Requests that are sent on as they are, and their answers passed back.

use crate::schema::Struct;
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The client's own broker: what it says is of that broker.
    OwnBroker,
    /// The default side: tools ask any broker for what is a cluster's, and must not get now one cluster's answer and
    /// now the other's.
    DefaultSide,
}

/// A request that holds nothing to translate.
pub(super) struct Relay {
    request: Struct,
    place: Place,
}

impl Relay {
    #[must_use]
    pub(super) fn new(request: Struct, place: Place) -> Relay {
        Relay { request, place }
    }
}

impl Operation for Relay {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let node = cx.core.node;
        let upstream = match self.place {
            Place::OwnBroker => Some(cx.upstream(node.side, node.broker, Class::Native)),
            Place::DefaultSide => cx.any_upstream(cx.snapshot.routes.rules.default_side),
        };
        match upstream {
            Some(upstream) if cx.forward(upstream, &self.request, 0) => Step::Pending,
            _ => Step::Close(CloseReason::UpstreamLost),
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
