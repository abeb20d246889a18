//! `POST /v1/plan`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::{Plan, PlanRequest};
use crate::route::{Answer, Call, Response, Route, check_topics};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::POST,
    path: "/v1/plan",
    summary: "The checks and the expected pause of a cutover or rollback; changes nothing.",
    query: &[],
    request: Some(<PlanRequest as Schema>::schema),
    response: Response::Json(StatusCode::OK, <Plan as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let request: PlanRequest = call.json()?;
    check_topics(&request.topics)?;
    Answer::ok(&call.backend.plan(request).await?)
}
