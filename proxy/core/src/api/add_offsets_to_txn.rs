//! AddOffsetsToTxn (key 25): to the coordinator on the transactional id's home side, which follows the group's.
//!
//! Source: KIP-98, `AddOffsetsToTxnRequest.json`, `AddOffsetsToTxnResponse.json`.

use super::common::CoordinatorType;
use super::group::GroupApi;
use super::transactions::{self, Beginning, FENCED_SINCE, NAMES};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::producer::transaction::Identity;
use crate::schema::Struct;
use crate::session::{Cx, Step};
use std::collections::BTreeSet;
use std::sync::Arc;

/// An add offsets to transaction request.
pub(super) struct AddOffsetsToTxn(pub(super) Struct);

impl GroupApi for AddOffsetsToTxn {
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
        self.refusal(cx, transactions::fenced(cx, FENCED_SINCE)).map(Step::Reply)
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.0.clone();
        transactions::to_native(cx, &mut request, home, NAMES);
        request
    }
}

impl Beginning for AddOffsetsToTxn {
    fn takes_in(&self) -> (BTreeSet<Arc<str>>, Option<String>) {
        (BTreeSet::new(), Some(self.0.str("GroupId").to_owned()))
    }

    fn producer(&self) -> Identity {
        transactions::client(&self.0, NAMES)
    }

    fn refusal(&self, cx: &Cx<'_>, error: i16) -> Option<Struct> {
        transactions::failed(cx, error)
    }

    /// The commit itself is refused: this API has no code that clients take as less than fatal.
    fn cannot_join(&self) -> Option<i16> {
        None
    }

    fn is_refused(&self, response: &Struct) -> bool {
        response.i16("ErrorCode") != code::NONE
    }
}
