//! `POST /v1/transactions/abort`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::{TransactionAbortRequest, TransactionView};
use crate::route::{Answer, Call, Response, Route};
use crate::schema::Schema;

/// Names no revision: the route table has nothing to do with it.
pub(crate) const ROUTE: Route = Route {
    method: Method::POST,
    path: "/v1/transactions/abort",
    summary: "Aborts an open transaction and fences its producer, which a flip would wait for.",
    query: &[],
    request: Some(<TransactionAbortRequest as Schema>::schema),
    response: Response::Json(StatusCode::OK, <Vec<TransactionView> as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let request: TransactionAbortRequest = call.json()?;
    Answer::ok(&call.backend.transaction_abort(request).await?)
}
