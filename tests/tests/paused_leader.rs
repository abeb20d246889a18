//! Leaders that stand still for longer than their session, with batches that they have appended and nobody else has yet.
//! What was answered 6 counts as not appended for librdkafka: told then that a batch is missing (45), it writes it again
//! under another epoch, and it stands twice in the log. Needs `cargo build -p crossover --features failpoints` and
//! `cargo build -p crossover-loadtest` first.
//!
//! `CROSSOVER_FAULTS` (default 4) says how many leaders, `CROSSOVER_RATE` (default 100) how many records per second each
//! producer writes.

use anyhow::{Context, Result};
use crossover_harness::rig::RELAYED;
use crossover_tests::fault_run::{Clients, Failure, Hit, PROPERTIES, Run};
use crossover_tests::live::{Kind, TOPIC, Traffic, create_topic};
use crossover_tests::{one_at_a_time, relayed_rig};
use std::thread::sleep;
use std::time::Duration;

/// A batch of one partition has them all written anew: the more producers, the likelier.
const PRODUCERS: [&str; 6] =
    ["librdkafka-1", "librdkafka-2", "librdkafka-3", "librdkafka-4", "librdkafka-5", "librdkafka-6"];
/// Longer than a broker's session.
const PAUSE: Duration = Duration::from_secs(7);
const WELL_MAX: Duration = Duration::from_secs(60);
/// Of each client, between two pauses.
const FLOWS: usize = 500;

#[test]
fn r08_behind_the_release_of_a_flip() -> Result<()> {
    let _turn = one_at_a_time();
    let mut run = Run::start_with(&producers(), number("RATE", 100)?)?;
    for number in 0..number("FAULTS", 4)? {
        run.case("RELEASE", Failure::PauseBroker, Hit::NewOwner)
            .with_context(|| format!("pause {number}"))?;
    }
    run.finish(Clients::Idempotent).map(|_| ())
}

/// The control: the same without a proxy and without flips.
#[test]
fn bare_kafka() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = relayed_rig("3.9.2", "4.3.1", 3, &PROPERTIES)?;
    rig.keep = true;
    create_topic(&rig)?;
    let bare = rig.target.relay_addresses(RELAYED).into_iter().map(|(_, at, _)| at.to_string());
    let proxy = std::mem::replace(&mut rig.bootstrap, bare.collect::<Vec<_>>().join(","));
    let mut traffic = Traffic::start(&rig, &producers(), number("RATE", 100)?)?;
    for _ in 0..number("FAULTS", 4)? {
        let topic = rig.target.topic(TOPIC)?.context("the topic is gone")?;
        // The first broker is the only voter of the controllers' quorum.
        let first = rig.target.broker_ids().first().copied();
        let mut leaders = topic.partitions.iter().map(|p| p.leader);
        let victim = leaders.find(|leader| Some(*leader) != first).context("one broker leads everything")?;
        rig.target.pause_broker(victim)?;
        sleep(PAUSE);
        rig.target.resume_broker(victim)?;
        traffic.flows(FLOWS, WELL_MAX)?;
        rig.target.wait_in_sync(TOPIC)?;
    }
    rig.bootstrap = proxy;
    traffic.finish()?.judge(&rig)?;
    rig.keep = false;
    Ok(())
}

/// One of them has a group as well. Their logs tell of epochs.
fn producers() -> [Kind; PRODUCERS.len()] {
    let producer = &["--idempotent", "true", "--conf", "debug=eos"];
    PRODUCERS.map(|name| Kind { name, driver: "librdkafka", producer, has_group: name == PRODUCERS[0] })
}

fn number(name: &str, otherwise: u32) -> Result<u32> {
    std::env::var(format!("CROSSOVER_{name}")).map_or(Ok(otherwise), |text| Ok(text.parse()?))
}
