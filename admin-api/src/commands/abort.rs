//! `POST /v1/abort`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::{AbortRequest, OperationView};
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

/// Names an operation instead of a revision: the revision changes only where aborting is too late.
pub(crate) const ROUTE: Route = Route {
    method: Method::POST,
    path: "/v1/abort",
    summary: "Stops the running operation and leaves topics with their old owner; possible until SEAL.",
    query: &[],
    request: Some(<AbortRequest as Schema>::schema),
    response: Response::Json(StatusCode::OK, <OperationView as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let request: AbortRequest = call.json()?;
    Answer::ok(&call.backend.abort(request).await?)
}
