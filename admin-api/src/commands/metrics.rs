//! `GET /metrics`

use hyper::Method;

use crate::error::ApiError;
use crate::route::{Answer, Call, Response, Route};

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/metrics",
    summary: "Metrics in the Prometheus text format.",
    query: &[],
    request: None,
    response: Response::Text(MEDIA_TYPE),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Ok(Answer::text(MEDIA_TYPE, call.backend.metrics().await?))
}
