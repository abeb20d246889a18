//! Kafka's own command line tools, those of both clusters' versions: before a flip they say through the proxy what they say
//! at the source; after flips they speak of one log.

#[path = "tools/after_flips.rs"]
mod after_flips;
#[path = "tools/before_flips.rs"]
mod before_flips;

use anyhow::{Result, ensure};
use crossover_harness::Kafka;

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Source,
    Proxy,
}

/// What a tool prints, lines in order of the alphabet and columns one blank apart: tools print from hash maps, in columns
/// as wide as the widest address.
fn run(kafka: &Kafka, bootstrap: &str, tool: &str, args: &[&str]) -> Result<Vec<String>> {
    run_with(kafka, bootstrap, tool, args, None)
}

fn run_with(
    kafka: &Kafka,
    bootstrap: &str,
    tool: &str,
    args: &[&str],
    stdin: Option<&str>,
) -> Result<Vec<String>> {
    let mut all = vec!["--bootstrap-server", bootstrap];
    all.extend(args);
    let output = kafka.run_tool(tool, &all, stdin)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success(),
        "{tool} {args:?} of {} at {bootstrap} failed:\n{out}\n{err}",
        kafka.version
    );
    let mut lines: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.retain(|line| !line.is_empty());
    lines.sort();
    Ok(lines)
}

/// A line without addresses and in virtual node ids; `None` for a line about a broker of the target.
fn normal(line: &str, place: Place) -> Option<String> {
    if let Some((head, rest)) = line.split_once(" configs for broker ") {
        let (id, rest) = rest.split_once(' ')?;
        return Some(format!("{head} configs for broker {} {rest}", node(id, place)?));
    }
    let setting = line.split_once('=').map_or("", |(name, _)| name);
    match setting {
        "broker.id" | "node.id" => {
            let value = line.split(['=', ' ']).nth(1)?;
            return Some(format!("{setting}={}", node(value, place)?));
        }
        // The proxy names itself, and does not tell the controllers' addresses.
        "listeners" | "advertised.listeners" => return Some(setting.to_owned()),
        "controller.quorum.voters" | "controller.quorum.bootstrap.servers" => return None,
        _ => {}
    }
    let mut words: Vec<String> = Vec::new();
    for word in line.split(' ') {
        let shown = match words.last().map(String::as_str) {
            Some("Leader:" | "Replicas:" | "Isr:") if word.starts_with(|c: char| c.is_ascii_digit()) => {
                let nodes: Option<Vec<String>> = word.split(',').map(|id| node(id, place)).collect();
                nodes?.join(",")
            }
            // A coordinator: `127.0.0.1:9092 (1)`.
            Some("ADDRESS") => format!("({})", node(word.trim_matches(['(', ')']), place)?),
            _ if word.starts_with("127.0.0.1:") => "ADDRESS".to_owned(),
            _ => word.to_owned(),
        };
        words.push(shown);
    }
    Some(words.join(" "))
}

/// The virtual id of a node of the source.
fn node(id: &str, place: Place) -> Option<String> {
    let id: i32 = id.parse().ok()?;
    match place {
        Place::Source => Some((2 * id).to_string()),
        Place::Proxy => (id % 2 == 0).then(|| id.to_string()),
    }
}
