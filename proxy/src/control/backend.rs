//! The operators' view: what the admin API asks.

use super::Control;
use super::flip::Flip;
use super::takeover::{self, TakenOver};
use super::unknown::Refusal;
use crossover_admin_api::model::{
    AbortRequest, BrokerView, ClusterView, EraView, Event, FlipRequest, GroupMoveRequest, GroupView, Health,
    Ledger, Mode, OperationKind, OperationState, OperationView, PartitionView, Plan, PlanRequest,
    ProducerView, RouteKind, RouteView, Routes, Side, Status, Step, TopicView, TransactionAbortRequest,
    TransactionView, TranslateQuery, Translation, Verdict,
};
use crossover_admin_api::{ApiError, Backend, ErrorCode, Reply};
use crossover_config::{Mode as ConfigMode, RoutePattern};
use crossover_core::ids::{ClusterSide, NativeOffset, VirtualNode, VirtualOffset};
use crossover_core::producer::gate::SessionId;
use crossover_core::route::{LinkMode, Snapshot, TopicRoute};
use crossover_core::timeline::Era;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::timeout;

/// [`Backend`] over the control tasks.
pub(crate) struct AdminBackend(pub(crate) Arc<Control>);

/// How long a translation waits for the end of the log.
const LOG_END_MAX: Duration = Duration::from_secs(2);
/// A companion that served nothing of a topic for this long is not in use for it, milliseconds.
const COMPANION_IN_USE_MS: i64 = 30_000;

impl Backend for AdminBackend {
    fn health(&self) -> Reply<'_, Health> {
        Box::pin(async { Ok(self.0.health()) })
    }

    fn status(&self) -> Reply<'_, Status> {
        Box::pin(async { Ok(self.0.status()) })
    }

    fn clusters(&self) -> Reply<'_, Vec<ClusterView>> {
        Box::pin(async { Ok(ClusterSide::BOTH.map(|side| self.0.cluster_view(side)).to_vec()) })
    }

    fn topics(&self) -> Reply<'_, Vec<TopicView>> {
        Box::pin(async { Ok(self.0.topic_views()) })
    }

    fn routes(&self) -> Reply<'_, Routes> {
        Box::pin(async { Ok(self.0.route_views()) })
    }

    fn groups(&self) -> Reply<'_, Vec<GroupView>> {
        Box::pin(async { Ok(self.0.group_views()) })
    }

    fn transactions(&self) -> Reply<'_, Vec<TransactionView>> {
        Box::pin(async { self.0.open_transactions().await.map_err(|e| ApiError::internal(format!("{e:#}"))) })
    }

    fn transaction_abort(&self, request: TransactionAbortRequest) -> Reply<'_, Vec<TransactionView>> {
        Box::pin(async move { abort_transaction(&self.0, &request.transactional_id).await })
    }

    fn plan(&self, request: PlanRequest) -> Reply<'_, Plan> {
        Box::pin(async move { Ok(self.0.plan(&request, true).await) })
    }

    fn cutover(&self, expected_revision: u64, request: FlipRequest) -> Reply<'_, OperationView> {
        Box::pin(async move { start(&self.0, expected_revision, request, ClusterSide::Target).await })
    }

    fn rollback(&self, expected_revision: u64, request: FlipRequest) -> Reply<'_, OperationView> {
        Box::pin(async move { start(&self.0, expected_revision, request, ClusterSide::Source).await })
    }

    fn abort(&self, request: AbortRequest) -> Reply<'_, OperationView> {
        Box::pin(async move { abort(&self.0, &request) })
    }

    fn group_move(&self, expected_revision: u64, request: GroupMoveRequest) -> Reply<'_, OperationView> {
        Box::pin(async move { move_group(&self.0, expected_revision, request).await })
    }

    fn operation(&self, id: String) -> Reply<'_, OperationView> {
        Box::pin(async move {
            let found = self.0.operation(&id);
            found.ok_or_else(|| ApiError::not_found(format!("There is no operation {id}."), "see the ledger"))
        })
    }

    fn ledger(&self, since: u64) -> Reply<'_, Ledger> {
        Box::pin(async move {
            let entries = self
                .0
                .stored(move |s| s.ledger(since))
                .await
                .map_err(|e| ApiError::internal(format!("{e:#}")))?;
            let next = entries.last().map_or(since, |e| e.sequence + 1);
            Ok(Ledger { entries, next })
        })
    }

    fn translate(&self, query: TranslateQuery) -> Reply<'_, Translation> {
        Box::pin(async move {
            let mut told = translate(&self.0.runtime.snapshot(), &query)?;
            told.explanation.push_str(&self.0.where_no_record_is(&told).await);
            Ok(told)
        })
    }

    fn metrics(&self) -> Reply<'_, String> {
        Box::pin(async { Ok(self.0.metrics()) })
    }

    fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

async fn abort_transaction(control: &Control, id: &str) -> Result<Vec<TransactionView>, ApiError> {
    let aborted =
        control.abort_transactions_of(id).await.map_err(|e| ApiError::internal(format!("{e:#}")))?;
    if aborted.is_empty() {
        return Err(ApiError::not_found(
            format!("No transaction of {id} is open."),
            "see `crossover transactions`",
        ));
    }
    Ok(aborted)
}

/// Checks and claims; the operation then runs on its own.
async fn start(
    control: &Arc<Control>,
    expected: u64,
    request: FlipRequest,
    to: ClusterSide,
) -> Result<OperationView, ApiError> {
    refuse_unknown(control, &request.groups).await?;
    let kind = if to == ClusterSide::Target { OperationKind::Cutover } else { OperationKind::Rollback };
    let id = claim(control, expected, kind)?;
    let view = new_operation(control, &id, kind, to, request.topics.clone(), request.groups.clone());
    let asks_for_groups = request.with_groups || !request.groups.is_empty();
    if control.are_there(&request.topics, to) && !asks_for_groups {
        return Ok(already_done(control, view));
    }
    control.show(&view);
    let (claimed, shown) = (Claimed { control: Arc::clone(control), id }, view.clone());
    tokio::spawn(async move { run_flip(&claimed.control, request, to, view).await });
    Ok(shown)
}

/// Without this a misspelt group would be moved: any group may be given a home before its first member comes.
async fn refuse_unknown(control: &Control, groups: &[String]) -> Result<(), ApiError> {
    match control.unknown_group(groups).await {
        Some(Refusal { problem, remedy }) => Err(ApiError::refused(sentence(&problem), remedy)),
        None => Ok(()),
    }
}

fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(rest).chain(['.']).collect()
}

/// The one place for an operation, given back however its task ends.
struct Claimed {
    control: Arc<Control>,
    id: String,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(mut view) = self.control.operation(&self.id).filter(|view| !view.state.is_final()) {
            view.reason = Some("the operation ended without a result".to_owned());
            view.remedy = Some("look into the log of Crossover and at `crossover status`".to_owned());
            finish(&self.control, &mut view, OperationState::Aborted);
        }
        self.control.unclaim();
    }
}

/// The last state of an operation.
fn finish(control: &Control, view: &mut OperationView, state: OperationState) {
    let now = control.now();
    view.state = state;
    view.finished_ms = Some(now);
    view.steps.push(Step { name: state, at_ms: now, took_ms: None });
    control.show(view);
    control.step_event(view);
}

async fn run_flip(control: &Arc<Control>, request: FlipRequest, to: ClusterSide, view: OperationView) {
    // A command that is repeated because groups stayed behind moves those.
    let view = match control.are_there(&request.topics, to) {
        true => view,
        false => flip_topics(control, &request, to, view).await,
    };
    if !view.state.is_final() {
        move_groups(control, &request, to, view).await;
    }
}

/// The checks, then the flip; the operation is at its end only where that did not succeed.
async fn flip_topics(
    control: &Arc<Control>,
    request: &FlipRequest,
    to: ClusterSide,
    mut view: OperationView,
) -> OperationView {
    let plan = PlanRequest {
        topics: request.topics.clone(),
        to: Some(to.into()),
        create: request.create,
        force: request.force,
        with_groups: request.with_groups,
        groups: request.groups.clone(),
    };
    let plan = control.plan(&plan, false).await;
    view.checks.clone_from(&plan.checks);
    if plan.refused {
        let reasons: Vec<_> = view.failed().map(|c| format!("{}: {}", c.name, c.detail)).collect();
        view.reason = Some(reasons.join("; "));
        let remedy = view.failed().next().map(|c| c.remedy.clone());
        view.remedy = remedy;
        finish(control, &mut view, OperationState::Aborted);
        return view;
    }
    let topics = request.topics.iter().map(|t| Arc::from(t.as_str())).collect();
    Flip::new(Arc::clone(control), to, topics, request.force, view).run().await
}

/// The groups that were asked for follow their topics.
async fn move_groups(
    control: &Arc<Control>,
    request: &FlipRequest,
    to: ClusterSide,
    mut view: OperationView,
) {
    let (groups, mut failed) =
        control.groups_of(&request.groups, request.with_groups, &request.topics, to).await;
    view.groups = groups.iter().map(ToString::to_string).collect();
    for group in groups {
        let id = format!("{}-{group}", view.id);
        let mut moved =
            new_operation(control, &id, OperationKind::GroupMove, to, Vec::new(), vec![group.to_string()]);
        control.move_group(&group, to, &mut moved).await;
        failed.extend(moved.reason);
    }
    if !failed.is_empty() {
        view.reason = Some(failed.join("; "));
        view.remedy =
            Some("the topics have moved; move these groups with `crossover groups move`".to_owned());
    }
    finish(control, &mut view, OperationState::Done);
}

fn claim(control: &Control, expected: u64, kind: OperationKind) -> Result<String, ApiError> {
    if control.is_taken_over() {
        return Err(ApiError::refused(sentence(&TakenOver.to_string()), takeover::REMEDY));
    }
    if !control.health().ready {
        return Err(ApiError::new(
            ErrorCode::NotReady,
            "The clusters have not been seen yet.",
            "wait for /ready",
        ));
    }
    let id = format!("{kind:?}-{}", control.now()).to_lowercase();
    control.claim(&id).map_err(|other| ApiError::operation_running(&other))?;
    // Read under the claim: nobody else changes it now.
    let found = control.state().revision.0;
    if expected != found {
        control.unclaim();
        return Err(ApiError::revision_mismatch(expected, found));
    }
    Ok(id)
}

pub(super) fn new_operation(
    control: &Control,
    id: &str,
    kind: OperationKind,
    to: ClusterSide,
    topics: Vec<String>,
    groups: Vec<String>,
) -> OperationView {
    OperationView {
        id: id.to_owned(),
        kind,
        topics,
        groups,
        to: to.into(),
        state: OperationState::Prepare,
        started_ms: control.now(),
        finished_ms: None,
        steps: Vec::new(),
        checks: Vec::new(),
        hold_ms: None,
        revision: None,
        reason: None,
        remedy: None,
        partitions: Vec::new(),
    }
}

fn abort(control: &Control, request: &AbortRequest) -> Result<OperationView, ApiError> {
    let running = control.running().filter(|id| request.operation.as_ref().is_none_or(|asked| asked == id));
    let view = running.and_then(|id| control.operation(&id));
    let view =
        view.ok_or_else(|| ApiError::not_found("No such operation is running.", "see `crossover status`"))?;
    if control.ask_abort() {
        return Ok(view);
    }
    Err(ApiError::new(
        ErrorCode::TooLate,
        format!("Operation {} is sealed.", view.id),
        "roll back when it is done",
    ))
}

async fn move_group(
    control: &Arc<Control>,
    expected: u64,
    request: GroupMoveRequest,
) -> Result<OperationView, ApiError> {
    refuse_unknown(control, std::slice::from_ref(&request.group)).await?;
    let to: ClusterSide = request.to.into();
    let id = claim(control, expected, OperationKind::GroupMove)?;
    let mut view =
        new_operation(control, &id, OperationKind::GroupMove, to, Vec::new(), vec![request.group.clone()]);
    let group: Arc<str> = Arc::from(request.group);
    if control.runtime.snapshot().group_home(&group) == to {
        return Ok(already_done(control, view));
    }
    control.show(&view);
    let (claimed, shown) = (Claimed { control: Arc::clone(control), id }, view.clone());
    tokio::spawn(async move { claimed.control.move_group(&group, to, &mut view).await });
    Ok(shown)
}

/// Ends an operation whose result holds already.
fn already_done(control: &Control, mut view: OperationView) -> OperationView {
    view.state = OperationState::Done;
    view.finished_ms = Some(control.now());
    control.show(&view);
    control.unclaim();
    view
}

fn translate(snapshot: &Snapshot, query: &TranslateQuery) -> Result<Translation, ApiError> {
    let missing = || {
        ApiError::not_found(
            format!("There is no partition {}-{}.", query.topic, query.partition),
            "see `crossover status`",
        )
    };
    let route = snapshot.routes.topic(&query.topic).ok_or_else(missing)?;
    let count =
        snapshot.topology(route.owner).topic(route.physical(route.owner)).map_or(0, |t| t.partitions.len());
    let timeline = route
        .timeline(query.partition)
        .filter(|_| usize::try_from(query.partition).is_ok_and(|p| p < count))
        .ok_or_else(missing)?;
    let mut out = Translation {
        topic: query.topic.clone(),
        partition: query.partition,
        virtual_offset: None,
        side: query.side,
        native_offset: None,
        era: None,
        explanation: String::new(),
    };
    match query.side {
        None => {
            let place = timeline.locate(VirtualOffset(query.offset));
            out.virtual_offset = Some(query.offset);
            out.side = Some(place.side.into());
            out.native_offset = Some(place.native.0);
            out.era = Some(place.era);
            out.explanation = format!(
                "virtual offset {} lies in era {} and is read at {} on the {}",
                query.offset, place.era, place.native.0, place.side
            );
        }
        Some(side) => {
            out.native_offset = Some(query.offset);
            match timeline.record_on_side(side.into(), NativeOffset(query.offset)) {
                Some((era, offset)) => {
                    out.virtual_offset = Some(offset.0);
                    out.era = Some(era);
                    out.explanation = format!(
                        "the record at {} on the {side} is virtual offset {} in era {era}",
                        query.offset, offset.0
                    );
                }
                None => {
                    out.explanation = format!(
                        "offset {} of the {side} belongs to no era: a record there is not in the virtual log",
                        query.offset
                    )
                }
            }
        }
    }
    Ok(out)
}

impl Control {
    /// What is to be added to a translation where there is no record, or not any more: any offset has its place in an era.
    async fn where_no_record_is(&self, told: &Translation) -> String {
        let (Some(side), Some(native), Some(virtual_offset)) =
            (told.side, told.native_offset, told.virtual_offset)
        else {
            return String::new();
        };
        let snapshot = self.runtime.snapshot();
        let route = snapshot.routes.topic(&told.topic);
        let Some((route, timeline)) = route.and_then(|route| Some((route, route.timeline(told.partition)?)))
        else {
            return String::new();
        };
        let floor = timeline.floor().0;
        if virtual_offset < floor {
            return format!("; the record was deleted: the virtual log starts at {floor} or behind it");
        }
        let leads = self.leads(std::slice::from_ref(route), side.into());
        let mut leads = leads.unwrap_or_default();
        leads.retain(|lead| lead.part.1 == told.partition);
        let read = async {
            Ok((self.read_starts(side.into(), &leads).await?, self.read_ends(side.into(), &leads).await?))
        };
        let read: Option<anyhow::Result<_>> = timeout(LOG_END_MAX, read).await.ok();
        let bounds = read
            .and_then(Result::ok)
            .and_then(|(starts, ends)| Some((starts.into_values().next()?, ends.into_values().next()?.1)));
        // What another side has of an era is cut by its end.
        let goes_on = Some(timeline.current().index) == told.era;
        match bounds {
            Some((start, _)) if native < start => {
                format!("; the record is not there any more: the log of the {side} starts at {start}")
            }
            Some((_, end)) if native >= end && goes_on => {
                format!("; no record is there yet: the log of the {side} ends at {end}")
            }
            Some(_) => String::new(),
            None => format!(
                "; whether the record is there is not known: the {side} does not tell what its log holds"
            ),
        }
    }

    /// Whether nothing is to be done for the topics. Where the disk has not confirmed a SEAL, nobody knows.
    pub(crate) fn are_there(&self, topics: &[String], to: ClusterSide) -> bool {
        let (snapshot, closed) = (self.runtime.snapshot(), self.closed());
        let owned = |topic: &str| snapshot.routes.topic(topic).is_some_and(|route| route.owner == to);
        topics.iter().all(|topic| owned(topic) && !closed.unsealed.contains(topic.as_str()))
    }

    fn health(&self) -> Health {
        let mut reasons = Vec::new();
        let snapshot = self.runtime.snapshot();
        let any = ClusterSide::BOTH.iter().any(|s| snapshot.topology(*s).reachable);
        for side in ClusterSide::BOTH.into_iter().filter(|s| !snapshot.topology(*s).reachable) {
            reasons.push(format!("the {side} is not reachable"));
        }
        let serving = self.is_serving();
        if !serving {
            reasons.push("clients cannot connect yet".to_owned());
        }
        if snapshot.taken_over {
            reasons.push(TakenOver.to_string());
        }
        Health { live: true, ready: any && serving && !snapshot.taken_over, reasons }
    }

    fn status(&self) -> Status {
        let topics = self.topic_views();
        let groups = self.group_views();
        let producers = self.producers_not_moved();
        let verdict = self.may_stop_source(&topics, &groups, &producers);
        // Before the others: its lock would be held while they are made.
        let revision = self.state().revision.0;
        Status {
            revision,
            ready: self.health().ready,
            operation: self.running().and_then(|id| self.operation(&id)),
            last_operation: self.last_operation(),
            topics,
            groups,
            producers_not_moved: producers,
            may_stop_source: verdict,
            alarms: self.alarms(),
        }
    }

    fn may_stop_source(
        &self,
        topics: &[TopicView],
        groups: &[GroupView],
        producers: &[ProducerView],
    ) -> Verdict {
        let mut reasons = Vec::new();
        for topic in topics {
            if topic.owner == Side::Source {
                reasons.push(format!("topic {} is owned by the source", topic.name));
            }
            if topic.companions > 0 {
                reasons.push(format!(
                    "topic {}: {} connections still reach it through companions",
                    topic.name, topic.companions
                ));
            }
            if topic.partitions.is_empty() {
                reasons.push(format!(
                    "topic {}: its partitions are not known, the {} has not been seen since the start",
                    topic.name, topic.owner
                ));
            }
            let history = topic.partitions.iter().flat_map(|p| &p.eras).any(|e| {
                e.side == Side::Source && e.retained != Some(false) && e.native_end != Some(e.native_start)
            });
            if topic.owner == Side::Target && history {
                reasons.push(format!(
                    "topic {}: history of an era on the source may still be retained there",
                    topic.name
                ));
            }
        }
        if !producers.is_empty() {
            reasons.push(format!("{} producer connections have not moved to the target", producers.len()));
        }
        for group in groups.iter().filter(|g| g.commits == Side::Source && g.home == Side::Target) {
            reasons.push(format!("the commits of group {} are still on the source", group.group));
        }
        let snapshot = self.runtime.snapshot();
        if snapshot.routes.rules.default_side == ClusterSide::Source {
            let here = groups.iter().filter(|g| g.home == Side::Source).count();
            reasons.push(format!(
                "groups that come are at home on the source by default (routing.default_side); {here} of those that are known are there"
            ));
        }
        Verdict { answer: reasons.is_empty(), reasons }
    }

    fn producers_not_moved(&self) -> Vec<ProducerView> {
        let snapshot = self.runtime.snapshot();
        let mut all = Vec::new();
        for route in snapshot.routes.topics.values().filter(|r| r.is_moved()) {
            for session in self.runtime.shared.traffic.of_topic(&route.name).companion_produce.into_keys() {
                if let Some(client) = self.client_of(session, route.owner) {
                    all.push(ProducerView { topic: route.name.to_string(), ..client });
                }
            }
        }
        all
    }

    /// A session that is at a node of the other side than `owner`.
    fn client_of(&self, session: SessionId, owner: ClusterSide) -> Option<ProducerView> {
        let handle = self.runtime.sessions.get(session).filter(|h| h.node.side != owner)?;
        let client = handle.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(ProducerView {
            topic: String::new(),
            client_id: client.client_id.clone(),
            software: format!("{} {}", client.software, client.software_version).trim().to_owned(),
            peer: client.peer_host.clone(),
        })
    }

    fn topic_views(&self) -> Vec<TopicView> {
        let snapshot = self.runtime.snapshot();
        let shown = snapshot.routes.topics.values().filter(|r| {
            let owner = snapshot.topology(r.owner).topic(r.physical(r.owner));
            !owner.is_some_and(|t| t.internal)
        });
        let mut views: Vec<_> = shown.map(|route| self.topic_view(&snapshot, route)).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    fn topic_view(&self, snapshot: &Snapshot, route: &TopicRoute) -> TopicView {
        let traffic = self.runtime.shared.traffic.of_topic(&route.name);
        let away =
            |id: &SessionId| self.runtime.sessions.get(*id).is_some_and(|h| h.node.side != route.owner);
        let producers = traffic.companion_produce.keys().filter(|id| away(id)).count();
        let recent = self.runtime.now_ms() - COMPANION_IN_USE_MS;
        let all: BTreeSet<_> = traffic
            .companion_produce
            .iter()
            .chain(&traffic.companion_fetch)
            .filter(|(id, at)| **at >= recent && away(id))
            .map(|(id, _)| id)
            .collect();
        let count = snapshot
            .topology(route.owner)
            .topic(route.physical(route.owner))
            .map_or(0, |t| t.partitions.len());
        let partitions = (0..count).filter_map(|index| {
            let partition = i32::try_from(index).ok()?;
            let starts = self.runtime.shared.log_starts.get(&route.name, partition);
            let timeline = route.timeline(partition)?;
            let eras = timeline.eras().map(|era| era_view(era, starts[era.side.index()])).collect();
            Some(PartitionView { partition, eras })
        });
        TopicView {
            name: route.name.to_string(),
            owner: route.owner.into(),
            mode: if route.mode == LinkMode::Identity { Mode::Identity } else { Mode::Continue },
            source_topic: route.physical(ClusterSide::Source).to_string(),
            target_topic: route.physical(ClusterSide::Target).to_string(),
            companions: u32::try_from(all.len()).unwrap_or(u32::MAX),
            producers_not_moved: u32::try_from(producers).unwrap_or(u32::MAX),
            frozen: route.frozen.as_ref().map(ToString::to_string),
            unknown_partitions: self.unknown_partitions(&route.name),
            partitions: partitions.collect(),
        }
    }

    /// RULES R2.
    fn unknown_partitions(&self, topic: &str) -> Vec<i32> {
        let grace = i64::try_from(self.runtime.config.timeouts.loss_grace.as_millis()).unwrap_or(i64::MAX);
        let since = self.runtime.now_ms().saturating_sub(grace);
        let gates = self.runtime.shared.gates.of_topic(topic).into_iter();
        let unknown = gates.filter(|(_, gate)| {
            crossover_core::session::lock(gate).unknown_since_ms().is_some_and(|at| at > since)
        });
        unknown.map(|(partition, _)| partition).collect()
    }

    fn group_views(&self) -> Vec<GroupView> {
        let snapshot = self.runtime.snapshot();
        let view = |group: Arc<str>| GroupView {
            home: snapshot.group_home(&group).into(),
            commits: snapshot.offset_home(&group).into(),
            tagged_commits: self.runtime.shared.groups.tagged(&group),
            group: group.to_string(),
        };
        self.known_groups().into_iter().map(view).collect()
    }

    fn cluster_view(&self, side: ClusterSide) -> ClusterView {
        let snapshot = self.runtime.snapshot();
        let topology = snapshot.topology(side);
        let broker = |(id, address): (&i32, &crossover_core::node::BrokerAddress)| {
            let node = VirtualNode::new(side, *id);
            let port = snapshot.nodes.port(node);
            BrokerView {
                id: *id,
                virtual_id: node.to_virtual(),
                address: format!("{}:{}", address.host, address.port),
                virtual_address: port.map(|p| format!("{}:{p}", snapshot.nodes.host)).unwrap_or_default(),
                reachable: topology.reachable,
            }
        };
        ClusterView {
            side: side.into(),
            cluster_id: Some(topology.cluster_id.clone()).filter(|id| !id.is_empty()),
            reachable: topology.reachable,
            controller: topology.controller,
            bootstrap: self.cluster_config(side).bootstrap.iter().map(ToString::to_string).collect(),
            brokers: topology.brokers.iter().map(broker).collect(),
            problem: self.problem_of(side),
        }
    }

    fn route_views(&self) -> Routes {
        let routing = &self.runtime.config.routing;
        let mut routes: Vec<RouteView> = routing
            .routes
            .iter()
            .map(|rule| {
                let (kind, pattern, source, target) = match &rule.pattern {
                    RoutePattern::Exact { topic, source_topic, target_topic } => (
                        RouteKind::Exact,
                        topic.clone(),
                        Some(source_topic.clone()),
                        Some(target_topic.clone()),
                    ),
                    RoutePattern::Prefix(prefix) => (RouteKind::Prefix, prefix.clone(), None, None),
                };
                let mode = if rule.mode == ConfigMode::Identity { Mode::Identity } else { Mode::Continue };
                RouteView {
                    kind,
                    pattern,
                    side: super::core_side(rule.side).into(),
                    mode,
                    source_topic: source,
                    target_topic: target,
                }
            })
            .collect();
        let side = super::core_side(routing.default_side).into();
        routes.push(RouteView {
            kind: RouteKind::Default,
            pattern: String::new(),
            side,
            mode: Mode::Continue,
            source_topic: None,
            target_topic: None,
        });
        Routes { revision: self.state().revision.0, routes }
    }

    fn metrics(&self) -> String {
        use std::fmt::Write as _;
        let mut out = self.runtime.metrics.render();
        let frozen = self.runtime.snapshot().routes.topics.values().filter(|r| r.frozen.is_some()).count();
        let gauges = [
            (
                "frozen_routes",
                "Topics whose requests get retriable errors until an operator decides.",
                frozen,
            ),
            ("connections_open", "Client connections open now.", self.runtime.sessions.len()),
            ("alarms", "Alarms raised since the start whose cause may still hold.", self.alarms().len()),
        ];
        for (name, help, value) in gauges {
            let _ = write!(
                out,
                "# HELP crossover_{name} {help}\n# TYPE crossover_{name} gauge\ncrossover_{name} {value}\n"
            );
        }
        let snapshot = self.runtime.snapshot();
        let _ = write!(
            out,
            "# HELP crossover_cluster_reachable Whether a broker of the cluster answers.\n# TYPE crossover_cluster_reachable gauge\n"
        );
        for side in ClusterSide::BOTH {
            let up = u8::from(snapshot.topology(side).reachable);
            let _ = writeln!(out, "crossover_cluster_reachable{{side=\"{side}\"}} {up}");
        }
        let _ = write!(
            out,
            "# HELP crossover_revision The revision of the route table.\n# TYPE crossover_revision gauge\ncrossover_revision {}\n",
            snapshot.revision.0
        );
        out
    }
}

fn era_view(era: &Era, log_start: Option<NativeOffset>) -> EraView {
    let retained = match (log_start, era.native_end) {
        (Some(start), Some(end)) => Some(start < end),
        (_, None) => Some(true),
        (None, Some(_)) => None,
    };
    EraView {
        index: era.index,
        side: era.side.into(),
        virtual_start: era.virtual_start.0,
        native_start: era.native_start.0,
        native_end: era.native_end.map(|e| e.0),
        epoch_base: era.epoch_base,
        sealed_at_ms: u64::try_from(era.sealed_at_ms).ok().filter(|ms| *ms > 0),
        retained,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::store::testing::Disk;
    use crossover_core::ids::TopicId;
    use crossover_core::node::{PartitionInfo, TopicInfo, Topology};

    /// The source has the topic.
    fn with_topic(control: &Control, name: &str) {
        let mut topology = Topology::unknown(ClusterSide::Source);
        topology.reachable = true;
        let partition = PartitionInfo { leader: 1, epoch: 0, replicas: vec![1], isr: vec![1] };
        let (name, id): (Arc<str>, _) = (Arc::from(name), TopicId([1; 16]));
        let info = TopicInfo { name: Arc::clone(&name), id, internal: false, partitions: vec![partition] };
        topology.topics.insert(name, Arc::new(info));
        control.state().topologies[0] = Arc::new(topology);
        control.publish();
    }

    #[tokio::test]
    async fn r13_a_topic_whose_owner_nobody_knows_is_nowhere_already() {
        let control = testing::restored(&Disk::default());
        with_topic(&control, "orders");
        let topics = ["orders".to_owned()];
        assert!(control.are_there(&topics, ClusterSide::Source));
        control.closed().unsealed.insert(Arc::from("orders"));
        assert!(!control.are_there(&topics, ClusterSide::Source));
        let request =
            PlanRequest { topics: topics.to_vec(), to: Some(Side::Source), ..PlanRequest::default() };
        let plan = control.plan(&request, true).await;
        let told = plan.checks.iter().any(|check| check.detail.contains("SEAL whose outcome is unknown"));
        assert!(plan.refused && told, "{:?}", plan.checks);
    }

    #[tokio::test]
    async fn an_operation_is_known_as_long_as_it_runs_however_many_groups_follow() {
        let control = testing::restored(&Disk::default());
        let new = |id: &str| {
            new_operation(&control, id, OperationKind::Cutover, ClusterSide::Target, Vec::new(), Vec::new())
        };
        control.claim("cutover").unwrap();
        control.show(&new("cutover"));
        for number in 0..1_000 {
            let mut group = new(&format!("cutover-{number}"));
            finish(&control, &mut group, OperationState::Done);
        }
        assert!(abort(&control, &AbortRequest::default()).is_ok(), "it runs");
        assert!(control.operation("cutover-0").is_none() && control.operation("cutover-999").is_some());
    }

    #[test]
    fn of_a_topic_whose_owner_was_not_seen_nothing_is_said_that_is_not_known() {
        let control = testing::control([Some(&["orders"]), None], &["orders"]);
        let status = control.status();
        assert!(status.topics[0].partitions.is_empty());
        let why = "topic orders: its partitions are not known, the target has not been seen since the start";
        assert!(status.may_stop_source.reasons.iter().any(|reason| reason == why), "{status:?}");
        let seen = testing::control([Some(&["orders"]), Some(&["orders"])], &["orders"]).status();
        assert_eq!(seen.topics[0].partitions.len(), 1);
        assert!(seen.may_stop_source.reasons.iter().all(|reason| reason != why), "{seen:?}");
    }
}
