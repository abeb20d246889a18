//! One partition of a fetch: where it is read, and what the client is told of it.

use super::{common, fetch_signal};
use crate::bug::{self, Bug};
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, TopicId, VirtualNode, VirtualOffset};
use crate::producer::batch::{self, CutEnd};
use crate::route::TopicRoute;
use crate::schema::{self, Struct, Value};
use crate::session::{Class, Cx, Seen, UpstreamKey};
use crate::timeline::{Era, LogStarts, RequestEpoch, Timeline};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// When a read that found no leader is tried again, milliseconds.
pub(super) const RETRY_MS: i64 = 50;

/// A partition as the client names it: by name, or by virtual id from version 13 on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey {
    pub topic: String,
    pub id: TopicId,
    pub partition: i32,
}

/// Where an entry is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub upstream: UpstreamKey,
    pub side: ClusterSide,
    pub era: u32,
    pub native: NativeOffset,
    /// The era's native end: nothing at or after it may be handed out from this read.
    pub end: Option<NativeOffset>,
    /// The least leader epoch to ask a companion with, which the proxy knows: the client does not learn that the
    /// companion's leader finds its own too old, and would send it for ever. −1 on the client's own connection.
    pub leader_epoch: i32,
}

/// One partition of a fetch.
#[derive(Debug)]
pub struct Entry {
    pub key: EntryKey,
    pub route: Option<Arc<TopicRoute>>,
    pub position: i64,
    pub current_leader_epoch: i32,
    pub last_fetched_epoch: i32,
    pub max_bytes: i32,
    pub target: Option<Target>,
    /// Where reading goes on behind a hole: never below `position`.
    pub read_from: i64,
    pub retry_at_ms: Option<i64>,
    /// A broker's OFFSET_OUT_OF_RANGE that is not judged yet: log starts only rise, so they are asked for anew.
    refused: Option<Struct>,
    /// The side whose log start is to be asked for next.
    start_wanted: Option<ClusterSide>,
    start_asked: [bool; 2],
    /// What the session told before.
    told: (i64, i64),
    result: Option<Struct>,
    /// The result is worth answering for: asked at every step, so it is not looked up in it each time.
    news: bool,
}

/// The partitions of a request, in its order.
#[must_use]
pub(super) fn entries_of(request: &Struct) -> Vec<Entry> {
    let topics = request.structs("Topics");
    topics
        .flat_map(|topic| {
            topic.structs("Partitions").map(|p| {
                let key = EntryKey {
                    topic: topic.str("Topic").to_owned(),
                    id: TopicId(topic.uuid("TopicId")),
                    partition: p.i32("Partition"),
                };
                let (epoch, last) = (p.i32("CurrentLeaderEpoch"), p.i32("LastFetchedEpoch"));
                Entry::new(key, p.i64("FetchOffset"), epoch, last, p.i32("PartitionMaxBytes"), (-1, -1))
            })
        })
        .collect()
}

impl Entry {
    #[must_use]
    pub fn new(
        key: EntryKey,
        position: i64,
        current_leader_epoch: i32,
        last_fetched_epoch: i32,
        max_bytes: i32,
        told: (i64, i64),
    ) -> Entry {
        Entry {
            key,
            route: None,
            position,
            current_leader_epoch,
            last_fetched_epoch,
            max_bytes,
            target: None,
            read_from: position,
            retry_at_ms: None,
            refused: None,
            start_wanted: None,
            start_asked: [false; 2],
            told,
            result: None,
            news: false,
        }
    }

    /// Looks up the route and decides where to read. Without a target the entry has a result, or is to be retried.
    pub fn aim(&mut self, cx: &mut Cx<'_>) {
        let by_id = cx.header.api_version >= 13;
        let routes = &cx.snapshot.routes;
        self.route =
            if by_id { routes.topic_by_id(self.key.id) } else { routes.topic(&self.key.topic) }.cloned();
        self.target = None;
        self.retry_at_ms = None;
        self.refused = None;
        self.start_wanted = None;
        self.start_asked = [false; 2];
        let usable = self.route.as_ref().filter(|r| r.frozen.is_none());
        let Some(route) = usable.filter(|r| r.timeline(self.key.partition).is_some()).cloned() else {
            let error = if by_id { code::UNKNOWN_TOPIC_ID } else { code::UNKNOWN_TOPIC_OR_PARTITION };
            cx.refresh(cx.snapshot.routes.owner(&self.key.topic));
            return self.answer_error(error);
        };
        let Some(timeline) = route.timeline(self.key.partition) else { return };
        let is_shown = bug::is(Bug::R25Shown) || VirtualOffset(self.position) >= timeline.floor();
        if self.position >= 0 && !is_shown {
            // Deleted by a client, whether or not the sides that held it have got to it (RULES R25).
            let mut out = self.empty();
            out.set("ErrorCode", code::OFFSET_OUT_OF_RANGE);
            return self.pass_out_of_range(&out, timeline.floor());
        }
        let place = timeline.locate(VirtualOffset(self.read_from));
        let is_owner = place.era == timeline.current().index;
        // A position that makes no sense is the owner's to judge.
        let native = if self.position < 0 { NativeOffset(self.position) } else { place.native };
        let upstream = if is_owner {
            common::owner_upstream(cx, &route, self.key.partition, Class::Fetch)
        } else {
            let leader = cx.snapshot.leader(&route, self.key.partition, place.side);
            leader.map(|broker| cx.upstream(place.side, broker, Class::Fetch))
        };
        let Some(upstream) = upstream else {
            // No leader, or the side that holds this history is down: nothing else waits for it (RULES R30).
            cx.refresh(place.side);
            self.retry_at_ms = Some(cx.now_ms + RETRY_MS);
            return;
        };
        if upstream.class != Class::Native {
            let (session, now) = (cx.core.id, cx.now_ms);
            cx.shared.traffic.note(&route.name, |t| {
                t.companion_fetch.insert(session, now);
            });
        }
        if is_owner && upstream.class != Class::Native && self.is_sent_on(cx, timeline.current()) {
            return self.point_at(upstream.node);
        }
        let topology = cx.snapshot.topology(place.side);
        let known = match upstream.class {
            Class::Native => None,
            _ => topology.partition(route.physical(place.side), self.key.partition),
        };
        self.target = Some(Target {
            upstream,
            side: place.side,
            era: place.era,
            native,
            end: place.end,
            leader_epoch: known.map_or(-1, |p| p.epoch),
        });
    }

    /// Whether the client is to fetch at the owner's node from now on (RULES R20). History is read here.
    fn is_sent_on(&self, cx: &mut Cx<'_>, era: &Era) -> bool {
        fetch_signal::is_due(cx, era.sealed_at_ms) && cx.core.fetch.signals.take(&self.key, era.index)
    }

    /// No records, and where to go on.
    fn point_at(&mut self, node: VirtualNode) {
        let mut out = self.empty();
        out.set("PreferredReadReplica", node.to_virtual());
        self.conclude(out);
    }

    /// The element of the sub-request.
    #[must_use]
    pub fn to_request(&self, topic: &Struct) -> Option<Struct> {
        let target = self.target?;
        let timeline = self.timeline()?;
        let is_owner = target.end.is_none();
        let epoch = |epoch: i32| match timeline.request_epoch(epoch) {
            RequestEpoch::Native(epoch) if is_owner => epoch,
            RequestEpoch::Unknown(epoch) => epoch,
            RequestEpoch::Older(_) if bug::is(Bug::R22Older) => epoch,
            RequestEpoch::Native(_) | RequestEpoch::Older(_) => -1,
        };
        let mut partition = topic.new_element("Partitions");
        partition.set("Partition", self.key.partition);
        let current = match epoch(self.current_leader_epoch) {
            current if current >= 0 => current.max(target.leader_epoch),
            none => none,
        };
        partition.set("CurrentLeaderEpoch", current);
        partition.set("FetchOffset", target.native.0);
        partition.set(
            "LastFetchedEpoch",
            if self.read_from > self.position { -1 } else { epoch(self.last_fetched_epoch) },
        );
        partition.set("LogStartOffset", -1_i64);
        partition.set("PartitionMaxBytes", self.max_bytes);
        Some(partition)
    }

    /// Whether its era is not the one it is being read in any more, or has got an end.
    #[must_use]
    pub fn has_moved(&self, cx: &Cx<'_>) -> bool {
        let (Some(route), Some(target)) = (&self.route, self.target) else { return false };
        let now = cx.snapshot.routes.topic(&route.name).and_then(|r| r.timeline(self.key.partition));
        let is_owner = target.end.is_none() && !bug::is(Bug::R17Moved);
        !self.has_news() && is_owner && now.is_some_and(|t| t.current().index != target.era)
    }

    /// To be read: it has no news, and no answer that waits to be judged.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.has_news() && self.refused.is_none()
    }

    /// Whether a log start is still to come.
    #[must_use]
    pub fn is_judging(&self) -> bool {
        self.refused.is_some()
    }

    /// Worth answering for: records, an error, a divergence, or another node to go to.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news
    }

    fn conclude(&mut self, result: Struct) {
        let diverged = result.opt_struct("DivergingEpoch").is_some_and(|d| d.i64("EndOffset") >= 0);
        let points = result.i32("PreferredReadReplica") >= 0;
        let tells = result.i16("ErrorCode") != code::NONE || !result.bytes("Records").is_empty();
        self.news = diverged || points || tells;
        self.result = Some(result);
    }

    /// Whether it has got records.
    #[must_use]
    pub fn has_records(&self) -> bool {
        self.result.as_ref().is_some_and(|r| !r.bytes("Records").is_empty())
    }

    /// Takes in a broker's answer. `alone_empty`: no partition of that answer had records, so an empty one is empty
    /// because nothing is there, not because the answer was full.
    pub fn take(&mut self, cx: &mut Cx<'_>, answer: Struct, alone_empty: bool) {
        let (Some(target), Some(route)) = (self.target, self.route.clone()) else { return };
        let Some(timeline) = route.timeline(self.key.partition).cloned() else { return };
        let error = answer.i16("ErrorCode");
        let companion = target.upstream.class != Class::Native;
        let history = target.end.is_some();
        if (companion || history) && is_elsewhere(error) {
            cx.refresh(target.side);
            return self.delay(cx);
        }
        if !self.is_open() {
            return;
        }
        if error == code::NOT_LEADER_OR_FOLLOWER && fetch_signal::may_redirect(cx) {
            cx.refresh(target.side);
            let leader = cx.snapshot.leader(&route, self.key.partition, target.side);
            if let Some(leader) = leader.filter(|l| *l != target.upstream.node.broker) {
                return self.point_at(VirtualNode::new(target.side, leader));
            }
        }
        let start =
            common::log_start(cx, &route, self.key.partition, target.side, answer.i64("LogStartOffset"));
        if error == code::OFFSET_OUT_OF_RANGE && timeline.past_eras() > 0 {
            self.refused = Some(answer);
            self.start_wanted = Some(target.side);
            return;
        }
        let ends = [answer.i64("HighWatermark"), answer.i64("LastStableOffset")];
        let mut out = answer;
        out.set("LogStartOffset", start);
        out.set("PreferredReadReplica", -1);
        if history {
            self.history_ends(cx, &route, &timeline, &target, &mut out);
        } else {
            self.owner_ends(cx, &route, &timeline, &target, &mut out);
        }
        self.show_aborted(&timeline, &target, &mut out);
        match translated(&timeline, &target, out.opt_bytes("Records")) {
            Ok((records, cut)) => {
                let empty = records.as_ref().is_none_or(Bytes::is_empty);
                out.set("Records", records);
                if history && empty && error == code::NONE {
                    // What is readable of the era is read once the rest belongs to a later one, or the broker shows
                    // all of it. After a change of leader its ends may lag: what is behind them is waited for.
                    let readable = ends.into_iter().filter(|e| *e >= 0).min().unwrap_or(-1);
                    let all = target.end.is_some_and(|end| readable >= end.0);
                    if cut || (all && alone_empty) || is_cut_off(cx, &route, self.key.partition, &target) {
                        self.skip_era(cx, &timeline, &target);
                    } else {
                        self.delay(cx);
                    }
                    return;
                }
            }
            // A log that is not the one that was sealed, or bytes that are no batches: nothing is handed out.
            Err(_) => return self.delay(cx),
        }
        self.conclude(out);
    }

    /// Aborted transactions in virtual offsets. Those behind the era's end belong to records that are cut off: shown
    /// earlier, they would hide committed records of the same producer.
    fn show_aborted(&self, timeline: &Timeline, target: &Target, out: &mut Struct) {
        let Some(aborted) = out.array_mut("AbortedTransactions") else { return };
        aborted.retain_mut(|value| {
            let Value::Struct(Some(aborted)) = value else { return false };
            let first = NativeOffset(aborted.i64("FirstOffset"));
            if target.end.is_some_and(|end| first >= end) {
                return false;
            }
            let shown = timeline.record_to_virtual(target.era, first);
            if !bug::is(Bug::TxnAborted) {
                aborted.set("FirstOffset", shown.map_or(self.position, |v| v.0));
            }
            true
        });
    }

    fn owner_ends(
        &self,
        cx: &Cx<'_>,
        route: &TopicRoute,
        timeline: &Timeline,
        target: &Target,
        out: &mut Struct,
    ) {
        let index = self.key.partition;
        let end = |native: i64| {
            if native < 0 {
                native
            } else {
                timeline.exclusive_to_virtual(target.era, NativeOffset(native)).0
            }
        };
        let (high_watermark, last_stable_offset) =
            (end(out.i64("HighWatermark")), end(out.i64("LastStableOffset")));
        out.set("HighWatermark", high_watermark);
        out.set("LastStableOffset", last_stable_offset);
        cx.shared.seen.raise(&route.name, index, Seen { high_watermark, last_stable_offset, epoch: -1 });
        common::translate_current_leader(cx, out, target.side, route, index, target.era);
        let diverging = out.opt_struct("DivergingEpoch").map(|d| (d.i32("Epoch"), d.i64("EndOffset")));
        let Some((epoch, offset)) = diverging.filter(|(epoch, _)| *epoch >= 0) else { return };
        match timeline.epoch_end_to_virtual(epoch, NativeOffset(offset)) {
            Ok((epoch, offset)) => {
                if let Some(diverging) = out.opt_struct_mut("DivergingEpoch") {
                    diverging.set("Epoch", epoch);
                    diverging.set("EndOffset", offset.0);
                }
            }
            Err(_) => out.reset("DivergingEpoch"),
        }
    }

    /// An older era's answer carries the owner's ends as far as they are known (RULES R21).
    fn history_ends(
        &self,
        cx: &Cx<'_>,
        route: &TopicRoute,
        timeline: &Timeline,
        target: &Target,
        out: &mut Struct,
    ) {
        let seen = cx.shared.seen.get(&route.name, self.key.partition).unwrap_or_default();
        let own = timeline.era(target.era).and_then(Era::virtual_end).map_or(0, |v| v.0);
        let end = self.newest_start(cx).max(own);
        if !bug::is(Bug::R21Ends) {
            out.set("HighWatermark", seen.high_watermark.max(end));
        }
        out.set("LastStableOffset", seen.last_stable_offset.max(end));
        out.reset("CurrentLeader");
        out.reset("DivergingEpoch");
    }

    /// The side whose log start is to be asked for, once.
    pub fn take_start_wanted(&mut self) -> Option<ClusterSide> {
        let side = self.start_wanted.take()?;
        self.start_asked[side.index()] = true;
        Some(side)
    }

    /// Judges a broker's OFFSET_OUT_OF_RANGE after a log start has come. Only a position below the virtual log start,
    /// or above the owner's end, is out of range; a hole between eras reads as "next record" (RULES R23).
    pub fn judge(&mut self, cx: &Cx<'_>) {
        let (Some(answer), Some(route)) = (self.refused.clone(), self.route.clone()) else { return };
        let Some(timeline) = route.timeline(self.key.partition) else { return };
        let starts = cx.shared.log_starts.get(&route.name, self.key.partition);
        let Some(first) = timeline.log_start_to_virtual(starts) else {
            return self.want_unknown_start(cx, starts);
        };
        if VirtualOffset(self.position) < first {
            return self.pass_out_of_range(&answer, first);
        }
        let place = timeline.locate_retained(VirtualOffset(self.read_from.max(0)), starts);
        let next = place.and_then(|p| {
            timeline.era(p.era).map(|era| p.native.0 - era.native_start.0 + era.virtual_start.0)
        });
        let is_owner = self.target.is_some_and(|t| t.end.is_none());
        match next {
            Some(next) if next > self.read_from && !bug::is(Bug::R23Hole) => {
                self.read_from = next;
                self.refused = None;
                self.target = None;
                self.retry_at_ms = Some(cx.now_ms);
            }
            Some(_) if is_owner || bug::is(Bug::R23Hole) => self.pass_out_of_range(&answer, first),
            Some(_) => match (self.target, timeline.clone()) {
                (Some(target), timeline) if is_cut_off(cx, &route, self.key.partition, &target) => {
                    self.refused = None;
                    self.skip_era(cx, &timeline, &target);
                }
                _ => self.delay(cx),
            },
            None => self.want_unknown_start(cx, starts),
        }
    }

    fn want_unknown_start(&mut self, cx: &Cx<'_>, starts: LogStarts) {
        let unknown = |s: &ClusterSide| starts[s.index()].is_none() && !self.start_asked[s.index()];
        self.start_wanted = ClusterSide::BOTH.into_iter().find(unknown);
        if self.start_wanted.is_none() {
            self.delay(cx);
        }
    }

    fn pass_out_of_range(&mut self, answer: &Struct, first: VirtualOffset) {
        let mut out = answer.clone();
        out.reset("CurrentLeader");
        out.reset("DivergingEpoch");
        out.set("PreferredReadReplica", -1);
        out.set("LogStartOffset", first.0);
        self.refused = None;
        out.set("HighWatermark", -1_i64);
        out.set("LastStableOffset", -1_i64);
        self.conclude(out);
    }

    fn skip_era(&mut self, cx: &Cx<'_>, timeline: &Timeline, target: &Target) {
        let end = timeline.era(target.era).and_then(Era::virtual_end);
        self.read_from = end.map_or(self.read_from, |end| end.0.max(self.read_from));
        self.target = None;
        self.retry_at_ms = Some(cx.now_ms);
    }

    /// To be tried again shortly; the client is told nothing of it.
    pub fn delay(&mut self, cx: &Cx<'_>) {
        self.refused = None;
        self.start_wanted = None;
        self.target = None;
        self.retry_at_ms = Some(cx.now_ms + RETRY_MS);
    }

    pub fn answer_error(&mut self, error: i16) {
        let mut out = self.empty();
        out.set("ErrorCode", error);
        self.conclude(out);
    }

    /// What is written for it; `None` where an incremental answer leaves it out.
    #[must_use]
    pub fn written(&self, cx: &Cx<'_>, full: bool) -> Option<Struct> {
        if !full && !self.has_news() && self.telling().is_none_or(|told| told == self.told) {
            return None;
        }
        Some(self.result.clone().unwrap_or_else(|| self.nothing(cx)))
    }

    /// The ends that the client is told, once it is answered.
    #[must_use]
    pub fn telling(&self) -> Option<(i64, i64)> {
        self.result.as_ref().map(|r| (r.i64("HighWatermark"), r.i64("LogStartOffset")))
    }

    /// Where the era starts that is current now: a flip may have been published since the entry was aimed.
    fn newest_start(&self, cx: &Cx<'_>) -> i64 {
        let newest = self.route.as_ref().and_then(|r| cx.snapshot.routes.topic(&r.name));
        let timeline = newest.and_then(|r| r.timeline(self.key.partition));
        timeline.map_or(0, |t| t.current().virtual_start.0)
    }

    /// No answer in time: no records, and the ends as last seen.
    fn nothing(&self, cx: &Cx<'_>) -> Struct {
        let mut out = self.empty();
        let seen = self.route.as_ref().and_then(|r| cx.shared.seen.get(&r.name, self.key.partition));
        if let Some(seen) = seen {
            // Nobody may have seen the end of the era before (RULES R21).
            let start = self.newest_start(cx);
            out.set("HighWatermark", seen.high_watermark.max(start));
            out.set("LastStableOffset", seen.last_stable_offset.max(start));
        }
        out
    }

    fn empty(&self) -> Struct {
        let fields = schema::response(super::key::FETCH).map(|m| Struct::new(m.fields));
        let mut out =
            fields.map_or_else(|| Struct::new(&[]), |f| f.new_element("Responses").new_element("Partitions"));
        out.set("PartitionIndex", self.key.partition);
        out.set("HighWatermark", -1_i64);
        out.set("LastStableOffset", -1_i64);
        out.set("LogStartOffset", -1_i64);
        out.set("PreferredReadReplica", -1);
        out.set("Records", Some(Bytes::new()));
        out
    }

    fn timeline(&self) -> Option<&Arc<Timeline>> {
        self.route.as_ref()?.timeline(self.key.partition)
    }
}

/// Whether the rest of an era was cut off its log: it reads as a hole (RULES R21).
fn is_cut_off(cx: &Cx<'_>, route: &TopicRoute, partition: i32, target: &Target) -> bool {
    let end = cx.shared.truncations.get(&route.name, partition, target.side);
    target.end.is_some() && end.is_some_and(|end| target.native >= end)
}

/// Error codes that say that the partition, or its leadership, is not there (now).
#[must_use]
pub(super) fn is_elsewhere(error: i16) -> bool {
    [
        code::UNKNOWN_TOPIC_OR_PARTITION,
        code::LEADER_NOT_AVAILABLE,
        code::NOT_LEADER_OR_FOLLOWER,
        code::FENCED_LEADER_EPOCH,
        code::UNKNOWN_LEADER_EPOCH,
        code::UNKNOWN_TOPIC_ID,
        code::OFFSET_NOT_AVAILABLE,
    ]
    .contains(&error)
}

/// The era's part of fetched records, in virtual offsets and epochs, and whether the era ends in them.
fn translated(
    timeline: &Timeline,
    target: &Target,
    records: Option<&Bytes>,
) -> Result<(Option<Bytes>, bool), ()> {
    let Some(records) = records else { return Ok((None, false)) };
    let Some(era) = timeline.era(target.era) else { return Err(()) };
    let mut records = records.clone();
    let mut ended = false;
    if let Some(end) = target.end.filter(|_| !bug::is(Bug::R21Cut)) {
        let cut = batch::cut_at(&records, end.0).map_err(|_| ())?;
        if matches!(cut.end, CutEnd::Spanning { .. }) && cut.len == 0 {
            return Err(());
        }
        ended = cut.end == CutEnd::Era;
        records.truncate(cut.len);
    }
    if timeline.past_eras() == 0 {
        return Ok((Some(records), ended));
    }
    let shift = era.virtual_start.0 - era.native_start.0;
    let mut patched = BytesMut::from(&records[..]);
    let epoch = |native: i32| {
        timeline.batch_epoch_to_virtual(target.era, target.native, native).unwrap_or(era.epoch_base)
    };
    batch::translate_fetched(&mut patched, shift, epoch).map_err(|_| ())?;
    Ok((Some(patched.freeze()), ended))
}
