//! One file per path.

pub(crate) mod abort;
pub(crate) mod clusters;
pub(crate) mod cutover;
pub(crate) mod events;
pub(crate) mod group_move;
pub(crate) mod groups;
pub(crate) mod ledger;
pub(crate) mod live;
pub(crate) mod metrics;
pub(crate) mod openapi;
pub(crate) mod operation;
pub(crate) mod plan;
pub(crate) mod ready;
pub(crate) mod rollback;
pub(crate) mod routes;
pub(crate) mod status;
pub(crate) mod topics;
pub(crate) mod transaction_abort;
pub(crate) mod transactions;
pub(crate) mod translate;
