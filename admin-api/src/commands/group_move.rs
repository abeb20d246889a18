//! `POST /v1/groups/move`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::{GroupMoveRequest, OperationView};
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::POST,
    path: "/v1/groups/move",
    summary: "Moves a consumer group's coordinator to the other cluster.",
    query: &[],
    request: Some(<GroupMoveRequest as Schema>::schema),
    response: Response::Json(StatusCode::ACCEPTED, <OperationView as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let request: GroupMoveRequest = call.json()?;
    let revision = call.expected_revision(request.expected_revision)?;
    if request.group.is_empty() {
        return Err(ApiError::bad_request("No group is named.", "name a group"));
    }
    Answer::json(StatusCode::ACCEPTED, &call.backend.group_move(revision, request).await?)
}
