//! Everything together, for long: producers and groups of all libraries, an application that reads and writes in
//! transactions, flips of all their topics, and one failure in each flip, of every kind behind every step. Needs
//! `cargo build -p crossover --features failpoints` and `cargo build -p crossover-loadtest` first.
//!
//! `CROSSOVER_FAULTS` (default 8), `CROSSOVER_RECORDS` (default 100,000) and `CROSSOVER_RATE` (records per second of each
//! producer, default 150) say how long: until there were as many failures, and as many records. `CROSSOVER_MINUTES` ends it
//! earlier.

use anyhow::{Context, Result, ensure};
use crossover_harness::relay::Cut;
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::fault_run::{Clients, Failure, Hit, Run};
use crossover_tests::faults::STEPS;
use crossover_tests::history::{acknowledged, lines, reads_once_in_order};
use crossover_tests::live::{PARTITIONS, TOPIC, create_topic_named};
use crossover_tests::{end, one_at_a_time, setting, wait_count, wait_more};
use std::time::{Duration, Instant};

const PAYMENTS: &str = "payments";
const COPIES: &str = "copies";
const WAIT: Duration = Duration::from_secs(120);
/// Less than what the application copies on a busy machine: two members with a transaction a second, of 20 records.
const PAYMENTS_RATE: &str = "25";
/// For the application to copy what has piled up: on a busy machine a transaction takes half a second.
const CATCH_UP_MAX: Duration = Duration::from_secs(900);
/// Of the application: transactions and records between two flips.
const FLOWS: usize = 5;
/// Writers of the other topic are numbered from 1.
const WRITER: i64 = 100;

const FAILURES: [Failure; 8] = [
    Failure::Election,
    Failure::Cut(Cut::Fin),
    Failure::LoseAnswer(Cut::Rst),
    Failure::KillBroker,
    Failure::Cut(Cut::Rst),
    Failure::KillProxy,
    Failure::LoseAnswer(Cut::Fin),
    Failure::PauseBroker,
];

#[test]
fn everything_together() -> Result<()> {
    let _turn = one_at_a_time();
    let (faults, records) = (setting("CROSSOVER_FAULTS", 8)?, setting("CROSSOVER_RECORDS", 100_000)?);
    let mut run = Run::start(Clients::SomeImpatient, setting("CROSSOVER_RATE", 150)?)?;
    for topic in [PAYMENTS, COPIES] {
        create_topic_named(&run.rig, topic)?;
    }
    run.topics = vec![TOPIC, PAYMENTS, COPIES];
    let mut application = Application::start(&run.rig)?;
    let began = Instant::now();
    let mut done = 0;
    let minutes_max = setting("CROSSOVER_MINUTES", usize::MAX)?;
    let is_over =
        |began: Instant| began.elapsed().as_secs() / 60 >= u64::try_from(minutes_max).unwrap_or(u64::MAX);
    while (done < faults || written(&mut run, &mut application) < records) && !is_over(began) {
        let (step, failure, hit) = case(done);
        run.case(step, failure, hit).with_context(|| format!("{failure:?} of the {hit:?} behind {step}"))?;
        application.flows().with_context(|| format!("after {failure:?} of the {hit:?} behind {step}"))?;
        done += 1;
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        println!("{done} failures, {} records, {minutes:.1} min", written(&mut run, &mut application));
    }
    println!("{done} failures in as many flips, {} records", written(&mut run, &mut application));
    application.judge(&run.rig)?;
    run.finish(Clients::SomeImpatient).map(|_| ())
}

/// Every failure behind every step, of either owner: they come round at different times.
fn case(number: usize) -> (&'static str, Failure, Hit) {
    let steps = STEPS.len();
    let failure = FAILURES[(number + number / steps) % FAILURES.len()];
    let hit = if (number / 2).is_multiple_of(2) { Hit::OldOwner } else { Hit::NewOwner };
    let hit = if failure == Failure::KillProxy { Hit::OldOwner } else { hit };
    (STEPS[number % steps], failure, hit)
}

fn written(run: &mut Run, application: &mut Application) -> usize {
    let of_run: usize = run.traffic.producers.iter_mut().map(|producer| producer.count("P.ok")).sum();
    of_run + application.producer.count("P.ok")
}

/// Payments, and members that copy them: transactions with the offsets they have read.
struct Application {
    producer: Driver,
    members: Vec<Driver>,
}

impl Application {
    fn start(rig: &Rig) -> Result<Application> {
        let writer = WRITER.to_string();
        let args =
            ["--topic", PAYMENTS, "--partitions", PARTITIONS, "--rate", PAYMENTS_RATE, "--writer", &writer];
        let producer = rig.driver("java-4.3.1", "producer", "payments", &args)?;
        let member = |(number, kind): (usize, &&str)| {
            let (id, name) = (format!("copy-{number}"), format!("copy-{number}"));
            let args = ["--topic", PAYMENTS, "--to", COPIES, "--group", "copying", "--transaction", &id];
            rig.driver(kind, "transformer", &name, &[&args[..], &["--strategy", "cooperative"]].concat())
        };
        let members =
            ["java-3.9.2", "java-4.3.1"].iter().enumerate().map(member).collect::<Result<_, _>>()?;
        let mut application = Application { producer, members };
        application.flows()?;
        Ok(application)
    }

    fn flows(&mut self) -> Result<()> {
        let members = self.members.iter_mut().map(|member| (member, "T.ok"));
        wait_more(members.chain([(&mut self.producer, "P.ok")]), FLOWS, WAIT)
    }

    /// Every payment was copied, once, in order.
    fn judge(self, rig: &Rig) -> Result<()> {
        let expected = acknowledged(&end(self.producer)?, WRITER)?;
        let args = ["--topic", COPIES, "--group", "judge", "--reset", "earliest"];
        let args = [&args[..], &["--conf", "isolation.level=read_committed"]].concat();
        let mut reader = rig.driver("java-4.3.1", "consumer", "judge", &args)?;
        wait_count(&mut reader, "C.poll", expected.len(), CATCH_UP_MAX)?;
        let mut repeated = 0;
        for member in self.members {
            let history = end(member)?;
            let failed = lines(&history, &["E.error", "C.reset"])?;
            ensure!(failed.is_empty(), "{}: {:?}", history.display(), failed.first().map(|f| &f.fields));
            repeated += lines(&history, &["T.abort"])?.len();
        }
        reads_once_in_order(&end(reader)?, &expected)?;
        println!("{} payments, each copied once, in order; {repeated} transactions repeated", expected.len());
        Ok(())
    }
}
