//! `GET /v1/events`

use hyper::Method;

use crate::error::ApiError;
use crate::route::{Answer, Call, Response, Route};

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/events",
    summary: "Everything that happens from now on, as server-sent events; a reader that is too slow gets an event `lagged`.",
    query: &[],
    request: None,
    response: Response::Text("text/event-stream"),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Ok(Answer::Events(call.backend.watch()))
}
