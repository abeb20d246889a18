//! EndTxn (key 26): to the coordinator on the transactional id's home side.
//!
//! Source: KIP-98, `EndTxnRequest.json`, `EndTxnResponse.json` (version 5 belongs to transaction.version 2, ADR 12).

use super::common::CoordinatorType;
use super::group::GroupApi;
use super::transactions::{self, FENCED_SINCE, NAMES};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Cx, Step};

/// Answers after which the producer has no transaction open, or is not the one that has.
const OVER: [i16; 5] = [
    code::NONE,
    code::INVALID_TXN_STATE,
    code::INVALID_PRODUCER_EPOCH,
    code::INVALID_PRODUCER_ID_MAPPING,
    code::PRODUCER_FENCED,
];

/// An end transaction request.
pub(super) struct EndTxn(pub(super) Struct);

impl GroupApi for EndTxn {
    fn group(&self) -> String {
        self.0.str("TransactionalId").to_owned()
    }

    fn kind(&self) -> CoordinatorType {
        CoordinatorType::Transaction
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        if !transactions::is_fenced(cx, &self.0, home, NAMES) {
            return None;
        }
        transactions::failed(cx, transactions::fenced(cx, FENCED_SINCE)).map(Step::Reply)
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.0.clone();
        transactions::to_native(cx, &mut request, home, NAMES);
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, _home: ClusterSide, response: Struct) -> Step {
        if OVER.contains(&response.i16("ErrorCode")) {
            // A producer that was fenced knows nothing of what the next one has open.
            let producer = transactions::client(&self.0, NAMES);
            transactions::ended(cx, self.0.str("TransactionalId"), Some(producer));
        }
        Step::Reply(response)
    }

    /// A flip may wait for the end of the transaction.
    fn is_change(&self) -> bool {
        true
    }
}
