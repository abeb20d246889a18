use clap::Parser;
use clap::error::ErrorKind;
use crossover_admin_api::model::{
    BoundaryView, Check, CheckResult, EraView, Mode, OperationKind, OperationState, OperationView,
    PartitionView, Plan, Side, Status, TopicView, Verdict,
};

use super::check::{Probed, judge, judge_ports, judge_state};
use super::client::{Client, ClientError, escape, parse_event};
use super::probe::{Found, ProbeError, metadata_versions, parse_metadata};
use super::{Cli, flip, show, table};

fn usage(arguments: &[&str]) -> Result<Cli, ErrorKind> {
    Cli::try_parse_from(std::iter::once("crossover").chain(arguments.iter().copied()))
        .map_err(|error| error.kind())
}

#[test]
fn the_commands_of_the_documents_are_understood() {
    for line in [
        "run --config crossover.toml",
        "check --config crossover.toml --json",
        "status --admin http://127.0.0.1:8080 --json",
        "plan orders payments --to source",
        "cutover orders --admin http://127.0.0.1:8080",
        "cutover orders payments --create --with-groups --force --group a --group b",
        "--admin http://127.0.0.1:8080 --token-file t rollback orders",
        "abort",
        "watch --json",
        "ledger --since 4",
        "translate --topic t --partition 0 --virtual 5",
        "translate --topic t --partition 0 --side target --native 5",
        "groups",
        "groups move g --to target",
        "state show --config crossover.toml",
        "demo",
        "demo --clusters-only",
    ] {
        assert!(usage(&line.split(' ').collect::<Vec<_>>()).is_ok(), "{line}");
    }
}

#[test]
fn wrong_usage_is_refused_before_anything_happens() {
    for line in [
        "cutover",
        "plan t --to left",
        "translate --topic t --partition 0",
        "translate --topic t --partition 0 --native 5",
        "translate --topic t --partition 0 --virtual 5 --native 5 --side source",
        "translate --topic t --partition 0 --virtual 5 --side source",
        "translate --topic t --partition -1 --virtual 5",
        "groups move g",
        "state",
        "demo --short --clusters-only",
        "fly",
    ] {
        assert!(usage(&line.split(' ').collect::<Vec<_>>()).is_err(), "{line}");
    }
}

#[test]
fn admin_addresses_are_plain_http() {
    assert!(Client::new("http://127.0.0.1:8080", None).is_ok());
    assert!(Client::new("http://[::1]:8080/", None).is_ok());
    for url in ["127.0.0.1:8080", "https://127.0.0.1:8080", "http://127.0.0.1", "http://a:1/path"] {
        assert!(matches!(Client::new(url, None), Err(ClientError::Address { .. })), "{url}");
    }
}

#[tokio::test]
async fn nobody_there_is_exit_status_3() {
    // A port that was just given back: nobody listens on it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let client = Client::new(&url, None).expect("address");
    let error = client.get::<Status>("/v1/status").await.expect_err("nobody listens");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert_eq!(super::exit_status(&error.into()), 3);
}

#[test]
fn events_are_cut_from_the_stream() {
    assert_eq!(parse_event(": still here\n\n"), None);
    assert_eq!(parse_event("event: step\ndata: {}\n\n"), Some(("step".into(), "{}".into())));
    assert_eq!(escape("a b/ü.-_"), "a%20b%2F%C3%BC.-_");
}

#[test]
fn tables_are_aligned_and_harmless() {
    let text = table::render(
        &["A", "LONGER"],
        &[vec!["xyz".into(), "1".into()], vec!["\x1b[2J".into(), "2".into()]],
    );
    assert_eq!(text, "A     LONGER\nxyz   1\n\u{fffd}[2J  2\n");
    assert_eq!(table::instant(0), "1970-01-01 00:00:00.000Z");
    assert_eq!(table::instant(1_709_210_096_789), "2024-02-29 12:34:56.789Z");
    assert_eq!(table::instant(4_107_542_399_999), "2100-02-28 23:59:59.999Z");
    assert_eq!(
        (table::millis(0.84), table::millis(12.3), table::millis(3_400.0)),
        ("0.8 ms".into(), "12 ms".into(), "3.4 s".into())
    );
}

fn operation() -> OperationView {
    OperationView {
        id: "7".into(),
        kind: OperationKind::Cutover,
        topics: vec!["orders".into()],
        groups: Vec::new(),
        to: Side::Target,
        state: OperationState::Done,
        started_ms: 0,
        finished_ms: Some(5),
        steps: Vec::new(),
        checks: Vec::new(),
        hold_ms: Some(1.5),
        revision: Some(3),
        reason: None,
        remedy: None,
        partitions: vec![BoundaryView {
            topic: "orders".into(),
            partition: 0,
            virtual_boundary: 10,
            old_native_end: 10,
            new_native_start: 2,
        }],
    }
}

fn status(owner: Side) -> Status {
    let era = |index, side, end| EraView {
        index,
        side,
        virtual_start: 0,
        native_start: 0,
        native_end: end,
        epoch_base: 0,
        sealed_at_ms: (index > 0).then_some(0),
        retained: None,
    };
    Status {
        revision: 3,
        ready: true,
        operation: None,
        last_operation: None,
        topics: vec![TopicView {
            name: "orders".into(),
            owner,
            mode: Mode::Continue,
            source_topic: "orders".into(),
            target_topic: "orders".into(),
            companions: 4,
            producers_not_moved: 0,
            frozen: None,
            unknown_partitions: Vec::new(),
            partitions: vec![PartitionView {
                partition: 0,
                eras: vec![era(0, Side::Source, Some(10)), era(1, Side::Target, None)],
            }],
        }],
        groups: Vec::new(),
        producers_not_moved: Vec::new(),
        may_stop_source: Verdict { answer: false, reasons: vec!["4 connections use companions".into()] },
        alarms: Vec::new(),
    }
}

#[test]
fn a_topic_record_is_ok_only_on_the_wanted_side() {
    let record = flip::topic_record("orders", Side::Target, &operation(), &status(Side::Target));
    assert_eq!((&record["ok"], &record["partitions"][0]["virtual_boundary"]), (&true.into(), &10.into()));
    let record = flip::topic_record("orders", Side::Target, &operation(), &status(Side::Source));
    assert_eq!((&record["ok"], &record["owner"]), (&false.into(), &"source".into()));
    let record = flip::topic_record("unknown", Side::Target, &operation(), &status(Side::Target));
    assert_eq!(record["ok"], false);
}

#[test]
fn status_says_owner_eras_and_whether_the_source_may_stop() {
    let text = show::status_text(&status(Side::Target), true);
    for words in [
        "revision 3 · ready · no operation is running",
        "orders  target  continue  1           2     1970-01-01 00:00:00.000Z  4",
        "orders/0   1    target  0             0            open",
        "The source may not be stopped yet:\n  - 4 connections use companions",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn a_plan_shows_each_check_with_its_remedy() {
    let check = Check {
        name: "target topic".into(),
        result: CheckResult::Failed,
        detail: "orders does not exist".into(),
        remedy: "give --create".into(),
    };
    let plan = Plan {
        revision: 3,
        to: Side::Target,
        topics: vec!["orders".into()],
        groups: Vec::new(),
        checks: vec![check],
        expected_pause_ms: Some(3.0),
        refused: true,
        nothing_to_do: false,
    };
    let text = flip::plan_text(&plan);
    assert!(
        text.contains("FAILED    target topic: orders does not exist\n            remedy: give --create"),
        "{text}"
    );
    assert!(text.contains("would be refused; nothing was changed"), "{text}");
}

#[test]
fn a_plan_and_a_cutover_say_the_same_of_a_topic_that_is_there() {
    let plan = Plan {
        revision: 3,
        to: Side::Target,
        topics: vec!["orders".into()],
        groups: Vec::new(),
        checks: Vec::new(),
        expected_pause_ms: None,
        refused: false,
        nothing_to_do: true,
    };
    let same = "orders is already on the target; nothing to do.";
    assert!(flip::plan_text(&plan).ends_with(&format!("\n{same}\n")), "{}", flip::plan_text(&plan));
    let line = |ended: OperationView| {
        let record = flip::topic_record("orders", Side::Target, &ended, &status(Side::Target));
        flip::topic_line("orders", Side::Target, &record)
    };
    assert_eq!(line(OperationView { partitions: Vec::new(), hold_ms: None, ..operation() }), same);
    // What a restart has forgotten may have been moved by this very command.
    let forgotten = OperationView { state: OperationState::Aborted, partitions: Vec::new(), ..operation() };
    assert_eq!(line(forgotten), "orders is on the target.");
    let moved = line(operation());
    assert!(moved.contains("held for at most 1.5 ms, from the end of FENCE to RELEASE"), "{moved}");
}

#[test]
fn the_steps_say_where_produce_is_held() {
    use crossover_admin_api::model::Step;
    let line = |kind, name| flip::step_text(kind, &Step { name, at_ms: 0, took_ms: Some(12.0) });
    assert_eq!(line(OperationKind::Cutover, OperationState::Fence), "  FENCE     12 ms");
    assert_eq!(line(OperationKind::Rollback, OperationState::Drain), "  DRAIN     12 ms     produce is held");
    assert_eq!(line(OperationKind::Cutover, OperationState::Release), "  RELEASE   12 ms");
    assert_eq!(line(OperationKind::GroupMove, OperationState::Drain), "  DRAIN     12 ms");
}

#[test]
fn status_does_not_count_partitions_that_are_not_known() {
    let mut unseen = status(Side::Target);
    unseen.topics[0].partitions.clear();
    let text = show::status_text(&unseen, true);
    assert!(text.contains("orders  target  continue  unknown     unknown  unknown"), "{text}");
}

#[test]
fn a_broker_is_read_and_garbage_is_not() {
    let versions = [0, 0, 0, 0, 0, 2, 0, 1, 0, 4, 0, 17, 0, 3, 0, 0, 0, 13];
    assert_eq!(metadata_versions(&versions), Some((0, 13)));
    let mut metadata =
        vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, b'h', 0, 0, 35, 132, 255, 255, 0, 2, b'i', b'd'];
    let found = Found { cluster_id: Some("id".into()), brokers: 1 };
    assert_eq!(parse_metadata(&metadata, 8), Some(found));
    for cut in 0..metadata.len() {
        assert_eq!(parse_metadata(&metadata[..cut], 8), None, "cut at {cut}");
    }
    metadata[4] = 0x7f; // two thousand million brokers
    assert_eq!(parse_metadata(&metadata, 8), None);
}

#[test]
fn check_finds_a_silent_cluster_and_one_cluster_on_both_sides() {
    use crossover_config::Side::{Source, Target};
    let probed = |side, id: Option<&str>| Probed {
        side,
        address: "127.0.0.1:1".parse().expect("address"),
        result: id.map(|id| Found { cluster_id: Some(id.into()), brokers: 1 }).ok_or(ProbeError::NotKafka),
    };
    assert!(judge(&[probed(Source, Some("a")), probed(Target, None), probed(Target, Some("b"))]).is_empty());
    assert!(judge(&[probed(Source, Some("a")), probed(Target, None)])[0].contains("No broker of the target"));
    assert!(judge(&[probed(Source, Some("a")), probed(Target, Some("a"))])[0].contains("the same cluster"));
    assert!(
        judge(&[probed(Source, Some("a")), probed(Source, Some("b")), probed(Target, Some("c"))])[0]
            .contains("different")
    );
}

#[test]
fn check_counts_the_ports_of_nodes() {
    use crossover_config::Side::{Source, Target};
    let probed = |side, brokers: Option<usize>| Probed {
        side,
        address: "127.0.0.1:1".parse().expect("address"),
        result: brokers.map(|brokers| Found { cluster_id: None, brokers }).ok_or(ProbeError::NotKafka),
    };
    let range = |last| crossover_config::PortRange { first: 9100, last };
    let both = [probed(Source, Some(3)), probed(Source, Some(2)), probed(Target, Some(3))];
    let few = judge_ports(range(9104), &both).expect_err("5 ports for 6 brokers");
    assert!(
        few.contains("9100-9104: 5 ports for 3 running brokers of the source and 3 of the target"),
        "{few}"
    );
    assert!(few.contains("widen the range to 6 ports at least"), "{few}");
    assert!(
        judge_ports(range(9105), &both)
            .is_ok_and(|note| note.is_some_and(|note| note.contains("none is left")))
    );
    assert!(
        judge_ports(range(9199), &both)
            .is_ok_and(|note| note.is_some_and(|note| note.contains("94 are left")))
    );
    let one = [probed(Source, Some(3)), probed(Target, None)];
    assert_eq!(judge_ports(range(9199), &one), Ok(None), "how many are left is not known");
    assert!(judge_ports(range(9101), &one).is_err_and(|few| few.contains("of the source alone")));
}

#[test]
fn check_knows_the_state_of_another_pair_and_of_a_running_instance() {
    use crossover_config::Side::{Source, Target};
    use crossover_core::ids::ClusterSide;
    let probed = |side, id: &str| Probed {
        side,
        address: "127.0.0.1:1".parse().expect("address"),
        result: Ok(Found { cluster_id: Some(id.to_owned()), brokers: 1 }),
    };
    let directory = std::env::temp_dir().join(format!("crossover-check-{}", std::process::id()));
    let own = [probed(Source, "a"), probed(Target, "b")];
    assert_eq!(judge_state(&directory, &own), Ok(None));
    assert!(!directory.exists(), "looking makes none");
    let store = crate::store::Store::open(&directory).expect("a new state");
    store.bind(ClusterSide::Source, "a").and_then(|()| store.bind(ClusterSide::Target, "b")).expect("bound");
    let running = judge_state(&directory, &own);
    assert!(
        running.as_ref().is_ok_and(|note| note.as_ref().is_some_and(|n| n.contains("runs on it"))),
        "{running:?}"
    );
    drop(store);
    assert_eq!(judge_state(&directory, &own), Ok(None));
    let swapped = judge_state(&directory, &[probed(Source, "b"), probed(Target, "a")]);
    let other = judge_state(&directory, &[probed(Source, "a"), probed(Target, "c")]);
    std::fs::remove_dir_all(&directory).expect("removed");
    assert!(swapped.as_ref().is_err_and(|why| why.contains("swapped")), "{swapped:?}");
    assert!(other.as_ref().is_err_and(|why| why.contains("the state belongs to b")), "{other:?}");
}

/// An admin API that answers each path with one fixed body; returns its address.
async fn canned(answers: Vec<(&'static str, u16, String)>) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // A small request of a local client; its head may still come in pieces.
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut chunk = [0; 4096];
                match stream.read(&mut chunk).await {
                    Ok(count @ 1..) => request.extend_from_slice(&chunk[..count]),
                    _ => break,
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let answer = answers.iter().find(|(start, ..)| request.starts_with(start));
            let (status, body) = answer.map_or((500, "{}"), |(_, status, body)| (*status, body.as_str()));
            let head =
                format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    url
}

async fn run_against(url: &str, line: &str) -> u8 {
    let mut arguments: Vec<&str> = vec!["crossover", "--json", "--admin", url];
    arguments.extend(line.split(' '));
    let cli = Cli::try_parse_from(arguments).expect("usage");
    match super::dispatch(cli).await {
        Ok(super::Outcome::Done) => 0,
        Ok(super::Outcome::Failed) => 1,
        Ok(super::Outcome::Interrupted) => 130,
        Err(error) => super::exit_status(&error),
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("json")
}

#[tokio::test]
async fn a_cutover_waits_and_succeeds_only_when_every_topic_is_on_the_target() {
    let started = OperationView { state: OperationState::Prepare, ..operation() };
    let answers = |owner| {
        vec![
            ("GET /v1/status ", 200, json(&status(owner))),
            ("POST /v1/cutover ", 202, json(&started)),
            ("GET /v1/operations/7 ", 200, json(&operation())),
        ]
    };
    let moved = canned(answers(Side::Target)).await;
    assert_eq!(run_against(&moved, "cutover orders").await, 0);
    assert_eq!(run_against(&moved, "cutover orders payments").await, 1, "payments is not there");
    let stayed = canned(answers(Side::Source)).await;
    assert_eq!(run_against(&stayed, "cutover orders").await, 1);
}

#[tokio::test]
async fn refusals_and_strangers_are_told_apart_from_silence() {
    let refusal = crossover_admin_api::ApiError::operation_running("6");
    let busy = canned(vec![
        ("GET /v1/status ", 200, json(&status(Side::Source))),
        ("POST /v1/cutover ", 409, json(&refusal)),
    ])
    .await;
    assert_eq!(run_against(&busy, "cutover orders").await, 1);
    let client = Client::new(&busy, None).expect("address");
    let error = client.post::<OperationView>("/v1/cutover", &()).await.expect_err("refused");
    assert!(error.to_string().contains("Operation 6 is running"), "{error}");
    let stranger = canned(vec![("GET /v1/status ", 200, "hello".into())]).await;
    assert_eq!(run_against(&stranger, "status").await, 1);
}

#[tokio::test]
async fn what_a_restarted_crossover_has_forgotten_is_told_by_the_owners() {
    let started = OperationView { state: OperationState::Prepare, ..operation() };
    let unknown = crossover_admin_api::ApiError::not_found("There is no operation 7.", "see the ledger");
    let answers = |owner| {
        vec![
            ("GET /v1/status ", 200, json(&status(owner))),
            ("POST /v1/cutover ", 202, json(&started)),
            ("GET /v1/operations/7 ", 404, json(&unknown)),
        ]
    };
    assert_eq!(run_against(&canned(answers(Side::Target)).await, "cutover orders").await, 0);
    assert_eq!(run_against(&canned(answers(Side::Source)).await, "cutover orders").await, 1);
}

#[tokio::test]
async fn a_group_that_stayed_is_a_failure_though_the_topics_moved() {
    let stayed = OperationView { reason: Some("group g: a member does not poll".into()), ..operation() };
    let url = canned(vec![
        ("GET /v1/status ", 200, json(&status(Side::Target))),
        ("POST /v1/cutover ", 202, json(&stayed)),
    ])
    .await;
    assert_eq!(run_against(&url, "cutover orders --with-groups").await, 1);
}

#[test]
fn an_abort_is_not_claimed_where_there_was_none() {
    let aborted = |reason: &str| OperationView {
        state: OperationState::Aborted,
        reason: Some(reason.into()),
        ..operation()
    };
    assert!(flip::abort_text(&aborted("an operator asked for it")).contains("was aborted;"));
    assert!(
        flip::abort_text(&aborted("orders-1: no leader")).contains("ended in ABORTED by itself: orders-1")
    );
    let check = Check {
        name: "routes".into(),
        result: CheckResult::Failed,
        detail: String::new(),
        remedy: String::new(),
    };
    let refused = OperationView { checks: vec![check], ..aborted("routes") };
    assert!(flip::abort_text(&refused).contains("was refused by its checks"));
    assert!(flip::abort_text(&operation()).contains("was completed before"));
}

/// From the ledger: it was sealed, and nobody knows whether its groups followed.
#[tokio::test]
async fn groups_that_were_to_follow_a_flip_that_was_cut_short_are_not_called_moved() {
    let told = OperationView { hold_ms: None, ..operation() };
    let url = canned(vec![
        ("GET /v1/status ", 200, json(&status(Side::Target))),
        ("POST /v1/cutover ", 202, json(&told)),
    ])
    .await;
    assert_eq!(run_against(&url, "cutover orders --with-groups").await, 1);
    assert_eq!(run_against(&url, "cutover orders").await, 0);
}

#[test]
fn status_tells_how_the_last_operation_ended() {
    let last = OperationView {
        state: OperationState::Aborted,
        reason: Some("an operator asked for it".into()),
        remedy: Some("repeat".into()),
        ..operation()
    };
    let told =
        |last| show::status_text(&Status { last_operation: Some(last), ..status(Side::Source) }, false);
    let words = "last operation: 7 ended in ABORTED at 1970-01-01 00:00:00.005Z\n  to the target: orders\n  an operator asked for it\n  remedy: repeat\n";
    let text = told(last.clone());
    assert!(text.contains(words), "{text}");
    let check = Check {
        name: "routes".into(),
        result: CheckResult::Failed,
        detail: "no such topic".into(),
        remedy: "see".into(),
    };
    let text = told(OperationView { checks: vec![check], ..last });
    assert!(text.contains("last operation: 7 was refused at "), "{text}");
}
