//! Leaders that stand still for longer than their session, with batches that they have appended and nobody else has yet.
//! What was answered 6 counts as not appended for librdkafka: told then that a batch is missing (45), it writes it again
//! under another epoch, and it stands twice in the log. Needs `cargo build -p crossover --features failpoints` and
//! `cargo build -p crossover-loadtest` first.
//!
//! `CROSSOVER_FAULTS` (default 4) says how many leaders, `CROSSOVER_RATE` (default 100) how many records per second each
//! producer writes.

use anyhow::{Context, Result};
use crossover_harness::rig::RELAYED;
use crossover_tests::fault_run::{Clients, Failure, Hit, PAUSE, PROPERTIES, Run, victim};
use crossover_tests::live::{Kind, TOPIC, Traffic, create_topic};
use crossover_tests::{one_at_a_time, relayed_rig, setting};
use std::thread::sleep;
use std::time::Duration;

/// A batch of one partition has them all written anew: the more producers, the likelier.
const PRODUCERS: [&str; 6] =
    ["librdkafka-1", "librdkafka-2", "librdkafka-3", "librdkafka-4", "librdkafka-5", "librdkafka-6"];
const WELL_MAX: Duration = Duration::from_secs(60);
/// Of each client, between two pauses.
const FLOWS: usize = 500;

#[test]
fn r08_behind_the_release_of_a_flip() -> Result<()> {
    let _turn = one_at_a_time();
    let mut run = Run::start_with(&producers(), setting("CROSSOVER_RATE", 100)?)?;
    for number in 0..setting("CROSSOVER_FAULTS", 4)? {
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
    let proxy = std::mem::replace(&mut rig.bootstrap, rig.target.relay_bootstrap(RELAYED));
    let mut traffic = Traffic::start(&rig, &producers(), setting("CROSSOVER_RATE", 100)?)?;
    for _ in 0..setting("CROSSOVER_FAULTS", 4)? {
        let victim = victim(&rig.target)?;
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
