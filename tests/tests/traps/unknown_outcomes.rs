//! A flip must not take for "nothing is in flight" what it cannot know: requests that were appended and never answered, and
//! requests that are still on their way. Needs a proxy that was built with `--features failpoints`.

use anyhow::{Context, Result, ensure};
use crossover_harness::Cluster;
use crossover_harness::relay::{Cut, Fault};
use crossover_harness::rig::{Rig, count};
use crossover_tests::fault_run::{PROPERTIES, victim};
use crossover_tests::faults::{Outcome, Stopped, flip_when_allowed, owner, stop_behind, wait_until_well};
use crossover_tests::live::{Histories, Kind, TOPIC, Traffic, create_topic, writer_of};
use crossover_tests::measure::machine_load;
use crossover_tests::operator::status;
use crossover_tests::{end, flip, one_at_a_time, relayed_rig, wait_for};
use serde_json::Value;
use std::thread::sleep;
use std::time::{Duration, Instant};

const RATE: u32 = 30;
const WAIT: Duration = Duration::from_secs(90);
/// `limits.hold_ms_max`, and as long again for a loaded machine.
const ENDED_MAX: Duration = Duration::from_secs(10);
/// Unanswered produce requests before a flip begins: from then on each connection has one at a time.
const UNANSWERED: usize = 20;
const LOOK: Duration = Duration::from_millis(200);
/// Longer than any bound of a flip.
const VERY_LATE: Duration = Duration::from_secs(10);
/// Shorter than the grace time after a lost connection (2 s here).
const LATE: Duration = Duration::from_millis(1_500);
/// A flip can wait for this, to and fro, and twice where requests queue.
const SOMEWHAT: Duration = Duration::from_millis(700);

const PLAIN: &str = "max.in.flight.requests.per.connection=5,retries=0";
/// Those without sequence numbers do not repeat anything: a library that does may itself change the order of what it has in
/// flight. `sarama` has its defaults: acks=1, repeated three times, 0.1 s apart.
const CLIENTS: [Kind; 9] = [
    Kind { name: "java-3.9.2", driver: "java-3.9.2", producer: &[], has_group: true },
    Kind { name: "java-4.3.1", driver: "java-4.3.1", producer: &[], has_group: false },
    Kind { name: "librdkafka", driver: "librdkafka", producer: &["--idempotent", "true"], has_group: false },
    Kind { name: "franz", driver: "franz", producer: &[], has_group: false },
    Kind { name: "sarama", driver: "sarama", producer: &["--idempotent", "true"], has_group: false },
    Kind {
        name: "java-plain",
        driver: "java-3.9.2",
        producer: &["--acks", "all", "--idempotent", "false", "--conf", PLAIN],
        has_group: false,
    },
    Kind {
        name: "java-acks-1",
        driver: "java-3.9.2",
        producer: &["--acks", "1", "--idempotent", "false", "--conf", PLAIN],
        has_group: false,
    },
    Kind {
        name: "java-acks-0",
        driver: "java-3.9.2",
        producer: &["--acks", "0", "--idempotent", "false", "--conf", PLAIN],
        has_group: false,
    },
    Kind { name: SARAMA_DEFAULT, driver: "sarama", producer: &[], has_group: false },
];
const SARAMA_DEFAULT: &str = "sarama-default";
/// They must not give anything up, whatever happens.
const PATIENT: [&str; 4] = ["java-3.9.2", "java-4.3.1", "librdkafka", "franz"];

/// What is late on its way to the old owner.
#[derive(Debug)]
struct Late {
    by: Duration,
    /// Also what the proxy asks for itself.
    everything: bool,
    /// The connections end for the proxy while requests are on their way.
    cut: bool,
}

struct Run {
    rig: Rig,
    traffic: Traffic,
}

/// The old owner's leader dies while produce requests are in flight that it has appended and not answered.
#[test]
fn a_leader_that_dies_behind_an_unanswered_append_costs_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let mut run = Run::start()?;
    for _ in ["cutover", "rollback"] {
        run.dies_unanswered()?;
    }
    run.finish(&PATIENT)
}

/// What is on its way between the proxy and the old owner is late: the flip ends within its bound, and what arrives
/// afterwards arrives in nobody's sealed log. Where only clients' requests are late, nothing else keeps the flip from
/// being quicker than they are. The test fails for a proxy with `CROSSOVER_BUG=R11NoDrain`, or `=R2LossIgnored`.
#[test]
fn requests_that_are_late_on_their_way_to_the_old_owner_stay_out_of_its_sealed_log() -> Result<()> {
    let _turn = one_at_a_time();
    let mut run = Run::start()?;
    run.late(&Late { by: SOMEWHAT, everything: false, cut: false })?;
    run.late(&Late { by: VERY_LATE, everything: true, cut: false })?;
    run.late(&Late { by: LATE, everything: false, cut: true })?;
    let all: Vec<&str> = PATIENT.into_iter().chain(["sarama"]).collect();
    run.finish(&all)
}

impl Run {
    fn start() -> Result<Run> {
        let mut rig = relayed_rig("3.9.2", "4.3.1", 3, &PROPERTIES)?;
        rig.keep = true;
        create_topic(&rig)?;
        let traffic = Traffic::start(&rig, &CLIENTS, RATE)?;
        Ok(Run { rig, traffic })
    }

    fn dies_unanswered(&mut self) -> Result<()> {
        let (verb, side) = self.next()?;
        let victim = victim(self.cluster(side))?;
        let before = self.cluster(side).log_ends(TOPIC)?;
        self.relay(side, victim, Fault::DropClientAnswers)?;
        self.wait_unanswered(side)?;
        let stopped = stop_behind(&self.rig, verb, "FENCE")?;
        let appended = self.grown(side, victim, &before)?;
        ensure!(appended > 0, "nothing was appended without an answer");
        self.cluster(side).kill_broker(victim)?;
        self.relay(side, victim, Fault::None)?;
        let (outcome, took) = ended(stopped)?;
        println!("{verb}: {appended} records unanswered; {outcome:?} after {took:.1?}; {}", machine_load());
        self.cluster(side).start_all()?;
        self.go_on(verb, side, &outcome, Duration::from_secs(3))
    }

    fn late(&mut self, late: &Late) -> Result<()> {
        let (verb, side) = self.next()?;
        self.relays(side, Fault::LateClients(late.by));
        self.wait_unanswered(side)?;
        let stopped = stop_behind(&self.rig, verb, "FENCE")?;
        if late.everything {
            self.relays(side, Fault::Late(late.by));
        }
        if late.cut {
            self.rig.relays[side].values().for_each(|relay| relay.cut(Cut::Near));
        }
        let (outcome, took) = ended(stopped)?;
        println!("{verb}: {late:?}: {outcome:?} after {took:.1?}; {}", machine_load());
        if late.everything {
            let again = Instant::now();
            let refused = flip(&self.rig, verb, &[TOPIC]).err().map(|why| reason(&why));
            println!("  at once again: {refused:?} after {:.1?}", again.elapsed());
        }
        if late.cut {
            // What is sent on other connections must not overtake it: without sequence numbers that changes the order, also
            // where there is no proxy.
            sleep(late.by);
        }
        self.relays(side, Fault::None);
        self.go_on(verb, side, &outcome, late.by + Duration::from_secs(1))
    }

    /// What is to be flipped next, and the old owner.
    fn next(&self) -> Result<(&'static str, usize)> {
        Ok(if owner(&self.rig)? == "source" { ("cutover", 0) } else { ("rollback", 1) })
    }

    fn cluster(&self, side: usize) -> &Cluster {
        if side == 0 { &self.rig.source } else { &self.rig.target }
    }

    fn relays(&self, side: usize, fault: Fault) {
        self.rig.relays[side].values().for_each(|relay| relay.set(fault));
    }

    fn relay(&self, side: usize, broker: i32, fault: Fault) -> Result<()> {
        self.rig.relays[side].get(&broker).context("no such relay")?.set(fault);
        Ok(())
    }

    /// Waits until enough produce requests have met the fault.
    fn wait_unanswered(&self, side: usize) -> Result<()> {
        let met = || self.rig.relays[side].values().map(|relay| relay.faulted_produce()).sum::<usize>();
        let before = met();
        wait_for(WAIT, "produce requests without an answer", || Ok(met() >= before + UNANSWERED))
    }

    /// Records that a leader has taken since.
    fn grown(&self, side: usize, leader: i32, before: &[i64]) -> Result<i64> {
        let topic = self.cluster(side).topic(TOPIC)?.context("the topic is gone")?;
        let now = self.cluster(side).log_ends(TOPIC)?;
        let its = topic.partitions.iter().zip(now.iter().zip(before)).filter(|(p, _)| p.leader == leader);
        Ok(its.map(|(_, (now, before))| now - before).sum())
    }

    /// Everybody gets on; the topic goes to the other side, if it is not there yet; the log it has left stays as it is.
    fn go_on(&mut self, verb: &str, side: usize, outcome: &Outcome, watch: Duration) -> Result<()> {
        wait_until_well(&self.rig, &mut self.traffic)?;
        let moved = self.next()?.1 != side;
        ensure!(
            moved == (*outcome == Outcome::Flipped),
            "it says {outcome:?}, and the topic has moved: {moved}"
        );
        if !moved {
            flip_when_allowed(&self.rig, verb, &[TOPIC])?;
        }
        self.sealed_is_still(side, watch)?;
        wait_until_well(&self.rig, &mut self.traffic)?;
        self.sealed_is_still(side, Duration::ZERO)
    }

    /// The log that the topic has left ends at its boundary, for so long.
    fn sealed_is_still(&self, side: usize, watch: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let (sealed, now) = (self.sealed(side)?, self.cluster(side).log_ends(TOPIC)?);
            ensure!(sealed == now, "sealed at {sealed:?}, and {:.1?} later at {now:?}", began.elapsed());
            if began.elapsed() >= watch {
                return Ok(());
            }
            sleep(LOOK);
        }
    }

    /// Where the last era of a side has ended, by partition.
    fn sealed(&self, side: usize) -> Result<Vec<i64>> {
        let name = ["source", "target"][side];
        let eras = eras(&self.rig)?;
        let last =
            |eras: &Vec<Value>| eras.iter().rev().find(|era| era["side"] == name)?["native_end"].as_i64();
        eras.iter().map(|eras| last(eras).context("not sealed")).collect()
    }

    /// Ends everybody, and judges. `patient`: whose records must all have been acknowledged.
    fn finish(mut self, patient: &[&str]) -> Result<()> {
        let producers = self.traffic.producers.drain(..).map(end).collect::<Result<Vec<_>>>()?;
        let length = self.virtual_length()?;
        let mut reader = self.traffic.consumers.pop().context("no reader")?;
        crossover_tests::wait_count(&mut reader, "C.poll", length, WAIT)?;
        let consumers = vec![end(reader)?];
        for (kind, history) in CLIENTS.iter().zip(&producers) {
            let (ok, failed) = (count(history, "P.ok"), count(history, "P.fail"));
            println!("{}: {ok} acknowledged, {failed} given up", kind.name);
            ensure!(failed == 0 || !patient.contains(&kind.name), "{} gave up records", kind.name);
        }
        let written = producers.iter().map(|history| count(history, "P.ok")).sum();
        let repeats = writer_of(&CLIENTS, SARAMA_DEFAULT);
        let allowed = ["--allow-duplicates", &repeats, "--allow-errors", "P.fail"];
        Histories { producers, consumers, written }.judge_allowing(&self.rig, &allowed)?;
        self.rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
        Ok(())
    }

    /// Records of all partitions: no log here has anything but records.
    fn virtual_length(&self) -> Result<usize> {
        let ends = self.cluster(self.next()?.1).log_ends(TOPIC)?;
        let mut length = 0;
        for (eras, end) in eras(&self.rig)?.iter().zip(ends) {
            let last = eras.last().context("a partition without eras")?;
            let number = |field: &str| last[field].as_i64().with_context(|| format!("no {field}"));
            length += number("virtual_start")? + end - number("native_start")?;
        }
        Ok(usize::try_from(length)?)
    }
}

/// Lets a flip go on behind the fence; how it ended, and after how long.
fn ended(stopped: Stopped) -> Result<(Outcome, Duration)> {
    let began = Instant::now();
    stopped.go_on()?;
    let outcome = stopped.outcome()?;
    let took = began.elapsed();
    ensure!(took < ENDED_MAX, "{outcome:?} only after {took:?}");
    Ok((outcome, took))
}

/// The eras of each partition, as `status` shows them.
fn eras(rig: &Rig) -> Result<Vec<Vec<Value>>> {
    let status = status(rig)?;
    let topics = status["topics"].as_array().context("no topics")?;
    let topic = topics.iter().find(|topic| topic["name"] == TOPIC).context("the topic is not shown")?;
    let mut partitions = topic["partitions"].as_array().context("no partitions")?.clone();
    partitions.sort_by_key(|partition| partition["partition"].as_i64());
    let eras = |partition: &Value| Ok(partition["eras"].as_array().context("no eras")?.clone());
    partitions.iter().map(eras).collect()
}

/// What the record in a flip's output names as the reason that it did not take place.
fn reason(output: &anyhow::Error) -> String {
    let output = output.to_string();
    let mut records = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.find_map(|record| Some(record["reason"].as_str()?.to_owned())).unwrap_or(output)
}
