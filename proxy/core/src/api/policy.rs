//! What the proxy does with each Kafka API: one row per key, checked by the compiler to be complete.
//!
//! Source: `org.apache.kafka.common.protocol.ApiKeys` of Kafka 4.1; RULES R28, R30. `docs/protocol-coverage.md` is made
//! from this table.

use crate::node::ApiRanges;
use crate::schema;
use std::fmt::Write;

/// How an API is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Sent on as it is; the answer is passed back.
    Pass,
    /// Sent to the side that owns what it names, in that side's names, ids and positions.
    Translate,
    /// Answered by the proxy itself.
    Answer,
    /// Asked of both sides, the answers put together.
    BothSides,
    /// Not advertised; a client that sends it is disconnected, as by a broker that does not know the API.
    Refuse,
}

impl Policy {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Pass => "pass",
            Policy::Translate => "translate",
            Policy::Answer => "answer",
            Policy::BothSides => "both sides",
            Policy::Refuse => "refuse",
        }
    }
}

macro_rules! api_keys {
    ($($name:ident = $key:literal,)*) => {
        /// Every API key there is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(i16)]
        pub enum ApiKey {
            $($name = $key,)*
        }

        impl ApiKey {
            /// All of them, ascending.
            pub const ALL: &'static [ApiKey] = &[$(ApiKey::$name,)*];

            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(ApiKey::$name => stringify!($name),)*
                }
            }
        }
    };
}

api_keys! {
    Produce = 0,
    Fetch = 1,
    ListOffsets = 2,
    Metadata = 3,
    LeaderAndIsr = 4,
    StopReplica = 5,
    UpdateMetadata = 6,
    ControlledShutdown = 7,
    OffsetCommit = 8,
    OffsetFetch = 9,
    FindCoordinator = 10,
    JoinGroup = 11,
    Heartbeat = 12,
    LeaveGroup = 13,
    SyncGroup = 14,
    DescribeGroups = 15,
    ListGroups = 16,
    SaslHandshake = 17,
    ApiVersions = 18,
    CreateTopics = 19,
    DeleteTopics = 20,
    DeleteRecords = 21,
    InitProducerId = 22,
    OffsetForLeaderEpoch = 23,
    AddPartitionsToTxn = 24,
    AddOffsetsToTxn = 25,
    EndTxn = 26,
    WriteTxnMarkers = 27,
    TxnOffsetCommit = 28,
    DescribeAcls = 29,
    CreateAcls = 30,
    DeleteAcls = 31,
    DescribeConfigs = 32,
    AlterConfigs = 33,
    AlterReplicaLogDirs = 34,
    DescribeLogDirs = 35,
    SaslAuthenticate = 36,
    CreatePartitions = 37,
    CreateDelegationToken = 38,
    RenewDelegationToken = 39,
    ExpireDelegationToken = 40,
    DescribeDelegationToken = 41,
    DeleteGroups = 42,
    ElectLeaders = 43,
    IncrementalAlterConfigs = 44,
    AlterPartitionReassignments = 45,
    ListPartitionReassignments = 46,
    OffsetDelete = 47,
    DescribeClientQuotas = 48,
    AlterClientQuotas = 49,
    DescribeUserScramCredentials = 50,
    AlterUserScramCredentials = 51,
    Vote = 52,
    BeginQuorumEpoch = 53,
    EndQuorumEpoch = 54,
    DescribeQuorum = 55,
    AlterPartition = 56,
    UpdateFeatures = 57,
    Envelope = 58,
    FetchSnapshot = 59,
    DescribeCluster = 60,
    DescribeProducers = 61,
    BrokerRegistration = 62,
    BrokerHeartbeat = 63,
    UnregisterBroker = 64,
    DescribeTransactions = 65,
    ListTransactions = 66,
    AllocateProducerIds = 67,
    ConsumerGroupHeartbeat = 68,
    ConsumerGroupDescribe = 69,
    ControllerRegistration = 70,
    GetTelemetrySubscriptions = 71,
    PushTelemetry = 72,
    AssignReplicasToDirs = 73,
    ListConfigResources = 74,
    DescribeTopicPartitions = 75,
    ShareGroupHeartbeat = 76,
    ShareGroupDescribe = 77,
    ShareFetch = 78,
    ShareAcknowledge = 79,
    AddRaftVoter = 80,
    RemoveRaftVoter = 81,
    UpdateRaftVoter = 82,
    InitializeShareGroupState = 83,
    ReadShareGroupState = 84,
    WriteShareGroupState = 85,
    DeleteShareGroupState = 86,
    ReadShareGroupStateSummary = 87,
    StreamsGroupHeartbeat = 88,
    StreamsGroupDescribe = 89,
    DescribeShareGroupOffsets = 90,
    AlterShareGroupOffsets = 91,
    DeleteShareGroupOffsets = 92,
}

const INTER_BROKER: &str = "Between brokers and controllers; no client uses it.";
const SHARE: &str =
    "Share groups acquire records by native offset; they cannot follow a topic across clusters.";
const STREAMS: &str =
    "Streams groups keep their topology in one cluster; clients use the classic protocol instead.";
const TELEMETRY: &str = "Client metrics are for one cluster; clients do without.";
const SASL: &str = "This version does not offer SASL.";
const TOKENS: &str = "Delegation tokens need SASL, which this version does not offer.";
const CLUSTER_CHANGE: &str = "Changes one physical cluster as such; ask that cluster directly.";
const OWN_NODE: &str =
    "Sent to the client's own broker: what is shown or changed is that broker's cluster only.";
const BOTH_SIDES: &str = "At the owner, and at the other side too where it has the topic: rehearsed there first where the API can be. Held while a flip fences the topic.";
const DEFAULT_SIDE: &str = "Sent to the default side: what is shown or changed is that cluster only, whichever node the client asks.";
const COORDINATOR: &str = "Sent to the coordinator on the group's home side.";

impl ApiKey {
    /// How the API is dealt with, and in a line what that means.
    #[must_use]
    pub fn policy(self) -> (Policy, &'static str) {
        use Policy::{Answer, BothSides, Pass, Refuse, Translate};
        match self {
            ApiKey::Produce => (
                Translate,
                "Through the partition's gate to the owner's leader. Versions 0 to 2 are advertised where both clusters do (KAFKA-18659), and refused when used.",
            ),
            ApiKey::Fetch => {
                (Translate, "Each partition from the side that holds the position, in virtual offsets.")
            }
            ApiKey::ListOffsets => (
                Translate,
                "Asked of the sides that hold the partition's eras. Until a side has got to a DeleteRecords, a time that it answers with a deleted record gives the new log start (read again rather than skipped), and the newest time may be the other side's.",
            ),
            ApiKey::Metadata => {
                (BothSides, "Each topic from its owner; the brokers of both sides at the proxy's addresses.")
            }
            ApiKey::OffsetDelete => {
                (Translate, "At the group's home side, then the copies of the commits at the other side.")
            }
            ApiKey::OffsetCommit => (
                Translate,
                "At the group's home side; positions are stored native with a tag. One that a later commit of its connection has overtaken, because its coordinator had to be looked for, is answered COORDINATOR_NOT_AVAILABLE.",
            ),
            ApiKey::OffsetFetch => {
                (Translate, "At the group's home side; what is stored native, with a tag, is shown virtual.")
            }
            ApiKey::FindCoordinator => {
                (Translate, "Groups and transactional ids at their home sides; share groups are refused.")
            }
            ApiKey::JoinGroup | ApiKey::Heartbeat | ApiKey::LeaveGroup | ApiKey::SyncGroup => {
                (Translate, COORDINATOR)
            }
            ApiKey::DescribeGroups => (Translate, "Each group at its coordinator on its home side."),
            ApiKey::DeleteGroups => (
                Translate,
                "Each group at its coordinator on its home side, then the copies of its commits at the other side.",
            ),
            ApiKey::ListGroups => (BothSides, "The groups of both sides, each shown by its home side only."),
            ApiKey::ApiVersions => (Answer, "What the proxy and both clusters share."),
            ApiKey::CreateTopics => (Translate, "On the side that the route rules give the topic to."),
            ApiKey::DeleteTopics | ApiKey::CreatePartitions => (Translate, BOTH_SIDES),
            ApiKey::DeleteRecords => (
                Translate,
                "Up to a virtual offset: hidden for good first, then deleted on the sides that hold records below it. Held while a flip fences the topic.",
            ),
            ApiKey::InitProducerId => (
                Translate,
                "Producers without transactions get an id of the proxy, valid on both sides; transactional ones that of the coordinator on their home side, with bit 61 set for the target's.",
            ),
            ApiKey::OffsetForLeaderEpoch => {
                (Translate, "By virtual epochs, at the side whose era the epoch is of.")
            }
            ApiKey::AddPartitionsToTxn => (
                Translate,
                "At the transactional id's home side, which follows the topics with the first request of a transaction. Topics of both sides in one transaction are refused with POLICY_VIOLATION. Held while a flip fences the topic.",
            ),
            ApiKey::AddOffsetsToTxn => (
                Translate,
                "At the transactional id's home side; the group's commits come there first (ADR 13).",
            ),
            ApiKey::EndTxn => (Translate, "At the transactional id's home side."),
            ApiKey::TxnOffsetCommit => (
                Translate,
                "Where the group's commits are, positions as with OffsetCommit; a member of the other side is checked there first (ADR 13).",
            ),
            ApiKey::DescribeConfigs => (
                Translate,
                "Topics at their owner, a broker at the broker that the virtual id names, everything else at the default side.",
            ),
            ApiKey::AlterConfigs | ApiKey::IncrementalAlterConfigs => (
                Translate,
                "Topics as with CreatePartitions, a broker at the broker that the virtual id names, everything else at the default side.",
            ),
            ApiKey::DescribeAcls | ApiKey::CreateAcls | ApiKey::DeleteAcls => (Pass, DEFAULT_SIDE),
            ApiKey::DescribeLogDirs => (Pass, OWN_NODE),
            ApiKey::DescribeClientQuotas | ApiKey::AlterClientQuotas => (Pass, DEFAULT_SIDE),
            ApiKey::DescribeUserScramCredentials | ApiKey::AlterUserScramCredentials => (Pass, DEFAULT_SIDE),
            ApiKey::ListConfigResources => (Pass, DEFAULT_SIDE),
            ApiKey::DescribeCluster => (
                Answer,
                "The brokers of both sides at the proxy's addresses. The controllers' endpoints are not shown.",
            ),
            ApiKey::DescribeProducers => {
                (Translate, "At the owner's leader, producer ids as clients know them.")
            }
            ApiKey::DescribeTransactions | ApiKey::ListTransactions => (Pass, OWN_NODE),
            ApiKey::ConsumerGroupHeartbeat => (
                Translate,
                "At the coordinator on the group's home side, topics by that cluster's ids. While the group is moved, its members are told to own nothing, and then to join anew.",
            ),
            ApiKey::ConsumerGroupDescribe => {
                (Translate, "Each group at its home side, topics by virtual names and ids.")
            }
            ApiKey::DescribeTopicPartitions => (BothSides, "As Metadata, in pages."),
            ApiKey::SaslHandshake | ApiKey::SaslAuthenticate => (Refuse, SASL),
            ApiKey::CreateDelegationToken
            | ApiKey::RenewDelegationToken
            | ApiKey::ExpireDelegationToken
            | ApiKey::DescribeDelegationToken => (Refuse, TOKENS),
            ApiKey::WriteTxnMarkers => (Refuse, INTER_BROKER),
            ApiKey::AlterReplicaLogDirs
            | ApiKey::ElectLeaders
            | ApiKey::AlterPartitionReassignments
            | ApiKey::ListPartitionReassignments
            | ApiKey::DescribeQuorum
            | ApiKey::UpdateFeatures
            | ApiKey::UnregisterBroker
            | ApiKey::AddRaftVoter
            | ApiKey::RemoveRaftVoter => (Refuse, CLUSTER_CHANGE),
            ApiKey::GetTelemetrySubscriptions | ApiKey::PushTelemetry => (Refuse, TELEMETRY),
            ApiKey::ShareGroupHeartbeat
            | ApiKey::ShareGroupDescribe
            | ApiKey::ShareFetch
            | ApiKey::ShareAcknowledge
            | ApiKey::DescribeShareGroupOffsets
            | ApiKey::AlterShareGroupOffsets
            | ApiKey::DeleteShareGroupOffsets => (Refuse, SHARE),
            ApiKey::StreamsGroupHeartbeat | ApiKey::StreamsGroupDescribe => (Refuse, STREAMS),
            ApiKey::LeaderAndIsr
            | ApiKey::StopReplica
            | ApiKey::UpdateMetadata
            | ApiKey::ControlledShutdown
            | ApiKey::Vote
            | ApiKey::BeginQuorumEpoch
            | ApiKey::EndQuorumEpoch
            | ApiKey::AlterPartition
            | ApiKey::Envelope
            | ApiKey::FetchSnapshot
            | ApiKey::BrokerRegistration
            | ApiKey::BrokerHeartbeat
            | ApiKey::AllocateProducerIds
            | ApiKey::ControllerRegistration
            | ApiKey::AssignReplicasToDirs
            | ApiKey::UpdateRaftVoter
            | ApiKey::InitializeShareGroupState
            | ApiKey::ReadShareGroupState
            | ApiKey::WriteShareGroupState
            | ApiKey::DeleteShareGroupState
            | ApiKey::ReadShareGroupStateSummary => (Refuse, INTER_BROKER),
        }
    }

    /// The versions the proxy offers; `None` where it refuses the API.
    #[must_use]
    pub fn versions(self) -> Option<(i16, i16)> {
        if self.policy().0 == Policy::Refuse {
            return None;
        }
        let table = schema::request(self as i16)?.versions;
        Some(match self {
            // librdkafka before 2.8 takes no compression for usable unless version 0 is offered (KAFKA-18659).
            ApiKey::Produce => (0, table.max),
            // What is above belongs to two-phase commit and to transaction.version 2, which is not offered (R28).
            ApiKey::InitProducerId => (table.min, 5),
            ApiKey::AddPartitionsToTxn => (table.min, 3),
            ApiKey::EndTxn | ApiKey::TxnOffsetCommit => (table.min, 4),
            _ => (table.min, table.max),
        })
    }
}

/// All versions the proxy can deal with.
#[must_use]
pub fn supported() -> ApiRanges {
    let ranges = ApiKey::ALL.iter().filter_map(|api| Some((*api as i16, api.versions()?)));
    ApiRanges(ranges.collect())
}

/// What clients are offered: what the proxy and both clusters can. A cluster that was never seen sets no bound, unless
/// neither was: then only ApiVersions is offered.
#[must_use]
pub fn advertised(source: &ApiRanges, target: &ApiRanges) -> ApiRanges {
    let mut ranges = match (source.0.is_empty(), target.0.is_empty()) {
        (true, true) => ApiRanges::default(),
        (false, true) => supported().intersect(source),
        (true, false) => supported().intersect(target),
        (false, false) => supported().intersect(source).intersect(target),
    };
    // The proxy answers it itself, whatever the clusters speak.
    if let Some(own) = ApiKey::ApiVersions.versions() {
        ranges.0.insert(ApiKey::ApiVersions as i16, own);
    }
    // Below the table's versions there is only Produce's pretence of version 0, for which a cluster must offer it too.
    let pretended = ranges.range(ApiKey::Produce as i16).filter(|(min, _)| *min > 0);
    if let (Some((min, max)), Some(table)) = (pretended, schema::request(ApiKey::Produce as i16)) {
        ranges.0.insert(ApiKey::Produce as i16, (min.max(table.versions.min), max));
    }
    ranges
}

/// `docs/protocol-coverage.md`.
#[must_use]
pub fn coverage_markdown() -> String {
    let mut out = String::from(
        "# Protocol coverage\n\nWhat Crossover does with each Kafka API. Made from `proxy/core/src/api/policy.rs`; a \
         test keeps the two equal\n(`CROSSOVER_UPDATE_DOCS=1 cargo test -p crossover-core coverage` rewrites this \
         file).\n\nClients are offered the versions below that both clusters speak too. An API that is refused is not \
         advertised;\na client that sends it all the same is disconnected, as by a broker that does not know it.\n\n\
         | Key | API | Versions | Policy | What the proxy does |\n|---:|---|---|---|---|\n",
    );
    for api in ApiKey::ALL {
        let (policy, does) = api.policy();
        let versions = api.versions().map_or_else(|| "–".to_owned(), |(min, max)| format!("{min}–{max}"));
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "| {} | {} | {versions} | {} | {does} |", *api as i16, api.name(), policy.as_str());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_table_has_a_row_and_every_offered_api_a_table() {
        let all: Vec<i16> = ApiKey::ALL.iter().map(|api| *api as i16).collect();
        assert_eq!(all, (0..=92).collect::<Vec<i16>>());
        for key in schema::keys() {
            assert!(all.contains(key), "key {key} has a table and no policy");
        }
        for (key, (min, max)) in supported().0 {
            assert!(min <= max);
            let (request, response) =
                (schema::request(key).expect("table"), schema::response(key).expect("table"));
            assert!(request.versions.contains(max) && response.versions.contains(max), "key {key}");
            assert!(request.versions.contains(min) || key == 0, "key {key}");
        }
        for key in [17, 27, 36, 38, 43, 45, 46, 55, 57, 64, 71, 72, 76, 77, 78, 79, 80, 88, 89, 90, 91, 92] {
            assert_eq!(supported().range(key), None, "key {key}");
        }
    }

    #[test]
    fn advertised_is_what_all_three_share() {
        let ranges = |rows: &[(i16, (i16, i16))]| ApiRanges(rows.iter().copied().collect());
        let source = ranges(&[(0, (0, 9)), (3, (0, 12)), (18, (0, 3)), (68, (0, 1)), (76, (1, 1))]);
        let target =
            ranges(&[(0, (0, 13)), (3, (2, 13)), (18, (0, 4)), (68, (0, 1)), (76, (1, 1)), (75, (0, 0))]);
        let none = ApiRanges::default();
        let shared = ranges(&[(0, (0, 9)), (3, (2, 12)), (18, (0, 4)), (68, (0, 1))]);
        assert_eq!(advertised(&source, &target), shared);
        assert_eq!(advertised(&none, &target).range(75), Some((0, 0)));
        assert_eq!(advertised(&none, &none), ranges(&[(18, (0, 4))]));
        let newer = ranges(&[(0, (1, 13))]);
        assert_eq!(advertised(&newer, &target).range(0), Some((3, 13)));
    }

    #[test]
    fn coverage_document_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol-coverage.md");
        if std::env::var_os("CROSSOVER_UPDATE_DOCS").is_some_and(|v| v == "1") {
            std::fs::write(&path, coverage_markdown()).expect("written");
        }
        let found = std::fs::read_to_string(&path).expect("docs/protocol-coverage.md exists");
        assert!(
            found == coverage_markdown(),
            "run with CROSSOVER_UPDATE_DOCS=1 to rewrite {}",
            path.display()
        );
    }
}
