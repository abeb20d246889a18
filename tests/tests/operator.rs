//! A hurried operator: commands at the wrong moment, twice, interrupted, with nonsense in them. Needs
//! `cargo build -p crossover -p crossover-loadtest --features crossover/failpoints` first.
//!
//! Java, librdkafka and franz-go, idempotent producers and groups, live on two topics over each case; the checker judges.

#[path = "operator/admin_api.rs"]
mod admin_api;
#[path = "operator/clients.rs"]
mod clients;
#[path = "operator/configuration.rs"]
mod configuration;
#[path = "operator/interrupts.rs"]
mod interrupts;
#[path = "operator/units.rs"]
mod units;

use anyhow::Result;
use crossover_harness::rig::Rig;
use crossover_tests::fleet::Fleet;
use crossover_tests::rig_with;

const TOPICS: [&str; 2] = ["orders", "payments"];
const PARTITIONS: usize = 4;
/// A flip may be held until a client has started; restarts come soon after each other.
const PATIENT: &str = "[limits]\nhold_ms_max = 8000\n\n[timeouts]\nloss_grace_ms = 2000\n";

/// One broker a side: what is tried here is the operator, not the brokers.
fn two_clusters() -> Result<Rig> {
    let mut rig = rig_with("3.9.2", "4.3.1", 1, PATIENT)?;
    rig.keep = true;
    for topic in TOPICS {
        for cluster in [&rig.source, &rig.target] {
            cluster.create_topic(topic, i32::try_from(PARTITIONS)?, 1, &[])?;
        }
    }
    Ok(rig)
}

/// As [`two_clusters`], with every library at work on both topics.
fn under_traffic() -> Result<(Rig, Fleet)> {
    let rig = two_clusters()?;
    let fleet = Fleet::start(&rig, &TOPICS, PARTITIONS)?;
    Ok((rig, fleet))
}

/// Judges, and keeps the run's folder only if somebody asks for it.
fn judged(mut rig: Rig, fleet: Fleet) -> Result<()> {
    fleet.judge(&rig)?;
    done(&mut rig);
    Ok(())
}

fn done(rig: &mut Rig) {
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
}
