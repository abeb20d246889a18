use super::*;
use crate::ids::VirtualOffset;
use crate::ids::{TopicId, VirtualNode};
use crate::producer::gate::{
    Admission, BatchId, ClientKey, Outcome as Acked, PathId, SessionId, Submission, Ticket,
};
use crate::route::Timelines;

const START: Now = Now { ms: 1_000, abort_asked: false };
const HOLD_MS: i64 = 5_000;

fn name() -> Arc<str> {
    Arc::from("orders")
}

fn part() -> Part {
    (name(), 0)
}

fn route() -> Arc<TopicRoute> {
    Arc::new(TopicRoute {
        name: name(),
        owner: ClusterSide::Source,
        mode: LinkMode::Continue,
        physical: [name(), name()],
        virtual_id: TopicId([1; 16]),
        native_ids: [TopicId([1; 16]), TopicId([2; 16])],
        timelines: Timelines::PerPartition(vec![Arc::new(Timeline::initial(1, ClusterSide::Source))]),
        frozen: None,
    })
}

fn leads() -> Event {
    let lead = |leader| BTreeMap::from([(part(), Lead { leader, epoch: 5 })]);
    Event::Leads([lead(1), lead(2)])
}

fn readings(old: i64, new: i64) -> Readings {
    let reading =
        Reading { leader: 1, epoch: 5, before: old, high_watermark: old, log_end: old, last_stable: old };
    let told = Told { reading, producers: Vec::new(), transaction: false };
    Readings {
        old: BTreeMap::from([(part(), told)]),
        new: BTreeMap::from([(part(), Ends { high_watermark: new, log_end: new })]),
    }
}

fn ends(old: i64) -> Event {
    Event::Ends(BTreeMap::from([(part(), Ends { high_watermark: old, log_end: old })]))
}

/// A flip of one partition whose old log ends at 10 and whose new one ends at 4.
struct Case {
    flip: Flip,
    shared: Shared,
}

impl Case {
    fn new() -> Case {
        let terms =
            Terms { to: ClusterSide::Target, force: false, fence_ms_max: HOLD_MS, carry_entries_max: 100 };
        Case { flip: Flip::new(terms, vec![route()]), shared: Shared::default() }
    }

    fn on(&mut self, now: Now, event: Event) -> Action {
        self.flip.on(now, event, &self.shared)
    }

    fn tell(&mut self, event: Event) -> Action {
        self.on(START, event)
    }

    fn aborted(&mut self, now: Now, event: Event) -> Abort {
        match self.on(now, event) {
            Action::End(Outcome::Aborted(why)) => why,
            other => panic!("not aborted: {other:?}"),
        }
    }

    /// Up to and including the action that answers the named step's last event.
    fn to(step: Step) -> Case {
        let mut case = Case::new();
        case.go_to(step);
        case
    }

    fn go_to(&mut self, step: Step) {
        let events = [
            (Step::Prepare, leads()),
            (Step::Prepare, Event::Read(readings(9, 4))),
            (Step::Prepare, Event::IntentStored),
            (Step::Prepare, Event::Settled),
            (Step::Prepare, Event::NoTransactions),
            (Step::Fence, Event::Closed),
            (Step::Drain, Event::Looked),
            (Step::Boundary, Event::Read(readings(10, 4))),
            (Step::Carry, ends(10)),
            (Step::Seal, Event::Committed(true)),
            (Step::Seal, Event::Stored(Stored::Durable)),
            (Step::Publish, Event::Published),
        ];
        for (at, event) in events {
            if at >= step {
                break;
            }
            assert_eq!(self.flip.step(), at);
            self.tell(event);
        }
        assert_eq!(self.flip.step(), step);
    }

    fn gate(&self) -> SharedGate {
        self.shared.gates.get(&name(), 0)
    }

    fn is_fenced(&self) -> bool {
        lock(&self.gate()).is_fenced()
    }

    /// A batch that is in flight from before the fence.
    fn produce(&self) -> Ticket {
        let submission = Submission {
            session: SessionId(1),
            node: VirtualNode::new(ClusterSide::Source, 1),
            client: ClientKey(1),
            path: PathId(1),
            era: 0,
            batch: Some(BatchId { pid: 1 << 62, epoch: 0, first: 0, last: 4 }),
            native: None,
            hold: None,
            arrived_ms: 0,
            is_left: false,
        };
        match lock(&self.gate()).admit(0, &submission) {
            Admission::Forward(ticket) => ticket,
            other => panic!("not forwarded: {other:?}"),
        }
    }
}

#[test]
fn a_flip_goes_through_its_steps_in_order() {
    let mut case = Case::new();
    assert_eq!(case.tell(leads()), Action::Read { after_ms: 0 });
    assert_eq!(case.tell(Event::Read(readings(9, 4))), Action::StoreIntent);
    assert_eq!(case.tell(Event::IntentStored), Action::Settle);
    assert_eq!(case.tell(Event::Settled), Action::CloseTransactions);
    assert_eq!(case.tell(Event::NoTransactions), Action::CloseTopics);
    assert!(!case.is_fenced());
    assert_eq!(case.tell(Event::Closed), Action::AwaitDrain);
    assert!(case.is_fenced());
    assert_eq!(case.tell(Event::Looked), Action::Read { after_ms: 0 });
    assert_eq!(case.tell(Event::Read(readings(10, 4))), Action::ReadAgain);
    assert_eq!(case.tell(ends(10)), Action::Commit);
    assert_eq!(case.tell(Event::Committed(true)), Action::Seal);
    assert_eq!(case.flip.sealed()[0].timeline.current().virtual_start, VirtualOffset(10));
    assert_eq!(case.tell(Event::Stored(Stored::Durable)), Action::Publish);
    assert!(case.is_fenced());
    assert_eq!(case.tell(Event::Published), Action::Release);
    assert!(!case.is_fenced());
    assert_eq!(case.tell(Event::Released), Action::End(Outcome::Flipped));
}

#[test]
fn r02_a_connection_lost_while_draining_aborts() {
    let mut case = Case::new();
    let ticket = case.produce();
    case.go_to(Step::Drain);
    assert_eq!(case.tell(Event::Looked), Action::AwaitDrain);
    lock(&case.gate()).complete(1_000, ticket, Acked::Unknown);
    assert_eq!(case.aborted(START, Event::Looked), Abort::Lost(part()));
    assert!(!case.is_fenced());
}

#[test]
fn r05_what_was_acknowledged_is_carried() {
    let mut case = Case::new();
    let ticket = case.produce();
    lock(&case.gate()).complete(1_000, ticket, Acked::Appended(Some(VirtualOffset(5))));
    case.go_to(Step::Drain);
    case.tell(Event::Looked);
    case.tell(Event::Read(readings(10, 4)));
    assert_eq!(case.flip.sealed()[0].carry.len(), 1);
}

#[test]
fn r11_a_log_that_is_not_quiet_is_read_again_until_the_hold_bound() {
    let mut case = Case::to(Step::Boundary);
    let mut moving = readings(10, 4);
    moving.old.get_mut(&part()).expect("the partition").reading.log_end = 11;
    assert_eq!(case.tell(Event::Read(moving)), Action::Read { after_ms: REREAD_MS });
    let why = case.aborted(START, Event::Late).to_string();
    assert!(why.starts_with("no boundary within 5000 ms; orders-0: its ends differ"), "{why}");
    assert!(!case.is_fenced());
}

#[test]
fn r11_the_epoch_is_checked_once_more_before_seal() {
    let mut case = Case::to(Step::Carry);
    assert_eq!(case.aborted(START, ends(11)), Abort::Moved { part: part(), was: 10, now: 11 });
    let unknown = Event::Ends(BTreeMap::new());
    assert_eq!(
        Case::to(Step::Carry).aborted(START, unknown),
        Abort::Moved { part: part(), was: 10, now: -1 }
    );
    let mut refused = Case::to(Step::Carry);
    let told = refused.aborted(START, Event::Failed("ListOffsets answers error 74".into())).to_string();
    assert_eq!(told, "ListOffsets answers error 74");
}

#[test]
fn r12_a_new_owner_that_has_moved_since_prepare_aborts() {
    let mut case = Case::to(Step::Boundary);
    let why = case.aborted(START, Event::Read(readings(10, 5)));
    assert_eq!(why, Abort::Start { part: part(), why: StartError::Grew { prepared: 4, now: 5 } });
}

#[test]
fn r13_before_seal_every_end_opens_the_gates_to_the_old_owner() {
    for step in [Step::Drain, Step::Boundary, Step::Carry, Step::Seal] {
        let mut case = Case::to(step);
        assert!(case.is_fenced());
        case.aborted(START, Event::Failed("the process is asked to stop".into()));
        assert!(!case.is_fenced(), "behind {step:?}");
        assert!(!case.flip.let_go());
    }
    let mut dropped = Case::to(Step::Carry);
    assert!(dropped.flip.let_go());
    assert!(!dropped.is_fenced());
}

#[test]
fn r13_while_seal_may_be_durable_the_gates_stay_fenced() {
    let mut case = Case::to(Step::Seal);
    assert_eq!(case.tell(Event::Committed(true)), Action::Seal);
    assert!(!case.flip.let_go());
    assert_eq!(case.tell(Event::Stored(Stored::Unknown)), Action::End(Outcome::Unknown));
    assert!(!case.flip.let_go());
    assert!(case.is_fenced());

    let mut refused = Case::to(Step::Seal);
    refused.tell(Event::Committed(true));
    assert_eq!(refused.aborted(START, Event::Stored(Stored::NotWritten)), Abort::NotStored);
    assert!(!refused.is_fenced());
}

#[test]
fn r13_gates_that_were_left_closed_are_not_opened_by_what_is_told_afterwards() {
    let mut case = Case::to(Step::Seal);
    case.tell(Event::Committed(true));
    assert_eq!(case.tell(Event::Stored(Stored::Unknown)), Action::End(Outcome::Unknown));
    for event in [Event::Stored(Stored::Durable), Event::Published, Event::Released] {
        case.tell(event);
        assert!(case.is_fenced());
    }
}

#[test]
fn r16_an_abort_is_obeyed_until_the_point_of_no_return() {
    let asked = Now { abort_asked: true, ..START };
    assert_eq!(Case::to(Step::Prepare).tell(leads()), Action::Read { after_ms: 0 });
    assert_eq!(Case::to(Step::Seal).aborted(START, Event::Committed(false)), Abort::Asked);
    let mut case = Case::to(Step::Seal);
    assert_eq!(case.on(asked, Event::Committed(true)), Action::Seal);
    assert_eq!(case.on(asked, Event::Stored(Stored::Durable)), Action::Publish);
}

#[test]
fn the_hold_bound_ends_each_step_under_the_fence() {
    let late = Now { ms: START.ms + HOLD_MS, ..START };
    let mut draining = Case::new();
    draining.produce();
    draining.go_to(Step::Drain);
    assert_eq!(draining.aborted(late, Event::Looked), Abort::NotDrained(part()));
    assert_eq!(Case::to(Step::Carry).aborted(late, ends(10)), Abort::Late { hold_ms: HOLD_MS });
    assert_eq!(Case::to(Step::Seal).aborted(late, Event::Committed(true)), Abort::Late { hold_ms: HOLD_MS });
}

#[test]
fn what_refuses_a_flip_is_found_before_anybody_waits() {
    let mut counts = Case::new();
    let Event::Leads([source, _]) = leads() else { unreachable!() };
    assert_eq!(counts.aborted(START, Event::Leads([source, BTreeMap::new()])), Abort::PartitionCounts);

    let mut behind = Case::new();
    behind.tell(leads());
    let mut readings = readings(9, 4);
    readings.new.insert(part(), Ends { high_watermark: 3, log_end: 4 });
    let side = ClusterSide::Target;
    assert_eq!(behind.aborted(START, Event::Read(readings)), Abort::NotReplicated { part: part(), side });
}

#[test]
fn trap_7_the_boundary_waits_for_the_marker_of_a_transaction_that_has_ended() {
    let mut case = Case::to(Step::Boundary);
    let mut open = readings(10, 4);
    open.old.get_mut(&part()).expect("the partition").transaction = true;
    assert_eq!(case.tell(Event::Read(open)), Action::Read { after_ms: REREAD_MS });
    assert_eq!(case.tell(Event::Read(readings(10, 4))), Action::ReadAgain);
}

#[test]
fn an_event_out_of_turn_aborts_before_seal_and_never_opens_a_gate_after_it() {
    assert_eq!(Case::to(Step::Drain).aborted(START, Event::Published), Abort::OutOfTurn);
    let mut sealed = Case::to(Step::Publish);
    assert_eq!(sealed.tell(Event::Looked), Action::End(Outcome::Unknown));
    assert!(sealed.is_fenced());
}

#[test]
fn a_topic_that_was_changed_while_the_flip_was_prepared_is_not_flipped() {
    // More partitions, on both sides, than the routes know.
    let mut grown = Case::new();
    let Event::Leads(mut sides) = leads() else { unreachable!() };
    sides.iter_mut().for_each(|leads| {
        leads.insert((name(), 1), Lead { leader: 1, epoch: 0 });
    });
    assert_eq!(grown.aborted(START, Event::Leads(sides)), Abort::Changed);
    let mut another = Case::new();
    let lead = || BTreeMap::from([((Arc::from("another"), 0), Lead { leader: 1, epoch: 0 })]);
    assert_eq!(another.aborted(START, Event::Leads([lead(), lead()])), Abort::Changed);
    // A partition of which nobody has told a leader.
    let mut unknown = Case::to(Step::Boundary);
    let mut readings = readings(10, 4);
    let told = readings.old[&part()].clone();
    readings.old.insert((name(), 1), told);
    assert_eq!(unknown.aborted(START, Event::Read(readings)), Abort::Changed);
}

/// The producers that come over the flip, and their last sequences: 1 has expired, 2 is carried, 3 and 4 are listed.
fn carried(entries_max: usize) -> Vec<(i64, i32)> {
    let mut case = Case::new();
    case.flip.terms.carry_entries_max = entries_max;
    case.go_to(Step::Boundary);
    let day_ms = crate::producer::carry::EXPIRY_MS;
    let now = Now { ms: 3 * day_ms, ..START };
    case.flip.deadline_ms = i64::MAX;
    let mut carry = Carry::default();
    carry.record_ack(1, 0, 0, 0, None, now.ms - day_ms);
    carry.record_ack(2, 0, 0, 0, None, now.ms - 3);
    let _ = lock(&case.gate()).release(0, 0, carry);
    let mut readings = readings(10, 4);
    let row = |pid, age_ms| DescribedProducer {
        pid,
        epoch: 0,
        last_sequence: 7,
        last_timestamp_ms: now.ms - age_ms,
    };
    readings.old.get_mut(&part()).expect("the partition").producers = vec![row(3, 2), row(4, 1)];
    assert_eq!(case.on(now, Event::Read(readings)), Action::ReadAgain);
    case.flip.sealed()[0].carry.iter().map(|(pid, entry)| (pid, entry.last_sequence)).collect()
}

#[test]
fn r05_what_has_expired_is_not_carried_and_no_more_than_the_terms_allow() {
    assert_eq!(carried(100), [(2, 0), (3, 7), (4, 7)]);
    assert_eq!(carried(2), [(3, 7), (4, 7)], "the latest");
}

#[test]
fn r12_an_idle_side_that_has_grown_refuses_the_flip_unless_it_is_forced() {
    let flipped = Timeline::initial(1, ClusterSide::Target).seal(&crate::timeline::Boundary {
        to: ClusterSide::Source,
        old_native_end: NativeOffset(4),
        new_native_start: NativeOffset(9),
        old_native_epoch: 0,
        highest_virtual_epoch_seen: -1,
        new_native_epoch: 0,
        identity: false,
        at_ms: 1,
    });
    let timelines = Timelines::PerPartition(vec![Arc::new(flipped.expect("sealed"))]);
    let returned = Arc::new(TopicRoute { timelines, ..(*route()).clone() });
    for (force, end) in [(false, 4), (true, 4), (true, 5)] {
        let mut case = Case::new();
        case.flip.terms.force = force;
        case.flip.routes = vec![Arc::clone(&returned)];
        case.tell(leads());
        assert_eq!(case.tell(Event::Read(readings(9, end))), Action::StoreIntent, "{force} {end}");
    }
    let mut case = Case::new();
    case.flip.routes = vec![Arc::clone(&returned)];
    case.tell(leads());
    let grown = Grown { part: part(), side: ClusterSide::Target, left: 4, end: 5 };
    assert_eq!(case.aborted(START, Event::Read(readings(9, 5))), Abort::Grown(grown.clone()));
    assert_eq!(check_idle(&returned, 0, ClusterSide::Target, 5), Err(grown));
    let copy = TopicRoute { mode: LinkMode::Identity, ..(*returned).clone() };
    assert_eq!(check_idle(&copy, 0, ClusterSide::Target, 5), Ok(()), "a copy grows by itself");
    assert_eq!(check_idle(&route(), 0, ClusterSide::Target, 5), Ok(()), "it was never left");
}

#[test]
fn r12_a_side_whose_end_nobody_has_told_is_no_new_owner() {
    let mut case = Case::to(Step::Boundary);
    let mut readings = readings(10, 4);
    readings.new.clear();
    let why = case.aborted(START, Event::Read(readings));
    assert_eq!(why, Abort::Start { part: part(), why: StartError::Unknown });
}

#[test]
fn r12_a_side_whose_end_was_not_known_before_is_no_new_owner_even_if_it_is_empty() {
    let mut case = Case::new();
    case.tell(leads());
    let mut first = readings(9, 0);
    first.new.clear();
    for event in [
        Event::Read(first),
        Event::IntentStored,
        Event::Settled,
        Event::NoTransactions,
        Event::Closed,
        Event::Looked,
    ] {
        case.tell(event);
    }
    let why = case.aborted(START, Event::Read(readings(10, 0)));
    assert_eq!(why, Abort::Start { part: part(), why: StartError::Grew { prepared: -1, now: 0 } });
}

#[test]
fn a_copy_is_waited_for_until_it_holds_the_whole_virtual_log() {
    let mut case = Case::new();
    case.flip.routes = vec![Arc::new(TopicRoute { mode: LinkMode::Identity, ..(*route()).clone() })];
    case.tell(leads());
    let mut behind = readings(9, 8);
    behind.new.insert(part(), Ends { high_watermark: 7, log_end: 8 });
    assert_eq!(case.tell(Event::Read(behind)), Action::StoreIntent, "it is not finished yet");
    for event in [Event::IntentStored, Event::Settled, Event::NoTransactions, Event::Closed, Event::Looked] {
        case.tell(event);
    }
    assert_eq!(case.tell(Event::Read(readings(10, 9))), Action::Read { after_ms: REREAD_MS });
    assert_eq!(case.tell(Event::Read(readings(10, 10))), Action::ReadAgain);
    let era = case.flip.sealed()[0].timeline.current().clone();
    assert_eq!(
        (era.native_start, era.virtual_start, era.holds_history),
        (NativeOffset(10), VirtualOffset(10), true)
    );
    let mut plain = Case::to(Step::Carry);
    assert!(!plain.flip.sealed()[0].timeline.current().holds_history);
    plain.tell(ends(10));
}

#[test]
fn r11_the_leader_that_prepare_found_is_the_one_that_tells_the_end() {
    for (leader, epoch) in [(3, 5), (1, 6)] {
        let mut case = Case::to(Step::Boundary);
        let mut readings = readings(10, 4);
        let reading = &mut readings.old.get_mut(&part()).expect("the partition").reading;
        (reading.leader, reading.epoch) = (leader, epoch);
        assert_eq!(case.tell(Event::Read(readings)), Action::Read { after_ms: REREAD_MS });
    }
}

#[test]
fn r16_an_abort_is_obeyed_in_every_step_that_waits() {
    let asked = Now { abort_asked: true, ..START };
    let mut draining = Case::new();
    draining.produce();
    draining.go_to(Step::Drain);
    assert_eq!(draining.aborted(asked, Event::Looked), Abort::Asked);
    let mut moving = readings(10, 4);
    moving.old.get_mut(&part()).expect("the partition").reading.log_end = 11;
    assert_eq!(Case::to(Step::Boundary).aborted(asked, Event::Read(moving)), Abort::Asked);
    for told in 0..3 {
        let mut case = Case::new();
        case.tell(leads());
        case.tell(Event::Read(readings(9, 4)));
        let mut events = vec![Event::IntentStored, Event::Settled, Event::NoTransactions];
        let event = events.remove(told);
        events.truncate(told);
        events.into_iter().for_each(|event| drop(case.tell(event)));
        assert_eq!(case.aborted(asked, event), Abort::Asked);
    }
}

#[test]
fn the_new_era_starts_with_the_leaders_epochs_and_above_what_was_handed_out() {
    let mut case = Case::new();
    let Event::Leads([source, mut target]) = leads() else { unreachable!() };
    target.insert(part(), Lead { leader: 2, epoch: 8 });
    let seen = crate::session::Seen { epoch: 70, ..crate::session::Seen::default() };
    case.shared.seen.raise(&name(), 0, seen);
    case.tell(Event::Leads([source, target]));
    for event in [
        Event::Read(readings(9, 4)),
        Event::IntentStored,
        Event::Settled,
        Event::NoTransactions,
        Event::Closed,
        Event::Looked,
        Event::Read(readings(10, 4)),
    ] {
        case.tell(event);
    }
    let era = case.flip.sealed()[0].timeline.current().clone();
    assert_eq!((era.native_epoch_start, era.epoch_base), (8, 70 + crate::timeline::EPOCH_GAP));
    assert_eq!(era.sealed_at_ms, START.ms);
    assert_eq!(case.flip.sealed()[0].old_end, NativeOffset(10));
}

/// The leader that is asked was deposed and does not know it; the one that took its place has acknowledged 20, and a consumer
/// has read to 25. Whatever the reason: a boundary below that takes acknowledged records out of the log.
#[test]
fn r11_no_boundary_lies_below_what_was_acknowledged_or_read() {
    let mut all = Vec::new();
    for is_read in [false, true] {
        let mut case = Case::new();
        if is_read {
            let seen = crate::session::Seen { high_watermark: 25, last_stable_offset: 25, epoch: 0 };
            case.shared.seen.raise(&name(), 0, seen);
        } else {
            let ticket = case.produce();
            lock(&case.gate()).complete(1_000, ticket, Acked::Appended(Some(VirtualOffset(20))));
        }
        case.go_to(Step::Drain);
        case.tell(Event::Looked);
        case.tell(Event::Read(readings(10, 4)));
        case.tell(ends(10));
        case.tell(Event::Committed(true));
        let sealed = case.flip.sealed().first().map(|sealed| sealed.timeline.current().virtual_start);
        all.push((case.flip.step(), sealed));
    }
    assert!(all.iter().all(|(step, _)| *step < Step::Seal), "sealed at: {all:?}");
}
