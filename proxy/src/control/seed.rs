//! After a start, the gates of moved partitions learn what was appended since the last SEAL (RULES R3).
//!
//! The stored carry ends with the last flip. Judged by it alone, the next batch of a producer that wrote on since then
//! looks like a gap and would be refused for ever. So these gates start fenced, and each opens when the owner's leader
//! has told its producers. Until then produce is held, within the hold bound.

use super::Control;
use super::boundary::{Lead, Part, join_all};
use crossover_core::ids::ClusterSide;
use crossover_core::producer::carry::DescribedProducer;
use crossover_core::session::lock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::{debug, info};

/// Between two attempts while a leader does not answer.
const AGAIN: Duration = Duration::from_millis(100);

/// Partitions that stay fenced outside of a flip. No flip may touch them: its end would open them.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    /// Their gates do not know yet what was appended.
    pub(crate) unseeded: BTreeSet<Part>,
    /// It is not known whether their SEAL is durable; only a restart can tell.
    pub(crate) unsealed: BTreeSet<Arc<str>>,
}

impl Closed {
    /// Why a topic cannot be flipped now.
    pub(crate) fn reason(&self, topic: &str) -> Option<String> {
        if self.unsealed.contains(topic) {
            return Some(format!(
                "topic {topic} is held since a SEAL whose outcome is unknown; restart crossover"
            ));
        }
        let waits = self.unseeded.iter().any(|(t, _)| **t == *topic);
        waits.then(|| {
            format!("the producers of topic {topic} have not been read from its owner since the start")
        })
    }
}

/// Seeds gates until all are open.
pub(crate) async fn run(control: Arc<Control>) {
    loop {
        seed(&control).await;
        if control.closed().unseeded.is_empty() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One round: every leader that answers opens its partitions. One that stands still keeps no other one waiting.
async fn seed(control: &Control) {
    let asked = unseeded_leads(control).into_iter().map(|at| seed_from(control, at));
    join_all(asked).await;
}

async fn seed_from(control: &Control, (side, leader, leads): AtLeader) {
    let told = match control.address(side, leader) {
        Ok(at) => control.describe_producers(&at, &leads).await,
        Err(problem) => Err(problem),
    };
    match told {
        Ok(told) => told.into_iter().for_each(|(part, told)| match told {
            Ok(told) => open(control, &part, &control.as_clients_know(side, told.rows)),
            Err(problem) => not_yet(control, side, leader, &problem),
        }),
        Err(problem) => not_yet(control, side, leader, &problem),
    }
}

fn not_yet(control: &Control, side: ClusterSide, leader: i32, problem: &anyhow::Error) {
    debug!(%side, leader, "producers cannot be read yet: {problem:#}");
    control.refresh[side.index()].notify_one();
}

type AtLeader = (ClusterSide, i32, Vec<Lead>);

/// What is still to be asked, by owner and leader. A partition without a leader waits for the next round.
fn unseeded_leads(control: &Control) -> Vec<AtLeader> {
    let snapshot = control.runtime.snapshot();
    let mut all: BTreeMap<_, Vec<Lead>> = BTreeMap::new();
    for part in control.closed().unseeded.iter() {
        let Some(route) = snapshot.routes.topic(&part.0) else { continue };
        let topology = snapshot.topology(route.owner);
        let physical = route.physical(route.owner);
        let Some(info) = topology.partition(physical, part.1).filter(|_| topology.reachable) else {
            continue;
        };
        let (leader, epoch) = (info.leader, info.epoch);
        let lead = Lead { part: part.clone(), physical: Arc::clone(physical), leader, epoch };
        all.entry((route.owner, leader)).or_default().push(lead);
    }
    all.into_iter().map(|((side, leader), leads)| (side, leader, leads)).collect()
}

fn open(control: &Control, part: &Part, rows: &[DescribedProducer]) {
    let snapshot = control.runtime.snapshot();
    let visit = snapshot.routes.topic(&part.0).and_then(|r| r.timeline(part.1)).map(|t| t.current().visit);
    let Some(visit) = visit else { return };
    // Whoever takes the partition out of the list opens the gate, so that it is opened once.
    if !control.closed().unseeded.remove(part) {
        return;
    }
    let gate = control.runtime.shared.gates.get(&part.0, part.1);
    let (signal, newer) = {
        let mut gate = lock(&gate);
        let newer = gate.seed(rows, visit, control.runtime.now_ms());
        (gate.release_unchanged(), newer)
    };
    info!(topic = %part.0, partition = part.1, producers = newer, "the gate is seeded");
    control.runtime.sessions.wake(&signal.wake);
}

impl Control {
    pub(crate) fn closed(&self) -> MutexGuard<'_, Closed> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crossover_core::api::key;

    /// Behind a start: broker 1 of the owner stands still (SIGSTOP), broker 2 answers at once.
    #[tokio::test]
    async fn r13_a_leader_that_does_not_answer_keeps_no_other_leaders_partitions_closed() {
        const KEYS: &[i16] = &[key::DESCRIBE_PRODUCERS];
        let topics: &[&str] = &["a", "b"];
        let control = testing::control([Some(topics), Some(topics)], topics);
        // The kernel takes its connections, nobody reads them.
        let still = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = testing::broker(KEYS, |_, asked, answer| {
            for topic in asked.structs("Topics") {
                let mut told = answer.new_element("Topics");
                told.set("Name", topic.str("Name"));
                let partition = told.new_element("Partitions");
                told.push("Partitions", partition);
                answer.push("Topics", told);
            }
        })
        .await;
        {
            let mut state = control.state();
            let topology = Arc::make_mut(&mut state.topologies[ClusterSide::Target.index()]);
            Arc::make_mut(topology.topics.get_mut("b").unwrap()).partitions[0].leader = 2;
        }
        let brokers = [(1, still.local_addr().unwrap().port()), (2, other)];
        testing::with_brokers(&control, ClusterSide::Target, &brokers);
        for topic in topics {
            let topic: Arc<str> = Arc::from(*topic);
            lock(&control.runtime.shared.gates.get(&topic, 0)).fence();
            control.closed().unseeded.insert((topic, 0));
        }
        tokio::spawn(run(Arc::clone(&control)));
        let began = std::time::Instant::now();
        let b: Arc<str> = Arc::from("b");
        while lock(&control.runtime.shared.gates.get(&b, 0)).is_fenced() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(1),
            "b is led by a broker that answers, and was held for {took:?}"
        );
    }
}
