//! TxnOffsetCommit (key 28): commits of a transaction. A group whose home is not the transactional id's cannot take
//! part, and the client is told to abort (protocol §3.6).

use super::common;
use super::group::GroupApi;
use super::offset_commit::METADATA_MAX;
use super::transactions::{self, NAMES};
use crate::error_code as code;
use crate::ids::{ClusterSide, VirtualOffset};
use crate::schema::Struct;
use crate::session::{Cx, Step};
use crate::timeline;

pub(super) struct TxnOffsetCommit {
    request: Struct,
}

impl TxnOffsetCommit {
    pub(super) fn new(request: Struct) -> TxnOffsetCommit {
        TxnOffsetCommit { request }
    }
}

impl GroupApi for TxnOffsetCommit {
    fn group(&self) -> String {
        self.request.str("GroupId").to_owned()
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        let id = self.request.str("TransactionalId");
        let is_home = cx.snapshot.transaction_home(id) == home;
        let is_fenced = is_home && transactions::is_fenced(cx, &self.request, home, NAMES);
        let routes = &cx.snapshot.routes;
        let is_frozen = |t: &Struct| routes.topic(t.str("Name")).is_some_and(|r| r.frozen.is_some());
        let frozen = self.request.structs("Topics").any(is_frozen);
        let error = match is_home {
            true if is_fenced => code::INVALID_PRODUCER_EPOCH,
            true if frozen => code::UNKNOWN_TOPIC_OR_PARTITION,
            true => return None,
            false if cx.header.api_version >= 4 => code::TRANSACTION_ABORTABLE,
            false => code::ILLEGAL_GENERATION,
        };
        let mut response = cx.empty_response()?;
        for topic in self.request.structs("Topics") {
            let mut out = response.new_element("Topics");
            out.set("Name", topic.get("Name").clone());
            for partition in topic.structs("Partitions") {
                let mut element = out.new_element("Partitions");
                element.set("PartitionIndex", partition.i32("PartitionIndex"));
                element.set("ErrorCode", error);
                out.push("Partitions", element);
            }
            response.push("Topics", out);
        }
        Some(Step::Reply(response))
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.request.clone();
        transactions::to_native(cx, &mut request, home, NAMES);
        for topic in request.structs_mut("Topics") {
            let name = topic.str("Name").to_owned();
            let Some(route) = cx.snapshot.routes.topic(&name).cloned() else { continue };
            let physical = common::physical_name(cx, &name, home);
            topic.set("Name", physical);
            for partition in topic.structs_mut("Partitions") {
                let Some(log) = route.timeline(partition.i32("PartitionIndex")) else { continue };
                let position = VirtualOffset(partition.i64("CommittedOffset"));
                let stored = timeline::to_stored(
                    log,
                    home,
                    position,
                    partition.str("CommittedMetadata"),
                    METADATA_MAX,
                );
                partition.set("CommittedOffset", stored.native);
                partition.set("CommittedLeaderEpoch", -1);
                partition.set("CommittedMetadata", stored.metadata);
            }
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        common::names_to_virtual(cx, &mut response, home);
        Step::Reply(response)
    }
}
