//! Copies commits to the cluster that is not the group's home, latest wins, about once a second (protocol §4.4).

use super::Control;
use super::boundary::Part;
use super::client::{Address, request};
use crate::runtime::ControlEvent;
use crate::upstream::UpstreamEvent;
use anyhow::bail;
use crossover_core::api::common::CoordinatorType;
use crossover_core::api::key;
use crossover_core::error_code as code;
use crossover_core::ids::{ClusterSide, VirtualOffset};
use crossover_core::schema::{Struct, Value};
use crossover_core::session::{CommitMirror, ErrandDone};
use crossover_core::timeline;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{MissedTickBehavior, interval, timeout};

const EVERY: Duration = Duration::from_secs(1);
/// How long a tool waits for the copy of what it has committed.
const SYNCHRONOUS_MAX: Duration = Duration::from_secs(3);
/// `offset.metadata.max.bytes` of a broker with defaults.
pub(crate) const METADATA_MAX: usize = 4096;
/// Commits that wait for one flush at most; the rest comes with the groups' next commits.
const PENDING_MAX: usize = 200_000;

type Commits = BTreeMap<(Arc<str>, i32), Waiting>;

/// A commit that is to be copied, and who waits for a word of it. Those who wait for an earlier one wait for this one: the
/// latest stands for all before it.
#[derive(Debug)]
struct Waiting {
    commit: CommitMirror,
    asked: Vec<oneshot::Sender<bool>>,
}

impl Waiting {
    /// Somebody still waits to be told.
    fn is_awaited(&self) -> bool {
        self.asked.iter().any(|asker| !asker.is_closed())
    }

    fn tell(&mut self, is_copied: bool) {
        for asker in self.asked.drain(..) {
            // Who does not wait any more needs no word.
            let _ = asker.send(is_copied);
        }
    }
}

/// Commits that are still to be copied, by group.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    groups: HashMap<Arc<str>, Commits>,
    count: usize,
}

impl Pending {
    /// Takes a commit in, in the place of an earlier one of its partition. False: there is no room for it.
    fn add(&mut self, commit: CommitMirror) -> bool {
        self.put(Waiting { commit, asked: Vec::new() })
    }

    fn put(&mut self, mut waiting: Waiting) -> bool {
        let at = (Arc::clone(&waiting.commit.topic), waiting.commit.partition);
        let earlier = self.groups.get_mut(&waiting.commit.group).and_then(|commits| commits.get_mut(&at));
        if let Some(earlier) = earlier {
            waiting.asked.append(&mut earlier.asked);
            *earlier = waiting;
            return true;
        }
        if self.count >= PENDING_MAX {
            return false;
        }
        self.count += 1;
        self.groups.entry(Arc::clone(&waiting.commit.group)).or_default().insert(at, waiting);
        true
    }

    /// False where there was no room for all.
    fn add_all(&mut self, commits: impl IntoIterator<Item = CommitMirror>) -> bool {
        let mut all = true;
        for commit in commits {
            all &= self.add(commit);
        }
        all
    }

    /// As [`Pending::add_all`]; each is told whether it was copied at the next attempt. One without room is told nothing.
    fn add_asked(&mut self, commits: &[CommitMirror]) -> Vec<oneshot::Receiver<bool>> {
        let asked = commits.iter().cloned().map(|commit| {
            let (asker, told) = oneshot::channel();
            self.put(Waiting { commit, asked: vec![asker] });
            told
        });
        asked.collect()
    }

    fn take(&mut self, group: &str) -> Option<Commits> {
        let taken = self.groups.remove(group)?;
        self.count -= taken.len();
        Some(taken)
    }

    /// Commits that could not be copied now, which those who wait are told. A later one of the same partition has taken their
    /// place.
    fn put_back(&mut self, commits: Commits) {
        for (at, mut waiting) in commits {
            waiting.tell(false);
            let newer = self.groups.get(&waiting.commit.group);
            if newer.is_none_or(|newer| !newer.contains_key(&at)) {
                self.put(waiting);
            }
        }
    }

    /// Drops what is still to be copied of a group.
    pub(crate) fn forget(&mut self, group: &str, partitions: Option<&[Part]>) {
        if let Some(mut commits) = self.take(group) {
            commits.retain(|at, _| partitions.is_some_and(|deleted| !deleted.contains(at)));
            for waiting in commits.into_values() {
                self.put(waiting);
            }
        }
    }

    /// Drops what is still to be copied of a topic.
    pub(crate) fn forget_topic(&mut self, topic: &str) {
        for group in self.groups.keys().cloned().collect::<Vec<_>>() {
            let Some(mut commits) = self.take(&group) else { continue };
            commits.retain(|(t, _), _| **t != *topic);
            for waiting in commits.into_values() {
                self.put(waiting);
            }
        }
    }
}

/// Why a commit was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unstored {
    /// The cluster has no such partition, as far as is known, or has not told what became of it.
    NoPlace,
    /// The coordinator's final no.
    Refused(i16),
    /// Worth another attempt.
    Passing(i16),
}

/// Takes what connections tell the control tasks.
pub(crate) async fn run(control: Arc<Control>, mut events: mpsc::Receiver<ControlEvent>) {
    // One at a time: a slow cluster must not gather tasks, nor an old commit follow a newer one.
    let mut flushing: Option<JoinHandle<()>> = None;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => return,
                Some(ControlEvent::StrayAppend { topic, partition, side, native }) => {
                    let cause = format!("the {side} acknowledged a batch of {topic}-{partition} at {} of its log, outside of the era that it was sent in", native.0);
                    let remedy = "the records are in no client's view: read them from that offset with a client of that cluster; compare its log end with the boundaries that `crossover status --partitions` shows";
                    control.alarm("stray-append", &format!("{topic}-{partition}"), cause, remedy);
                }
                Some(ControlEvent::Refresh(side)) => control.refresh[side.index()].notify_one(),
                Some(ControlEvent::Mirror(commits)) => {
                    if !control.pending_mirrors().add_all(commits) {
                        tracing::warn!(most = PENDING_MAX, "more commits wait to be copied than there is room for");
                    }
                }
                Some(ControlEvent::Errand { ticket, errand, asker }) => {
                    let running = tokio::spawn(control.begin_errand(errand));
                    tokio::spawn(async move {
                        let done = done(running.await);
                        // A connection that has ended does not wait for it any more.
                        let _ = asker.send(UpstreamEvent::ErrandDone(ticket, done)).await;
                    });
                }
            },
            _ = tick.tick() => {
                let groups: Vec<Arc<str>> = control.pending_mirrors().groups.keys().cloned().collect();
                if !groups.is_empty() && flushing.as_ref().is_none_or(JoinHandle::is_finished) {
                    let control = Arc::clone(&control);
                    flushing = Some(tokio::spawn(async move {
                        control.flush_mirrors(&groups).await;
                    }));
                }
            },
        }
    }
}

/// What a connection is told of its errand. It waits for a word also where there will be no result.
fn done(ended: Result<anyhow::Result<bool>, JoinError>) -> ErrandDone {
    ended
        .map_err(|end| format!("the control task ended early: {end}"))?
        .map_err(|problem| format!("{problem:#}"))
}

impl Control {
    /// Copies what tools have committed, and what is pending with it, before they are told that it is done (RULES R28).
    /// Waits no longer than [`SYNCHRONOUS_MAX`]: what a side cannot take now is copied later. False where that is so for
    /// one of these. They are pending when this returns.
    pub(crate) fn mirror_now(
        self: &Arc<Self>,
        commits: &[CommitMirror],
    ) -> impl Future<Output = bool> + Send + use<> {
        let asked = self.pending_mirrors().add_asked(commits);
        let groups: BTreeSet<Arc<str>> = commits.iter().map(|commit| Arc::clone(&commit.group)).collect();
        let control = Arc::clone(self);
        async move {
            let groups: Vec<Arc<str>> = groups.into_iter().collect();
            tokio::spawn(async move { control.flush_mirrors(&groups).await });
            let all = async {
                for told in asked {
                    if told.await != Ok(true) {
                        return false;
                    }
                }
                true
            };
            timeout(SYNCHRONOUS_MAX, all).await.unwrap_or(false)
        }
    }

    /// Copies what is pending of these groups.
    async fn flush_mirrors(&self, groups: &[Arc<str>]) {
        for group in groups {
            let _turn = self.commits.lock().await;
            // Taken under the lock: what was deleted before its turn is not there any more (RULES R27).
            let Some(mut commits) = self.pending_mirrors().take(group) else { continue };
            let snapshot = self.runtime.snapshot();
            let side = snapshot.group_home(group).other();
            // While a group is being moved, nobody knows yet which side will be the other one, unless its commits have a
            // home of their own. What cannot be copied now may be the group's last commit: it is kept, for no other one
            // may follow.
            let is_undecided =
                snapshot.groups.moving.contains_key(group) && snapshot.offset_home(group) != side;
            if is_undecided || !snapshot.topology(side).reachable {
                self.pending_mirrors().put_back(commits);
                continue;
            }
            // The copy is what is read: who is told that it was not made commits again, or has committed otherwise by then. So
            // nothing is made up for later.
            let is_read = snapshot.offset_home(group) == side;
            if is_read {
                commits.retain(|_, waiting| waiting.is_awaited());
            }
            let wanted = commits.values().map(|waiting| waiting.commit.clone());
            let stored = self.try_store(side, group, wanted).await;
            if let Err(problem) = &stored {
                tracing::debug!(%group, "mirrored commits were not stored: {problem:#}");
            }
            commits.retain(|at, waiting| {
                let problem = stored.as_ref().map_or(Some(&Unstored::Passing(code::NONE)), |all| all.get(at));
                waiting.tell(problem.is_none());
                matches!(problem, Some(Unstored::Passing(_))) && !is_read
            });
            self.pending_mirrors().put_back(commits);
        }
    }

    /// Stores virtual positions as simple commits in one cluster.
    ///
    /// # Errors
    /// The coordinator cannot be reached or refuses.
    pub(crate) async fn store_commits(
        &self,
        side: ClusterSide,
        group: &str,
        commits: impl Iterator<Item = CommitMirror>,
    ) -> anyhow::Result<()> {
        for ((topic, partition), problem) in self.try_store(side, group, commits).await? {
            if let Unstored::Passing(error) | Unstored::Refused(error) = problem {
                bail!("{topic}-{partition}: OffsetCommit answers error {error}");
            }
        }
        Ok(())
    }

    /// As [`Control::store_commits`]; tells which were not stored, and why.
    ///
    /// # Errors
    /// The coordinator cannot be reached.
    async fn try_store(
        &self,
        side: ClusterSide,
        group: &str,
        commits: impl Iterator<Item = CommitMirror>,
    ) -> anyhow::Result<BTreeMap<Part, Unstored>> {
        let mut body = request(key::OFFSET_COMMIT);
        body.set("GroupId", group);
        body.set("GenerationIdOrMemberEpoch", -1);
        let commits: Vec<CommitMirror> = commits.collect();
        let part = |commit: &CommitMirror| (Arc::clone(&commit.topic), commit.partition);
        let mut unstored: BTreeMap<Part, Unstored> =
            commits.iter().map(|commit| (part(commit), Unstored::NoPlace)).collect();
        if !self.put_commits(side, &mut body, commits.into_iter()) {
            return Ok(unstored);
        }
        let at = self.coordinator(side, group).await?;
        let answer = self.client.call(&at, key::OFFSET_COMMIT, 7, &body).await?;
        let routes = &self.runtime.snapshot().routes;
        for topic in answer.structs("Topics") {
            let name: Arc<str> = Arc::from(routes.virtual_name(side, topic.str("Name")));
            for partition in topic.structs("Partitions") {
                let at = (Arc::clone(&name), partition.i32("PartitionIndex"));
                match partition.i16("ErrorCode") {
                    code::NONE => drop(unstored.remove(&at)),
                    error if is_passing(error) => drop(unstored.insert(at, Unstored::Passing(error))),
                    error => drop(unstored.insert(at, Unstored::Refused(error))),
                }
            }
        }
        Ok(unstored)
    }

    /// Puts virtual positions into a commit request of one cluster. False: it has none of their partitions.
    pub(crate) fn put_commits(
        &self,
        side: ClusterSide,
        body: &mut Struct,
        commits: impl Iterator<Item = CommitMirror>,
    ) -> bool {
        let snapshot = self.runtime.snapshot();
        let mut topics: BTreeMap<Arc<str>, Struct> = BTreeMap::new();
        for commit in commits {
            let Some(route) = snapshot.routes.topic(&commit.topic) else { continue };
            let Some(timeline) = route.timeline(commit.partition) else { continue };
            if snapshot.topology(side).partition(route.physical(side), commit.partition).is_none() {
                continue;
            }
            let stored = timeline::to_stored(
                timeline,
                side,
                VirtualOffset(commit.position),
                &commit.metadata,
                METADATA_MAX,
            );
            let topic = topics.entry(Arc::clone(route.physical(side))).or_insert_with(|| {
                let mut topic = body.new_element("Topics");
                topic.set("Name", route.physical(side));
                topic
            });
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", commit.partition);
            partition.set("CommittedOffset", stored.native);
            partition.set("CommittedLeaderEpoch", -1);
            partition.set("CommittedMetadata", stored.metadata);
            topic.push("Partitions", partition);
        }
        let is_any = !topics.is_empty();
        body.set("Topics", Value::Array(Some(topics.into_values().map(Value::from).collect())));
        is_any
    }

    /// The coordinator of a group on one side. Asking also makes a fresh cluster create `__consumer_offsets`.
    pub(crate) async fn coordinator(&self, side: ClusterSide, group: &str) -> anyhow::Result<Address> {
        self.coordinator_of(side, CoordinatorType::Group, group).await
    }

    /// Where a cluster coordinates a transactional id, by the name it has there.
    pub(crate) async fn transaction_coordinator(
        &self,
        side: ClusterSide,
        name: &str,
    ) -> anyhow::Result<Address> {
        self.coordinator_of(side, CoordinatorType::Transaction, name).await
    }

    async fn coordinator_of(
        &self,
        side: ClusterSide,
        kind: CoordinatorType,
        name: &str,
    ) -> anyhow::Result<Address> {
        let mut body = request(key::FIND_COORDINATOR);
        body.set("Key", name);
        body.set("KeyType", kind as i8);
        let mut last = 0;
        for _ in 0..20 {
            let at = self.any_address(side)?;
            let answer = self.client.call(&at, key::FIND_COORDINATOR, 3, &body).await?;
            last = answer.i16("ErrorCode");
            if last == 0 {
                return Ok((answer.str("Host").to_owned(), u16::try_from(answer.i32("Port"))?));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("the {side} names no coordinator for {name}: error {last}")
    }

    /// Makes both clusters ready to coordinate groups: a fresh one creates `__consumer_offsets` when it is first asked.
    pub(crate) async fn warm_coordinators(&self) {
        for side in ClusterSide::BOTH {
            let _ = self.coordinator(side, "crossover").await;
        }
    }
}

/// The coordinator is elsewhere, or not ready: it may say otherwise a moment later.
pub(super) fn is_passing(error: i16) -> bool {
    [
        code::REQUEST_TIMED_OUT,
        code::COORDINATOR_LOAD_IN_PROGRESS,
        code::COORDINATOR_NOT_AVAILABLE,
        code::NOT_COORDINATOR,
    ]
    .contains(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        let mut pending = Pending::default();
        for (group, topic, partition) in [("g", "a", 0), ("g", "a", 1), ("g", "b", 0), ("h", "a", 0)] {
            let (group, topic) = (Arc::from(group), Arc::from(topic));
            assert!(pending.add(CommitMirror {
                group,
                topic,
                partition,
                position: 1,
                metadata: String::new()
            }));
        }
        pending
    }

    #[tokio::test]
    async fn whoever_has_sent_for_something_is_told_also_of_a_panic() {
        let task = |errand: fn() -> anyhow::Result<bool>| tokio::spawn(async move { errand() });
        assert_eq!(done(task(|| Ok(true)).await), Ok(true));
        assert_eq!(done(task(|| bail!("no")).await), Err("no".to_owned()));
        let told = done(task(|| panic!("on purpose")).await).expect_err("no result");
        assert!(told.contains("on purpose"), "{told}");
    }

    fn left(pending: &mut Pending, group: &str) -> Vec<(String, i32)> {
        let commits = pending.take(group).unwrap_or_default();
        commits.into_keys().map(|(topic, partition)| (topic.to_string(), partition)).collect()
    }

    #[test]
    fn r27_commits_that_are_deleted_are_not_copied_afterwards() {
        let mut all = pending();
        all.forget("g", None);
        assert_eq!((left(&mut all, "g").len(), left(&mut all, "h").len(), all.count), (0, 1, 0));
        let mut some = pending();
        some.forget("g", Some(&[(Arc::from("a"), 0), (Arc::from("b"), 0)]));
        assert_eq!(left(&mut some, "g"), [("a".to_owned(), 1)]);
    }

    #[test]
    fn r26_commits_of_a_deleted_topic_are_not_copied_afterwards() {
        let mut pending = pending();
        pending.forget_topic("a");
        assert_eq!(left(&mut pending, "g"), [("b".to_owned(), 0)]);
        assert_eq!((left(&mut pending, "h").len(), pending.count), (0, 0));
    }

    fn commit(partition: i32, position: i64) -> CommitMirror {
        let (group, topic) = (Arc::from("g"), Arc::from("t"));
        CommitMirror { group, topic, partition, position, metadata: String::new() }
    }

    #[test]
    fn what_could_not_be_copied_comes_back_unless_a_later_commit_has_come() {
        let mut pending = Pending::default();
        assert!(pending.add_all([commit(0, 10), commit(1, 11)]));
        let taken = pending.take("g").unwrap();
        assert!(pending.add(commit(1, 12)));
        pending.put_back(taken);
        let left = pending.take("g").unwrap();
        let positions: Vec<_> = left.values().map(|w| (w.commit.partition, w.commit.position)).collect();
        assert_eq!(positions, [(0, 10), (1, 12)]);
        assert_eq!(pending.count, 0);
    }

    #[test]
    fn a_refusal_is_told_from_a_coordinator_that_is_not_ready() {
        assert!(is_passing(code::NOT_COORDINATOR) && !is_passing(code::UNKNOWN_MEMBER_ID));
    }
}

#[cfg(test)]
mod copied {
    use super::super::testing;
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

    const KEYS: &[i16] = &[key::FIND_COORDINATOR, key::OFFSET_COMMIT];

    fn commit(group: &str, number: i64) -> CommitMirror {
        CommitMirror {
            group: Arc::from(group),
            topic: Arc::from("orders"),
            partition: 0,
            position: number,
            metadata: String::new(),
        }
    }

    /// Members at the source, commits of transactions at the target: the target's copy is the one that is read, and it is
    /// down. Other groups' commits for it have filled what may wait.
    #[tokio::test]
    async fn r20_a_commit_that_there_was_no_room_for_is_not_called_copied() {
        let control = testing::control([Some(&["orders"]), None], &[]);
        for number in 0..i32::try_from(PENDING_MAX).unwrap() {
            assert!(control.pending_mirrors().add(CommitMirror { partition: number, ..commit("other", 1) }));
        }
        assert!(control.pending_mirrors().add(commit("other", 2)), "a later one needs no room");
        assert!(!control.mirror_now(&[commit("g", 7)]).await, "told as copied, and nowhere");
    }

    /// Two commits of a group on two connections; the coordinator refuses both, in one request.
    #[tokio::test]
    async fn r20_a_commit_that_was_refused_with_another_one_is_not_called_copied() {
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &[]);
        let port = testing::broker(KEYS, |_, _, answer| {
            let mut topic = answer.new_element("Topics");
            topic.set("Name", "orders");
            let mut partition = topic.new_element("Partitions");
            partition.set("ErrorCode", 30_i16);
            topic.push("Partitions", partition);
            answer.push("Topics", topic);
        })
        .await;
        testing::with_brokers(&control, ClusterSide::Target, &[(1, port)]);
        // As `run` does for each errand, in the order they come.
        let (a, b) = (control.mirror_now(&[commit("g", 7)]), control.mirror_now(&[commit("g", 8)]));
        let told = [a.await, b.await];
        assert_eq!(told, [false, false]);
    }

    fn of(topic: &str, position: i64) -> CommitMirror {
        CommitMirror { topic: Arc::from(topic), ..commit("g", position) }
    }

    /// Members at the source, commits of transactions at the target.
    fn apart(control: &Arc<Control>) {
        control.state().offset_homes.insert(Arc::from("g"), ClusterSide::Target);
        control.publish();
    }

    /// Answers OffsetCommit with these errors, by topic.
    fn answer_with(answer: &mut Struct, asked: &Struct, error: impl Fn(&str) -> i16) {
        for topic in asked.structs("Topics") {
            let mut told = answer.new_element("Topics");
            told.set("Name", topic.str("Name"));
            for partition in topic.structs("Partitions") {
                let mut element = told.new_element("Partitions");
                element.set("PartitionIndex", partition.i32("PartitionIndex"));
                element.set("ErrorCode", error(topic.str("Name")));
                told.push("Partitions", element);
            }
            answer.push("Topics", told);
        }
    }

    /// The target's coordinator is being elected when a member commits 7: the member is told so (15). Its next transaction
    /// commits 10 there. Then comes the next tick.
    #[tokio::test]
    async fn r20_a_commit_that_was_refused_does_not_overwrite_what_was_committed_since() {
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &["orders"]);
        let is_there = Arc::new(AtomicBool::new(false));
        let stored = Arc::new(AtomicI64::new(-1));
        let (there, at) = (Arc::clone(&is_there), Arc::clone(&stored));
        let port = testing::broker(KEYS, move |_, asked, answer| {
            let there = there.load(Relaxed);
            for partition in asked.structs("Topics").flat_map(|topic| topic.structs("Partitions")) {
                if there {
                    at.store(partition.i64("CommittedOffset"), Relaxed);
                }
            }
            answer_with(answer, asked, |_| if there { 0 } else { code::COORDINATOR_NOT_AVAILABLE });
        })
        .await;
        testing::with_brokers(&control, ClusterSide::Target, &[(1, port)]);
        apart(&control);
        let told = control.mirror_now(&[commit("g", 7)]).await;
        assert!(!told, "OffsetCommit is answered 15");
        // TxnOffsetCommit and EndTxn: they do not come by here.
        is_there.store(true, Relaxed);
        stored.store(10, Relaxed);
        // What `run` does at each tick.
        let groups: Vec<Arc<str>> = control.pending_mirrors().groups.keys().cloned().collect();
        control.flush_mirrors(&groups).await;
        assert_eq!(stored.load(Relaxed), 10, "the commit of a transaction went back to one that was refused");
    }

    /// The group's transactional application was replaced by one without transactions; one of its topics is on the source only.
    #[tokio::test]
    async fn r20_a_commit_that_has_no_place_where_it_is_read_is_not_called_copied() {
        let control = testing::control([Some(&["orders", "local"]), Some(&["orders"])], &["orders"]);
        let count = Arc::new(AtomicI64::new(0));
        let at = Arc::clone(&count);
        let port = testing::broker(KEYS, move |_, asked, answer| {
            at.fetch_add(1, Relaxed);
            answer_with(answer, asked, |_| 0);
        })
        .await;
        testing::with_brokers(&control, ClusterSide::Target, &[(1, port)]);
        apart(&control);
        let told = control.mirror_now(&[of("local", 7)]).await;
        assert_eq!((told, count.load(Relaxed)), (false, 0), "told as copied, and no coordinator was asked");
    }

    /// One topic was deleted a moment ago, and the coordinator moves: the broker judges topics before it asks the coordinator.
    #[tokio::test]
    async fn a_refused_commit_takes_no_other_one_with_it() {
        let control = testing::control([Some(&["a", "b"]), Some(&["a", "b"])], &[]);
        let port = testing::broker(KEYS, |_, asked, answer| {
            answer_with(answer, asked, |topic| if topic == "a" { 3 } else { code::NOT_COORDINATOR });
        })
        .await;
        testing::with_brokers(&control, ClusterSide::Target, &[(1, port)]);
        assert!(control.pending_mirrors().add_all([of("a", 7), of("b", 8)]));
        control.flush_mirrors(&[Arc::from("g")]).await;
        let left = control.pending_mirrors().take("g").unwrap_or_default();
        let left: Vec<_> = left.values().map(|w| (w.commit.topic.to_string(), w.commit.position)).collect();
        assert!(left.contains(&("b".to_owned(), 8)), "its coordinator had only moved; left: {left:?}");
    }
}
