//! Moves consumers to the owner's node: an empty answer with `preferred_read_replica` (KIP-392) instead of an error.
//!
//! A client that fetches at a node whose side lost the partition is served by a companion for as long as it stays. To
//! have it go, it is pointed once at the owner's leader. What a client makes of that was tried (RULES R20): franz-go
//! fetches there at once, librdkafka does but backs off when it is sent twice within a minute, kafkajs stalls. The Java
//! client takes a node that its metadata does not list as a replica for a reason to refresh them; then it checks its
//! positions, and leaves those under check out of a commit, so that a rebalance in that moment delivers records twice.
//! It and clients that are not known here get no signal and move when their metadata ages.

use super::fetch_entry::EntryKey;
use crate::session::Cx;
use std::collections::HashMap;

/// The first version of Fetch with `PreferredReadReplica`.
const VERSION_MIN: i16 = 11;
/// An era is this old before the first client is sent on, so that a flip and its rollback do not chase clients about,
/// milliseconds.
const SETTLED_MS: i64 = 5_000;
/// Clients of an era are sent on over this time, not all at once, milliseconds.
const SPREAD_MS: i64 = 5_000;
/// librdkafka takes two signals within this time for a fault, milliseconds.
const LIBRDKAFKA_MS: i64 = 60_000;

/// Which partitions this connection was sent on for, and in which era.
#[derive(Debug, Default)]
pub(super) struct Signals {
    given: HashMap<EntryKey, u32>,
}

impl Signals {
    /// Whether the signal of this era is due; if so, it counts as given. A client that comes back is served.
    pub(super) fn take(&mut self, key: &EntryKey, era: u32) -> bool {
        self.given.insert(key.clone(), era) != Some(era)
    }
}

/// Whether this client may be pointed at another node for a partition whose era began at `sealed_at_ms`.
pub(super) fn is_due(cx: &Cx<'_>, sealed_at_ms: i64) -> bool {
    let Some(settled_ms) = settled_ms(cx) else { return false };
    let spread =
        i64::try_from(cx.core.id.0.wrapping_mul(0x9e37_79b9) % 1_000).unwrap_or(0) * SPREAD_MS / 1_000;
    cx.now_ms >= sealed_at_ms.saturating_add(settled_ms + spread)
}

/// Whether a broker's NOT_LEADER_OR_FOLLOWER may become a pointer to the leader instead: where a client came by a
/// signal, the error would cost it seconds.
pub(super) fn may_redirect(cx: &Cx<'_>) -> bool {
    settled_ms(cx).is_some()
}

/// How old an era is to be before this client is sent on; `None` for clients that get no signal.
fn settled_ms(cx: &Cx<'_>) -> Option<i64> {
    if cx.header.api_version < VERSION_MIN {
        return None;
    }
    match cx.core.client.software.as_str() {
        "kgo" => Some(SETTLED_MS),
        // The name librdkafka gives, or the binding that sets its own.
        "librdkafka" | "confluent-kafka-python" | "confluent-kafka-go" | "confluent-kafka-dotnet" => {
            Some(LIBRDKAFKA_MS)
        }
        _ => None,
    }
}
