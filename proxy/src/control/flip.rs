//! A cutover or rollback, step by step. Anything that fails before SEAL releases to the old owner.

use super::boundary::{Lead, Part, Quiet};
use super::{Control, failpoint};
use crate::runtime::Runtime;
use crate::store::{Seal, SealWriteError, StoredTopic};
use anyhow::{Context, anyhow, bail, ensure};
use crossover_admin_api::model::{BoundaryView, OperationState, OperationView, Step};
use crossover_core::cutover::{self, Meeting};
use crossover_core::ids::{ClusterSide, NativeOffset, Revision};
use crossover_core::producer::carry::Carry;
use crossover_core::route::{LinkMode, TopicRoute};
use crossover_core::session::{SharedGate, lock};
use crossover_core::timeline::Timeline;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

/// How long sessions get to dial their companions and to shorten their polls before the fence.
const PREPARE_PAUSE: Duration = Duration::from_millis(150);
/// Between two looks at changes of clients that are still under way.
const CHANGES_LOOK: Duration = Duration::from_millis(5);
/// Between two readings of a log that is not quiet yet.
const REREAD_PAUSE: Duration = Duration::from_millis(3);

const CHANGED: &str = "a topic was changed by a client while the flip was prepared: repeat it";

/// What is flipped.
pub(crate) struct Flip {
    control: Arc<Control>,
    to: ClusterSide,
    topics: Vec<Arc<str>>,
    /// Growth of the idle side is accepted (RULES R12).
    force: bool,
    view: OperationView,
    step_started: Instant,
}

/// One partition under the fence.
struct Fenced {
    part: Part,
    gate: SharedGate,
}

/// The fence of the whole operation. Dropped before SEAL, for whatever reason, it lets the old owner go on.
struct Fence {
    parts: Vec<Fenced>,
    runtime: Arc<Runtime>,
    armed: bool,
}

impl Fence {
    /// From SEAL on only the flip itself opens the gates.
    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if self.armed {
            for fenced in &self.parts {
                lock(&fenced.gate).release_unchanged();
            }
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
        let unsealed = self.control.closed().unsealed.clone();
        // Whose owner is not known stays closed.
        for topic in self.topics.iter().filter(|topic| !unsealed.contains(*topic)) {
            self.control.runtime.shared.changes.open(topic, revision);
        }
    }
}

/// A partition that is ready to be sealed.
struct Sealed {
    part: Part,
    old_end: NativeOffset,
    timeline: Arc<Timeline>,
    carry: Carry,
}

impl Flip {
    pub(crate) fn new(
        control: Arc<Control>,
        to: ClusterSide,
        topics: Vec<Arc<str>>,
        force: bool,
        view: OperationView,
    ) -> Flip {
        Flip { control, to, topics, force, view, step_started: Instant::now() }
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
            Err(problem) => {
                control.runtime.metrics.flips_aborted.add(1);
                let text = format!("{problem:#}");
                warn!(operation = self.view.id, to = %self.to, topics = ?self.topics, reason = text, "the flip was aborted");
                let entry = control.entry("abort", Some(&self.view.id), text.clone());
                if let Err(problem) =
                    control.stored(move |s| s.put_intent(None).and_then(|()| s.append(&entry))).await
                {
                    error!("the abort cannot be stored: {problem:#}");
                }
                self.view.reason = Some(text);
                let stuck = control.closed().unsealed.iter().any(|t| self.topics.contains(t));
                let remedy = if stuck {
                    "look at the disk of state.directory, then restart crossover: it finds out which side owns the topics"
                } else {
                    "the old owner serves on; remove the cause and repeat"
                };
                self.view.remedy = Some(remedy.to_owned());
                self.step(OperationState::Aborted);
            }
        }
        self.view
    }

    async fn flip(&mut self) -> anyhow::Result<()> {
        let routes = self.routes()?;
        let from = self.to.other();
        let (old, new, prepared) = self.prepare(&routes, from).await?;
        failpoint::reached("PREPARE").await;

        self.step(OperationState::Fence);
        let _closed = self.close_changes().await?;
        self.check_unchanged(&routes, &old, &new)?;
        let id = self.view.id.clone();
        self.control.stored(move |s| s.put_intent(Some(&id))).await.context("the intent cannot be stored")?;
        let mut fence = self.fence(&old);
        let held_since = Instant::now();
        failpoint::reached("FENCE").await;
        let sealed = self.under_fence(&routes, &mut fence, &old, &new, &prepared, held_since).await?;
        failpoint::reached("SEAL").await;
        self.step(OperationState::Publish);
        self.control.state().preparing.clear();
        self.control.publish();
        failpoint::reached("PUBLISH").await;
        self.step(OperationState::Release);
        self.release(&fence.parts, sealed);
        failpoint::reached("RELEASE").await;
        self.view.hold_ms = Some(held_since.elapsed().as_secs_f64() * 1000.0);
        Ok(())
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

    /// Everything that can be done before clients wait: fresh metadata, warm connections, dry readings.
    async fn prepare(
        &mut self,
        routes: &[Arc<TopicRoute>],
        from: ClusterSide,
    ) -> anyhow::Result<(Vec<Lead>, Vec<Lead>, BTreeMap<Part, (i64, i64)>)> {
        self.step(OperationState::Prepare);
        self.control.set_preparing(self.topics.iter().cloned().collect());
        for side in ClusterSide::BOTH {
            ensure!(super::topology::refresh(&self.control, side).await, "the {side} cannot be reached");
        }
        let old = self.control.leads(routes, from)?;
        let new = self.control.leads(routes, self.to)?;
        let same = old.iter().map(|l| &l.part).eq(new.iter().map(|l| &l.part));
        ensure!(same, "the topics do not have the same number of partitions on both sides");
        // Partitions that were added since the routes were read have their timelines in newer routes only.
        let timeline = |lead: &Lead| route_of(routes, &lead.part.0).and_then(|r| r.timeline(lead.part.1));
        ensure!(old.iter().all(|lead| timeline(lead).is_some()), CHANGED);
        self.control.warm_coordinators().await;
        for quiet in self.control.read_quiet(from, &old).await? {
            ensure!(
                !quiet.transaction,
                "{}-{} has an open transaction",
                quiet.lead.physical,
                quiet.lead.part.1
            );
        }
        let prepared = self.control.read_ends(self.to, &new).await?;
        for (route, (part, (watermark, end))) in
            prepared.iter().filter_map(|p| Some((route_of(routes, &p.0.0)?, p)))
        {
            if route.mode == LinkMode::Continue {
                ensure!(
                    watermark == end,
                    "{}-{}: the {} has not replicated everything",
                    part.0,
                    part.1,
                    self.to
                );
            }
            if !self.force {
                check_idle(route, part.1, self.to, *end)?;
            }
        }
        sleep(PREPARE_PAUSE).await;
        self.check_abort()?;
        Ok((old, new, prepared))
    }

    /// No client changes the topics, or deletes records of them, until RELEASE (RULES R25, R26). Produce is not held
    /// while changes that had begun are waited for.
    async fn close_changes(&self) -> anyhow::Result<ClosedTopics> {
        let control = Arc::clone(&self.control);
        let bound = control.runtime.config.limits.hold_max;
        let closed = ClosedTopics { control, topics: self.topics.clone() };
        let changes = &self.control.runtime.shared.changes;
        closed.topics.iter().for_each(|topic| changes.close(topic));
        let deadline = Instant::now() + bound;
        while let Some(busy) = closed.topics.iter().find(|topic| !changes.is_quiet(topic)) {
            self.check_abort()?;
            ensure!(
                Instant::now() < deadline,
                "topic {busy}: a client's change of it was not over within {bound:?}"
            );
            sleep(CHANGES_LOOK).await;
        }
        Ok(closed)
    }

    /// Until the topics were closed, clients could change them: what PREPARE has read must still be so (RULES R26).
    fn check_unchanged(&self, routes: &[Arc<TopicRoute>], old: &[Lead], new: &[Lead]) -> anyhow::Result<()> {
        let parts = |leads: &[Lead]| leads.iter().map(|lead| lead.part.clone()).collect::<Vec<_>>();
        let now = self.routes()?;
        let same = now.iter().zip(routes).all(|(now, was)| now.timeline_id() == was.timeline_id());
        let counts = parts(&self.control.leads(&now, self.to.other())?) == parts(old)
            && parts(&self.control.leads(&now, self.to)?) == parts(new);
        ensure!(same && counts, CHANGED);
        Ok(())
    }

    fn fence(&self, old: &[Lead]) -> Fence {
        let gates = &self.control.runtime.shared.gates;
        let fence = |lead: &Lead| {
            let gate = gates.get(&lead.part.0, lead.part.1);
            lock(&gate).fence();
            Fenced { part: lead.part.clone(), gate }
        };
        let runtime = Arc::clone(&self.control.runtime);
        Fence { parts: old.iter().map(fence).collect(), runtime, armed: true }
    }

    async fn under_fence(
        &mut self,
        routes: &[Arc<TopicRoute>],
        fence: &mut Fence,
        old: &[Lead],
        new: &[Lead],
        prepared: &BTreeMap<Part, (i64, i64)>,
        held_since: Instant,
    ) -> anyhow::Result<Vec<Sealed>> {
        let bound = self.control.runtime.config.limits.hold_max;
        let deadline = held_since + bound;
        self.step(OperationState::Drain);
        self.drain(&fence.parts, deadline).await?;
        failpoint::reached("DRAIN").await;
        self.step(OperationState::Boundary);
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let late = |_| anyhow!("no boundary within {bound:?}");
        let readings =
            timeout(left(deadline), self.boundary(routes, old, new, prepared)).await.map_err(late)??;
        failpoint::reached("BOUNDARY").await;
        self.step(OperationState::Carry);
        let sealed = self.carry(routes, &fence.parts, readings)?;
        // A leader that has changed meanwhile refuses the epoch (RULES R11).
        let ends =
            timeout(left(deadline), self.control.read_ends(self.to.other(), old)).await.map_err(late)??;
        for sealed in &sealed {
            let (was, now) = (sealed.old_end.0, ends.get(&sealed.part).map_or(-1, |e| e.1));
            ensure!(
                was == now,
                "{}-{}: the log went from {was} to {now} under the fence",
                sealed.part.0,
                sealed.part.1
            );
        }
        failpoint::reached("CARRY").await;
        self.check_no_loss(&fence.parts)?;
        ensure!(Instant::now() < deadline, "the hold bound of {bound:?} has passed before SEAL");
        ensure!(self.control.pass_the_point_of_no_return(), "an operator asked for it");
        self.step(OperationState::Seal);
        self.seal(routes, &sealed, fence).await?;
        Ok(sealed)
    }

    /// Produce whose outcome became unknown may still reach the old log (RULES R2).
    fn check_no_loss(&self, fenced: &[Fenced]) -> anyhow::Result<()> {
        let lost = fenced.iter().find(|f| lock(&f.gate).unknown_since_ms().is_some());
        match lost {
            Some(f) => bail!("{}-{}: a connection with produce in flight was lost", f.part.0, f.part.1),
            None => Ok(()),
        }
    }

    async fn drain(&self, fenced: &[Fenced], deadline: Instant) -> anyhow::Result<()> {
        loop {
            let busy = fenced.iter().find(|f| !lock(&f.gate).is_drained());
            self.check_no_loss(fenced)?;
            let Some(busy) = busy else { return Ok(()) };
            self.check_abort()?;
            ensure!(
                Instant::now() < deadline,
                "{}-{}: produce in flight was not answered within the hold bound",
                busy.part.0,
                busy.part.1
            );
            let _ = timeout(Duration::from_millis(5), self.control.runtime.drained.notified()).await;
        }
    }

    /// Reads until everything agrees; the caller bounds the time.
    async fn boundary(
        &self,
        routes: &[Arc<TopicRoute>],
        old: &[Lead],
        new: &[Lead],
        prepared: &BTreeMap<Part, (i64, i64)>,
    ) -> anyhow::Result<Vec<(Quiet, NativeOffset, NativeOffset, i32)>> {
        let from = self.to.other();
        loop {
            let (quiet, ends) =
                tokio::join!(self.control.read_quiet(from, old), self.control.read_ends(self.to, new));
            let (quiet, ends) = (quiet?, ends?);
            let mut settled = Vec::new();
            let mut open = None;
            for read in quiet {
                ensure!(
                    !read.transaction,
                    "{}-{} has an open transaction",
                    read.lead.physical,
                    read.lead.part.1
                );
                let (watermark, end) = ends.get(&read.lead.part).copied().unwrap_or((-1, -1));
                let at = format!("{}-{}", read.lead.part.0, read.lead.part.1);
                let route = route_of(routes, &read.lead.part.0).context("no route")?;
                let epoch = new.iter().find(|l| l.part == read.lead.part).map_or(-1, |l| l.epoch);
                let old_end = match cutover::quiet_end((read.lead.leader, read.lead.epoch), &read.reading) {
                    Ok(end) => end,
                    Err(why) => {
                        open = Some(anyhow!("{at}: {why}"));
                        continue;
                    }
                };
                let start = match route.mode {
                    LinkMode::Continue => {
                        let was = prepared.get(&read.lead.part).map_or(-1, |p| p.1);
                        cutover::start(was, watermark, end).with_context(|| at)?
                    }
                    LinkMode::Identity => {
                        let timeline = route.timeline(read.lead.part.1).context("no timeline")?;
                        let wanted = timeline.exclusive_to_virtual(timeline.current().index, old_end);
                        match cutover::caught_up(wanted, watermark, end) {
                            Ok(start) => start,
                            Err(why) => {
                                open = Some(anyhow!("{at}: {why}"));
                                continue;
                            }
                        }
                    }
                };
                settled.push((read, old_end, start, epoch));
            }
            let Some(why) = open else { return Ok(settled) };
            self.check_abort()?;
            tracing::debug!(%why, "not quiet yet");
            sleep(REREAD_PAUSE).await;
        }
    }

    fn carry(
        &mut self,
        routes: &[Arc<TopicRoute>],
        fenced: &[Fenced],
        readings: Vec<(Quiet, NativeOffset, NativeOffset, i32)>,
    ) -> anyhow::Result<Vec<Sealed>> {
        let now = self.control.runtime.now_ms();
        let mut sealed = Vec::new();
        self.view.partitions.clear();
        for (read, old_end, new_start, new_epoch) in readings {
            let part = read.lead.part.clone();
            let route = route_of(routes, &part.0).context("no route")?;
            let timeline = route.timeline(part.1).context("no timeline")?;
            let gate = fenced.iter().find(|f| f.part == part).context("no gate")?;
            let mut carry = lock(&gate.gate).carry().clone();
            carry.overlay_described(&read.producers, timeline.current().visit, now);
            carry.expire(now);
            carry.set_limit(self.control.runtime.config.limits.carry_entries_max);
            let seen = self.control.runtime.shared.seen.get(&part.0, part.1);
            let meeting = Meeting {
                to: self.to,
                old_end,
                new_start,
                old_epoch: read.lead.epoch,
                new_epoch,
                highest_epoch_seen: seen.map_or(-1, |s| s.epoch),
                identity: route.mode == LinkMode::Identity,
                at_ms: now,
            };
            let next = cutover::seal(timeline, &meeting).with_context(|| format!("{}-{}", part.0, part.1))?;
            self.view.partitions.push(BoundaryView {
                topic: part.0.to_string(),
                partition: part.1,
                virtual_boundary: next.current().virtual_start.0,
                old_native_end: old_end.0,
                new_native_start: new_start.0,
            });
            sealed.push(Sealed { part, old_end, timeline: Arc::new(next), carry });
        }
        Ok(sealed)
    }

    /// The commit point: one durable write.
    async fn seal(
        &mut self,
        routes: &[Arc<TopicRoute>],
        sealed: &[Sealed],
        fence: &mut Fence,
    ) -> anyhow::Result<()> {
        let control = Arc::clone(&self.control);
        let topics = stored_topics(&control, routes, sealed, self.to);
        let revision = Revision(control.state().revision.0 + 1);
        let kind = if self.to == ClusterSide::Target { "cutover" } else { "rollback" };
        let ledger = self.view.partitions.iter().map(|boundary| {
            let text = format!("{}-{} moved to the {}", boundary.topic, boundary.partition, self.to);
            let mut entry = control.entry(kind, Some(&self.view.id), text);
            entry.revision = revision.0;
            entry.from = Some(self.to.other().into());
            entry.to = Some(self.to.into());
            entry.boundary = Some(boundary.clone());
            entry
        });
        let seal = Seal {
            revision: revision.0,
            topics: topics.clone(),
            carry: sealed.iter().map(|s| (Arc::clone(&s.part.0), s.part.1, s.carry.clone())).collect(),
            ledger: ledger.collect(),
        };
        fence.disarm();
        match control.stored(move |store| Ok(store.seal(&seal))).await {
            Ok(Ok(())) => {}
            Ok(Err(SealWriteError::NotWritten(problem))) => {
                fence.armed = true;
                return Err(problem.context("SEAL cannot be stored"));
            }
            Ok(Err(SealWriteError::Unknown(problem))) => return Err(self.seal_unknown(problem)),
            Err(problem) => return Err(self.seal_unknown(problem)),
        }
        let mut state = control.state();
        state.revision = revision;
        state.topics.extend(topics);
        self.view.revision = Some(revision.0);
        Ok(())
    }

    fn release(&self, fenced: &[Fenced], sealed: Vec<Sealed>) {
        let now = self.control.runtime.now_ms();
        for sealed in sealed {
            if let Some(gate) = fenced.iter().find(|f| f.part == sealed.part) {
                lock(&gate.gate).release(now, sealed.timeline.current().index, sealed.carry);
            }
        }
        // Only now: a request whose partitions open one after the other would go out in as many pieces.
        self.control.runtime.sessions.wake_all();
    }

    /// The disk has not said whether SEAL is durable. Either owner may be the one that a restart finds, so neither may
    /// take a write: the gates stay fenced (DESIGN decision 10).
    fn seal_unknown(&self, problem: anyhow::Error) -> anyhow::Error {
        self.control.closed().unsealed.extend(self.topics.iter().cloned());
        let cause = format!("{}: {problem:#}", self.topics.join(", "));
        self.control.alarm(
            "seal-unknown",
            &self.view.id,
            cause,
            "look at the disk of state.directory, then restart crossover",
        );
        problem.context(
            "it is not known whether SEAL is durable; produce to these topics is refused until a restart",
        )
    }

    fn check_abort(&self) -> anyhow::Result<()> {
        ensure!(!self.control.is_abort_asked(), "an operator asked for it");
        Ok(())
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

fn route_of<'a>(routes: &'a [Arc<TopicRoute>], name: &str) -> Option<&'a Arc<TopicRoute>> {
    routes.iter().find(|r| *r.name == *name)
}

/// The idle side must stand where it was when it lost ownership (RULES R12).
pub(crate) fn check_idle(
    route: &TopicRoute,
    partition: i32,
    side: ClusterSide,
    end: i64,
) -> anyhow::Result<()> {
    let timeline = route.timeline(partition).context("no timeline")?;
    let left = timeline.eras().rfind(|era| era.side == side).and_then(|era| era.native_end);
    if let Some(left) = left.filter(|_| route.mode == LinkMode::Continue) {
        ensure!(
            left.0 == end,
            "{}-{partition}: the {side} ended at {} when it lost ownership and is at {end} now; somebody writes to it directly",
            route.name,
            left.0
        );
    }
    Ok(())
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
