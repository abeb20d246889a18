//! `POST /v1/cutover`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::{FlipRequest, OperationView};
use crate::route::{Answer, Call, Response, Route, check_topics};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::POST,
    path: "/v1/cutover",
    summary: "Moves topics from the source to the target; answers when accepted, follow /v1/operations/{id}.",
    query: &[],
    request: Some(<FlipRequest as Schema>::schema),
    response: Response::Json(StatusCode::ACCEPTED, <OperationView as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let request: FlipRequest = call.json()?;
    check_topics(&request.topics)?;
    let revision = call.expected_revision(request.expected_revision)?;
    Answer::json(StatusCode::ACCEPTED, &call.backend.cutover(revision, request).await?)
}
