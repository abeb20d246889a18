//! `GET /v1/clusters`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::ClusterView;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/clusters",
    summary: "Both clusters and their brokers.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Vec<ClusterView> as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.clusters().await?)
}
