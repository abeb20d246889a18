//! Copies commits to the cluster that is not the group's home, latest wins, about once a second (protocol §4.4).

use super::Control;
use super::client::{Address, request};
use crate::runtime::ControlEvent;
use crossover_core::api::key;
use crossover_core::ids::{ClusterSide, VirtualOffset};
use crossover_core::schema::{Struct, Value};
use crossover_core::session::CommitMirror;
use crossover_core::timeline;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

const EVERY: Duration = Duration::from_secs(1);
/// `offset.metadata.max.bytes` of a broker with defaults.
pub(crate) const METADATA_MAX: usize = 4096;
/// Commits that wait for one flush at most; the rest comes with the groups' next commits.
const PENDING_MAX: usize = 200_000;

type Commits = BTreeMap<(Arc<str>, i32), CommitMirror>;

/// Takes what connections tell the control tasks.
pub(crate) async fn run(control: Arc<Control>, mut events: mpsc::Receiver<ControlEvent>) {
    let mut pending: HashMap<Arc<str>, Commits> = HashMap::new();
    let mut count = 0;
    // One at a time: a slow cluster must not gather tasks, nor an old commit follow a newer one.
    let mut flushing: Option<JoinHandle<()>> = None;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => return,
                Some(ControlEvent::Refresh(side)) => control.refresh[side.index()].notify_one(),
                Some(ControlEvent::Mirror(commits)) => for commit in commits {
                    if count < PENDING_MAX {
                        let place = pending.entry(Arc::clone(&commit.group)).or_default();
                        count += usize::from(place.insert((Arc::clone(&commit.topic), commit.partition), commit).is_none());
                    }
                },
            },
            _ = tick.tick() => if count > 0 && flushing.as_ref().is_none_or(JoinHandle::is_finished) {
                count = 0;
                flushing = Some(tokio::spawn(flush(Arc::clone(&control), std::mem::take(&mut pending))));
            },
        }
    }
}

async fn flush(control: Arc<Control>, pending: HashMap<Arc<str>, Commits>) {
    for (group, commits) in pending {
        let _turn = control.commits.lock().await;
        let snapshot = control.runtime.snapshot();
        let side = snapshot.group_home(&group).other();
        // A group that is being moved has its commits copied by the move itself.
        if snapshot.groups.moving.contains_key(&group) || !snapshot.topology(side).reachable {
            continue;
        }
        if let Err(problem) = control.store_commits(side, &group, commits.into_values()).await {
            tracing::debug!(%group, "mirrored commits were not stored: {problem:#}");
        }
    }
}

impl Control {
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
        let snapshot = self.runtime.snapshot();
        let mut body = request(key::OFFSET_COMMIT);
        body.set("GroupId", group);
        body.set("GenerationIdOrMemberEpoch", -1);
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
        if topics.is_empty() {
            return Ok(());
        }
        body.set("Topics", Value::Array(Some(topics.into_values().map(Value::from).collect())));
        let at = self.coordinator(side, group).await?;
        let answer = self.client.call(&at, key::OFFSET_COMMIT, 7, &body).await?;
        for topic in answer.structs("Topics") {
            for partition in topic.structs("Partitions") {
                let error = partition.i16("ErrorCode");
                anyhow::ensure!(
                    error == 0,
                    "{}-{}: OffsetCommit answers error {error}",
                    topic.str("Name"),
                    partition.i32("PartitionIndex")
                );
            }
        }
        Ok(())
    }

    /// The coordinator of a group on one side. Asking also makes a fresh cluster create `__consumer_offsets`.
    pub(crate) async fn coordinator(&self, side: ClusterSide, group: &str) -> anyhow::Result<Address> {
        let mut body = request(key::FIND_COORDINATOR);
        body.set("Key", group);
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
        anyhow::bail!("the {side} names no coordinator for group {group}: error {last}")
    }

    /// Makes both clusters ready to coordinate groups: a fresh one creates `__consumer_offsets` when it is first asked.
    pub(crate) async fn warm_coordinators(&self) {
        for side in ClusterSide::BOTH {
            let _ = self.coordinator(side, "crossover").await;
        }
    }
}
