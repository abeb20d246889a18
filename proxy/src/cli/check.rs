//! `crossover check`: the file, then both clusters.

use std::path::Path;

use crossover_config::{Config, ConfigErrors, HostPort, PortRange, Side};
use serde_json::{Value, json};

use super::probe::{self, Found, ProbeError};
use super::{Outcome, print_json};
use crate::control::core_side;
use crate::run::{Present, look_at_state};
use crate::store::{FOREIGN_REMEDY, foreign};

/// One bootstrap address and what answered there.
pub(super) struct Probed {
    pub(super) side: Side,
    pub(super) address: HostPort,
    pub(super) result: Result<Found, ProbeError>,
}

pub(super) async fn check(file: &Path, json: bool) -> anyhow::Result<Outcome> {
    let config = match crossover_config::load(file) {
        Ok(config) => config,
        Err(errors) => {
            match json {
                true => {
                    print_json(&json!({ "ok": false, "problems": problems_json(&errors), "clusters": [] }))?
                }
                false => eprintln!("{errors}"),
            }
            return Ok(Outcome::Failed);
        }
    };
    let probed = probe_all(&config).await;
    let mut problems = judge(&probed);
    let ports = judge_ports(config.listener.node_ports, &probed);
    problems.extend(ports.as_ref().err().cloned());
    let mut notes: Vec<String> = ports.ok().flatten().into_iter().collect();
    match judge_state(&config.state.directory, &probed) {
        Ok(note) => notes.extend(note),
        Err(problem) => problems.push(problem),
    }
    if json {
        let clusters: Vec<Value> = probed.iter().map(probed_json).collect();
        let ok = problems.is_empty();
        print_json(&json!({ "ok": ok, "problems": problems, "notes": notes, "clusters": clusters }))?;
    } else {
        println!("{}: the configuration is valid.", file.display());
        probed.iter().for_each(|one| println!("{}", probed_text(one)));
        notes.iter().for_each(|note| println!("{note}"));
        problems.iter().for_each(|problem| eprintln!("{problem}"));
    }
    Ok(if problems.is_empty() { Outcome::Done } else { Outcome::Failed })
}

async fn probe_all(config: &Config) -> Vec<Probed> {
    let mut probed = Vec::new();
    for side in [Side::Source, Side::Target] {
        for address in &config.cluster(side).bootstrap {
            let result = probe::probe(address, config.timeouts.connect).await;
            probed.push(Probed { side, address: address.clone(), result });
        }
    }
    probed
}

/// What must not be: a cluster without any answer, addresses of two clusters on one side, one cluster on both sides.
pub(super) fn judge(probed: &[Probed]) -> Vec<String> {
    let mut problems = Vec::new();
    let ids = |side| -> Vec<&str> {
        let found =
            probed.iter().filter(move |one| one.side == side).filter_map(|one| one.result.as_ref().ok());
        let mut ids: Vec<&str> = found.filter_map(|found| found.cluster_id.as_deref()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    for side in [Side::Source, Side::Target] {
        if !probed.iter().any(|one| one.side == side && one.result.is_ok()) {
            problems.push(format!(
                "No broker of the {0} answers; check `{0}.bootstrap` and that the cluster is running.",
                side.as_str()
            ));
        }
        if ids(side).len() > 1 {
            problems.push(format!(
                "`{}.bootstrap` names brokers of different clusters: {}; keep those of one.",
                side.as_str(),
                ids(side).join(", ")
            ));
        }
    }
    if let Some(id) = ids(Side::Source).iter().find(|id| ids(Side::Target).contains(id)) {
        problems.push(format!("Source and target are the same cluster, {id}; name two different clusters."));
    }
    problems
}

/// Every broker of both clusters needs a port of its own. `Ok` tells how many are left, where both clusters have said how
/// many brokers they have; `Err`, that there are too few.
pub(super) fn judge_ports(range: PortRange, probed: &[Probed]) -> Result<Option<String>, String> {
    let brokers = |side| {
        let found = probed.iter().filter(|one| one.side == side).filter_map(|one| one.result.as_ref().ok());
        found.map(|found| found.brokers).max()
    };
    let known = [Side::Source, Side::Target].map(brokers);
    let counted = match known {
        [Some(source), Some(target)] => {
            format!("{source} running brokers of the source and {target} of the target")
        }
        [Some(source), None] => format!("{source} running brokers of the source alone"),
        [None, Some(target)] => format!("{target} running brokers of the target alone"),
        [None, None] => return Ok(None),
    };
    let (ports, wanted) = (range.count(), known.iter().flatten().sum::<usize>());
    let said = format!("`listener.node_ports` {}-{}: {ports} ports for {counted}", range.first, range.last);
    match ports.checked_sub(wanted) {
        None => Err(format!(
            "{said}; each needs its own, and those without one cannot be reached: widen the range to {wanted} ports at least, and some more for brokers that are added."
        )),
        Some(_) if known.contains(&None) => Ok(None),
        Some(0) => Ok(Some(format!(
            "{said}; none is left: a broker that is added cannot be reached before the range is widened and Crossover restarted."
        ))),
        Some(left) => Ok(Some(format!("{said}; {left} are left for brokers that are added."))),
    }
}

/// A state that is there must be of these clusters (RULES R31). `Ok` may have something to say.
pub(super) fn judge_state(directory: &Path, probed: &[Probed]) -> Result<Option<String>, String> {
    let bound = match look_at_state(directory) {
        Ok(Present::Empty) => return Ok(None),
        Ok(Present::InUse) => {
            return Ok(Some(format!(
                "`state.directory` {}: a Crossover runs on it; stop it before you start another one.",
                directory.display()
            )));
        }
        Ok(Present::Of(bound)) => bound,
        Err(problem) => return Err(format!("{problem:#}")),
    };
    let foreign = probed.iter().find_map(|one| {
        let id = one.result.as_ref().ok()?.cluster_id.as_deref()?;
        foreign(&bound, core_side(one.side), id)
    });
    match foreign {
        Some(problem) => {
            Err(format!("`state.directory` {}: {problem}; {FOREIGN_REMEDY}.", directory.display()))
        }
        None => Ok(None),
    }
}

fn problems_json(errors: &ConfigErrors) -> Vec<Value> {
    let one = |problem: &crossover_config::Problem| json!({ "line": problem.line, "column": problem.column, "field": problem.field, "problem": problem.problem, "remedy": problem.remedy });
    errors.problems.iter().map(one).collect()
}

fn probed_json(one: &Probed) -> Value {
    let found = one.result.as_ref().ok();
    json!({
        "side": one.side.as_str(),
        "address": one.address.to_string(),
        "reachable": found.is_some(),
        "cluster_id": found.and_then(|found| found.cluster_id.clone()),
        "brokers": found.map(|found| found.brokers),
        "problem": one.result.as_ref().err().map(ToString::to_string),
    })
}

fn probed_text(one: &Probed) -> String {
    let side = one.side.as_str();
    match &one.result {
        Ok(found) => {
            let id = found.cluster_id.as_deref().unwrap_or("without an id");
            format!("{side} {}: cluster {}, brokers: {}", one.address, super::table::clean(id), found.brokers)
        }
        Err(error) => format!("{side} {}: {error}", one.address),
    }
}
