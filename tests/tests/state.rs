//! The state directory is lost: refused at a start, rebuilt from the clusters, and then the same (RULES R31).

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::faults::wait_until_well;
use crossover_tests::live::{KINDS, TOPIC, Traffic, create_topic};
use crossover_tests::{one_at_a_time, rig, swapped, text, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const SAMPLES: i64 = 10_000;
const PARTITIONS: i64 = 12;
const COPIED_MAX: Duration = Duration::from_secs(20);

/// The body of an admin API's answer.
fn get(rig: &Rig, path: &str) -> Result<String> {
    let address = rig.admin.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// What positions all over the virtual log, and behind its end, translate to.
fn samples(rig: &Rig, per_partition: i64) -> Result<Vec<String>> {
    let of = |n: i64| {
        let (partition, offset) = (n % PARTITIONS, n / PARTITIONS * per_partition * PARTITIONS / SAMPLES);
        get(rig, &format!("/v1/translate?topic={TOPIC}&partition={partition}&offset={offset}"))
    };
    (0..SAMPLES).map(of).collect()
}

#[test]
fn r31_a_lost_state_is_rebuilt_from_the_clusters() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut traffic = Traffic::start(&rig, &KINDS[..4], 100)?;
    traffic.flip(&rig, 3, Duration::from_secs(2))?;
    let output = rig.crossover(&["groups", "move", "live-franz", "--to", "target"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written: usize = traffic.producers.iter_mut().map(|p| p.count("P.ok")).sum();
    let per_partition = i64::try_from(written)? / PARTITIONS * 11 / 10;
    let before = samples(&rig, per_partition)?;
    let log = rig.directory.join("crossover.log");
    wait_for(COPIED_MAX, "the copies to be written", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        // Once per side for what was there at the start, and after each change.
        Ok(text.matches("the copy of the state is up to date").count() >= 8)
    })?;
    rig.stop_proxy()?;
    let state = rig.directory.join("crossover-state");
    std::fs::rename(&state, rig.directory.join("lost"))?;

    let refused = rig.start_proxy().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(refused.contains("crossover state restore"), "an empty state was not refused: {refused:?}");
    let file = rig.directory.join("crossover.toml");
    let config = std::fs::read_to_string(&file)?;
    std::fs::write(&file, swapped(&config))?;
    let said = text(&rig.crossover(&["state", "restore", "--config", "crossover.toml"])?);
    ensure!(
        said.contains("nothing was restored") && said.contains("are swapped"),
        "restored to another pair:\n{said}"
    );
    std::fs::write(&file, config)?;
    let output = rig.crossover(&["state", "restore", "--config", "crossover.toml"])?;
    let said = text(&output);
    ensure!(output.status.success(), "not restored:\n{said}");
    println!("{said}");
    rig.start_proxy()?;
    let after = samples(&rig, per_partition)?;
    let other = before.iter().zip(&after).find(|(before, after)| before != after);
    ensure!(other.is_none(), "a position translates otherwise: {other:?}");
    wait_until_well(&rig, &mut traffic)?;
    // A proxy that was away for seconds is more than sarama's and franz-go's group joins take without a word.
    traffic.finish()?.judge_allowing(&rig, &["--allow-errors", "P.fail,C.error,E.error"])?;
    let again = rig.crossover(&["state", "restore", "--config", "crossover.toml"])?;
    ensure!(!again.status.success(), "a state in use was overwritten");
    rig.keep = false;
    Ok(())
}
