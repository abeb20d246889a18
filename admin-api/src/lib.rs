//! The HTTP interface of operators.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /live`, `/ready` | health; without a token |
//! | `GET /metrics`, `/openapi.json` | Prometheus text, this API's description |
//! | `GET /v1/status`, `/v1/clusters`, `/v1/topics`, `/v1/routes`, `/v1/groups`, `/v1/transactions` | what is |
//! | `GET /v1/ledger?since=`, `/v1/operations/{id}` | what was done |
//! | `GET /v1/translate?topic&partition&offset&side` | one offset in both number spaces |
//! | `GET /v1/events` | server-sent events |
//! | `POST /v1/plan` | what a cutover or rollback would do |
//! | `POST /v1/cutover`, `/v1/rollback`, `/v1/groups/move` | starts an operation, 202 |
//! | `POST /v1/transactions/abort` | ends a transaction and fences its producer |
//! | `POST /v1/abort` | stops it, until SEAL |
//!
//! A mutation names the revision it expects (`expected_revision` in the body, or `If-Match`); another revision, and a second
//! operation beside a running one, are answered 409. Every refusal is JSON: `{code, message, remedy}`.

mod backend;
mod body;
mod commands;
mod error;
mod guard;
pub mod model;
mod openapi;
mod route;
mod schema;
mod server;
#[cfg(test)]
mod tests;

pub use backend::{Backend, Reply};
pub use error::{ApiError, ErrorCode};
pub use server::{ServerOptions, serve};

/// The OpenAPI 3.1 document that `/openapi.json` serves.
#[must_use]
pub fn openapi_document() -> serde_json::Value {
    openapi::document()
}
