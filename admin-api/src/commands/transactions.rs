//! `GET /v1/transactions`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::TransactionView;
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/transactions",
    summary: "Transactions that are open in either cluster, the longest first.",
    query: &[],
    request: None,
    response: Response::Json(StatusCode::OK, <Vec<TransactionView> as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    Answer::ok(&call.backend.transactions().await?)
}
