//! Watches the logs that lost ownership: growth means that somebody writes around the proxy (RULES R12).

use super::Control;
use crossover_core::cutover;
use crossover_core::ids::{ClusterSide, NativeOffset};
use crossover_core::route::{LinkMode, TopicRoute};
use std::sync::Arc;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn run(control: Arc<Control>) {
    loop {
        tokio::time::sleep(EVERY).await;
        for side in ClusterSide::BOTH {
            // A side that is down is not an alarm of this watch.
            let _ = look(&control, side).await;
        }
    }
}

async fn look(control: &Control, side: ClusterSide) -> anyhow::Result<()> {
    let snapshot = control.runtime.snapshot();
    let idle = snapshot
        .routes
        .topics
        .values()
        .filter(|r| r.is_moved() && r.owner != side && r.mode == LinkMode::Continue);
    let routes: Vec<_> = idle.cloned().collect();
    if routes.is_empty() || !snapshot.topology(side).reachable {
        return Ok(());
    }
    let leads = control.leads(&routes, side)?;
    let starts = control.read_starts(side, &leads).await?;
    for ((topic, partition), start) in starts {
        control.runtime.shared.log_starts.note(&topic, partition, side, NativeOffset(start));
    }
    for ((topic, partition), (_, end)) in control.read_ends(side, &leads).await? {
        let Some(route) = routes.iter().find(|r| r.name == topic) else { continue };
        // The route may have been flipped since the snapshot: only what still holds counts.
        let now = control.runtime.snapshot();
        if now.routes.topic(&topic).is_some_and(|r| r.owner == side) {
            continue;
        }
        // Added since the snapshot: what it begins with is in newer routes only, and nobody has lost it yet.
        if route.timeline(partition).is_none() {
            continue;
        }
        if let Some(cause) = truncated(control, route, partition, side, end) {
            let subject = format!("{topic}-{partition}");
            let remedy = "the records are lost on that side and read as a hole; consumers go on behind it";
            if control.alarm("truncated-log", &subject, cause.clone(), remedy) {
                let entry = control.entry("truncated-log", None, cause);
                control.stored(move |store| store.append(&entry)).await?;
            }
        } else if let Err(why) = cutover::check_idle(route, partition, side, end) {
            let (cause, subject) = (format!("{why:#}"), format!("{topic}-{partition}"));
            let remedy = "find the writer and point it at the proxy; its records are not in the virtual log";
            if control.alarm("hidden-writer", &subject, cause.clone(), remedy) {
                let entry = control.entry("hidden-writer", None, cause);
                control.stored(move |store| store.append(&entry)).await?;
            }
        }
    }
    Ok(())
}

/// What to tell when the old log ends below its boundary: an unclean election has cut it (RULES R21).
fn truncated(
    control: &Control,
    route: &TopicRoute,
    partition: i32,
    side: ClusterSide,
    end: i64,
) -> Option<String> {
    let left = route.timeline(partition)?.eras().rfind(|era| era.side == side)?.native_end?;
    let cut = (end < left.0).then_some(NativeOffset(end));
    control.runtime.shared.truncations.note(&route.name, partition, side, cut);
    cut.map(|end| {
        format!(
            "{}-{partition}: the {side} ended at {} when it lost ownership and ends at {} now",
            route.name, left.0, end.0
        )
    })
}
