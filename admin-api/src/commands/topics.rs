//! `GET /v1/topics`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::TopicView;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/topics",
    summary: "Topics with their timelines.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Vec<TopicView> as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.topics().await?)
}
