//! Real clusters, real clients. Needs `cargo build -p crossover -p crossover-loadtest` first; about 5 minutes.

#[path = "live/bad_input.rs"]
mod bad_input;
#[path = "live/plan_refusals.rs"]
mod plan_refusals;

use std::time::Duration;

use anyhow::Result;
use crossover_tests::live::{KINDS, Traffic, create_topic, group, wait_end};
use crossover_tests::measure::machine_load;
use crossover_tests::{one_at_a_time, rig, setting};

/// Records per second of one producer.
const RATE: u32 = 60;
const BETWEEN: Duration = Duration::from_secs(5);

/// Every client library, one topic, a cutover and a rollback: nothing lost, duplicated, reordered, skipped, and no error.
#[test]
fn live_slice() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut traffic = Traffic::start(&rig, &KINDS, RATE)?;
    println!("all clients work; {}", machine_load());
    let flips = traffic.flip(&rig, setting("CROSSOVER_FLIPS", 2)?, BETWEEN)?;
    let histories = traffic.finish()?;
    histories.pauses(&flips)?.iter().for_each(|client| println!("{client}"));
    histories.judge(&rig)?;
    rig.keep = false;
    Ok(())
}

/// History that lies in four eras (or as many as `CROSSOVER_FLIPS` makes) on two clusters is one log to a late group.
#[test]
fn history_from_earliest() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    // The writers' own groups are not needed here.
    let writers = KINDS.map(|kind| crossover_tests::live::Kind { has_group: false, ..kind });
    let mut traffic = Traffic::start(&rig, &writers[..3], RATE)?;
    traffic.flip(&rig, setting("CROSSOVER_FLIPS", 3)?, Duration::from_secs(3))?;
    let mut histories = traffic.finish()?;
    let all = histories.written.to_string();
    let readers = KINDS.iter().filter(|kind| kind.has_group);
    let readers: Vec<_> = readers
        .map(|kind| group(&rig, kind, "late", &["--stop-at-end-count", &all]))
        .collect::<Result<_>>()?;
    for reader in readers {
        histories.consumers.push(wait_end(reader, Duration::from_secs(120))?);
    }
    histories.judge(&rig)?;
    rig.keep = false;
    Ok(())
}
