//! `GET /openapi.json`

use hyper::Method;

use crate::error::ApiError;
use crate::openapi;
use crate::route::{Answer, Call, JSON, Response, Route};

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/openapi.json",
    summary: "This description.",
    query: &[],
    request: None,
    response: Response::Text(JSON),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(_: Call) -> Result<Answer, ApiError> {
    Answer::ok(&openapi::document())
}
