//! `crossover status`, `ledger`, `translate` and `groups`.

use crossover_admin_api::model::{
    GroupView, Ledger, OperationView, Side, Status, TopicView, TransactionAbortRequest, TransactionView,
    Translation,
};

use super::client::{Client, escape};
use super::table::{clean, instant, render};
use super::{Outcome, TranslateArgs, print_json};

pub(super) async fn status(client: &Client, partitions: bool, json: bool) -> anyhow::Result<Outcome> {
    let status: Status = client.get("/v1/status").await?;
    match json {
        true => print_json(&status)?,
        false => print!("{}", status_text(&status, partitions)),
    }
    Ok(Outcome::Done)
}

pub(super) async fn ledger(client: &Client, since: u64, json: bool) -> anyhow::Result<Outcome> {
    let ledger: Ledger = client.get(&format!("/v1/ledger?since={since}")).await?;
    if json {
        for entry in &ledger.entries {
            print_json(entry)?;
        }
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = ledger
        .entries
        .iter()
        .map(|entry| {
            let boundary = entry.boundary.as_ref();
            vec![
                entry.sequence.to_string(),
                instant(entry.at_ms),
                entry.kind.clone(),
                entry.operation.clone().unwrap_or_default(),
                entry.to.map(|to| to.to_string()).unwrap_or_default(),
                boundary.map(|at| format!("{}/{}", at.topic, at.partition)).unwrap_or_default(),
                boundary.map(|at| at.virtual_boundary.to_string()).unwrap_or_default(),
                entry.text.clone(),
            ]
        })
        .collect();
    let header = ["SEQUENCE", "AT", "KIND", "OPERATION", "TO", "PARTITION", "BOUNDARY", "TEXT"];
    print!("{}", render(&header, &rows));
    Ok(Outcome::Done)
}

pub(super) async fn translate(client: &Client, args: &TranslateArgs, json: bool) -> anyhow::Result<Outcome> {
    let mut path = format!("/v1/translate?topic={}&partition={}", escape(&args.topic), args.partition);
    // The arguments' group allows exactly one of the two.
    let offset = args.virtual_offset.or(args.native).unwrap_or_default();
    path.push_str(&format!("&offset={offset}"));
    if let Some(side) = args.side {
        path.push_str(&format!("&side={}", Side::from(side)));
    }
    let translation: Translation = client.get(&path).await?;
    match json {
        true => print_json(&translation)?,
        false => print!("{}", translation_text(&translation)),
    }
    let found = translation.virtual_offset.is_some() && translation.native_offset.is_some();
    Ok(if found { Outcome::Done } else { Outcome::Failed })
}

pub(super) async fn groups(client: &Client, json: bool) -> anyhow::Result<Outcome> {
    let groups: Vec<GroupView> = client.get("/v1/groups").await?;
    match json {
        true => print_json(&groups)?,
        false if groups.is_empty() => {
            println!("no group has moved, and none was seen since Crossover was started")
        }
        false => print!("{}", groups_text(&groups)),
    }
    Ok(Outcome::Done)
}

pub(super) async fn transactions(client: &Client, json: bool) -> anyhow::Result<Outcome> {
    let open: Vec<TransactionView> = client.get("/v1/transactions").await?;
    match json {
        true => print_json(&open)?,
        false if open.is_empty() => println!("no transaction is open"),
        false => print!("{}", transactions_text(&open)),
    }
    Ok(Outcome::Done)
}

pub(super) async fn abort_transaction(client: &Client, id: String, json: bool) -> anyhow::Result<Outcome> {
    let request = TransactionAbortRequest { transactional_id: id };
    let aborted: Vec<TransactionView> = client.post("/v1/transactions/abort", &request).await?;
    match json {
        true => print_json(&aborted)?,
        false => print!("aborted, and the producer fenced:\n{}", transactions_text(&aborted)),
    }
    Ok(Outcome::Done)
}

fn transactions_text(open: &[TransactionView]) -> String {
    let row = |t: &TransactionView| {
        let seconds =
            |ms: i64| format!("{:.1} s", std::time::Duration::from_millis(ms.unsigned_abs()).as_secs_f64());
        let (since, timeout) = (seconds(t.open_ms), seconds(t.timeout_ms));
        vec![
            t.transactional_id.clone(),
            t.side.to_string(),
            t.state.clone(),
            since,
            timeout,
            t.topics.join(", "),
        ]
    };
    let rows: Vec<_> = open.iter().map(row).collect();
    render(&["TRANSACTIONAL ID", "SIDE", "STATE", "OPEN FOR", "TIMEOUT", "TOPICS"], &rows)
}

pub(super) fn status_text(status: &Status, partitions: bool) -> String {
    let ready = if status.ready { "ready" } else { "not ready" };
    let operation = match &status.operation {
        None => "no operation is running".to_owned(),
        Some(operation) => format!("{} {} is in {}", operation.kind, operation.id, operation.state),
    };
    let mut out = format!("revision {} · {ready} · {operation}\n", status.revision);
    if let Some(last) = &status.last_operation {
        out.push_str(&last_text(last));
    }
    out.push('\n');
    out.push_str(&topics_text(&status.topics));
    if partitions {
        out.push('\n');
        out.push_str(&eras_text(&status.topics));
    }
    if !status.groups.is_empty() {
        out.push('\n');
        out.push_str(&groups_text(&status.groups));
    }
    if !status.producers_not_moved.is_empty() {
        let row = |p: &crossover_admin_api::model::ProducerView| {
            vec![p.topic.clone(), p.client_id.clone(), p.software.clone(), p.peer.clone()]
        };
        let rows: Vec<_> = status.producers_not_moved.iter().map(row).collect();
        out.push('\n');
        out.push_str(&render(&["PRODUCER NOT MOVED", "CLIENT ID", "SOFTWARE", "PEER"], &rows));
    }
    for topic in &status.topics {
        if let Some(why) = &topic.frozen {
            out.push_str(&format!("\nFROZEN topic {}: {}\n", clean(&topic.name), clean(why)));
        }
    }
    for topic in status.topics.iter().filter(|topic| !topic.unknown_partitions.is_empty()) {
        out.push_str(&format!(
            "\nUNKNOWN outcome of produce to {}, partitions {:?}: a connection was lost; they can be flipped again after timeouts.loss_grace_ms\n",
            clean(&topic.name),
            topic.unknown_partitions
        ));
    }
    for alarm in &status.alarms {
        out.push_str(&format!(
            "\nALARM {} since {}: {}\n  remedy: {}\n",
            clean(&alarm.name),
            instant(alarm.since_ms),
            clean(&alarm.cause),
            clean(&alarm.remedy)
        ));
    }
    out.push_str(match status.may_stop_source.answer {
        true => "\nThe source may be stopped.\n",
        false => "\nThe source may not be stopped yet:\n",
    });
    for reason in &status.may_stop_source.reasons {
        out.push_str(&format!("  - {}\n", clean(reason)));
    }
    out
}

/// How the last operation ended, for whoever did not see its command end.
fn last_text(last: &OperationView) -> String {
    let at = last.finished_ms.map_or_else(|| "-".to_owned(), instant);
    let ended = match last.failed().next() {
        Some(_) => "was refused".to_owned(),
        None => format!("ended in {}", last.state),
    };
    let mut out = format!("last operation: {} {ended} at {at}\n", clean(&last.id));
    let moved: Vec<&str> = last.topics.iter().chain(&last.groups).map(String::as_str).collect();
    if !moved.is_empty() {
        out.push_str(&format!("  to the {}: {}\n", last.to, clean(&moved.join(", "))));
    }
    if let Some(reason) = &last.reason {
        out.push_str(&format!("  {}\n", clean(reason)));
    }
    if let Some(remedy) = &last.remedy {
        out.push_str(&format!("  remedy: {}\n", clean(remedy)));
    }
    out
}

fn topics_text(topics: &[TopicView]) -> String {
    let rows: Vec<Vec<String>> = topics
        .iter()
        .map(|topic| {
            let eras = topic.partitions.iter().map(|partition| partition.eras.len()).max().unwrap_or(0);
            let since =
                topic.partitions.iter().filter_map(|partition| partition.eras.last()?.sealed_at_ms).max();
            // A topic has one at least: its cluster has not been seen since the start.
            let unseen = topic.partitions.is_empty();
            let known = |text: String| if unseen { "unknown".to_owned() } else { text };
            vec![
                topic.name.clone(),
                topic.owner.to_string(),
                topic.mode.to_string(),
                known(topic.partitions.len().to_string()),
                known(eras.to_string()),
                known(since.map_or_else(|| "-".to_owned(), instant)),
                topic.companions.to_string(),
                topic.producers_not_moved.to_string(),
            ]
        })
        .collect();
    let header = ["TOPIC", "OWNER", "MODE", "PARTITIONS", "ERAS", "OWNER SINCE", "COMPANIONS", "NOT MOVED"];
    render(&header, &rows)
}

fn eras_text(topics: &[TopicView]) -> String {
    let mut rows = Vec::new();
    for topic in topics {
        for partition in &topic.partitions {
            for era in &partition.eras {
                rows.push(vec![
                    format!("{}/{}", topic.name, partition.partition),
                    era.index.to_string(),
                    era.side.to_string(),
                    era.virtual_start.to_string(),
                    era.native_start.to_string(),
                    era.native_end.map_or_else(|| "open".to_owned(), |end| end.to_string()),
                    era.epoch_base.to_string(),
                ]);
            }
        }
    }
    render(&["PARTITION", "ERA", "SIDE", "VIRTUAL FROM", "NATIVE FROM", "NATIVE TO", "EPOCH BASE"], &rows)
}

fn groups_text(groups: &[GroupView]) -> String {
    let row = |group: &GroupView| {
        let (home, commits) = (group.home.to_string(), group.commits.to_string());
        vec![group.group.clone(), home, commits, group.tagged_commits.to_string()]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    render(&["GROUP", "HOME", "COMMITS", "TAGGED COMMITS"], &rows)
}

fn translation_text(translation: &Translation) -> String {
    let number = |value: Option<i64>| value.map_or_else(|| "none".to_owned(), |value| value.to_string());
    let side = translation.side.map_or("-", Side::as_str);
    let rows = vec![vec![
        format!("{}/{}", translation.topic, translation.partition),
        number(translation.virtual_offset),
        side.to_owned(),
        number(translation.native_offset),
        translation.era.map_or_else(|| "-".to_owned(), |era| era.to_string()),
    ]];
    let mut out = render(&["PARTITION", "VIRTUAL", "SIDE", "NATIVE", "ERA"], &rows);
    out.push_str(&clean(&translation.explanation));
    out.push('\n');
    out
}
