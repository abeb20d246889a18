//! `GET /v1/groups`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::GroupView;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/groups",
    summary: "Consumer groups, their homes and tagged commits.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Vec<GroupView> as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.groups().await?)
}
