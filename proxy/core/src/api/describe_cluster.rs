//! DescribeCluster (key 60): answered here, as the brokers of Metadata.
//!
//! Source: KIP-700, KIP-919 (endpoint types), `DescribeClusterResponse.json`.

use super::view;
use crate::error_code as code;
use crate::schema::Struct;
use crate::session::{Answer, Cx, Operation, Step};

/// The endpoint type of brokers; the other one is that of controllers.
const BROKERS: i8 = 1;
/// `Errors.UNSUPPORTED_ENDPOINT_TYPE`.
const UNSUPPORTED_ENDPOINT_TYPE: i16 = 115;

/// A describe cluster request.
pub(super) struct DescribeCluster {
    request: Struct,
}

impl DescribeCluster {
    #[must_use]
    pub(super) fn new(request: Struct) -> DescribeCluster {
        DescribeCluster { request }
    }
}

impl Operation for DescribeCluster {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        if self.request.i8("EndpointType") != BROKERS {
            let known = self.request.i8("EndpointType") == 2;
            response.set("ErrorCode", if known { UNSUPPORTED_ENDPOINT_TYPE } else { code::INVALID_REQUEST });
            response.set("ErrorMessage", "only the brokers' endpoints are offered");
            response.set("EndpointType", self.request.get("EndpointType").clone());
            return Step::Reply(response);
        }
        view::describe(cx, &mut response, "BrokerId");
        Step::Reply(response)
    }

    fn on_answer(&mut self, _cx: &mut Cx<'_>, _part: u32, _answer: Answer) -> Step {
        Step::Pending
    }
}
