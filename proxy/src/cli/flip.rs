//! `crossover plan`, `cutover`, `rollback`, `abort` and `groups move`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crossover_admin_api::ErrorCode;
use crossover_admin_api::model::{
    AbortRequest, Check, CheckResult, FlipRequest, GroupMoveRequest, OperationKind, OperationState,
    OperationView, Plan, PlanRequest, Side, Status, Step,
};
use serde_json::{Value, json};

use super::client::{Client, ClientError, escape};
use super::table::{clean, millis};
use super::{FlipArgs, Outcome, print_json};

/// Between two looks at a running operation.
const POLL: Duration = Duration::from_millis(100);
/// A restarting Crossover finishes an operation by itself; it is waited for this long.
const RESTART_PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn plan(client: &Client, args: FlipArgs, to: Side, json: bool) -> anyhow::Result<Outcome> {
    let request = PlanRequest {
        topics: args.topics,
        to: Some(to),
        create: args.create,
        force: args.force,
        with_groups: args.with_groups,
        groups: args.groups,
    };
    let plan: Plan = client.post("/v1/plan", &request).await?;
    match json {
        true => print_json(&plan)?,
        false => print!("{}", plan_text(&plan)),
    }
    Ok(if plan.refused { Outcome::Failed } else { Outcome::Done })
}

/// Starts the move of topics to a side, waits, and says where each topic is afterwards.
pub(super) async fn flip(client: &Client, args: FlipArgs, to: Side, json: bool) -> anyhow::Result<Outcome> {
    let status: Status = client.get("/v1/status").await?;
    let request = FlipRequest {
        expected_revision: Some(status.revision),
        topics: args.topics.clone(),
        create: args.create,
        force: args.force,
        with_groups: args.with_groups,
        groups: args.groups.clone(),
    };
    let path = match to {
        Side::Target => "/v1/cutover",
        Side::Source => "/v1/rollback",
    };
    let started: OperationView = client.post(path, &request).await?;
    let Some(mut ended) = follow(client, started, json).await? else { return Ok(Outcome::Interrupted) };
    let status = status_when_ready(client, &ended).await?;
    if args.with_groups && was_taken_up(&ended) {
        ended.reason = Some(
            "Crossover was started again behind SEAL: groups that were to follow may have stayed".to_owned(),
        );
        ended.remedy = Some("repeat the command: it moves the groups that stayed".to_owned());
    }
    // Groups that came along with `--with-groups` have no line of their own: the reason tells of those that stayed.
    let mut all = ended.state != OperationState::Done || ended.reason.is_none();
    for topic in &args.topics {
        let record = topic_record(topic, to, &ended, &status);
        all &= record["ok"] == json!(true);
        match json {
            true => print_json(&record)?,
            // Its check says so.
            false if record["owner"].is_null() && ended.failed().next().is_some() => {}
            false => println!("{}", topic_line(topic, to, &record)),
        }
    }
    // Those named, and those that came along.
    let groups: BTreeSet<&String> = args.groups.iter().chain(&ended.groups).collect();
    for group in groups {
        let home = status.groups.iter().find(|view| view.group == *group).map(|view| view.home);
        match home == Some(to) {
            true if json => {}
            true => println!("The home of group {} is the {to}.", clean(group)),
            false => {
                all = false;
                eprintln!("The group {} has not moved to the {to}.", clean(group));
            }
        }
    }
    if !all && !json {
        print_failure(&ended);
    }
    Ok(if all { Outcome::Done } else { Outcome::Failed })
}

/// Whether a flip is known from the ledger of an earlier process, which knows that it was sealed.
fn was_taken_up(ended: &OperationView) -> bool {
    ended.state == OperationState::Done && ended.hold_ms.is_none() && !ended.partitions.is_empty()
}

/// A Crossover that was just started does not know the topics before it has seen the clusters.
async fn status_when_ready(client: &Client, ended: &OperationView) -> anyhow::Result<Status> {
    let began = Instant::now();
    let is_just_started = ended.finished_ms.is_none() || was_taken_up(ended);
    loop {
        let status: Status = client.get("/v1/status").await?;
        if status.ready || !is_just_started || began.elapsed() > RESTART_PATIENCE {
            return Ok(status);
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(super) async fn move_group(
    client: &Client,
    group: String,
    to: Side,
    json: bool,
) -> anyhow::Result<Outcome> {
    let status: Status = client.get("/v1/status").await?;
    let request = GroupMoveRequest { expected_revision: Some(status.revision), group: group.clone(), to };
    let started: OperationView = client.post("/v1/groups/move", &request).await?;
    // A move takes its time.
    let was_there = started.state == OperationState::Done;
    let Some(ended) = follow(client, started, json).await? else { return Ok(Outcome::Interrupted) };
    let done = ended.state == OperationState::Done;
    match (json, done) {
        (true, _) => print_json(&ended)?,
        (false, true) if was_there => {
            println!("The home of group {} is the {to} already; nothing was changed.", clean(&group));
        }
        (false, true) => println!("The home of group {} is the {to}.", clean(&group)),
        (false, false) => print_failure(&ended),
    }
    Ok(if done { Outcome::Done } else { Outcome::Failed })
}

pub(super) async fn abort(client: &Client, operation: Option<String>, json: bool) -> anyhow::Result<Outcome> {
    let view: OperationView = client.post("/v1/abort", &AbortRequest { operation }).await?;
    let view = match view.state.is_final() {
        true => view,
        false => match follow(client, asked_for(view), true).await? {
            Some(view) => view,
            None => return Ok(Outcome::Interrupted),
        },
    };
    let aborted = view.state == OperationState::Aborted;
    match json {
        true => print_json(&view)?,
        false => println!("{}", abort_text(&view)),
    }
    Ok(if aborted { Outcome::Done } else { Outcome::Failed })
}

fn asked_for(view: OperationView) -> OperationView {
    eprintln!("Operation {} is in {}; it ends at its next step.", view.id, view.state);
    view
}

/// How an operation has ended that was to be aborted: it may have ended by itself before.
pub(super) fn abort_text(view: &OperationView) -> String {
    const STAYS: &str = "what was to move stays where it is";
    let id = clean(&view.id);
    let reason = view.reason.as_deref().unwrap_or_default();
    match view.state {
        OperationState::Aborted if view.failed().next().is_some() => {
            format!("Operation {id} was refused by its checks before that; {STAYS}.")
        }
        OperationState::Aborted if reason.contains("an operator asked for it") => {
            format!("Operation {id} was aborted; {STAYS}.")
        }
        OperationState::Aborted => {
            format!("Operation {id} ended in {} by itself: {}; {STAYS}.", view.state, clean(reason))
        }
        _ => format!("Operation {id} was completed before it could be aborted."),
    }
}

/// Watches an operation to its end; `None` after Ctrl-C, which leaves it alone (RULES R16).
async fn follow(
    client: &Client,
    started: OperationView,
    quiet: bool,
) -> anyhow::Result<Option<OperationView>> {
    let id = started.id.clone();
    // One listener for the whole time: a signal that comes between two of them is heard by nobody.
    tokio::select! {
        ended = to_the_end(client, started, quiet) => ended.map(Some),
        _ = tokio::signal::ctrl_c() => {
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K");
            }
            eprintln!(
                "Nothing was changed by Ctrl-C: operation {id} goes on inside Crossover. \
                 `crossover watch` follows it, `crossover status` tells how it ended; `crossover abort` stops it until SEAL."
            );
            Ok(None)
        }
    }
}

async fn to_the_end(client: &Client, started: OperationView, quiet: bool) -> anyhow::Result<OperationView> {
    let path = format!("/v1/operations/{}", escape(&started.id));
    let mut progress = Progress::new(quiet);
    let mut view = started;
    let mut lost_since: Option<Instant> = None;
    loop {
        progress.show(&view);
        if view.state.is_final() {
            progress.end();
            return Ok(view);
        }
        tokio::time::sleep(POLL).await;
        match client.get(&path).await {
            Ok(next) => (view, lost_since) = (next, None),
            // A Crossover that was started again knows what has come to the ledger.
            Err(ClientError::Refused(error)) if error.code == ErrorCode::NotFound => {
                progress.end();
                return Ok(forgotten(view));
            }
            Err(error @ ClientError::Unreachable { .. }) => {
                let since = *lost_since.get_or_insert_with(Instant::now);
                if since.elapsed() > RESTART_PATIENCE {
                    progress.end();
                    eprintln!("Operation {} ends by itself; `crossover status` will tell how.", view.id);
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// An operation that was in no ledger when Crossover was started again: its intent was not written yet.
fn forgotten(view: OperationView) -> OperationView {
    OperationView {
        state: OperationState::Aborted,
        reason: Some(
            "Crossover was started again before it had begun to move anything; `crossover status` shows where everything is".to_owned(),
        ),
        remedy: Some("repeat the command if it is still wanted".to_owned()),
        ..view
    }
}

/// Steps as they happen, on standard error: rewritten in place on a terminal, plain lines elsewhere.
struct Progress {
    quiet: bool,
    terminal: bool,
    /// Steps already printed for good.
    printed: usize,
    began: Instant,
    line_open: bool,
}

impl Progress {
    fn new(quiet: bool) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress { quiet, terminal, printed: 0, began: Instant::now(), line_open: false }
    }

    fn show(&mut self, view: &OperationView) {
        if self.quiet {
            return;
        }
        for step in view.steps.iter().skip(self.printed).take_while(|step| step.took_ms.is_some()) {
            self.printed += 1;
            self.clear();
            eprintln!("{}", step_text(view.kind, step));
        }
        if self.terminal && !view.state.is_final() {
            self.clear();
            eprint!("  {:<9} {:.1} s …", view.state, self.began.elapsed().as_secs_f64());
            let _ = std::io::stderr().flush();
            self.line_open = true;
        }
    }

    fn clear(&mut self) {
        if self.line_open {
            eprint!("\r\x1b[K");
            self.line_open = false;
        }
    }

    fn end(&mut self) {
        self.clear();
    }
}

/// What `--json` prints for a topic.
pub(super) fn topic_record(topic: &str, to: Side, operation: &OperationView, status: &Status) -> Value {
    let owner = status.topics.iter().find(|view| view.name == topic).map(|view| view.owner);
    let partitions: Vec<_> =
        operation.partitions.iter().filter(|partition| partition.topic == topic).collect();
    json!({
        "topic": topic,
        "ok": owner == Some(to),
        "owner": owner,
        "wanted": to,
        "operation": operation.id,
        "state": operation.state,
        "hold_ms": operation.hold_ms,
        "steps": operation.steps,
        "revision": status.revision,
        "reason": operation.reason,
        "remedy": operation.remedy,
        "partitions": partitions,
    })
}

pub(super) fn topic_line(topic: &str, to: Side, record: &Value) -> String {
    let topic = clean(topic);
    if record["ok"] != json!(true) {
        return match record["owner"].as_str() {
            Some(owner) => format!("{topic} is still on the {owner}."),
            None => format!("{topic} is not known."),
        };
    }
    let moved = record["partitions"].as_array().map_or(0, Vec::len);
    // Of one that a restart has forgotten it is not known whether it moved the topic.
    let done = record["state"] == json!(OperationState::Done);
    match (moved, record["hold_ms"].as_f64()) {
        (0, _) if done => nothing_to_do(&topic, to),
        (0, _) => format!("{topic} is on the {to}."),
        (moved, Some(hold)) => {
            format!(
                "{topic} is on the {to}: {moved} partitions moved, producers were held for at most {}, from the end of FENCE to RELEASE.",
                millis(hold)
            )
        }
        (moved, None) => format!("{topic} is on the {to}: {moved} partitions moved."),
    }
}

fn nothing_to_do(topic: &str, to: Side) -> String {
    format!("{topic} is already on the {to}; nothing to do.")
}

/// Between the end of FENCE, where the gates close, and RELEASE, where they open.
fn holds_produce(step: OperationState) -> bool {
    matches!(
        step,
        OperationState::Drain
            | OperationState::Boundary
            | OperationState::Carry
            | OperationState::Seal
            | OperationState::Publish
    )
}

/// A step that is over. Moves of groups hold no produce.
pub(super) fn step_text(kind: OperationKind, step: &Step) -> String {
    let held = kind != OperationKind::GroupMove && holds_produce(step.name);
    let took = step.took_ms.map(millis).unwrap_or_default();
    let line = format!("  {:<9} {took:<8}{}", step.name, if held { "  produce is held" } else { "" });
    line.trim_end().to_owned()
}

fn print_failure(operation: &OperationView) {
    if operation.failed().next().is_some() {
        // The operation's reason and remedy are theirs.
        let checks: String = operation.failed().map(check_text).collect();
        return eprint!("Refused, no topic was moved:\n{checks}");
    }
    if let Some(reason) = &operation.reason {
        eprintln!("Operation {} ended in {}: {}", operation.id, operation.state, clean(reason));
    }
    if let Some(remedy) = &operation.remedy {
        eprintln!("Remedy: {}", clean(remedy));
    }
}

pub(super) fn plan_text(plan: &Plan) -> String {
    let mut out = format!(
        "Moving {} to the {} (revision {}):\n",
        clean(&plan.topics.join(", ")),
        plan.to,
        plan.revision
    );
    out.extend(plan.checks.iter().map(check_text));
    if !plan.groups.is_empty() {
        out.push_str(&format!("Groups that move along: {}\n", clean(&plan.groups.join(", "))));
    }
    if let Some(pause) = plan.expected_pause_ms {
        out.push_str(&format!("Expected pause of producers: {}\n", millis(pause)));
    }
    if plan.nothing_to_do {
        out.extend(plan.topics.iter().map(|topic| nothing_to_do(&clean(topic), plan.to) + "\n"));
        return out;
    }
    out.push_str(match plan.refused {
        true => "It would be refused; nothing was changed.\n",
        false => "It would be carried out; nothing was changed.\n",
    });
    out
}

fn check_text(check: &Check) -> String {
    let word = match check.result {
        CheckResult::Passed => "passed",
        CheckResult::Failed => "FAILED",
        CheckResult::Warned => "warning",
        CheckResult::NotDone => "not done",
    };
    let mut out = format!("  {word:<8}  {}: {}\n", clean(&check.name), clean(&check.detail));
    if !check.remedy.is_empty() {
        out.push_str(&format!("            remedy: {}\n", clean(&check.remedy)));
    }
    out
}
