//! What the commits that a cluster holds stand for.

use anyhow::{Context, Result};
use crossover_harness::Commit;
use crossover_harness::rig::Rig;
use serde_json::Value;
use std::collections::BTreeMap;

/// Position by partition.
pub type Positions = BTreeMap<i32, i64>;

/// The virtual positions of one topic in what one side holds for a group.
///
/// # Errors
/// A commit stands for nothing.
pub fn resolve_all(rig: &Rig, side: &str, topic: &str, commits: &[Commit]) -> Result<Positions> {
    let of_topic = commits.iter().filter(|commit| commit.topic == topic);
    of_topic.map(|commit| Ok((commit.partition, resolve(rig, side, commit)?))).collect()
}

/// The virtual position of a commit, by what is documented of commits: the tag where there is one, else "the record before,
/// and one", else the record it names.
fn resolve(rig: &Rig, side: &str, commit: &Commit) -> Result<i64> {
    if let Some(tag) = commit.metadata.strip_prefix("xo1:") {
        let position = tag.split(':').nth(1).context("a tag without a position")?;
        return Ok(position.parse()?);
    }
    if let Some(before) = translate(rig, side, commit, commit.offset - 1)? {
        return Ok(before + 1);
    }
    let position = translate(rig, side, commit, commit.offset)?;
    position.with_context(|| format!("{commit:?} of the {side} stands for nothing"))
}

fn translate(rig: &Rig, side: &str, commit: &Commit, native: i64) -> Result<Option<i64>> {
    if native < 0 {
        return Ok(None);
    }
    let (partition, native) = (commit.partition.to_string(), native.to_string());
    let mut args = vec!["translate", "--json", "--topic", &commit.topic, "--partition", &partition];
    args.extend(["--side", side, "--native", &native]);
    let output = rig.crossover(&args)?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(answer["virtual_offset"].as_i64())
}
