//! Commands and the proxy itself are interrupted in the middle of a flip.

use super::{TOPICS, done, judged, under_traffic};
use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::operator::{Hold, Running, consistent, post, signal, status};
use crossover_tests::{flip, one_at_a_time, text, wait_for};
use serde_json::json;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);
const ENDED_MAX: Duration = Duration::from_secs(60);

/// RULES R16: whatever happens to the command, the operation goes on, and its outcome is told afterwards.
#[test]
fn r16_an_interrupted_command_changes_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    let steps =
        [("INT", "PREPARE"), ("KILL", "FENCE"), ("INT", "CARRY"), ("KILL", "SEAL"), ("INT", "RELEASE")];
    for (number, (name, step)) in steps.into_iter().enumerate() {
        let (verb, owner) = if number % 2 == 0 { ("cutover", "target") } else { ("rollback", "source") };
        let watch = Running::start(&rig, &["watch"])?;
        let hold = Hold::behind(&rig, step)?;
        let command = Running::start(&rig, &[&[verb][..], &TOPICS].concat())?;
        hold.reached()?;
        command.signal(name)?;
        let ended = command.ended(SOON).with_context(|| format!("SIG{name} behind {step}"))?;
        if name == "INT" {
            let said = text(&ended);
            ensure!(ended.status.code() == Some(130), "Ctrl-C ended it with {}: {said}", ended.status);
            ensure!(said.contains("Nothing was changed by Ctrl-C"), "it says: {said}");
        }
        ensure!(!status(&rig)?["operation"].is_null(), "the operation has ended with its command");
        drop(hold);
        wait_for(ENDED_MAX, "the operation to end", || Ok(status(&rig)?["operation"].is_null()))?;
        consistent(&rig, &TOPICS, owner)?;
        let told = text(&rig.crossover(&["status"])?);
        ensure!(
            told.contains(&format!("{verb}-")) && told.contains("DONE"),
            "the outcome is not told: {told}"
        );
        watch.signal("INT")?;
        let watched = text(&watch.ended(SOON)?);
        ensure!(watched.contains(&format!("{verb}-")) && watched.contains("DONE"), "not seen: {watched}");
        fleet.flows()?;
    }
    judged(rig, fleet)
}

/// RULES R16: Ctrl-C also ends a command whose Crossover does not answer any more.
#[test]
fn r16_ctrl_c_while_crossover_hangs() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = super::two_clusters()?;
    wait_for(ENDED_MAX, "the topics to be seen", || Ok(consistent(&rig, &TOPICS, "source").is_ok()))?;
    let hold = Hold::behind(&rig, "PREPARE")?;
    let command = Running::start(&rig, &["cutover", "orders"])?;
    hold.reached()?;
    signal(rig.proxy_pid(), "STOP")?;
    // Between two looks it would be heard anyway: the look that is not answered has begun by then.
    std::thread::sleep(Duration::from_millis(500));
    command.signal("INT")?;
    let ended = command.ended(SOON);
    signal(rig.proxy_pid(), "CONT")?;
    let ended = ended?;
    ensure!(ended.status.code() == Some(130), "ended with {}: {}", ended.status, text(&ended));
    drop(hold);
    wait_for(ENDED_MAX, "the operation to end", || Ok(status(&rig)?["operation"].is_null()))?;
    consistent(&rig, &["orders"], "target")?;
    done(&mut rig);
    Ok(())
}

/// Until SEAL an abort leaves everything with the old owner; from SEAL on it is refused and told why.
#[test]
fn an_abort_at_every_step() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    nothing_to_abort(&rig)?;
    let mut owner = "source";
    for step in crossover_tests::faults::STEPS {
        for _ in 0..2 {
            let (verb, other) =
                if owner == "source" { ("cutover", "target") } else { ("rollback", "source") };
            let hold = Hold::behind(&rig, step)?;
            let command = Running::start(&rig, &[&[verb][..], &TOPICS].concat())?;
            hold.reached()?;
            let sealed = ["SEAL", "PUBLISH", "RELEASE"].contains(&step);
            let abort = if sealed {
                refused_abort(&rig)?;
                None
            } else {
                Some(asked_abort(&rig)?)
            };
            drop(hold);
            let ended = command.output()?;
            if let Some(abort) = abort {
                // It comes while the operation still runs, or just after its end.
                let abort = text(&abort.output()?);
                let told = abort.contains("was aborted") || abort.contains("No such operation is running");
                ensure!(told, "behind {step}: {abort}");
                let said = text(&ended);
                ensure!(ended.status.code() == Some(1), "an aborted command ended with {}", ended.status);
                ensure!(said.contains("an operator asked for it"), "behind {step} it says: {said}");
                let told = text(&rig.crossover(&["status"])?);
                ensure!(told.contains("an operator asked for it"), "not told by status: {told}");
            } else {
                ensure!(ended.status.success(), "behind {step} it ended with {}", text(&ended));
                owner = other;
            }
            consistent(&rig, &TOPICS, owner)?;
            fleet.flows().with_context(|| format!("after an abort behind {step}"))?;
        }
    }
    flip(&rig, if owner == "source" { "cutover" } else { "rollback" }, &TOPICS)?;
    fleet.flows()?;
    judged(rig, fleet)
}

fn nothing_to_abort(rig: &Rig) -> Result<()> {
    let output = rig.crossover(&["abort"])?;
    ensure!(output.status.code() == Some(1), "ended with {}", output.status);
    ensure!(text(&output).contains("No such operation is running"), "{}", text(&output));
    Ok(())
}

/// The request is in when this returns; the command that repeats it waits for the end.
fn asked_abort(rig: &Rig) -> Result<Running> {
    let other = post(rig, "/v1/abort", &json!({ "operation": "cutover-1" }))?;
    other.refused(404, "No such operation")?;
    let answer = post(rig, "/v1/abort", &json!({}))?;
    ensure!(answer.status == 200, "{answer:?}");
    Running::start(rig, &["abort"])
}

fn refused_abort(rig: &Rig) -> Result<()> {
    post(rig, "/v1/abort", &json!({}))?.refused(409, "sealed")?;
    let output = rig.crossover(&["abort"])?;
    ensure!(output.status.code() == Some(1), "ended with {}", output.status);
    ensure!(text(&output).contains("is sealed"), "{}", text(&output));
    Ok(())
}

/// SIGTERM of the proxy in the middle of a flip: before SEAL the old owner serves after the next start, after SEAL the
/// new one; the command tells which, and the clients go on.
#[test]
fn r13_a_proxy_that_is_ended_during_a_flip() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut rig, mut fleet) = under_traffic()?;
    let mut owner = "source";
    for (step, goes_on) in
        [("PREPARE", false), ("FENCE", true), ("CARRY", false), ("SEAL", false), ("PUBLISH", true)]
    {
        let (verb, other) = if owner == "source" { ("cutover", "target") } else { ("rollback", "source") };
        let hold = Hold::behind(&rig, step)?;
        let command = Running::start(&rig, &[&[verb][..], &TOPICS].concat())?;
        hold.reached()?;
        signal(rig.proxy_pid(), "TERM")?;
        if goes_on {
            drop(hold);
            rig.stop_proxy()?;
        } else {
            rig.stop_proxy()?;
            drop(hold);
        }
        rig.start_proxy()?;
        let ended = command.output()?;
        let said = text(&ended);
        let now = status(&rig)?;
        let now =
            now["topics"].as_array().and_then(|all| all.iter().find(|t| t["name"] == "orders").cloned());
        let moved = now.is_some_and(|topic| topic["owner"] == other);
        println!("{step}, goes on {goes_on}: moved {moved}, the command: {} {}", ended.status, said.trim());
        ensure!(goes_on || moved == (step == "SEAL"), "behind {step} the topics moved: {moved}");
        let tells = if moved {
            format!("orders is on the {other}")
        } else {
            format!("orders is still on the {owner}")
        };
        ensure!(said.contains(&tells), "the command does not say that {tells}: {said}");
        ensure!(ended.status.code() == Some(i32::from(!moved)), "it ended with {}: {said}", ended.status);
        if moved {
            owner = other;
        }
        fleet.flows()?;
        consistent(&rig, &TOPICS, owner)?;
        // A process that had to cut connections did not end cleanly: flips wait for the grace time (RULES R2).
        wait_for(ENDED_MAX, "a flip to be allowed", || {
            let plan = rig.crossover(&[
                "plan",
                "orders",
                "--to",
                if owner == "source" { "target" } else { "source" },
            ])?;
            Ok(plan.status.success())
        })?;
    }
    // While the only proxy is away no broker is within reach: franz-go's groups tell the application so, and that their
    // commits failed and their partitions are lost.
    fleet.judge_allowing(&rig, &["--allow-errors", "C.error,E.error,C.commit,C.lost"])?;
    done(&mut rig);
    Ok(())
}
