//! Produce (key 0): through the partition's gate to the owner's leader, direct or by a companion.
//!
//! Source: KIP-98, KIP-951 (hints), `ProduceRequest.json`, `ProduceResponse.json`; RULES R1–R9.

mod successor;

use self::successor::Question;
use super::{common, key};
use crate::bug::{self, Bug};
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::producer::batch::{self, BatchHeader};
use crate::producer::carry;
use crate::producer::gate::{
    Admission, BatchId, HoldId, HoldReason, Kept, Outcome, Refusal, Submission, Ticket,
};
use crate::producer::pid;
use crate::producer::transaction::Identity;
use crate::route::TopicRoute;
use crate::schema::{self, Struct, Value};
use crate::session::{Answer, Class, CloseReason, Cx, Effect, Operation, SharedGate, Step, UpstreamKey};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Wait before a batch is tried again at a leader that was not one, milliseconds.
const RETRY_MS: i64 = 25;
/// The same where no connection to the leader could be made.
const RECONNECT_MS: i64 = 100;

/// A batch waits for its connection to be free, while a flip is prepared, for so small a part of the hold bound.
const NARROWED_PART: i64 = 10;
/// How long a batch without sequences waits at most for anything but a flip: as long as clients wait for a broker by default.
/// Who wants to wait less hangs up.
const PLAIN_WAIT_MS_MAX: i64 = 30_000;

/// Partitions for which this session has produce that is not sent yet. Later produce of the same partition queues
/// behind it, whatever the gate would say.
#[derive(Default)]
pub struct HeldPartitions {
    pending: HashMap<(Arc<str>, i32), u32>,
    blocked: HashSet<(Arc<str>, i32)>,
    /// Producers whose batch was just answered with an error: what waits behind it gets the same error, because the
    /// client sends them all again, in order (RULES R8).
    failed: HashMap<FailedKey, Failed>,
    /// The same of the round before, for what had been asked already when it failed.
    failing: HashMap<FailedKey, Failed>,
    /// How many batches of a producer are being repeated without the client's knowledge.
    repeated: HashMap<FailedKey, u32>,
}

/// A partition, and the producer id of a batch with sequence numbers.
type FailedKey = ((Arc<str>, i32), Option<i64>);

/// The first batch of a producer that was answered with an error, and that error.
#[derive(Clone, Copy)]
struct Failed {
    error: i16,
    batch: Option<BatchId>,
}

impl HeldPartitions {
    /// A new round of asking, in the order of the requests.
    pub fn restart(&mut self) {
        self.blocked.clear();
        self.failing = std::mem::take(&mut self.failed);
    }

    /// The error a waiting batch gets because one before it failed. One that was sent again by the client may wait
    /// behind a later one, and does not share its error: the refusal of the first missing batch would be fatal.
    fn failure(&self, key: &FailedKey, batch: Option<BatchId>) -> Option<i16> {
        let found = [&self.failed, &self.failing].into_iter().filter_map(|all| all.get(key));
        let mut shared = found.filter(|failed| !is_before(batch, failed.batch));
        shared.next().map(|failed| failed.error)
    }

    fn fail(&mut self, key: FailedKey, error: i16, batch: Option<BatchId>) {
        let known = self.failed.entry(key).or_insert(Failed { error, batch });
        if is_before(batch, known.batch) {
            *known = Failed { error, batch };
        }
    }

    fn is_repeating(&self, key: &FailedKey) -> bool {
        self.repeated.contains_key(key)
    }

    fn repeat_ends(&mut self, key: &FailedKey) {
        if let Some(count) = self.repeated.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.repeated.remove(key);
            }
        }
    }

    fn add(&mut self, at: &(Arc<str>, i32)) {
        *self.pending.entry(at.clone()).or_default() += 1;
    }

    fn remove(&mut self, at: &(Arc<str>, i32)) {
        if let Some(count) = self.pending.get_mut(at) {
            *count -= 1;
            if *count == 0 {
                self.pending.remove(at);
            }
        }
    }
}

/// One partition's batch of the request.
struct Part {
    topic: usize,
    at: (Arc<str>, i32),
    records: Option<Bytes>,
    batch: Option<BatchId>,
    acks: i16,
    transactional: bool,
    /// The producer as the owner knows it, where that is not as its client does.
    native: Option<Identity>,
    state: State,
    /// Not before this time, after a leader refused it.
    retry_at_ms: i64,
    hold: Option<HoldId>,
    /// When its request came, in milliseconds.
    arrived_ms: i64,
    /// From when the hold bound counts.
    bound_from_ms: i64,
    /// Why it was last held.
    reason: Option<HoldReason>,
    /// A fence held it: the flip is not the client's to notice.
    was_held: bool,
    /// It was not sent at once.
    has_waited: bool,
    /// It is counted as being repeated.
    is_repeated: bool,
    /// The proxy gave it up, and it has no sequence number: what the client has sent behind it must not pass.
    is_given_up: bool,
    /// Its client has gone and sends it again by another connection: from here it is not sent once more.
    is_left: bool,
    /// What is to be found out before its leader's answer counts.
    question: Option<Question>,
    was_asked: bool,
}

enum State {
    /// Not sent.
    Waiting,
    InFlight {
        ticket: Ticket,
        side: ClusterSide,
        era: u32,
        companion: bool,
        /// In the log already; the owner is asked where.
        recall: bool,
        /// The broker it was sent to, and the partition's epoch as it was known then.
        leader: (i32, i32),
    },
    Answered(Struct),
}

/// A produce request.
pub struct Produce {
    request: Struct,
    acks: i16,
    arrived_ms: i64,
    parts: Vec<Part>,
    /// Which parts a call carried, or a probe stands behind.
    calls: BTreeMap<u32, Vec<usize>>,
    /// acks=0: calls that are probes.
    probes: BTreeSet<u32>,
    /// Which part a leader was asked about.
    questions: BTreeMap<u32, usize>,
    next_call: u32,
    throttle_ms: i64,
}

impl Produce {
    #[must_use]
    pub fn new(request: Struct) -> Produce {
        let acks = request.i16("Acks");
        Produce {
            request,
            acks,
            arrived_ms: 0,
            parts: Vec::new(),
            calls: BTreeMap::new(),
            probes: BTreeSet::new(),
            questions: BTreeMap::new(),
            next_call: 0,
            throttle_ms: 0,
        }
    }

    /// Whether the client expects no answer.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.acks == 0
    }

    fn read_parts(&mut self, cx: &mut Cx<'_>) {
        let by_id = cx.header.api_version >= 13;
        for (index, topic) in self.request.structs("TopicData").enumerate() {
            let route = common::route_of(cx, topic, "Name", by_id);
            for partition in topic.structs("PartitionData") {
                let number = partition.i32("Index");
                let records = partition.opt_bytes("Records").cloned();
                let mut part = Part {
                    topic: index,
                    at: (route.as_ref().map_or_else(|| Arc::from(""), |r| Arc::clone(&r.name)), number),
                    batch: None,
                    acks: self.acks,
                    transactional: false,
                    native: None,
                    records,
                    state: State::Waiting,
                    retry_at_ms: 0,
                    hold: None,
                    arrived_ms: self.arrived_ms,
                    bound_from_ms: self.arrived_ms,
                    reason: None,
                    was_held: false,
                    has_waited: false,
                    is_repeated: false,
                    is_given_up: false,
                    is_left: false,
                    question: None,
                    was_asked: false,
                };
                part.look_inside(route.as_deref(), by_id, cx.snapshot.taken_over);
                self.parts.push(part);
            }
        }
    }

    /// Asks the gate for every waiting part, in order, and sends what may pass.
    fn advance(&mut self, cx: &mut Cx<'_>, first_time: bool) -> Step {
        let mut ready: BTreeMap<UpstreamKey, Vec<usize>> = BTreeMap::new();
        for index in 0..self.parts.len() {
            if matches!(self.parts[index].state, State::Waiting)
                && let Some(upstream) = self.ask(cx, index, first_time)
            {
                ready.entry(upstream).or_default().push(index);
            }
        }
        for (upstream, parts) in ready {
            if let Err(step) = self.send(cx, upstream, parts) {
                return step;
            }
        }
        self.finish(cx)
    }

    /// Asks for one part. The upstream to send it to, if it may pass now.
    fn ask(&mut self, cx: &mut Cx<'_>, index: usize, first_time: bool) -> Option<UpstreamKey> {
        let part = &mut self.parts[index];
        let at = part.at.clone();
        let queued = if first_time {
            cx.core.produce.pending.contains_key(&at)
        } else {
            cx.core.produce.blocked.contains(&at)
        };
        if first_time {
            cx.core.produce.add(&at);
        }
        if !first_time && let Some(error) = part.failure(cx) {
            part.answer(cx, error);
            return None;
        }
        let is_unknown = common::lacks_partition(cx, &at.0, at.1);
        let hold_until = part.kept_until(cx, is_unknown);
        if cx.now_ms >= hold_until {
            cx.emit(Effect::HoldExpired { topic: Arc::clone(&at.0), partition: at.1, reason: part.reason });
            part.answer(cx, code::NOT_LEADER_OR_FOLLOWER);
            return None;
        }
        cx.wake_at(hold_until);
        if is_unknown {
            // It is new, or the client is mistaken: nothing is kept for it until its cluster has it.
            if first_time {
                cx.refresh(cx.snapshot.routes.owner(&at.0));
            }
            return part.wait(cx, cx.now_ms + RETRY_MS);
        }
        let gate = cx.shared.gates.get(&at.0, at.1);
        let target = common::produce_target(cx, &at.0, at.1, part.is_silent() || part.is_repeated);
        let path = target.as_ref().and_then(|t| cx.path(t.upstream));
        let (Some(target), Some(path)) = (target, path) else {
            // No leader known: the topology is on its way.
            cx.refresh(cx.snapshot.routes.owner(&at.0));
            return part.queue(cx, &gate);
        };
        let side = target.upstream.node.side;
        if part.transactional
            && let Err(error) = part.join_transaction(cx, self.request.opt_str("TransactionalId"), side)
        {
            part.answer(cx, error);
            return None;
        }
        // While a flip is prepared it costs nothing here, because a broker takes a connection's requests one after the
        // other anyway; in flight, every one of them would lengthen the drain. Not for long: it may wait for a fence after this.
        let may_narrow = cx.now_ms < self.arrived_ms + cx.core.limits.hold_ms_max / NARROWED_PART;
        let is_narrowed =
            may_narrow && cx.snapshot.preparing.contains(&at.0) && cx.is_busy(target.upstream, key::PRODUCE);
        if queued || is_narrowed || cx.now_ms < part.retry_at_ms {
            return part.queue(cx, &gate);
        }
        let submission = Submission {
            session: cx.core.id,
            node: cx.core.node,
            client: cx.core.client_key(self.acks),
            path,
            era: target.era,
            batch: part.batch,
            native: part.native.map(|native| native.pid),
            hold: part.hold,
            arrived_ms: self.arrived_ms,
            is_left: part.is_left,
        };
        let admission = crate::session::lock(&gate).admit(cx.now_ms, &submission);
        part.admitted(cx, admission, &target)
    }

    fn send(&mut self, cx: &mut Cx<'_>, upstream: UpstreamKey, parts: Vec<usize>) -> Result<(), Step> {
        let mut body = self.request_for(cx, upstream, &parts);
        let call = self.next_call;
        self.next_call += 1;
        let has_waited = parts.iter().any(|part| self.parts[*part].has_waited);
        if self.acks == 0 && has_waited {
            // Meanwhile its partition may have another leader. A broker that does not lead can say so, and all of it is kept.
            body.set("Acks", 1_i16);
        }
        let sent = if self.acks == 0 && !has_waited {
            self.probes.insert(call);
            // The probe's answer proves that everything before it on the connection is done (RULES R7).
            let probe = schema::request(key::API_VERSIONS).map(|m| Struct::new(m.fields));
            cx.send_silent(upstream, key::PRODUCE, cx.header.api_version, &body)
                && probe.is_some_and(|p| cx.call(upstream, key::API_VERSIONS, 0, &p, call))
        } else {
            cx.forward(upstream, &body, call)
        };
        self.calls.insert(call, parts);
        if sent { Ok(()) } else { Err(self.lost(cx, call, false)) }
    }

    /// The part of the request that goes to one upstream, in that cluster's names, ids and producer ids.
    fn request_for(&self, cx: &Cx<'_>, upstream: UpstreamKey, parts: &[usize]) -> Struct {
        let side = upstream.node.side;
        let mut body = self.request.clone_without(&["TopicData"]);
        let waited = cx.now_ms - self.arrived_ms;
        body.set("TimeoutMs", (i64::from(body.i32("TimeoutMs")) - waited).max(1));
        if let Some(id) = self.request.opt_str("TransactionalId") {
            body.set("TransactionalId", &*cx.snapshot.transactions.physical(id, side));
        }
        let topics = self.request.structs("TopicData").enumerate().filter_map(|(index, topic)| {
            let mine: Vec<&Part> =
                parts.iter().map(|p| &self.parts[*p]).filter(|p| p.topic == index).collect();
            let first = mine.first()?;
            let mut topic = topic.clone_without(&["PartitionData"]);
            if let Some(route) = cx.snapshot.routes.topic(&first.at.0) {
                common::to_physical(&mut topic, "Name", "TopicId", route, side);
            }
            let wanted = mine.iter().map(|part| part.to_request(cx));
            topic.set("PartitionData", Value::Array(Some(wanted.collect())));
            Some(Value::from(topic))
        });
        let topics = topics.collect();
        body.set("TopicData", Value::Array(Some(topics)));
        body
    }

    fn answered(&mut self, cx: &mut Cx<'_>, parts: &[usize], response: &Struct) {
        self.throttle_ms = self.throttle_ms.max(i64::from(response.i32("ThrottleTimeMs")));
        let by_id = cx.header.api_version >= 13;
        for topic in response.structs("Responses") {
            for answer in topic.structs("PartitionResponses") {
                let found = parts.iter().copied().find(|index| {
                    let part = &self.parts[*index];
                    part.at.1 == answer.i32("Index") && part.is_topic(cx, topic, by_id)
                });
                if let Some(index) = found {
                    self.parts[index].on_response(cx, answer);
                }
            }
        }
        for index in parts {
            // A broker that leaves a partition out has not said what became of it.
            let part = &mut self.parts[*index];
            if matches!(part.state, State::InFlight { .. }) && part.question.is_none() {
                part.settle(cx, Outcome::Unknown);
                part.answer(cx, code::REQUEST_TIMED_OUT);
            }
        }
    }

    /// A call was lost. What the broker cannot have seen, and what it can recognise, is sent again in order.
    fn lost(&mut self, cx: &mut Cx<'_>, call: u32, sent: bool) -> Step {
        let mut native = false;
        for index in self.calls.remove(&call).unwrap_or_default() {
            let part = &mut self.parts[index];
            let State::InFlight { companion, side, .. } = part.state else { continue };
            native |= !companion && (sent || !part.is_silent());
            if part.is_silent() || !sent {
                cx.refresh(side);
            }
            part.settle(cx, if sent { Outcome::Unknown } else { Outcome::NotAppended });
            let is_recognised = part.batch.is_some() || bug::is(Bug::R2PlainAgain);
            let may_repeat = !sent || (is_recognised && !part.is_silent());
            if may_repeat && (companion || part.is_silent()) {
                part.again(cx, if sent { RETRY_MS } else { RECONNECT_MS });
            } else {
                part.answer(cx, code::REQUEST_TIMED_OUT);
            }
        }
        // Without acknowledgements this is a broker's only way to say that it does not lead: the client looks for the
        // leader when its connection ends, and would go on writing to nobody if it did not; so does the proxy.
        if native { Step::Close(CloseReason::UpstreamLost) } else { self.finish(cx) }
    }

    fn finish(&mut self, cx: &mut Cx<'_>) -> Step {
        self.ask_successors(cx);
        // An error alone would let what the client has in flight behind it be appended first. A client whose connection ends
        // sends everything again that has no answer, in order.
        if self.parts.iter().any(|part| part.is_given_up) && !bug::is(Bug::R2PlainError) {
            cx.end_soon();
        }
        if !self.parts.iter().all(|p| matches!(p.state, State::Answered(_))) {
            return Step::Pending;
        }
        if self.is_silent() {
            return Step::Done;
        }
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let topics = self.request.structs("TopicData").enumerate().map(|(index, topic)| {
            let mut out = response.new_element("Responses");
            out.set("Name", topic.get("Name").clone());
            out.set("TopicId", topic.get("TopicId").clone());
            let answers = self.parts.iter().filter(|p| p.topic == index).filter_map(|p| match &p.state {
                State::Answered(answer) => Some(Value::from(answer.clone())),
                _ => None,
            });
            out.set("PartitionResponses", Value::Array(Some(answers.collect())));
            Value::from(out)
        });
        let topics: Vec<Value> = topics.collect();
        response.set("Responses", Value::Array(Some(topics)));
        response.set("ThrottleTimeMs", self.throttle_ms);
        common::add_endpoints(cx, &mut response, "PartitionResponses");
        Step::Reply(response)
    }
}

impl Operation for Produce {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.arrived_ms = cx.now_ms;
        self.read_parts(cx);
        self.advance(cx, true)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, call: u32, answer: Answer) -> Step {
        wake_narrowed(cx);
        if let Some(index) = self.questions.remove(&call) {
            self.on_successor(cx, index, answer);
            return self.finish(cx);
        }
        let (frame, body_at, version) = match answer {
            Answer::Lost { sent } => return self.lost(cx, call, sent),
            Answer::Frame { frame, body_at, version } => (frame, body_at, version),
        };
        if self.probes.remove(&call) {
            for index in self.calls.remove(&call).unwrap_or_default() {
                self.parts[index].settle(cx, Outcome::Appended(None));
                self.parts[index].answer(cx, code::NONE);
            }
            return self.finish(cx);
        }
        match cx.decode(key::PRODUCE, &frame, body_at, version) {
            Ok(response) => {
                let parts = self.calls.remove(&call).unwrap_or_default();
                self.answered(cx, &parts, &response);
                self.finish(cx)
            }
            Err(reason) => {
                let _ = self.lost(cx, call, true);
                Step::Close(reason)
            }
        }
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        cx.deadline_ms = None;
        self.advance(cx, false)
    }

    fn on_client_gone(&mut self, cx: &mut Cx<'_>) -> Step {
        for part in &mut self.parts {
            match part.state {
                State::Waiting if part.is_silent() => {
                    part.is_left = true;
                    let gate = cx.shared.gates.get(&part.at.0, part.at.1);
                    part.queue(cx, &gate);
                }
                State::Waiting => part.answer(cx, code::REQUEST_TIMED_OUT),
                State::InFlight { .. } if part.question.is_some() => {
                    part.question = None;
                    part.settle(cx, Outcome::Unknown);
                    part.answer(cx, code::REQUEST_TIMED_OUT);
                }
                State::InFlight { ticket, .. } => {
                    part.is_left = true;
                    crate::session::lock(&cx.shared.gates.get(&part.at.0, part.at.1)).leave(ticket);
                }
                State::Answered(_) => {}
            }
        }
        if self.finish_silently() { Step::Done } else { Step::Pending }
    }
}

/// While a flip is prepared, produce waits for its connection to be free, which it is now.
fn wake_narrowed(cx: &mut Cx<'_>) {
    if !cx.snapshot.preparing.is_empty() && !cx.core.produce.pending.is_empty() {
        let own = cx.core.id;
        cx.emit(Effect::Wake(vec![own]));
    }
}

impl Produce {
    fn finish_silently(&self) -> bool {
        self.parts.iter().all(|p| matches!(p.state, State::Answered(_)))
    }
}

impl Part {
    /// Reads the batch's header and refuses what no broker may see.
    fn look_inside(&mut self, route: Option<&TopicRoute>, by_id: bool, is_taken_over: bool) {
        let Some(route) = route else {
            self.state = State::Answered(self.error(if by_id {
                code::UNKNOWN_TOPIC_ID
            } else {
                code::UNKNOWN_TOPIC_OR_PARTITION
            }));
            return;
        };
        if is_taken_over {
            self.state = State::Answered(self.error(code::NOT_LEADER_OR_FOLLOWER));
            return;
        }
        if route.timeline(self.at.1).is_none() || route.frozen.is_some() {
            self.state = State::Answered(self.error(code::UNKNOWN_TOPIC_OR_PARTITION));
            return;
        }
        // What is not a v2 batch is the broker's to judge.
        let header = self.records.as_ref().and_then(|r| batch::peek(r).ok());
        let Some(header) = header.filter(|h| h.producer_id != -1) else { return };
        if header.producer_id < 0 {
            // A broker takes other negative ids for "no producer id" and never recognises a retry (live.md §1).
            self.state = State::Answered(self.error(code::INVALID_RECORD));
            return;
        }
        self.batch = Some(batch_id(&header));
        self.transactional = header.is_transactional();
    }

    /// Transactional produce goes to the home of its transaction, under the identity the producer has there.
    fn join_transaction(&mut self, cx: &Cx<'_>, id: Option<&str>, side: ClusterSide) -> Result<(), i16> {
        let (Some(id), Some(batch)) = (id, self.batch) else { return Err(code::INVALID_TXN_STATE) };
        if cx.snapshot.transaction_home(id) != side {
            let is_known = cx.header.api_version >= 11;
            return Err(if is_known { code::TRANSACTION_ABORTABLE } else { code::INVALID_TXN_STATE });
        }
        let client = Identity { pid: batch.pid, epoch: batch.epoch };
        let native = cx.snapshot.transactions.to_native(id, side, client);
        let native = native.ok_or(code::INVALID_PRODUCER_EPOCH)?;
        self.native = (native != client).then_some(native);
        Ok(())
    }

    fn admitted(
        &mut self,
        cx: &mut Cx<'_>,
        admission: Admission,
        to: &common::ProduceTarget,
    ) -> Option<UpstreamKey> {
        match admission {
            Admission::Forward(ticket) | Admission::Recall(ticket) => {
                let recall = matches!(admission, Admission::Recall(_));
                let companion = to.upstream.class != Class::Native;
                cx.core.produce.remove(&self.at);
                self.hold = None;
                let side = to.upstream.node.side;
                // Nobody asks about a batch with sequences.
                let epoch = if self.batch.is_none() { self.epoch(cx, side) } else { -1 };
                let leader = (to.upstream.node.broker, epoch);
                self.state = State::InFlight { ticket, side, era: to.era, companion, recall, leader };
                let (session, now) = (cx.core.id, cx.now_ms);
                cx.shared.traffic.note(&self.at.0, |t| {
                    let by = if companion { &mut t.companion_produce } else { &mut t.direct_produce };
                    by.insert(session, now);
                });
                return Some(to.upstream);
            }
            Admission::Hold { hold, reason, deadline_ms } => {
                self.hold = Some(hold);
                self.reason = Some(reason);
                self.was_held |= reason == HoldReason::Fence;
                let at = deadline_ms.unwrap_or(i64::MAX);
                return self.wait(cx, at);
            }
            Admission::Duplicate(offset) => {
                self.forget_wait(cx);
                self.state = State::Answered(self.duplicate(offset));
            }
            Admission::Refuse(Refusal::OutOfOrderSequence) => {
                self.answer(cx, code::OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
            Admission::Refuse(Refusal::BehindFailed) => self.answer(cx, code::NOT_LEADER_OR_FOLLOWER),
            Admission::Refuse(Refusal::InvalidProducerEpoch) => self.answer(cx, code::INVALID_PRODUCER_EPOCH),
        }
        None
    }

    /// The error it shares: of one before it that has failed, or of a connection that ends.
    fn failure(&self, cx: &Cx<'_>) -> Option<i16> {
        if self.is_silent() {
            // Nothing before it comes again.
            return None;
        }
        let is_over = self.batch.is_none() && cx.core.ends_at_ms.is_some();
        let before = cx.core.produce.failure(&self.key(), self.batch);
        before.or(is_over.then_some(code::REQUEST_TIMED_OUT))
    }

    /// Until when it is kept. One without sequences that waits for its own client (RULES R1), or for a leader, waits as
    /// long as its client would: given up, it would end its client's connection, and what is unanswered there would be
    /// written twice.
    fn kept_until(&mut self, cx: &Cx<'_>, is_unknown: bool) -> i64 {
        let waits_for_flip = self.reason == Some(HoldReason::Fence);
        if self.batch.is_none() && !waits_for_flip && !is_unknown {
            self.bound_from_ms = cx.now_ms;
        }
        self.bound(cx)
    }

    fn bound(&self, cx: &Cx<'_>) -> i64 {
        let hold = cx.core.limits.hold_ms_max;
        (self.bound_from_ms + hold).min(self.arrived_ms + hold.max(PLAIN_WAIT_MS_MAX))
    }

    /// acks=0: its client takes it for sent.
    fn is_silent(&self) -> bool {
        self.acks == 0
    }

    /// The client does not know which broker has it, or for how long.
    fn is_hidden(&self) -> bool {
        self.was_held || self.is_silent() || matches!(self.state, State::InFlight { companion: true, .. })
    }

    /// The epoch of the partition's leader as far as it is known, else −1.
    fn epoch(&self, cx: &Cx<'_>, side: ClusterSide) -> i32 {
        let route = cx.snapshot.routes.topic(&self.at.0);
        let known = route.and_then(|route| cx.snapshot.partition(route, self.at.1, side));
        known.map_or(-1, |partition| partition.epoch)
    }

    /// Waits without asking the gate, which remembers its place.
    fn queue(&mut self, cx: &mut Cx<'_>, gate: &SharedGate) -> Option<UpstreamKey> {
        self.reason = None;
        self.hold = Some(crate::session::lock(gate).queue(&self.kept(cx)));
        self.wait(cx, cx.now_ms + RETRY_MS)
    }

    fn kept(&self, cx: &Cx<'_>) -> Kept {
        Kept {
            session: cx.core.id,
            node: cx.core.node,
            client: cx.core.client_key(self.acks),
            batch: self.batch,
            hold: self.hold,
            arrived_ms: self.arrived_ms,
            is_left: self.is_left,
        }
    }

    /// Stays where it is and keeps everything behind it back.
    fn wait(&mut self, cx: &mut Cx<'_>, until_ms: i64) -> Option<UpstreamKey> {
        self.has_waited = true;
        cx.core.produce.blocked.insert(self.at.clone());
        if until_ms < i64::MAX {
            cx.wake_at(until_ms);
        }
        None
    }

    fn to_request(&self, cx: &Cx<'_>) -> Value {
        let fields = schema::request(key::PRODUCE).map(|m| Struct::new(m.fields));
        let mut out = fields
            .map_or_else(|| Struct::new(&[]), |f| f.new_element("TopicData").new_element("PartitionData"));
        out.set("Index", self.at.1);
        out.set("Records", Value::Bytes(self.records_for(cx)));
        Value::from(out)
    }

    /// The batch as its owner must see it: under the era's producer id (RULES R6).
    fn records_for(&self, cx: &Cx<'_>) -> Option<Bytes> {
        let records = self.records.clone()?;
        let (Some(id), State::InFlight { era, .. }) = (self.batch, &self.state) else { return Some(records) };
        if let Some(native) = self.native.filter(|_| !bug::is(Bug::TxnNative)) {
            return Some(rewritten(&records, native.pid, native.epoch));
        }
        let timeline = cx.snapshot.routes.topic(&self.at.0).and_then(|r| r.timeline(self.at.1));
        let visit = timeline.and_then(|t| t.era(*era)).map_or(0, |e| e.visit);
        if visit == 0 || !pid::is_issued(id.pid) || bug::is(Bug::R6Visit) {
            return Some(records);
        }
        Some(rewritten(&records, pid::with_visit(id.pid, visit), id.epoch))
    }

    fn is_topic(&self, cx: &Cx<'_>, topic: &Struct, by_id: bool) -> bool {
        let State::InFlight { side, .. } = self.state else { return false };
        let Some(route) = cx.snapshot.routes.topic(&self.at.0) else {
            return topic.str("Name") == &*self.at.0;
        };
        if by_id {
            topic.uuid("TopicId") == route.native_id(side).0
        } else {
            topic.str("Name") == &**route.physical(side)
        }
    }

    fn on_response(&mut self, cx: &mut Cx<'_>, answer: &Struct) {
        if self.doubts(cx, answer) {
            return;
        }
        let State::InFlight { side, era, recall, .. } = self.state else { return };
        let mut error = answer.i16("ErrorCode");
        let route = cx.snapshot.routes.topic(&self.at.0).cloned();
        let mut out = answer.clone();
        let mut appended = None;
        if let Some(route) = route
            && let Some(timeline) = route.timeline(self.at.1)
        {
            let base = answer.i64("BaseOffset");
            if base >= 0 {
                appended = timeline.record_to_virtual(era, NativeOffset(base));
                out.set("BaseOffset", appended.map_or(-1, |v| v.0));
                if appended.is_none() && error == code::NONE {
                    let (topic, native) = (Arc::clone(&self.at.0), NativeOffset(base));
                    cx.emit(Effect::StrayAppend { topic, partition: self.at.1, side, native });
                }
            }
            let start = answer.i64("LogStartOffset");
            if start >= 0 {
                out.set("LogStartOffset", common::log_start(cx, &route, self.at.1, side, start));
            }
            common::translate_current_leader(cx, &mut out, side, &route, self.at.1, era);
        }
        let is_gap = error == code::OUT_OF_ORDER_SEQUENCE_NUMBER;
        let lacks_predecessor = is_gap && self.lacks_predecessor(cx);
        let outcome = outcome_of(error, appended);
        self.settle(cx, if is_gap && !lacks_predecessor { Outcome::OutOfOrder } else { outcome });
        let elsewhere = [
            code::UNKNOWN_TOPIC_OR_PARTITION,
            code::LEADER_NOT_AVAILABLE,
            code::NOT_LEADER_OR_FOLLOWER,
            code::NOT_ENOUGH_REPLICAS,
        ];
        let is_hidden = self.is_hidden();
        if elsewhere.contains(&error) && !self.is_repeated {
            // How long the broker had it, it was not held.
            self.bound_from_ms = cx.now_ms;
        }
        let in_time = cx.now_ms < self.bound(cx);
        if is_hidden {
            let timed_out = error == code::REQUEST_TIMED_OUT && bug::is(Bug::R8TimedOut);
            // A leader that steps down while it waits for its followers answers 6, and tells where it has appended the
            // batch (`DelayedProduce`). Only a log that knows the producer tells a second time from a first.
            let is_nowhere = self.batch.is_some() || answer.i64("BaseOffset") < 0;
            if ((elsewhere.contains(&error) && is_nowhere) || timed_out) && in_time {
                cx.refresh(side);
                return self.again(cx, RETRY_MS);
            }
        }
        if lacks_predecessor {
            let is_echo = is_hidden || cx.core.produce.is_repeating(&self.key());
            if is_echo && in_time {
                return self.again(cx, RETRY_MS);
            }
            error = code::NOT_LEADER_OR_FOLLOWER;
            out.set("ErrorCode", error);
        }
        if error == code::NOT_LEADER_OR_FOLLOWER {
            cx.refresh(side);
        }
        let forgotten = [code::OUT_OF_ORDER_SEQUENCE_NUMBER, code::DUPLICATE_SEQUENCE_NUMBER];
        if recall && forgotten.contains(&error) {
            out = self.duplicate(None);
        }
        self.leave(cx);
        self.state = State::Answered(out);
        if error != code::NONE && !(recall && forgotten.contains(&error)) {
            self.fail_behind(cx, error);
        }
    }

    /// Whether the broker misses a batch before this one that has failed and will come again. The client must not learn
    /// that: with that one acknowledged meanwhile it would take 45 for fatal, and otherwise for a proof that the one that
    /// failed is in no log, and would write it anew under another epoch (RULES R8).
    fn lacks_predecessor(&self, cx: &Cx<'_>) -> bool {
        let Some(batch) = self.batch else { return false };
        let gate = cx.shared.gates.get(&self.at.0, self.at.1);
        crate::session::lock(&gate).explains_gap(cx.now_ms, batch)
    }

    /// Back to waiting: nothing of it was appended, or the broker will recognise it.
    fn again(&mut self, cx: &mut Cx<'_>, wait_ms: i64) {
        if self.is_left && !self.is_silent() {
            return self.answer(cx, code::REQUEST_TIMED_OUT);
        }
        self.state = State::Waiting;
        self.has_waited = true;
        self.retry_at_ms = cx.now_ms + wait_ms;
        if !std::mem::replace(&mut self.is_repeated, true) {
            *cx.core.produce.repeated.entry(self.key()).or_default() += 1;
        }
        cx.core.produce.add(&self.at);
        cx.core.produce.blocked.insert(self.at.clone());
        cx.wake_at(self.retry_at_ms);
    }

    /// Nothing comes of it any more that others wait for.
    fn leave(&mut self, cx: &mut Cx<'_>) {
        if std::mem::take(&mut self.is_repeated) {
            cx.core.produce.repeat_ends(&self.key());
        }
        if let Some(hold) = self.hold.take() {
            let gate = cx.shared.gates.get(&self.at.0, self.at.1);
            let signal = crate::session::lock(&gate).drop_hold(cx.now_ms, hold);
            cx.signal(signal);
        }
    }

    fn settle(&mut self, cx: &mut Cx<'_>, outcome: Outcome) {
        let State::InFlight { ticket, .. } = self.state else { return };
        let gate = cx.shared.gates.get(&self.at.0, self.at.1);
        let signal = if matches!(outcome, Outcome::Appended(_) | Outcome::OutOfOrder) {
            crate::session::lock(&gate).complete(cx.now_ms, ticket, outcome)
        } else {
            let kept = self.kept(cx);
            let (signal, hold) = crate::session::lock(&gate).complete_kept(cx.now_ms, ticket, outcome, kept);
            self.hold = Some(hold);
            signal
        };
        cx.signal(signal);
    }

    /// Answers the part without a broker.
    fn answer(&mut self, cx: &mut Cx<'_>, error: i16) {
        self.forget_wait(cx);
        self.state = State::Answered(self.error(error));
        if error != code::NONE {
            self.is_given_up = self.batch.is_none() && !self.is_silent();
            self.fail_behind(cx, error);
        }
    }

    /// What this session still holds of the same producer came later: sent on now, it would overtake this batch.
    fn fail_behind(&self, cx: &mut Cx<'_>, error: i16) {
        if !self.is_silent() && cx.core.produce.pending.contains_key(&self.at) {
            cx.core.produce.fail(self.key(), error, self.batch);
            let own = cx.core.id;
            cx.emit(Effect::Wake(vec![own]));
        }
    }

    fn key(&self) -> FailedKey {
        (self.at.clone(), self.batch.map(|batch| batch.pid))
    }

    fn forget_wait(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.state, State::Waiting) {
            cx.core.produce.remove(&self.at);
        }
        self.leave(cx);
    }

    fn error(&self, error: i16) -> Struct {
        let fields = schema::response(key::PRODUCE).map(|m| Struct::new(m.fields));
        let mut out = fields.map_or_else(
            || Struct::new(&[]),
            |f| f.new_element("Responses").new_element("PartitionResponses"),
        );
        out.set("Index", self.at.1);
        out.set("ErrorCode", error);
        out.set("BaseOffset", -1_i64);
        out.set("LogAppendTimeMs", -1_i64);
        out.set("LogStartOffset", -1_i64);
        out
    }

    /// A retry of what is in the log: success with the first answer's offset, or with none where it is not known.
    fn duplicate(&self, offset: Option<VirtualOffset>) -> Struct {
        let mut out = self.error(code::NONE);
        out.set("BaseOffset", offset.map_or(-1, |v| v.0));
        out
    }
}

/// A batch under another producer id and epoch.
fn rewritten(records: &Bytes, pid: i64, epoch: i16) -> Bytes {
    let mut rewritten = BytesMut::from(&records[..]);
    match batch::rewrite_producer(&mut rewritten, pid, epoch) {
        Ok(()) => rewritten.freeze(),
        // The header was readable before; whatever this is, the broker refuses it by its checksum.
        Err(_) => records.clone(),
    }
}

fn batch_id(header: &BatchHeader) -> BatchId {
    BatchId {
        pid: pid::client_pid(header.producer_id),
        epoch: header.producer_epoch,
        first: header.base_sequence,
        last: header.last_sequence(),
    }
}

/// Whether a batch comes before another one of its producer.
fn is_before(batch: Option<BatchId>, other: Option<BatchId>) -> bool {
    match (batch, other) {
        (Some(batch), Some(other)) if batch.epoch == other.epoch => {
            carry::is_before(batch.first, other.first)
        }
        _ => false,
    }
}

/// What an error code says of the log (RULES R8): 7 and 20 leave it open.
fn outcome_of(error: i16, appended: Option<VirtualOffset>) -> Outcome {
    match error {
        code::NONE => Outcome::Appended(appended),
        code::DUPLICATE_SEQUENCE_NUMBER => Outcome::Appended(None),
        code::REQUEST_TIMED_OUT | code::NOT_ENOUGH_REPLICAS_AFTER_APPEND | -1 => Outcome::Unknown,
        _ => Outcome::NotAppended,
    }
}

#[cfg(test)]
mod tests;
