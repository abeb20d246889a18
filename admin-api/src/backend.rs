//! What the API needs from the proxy.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::broadcast;

use crate::error::ApiError;
use crate::model::{
    AbortRequest, ClusterView, Event, FlipRequest, GroupMoveRequest, GroupView, Health, Ledger,
    OperationView, Plan, PlanRequest, Routes, Status, TopicView, TransactionAbortRequest, TransactionView,
    TranslateQuery, Translation,
};

/// A result that may take a while. Dropping it must change nothing: callers go away.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// The proxy as its operators see it.
///
/// Mutations compare `expected_revision` with the table and look for a running operation in one step; they answer
/// [`ApiError::revision_mismatch`] or [`ApiError::operation_running`] and never queue. They return as soon as the operation is
/// accepted, in state PREPARE, and it goes on when the caller has left. Repeating a request whose result already
/// holds is harmless: an operation in state DONE with nothing to do.
pub trait Backend: Send + Sync + 'static {
    fn health(&self) -> Reply<'_, Health>;
    fn status(&self) -> Reply<'_, Status>;
    fn clusters(&self) -> Reply<'_, Vec<ClusterView>>;
    fn topics(&self) -> Reply<'_, Vec<TopicView>>;
    fn routes(&self) -> Reply<'_, Routes>;
    fn groups(&self) -> Reply<'_, Vec<GroupView>>;
    /// What is open in either cluster, the longest first.
    fn transactions(&self) -> Reply<'_, Vec<TransactionView>>;
    /// Ends open transactions of an id and fences their producer; gives what was open.
    fn transaction_abort(&self, request: TransactionAbortRequest) -> Reply<'_, Vec<TransactionView>>;
    /// `topics` is not empty.
    fn plan(&self, request: PlanRequest) -> Reply<'_, Plan>;
    /// Source → target. `topics` is not empty.
    fn cutover(&self, expected_revision: u64, request: FlipRequest) -> Reply<'_, OperationView>;
    /// Target → source. `topics` is not empty.
    fn rollback(&self, expected_revision: u64, request: FlipRequest) -> Reply<'_, OperationView>;
    /// Stops the running operation if it is not sealed: else [`crate::ErrorCode::TooLate`], or not found.
    fn abort(&self, request: AbortRequest) -> Reply<'_, OperationView>;
    fn group_move(&self, expected_revision: u64, request: GroupMoveRequest) -> Reply<'_, OperationView>;
    /// A running or a past operation.
    fn operation(&self, id: String) -> Reply<'_, OperationView>;
    /// Entries with a sequence ≥ `since`, oldest first; the implementation bounds how many.
    fn ledger(&self, since: u64) -> Reply<'_, Ledger>;
    fn translate(&self, query: TranslateQuery) -> Reply<'_, Translation>;
    /// Prometheus text format 0.0.4.
    fn metrics(&self) -> Reply<'_, String>;
    /// Everything that happens from now on; a slow reader loses the oldest events and is told so.
    fn watch(&self) -> broadcast::Receiver<Event>;
}
