//! `GET /v1/routes`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::Routes;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/routes",
    summary: "The route table and its revision.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Routes as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.routes().await?)
}
