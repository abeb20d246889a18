//! One file per Kafka API: what the proxy does with a request of that key.

mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod admin_topics;
mod api_versions;
mod both_sides;
pub mod common;
mod configs;
mod consumer_group;
mod delete_groups;
mod delete_records;
mod describe_cluster;
mod describe_groups;
mod describe_producers;
mod describe_topic_partitions;
mod end_txn;
mod fan;
pub mod fetch;
mod fetch_entry;
mod fetch_session;
mod fetch_signal;
mod find_coordinator;
#[cfg(test)]
mod frozen_tests;
pub mod group;
mod group_batch;
mod heartbeat;
mod init_producer_id;
mod join_group;
pub mod key;
mod list_groups;
mod list_offsets;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
pub mod policy;
pub mod produce;
mod relay;
mod split;
mod transactions;
mod txn_offset_commit;
mod view;
#[cfg(test)]
mod view_tests;

use crate::route::Snapshot;
use crate::schema;
use crate::schema::Struct;
use crate::session::{Class, CloseReason, Operation};
use crate::wire::header::RequestHeader;
use bytes::Bytes;
use group::{GroupCall, Plain};
use relay::Place;

/// A request that was accepted.
pub struct Opened {
    pub operation: Box<dyn Operation>,
    /// acks=0: nothing is ever sent back.
    pub silent: bool,
}

impl Opened {
    fn new(operation: impl Operation + 'static) -> Opened {
        Opened { operation: Box::new(operation), silent: false }
    }
}

/// Validates a request and makes its operation.
///
/// # Errors
/// What a broker would close the connection for.
pub fn open(header: &RequestHeader, frame: &Bytes, snapshot: &Snapshot) -> Result<Opened, CloseReason> {
    let (api_key, version) = (header.api_key, header.api_version);
    let is_handshake = api_key == key::API_VERSIONS;
    let known = schema::request(api_key).is_some_and(|m| m.versions.contains(version));
    if is_handshake && !known {
        // A client may start with a version of its own time (KIP-511).
        return Ok(Opened::new(api_versions::ApiVersions::unsupported()));
    }
    let message = schema::request(api_key)
        .filter(|_| known && (is_handshake || snapshot.advertised.contains(api_key, version)))
        .ok_or_else(|| {
            CloseReason::BadRequest(format!("API key {api_key} version {version} is not offered"))
        })?;
    let body = schema::decode(message, version, &frame.slice(header.body_offset..))
        .map_err(|error| CloseReason::BadRequest(format!("{} v{version}: {error}", message.name)))?;
    Ok(match api_key {
        key::PRODUCE => {
            let produce = produce::Produce::new(body);
            let silent = produce.is_silent();
            Opened { operation: Box::new(produce), silent }
        }
        key::FETCH => Opened::new(fetch::Fetch::new(body)),
        key::LIST_OFFSETS => Opened::new(fan::Fan::new(list_offsets::ListOffsets::new(body))),
        key::OFFSET_FOR_LEADER_EPOCH => {
            Opened::new(fan::Fan::new(offset_for_leader_epoch::OffsetForLeaderEpoch::new(body)))
        }
        key::DELETE_RECORDS => Opened::new(fan::Fan::new(delete_records::DeleteRecords::new(body))),
        key::API_VERSIONS => Opened::new(api_versions::ApiVersions::new(body)),
        key::METADATA => Opened::new(fan::Fan::new(metadata::Metadata::new(body))),
        key::DESCRIBE_TOPIC_PARTITIONS => {
            Opened::new(fan::Fan::new(describe_topic_partitions::DescribeTopicPartitions::new(body)))
        }
        key::DESCRIBE_CLUSTER => Opened::new(describe_cluster::DescribeCluster::new(body)),
        key::FIND_COORDINATOR => Opened::new(fan::Fan::new(find_coordinator::FindCoordinator::new(body))),
        key::INIT_PRODUCER_ID if !body.is_null("TransactionalId") => {
            Opened::new(GroupCall::new(init_producer_id::InitTransactions::new(body)))
        }
        key::INIT_PRODUCER_ID => Opened::new(init_producer_id::InitProducerId::new(body)),
        key::CREATE_TOPICS | key::CREATE_PARTITIONS | key::DELETE_TOPICS => {
            Opened::new(fan::Fan::new(admin_topics::TopicsChange::new(api_key, version, body)))
        }
        key::DESCRIBE_CONFIGS | key::ALTER_CONFIGS | key::INCREMENTAL_ALTER_CONFIGS => {
            Opened::new(fan::Fan::new(configs::Configs::new(api_key, body)))
        }
        key::DESCRIBE_PRODUCERS => {
            Opened::new(fan::Fan::new(describe_producers::DescribeProducers::new(body)))
        }
        key::ADD_PARTITIONS_TO_TXN => {
            Opened::new(transactions::Begin::new(add_partitions_to_txn::AddPartitionsToTxn(body)))
        }
        key::ADD_OFFSETS_TO_TXN => {
            Opened::new(transactions::Begin::new(add_offsets_to_txn::AddOffsetsToTxn(body)))
        }
        key::END_TXN => Opened::new(GroupCall::new(end_txn::EndTxn(body))),
        key::JOIN_GROUP => Opened::new(join_group::JoinGroup::new(body)),
        key::SYNC_GROUP => Opened::new(GroupCall::new(plain(body, Class::Group))),
        key::HEARTBEAT => Opened::new(GroupCall::new(heartbeat::Heartbeat(body))),
        key::LEAVE_GROUP => Opened::new(GroupCall::new(heartbeat::LeaveGroup(body))),
        key::OFFSET_COMMIT => Opened::new(GroupCall::new(offset_commit::OffsetCommit::new(body))),
        key::OFFSET_FETCH => Opened::new(GroupCall::new(offset_fetch::OffsetFetch::new(body))),
        key::TXN_OFFSET_COMMIT => Opened::new(txn_offset_commit::CommitInTransaction::new(body)),
        key::CONSUMER_GROUP_HEARTBEAT => {
            Opened::new(GroupCall::new(consumer_group::ConsumerGroupHeartbeat(body)))
        }
        key::CONSUMER_GROUP_DESCRIBE => Opened::new(consumer_group::consumer_group_describe(body)),
        key::DESCRIBE_GROUPS => Opened::new(describe_groups::describe_groups(body)),
        key::DELETE_GROUPS => Opened::new(delete_groups::delete_groups(body)),
        key::OFFSET_DELETE => Opened::new(GroupCall::new(offset_delete::OffsetDelete::new(body))),
        key::LIST_GROUPS => Opened::new(fan::Fan::new(list_groups::ListGroups::new(body))),
        key::DESCRIBE_ACLS
        | key::CREATE_ACLS
        | key::DELETE_ACLS
        | key::DESCRIBE_CLIENT_QUOTAS
        | key::ALTER_CLIENT_QUOTAS
        | key::DESCRIBE_USER_SCRAM_CREDENTIALS
        | key::ALTER_USER_SCRAM_CREDENTIALS
        | key::LIST_CONFIG_RESOURCES => Opened::new(relay::Relay::new(body, Place::DefaultSide)),
        _ => Opened::new(relay::Relay::new(body, Place::OwnBroker)),
    })
}

/// A request of one group with nothing in it to translate.
fn plain(request: Struct, class: Class) -> Plain {
    Plain { group: request.str("GroupId").to_owned(), request, class }
}
