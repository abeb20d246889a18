//! Failures of brokers, connections and the proxy, placed behind each step of a flip. Needs
//! `cargo build -p crossover --features failpoints` and `cargo build -p crossover-loadtest` first.
//!
//! A run has its clusters, its clients, and a verdict over their histories. A row per case (step, failure, direction, how
//! the flip ended, how long until everything was well again) goes to a table when the verdict has passed, and what the
//! table holds already is left out: what was interrupted goes on where it was.
//! `CROSSOVER_STEPS` (comma list) picks steps, `CROSSOVER_REPEATS` repeats each case, `CROSSOVER_STEPS_PER_RUN` (default 1)
//! saves starts and verdicts, `CROSSOVER_TABLE` names the table (default `target/faults.tsv`).

use anyhow::{Result, ensure};
use crossover_harness::relay::Cut;
use crossover_harness::rig::RELAYED;
use crossover_tests::fault_run::{Clients, Failure, PROPERTIES, Run};
use crossover_tests::fault_table::Table;
use crossover_tests::faults::{Outcome, STEPS, owner, stop_behind};
use crossover_tests::live::{KINDS, Kind, TOPIC, Traffic, create_topic};
use crossover_tests::measure::machine_load;
use crossover_tests::{one_at_a_time, relayed_rig, rig, setting};
use std::collections::HashMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Records per second of each producer.
const RATE: u32 = 20;
/// A change of a topic is held so long behind the fence: longer than its tool needs to start, within the hold bound.
const HELD: Duration = Duration::from_millis(4_300);

/// For a topic that is made in the clusters themselves to be seen.
const SEEN_MAX: Duration = Duration::from_secs(30);

#[test]
fn elections() -> Result<()> {
    every_step(&[Failure::Election], Clients::Idempotent)
}

#[test]
fn killed_brokers() -> Result<()> {
    every_step(&[Failure::KillBroker], Clients::SomeImpatient)
}

#[test]
fn paused_brokers() -> Result<()> {
    every_step(&[Failure::PauseBroker], Clients::SomeImpatient)
}

#[test]
fn cut_connections() -> Result<()> {
    let cuts = [Cut::Fin, Cut::Rst];
    let failures = cuts.into_iter().flat_map(|cut| [Failure::Cut(cut), Failure::LoseAnswer(cut)]);
    every_step(&failures.collect::<Vec<_>>(), Clients::WithAcksOne)
}

#[test]
fn r13_killed_proxy() -> Result<()> {
    every_step(&[Failure::KillProxy], Clients::SomeImpatient)
}

/// The control: clients of one bare cluster, elections and cut connections, no proxy and no flip. Prints how often a
/// consumer of each library stepped backwards; everything else must hold.
#[test]
fn bare_kafka() -> Result<()> {
    let _turn = one_at_a_time();
    let elections = setting("CROSSOVER_FLIPS", 100)?;
    let mut rig = relayed_rig("3.9.2", "4.3.1", 3, &PROPERTIES)?;
    rig.keep = true;
    create_topic(&rig)?;
    let bootstrap = rig.source.bootstrap();
    let direct = std::mem::replace(&mut rig.bootstrap, rig.source.relay_bootstrap(RELAYED));
    let readers = ["java-4.3.1", "librdkafka", "franz"];
    let kinds: Vec<Kind> = KINDS[1..4].iter().filter(|k| readers.contains(&k.name)).copied().collect();
    let traffic = Traffic::start(&rig, &kinds, 4 * RATE)?;
    for _ in 0..elections {
        rig.source.rotate_replicas(TOPIC)?;
        rig.source.elect_preferred(TOPIC)?;
        rig.relays[0].values().for_each(|relay| relay.cut(Cut::Fin));
        sleep(Duration::from_millis(700));
    }
    rig.bootstrap = direct;
    let histories = traffic.finish()?;
    println!("{elections} elections on {bootstrap}; {}", machine_load());
    let mut allowed = Vec::new();
    for history in &histories.consumers {
        allowed.extend(["--allow-redelivery".to_owned(), history.display().to_string()]);
        println!("{}: {} steps backwards", history.display(), backwards(history)?);
    }
    histories.judge_allowing(&rig, &allowed.iter().map(String::as_str).collect::<Vec<_>>())?;
    rig.keep = false;
    Ok(())
}

/// Records that a consumer got below one it had got before.
fn backwards(history: &Path) -> Result<usize> {
    let mut at: HashMap<String, i64> = HashMap::new();
    let text = std::fs::read_to_string(history)?;
    let polls =
        text.lines().map(|line| line.split('\t').collect::<Vec<_>>()).filter(|f| f.get(1) == Some(&"C.poll"));
    let steps = polls.filter_map(|fields| {
        let (part, offset) = (fields.get(2)?, fields.get(3)?.parse().ok()?);
        at.insert((*part).to_owned(), offset).filter(|before| offset <= *before)
    });
    Ok(steps.count())
}

fn every_step(failures: &[Failure], clients: Clients) -> Result<()> {
    let _turn = one_at_a_time();
    let repeats: usize = setting("CROSSOVER_REPEATS", 1)?;
    let table = Table::open()?;
    let all = steps().into_iter().map(|step| (step, missing(&table, step, failures, repeats)));
    let (done, open): (Vec<_>, Vec<_>) = all.partition(|(_, cases)| cases.is_empty());
    done.iter().for_each(|(step, _)| println!("{step}: {failures:?} stand in the table"));
    for steps in open.chunks(setting("CROSSOVER_STEPS_PER_RUN", 1)?.max(1)) {
        let mut run = Run::start(clients, RATE)?;
        for (step, cases) in steps {
            cases.iter().try_for_each(|failure| run.cases(step, *failure))?;
        }
        table.add(&run.finish(clients)?)?;
    }
    Ok(())
}

/// The cases of a step that the table does not hold yet.
fn missing(table: &Table, step: &str, failures: &[Failure], repeats: usize) -> Vec<Failure> {
    let cases = failures.iter().flat_map(|failure| {
        let left = repeats.saturating_sub(table.repeats(step, &format!("{failure:?}")));
        std::iter::repeat_n(*failure, left)
    });
    cases.collect()
}

fn steps() -> Vec<&'static str> {
    let wanted = std::env::var("CROSSOVER_STEPS").ok();
    let is_wanted = |step: &&str| wanted.as_ref().is_none_or(|w| w.split(',').any(|w| w == *step));
    STEPS.into_iter().filter(is_wanted).collect()
}

/// RULES R25, R26: what a client changes of a topic, or deletes of it, waits from FENCE to RELEASE and then reaches both
/// sides.
#[test]
fn r26_changes_are_held_behind_the_fence() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic(TOPIC, 1, 1, &[])?;
    }
    let deadline = Instant::now() + SEEN_MAX;
    while owner(&rig).is_err() {
        ensure!(Instant::now() < deadline, "the topic is not seen within {SEEN_MAX:?}");
        sleep(Duration::from_millis(100));
    }
    let configs = |at: &str, change: &[&str]| {
        let mut args = vec!["--bootstrap-server", at, "--entity-type", "topics", "--entity-name", TOPIC];
        args.extend(change);
        rig.target.kafka().run_tool("kafka-configs", &args, None)
    };
    let stopped = stop_behind(&rig, "cutover", "FENCE")?;
    let outcome = std::thread::scope(|scope| -> Result<Outcome> {
        let change =
            scope.spawn(|| configs(&rig.bootstrap, &["--alter", "--add-config", "retention.ms=7654321"]));
        // The tool needs a while to start; the hold bound is 5 s.
        sleep(HELD);
        ensure!(!change.is_finished(), "a change was not held behind the fence");
        stopped.go_on()?;
        let outcome = stopped.outcome()?;
        let changed = change.join().map_err(|_| anyhow::anyhow!("the tool panicked"))??;
        let said = String::from_utf8_lossy(&changed.stderr).into_owned();
        ensure!(changed.status.success(), "the change failed after the flip ({outcome:?}): {said}");
        Ok(outcome)
    })?;
    println!("the flip ended as {outcome:?}");
    for at in [rig.source.bootstrap(), rig.target.bootstrap()] {
        let shown = configs(&at, &["--describe"])?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.contains("retention.ms=7654321"), "not changed at {at}: {shown}");
    }
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
