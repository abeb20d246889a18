//! What the requests of transactions have in common: they go to the coordinator on the transactional id's home side,
//! under the identity the producer has there, and the first one of a transaction may take the id to another home.
//!
//! Source: KIP-98; protocol.md §3.6.

use super::group::{GroupApi, GroupCall};
use crate::bug::{self, Bug};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::producer::transaction::Identity;
use crate::schema::Struct;
use crate::session::{Answer, Begun, Cx, Effect, Errand, ErrandDone, Operation, Step, TransactionPlan};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Between two attempts to begin, where nobody wakes the connection, milliseconds.
pub(super) const RETRY_MS: i64 = 50;

/// The errands of a beginning.
const HOME: u32 = 0;
const OFFSETS: u32 = 1;

/// How an API names the transactional id, the producer id and its epoch.
pub(super) type Names = [&'static str; 3];

/// As most do.
pub(super) const NAMES: Names = ["TransactionalId", "ProducerId", "ProducerEpoch"];

/// Since this version of AddPartitionsToTxn, AddOffsetsToTxn and EndTxn a fenced producer has a code of its own (KIP-588).
pub(super) const FENCED_SINCE: i16 = 2;

/// The producer of a request, as its client knows it.
pub(super) fn client(request: &Struct, [_, pid, epoch]: Names) -> Identity {
    Identity { pid: request.i64(pid), epoch: request.i16(epoch) }
}

/// Whether the transactional id of a request is another producer's by now.
pub(super) fn is_fenced(cx: &Cx<'_>, request: &Struct, home: ClusterSide, names: Names) -> bool {
    native(cx, request, home, names).is_none() && !bug::is(Bug::TxnFenced)
}

fn native(cx: &Cx<'_>, request: &Struct, home: ClusterSide, names: Names) -> Option<Identity> {
    cx.snapshot.transactions.to_native(request.str(names[0]), home, client(request, names))
}

/// Puts the transactional id and the producer as `home` knows them into a request. One that is fenced stays as it is.
pub(super) fn to_native(cx: &Cx<'_>, request: &mut Struct, home: ClusterSide, names: Names) {
    let Some(native) = native(cx, request, home, names) else { return };
    let [id, pid, epoch] = names;
    let name = request.str(id).to_owned();
    request.set(pid, native.pid);
    request.set(epoch, native.epoch);
    request.set(id, &*cx.snapshot.transactions.physical(&name, home));
}

/// What a producer is told whose transactional id another one has.
pub(super) fn fenced(cx: &Cx<'_>, since: i16) -> i16 {
    if cx.header.api_version >= since { code::PRODUCER_FENCED } else { code::INVALID_PRODUCER_EPOCH }
}

/// The answer of an API that has one error for the whole request.
pub(super) fn failed(cx: &Cx<'_>, error: i16) -> Option<Struct> {
    let mut response = cx.empty_response()?;
    response.set("ErrorCode", error);
    Some(response)
}

/// The transaction of the id is over, or that of one of its producers: a flip may wait for that.
pub(super) fn ended(cx: &mut Cx<'_>, id: &str, producer: Option<Identity>) {
    let registry = &cx.shared.transactions;
    if producer.map_or_else(|| registry.end(id), |producer| registry.end_of(id, producer)) {
        cx.emit(Effect::GateDrained);
    }
}

/// A request that a transaction can begin with.
pub(super) trait Beginning: GroupApi {
    /// What the transaction takes in with it: topics, and the group whose offsets it commits.
    fn takes_in(&self) -> (BTreeSet<Arc<str>>, Option<String>);

    /// The producer as its client knows it.
    fn producer(&self) -> Identity;

    /// The whole request is answered with one error; `None` where there is nothing to answer.
    fn refusal(&self, cx: &Cx<'_>, error: i16) -> Option<Struct>;

    /// The code for what may not be in this transaction: its producer aborts and begins another. `None`: another request
    /// will say so.
    fn cannot_join(&self) -> Option<i16>;

    /// Whether an answer says that nothing was taken in.
    fn is_refused(&self, response: &Struct) -> bool;
}

/// Lets a transaction begin, or go on, where all it takes in is at home.
pub(super) struct Begin<A> {
    call: GroupCall<A>,
    arrived_ms: i64,
    stage: Stage,
    is_gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not let in: a flip closes the topics, or another request moves the transactional id.
    Held,
    /// The transactional id is being moved.
    Moving,
    /// The group's commits are being moved.
    MovingOffsets,
    /// The group's commits are being moved for another transaction.
    AwaitingOffsets,
    LetIn,
}

impl<A: Beginning> Begin<A> {
    pub(super) fn new(api: A) -> Begin<A> {
        Begin { call: GroupCall::new(api), arrived_ms: 0, stage: Stage::Held, is_gone: false }
    }

    fn begin(&mut self, cx: &mut Cx<'_>) -> Step {
        let id = self.call.api().group();
        let (topics, group) = self.call.api().takes_in();
        // Behind a start: what it writes to decides where it begins, and its client asks one thing at a time.
        if group.is_some() && cx.shared.transactions.is_stranger(&id, cx.now_ms) {
            return self.refuse(cx, code::CONCURRENT_TRANSACTIONS);
        }
        let to = match &group {
            None if topics.is_empty() => Some(cx.snapshot.transaction_home(&id)),
            None => home_of(cx, &topics),
            // What it writes to comes later: most likely where it wrote before.
            Some(group) => home_of(cx, &cx.shared.transactions.written_by(&id))
                .or_else(|| Some(cx.snapshot.offset_home(group))),
        };
        let cannot_join = self.call.api().cannot_join();
        if let (None, Some(error)) = (to, cannot_join)
            && !bug::is(Bug::TxnSpans)
        {
            return self.refuse(cx, error);
        }
        let home = cx.snapshot.transaction_home(&id);
        let to = to.unwrap_or(home);
        let producer = self.call.api().producer();
        let plan = TransactionPlan { revision: cx.snapshot.revision, home, to, producer };
        let begun = cx.shared.transactions.begin(&id, &topics, plan, cx.now_ms);
        match (begun, cannot_join) {
            (Begun::Hold, _) if cx.now_ms >= self.arrived_ms + cx.core.limits.hold_ms_max => {
                self.refuse(cx, code::CONCURRENT_TRANSACTIONS)
            }
            (Begun::Hold, _) => {
                cx.wake_at(cx.now_ms + RETRY_MS);
                Step::Pending
            }
            // It is open elsewhere: a transaction cannot span clusters. The next one may begin where this was refused.
            (Begun::Again, Some(error)) if home != to && !bug::is(Bug::TxnSpansLater) => {
                cx.shared.transactions.turns_to(&id, &topics);
                self.cannot_begin(cx, error)
            }
            (Begun::Again, _) => self.take_offsets(cx),
            (Begun::First, _) if home == to => self.take_offsets(cx),
            (Begun::First, _) => {
                self.stage = Stage::Moving;
                cx.run_errand(HOME, Errand::MoveTransactionalId { id: Arc::from(id), to, client: producer });
                Step::Pending
            }
        }
    }

    /// The commits of a group come to where the transaction is.
    fn take_offsets(&mut self, cx: &mut Cx<'_>) -> Step {
        let Some(group) = self.call.api().takes_in().1 else { return self.let_in(cx) };
        let id = self.call.api().group();
        self.stage = Stage::AwaitingOffsets;
        if cx.now_ms >= self.arrived_ms + cx.core.limits.hold_ms_max {
            return self.cannot_begin(cx, code::CONCURRENT_TRANSACTIONS);
        }
        let home = cx.snapshot.transaction_home(&id);
        if cx.snapshot.groups.offset_homes.get(&*group) != Some(&home) {
            self.stage = Stage::MovingOffsets;
            cx.run_errand(OFFSETS, Errand::MoveOffsets { group: Arc::from(group), to: home });
            return Step::Pending;
        }
        if !cx.shared.transactions.take_offsets(&id, &group) {
            cx.wake_at(cx.now_ms + RETRY_MS);
            return Step::Pending;
        }
        self.let_in(cx)
    }

    fn let_in(&mut self, cx: &mut Cx<'_>) -> Step {
        self.stage = Stage::LetIn;
        let step = self.call.start(cx);
        self.settled(cx, step)
    }

    /// Notes what an answer says of the transaction.
    fn settled(&self, cx: &mut Cx<'_>, step: Step) -> Step {
        match &step {
            Step::Pending => {}
            Step::Reply(response) => self.answered(cx, !self.call.api().is_refused(response)),
            // Nobody knows what the coordinator has made of it.
            _ => self.answered(cx, self.call.was_sent()),
        }
        step
    }

    /// A transaction that others are in stays open.
    fn cannot_begin(&mut self, cx: &mut Cx<'_>, error: i16) -> Step {
        self.answered(cx, false);
        self.stage = Stage::Held;
        self.refuse(cx, error)
    }

    fn answered(&self, cx: &mut Cx<'_>, taken: bool) {
        let api = self.call.api();
        if cx.shared.transactions.answered(&api.group(), api.producer(), taken, cx.now_ms) {
            cx.emit(Effect::GateDrained);
        }
    }

    fn refuse(&self, cx: &mut Cx<'_>, error: i16) -> Step {
        self.call.api().refusal(cx, error).map_or(Step::Done, Step::Reply)
    }
}

/// Where everything that a transaction takes in is at home; `None` where that is not one place.
fn home_of(cx: &Cx<'_>, topics: &BTreeSet<Arc<str>>) -> Option<ClusterSide> {
    let mut owners = topics.iter().map(|topic| cx.snapshot.routes.owner(topic));
    let first = owners.next()?;
    owners.all(|side| side == first).then_some(first)
}

impl<A: Beginning> Operation for Begin<A> {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.arrived_ms = cx.now_ms;
        self.begin(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let step = self.call.on_answer(cx, part, answer);
        self.settled(cx, step)
    }

    fn on_errand_done(&mut self, cx: &mut Cx<'_>, part: u32, done: ErrandDone) -> Step {
        if self.is_gone {
            self.answered(cx, false);
            return Step::Done;
        }
        match done {
            Ok(true) => self.take_offsets(cx),
            Ok(false) if part == OFFSETS => self.take_offsets(cx),
            // Its transactional id is another producer's.
            Ok(false) => self.cannot_begin(cx, fenced(cx, FENCED_SINCE)),
            Err(_) => self.cannot_begin(cx, code::CONCURRENT_TRANSACTIONS),
        }
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        match self.stage {
            Stage::Held => {
                cx.deadline_ms = None;
                self.begin(cx)
            }
            Stage::Moving | Stage::MovingOffsets => Step::Pending,
            Stage::AwaitingOffsets => {
                cx.deadline_ms = None;
                self.take_offsets(cx)
            }
            Stage::LetIn => {
                let step = self.call.on_wake(cx);
                self.settled(cx, step)
            }
        }
    }

    fn on_client_gone(&mut self, cx: &mut Cx<'_>) -> Step {
        // The move goes on: until it is over, nobody may get an identity where the id was.
        let sees_through = self.stage == Stage::Moving && !bug::is(Bug::TxnMoveLeft);
        if sees_through && !std::mem::replace(&mut self.is_gone, true) {
            return Step::Pending;
        }
        // What was sent may have begun a transaction, or still will: then only its coordinator ends it.
        if self.stage != Stage::Held {
            self.answered(cx, self.call.was_sent());
        }
        Step::Done
    }
}

#[cfg(test)]
mod tests;
