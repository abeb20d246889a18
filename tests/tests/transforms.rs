//! Applications that read, compute and write in one transaction, with the offsets they have read: each record is there
//! once in what they write, whichever of their topics and their group has moved.

use anyhow::{Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{acknowledged, lines, reads_once_in_order};
use crossover_tests::live::{PARTITIONS, TOPIC, create_topic, create_topic_named};
use crossover_tests::{end, flip, no_alarms, one_at_a_time, rig, text, wait_count, wait_more};
use std::path::PathBuf;
use std::time::Duration;

const COPIES: &str = "copies";
const GROUP: &str = "copying";
const WAIT: Duration = Duration::from_secs(90);
/// Transactions of each member between two steps.
const BETWEEN: usize = 10;

/// A library, and how its members share partitions.
type Members = [(&'static str, &'static [&'static str]); 2];

const COOPERATIVE: Members =
    [("java-3.9.2", &["--strategy", "cooperative"]), ("java-4.3.1", &["--strategy", "cooperative"])];
const STATIC: Members = [("java-3.9.2", &["--static-id", "one"]), ("java-4.3.1", &["--static-id", "two"])];

/// The application, what feeds it, and what it has told.
struct Application {
    kinds: Members,
    producer: Driver,
    members: Vec<Driver>,
    past: Vec<PathBuf>,
}

/// Trap 7: the topic that is written moves first and back, then both, then the group; members leave and come; the proxy
/// restarts; everything goes back.
#[test]
fn trap_7_what_is_read_and_written_in_one_transaction_is_exact_over_flips_of_either_topic() -> Result<()> {
    over_flips("3.9.2", "4.3.1", COOPERATIVE)
}

/// The same with static members that share by ranges, and the newer cluster as the source.
#[test]
fn trap_7_static_members_read_and_write_in_one_transaction_over_flips() -> Result<()> {
    over_flips("4.3.1", "3.9.2", STATIC)
}

fn over_flips(source: &str, target: &str, kinds: Members) -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig(source, target, 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    create_topic_named(&rig, COPIES)?;
    let mut application = Application::start(&rig, kinds)?;
    // The group's members are on the source all the time, its commits go to and fro.
    for (command, topic) in [("cutover", COPIES), ("rollback", COPIES), ("cutover", COPIES)] {
        application.flip(&rig, command, &[topic])?;
    }
    application.replace_a_member(&rig)?;
    application.flip(&rig, "cutover", &[TOPIC])?;
    application.move_group(&rig, "target")?;
    application.replace_a_member(&rig)?;
    rig.stop_proxy()?;
    rig.start_proxy()?;
    application.goes_on()?;
    application.flip(&rig, "rollback", &[TOPIC, COPIES])?;
    application.replace_a_member(&rig)?;
    application.move_group(&rig, "source")?;
    application.judge(&rig)
}

impl Application {
    fn start(rig: &Rig, kinds: Members) -> Result<Application> {
        let args = ["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", "300", "--writer", "1"];
        let producer = rig.driver("java-4.3.1", "producer", "feed", &args)?;
        let members =
            (0..kinds.len()).map(|index| member(rig, kinds, index, 0)).collect::<Result<Vec<_>>>()?;
        let mut application = Application { kinds, producer, members, past: Vec::new() };
        application.goes_on()?;
        Ok(application)
    }

    /// Every member commits more.
    fn goes_on(&mut self) -> Result<()> {
        wait_more(self.members.iter_mut().map(|member| (member, "T.ok")), BETWEEN, WAIT)
    }

    /// No transaction has to be repeated for it.
    fn flip(&mut self, rig: &Rig, command: &str, topics: &[&str]) -> Result<()> {
        let before: usize = self.members.iter_mut().map(|member| member.count("T.abort")).sum();
        flip(rig, command, topics)?;
        self.goes_on()?;
        let after: usize = self.members.iter_mut().map(|member| member.count("T.abort")).sum();
        println!("{command} of {topics:?}");
        ensure!(before == after, "{} transactions were aborted in a {command} of {topics:?}", after - before);
        Ok(())
    }

    fn move_group(&mut self, rig: &Rig, to: &str) -> Result<()> {
        let output = rig.crossover(&["groups", "move", GROUP, "--to", to])?;
        ensure!(output.status.success(), "the group did not move to the {to}: {}", text(&output));
        println!("the group to the {to}");
        self.goes_on()
    }

    /// The first one ends, and another one takes its place: what it reads first is what was committed last.
    fn replace_a_member(&mut self, rig: &Rig) -> Result<()> {
        self.past.push(end(self.members.remove(0))?);
        self.goes_on()?;
        self.members.insert(0, member(rig, self.kinds, 0, self.past.len())?);
        self.goes_on()
    }

    /// Everything that was written to the one topic is in the other one, once, in order.
    fn judge(mut self, rig: &Rig) -> Result<()> {
        no_alarms(rig)?;
        let expected = acknowledged(&end(self.producer)?, 1)?;
        let args = ["--topic", COPIES, "--group", "judge", "--reset", "earliest"];
        let args = [&args[..], &["--conf", "isolation.level=read_committed"]].concat();
        let mut reader = rig.driver("java-4.3.1", "consumer", "judge", &args)?;
        wait_count(&mut reader, "C.poll", expected.len(), WAIT)?;
        for member in self.members {
            self.past.push(end(member)?);
        }
        let mut counts = [0; 2];
        for history in &self.past {
            let failed = lines(history, &["E.error", "C.lost", "C.reset"])?;
            let failed = failed.first().map(|line| (&line.event, &line.fields));
            ensure!(failed.is_none(), "{}: {failed:?}", history.display());
            for (count, event) in counts.iter_mut().zip(["T.ok", "T.abort"]) {
                *count += lines(history, &[event])?.len();
            }
        }
        reads_once_in_order(&end(reader)?, &expected)?;
        // Without a proxy, too, a transaction that commits with the generation before a rebalance is to be repeated.
        let [committed, aborted] = counts;
        println!(
            "{} records, each copied once, in order; {committed} transactions, {aborted} repeated",
            expected.len()
        );
        Ok(())
    }
}

fn member(rig: &Rig, kinds: Members, index: usize, life: usize) -> Result<Driver> {
    let (kind, more) = kinds[index];
    let (id, name) = (format!("copy-{index}"), format!("copy-{index}-{life}"));
    let args = ["--topic", TOPIC, "--to", COPIES, "--group", GROUP, "--transaction", &id];
    rig.driver(kind, "transformer", &name, &[&args[..], more].concat()).map_err(Into::into)
}

/// Kafka Streams with `exactly_once_v2` and a store: its topics, the store's log among them, move to and fro, and so does
/// its group.
#[test]
fn trap_7_kafka_streams_goes_on_over_flips() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    create_topic_named(&rig, COPIES)?;
    let args = ["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", "200", "--writer", "1"];
    let producer = rig.driver("java-4.3.1", "producer", "feed", &args)?;
    let args = ["--topic", COPIES, "--group", "judge", "--reset", "earliest"];
    let args = [&args[..], &["--conf", "isolation.level=read_committed"]].concat();
    let mut reader = rig.driver("java-4.3.1", "consumer", "judge", &args)?;
    let mut instances = ["streams-3.9.2", "streams-4.3.1"]
        .map(|kind| instance(&rig, kind, 0))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut goes_on = |instances: &mut Vec<Driver>| -> Result<()> {
        instances.iter_mut().try_for_each(|instance| wait_count(instance, "E.note", 1, WAIT))?;
        let read = reader.count("C.poll");
        wait_count(&mut reader, "C.poll", read + 1_000, WAIT)
    };
    goes_on(&mut instances)?;
    // What a transaction takes in moves together: without the store's log the plan refuses.
    let output = rig.crossover(&["plan", COPIES])?;
    ensure!(text(&output).contains(STORE_LOG), "the plan does not name the store's log: {}", text(&output));
    let step = |command: &[&str]| -> Result<()> {
        let output = rig.crossover(command)?;
        println!("{command:?}");
        ensure!(output.status.success(), "{command:?}: {}", text(&output));
        Ok(())
    };
    for command in [
        // A compacted topic is moved by force: no key is deleted here.
        &["cutover", COPIES, STORE_LOG, "--create", "--force"][..],
        &["cutover", TOPIC],
        &["groups", "move", GROUP, "--to", "target"],
        &["rollback", TOPIC, COPIES, STORE_LOG, "--force"],
    ] {
        step(command)?;
        goes_on(&mut instances)?;
    }
    // The store is built again from its log, which lies in both clusters.
    let mut past = vec![end(instances.remove(0))?];
    instances.push(instance(&rig, "streams-4.3.1", 1)?);
    goes_on(&mut instances)?;
    step(&["groups", "move", GROUP, "--to", "source"])?;
    goes_on(&mut instances)?;
    no_alarms(&rig)?;
    let expected = acknowledged(&end(producer)?, 1)?;
    wait_count(&mut reader, "C.poll", expected.len(), WAIT)?;
    past.extend(instances.into_iter().map(end).collect::<Result<Vec<_>>>()?);
    for history in past {
        let failed = lines(&history, &["E.error"])?;
        ensure!(failed.is_empty(), "{}: {:?}", history.display(), failed.first().map(|line| &line.fields));
    }
    reads_once_in_order(&end(reader)?, &expected)?;
    println!("{} records, each once in the topic and once in the store, in order", expected.len());
    Ok(())
}

/// The topic to which Kafka Streams writes the store.
const STORE_LOG: &str = "copying-numbers-changelog";

fn instance(rig: &Rig, kind: &str, life: usize) -> Result<Driver> {
    let args = ["--topic", TOPIC, "--to", COPIES, "--group", GROUP];
    rig.driver(kind, "transformer", &format!("{kind}-{life}"), &args).map_err(Into::into)
}
