//! `GET /ready`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::Health;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/ready",
    summary: "Whether clients can connect and be served; 503 with the reasons when not.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Health as Schema>::schema),
    open: true,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let health = call.backend.health().await?;
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer::json(status, &health)
}
