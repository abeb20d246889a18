//! `crossover check`: the file, then both clusters.

use std::path::Path;

use crossover_config::{Config, ConfigErrors, HostPort, Side};
use serde_json::{Value, json};

use super::probe::{self, Found, ProbeError};
use super::{Outcome, print_json};

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
    let problems = judge(&probed);
    if json {
        let clusters: Vec<Value> = probed.iter().map(probed_json).collect();
        print_json(&json!({ "ok": problems.is_empty(), "problems": problems, "clusters": clusters }))?;
    } else {
        println!("{}: the configuration is valid.", file.display());
        probed.iter().for_each(|one| println!("{}", probed_text(one)));
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

fn problems_json(errors: &ConfigErrors) -> Vec<Value> {
    let one = |problem: &crossover_config::Problem| json!({ "line": problem.line, "field": problem.field, "problem": problem.problem, "remedy": problem.remedy });
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
