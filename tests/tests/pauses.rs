//! What clients notice of flips under load, judged. Measures: run it on a machine that does nothing else, with
//! `cargo build --release -p crossover -p crossover-loadtest` first and `cargo test --release`.
//!
//! `CROSSOVER_RATE` sets the records per second of all producers together, `CROSSOVER_FLIPS` the flips, `CROSSOVER_KINDS` (comma
//! list of names as in `KINDS`) the clients. Four brokers and all clients saturate two cores: then the brokers'
//! acknowledgements, which DRAIN waits for, take longer than everything the proxy does.

use anyhow::{Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::live::{KINDS, Traffic, chosen, create_topic, median};
use crossover_tests::measure::{cpu_seconds, machine_load};
use crossover_tests::{one_at_a_time, rig, setting, wait_count};
use std::time::{Duration, Instant};

/// With the command itself, ten seconds from flip to flip.
const BETWEEN: Duration = Duration::from_millis(8_500);
const WARM: usize = 20_000;
const WARM_MAX: Duration = Duration::from_secs(60);
const HOLD_MEDIAN_MAX_MS: f64 = 10.0;
const MEDIAN_EXCESS_MAX_MS: f64 = 50.0;
const MAX_EXCESS_MAX_MS: f64 = 500.0;

/// Traffic of their own for both clusters: a broker that nobody has produced to or fetched from takes a second for its
/// first requests, and a cluster in use has that behind it.
fn warm(rig: &Rig) -> Result<()> {
    for (name, cluster) in [("source", &rig.source), ("target", &rig.target)] {
        cluster.create_topic("warm", 12, 2, &[])?;
        let producer = ["--topic", "warm", "--partitions", "12", "--rate", "3000", "--writer", "99"];
        let producer_name = format!("warm-{name}-producer");
        let bootstrap = cluster.bootstrap();
        let mut producer = rig.driver_at(&bootstrap, "java-3.9.2", "producer", &producer_name, &producer)?;
        let consumer = ["--topic", "warm", "--group", "warm", "--reset", "earliest"];
        let consumer_name = format!("warm-{name}-consumer");
        let mut consumer = rig.driver_at(&bootstrap, "java-3.9.2", "consumer", &consumer_name, &consumer)?;
        wait_count(&mut producer, "P.ok", WARM, WARM_MAX)?;
        wait_count(&mut consumer, "C.poll", WARM, WARM_MAX)?;
        ensure!(producer.stop() && consumer.stop(), "the warm-up did not end well");
    }
    Ok(())
}

/// Every client library, 5,000 records per second, twelve flips ten seconds apart.
#[test]
fn clients_notice_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let (rate, flips) = (setting("CROSSOVER_RATE", 5_000_u32)?, setting("CROSSOVER_FLIPS", 12_u32)?);
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    warm(&rig)?;
    let kinds = chosen(&KINDS)?;
    let each = rate.div_ceil(u32::try_from(kinds.len())?);
    let mut traffic = Traffic::start(&rig, &kinds, each)?;
    println!("all clients work; {}", machine_load());
    let (began, cpu) = (Instant::now(), cpu_seconds(rig.proxy_pid())?);
    let flips = traffic.flip(&rig, usize::try_from(flips)?, BETWEEN)?;
    let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(rig.proxy_pid())? - cpu);
    let acked: usize = traffic.producers.iter_mut().map(|p| p.count("P.ok")).sum();
    println!("{acked} records acknowledged; the proxy took {:.0} % of a core", 100.0 * cpu / took);
    let histories = traffic.finish()?;
    let pauses = histories.pauses(&flips)?;
    pauses.iter().for_each(|client| println!("{client}"));
    let holds: Vec<f64> = flips.iter().map(|flip| flip.hold_ms).collect();
    println!("hold: median {:.1} ms of {holds:.1?}", median(&holds));
    histories.judge(&rig)?;
    rig.keep = false;
    ensure!(median(&holds) <= HOLD_MEDIAN_MAX_MS, "held for {:.1} ms (median)", median(&holds));
    for client in &pauses {
        let (median, max) = client.excess_ms();
        ensure!(median <= MEDIAN_EXCESS_MAX_MS && max <= MAX_EXCESS_MAX_MS, "it noticed: {client}");
    }
    Ok(())
}
