//! `GET /v1/operations/{id}`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::OperationView;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/operations/{id}",
    summary: "A running or past operation.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <OperationView as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.operation(call.segment).await?)
}
