//! Metadata that expires all the time, and clients that do nothing for three eras.

use anyhow::{Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::live::{KINDS, TOPIC, Traffic, create_topic};
use crossover_tests::{check, end, flip, one_at_a_time, rig, wait_count};
use std::thread::sleep;
use std::time::Duration;

const AGE: [&str; 2] = ["--metadata-max-age-ms", "5000"];
const RATE: u32 = 20;
/// An era is three ages long: every client has asked for metadata in it.
const ERA: Duration = Duration::from_secs(15);
const IDLE: &str = "idle";
/// Two records a minute apart; three eras lie between them.
const ONE_A_MINUTE: &str = "0.0166";
const WAIT: Duration = Duration::from_secs(100);
/// One that asks for metadata all the time, one that keeps what it knows for minutes.
const IDLERS: [(&str, &str, &[&str]); 4] = [
    ("java-expiring", "java-4.3.1", &AGE),
    ("java-keeping", "java-3.9.2", &[]),
    ("librdkafka-expiring", "librdkafka", &AGE),
    ("franz-keeping", "franz", &[]),
];

/// Clients that write a record, are silent for three eras, and write another one; a group each that only waits.
struct Idlers {
    producers: Vec<Driver>,
    consumers: Vec<Driver>,
}

impl Idlers {
    fn start(rig: &Rig) -> Result<Idlers> {
        let mut idlers = Idlers { producers: Vec::new(), consumers: Vec::new() };
        for (name, client, more) in IDLERS {
            let (group, writer) = (format!("idle-{name}"), (11 + idlers.producers.len()).to_string());
            let mut args = vec!["--topic", IDLE, "--group", &group, "--reset", "earliest"];
            args.extend(more);
            idlers.consumers.push(rig.driver(client, "consumer", &format!("{name}-group"), &args)?);
            let mut args = vec!["--topic", IDLE, "--partitions", "1", "--rate", ONE_A_MINUTE];
            args.extend(["--writer", &writer]);
            args.extend(more);
            idlers.producers.push(rig.driver(client, "producer", &format!("{name}-producer"), &args)?);
        }
        idlers.wait(1)?;
        Ok(idlers)
    }

    /// Until every producer has so many records acknowledged, and every group has read all of them.
    fn wait(&mut self, records: usize) -> Result<()> {
        for producer in &mut self.producers {
            wait_count(producer, "P.ok", records, WAIT)?;
        }
        for consumer in &mut self.consumers {
            wait_count(consumer, "C.poll", records * IDLERS.len(), WAIT)?;
        }
        Ok(())
    }

    fn finish(mut self, rig: &Rig) -> Result<()> {
        for producer in &mut self.producers {
            ensure!(producer.count("P.ok") == 1, "{} was not idle over the eras", producer.name);
        }
        self.wait(2)?;
        let histories = |drivers: Vec<Driver>| drivers.into_iter().map(end).collect::<Result<Vec<_>>>();
        let (producers, consumers) = (histories(self.producers)?, histories(self.consumers)?);
        println!("{}", check(rig, IDLE, &producers, &consumers, &[])?);
        Ok(())
    }
}

/// Every library with metadata that lives for 5 s, over three flips; beside them idle producers and idle groups.
#[test]
fn metadata_expires_and_clients_idle_over_three_eras() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic(IDLE, 1, 2, &[])?;
        cluster.wait_in_sync(IDLE)?;
    }
    let traffic = Traffic::start_with(&rig, &KINDS, RATE, &AGE)?;
    let idlers = Idlers::start(&rig)?;
    for verb in ["cutover", "rollback", "cutover"] {
        flip(&rig, verb, &[TOPIC, IDLE])?;
        sleep(ERA);
    }
    idlers.finish(&rig)?;
    let histories = traffic.finish()?;
    histories.judge(&rig)?;
    histories.delivered_once()?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
