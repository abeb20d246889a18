//! `GET /v1/ledger`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::Ledger;
use crate::route::{Answer, Call, Parameter, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/ledger",
    summary: "The append-only record of ownership changes, oldest first.",
    query: &[Parameter {
        name: "since",
        required: false,
        kind: "integer",
        doc: "First sequence wanted; 0 when absent.",
    }],
    request: None,
    response: Response::Json(StatusCode::OK, <Ledger as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let since = match call.parameter("since")? {
        None => 0,
        Some(text) => text.parse().map_err(|_| {
            ApiError::bad_request(format!("`since` is \"{text}\"."), "give a whole number from 0")
        })?,
    };
    Answer::ok(&call.backend.ledger(since).await?)
}
