//! Nonsense to the admin API: a clear refusal, and nothing changes.

use super::{TOPICS, judged, under_traffic};
use anyhow::{Context, Result, ensure};
use crossover_tests::operator::{Answer, consistent, post, request, revision, status};
use crossover_tests::{flip, one_at_a_time, text};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn nonsense_is_refused_and_changes_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    flip(&rig, "cutover", &["orders"])?;
    let before = topics(&status(&rig)?);
    let now = revision(&rig)?;
    let cutover = |body: Value| post(&rig, "/v1/cutover", &body);
    let raw = |path: &str, headers: &[(&str, &str)], body: &[u8]| request(&rig, "POST", path, headers, body);
    let wrong: Vec<(&str, Result<Answer>, u16, &str)> = vec![
        (
            "stale revision",
            cutover(json!({ "topics": ["payments"], "expected_revision": now - 1 })),
            409,
            "revision",
        ),
        (
            "future revision",
            cutover(json!({ "topics": ["payments"], "expected_revision": now + 7 })),
            409,
            "revision",
        ),
        ("no revision", cutover(json!({ "topics": ["payments"] })), 428, "names no revision"),
        (
            "negative revision",
            cutover(json!({ "topics": ["payments"], "expected_revision": -1 })),
            400,
            "body",
        ),
        (
            "text as revision",
            cutover(json!({ "topics": ["payments"], "expected_revision": "1" })),
            400,
            "body",
        ),
        ("no topic", cutover(json!({ "topics": [], "expected_revision": now })), 400, "No topic"),
        (
            "twice",
            cutover(json!({ "topics": ["payments", "payments"], "expected_revision": now })),
            400,
            "twice",
        ),
        (
            "a misspelt key",
            cutover(json!({ "topics": ["payments"], "forse": true, "expected_revision": now })),
            400,
            "forse",
        ),
        ("no JSON", raw("/v1/cutover", &[JSON], b"cutover payments"), 400, "body"),
        ("nothing", raw("/v1/cutover", &[JSON], b""), 400, "No topic"),
        ("an array", raw("/v1/rollback", &[JSON], b"[[[[]]]]"), 400, "body"),
        ("bytes", raw("/v1/plan", &[JSON], &[0xff; 300]), 400, "body"),
        ("deep", raw("/v1/plan", &[JSON], &b"[".repeat(60_000)), 400, "body"),
        ("a form", raw("/v1/cutover", &[("Content-Type", "text/plain")], b"{}"), 415, "JSON"),
        ("a mebibyte", raw("/v1/cutover", &[JSON], &vec![b' '; 1 << 20]), 413, "larger than"),
        ("many mebibytes", raw("/v1/plan", &[JSON], &vec![b'7'; 64 << 20]), 413, "larger than"),
        (
            "another header",
            raw("/v1/cutover", &[JSON, ("If-Match", "x")], b"{\"topics\":[\"payments\"]}"),
            400,
            "If-Match",
        ),
        ("two revisions", raw("/v1/cutover", &[JSON, ("If-Match", "999")], &body(now)), 400, "If-Match"),
        ("another method", request(&rig, "DELETE", "/v1/cutover", &[], b""), 405, "There is no DELETE"),
        ("another path", raw("/v1/cut-over", &[JSON], b"{}"), 404, "There is no POST"),
        ("another host", raw("/v1/abort", &[JSON, ("Origin", "http://evil.example")], b"{}"), 403, ""),
        ("nothing to abort", post(&rig, "/v1/abort", &json!({})), 404, "No such operation"),
        (
            "no such operation",
            request(&rig, "GET", "/v1/operations/cutover-1", &[], b""),
            404,
            "no operation",
        ),
        ("a parameter", request(&rig, "GET", "/v1/ledger?sinc=1", &[], b""), 400, "sinc"),
        ("no number", request(&rig, "GET", "/v1/ledger?since=x", &[], b""), 400, "since"),
        (
            "no partition",
            request(&rig, "GET", "/v1/translate?topic=orders&partition=99&offset=0", &[], b""),
            404,
            "orders-99",
        ),
        (
            "a group to nowhere",
            post(&rig, "/v1/groups/move", &json!({ "group": "g", "to": "moon", "expected_revision": now })),
            400,
            "moon",
        ),
        (
            "a group without name",
            post(&rig, "/v1/groups/move", &json!({ "group": "", "to": "target", "expected_revision": now })),
            400,
            "group",
        ),
        (
            "a group that nobody knows",
            post(
                &rig,
                "/v1/groups/move",
                &json!({ "group": "ordesr", "to": "target", "expected_revision": now }),
            ),
            422,
            "Group ordesr is not known",
        ),
        (
            "a group that nobody knows, with its topic",
            cutover(json!({ "topics": ["payments"], "groups": ["ordesr"], "expected_revision": now })),
            422,
            "Group ordesr is not known",
        ),
    ];
    let mut problems = Vec::new();
    for (name, answer, code, message) in wrong {
        if let Err(problem) = answer.and_then(|answer| answer.refused(code, message)) {
            problems.push(format!("{name}: {problem:#}"));
        }
    }
    ensure!(problems.is_empty(), "{} requests had another answer:\n{}", problems.len(), problems.join("\n"));
    unknown_topics(&rig, now)?;
    let after = status(&rig)?;
    ensure!(topics(&after) == before, "something has changed: {after}");
    ensure!(revision(&rig)? == now, "the revision has changed");
    consistent(&rig, &["orders"], "target")?;
    consistent(&rig, &["payments"], "source")?;
    fleet.flows()?;
    flip(&rig, "rollback", &["orders"])?;
    consistent(&rig, &TOPICS, "source")?;
    judged(rig, fleet)
}

fn body(revision: u64) -> Vec<u8> {
    json!({ "topics": ["payments"], "expected_revision": revision }).to_string().into_bytes()
}

/// Names, owners and eras; what else is shown of a topic changes with its clients.
fn topics(status: &Value) -> Vec<(Value, Value, usize)> {
    let all = status["topics"].as_array().into_iter().flatten();
    let eras = |topic: &Value| {
        topic["partitions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| p["eras"].as_array().map_or(0, Vec::len))
            .sum()
    };
    all.map(|topic| (topic["name"].clone(), topic["owner"].clone(), eras(topic))).collect()
}

/// A topic that does not exist is accepted as an operation, which then says so.
fn unknown_topics(rig: &crossover_harness::rig::Rig, now: u64) -> Result<()> {
    let internal = ["__consumer_offsets", "__crossover_state"];
    for name in ["unheard-of", "../../etc/passwd", "a b\u{1b}[31m"].into_iter().chain(internal) {
        let output = rig.crossover(&["cutover", name, "--force"])?;
        let said = text(&output);
        ensure!(output.status.code() == Some(1), "{name:?} ended with {}: {said}", output.status);
        ensure!(!said.contains('\u{1b}'), "a terminal is told what to do: {said:?}");
        let why = if internal.contains(&name) { "never moves" } else { "does not exist" };
        ensure!(said.contains("routes: ") && said.contains(why), "{name:?} is refused otherwise: {said}");
        println!("{}", said.trim());
    }
    let answer = post(rig, "/v1/plan", &json!({ "topics": ["unheard-of"] }))?;
    ensure!(answer.status == 200 && answer.body["refused"] == true, "{answer:?}");
    ensure!(answer.body["revision"].as_u64().context("no revision")? == now, "{answer:?}");
    Ok(())
}
