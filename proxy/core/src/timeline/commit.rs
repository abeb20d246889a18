//! Committed positions as one cluster's `__consumer_offsets` holds them (R27).
//!
//! A commit is native wherever the position has a native image, so that the cluster can be used without the proxy. Where
//! it has none, the virtual offset stands in the commit's metadata, `xo1:<timeline id, hex>:<virtual offset>:<user
//! metadata>`, beside a native number that re-reads. Whoever commits natively overwrites number and metadata together.

use super::{Era, Timeline};
use crate::bug::{self, Bug};
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};

/// What every tag starts with; user metadata that starts with it is always tagged.
pub const TAG_PREFIX: &str = "xo1:";

/// What goes into one cluster's `__consumer_offsets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCommit {
    /// The largest native position that skips no record of this side at or above the virtual one.
    pub native: i64,
    pub metadata: String,
    pub tagged: bool,
}

/// What a client is told about a commit found in one cluster's `__consumer_offsets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedCommit {
    pub position: VirtualOffset,
    pub user_metadata: String,
    /// Whether the position came from a tag of this timeline.
    pub tagged: bool,
}

/// The form in which `side` stores the position `position`.
///
/// `metadata_max` is the side's `offset.metadata.max.bytes`. When a tag does not fit, the position comes first: an
/// untagged number that re-reads goes with the user's metadata; where there is no such number (the side was never
/// entered before the position), or the metadata would read as a tag, the tag stays and the metadata is shortened.
/// Metadata over the limit by itself is never shortened: the broker refuses it, as it would without a proxy.
/// Sentinels (negative positions) are stored as they are.
#[must_use]
pub fn to_stored(
    timeline: &Timeline,
    side: ClusterSide,
    position: VirtualOffset,
    user_metadata: &str,
    metadata_max: usize,
) -> StoredCommit {
    let native = native_position(timeline, side, position);
    let looks_tagged = user_metadata.starts_with(TAG_PREFIX);
    let untagged = |native: i64| StoredCommit { native, metadata: user_metadata.to_owned(), tagged: false };
    let is_plain = bug::is(Bug::R27NoTag) || says_it_all(timeline, side, native, position);
    if !looks_tagged && is_plain {
        return untagged(native);
    }
    let tag = tag(timeline.id(), position);
    let user_max = metadata_max.saturating_sub(tag.len());
    if user_metadata.len() > user_max
        && !looks_tagged
        && let Some(native) = untagged_reread(timeline, side, native, position)
    {
        return untagged(native);
    }
    let kept = if user_metadata.len() > metadata_max { user_metadata } else { cut(user_metadata, user_max) };
    StoredCommit { native, metadata: tag + kept, tagged: true }
}

/// The virtual position of a commit found on `side`. A well-formed tag of another timeline is stripped and its position
/// ignored: user metadata that only looks like a tag was tagged when it was stored.
#[must_use]
pub fn resolve(timeline: &Timeline, side: ClusterSide, native: i64, metadata: &str) -> ResolvedCommit {
    let number = || resolve_number(timeline, side, native);
    let (position, user_metadata, tagged) = match parse_tag(metadata) {
        Some((id, position, user)) if id == timeline.id() && !bug::is(Bug::R27TagIgnored) => {
            (position, user, true)
        }
        Some((_, _, user)) => (number(), user, false),
        None => (number(), metadata, false),
    };
    ResolvedCommit { position, user_metadata: user_metadata.to_owned(), tagged }
}

/// Whether the number alone resolves to `position`, now and after every later flip. A number on a side without an era
/// cannot: the first era there will give it another meaning.
fn says_it_all(timeline: &Timeline, side: ClusterSide, native: i64, position: VirtualOffset) -> bool {
    let entered = timeline.on_side(side).next().is_some();
    position.0 < 0 || (entered && resolve_number(timeline, side, native) == position)
}

/// The largest native position n such that no record of `side` whose virtual offset is ≥ `position` lies below n.
fn native_position(timeline: &Timeline, side: ClusterSide, position: VirtualOffset) -> i64 {
    if position.0 < 0 || timeline.copy_holds(side, position) {
        return position.0;
    }
    // An empty era holds no record, so it does not hold the number back either.
    let reaches = |era: &&Era| era.virtual_end().is_none_or(|end| end > position.max(era.virtual_start));
    match timeline.on_side(side).find(reaches) {
        Some(era) => era.unshift(position.max(era.virtual_start)).0,
        // Nothing of this side lies there yet; whatever it gets later starts at its end or above.
        None => timeline.side_end(side).map_or(0, |end| end.0),
    }
}

/// A number that without a tag resolves to `position` or below, now and after every later flip.
fn untagged_reread(
    timeline: &Timeline,
    side: ClusterSide,
    native: i64,
    position: VirtualOffset,
) -> Option<i64> {
    timeline.on_side(side).next()?;
    if resolve_number(timeline, side, native) <= position {
        return Some(native);
    }
    // The number is the start of an era above: the end of the side's era before it lies below.
    let ended = |era: &&Era| era.virtual_end().is_some_and(|end| end <= position);
    timeline.on_side(side).rfind(ended).and_then(|era| era.native_end).map(|end| end.0)
}

/// An untagged number n is "the record before n, plus one"; without such a record, the start of the side's next era.
fn resolve_number(timeline: &Timeline, side: ClusterSide, native: i64) -> VirtualOffset {
    if native < 0 {
        return VirtualOffset(native);
    }
    if bug::is(Bug::R27Skips)
        && let Some((_, record)) = timeline.record_on_side(side, NativeOffset(native))
    {
        return record;
    }
    if let Some((_, previous)) = timeline.record_on_side(side, NativeOffset(native.saturating_sub(1))) {
        return VirtualOffset(previous.0.saturating_add(1));
    }
    if native == 0 && timeline.on_side(side).any(|era| era.holds_history) {
        return VirtualOffset(0);
    }
    let mut eras = timeline.on_side(side);
    if let Some(next) = eras.find(|era| era.native_start.0 >= native) {
        return next.virtual_start;
    }
    // Past the side's last era, or no era at all: what lies beyond is another side's, and is read again.
    timeline.on_side(side).next_back().and_then(Era::virtual_end).unwrap_or(VirtualOffset(0))
}

fn tag(id: u64, position: VirtualOffset) -> String {
    format!("{TAG_PREFIX}{id:x}:{}:", position.0)
}

/// (timeline id, position, user metadata) of a well-formed tag. Strict: what [`tag`] would not write is no tag.
fn parse_tag(metadata: &str) -> Option<(u64, VirtualOffset, &str)> {
    let (id, rest) = metadata.strip_prefix(TAG_PREFIX)?.split_once(':')?;
    let (position, user) = rest.split_once(':')?;
    let id = u64::from_str_radix(id, 16).ok()?;
    let position = VirtualOffset(position.parse().ok()?);
    metadata.starts_with(&tag(id, position)).then_some((id, position, user))
}

/// At most `max` bytes of `text`, at a character boundary.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or("")
}
