//! `GET /v1/status`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::Status;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/status",
    summary: "Topics, owners, eras, groups, alarms, and whether the source may be stopped.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Status as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.status().await?)
}
