//! `GET /live`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::Health;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/live",
    summary: "Whether the process lives.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Health as Schema>::schema),
    open: true,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.health().await?)
}
