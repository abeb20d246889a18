//! Errands: what operations of client connections wait for (RULES R25, R26, R27).

use super::Control;
use super::boundary::Part;
use super::client::request;
use crate::store::{Floor, Floors};
use anyhow::{Context, bail, ensure};
use crossover_core::api::key;
use crossover_core::ids::{ClusterSide, TopicId, VirtualOffset};
use crossover_core::schema::{Struct, Value};
use crossover_core::session::{ChangeKind, Errand, TopicChanged};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long a cluster may take to show what it has confirmed.
const SHOWN_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(30);
/// Coordinators move: how often one is looked up for a deletion, and the pause between.
const COORDINATOR_TRIES: u32 = 5;
const COORDINATOR_PAUSE: Duration = Duration::from_millis(200);

/// `org.apache.kafka.common.protocol.Errors`.
const NONE: i16 = 0;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const COORDINATOR_ERRORS: [i16; 3] = [14, 15, 16];
const GROUP_ID_NOT_FOUND: i16 = 69;

impl Control {
    /// Begins it: what has to be in the order of the errands is done when this returns. `Ok(false)`: there was nothing to
    /// do. An error: it cannot be done now; it may be asked for again.
    pub(crate) fn begin_errand(
        self: &Arc<Self>,
        errand: Errand,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<bool>> + Send>> {
        let control = Arc::clone(self);
        match errand {
            Errand::RaiseFloors(floors) => Box::pin(async move { control.raise_floors(floors).await }),
            Errand::TopicsChanged(changed) => Box::pin(async move { control.topics_changed(&changed).await }),
            Errand::MirrorCommits(commits) => {
                let copied = self.mirror_now(&commits);
                Box::pin(async move { Ok(copied.await) })
            }
            Errand::ForgetCommits { group, partitions } => {
                Box::pin(async move { control.forget_commits(&group, partitions.as_deref()).await })
            }
            Errand::MoveTransactionalId { id, to, client } => {
                Box::pin(async move { control.move_transactional_id(&id, to, client).await })
            }
            Errand::MoveOffsets { group, to } => {
                Box::pin(async move { control.move_offsets(&group, to).await })
            }
        }
    }

    async fn raise_floors(&self, floors: Vec<(Arc<str>, i32, VirtualOffset)>) -> anyhow::Result<bool> {
        let snapshot = self.runtime.snapshot();
        let mut higher = Floors::new();
        for (topic, partition, offset) in floors {
            let timeline = snapshot.routes.topic(&topic).and_then(|route| route.timeline(partition));
            let timeline = timeline.with_context(|| format!("{topic}-{partition} is gone"))?;
            if offset > timeline.floor() {
                higher.insert((topic, partition), Floor { timeline_id: timeline.id(), offset });
            }
        }
        if higher.is_empty() {
            return Ok(false);
        }
        let stored = higher.clone();
        self.stored(move |store| store.raise_floors(&stored)).await.context("the floor cannot be stored")?;
        {
            let mut state = self.state();
            for (at, floor) in higher {
                let known = state.floors.get(&at).copied();
                let known = known.filter(|known| known.timeline_id == floor.timeline_id);
                if known.is_none_or(|known| known.offset < floor.offset) {
                    state.floors.insert(at, floor);
                }
            }
        }
        self.publish();
        Ok(true)
    }

    /// Waits until both clusters show what they have confirmed; then what is stored follows.
    async fn topics_changed(&self, changed: &[TopicChanged]) -> anyhow::Result<bool> {
        let before: Vec<BTreeSet<TopicId>> = changed.iter().map(|c| self.ids_of(c)).collect();
        let deadline = Instant::now() + SHOWN_MAX;
        loop {
            let [source, target] = ClusterSide::BOTH.map(|side| super::topology::refresh(self, side));
            tokio::join!(source, target);
            let open = changed.iter().zip(&before).find(|(change, before)| !self.is_shown(change, before));
            let Some((open, _)) = open else { break };
            ensure!(Instant::now() < deadline, "the clusters do not show it within {SHOWN_MAX:?}: {open:?}");
            sleep(LOOK_AGAIN).await;
        }
        for change in changed {
            if let TopicChanged::Deleted(name) = change {
                self.forget_topic(name).await?;
            }
        }
        Ok(true)
    }

    /// The ids under which the clusters know the topic now.
    fn ids_of(&self, change: &TopicChanged) -> BTreeSet<TopicId> {
        let (TopicChanged::Deleted(name) | TopicChanged::Enlarged(name, _)) = change;
        let snapshot = self.runtime.snapshot();
        let Some(route) = snapshot.routes.topic(name) else { return BTreeSet::new() };
        let now = ClusterSide::BOTH
            .map(|side| self.topology(side).topic(route.physical(side)).map_or(TopicId::ZERO, |t| t.id));
        now.into_iter().chain(route.native_ids).collect()
    }

    fn is_shown(&self, change: &TopicChanged, before: &BTreeSet<TopicId>) -> bool {
        let (TopicChanged::Deleted(name) | TopicChanged::Enlarged(name, _)) = change;
        let snapshot = self.runtime.snapshot();
        let Some(route) = snapshot.routes.topic(name) else { return true };
        let on_sides = ClusterSide::BOTH.map(|side| self.topology(side).topic(route.physical(side)).cloned());
        let mut on_sides = on_sides.iter().flatten();
        match change {
            TopicChanged::Deleted(_) => on_sides.all(|topic| !before.contains(&topic.id)),
            TopicChanged::Enlarged(_, count) => {
                let count = usize::try_from(*count).unwrap_or(0);
                let known =
                    !route.is_moved() || route.timeline(i32::try_from(count).unwrap_or(0) - 1).is_some();
                known && on_sides.all(|topic| topic.partitions.len() >= count)
            }
        }
    }

    /// A deleted topic takes its timelines, tags and pending mirrors with it (RULES R26).
    async fn forget_topic(&self, name: &Arc<str>) -> anyhow::Result<()> {
        let _commits = self.commits.lock().await;
        let _shapes = self.shapes.lock().await;
        // No SEAL of it may be written afterwards, also where its client's connection has ended meanwhile.
        let topics = BTreeSet::from([Arc::clone(name)]);
        let revision = self.state().revision;
        let change = self.runtime.shared.changes.begin(topics, ChangeKind::Records, revision);
        let _change = change.with_context(|| format!("topic {name} is being moved"))?;
        self.pending_mirrors().forget_topic(name);
        let text = format!("topic {name} was deleted by a client; its timeline is gone");
        let entry = self.entry("topic-deleted", None, text);
        let is_stored = {
            let state = self.state();
            state.topics.contains_key(name) || state.floors.keys().any(|(topic, _)| topic == name)
        };
        if is_stored {
            let name = Arc::clone(name);
            self.stored(move |store| store.forget_topic(&name, &entry))
                .await
                .context("the deletion cannot be stored")?;
        }
        {
            let mut closed = self.closed();
            closed.unseeded.retain(|(topic, _)| topic != name);
            closed.unsealed.remove(name);
        }
        {
            let mut state = self.state();
            state.topics.remove(name);
            state.floors.retain(|(topic, _), _| topic != name);
        }
        self.runtime.shared.forget_topic(name);
        self.publish();
        Ok(())
    }

    /// Deletes the copies of a group's commits on the side that is not its home.
    async fn forget_commits(&self, group: &str, partitions: Option<&[Part]>) -> anyhow::Result<bool> {
        let _commits = self.commits.lock().await;
        self.pending_mirrors().forget(group, partitions);
        self.runtime.shared.groups.forget_commits(group, partitions);
        if partitions.is_none() {
            self.forget_offset_home(group).await?;
        }
        let side = self.runtime.snapshot().group_home(group).other();
        for _ in 0..COORDINATOR_TRIES {
            let told = match partitions {
                None => self.delete_group(side, group).await?,
                Some(partitions) => self.delete_offsets(side, group, partitions).await?,
            };
            match told {
                NONE => return Ok(true),
                GROUP_ID_NOT_FOUND => return Ok(false),
                error if COORDINATOR_ERRORS.contains(&error) => sleep(COORDINATOR_PAUSE).await,
                error => bail!("the {side} refuses to delete the copies of the commits: error {error}"),
            }
        }
        bail!("the {side} has no coordinator for group {group}")
    }

    async fn delete_group(&self, side: ClusterSide, group: &str) -> anyhow::Result<i16> {
        let mut body = request(key::DELETE_GROUPS);
        body.set("GroupsNames", Value::Array(Some(vec![Value::from(group)])));
        let at = self.coordinator(side, group).await?;
        let answer = self.client.call(&at, key::DELETE_GROUPS, i16::MAX, &body).await?;
        let told = answer.structs("Results").find(|r| r.str("GroupId") == group).map(|r| r.i16("ErrorCode"));
        told.context("DeleteGroups left out the group")
    }

    async fn delete_offsets(
        &self,
        side: ClusterSide,
        group: &str,
        partitions: &[Part],
    ) -> anyhow::Result<i16> {
        let snapshot = self.runtime.snapshot();
        let mut body = request(key::OFFSET_DELETE);
        body.set("GroupId", group);
        let mut topics: BTreeMap<Arc<str>, Struct> = BTreeMap::new();
        for (topic, partition) in partitions {
            let Some(route) = snapshot.routes.topic(topic) else { continue };
            let physical = route.physical(side);
            let entry = topics.entry(Arc::clone(physical)).or_insert_with(|| {
                let mut topic = body.new_element("Topics");
                topic.set("Name", physical);
                topic
            });
            let mut element = entry.new_element("Partitions");
            element.set("PartitionIndex", *partition);
            entry.push("Partitions", element);
        }
        if topics.is_empty() {
            return Ok(NONE);
        }
        body.set("Topics", topics.into_values().collect::<Vec<Struct>>());
        let at = self.coordinator(side, group).await?;
        let answer = self.client.call(&at, key::OFFSET_DELETE, i16::MAX, &body).await?;
        let told = answer.structs("Topics").flat_map(|t| t.structs("Partitions")).map(|p| p.i16("ErrorCode"));
        let mut all = std::iter::once(answer.i16("ErrorCode")).chain(told);
        // A topic that is not on this side has no copies there.
        Ok(all.find(|error| ![NONE, UNKNOWN_TOPIC_OR_PARTITION].contains(error)).unwrap_or(NONE))
    }
}
