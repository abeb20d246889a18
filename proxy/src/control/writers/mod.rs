//! Keeps writers that bypass the proxy out of logs that have lost their ownership: entries that deny writing to the topic
//! there, where the cluster has an authorizer and the configuration names whom to deny (`[fence]`; DESIGN decision 4).
//!
//! They are put there behind a flip, not within it: none of the proxy's own writers is left at the old owner then, nothing
//! has to be taken back when a flip aborts, and nobody waits. What was written between the boundary and the denial is what
//! the watch of the old log finds. A flip back takes them away before anything else, and waits until no broker has them.

mod acl;

pub(crate) use acl::{Acl, AclError};

use super::Control;
use anyhow::Context;
use crossover_core::ids::ClusterSide;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::info;

/// Looks at what is fenced happen when something has moved, and this often.
const EVERY: Duration = Duration::from_secs(30);
/// Until every broker has heard of a change.
const EFFECTIVE_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
const ALARM: &str = "writers-not-fenced";
const REMEDY: &str = "let crossover's principal DESCRIBE and ALTER the cluster, or empty fence.deny_write; until then nobody may \
                      write to the topic directly";

/// A topic of one cluster, by the name it has there.
pub(crate) type Place = (ClusterSide, Arc<str>);
/// Entries that were put there, or were about to be.
pub(crate) type Fences = BTreeMap<Place, Vec<Acl>>;

/// What is known of fences.
pub(crate) struct Writers {
    /// As in the store.
    fences: Mutex<Fences>,
    /// Seen by every broker.
    effective: Mutex<BTreeSet<Place>>,
    /// Held while entries are added or removed.
    turn: tokio::sync::Mutex<()>,
    /// Flips are under way to these.
    wanted_open: Mutex<BTreeSet<Place>>,
    moved: Notify,
}

impl Writers {
    pub(crate) fn new(fences: Fences) -> Writers {
        Writers {
            fences: Mutex::new(fences),
            effective: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            wanted_open: Mutex::default(),
            moved: Notify::new(),
        }
    }

    fn fences(&self) -> MutexGuard<'_, Fences> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn effective(&self) -> MutexGuard<'_, BTreeSet<Place>> {
        self.effective.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted_open(&self) -> MutexGuard<'_, BTreeSet<Place>> {
        self.wanted_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every broker of a side keeps writers out of a topic there.
    pub(crate) fn keeps_out(&self, place: &Place) -> bool {
        self.effective().contains(place)
    }
}

/// Topics that a flip wants to be written to. Dropped, whoever does not own them is fenced again.
pub(crate) struct OpenFor {
    control: Arc<Control>,
    places: BTreeSet<Place>,
}

impl Drop for OpenFor {
    fn drop(&mut self) {
        let writers = &self.control.writers;
        writers.wanted_open().retain(|place| !self.places.contains(place));
        writers.moved.notify_one();
    }
}

pub(crate) async fn run(control: Arc<Control>) {
    loop {
        control.fence_writers().await;
        let _ = timeout(EVERY, control.writers.moved.notified()).await;
    }
}

impl Control {
    /// Takes away what keeps writers out of topics on a side, before they move there.
    ///
    /// # Errors
    /// A broker still has it.
    pub(crate) async fn let_write(self: &Arc<Control>, places: BTreeSet<Place>) -> anyhow::Result<OpenFor> {
        self.writers.wanted_open().extend(places.iter().cloned());
        let open = OpenFor { control: Arc::clone(self), places };
        let _turn = self.writers.turn.lock().await;
        for place in &open.places {
            self.unfence(place).await.with_context(|| {
                format!("writers are still kept out of topic {} on the {}", place.1, place.0)
            })?;
        }
        Ok(open)
    }

    /// Puts fences where they are wanted, and takes them away where they are not.
    async fn fence_writers(&self) {
        if self.is_taken_over() {
            return;
        }
        // A flip to a place lets writers in there first, and has the turn for that: what is wanted now stays wanted until
        // the turn is over.
        let _turn = self.writers.turn.lock().await;
        let wanted = self.fences_wanted();
        let known: BTreeSet<Place> = self.writers.fences().keys().cloned().collect();
        for place in known.difference(&wanted).filter(|place| self.topology(place.0).reachable) {
            let lifted = self.unfence(place).await;
            self.tell_fence(place, lifted.map_err(AclError::Other));
        }
        for place in wanted.iter().filter(|place| self.topology(place.0).reachable) {
            // A flip that waits for its turn is seen here.
            let is_open = self.writers.wanted_open().contains(place);
            if !is_open && !self.writers.keeps_out(place) {
                let put = self.put_fence(place).await;
                self.tell_fence(place, put);
            }
        }
    }

    /// Topics where they have lost their ownership.
    fn fences_wanted(&self) -> BTreeSet<Place> {
        if self.runtime.config.fence.deny_write.is_empty() {
            return BTreeSet::new();
        }
        let open = self.writers.wanted_open().clone();
        let state = self.state();
        let lost = state.topics.values().map(|topic| {
            let side = topic.owner.other();
            (side, Arc::clone(&topic.physical[side.index()]))
        });
        lost.filter(|place| !open.contains(place)).collect()
    }

    async fn put_fence(&self, place: &Place) -> Result<(), AclError> {
        let (side, topic) = place;
        let at = self.any_address(*side)?;
        let remembered = self.writers.fences().get(place).cloned();
        let is_new = remembered.is_none();
        let fence = match remembered {
            Some(fence) => fence,
            None => {
                let present = acl::describe(&self.client, &at, topic).await?;
                acl::fence(&self.runtime.config.fence.deny_write, &present)
            }
        };
        // Remembered first: what nobody remembers nobody takes away.
        if is_new {
            self.remember(place, Some(fence.clone())).await?;
        }
        acl::create(&self.client, &at, topic, &fence).await?;
        self.await_brokers(place, |present| fence.iter().all(|acl| present.contains(acl))).await?;
        self.writers.effective().insert(place.clone());
        let whom = self.runtime.config.fence.deny_write.join(", ");
        info!(%side, %topic, whom, "writers are kept out");
        if !is_new {
            return Ok(());
        }
        let text = format!("{whom} may not write to topic {topic} on the {side}, which has lost it");
        let entry = self.entry("writers-fenced", None, text);
        Ok(self.stored(move |store| store.append(&entry)).await?)
    }

    async fn unfence(&self, place: &Place) -> anyhow::Result<()> {
        let Some(fence) = self.writers.fences().get(place).cloned() else { return Ok(()) };
        let (side, topic) = place;
        self.writers.effective().remove(place);
        if !fence.is_empty() {
            acl::delete(&self.client, &self.any_address(*side)?, topic, &fence).await?;
            self.await_brokers(place, |present| !fence.iter().any(|acl| present.contains(acl))).await?;
        }
        self.remember(place, None).await?;
        info!(%side, %topic, "writers are let in again");
        let entry =
            self.entry("writers-let-in", None, format!("topic {topic} on the {side} may be written to"));
        self.stored(move |store| store.append(&entry)).await
    }

    async fn remember(&self, place: &Place, fence: Option<Vec<Acl>>) -> anyhow::Result<()> {
        let ((side, topic), stored) = (place.clone(), fence.clone());
        self.stored(move |store| store.put_fence(side, &topic, stored.as_deref())).await?;
        match fence {
            Some(fence) => drop(self.writers.fences().insert(place.clone(), fence)),
            None => drop(self.writers.fences().remove(place)),
        }
        Ok(())
    }

    /// Waits until every broker decides by entries that `fit`.
    async fn await_brokers(&self, place: &Place, fit: impl Fn(&[Acl]) -> bool) -> Result<(), AclError> {
        let deadline = Instant::now() + EFFECTIVE_MAX;
        let brokers: Vec<i32> = self.topology(place.0).brokers.keys().copied().collect();
        for broker in brokers {
            let at = self.address(place.0, broker)?;
            while !fit(&acl::describe(&self.client, &at, &place.1).await?) {
                if Instant::now() > deadline {
                    let why = format!("broker {broker} has not taken it over within {EFFECTIVE_MAX:?}");
                    return Err(AclError::Other(anyhow::anyhow!(why)));
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// A cluster without an authorizer is no failure: the plan says so.
    fn tell_fence(&self, place: &Place, result: Result<(), AclError>) {
        let subject = format!("{} on the {}", place.1, place.0);
        match result {
            Ok(()) | Err(AclError::NoAuthorizer) => self.lift(ALARM, &subject),
            Err(problem) => {
                self.alarm(ALARM, &subject, format!("topic {subject}: {problem:#}"), REMEDY);
            }
        }
    }

    /// What holds on a side for writers that bypass the proxy.
    ///
    /// # Errors
    /// [`AclError`]: nothing will keep them out.
    pub(crate) async fn can_fence(&self, side: ClusterSide, topic: &str) -> Result<(), AclError> {
        let at = self.any_address(side)?;
        acl::describe(&self.client, &at, topic).await.map(drop)
    }
}
