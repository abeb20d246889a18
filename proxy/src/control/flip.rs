//! A cutover or rollback, carried out. The core's machine decides (`crossover_core::cutover::Flip`); here brokers are
//! asked, the disk is written, and operators are told.

use super::boundary::{self, Part};
use super::uncertain::is_uncertain;
use super::writers::OpenFor;
use super::{Control, failpoint};
use crate::runtime::Runtime;
use crate::store::{Seal, StoredTopic};
use anyhow::{Context, anyhow, bail, ensure};
use crossover_admin_api::model::{BoundaryView, LedgerEntry, OperationState, OperationView, Step};
use crossover_core::cutover::{
    self, Abort, Action, Ends, Event, Lead, Now, Outcome, Readings, Sealed, Stored, Terms, Told,
};
use crossover_core::ids::{ClusterSide, Revision};
use crossover_core::route::TopicRoute;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

/// How long sessions get to dial their companions and to shorten their polls before the fence.
const PREPARE_PAUSE: Duration = Duration::from_millis(150);
/// Between two looks at changes of clients that are still under way.
const CHANGES_LOOK: Duration = Duration::from_millis(5);
/// Between two looks at gates of which none has said that it is drained.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// What carries out a flip: it asks the clusters, waits and writes as the [machine](cutover::Flip) of the core says.
pub(crate) struct Flip {
    control: Arc<Control>,
    to: ClusterSide,
    topics: Vec<Arc<str>>,
    /// Growth of the idle side is accepted (RULES R12).
    force: bool,
    view: OperationView,
    step_started: Instant,
    /// Set once the topics may not be changed any more, by whatever means it ends.
    closed: Option<ClosedTopics>,
    /// Set while no transaction on the topics may begin.
    transactions: Option<ClosedTransactions>,
    /// Set while writers are let in at the new owner that were kept out there.
    writers: Option<OpenFor>,
    /// How long produce was held.
    held_since: Option<Instant>,
}

/// Brokers were not done within the hold bound.
#[derive(Debug, thiserror::Error)]
#[error("not within the hold bound")]
struct Overdue;

/// The machine of one operation. Dropped before SEAL, for whatever reason, it lets the old owner go on.
struct Machine {
    flip: cutover::Flip,
    runtime: Arc<Runtime>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.flip.let_go() {
            self.runtime.sessions.wake_all();
        }
    }
}

/// Topics that no client may change. Dropped, they may be changed at whichever side owns them then.
struct ClosedTopics {
    control: Arc<Control>,
    topics: Vec<Arc<str>>,
}

impl Drop for ClosedTopics {
    fn drop(&mut self) {
        let revision = self.control.state().revision;
        for topic in &with_known_owner(&self.control, &self.topics) {
            self.control.runtime.shared.changes.open(topic, revision);
        }
    }
}

/// Topics that no transaction begins on. Dropped, they begin at whichever side owns the topics then.
struct ClosedTransactions {
    control: Arc<Control>,
    topics: Vec<Arc<str>>,
}

impl Drop for ClosedTransactions {
    fn drop(&mut self) {
        let revision = self.control.state().revision;
        let known = with_known_owner(&self.control, &self.topics);
        self.control.runtime.shared.transactions.open(&known, revision);
    }
}

/// What may be opened again. Of a topic whose SEAL may be durable or not nobody knows the owner: what begins at the old one
/// could not go on at the other.
fn with_known_owner(control: &Control, topics: &[Arc<str>]) -> Vec<Arc<str>> {
    let unsealed = control.closed().unsealed.clone();
    topics.iter().filter(|topic| !unsealed.contains(*topic)).cloned().collect()
}

impl Flip {
    pub(crate) fn new(
        control: Arc<Control>,
        to: ClusterSide,
        topics: Vec<Arc<str>>,
        force: bool,
        view: OperationView,
    ) -> Flip {
        let step_started = Instant::now();
        Flip {
            control,
            to,
            topics,
            force,
            view,
            step_started,
            closed: None,
            transactions: None,
            writers: None,
            held_since: None,
        }
    }

    /// Runs to RELEASE, or to the abort. After RELEASE groups may follow, and the caller ends the operation.
    pub(crate) async fn run(mut self) -> OperationView {
        let control = Arc::clone(&self.control);
        let result = self.flip().await;
        control.set_preparing(BTreeSet::new());
        match result {
            Ok(()) => {
                control.runtime.metrics.flips_done.add(1);
                self.close_step();
                let took =
                    self.view.steps.iter().filter_map(|s| Some(format!("{:?} {:.1}", s.name, s.took_ms?)));
                let steps = took.collect::<Vec<_>>().join(", ");
                info!(operation = self.view.id, to = %self.to, topics = ?self.topics, hold_ms = self.view.hold_ms, steps, "flipped");
            }
            Err(problem) => self.aborted(format!("{problem:#}")).await,
        }
        self.view
    }

    async fn aborted(&mut self, reason: String) {
        let control = Arc::clone(&self.control);
        control.runtime.metrics.flips_aborted.add(1);
        warn!(operation = self.view.id, to = %self.to, topics = ?self.topics, reason, "the flip was aborted");
        let mut entry = control.entry("abort", Some(&self.view.id), reason.clone());
        entry.to = Some(self.to.into());
        if let Err(problem) =
            control.stored(move |s| s.put_intent(None).and_then(|()| s.append(&entry))).await
        {
            error!("the abort cannot be stored: {problem:#}");
        }
        self.view.reason = Some(reason);
        let stuck = control.closed().unsealed.iter().any(|t| self.topics.contains(t));
        let remedy = if control.is_taken_over() {
            super::takeover::REMEDY
        } else if stuck {
            "look at the disk of state.directory, then restart crossover: it finds out which side owns the topics"
        } else {
            "the old owner serves on; remove the cause and repeat"
        };
        self.view.remedy = Some(remedy.to_owned());
        self.step(OperationState::Aborted);
    }

    async fn flip(&mut self) -> anyhow::Result<()> {
        let routes = self.routes()?;
        let limits = &self.control.runtime.config.limits;
        let terms = Terms {
            to: self.to,
            force: self.force,
            fence_ms_max: cutover::fence_ms_max(
                i64::try_from(limits.hold_max.as_millis()).unwrap_or(i64::MAX),
            ),
            carry_entries_max: limits.carry_entries_max,
        };
        let runtime = Arc::clone(&self.control.runtime);
        let mut machine = Machine { flip: cutover::Flip::new(terms, routes.clone()), runtime };
        let mut action = Action::Prepare;
        self.step(OperationState::Prepare);
        loop {
            let event = match action {
                Action::End(outcome) => return self.ended(outcome).await,
                action => self.carry_out(action, &routes, &machine.flip).await,
            };
            let now = Now { ms: self.control.runtime.now_ms(), abort_asked: self.control.is_abort_asked() };
            let was = machine.flip.step();
            let is_fencing = matches!(event, Event::Closed);
            action = machine.flip.on(now, event, &self.control.runtime.shared);
            if is_fencing {
                self.held_since = Some(Instant::now());
                // Where nothing is in flight nobody will say that it has ended: the first look is for that.
                self.control.runtime.drained.notify_one();
            }
            if matches!(action, Action::Release | Action::End(Outcome::Aborted(_))) {
                self.transactions = None;
                self.control.runtime.sessions.wake_all();
            }
            if machine.flip.step() != was {
                failpoint::reached(name(was)).await;
                self.step(shown(machine.flip.step()));
            }
        }
    }

    /// One action of the machine, and what came of it.
    async fn carry_out(&mut self, action: Action, routes: &[Arc<TopicRoute>], flip: &cutover::Flip) -> Event {
        let told = match action {
            Action::Prepare => self.prepare(routes).await.map(Event::Leads),
            Action::Read { after_ms } => {
                self.in_time(flip, self.read(routes, flip, after_ms)).await.map(Event::Read)
            }
            Action::Settle => {
                self.control.set_preparing(self.topics.iter().cloned().collect());
                sleep(PREPARE_PAUSE).await;
                return Event::Settled;
            }
            Action::CloseTransactions => {
                self.close_transactions(routes).await.map(|()| Event::NoTransactions)
            }
            Action::CloseTopics => self.close_topics(routes, flip).await.map(|()| Event::Closed),
            Action::StoreIntent => self.store_intent().await.map(|()| Event::IntentStored),
            Action::AwaitDrain => {
                let _ = timeout(DRAIN_LOOK, self.control.runtime.drained.notified()).await;
                return Event::Looked;
            }
            Action::ReadAgain => {
                self.in_time(flip, self.read_ends(routes, flip, self.to.other())).await.map(Event::Ends)
            }
            Action::Commit => return Event::Committed(self.control.pass_the_point_of_no_return()),
            Action::Seal => return Event::Stored(self.seal(routes, flip.sealed()).await),
            Action::Publish => {
                self.control.state().preparing.clear();
                self.control.publish();
                return Event::Published;
            }
            Action::Release | Action::End(_) => return Event::Released,
        };
        match told {
            Ok(event) => event,
            Err(problem) if problem.is::<Overdue>() => Event::Late,
            Err(problem) => Event::Failed(format!("{problem:#}")),
        }
    }

    async fn ended(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        match outcome {
            Outcome::Flipped => {
                failpoint::reached("RELEASE").await;
                self.view.hold_ms = self.held_since.map(|since| since.elapsed().as_secs_f64() * 1000.0);
                Ok(())
            }
            Outcome::Aborted(why) => Err(why.into()),
            Outcome::Unknown => {
                bail!(
                    "it is not known whether SEAL is durable; produce to these topics is refused until a restart"
                )
            }
        }
    }

    fn routes(&self) -> anyhow::Result<Vec<Arc<TopicRoute>>> {
        let snapshot = self.control.runtime.snapshot();
        let find = |name: &Arc<str>| {
            let route = snapshot.routes.topic(name).cloned();
            let route = route.ok_or_else(|| anyhow!("topic {name} does not exist"))?;
            ensure!(route.owner != self.to, "topic {name} is already on the {}", self.to);
            if let Some(why) = &route.frozen {
                bail!("topic {name} is frozen: {why}");
            }
            if let Some(why) = self.control.closed().reason(name) {
                bail!(why);
            }
            Ok(route)
        };
        self.topics.iter().map(find).collect()
    }

    /// Fresh metadata of both sides and warm connections, before clients wait.
    async fn prepare(&mut self, routes: &[Arc<TopicRoute>]) -> anyhow::Result<[BTreeMap<Part, Lead>; 2]> {
        self.control.prepare_claim().await;
        for side in ClusterSide::BOTH {
            ensure!(super::topology::refresh(&self.control, side).await, "the {side} cannot be reached");
        }
        let places = routes.iter().map(|route| (self.to, Arc::clone(route.physical(self.to)))).collect();
        self.writers = Some(self.control.let_write(places).await?);
        let leads = [self.leads(routes, ClusterSide::Source)?, self.leads(routes, ClusterSide::Target)?];
        self.control.warm_coordinators().await;
        Ok(leads)
    }

    fn leads(&self, routes: &[Arc<TopicRoute>], side: ClusterSide) -> anyhow::Result<BTreeMap<Part, Lead>> {
        let leads = self.control.leads(routes, side)?.into_iter();
        Ok(leads.map(|lead| (lead.part, Lead { leader: lead.leader, epoch: lead.epoch })).collect())
    }

    /// What the machine knows of the leaders, with the names their clusters have for the topics.
    fn asked(
        &self,
        routes: &[Arc<TopicRoute>],
        flip: &cutover::Flip,
        side: ClusterSide,
    ) -> Vec<boundary::Lead> {
        let lead = |(part, lead): (&Part, &Lead)| {
            let physical = route_of(routes, &part.0).map(|route| Arc::clone(route.physical(side)))?;
            Some(boundary::Lead { part: part.clone(), physical, leader: lead.leader, epoch: lead.epoch })
        };
        flip.leads(side).iter().filter_map(lead).collect()
    }

    async fn read(
        &self,
        routes: &[Arc<TopicRoute>],
        flip: &cutover::Flip,
        after_ms: i64,
    ) -> anyhow::Result<Readings> {
        sleep(Duration::from_millis(after_ms.unsigned_abs())).await;
        let from = self.to.other();
        let asked = self.asked(routes, flip, from);
        let (old, new) =
            tokio::join!(self.control.read_quiet(from, &asked), self.read_ends(routes, flip, self.to));
        let told = |quiet: boundary::Quiet| {
            let producers = self.control.as_clients_know(from, quiet.producers);
            let told = Told { reading: quiet.reading, producers, transaction: quiet.transaction };
            (quiet.lead.part, told)
        };
        Ok(Readings { old: old?.into_iter().map(told).collect(), new: new? })
    }

    async fn read_ends(
        &self,
        routes: &[Arc<TopicRoute>],
        flip: &cutover::Flip,
        side: ClusterSide,
    ) -> anyhow::Result<BTreeMap<Part, Ends>> {
        let ends = self.control.read_ends(side, &self.asked(routes, flip, side)).await?;
        let ends = ends.into_iter();
        Ok(ends.map(|(part, (high_watermark, log_end))| (part, Ends { high_watermark, log_end })).collect())
    }

    /// Under the fence nothing may take longer than the hold bound.
    async fn in_time<T>(
        &self,
        flip: &cutover::Flip,
        asked: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let left = flip.deadline_ms().saturating_sub(self.control.runtime.now_ms()).max(0);
        timeout(Duration::from_millis(left.unsigned_abs()), asked).await.map_err(|_| Overdue)?
    }

    /// Produce behind a transaction's beginning must not meet the fence: the transaction could not end. So transactions
    /// end first, and none begins.
    async fn close_transactions(&mut self, routes: &[Arc<TopicRoute>]) -> anyhow::Result<()> {
        let control = Arc::clone(&self.control);
        control.runtime.shared.transactions.close(&self.topics);
        self.transactions =
            Some(ClosedTransactions { control: Arc::clone(&control), topics: self.topics.clone() });
        let bound = control.runtime.config.limits.hold_max;
        control.transactions_end(self.to.other(), routes, bound).await
    }

    /// No client changes the topics, or deletes records of them, until RELEASE (RULES R25, R26). Produce is not held
    /// while changes that had begun are waited for.
    async fn close_topics(&mut self, routes: &[Arc<TopicRoute>], flip: &cutover::Flip) -> anyhow::Result<()> {
        let bound = self.control.runtime.config.limits.hold_max;
        let closed = ClosedTopics { control: Arc::clone(&self.control), topics: self.topics.clone() };
        let changes = &self.control.runtime.shared.changes;
        closed.topics.iter().for_each(|topic| changes.close(topic));
        let deadline = Instant::now() + bound;
        while let Some(busy) = closed.topics.iter().find(|topic| !changes.is_quiet(topic)) {
            ensure!(!self.control.is_abort_asked(), Abort::Asked);
            ensure!(
                Instant::now() < deadline,
                "topic {busy}: a client's change of it was not over within {bound:?}"
            );
            sleep(CHANGES_LOOK).await;
        }
        self.closed = Some(closed);
        self.check_unchanged(routes, flip)
    }

    /// Until the topics were closed, clients could change them: what PREPARE has read must still be so (RULES R26).
    fn check_unchanged(&self, routes: &[Arc<TopicRoute>], flip: &cutover::Flip) -> anyhow::Result<()> {
        let now = self.routes()?;
        let same = now.iter().zip(routes).all(|(now, was)| now.timeline_id() == was.timeline_id());
        for side in ClusterSide::BOTH {
            ensure!(same && self.leads(&now, side)?.keys().eq(flip.leads(side).keys()), Abort::Changed);
        }
        Ok(())
    }

    async fn store_intent(&self) -> anyhow::Result<()> {
        let id = self.view.id.clone();
        self.control.announce_intent(&id).await?;
        self.control.stored(move |s| s.put_intent(Some(&id))).await.context("the intent cannot be stored")
    }

    /// The commit point: one durable write.
    async fn seal(&mut self, routes: &[Arc<TopicRoute>], sealed: &[Sealed]) -> Stored {
        let control = Arc::clone(&self.control);
        let topics = stored_topics(&control, routes, sealed, self.to);
        let revision = Revision(control.state().revision.0 + 1);
        self.view.partitions = sealed.iter().map(boundary_view).collect();
        let seal = Seal {
            revision: revision.0,
            topics: topics.clone(),
            carry: sealed.iter().map(|s| (Arc::clone(&s.part.0), s.part.1, s.carry.clone())).collect(),
            ledger: self.ledger(revision),
        };
        match control.stored(move |store| store.seal(&seal)).await {
            Ok(()) => {
                let mut state = control.state();
                state.revision = revision;
                state.topics.extend(topics);
                self.view.revision = Some(revision.0);
                Stored::Durable
            }
            Err(problem) if is_uncertain(&problem) => {
                self.seal_unknown(&problem);
                Stored::Unknown
            }
            Err(problem) => {
                error!("SEAL cannot be stored: {problem:#}");
                Stored::NotWritten
            }
        }
    }

    fn ledger(&self, revision: Revision) -> Vec<LedgerEntry> {
        let kind = if self.to == ClusterSide::Target { "cutover" } else { "rollback" };
        let entry = |boundary: &BoundaryView| {
            let text = format!("{}-{} moved to the {}", boundary.topic, boundary.partition, self.to);
            let mut entry = self.control.entry(kind, Some(&self.view.id), text);
            entry.revision = revision.0;
            entry.from = Some(self.to.other().into());
            entry.to = Some(self.to.into());
            entry.boundary = Some(boundary.clone());
            entry
        };
        self.view.partitions.iter().map(entry).collect()
    }

    /// The disk has not said whether SEAL is durable. Either owner may be the one that a restart finds, so neither may
    /// take a write: the gates stay fenced (DESIGN decision 10).
    fn seal_unknown(&self, problem: &anyhow::Error) {
        self.control.closed().unsealed.extend(self.topics.iter().cloned());
        let cause = format!("{}: {problem:#}", self.topics.join(", "));
        self.control.alarm("seal-unknown", &self.view.id, cause, super::uncertain::REMEDY);
    }

    fn close_step(&mut self) {
        if let Some(last) = self.view.steps.last_mut() {
            last.took_ms = Some(self.step_started.elapsed().as_secs_f64() * 1000.0);
        }
    }

    fn step(&mut self, state: OperationState) {
        let now = self.control.now();
        self.close_step();
        self.step_started = Instant::now();
        self.view.state = state;
        self.view.steps.push(Step { name: state, at_ms: now, took_ms: None });
        if state.is_final() {
            self.view.finished_ms = Some(now);
        }
        self.control.show(&self.view);
        self.control.step_event(&self.view);
    }
}

/// A step as operators see it.
fn shown(step: cutover::Step) -> OperationState {
    match step {
        cutover::Step::Prepare => OperationState::Prepare,
        cutover::Step::Fence => OperationState::Fence,
        cutover::Step::Drain => OperationState::Drain,
        cutover::Step::Boundary => OperationState::Boundary,
        cutover::Step::Carry => OperationState::Carry,
        cutover::Step::Seal => OperationState::Seal,
        cutover::Step::Publish => OperationState::Publish,
        cutover::Step::Release => OperationState::Release,
    }
}

/// A step as failpoints name it.
fn name(step: cutover::Step) -> &'static str {
    match step {
        cutover::Step::Prepare => "PREPARE",
        cutover::Step::Fence => "FENCE",
        cutover::Step::Drain => "DRAIN",
        cutover::Step::Boundary => "BOUNDARY",
        cutover::Step::Carry => "CARRY",
        cutover::Step::Seal => "SEAL",
        cutover::Step::Publish => "PUBLISH",
        cutover::Step::Release => "RELEASE",
    }
}

fn boundary_view(sealed: &Sealed) -> BoundaryView {
    let era = sealed.timeline.current();
    BoundaryView {
        topic: sealed.part.0.to_string(),
        partition: sealed.part.1,
        virtual_boundary: era.virtual_start.0,
        old_native_end: sealed.old_end.0,
        new_native_start: era.native_start.0,
    }
}

fn route_of<'a>(routes: &'a [Arc<TopicRoute>], name: &str) -> Option<&'a Arc<TopicRoute>> {
    routes.iter().find(|r| *r.name == *name)
}

fn stored_topics(
    control: &Control,
    routes: &[Arc<TopicRoute>],
    sealed: &[Sealed],
    to: ClusterSide,
) -> Vec<(Arc<str>, StoredTopic)> {
    let topologies = ClusterSide::BOTH.map(|side| control.topology(side));
    let stored = routes.iter().map(|route| {
        let mut own: Vec<&Sealed> = sealed.iter().filter(|s| s.part.0 == route.name).collect();
        own.sort_by_key(|s| s.part.1);
        let native = |side: ClusterSide| {
            let known = route.native_id(side);
            let seen = topologies[side.index()].topic(route.physical(side)).map(|t| t.id);
            if known.is_zero() { seen.unwrap_or(known) } else { known }
        };
        let topic = StoredTopic {
            owner: to,
            mode: route.mode,
            physical: route.physical.clone(),
            virtual_id: route.virtual_id,
            native_ids: ClusterSide::BOTH.map(native),
            timelines: own.iter().map(|s| Arc::clone(&s.timeline)).collect(),
        };
        (Arc::clone(&route.name), topic)
    });
    stored.collect()
}

impl Control {
    pub(crate) fn set_preparing(&self, topics: BTreeSet<Arc<str>>) {
        let changed = {
            let mut state = self.state();
            let changed = state.preparing != topics;
            state.preparing = topics;
            changed
        };
        if changed {
            self.publish();
        }
    }
}
