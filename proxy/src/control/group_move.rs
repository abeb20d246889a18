//! Moves a consumer group's home to the other cluster (DESIGN decision 5).

use super::Control;
use super::client::request;
use super::mirror::is_passing;
use super::uncertain::{self, is_uncertain};
use crate::runtime::Runtime;
use anyhow::{Context, bail, ensure};
use crossover_admin_api::model::{OperationState, OperationView, Step};
use crossover_core::api::key;
use crossover_core::error_code as code;
use crossover_core::ids::{ClusterSide, Revision};
use crossover_core::schema::{Struct, Value};
use crossover_core::session::CommitMirror;
use crossover_core::timeline;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tracing::{error, warn};

/// How long members get to come to the rebalance.
const DRAIN_MAX: Duration = Duration::from_secs(15);
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long a rebalance is waited for, to see which topics a group reads.
const STABLE_MAX: Duration = Duration::from_secs(10);
const STABLE_LOOK: Duration = Duration::from_millis(100);

/// How long a coordinator may take to answer a commit.
const COMMITS_MAX: Duration = Duration::from_secs(3);
const COMMITS_LOOK: Duration = Duration::from_millis(2);

/// How the members of a group are coordinated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Classic,
    /// KIP-848
    Consumer,
}

/// `ConsumerGroupHeartbeatRequest.LEAVE_GROUP_MEMBER_EPOCH`
const LEAVES: i32 = -1;

/// A group whose commits wait in the proxy.
pub(crate) struct ClosedCommits {
    runtime: Arc<Runtime>,
    group: Arc<str>,
}

impl Drop for ClosedCommits {
    fn drop(&mut self) {
        self.runtime.shared.groups.open_commits(&self.group);
    }
}

/// A group whose members are told to come to a rebalance. Dropped, for whatever reason, they go on where its home is then.
struct Moving<'c> {
    control: &'c Control,
    group: &'c Arc<str>,
}

impl<'c> Moving<'c> {
    fn begin(control: &'c Control, group: &'c Arc<str>, to: ClusterSide) -> Moving<'c> {
        control.state().moving.insert(Arc::clone(group), to);
        control.publish();
        Moving { control, group }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let was_told = self.control.state().moving.remove(self.group).is_some();
        if was_told {
            self.control.publish();
        }
    }
}

impl Control {
    /// Moves one group; `view` is shown as it goes.
    pub(crate) async fn move_group(
        self: &Arc<Control>,
        group: &Arc<str>,
        to: ClusterSide,
        view: &mut OperationView,
    ) {
        let started = Instant::now();
        view.steps.push(Step { name: OperationState::Drain, at_ms: self.now(), took_ms: None });
        view.state = OperationState::Drain;
        self.show(view);
        let result = self.try_move(group, to, &view.id).await;
        if result.is_ok() {
            self.bring_offsets(group, to).await;
        }
        if let Some(step) = view.steps.last_mut() {
            step.took_ms = Some(started.elapsed().as_secs_f64() * 1000.0);
        }
        match result {
            Ok(revision) => {
                self.runtime.metrics.group_moves_done.add(1);
                view.revision = Some(revision.0);
                view.state = OperationState::Done;
            }
            Err(problem) => self.not_moved(group, &problem, view).await,
        }
        let name = view.state;
        view.finished_ms = Some(self.now());
        view.steps.push(Step { name, at_ms: self.now(), took_ms: None });
        self.show(view);
        self.step_event(view);
    }

    /// An aborted move, in the log, the metrics and the ledger as an aborted flip.
    async fn not_moved(&self, group: &Arc<str>, problem: &anyhow::Error, view: &mut OperationView) {
        let reason = format!("group {group}: {problem:#}");
        self.runtime.metrics.group_moves_aborted.add(1);
        warn!(operation = view.id, reason, "the group was not moved");
        let text = match is_uncertain(problem) {
            true => reason.clone(),
            false => format!("{reason}; it stays on the {}", self.runtime.snapshot().group_home(group)),
        };
        let mut entry = self.entry("abort", Some(&view.id), text);
        entry.to = Some(view.to);
        if let Err(problem) = self.stored(move |store| store.append(&entry)).await {
            error!("the abort of a group's move cannot be stored: {problem:#}");
        }
        view.state = OperationState::Aborted;
        view.reason = Some(reason);
        let remedy = match is_uncertain(problem) {
            true => uncertain::REMEDY,
            false => "the group stays at its home; remove the cause and repeat",
        };
        view.remedy = Some(remedy.to_owned());
    }

    /// Commits of transactions follow the members where no transaction has them; the next one that takes them in brings
    /// them to where it is.
    async fn bring_offsets(&self, group: &Arc<str>, to: ClusterSide) {
        let elsewhere =
            self.runtime.snapshot().groups.offset_homes.get(group).is_some_and(|home| *home != to);
        if elsewhere && let Err(problem) = self.move_offsets(group, to).await {
            warn!(%group, "its members have moved, the commits of its transactions not yet: {problem:#}");
        }
    }

    async fn try_move(&self, group: &Arc<str>, to: ClusterSide, operation: &str) -> anyhow::Result<Revision> {
        let from = to.other();
        let protocol = self.protocol(from, group).await?;
        self.coordinator(to, group).await?;
        let _moving = Moving::begin(self, group, to);
        // Commits of transactions stay where the transactions are (ADR 13).
        let commits_stay = self.runtime.snapshot().groups.offset_homes.contains_key(group);
        if !commits_stay {
            let known = self.stable_commits(from, group, STABLE_MAX).await;
            let known = known.context("its commits cannot be read")?;
            self.check_room(&known, to, &[])?;
        }
        if protocol == Protocol::Classic {
            self.enrol_members(from, group).await?;
        }
        let deadline = Instant::now() + DRAIN_MAX;
        while !self.is_drained(from, group, protocol).await? {
            ensure!(!self.is_abort_asked(), "an operator asked for it");
            ensure!(Instant::now() < deadline, "not all members came to the rebalance within {DRAIN_MAX:?}");
            sleep(DRAIN_LOOK).await;
        }
        let _closed = self.close_commits(group).await?;
        let _turn = self.commits.lock().await;
        let count = if commits_stay { 0 } else { self.copy_commits(group, to).await? };
        // Inside a flip it is passed already.
        let _ = self.pass_the_point_of_no_return();
        ensure!(!self.is_abort_asked(), "an operator asked for it");
        let revision = Revision(self.state().revision.0 + 1);
        let mut entry = self.entry(
            "group-home",
            Some(operation),
            format!("group {group} moved to the {to} with {count} commits"),
        );
        entry.revision = revision.0;
        entry.from = Some(from.into());
        entry.to = Some(to.into());
        let name = Arc::clone(group);
        let stored = self.stored(move |store| store.put_home(&name, to, revision.0, &entry)).await;
        self.home_stored(group, stored).context("the home cannot be stored")?;
        {
            let mut state = self.state();
            state.homes.insert(Arc::clone(group), to);
            state.moving.remove(group);
            state.revision = revision;
        }
        self.publish();
        if protocol == Protocol::Consumer
            && let Err(problem) = self.leave(from, group).await
        {
            warn!(%group, "its members are still known to the {from}, until their sessions end: {problem:#}");
        }
        Ok(revision)
    }

    /// Members are known by what they say, and since a start some may have said nothing yet.
    async fn enrol_members(&self, side: ClusterSide, group: &str) -> anyhow::Result<()> {
        let answer = self.describe_group(side, group).await?;
        for member in answer.structs("Groups").flat_map(|described| described.structs("Members")) {
            self.runtime.shared.groups.enrol(group, member.str("MemberId"), self.runtime.now_ms());
        }
        Ok(())
    }

    /// From now on, until what this returns is dropped, no commit is sent to the group's home; those that were are there.
    ///
    /// # Errors
    /// One is still not answered after [`COMMITS_MAX`].
    pub(crate) async fn close_commits(&self, group: &Arc<str>) -> anyhow::Result<ClosedCommits> {
        let closed = ClosedCommits { runtime: Arc::clone(&self.runtime), group: Arc::clone(group) };
        let registry = &self.runtime.shared.groups;
        registry.close_commits(group);
        let deadline = Instant::now() + COMMITS_MAX;
        while registry.has_sent_commits(group) {
            ensure!(Instant::now() < deadline, "a commit is not answered yet by its coordinator");
            sleep(COMMITS_LOOK).await;
        }
        Ok(closed)
    }

    /// Every living member has come to the rebalance, or owns nothing any more.
    async fn is_drained(
        &self,
        side: ClusterSide,
        group: &Arc<str>,
        protocol: Protocol,
    ) -> anyhow::Result<bool> {
        let registry = &self.runtime.shared.groups;
        if protocol == Protocol::Classic || !registry.is_drained(group, self.runtime.now_ms()) {
            return Ok(registry.is_drained(group, self.runtime.now_ms()));
        }
        let Some(described) = self.describe_consumers(side, group).await? else { return Ok(true) };
        let mut members = described.structs("Members");
        Ok(members.all(|member| {
            let assignment = member.opt_struct("Assignment");
            let owns = assignment.is_some_and(|a| !a.array("TopicPartitions").is_empty());
            !owns || registry.is_emptied(group, member.str("MemberId"))
        }))
    }

    /// Its members have left the old home: a group that has members takes no commits from us.
    async fn leave(&self, side: ClusterSide, group: &Arc<str>) -> anyhow::Result<()> {
        let Some(described) = self.describe_consumers(side, group).await? else { return Ok(()) };
        let at = self.coordinator(side, group).await?;
        for member in described.structs("Members") {
            let mut body = request(key::CONSUMER_GROUP_HEARTBEAT);
            body.set("GroupId", &**group);
            body.set("MemberId", member.str("MemberId"));
            body.set("InstanceId", member.opt_text("InstanceId").cloned());
            body.set("MemberEpoch", LEAVES);
            let answer = self.client.call(&at, key::CONSUMER_GROUP_HEARTBEAT, 1, &body).await?;
            let error = answer.i16("ErrorCode");
            ensure!([code::NONE, code::UNKNOWN_MEMBER_ID].contains(&error), "it answers error {error}");
        }
        Ok(())
    }

    async fn copy_commits(&self, group: &Arc<str>, to: ClusterSide) -> anyhow::Result<usize> {
        let commits = self.stable_commits(to.other(), group, STABLE_MAX).await;
        let commits = commits.context("its commits cannot be read")?;
        self.check_room(&commits, to, &[])?;
        let copy = self.store_commits(to, group, commits.iter().cloned());
        copy.await.context("its commits cannot be copied")?;
        let copied = self.read_commits(to, group).await.context("the copied commits cannot be read")?;
        ensure_copied(&commits, &copied)?;
        Ok(commits.len())
    }

    /// A position that has no place at the new home would be lost, and its consumer be reset.
    fn check_room(
        &self,
        commits: &[CommitMirror],
        to: ClusterSide,
        created: &[String],
    ) -> anyhow::Result<()> {
        let snapshot = self.runtime.snapshot();
        for commit in commits.iter().filter(|c| !created.iter().any(|t| **t == *c.topic)) {
            let Some(route) = snapshot.routes.topic(&commit.topic) else { continue };
            let there = self.topology(to).partition(route.physical(to), commit.partition).is_some();
            ensure!(
                there,
                "it has a commit for {}-{}, which does not exist on the {to}: create the topic there first",
                commit.topic,
                commit.partition
            );
        }
        Ok(())
    }

    /// What speaks against moving a group; `created` are topics that will exist by then.
    ///
    /// # Errors
    /// It does, or its coordinator does not answer.
    pub(crate) async fn check_group(
        &self,
        group: &str,
        to: ClusterSide,
        created: &[String],
    ) -> anyhow::Result<()> {
        self.protocol(to.other(), group).await?;
        if self.runtime.snapshot().groups.offset_homes.contains_key(group) {
            return Ok(());
        }
        let commits = self.stable_commits(to.other(), group, STABLE_MAX).await?;
        self.check_room(&commits, to, created)
    }

    /// The groups that move along with topics: those named, and with `all` those that read the topics. Then what is wrong
    /// with groups of which that could not be found out: they stay.
    pub(crate) async fn groups_of(
        &self,
        named: &[String],
        all: bool,
        topics: &[String],
        to: ClusterSide,
    ) -> (Vec<Arc<str>>, Vec<String>) {
        let snapshot = self.runtime.snapshot();
        let mut groups: BTreeSet<Arc<str>> = named.iter().map(|g| Arc::from(g.as_str())).collect();
        let mut unread = Vec::new();
        let seen = if all { self.runtime.shared.groups.names() } else { Vec::new() };
        let seen = seen.into_iter().filter(|group| snapshot.group_home(group) != to);
        for group in seen.collect::<BTreeSet<_>>() {
            match self.reads(to.other(), &group, topics).await {
                Ok(true) => drop(groups.insert(group)),
                Ok(false) => {}
                Err(problem) => unread.push(format!(
                    "group {group}: it cannot be found out whether it reads the topics, it stays at its home: {problem:#}"
                )),
            }
        }
        groups.retain(|group| snapshot.group_home(group) != to);
        unread.iter().for_each(|problem| warn!("{problem}"));
        (groups.into_iter().collect(), unread)
    }

    /// A group reads a topic when it has commits for it, or a member with partitions of it: one that has just begun has
    /// not committed yet. In a rebalance a coordinator does not tell what members have: it is waited for.
    async fn reads(&self, side: ClusterSide, group: &Arc<str>, topics: &[String]) -> anyhow::Result<bool> {
        let is_one = |name: &str| topics.iter().any(|topic| topic == name);
        let deadline = Instant::now() + STABLE_MAX;
        loop {
            let commits = self.runtime.snapshot().offset_home(group);
            if self
                .stable_commits(commits, group, STABLE_MAX)
                .await?
                .iter()
                .any(|commit| is_one(&commit.topic))
            {
                return Ok(true);
            }
            let answer = self.describe_group(side, group).await?;
            let rebalances = answer.structs("Groups").any(|d| d.str("GroupState").ends_with("Rebalance"));
            if !rebalances && let Some(described) = self.describe_consumers(side, group).await? {
                let assigned =
                    described.structs("Members").filter_map(|member| member.opt_struct("Assignment"));
                let mut topics = assigned.flat_map(|assignment| assignment.structs("TopicPartitions"));
                let snapshot = self.runtime.snapshot();
                return Ok(topics.any(|t| is_one(snapshot.routes.virtual_name(side, t.str("TopicName")))));
            }
            if !rebalances {
                let mut members = answer.structs("Groups").flat_map(|described| described.structs("Members"));
                return Ok(members
                    .any(|member| assigned(member.bytes("MemberAssignment")).iter().any(|t| is_one(t))));
            }
            ensure!(Instant::now() < deadline, "it still rebalances after {STABLE_MAX:?}");
            sleep(STABLE_LOOK).await;
        }
    }

    /// What a group's coordinator says of it.
    async fn describe_group(&self, side: ClusterSide, group: &str) -> anyhow::Result<Struct> {
        let mut body = request(key::DESCRIBE_GROUPS);
        body.set("Groups", Value::Array(Some(vec![Value::from(group)])));
        let answer = self.told(side, group, key::DESCRIBE_GROUPS, 5, &body).await?;
        let error = error_of(&answer);
        ensure!(
            [code::NONE, code::GROUP_ID_NOT_FOUND].contains(&error),
            "DescribeGroups answers error {error}"
        );
        Ok(answer)
    }

    /// Asks the coordinator of a group. One that has just been elected, or is none any more, has told nothing: it is asked
    /// again.
    async fn told(
        &self,
        side: ClusterSide,
        group: &str,
        api: i16,
        version_max: i16,
        body: &Struct,
    ) -> anyhow::Result<Struct> {
        let deadline = Instant::now() + COMMITS_MAX;
        loop {
            let at = self.coordinator(side, group).await?;
            let answer = self.client.call(&at, api, version_max, body).await?;
            if !is_passing(error_of(&answer)) || Instant::now() >= deadline {
                return Ok(answer);
            }
            sleep(DRAIN_LOOK).await;
        }
    }

    /// How the members of a group are coordinated.
    ///
    /// # Errors
    /// In a way that cannot be moved.
    async fn protocol(&self, side: ClusterSide, group: &str) -> anyhow::Result<Protocol> {
        let answer = self.describe_group(side, group).await?;
        let shares = answer.structs("Groups").any(|described| described.str("ProtocolType") == "share");
        ensure!(!shares, "it is a share group");
        if self.describe_consumers(side, group).await?.is_none() {
            return Ok(Protocol::Classic);
        }
        let there = self.topology(side.other()).api_ranges.range(key::CONSUMER_GROUP_HEARTBEAT);
        ensure!(there.is_some(), "it uses the KIP-848 protocol, which the {} does not speak", side.other());
        Ok(Protocol::Consumer)
    }

    /// What the coordinator says of a group of the consumer protocol (KIP-848); `None` where it is none.
    async fn describe_consumers(&self, side: ClusterSide, group: &str) -> anyhow::Result<Option<Struct>> {
        if self.topology(side).api_ranges.range(key::CONSUMER_GROUP_DESCRIBE).is_none() {
            return Ok(None);
        }
        let mut body = request(key::CONSUMER_GROUP_DESCRIBE);
        body.set("GroupIds", Value::Array(Some(vec![Value::from(group)])));
        let answer = self.told(side, group, key::CONSUMER_GROUP_DESCRIBE, 1, &body).await?;
        match error_of(&answer) {
            code::NONE => Ok(answer.structs("Groups").next().cloned()),
            // Of another protocol, or at a coordinator without this one.
            code::GROUP_ID_NOT_FOUND | code::UNSUPPORTED_VERSION => Ok(None),
            error => bail!("ConsumerGroupDescribe answers error {error}"),
        }
    }

    /// All commits of a group in one cluster, as virtual positions.
    pub(crate) async fn read_commits(
        &self,
        side: ClusterSide,
        group: &str,
    ) -> anyhow::Result<Vec<CommitMirror>> {
        let mut body = request(key::OFFSET_FETCH);
        body.set("GroupId", group);
        body.set("Topics", Value::Array(None));
        body.set("RequireStable", true);
        let at = self.coordinator(side, group).await?;
        let answer = self.client.call(&at, key::OFFSET_FETCH, 7, &body).await?;
        let error = answer.i16("ErrorCode");
        ensure!(error == 0, "OffsetFetch answers error {error}");
        let snapshot = self.runtime.snapshot();
        let mut all = Vec::new();
        for topic in answer.structs("Topics") {
            let name = snapshot.routes.virtual_name(side, topic.str("Name")).to_owned();
            let Some(route) = snapshot.routes.topic(&name) else { continue };
            for partition in topic.structs("Partitions") {
                let (index, native) = (partition.i32("PartitionIndex"), partition.i64("CommittedOffset"));
                if partition.i16("ErrorCode") == code::UNSTABLE_OFFSET_COMMIT {
                    return Err(anyhow::Error::new(Unstable).context(format!("{name}-{index}")));
                }
                let Some(timeline) = route.timeline(index).filter(|_| native >= 0) else { continue };
                ensure!(
                    partition.i16("ErrorCode") == 0,
                    "{name}-{index}: OffsetFetch answers error {}",
                    partition.i16("ErrorCode")
                );
                let resolved = timeline::resolve(timeline, side, native, partition.str("Metadata"));
                all.push(CommitMirror {
                    group: Arc::from(group),
                    topic: Arc::clone(&route.name),
                    partition: index,
                    position: resolved.position.0,
                    metadata: resolved.user_metadata,
                });
            }
        }
        Ok(all)
    }
}

/// Commits of the group are under way, or wait for the end of a transaction.
#[derive(Debug, thiserror::Error)]
#[error("a commit of it is pending, perhaps in a transaction")]
pub(crate) struct Unstable;

/// # Errors
/// A copy does not resolve to the position it is a copy of.
pub(crate) fn ensure_copied(commits: &[CommitMirror], copied: &[CommitMirror]) -> anyhow::Result<()> {
    for commit in commits {
        let (topic, partition) = (&commit.topic, commit.partition);
        let mut copied = copied.iter().filter(|c| (&c.topic, c.partition) == (topic, partition));
        let same = copied.any(|c| c.position == commit.position);
        ensure!(same, "{topic}-{partition}: the copy does not resolve to {}", commit.position);
    }
    Ok(())
}

/// The topics of a member's assignment (`ConsumerProtocolAssignment`); what cannot be read names none.
fn assigned(assignment: &[u8]) -> Vec<String> {
    let mut topics = Vec::new();
    let mut rest = assignment.get(2..).unwrap_or_default();
    let count = take(&mut rest, 4).map_or(0, number);
    for _ in 0..count {
        let Some(name) = take(&mut rest, 2).and_then(|length| take(&mut rest, number(length))) else { break };
        topics.push(String::from_utf8_lossy(name).into_owned());
        let partitions = take(&mut rest, 4).map_or(0, number);
        if partitions.checked_mul(4).and_then(|bytes| take(&mut rest, bytes)).is_none() {
            break;
        }
    }
    topics
}

fn take<'b>(rest: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    Some(head)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Of a description of one group.
fn error_of(described: &Struct) -> i16 {
    described.structs("Groups").next().map_or(code::NONE, |group| group.i16("ErrorCode"))
}

#[cfg(test)]
mod tests {
    use super::super::{backend, testing};
    use super::assigned;
    use crossover_admin_api::model::{OperationKind, OperationState};
    use crossover_core::api::key;
    use crossover_core::ids::ClusterSide;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_group_that_cannot_be_read_is_told_and_not_left_out_in_silence() {
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &[]);
        control.runtime.shared.groups.alive("g", "m", 1, None, control.runtime.now_ms());
        let topics = ["orders".to_owned()];
        let (groups, unread) = control.groups_of(&[], true, &topics, ClusterSide::Target).await;
        assert!(groups.is_empty() && unread.len() == 1 && unread[0].starts_with("group g: "), "{unread:?}");
        let at_home = control.groups_of(&[], true, &topics, ClusterSide::Source).await;
        assert_eq!(at_home, (Vec::new(), Vec::new()), "nothing is to be found out of one that need not move");
    }

    #[tokio::test]
    async fn an_aborted_move_is_in_the_ledger_and_in_the_metrics() {
        let control = testing::control([Some(&[]), Some(&[])], &[]);
        let (group, to) = (Arc::from("g"), ClusterSide::Target);
        let groups = vec!["g".to_owned()];
        let mut view =
            backend::new_operation(&control, "7", OperationKind::GroupMove, to, Vec::new(), groups);
        control.move_group(&group, to, &mut view).await;
        assert_eq!(view.state, OperationState::Aborted, "neither cluster has a broker");
        let ledger = control.stored(|store| store.ledger(0)).await.expect("read");
        let said: Vec<_> = ledger.iter().map(|e| (e.kind.as_str(), e.operation.as_deref())).collect();
        assert_eq!(said, [("abort", Some("7"))]);
        assert!(ledger[0].text.starts_with("group g: ") && ledger[0].text.ends_with("stays on the source"));
        let metrics = control.runtime.metrics.render();
        for line in ["crossover_group_moves_aborted_total 1", "crossover_group_moves_done_total 0"] {
            assert!(metrics.contains(line), "{metrics}");
        }
    }

    #[test]
    fn the_topics_of_an_assignment_are_read_and_garbage_names_none() {
        let one = [&[0, 6][..], b"orders", &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]].concat();
        let other = [&[0, 1][..], b"x", &[0, 0, 0, 0]].concat();
        let whole = [&[0, 1, 0, 0, 0, 2][..], &one, &other, &[0xff; 4]].concat();
        assert_eq!(assigned(&whole), ["orders", "x"]);
        for end in 0..whole.len() {
            assert!(assigned(&whole[..end]).len() <= 2, "cut at {end}");
        }
        assert!(assigned(&[]).is_empty());
        assert!(assigned(&[0xff; 40]).is_empty());
    }

    /// Behind a start of the proxy; the old home's coordinator has just been elected and still loads.
    #[tokio::test]
    async fn r20_a_coordinator_that_does_not_say_who_is_a_member_has_not_said_that_nobody_is() {
        const KEYS: &[i16] = &[key::FIND_COORDINATOR, key::DESCRIBE_GROUPS];
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &[]);
        for side in ClusterSide::BOTH {
            let port = testing::broker(KEYS, |_, _, answer| {
                let mut group = answer.new_element("Groups");
                group.set("GroupId", "g");
                group.set("ErrorCode", 14_i16);
                answer.push("Groups", group);
            })
            .await;
            testing::with_brokers(&control, side, &[(1, port)]);
        }
        let group: Arc<str> = Arc::from("g");
        // Its commits are those of transactions (exactly once).
        control.state().offset_homes.insert(Arc::clone(&group), ClusterSide::Source);
        control.publish();
        let moved = control.try_move(&group, ClusterSide::Target, "7").await;
        assert!(moved.is_err(), "moved at revision {moved:?} without its members");
    }

    /// KIP-848: the coordinator moves to another broker while members give up what they own.
    #[tokio::test]
    async fn r20_a_coordinator_that_is_none_any_more_has_not_said_that_all_members_own_nothing() {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        const KEYS: &[i16] = &[
            key::FIND_COORDINATOR,
            key::DESCRIBE_GROUPS,
            key::OFFSET_FETCH,
            key::OFFSET_COMMIT,
            key::CONSUMER_GROUP_DESCRIBE,
            key::CONSUMER_GROUP_HEARTBEAT,
        ];
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &[]);
        for side in ClusterSide::BOTH {
            let asked = AtomicU32::new(0);
            let port = testing::broker(KEYS, move |api, _, answer| {
                if api == key::CONSUMER_GROUP_DESCRIBE {
                    let mut group = answer.new_element("Groups");
                    group.set("GroupId", "g");
                    if asked.fetch_add(1, Relaxed) == 1 {
                        group.set("ErrorCode", 16_i16);
                    } else {
                        let mut member = group.new_element("Members");
                        member.set("MemberId", "m");
                        let mut assignment = member.new_element("Assignment");
                        let mut topic = assignment.new_element("TopicPartitions");
                        topic.set("TopicName", "orders");
                        topic.set("Partitions", vec![0]);
                        assignment.push("TopicPartitions", topic);
                        member.set("Assignment", crossover_core::schema::Value::from(assignment));
                        group.push("Members", member);
                    }
                    answer.push("Groups", group);
                }
            })
            .await;
            testing::with_brokers(&control, side, &[(1, port)]);
            let ranges = KEYS.iter().map(|key| (*key, (0, 1))).collect();
            let mut state = control.state();
            Arc::make_mut(&mut state.topologies[side.index()]).api_ranges =
                crossover_core::node::ApiRanges(ranges);
        }
        control.publish();
        let group: Arc<str> = Arc::from("g");
        let soon = std::time::Duration::from_millis(500);
        let moved = tokio::time::timeout(soon, control.try_move(&group, ClusterSide::Target, "7")).await;
        assert!(moved.is_err(), "{moved:?}, and a member owns orders-0");
    }
}
