//! `crossover run` and `crossover state`.

use crate::control::{AdminBackend, Control};
use crate::listener::Listeners;
use crate::runtime::Runtime;
use crate::shutdown::Shutdown;
use crate::store::{FOREIGN_REMEDY, InUse, Restored, Rows, Store, foreign};
use crate::{control, telemetry};
use anyhow::{Context, anyhow};
use crossover_admin_api::ServerOptions;
use crossover_config::Config;
use crossover_core::ids::ClusterSide;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Between two looks for a cluster that was not there at the start.
const START_RETRY: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The state is not usable, or an address cannot be bound.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log)?;
    let (store, restored) = open_state(&config.state.directory)?;
    store.put_running(true)?;
    let (shutdown, ending) = Shutdown::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        served = serve(config, store, restored, ending) => served,
        () = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            info!("ending");
            shutdown.request();
            // `serve` returns by itself when the listeners have drained.
            std::future::pending::<()>().await;
        } => Ok(()),
    }
}

async fn serve(
    config: Config,
    store: Store,
    restored: Restored,
    ending: crate::shutdown::ShutdownReceiver,
) -> anyhow::Result<()> {
    let admin = config.admin.clone();
    let answer_timeout = config.limits.hold_max + Duration::from_secs(30);
    let first = control::first_snapshot(&config);
    let (runtime, events) = Runtime::new(config, first);
    let unsealed = restored.intent.clone();
    let control = Control::new(Arc::clone(&runtime), store, restored);
    if let Some(operation) = unsealed {
        let text = "it was not sealed before the process ended: the old owner serves".to_owned();
        warn!(operation, text);
        let entry = control.entry("abort", Some(&operation), text);
        control.stored(move |s| s.put_intent(None).and_then(|()| s.append(&entry))).await?;
    }
    control.show_history(&control.stored_quietly(|s| s.ledger_tail(control::history::ENTRIES_MAX)).await?);
    let admin_listener =
        TcpListener::bind((admin.address.host.as_str(), admin.address.port)).await.with_context(|| {
            format!("admin.address: cannot listen on {}; free the port, or choose another", admin.address)
        })?;
    let options = ServerOptions {
        token: admin.token.as_ref().map(|t| t.expose().to_owned()),
        connections_max: admin.max_connections,
        read_timeout: Duration::from_secs(10),
        answer_timeout,
    };
    let mut asked = ending.clone();
    let ended = async move { asked.requested().await };
    tokio::spawn(crossover_admin_api::serve(
        admin_listener,
        Arc::new(AdminBackend(Arc::clone(&control))),
        options,
        ended,
    ));
    let mut asked = ending.clone();
    tokio::select! {
        looked = first_look(&control) => looked?,
        () = asked.requested() => return Ok(()),
    }
    // Before the pair is claimed: a start that fails here must not take it from a process that serves.
    let listeners = Listeners::bind(Arc::clone(&runtime), ending).await?;
    control.take_over().await;
    control.start(events);
    control.set_serving();
    println!("ready");
    std::io::stdout().flush()?;
    say_what_is_served(&control);
    listeners.run().await;
    // A connection that was cut may have produce on its way to a broker.
    if runtime.sessions.len() == 0 {
        control.stored(|store| store.put_running(false)).await?;
    }
    Ok(())
}

/// The first lines of a log: what is where.
fn say_what_is_served(control: &Control) {
    let config = &control.runtime.config;
    let snapshot = control.runtime.snapshot();
    for side in ClusterSide::BOTH {
        let topology = snapshot.topology(side);
        let owned = snapshot.routes.topics.values().filter(|route| route.owner == side).count();
        let (cluster, brokers) = (&topology.cluster_id, topology.brokers.len());
        info!(%side, reachable = topology.reachable, cluster, brokers, topics_owned = owned, "cluster");
    }
    let (clients, admin) = (&config.listener.bootstrap, &config.admin.address);
    info!(revision = snapshot.revision.0, %clients, %admin, "serving");
}

/// Waits until the cluster of the default side has been seen; the other one may be down.
///
/// # Errors
/// The state belongs to other clusters (RULES R31).
async fn first_look(control: &Arc<Control>) -> anyhow::Result<()> {
    let default = control.runtime.snapshot().routes.rules.default_side;
    loop {
        for side in [default.other(), default] {
            if !control::topology::refresh(control, side).await && !is_foreign(control) {
                let why = control.problem_of(side).unwrap_or_default();
                warn!(%side, why, "the cluster cannot be reached; correct {side}.bootstrap or bring it up");
            }
        }
        if let Some(foreign) = control.alarms().into_iter().find(|alarm| alarm.name == FOREIGN) {
            anyhow::bail!("{}; {}", foreign.cause, foreign.remedy);
        }
        if control.topology(default).reachable {
            return control::state_copy::check_store(control).await;
        }
        tokio::time::sleep(START_RETRY).await;
    }
}

const FOREIGN: &str = "foreign-cluster";

fn is_foreign(control: &Control) -> bool {
    !control.alarms_named(FOREIGN).is_empty()
}

/// Rebuilds a lost store from the copies in the clusters, the newest one that is whole. Says what it did.
///
/// # Errors
/// No cluster has a copy, none is whole, or the store is not empty.
pub(crate) async fn restore_state(config: Config) -> anyhow::Result<String> {
    let (store, _) = open_state(&config.state.directory)?;
    let client = control::client::Client::new(config.timeouts.connect, config.timeouts.control_request);
    let (mut best, mut said, mut clusters) = (None, String::new(), Vec::new());
    for side in ClusterSide::BOTH {
        match control::topology::look(&client, &config, side).await {
            Err(problem) => said += &format!("the {side} cannot be read: {problem:#}\n"),
            Ok(topology) => clusters.push(topology),
        }
    }
    for cluster in &clusters {
        let side = cluster.side;
        match control::state_copy::read(&client, cluster).await {
            Ok(None) => said += &format!("the {side} has no copy\n"),
            Err(problem) => said += &format!("the {side}'s copy cannot be used: {problem:#}\n"),
            Ok(Some(rows)) => {
                said += &format!("the {side} has a copy of revision {}\n", rows.revision());
                if best.as_ref().is_none_or(|(_, known): &(_, Rows)| rows.revision() > known.revision()) {
                    best = Some((side, rows));
                }
            }
        }
    }
    let Some((side, rows)) = best else { anyhow::bail!("{said}there is nothing to restore from") };
    let bound = rows.cluster_ids();
    if let Some(problem) = clusters.iter().find_map(|c| foreign(&bound, c.side, &c.cluster_id)) {
        anyhow::bail!("{said}nothing was restored: {problem}; {FOREIGN_REMEDY}");
    }
    store.put_rows(&rows)?;
    Ok(format!(
        "{said}restored revision {} from the {side}: {} rows; start it with `crossover run`, which takes the pair from a Crossover that still serves it: stop that one first\n",
        rows.revision(),
        rows.0.len()
    ))
}

/// What there is to say of a state directory before a start, without making one.
pub(crate) enum Present {
    /// Nothing was ever stored there.
    Empty,
    /// A Crossover runs on it.
    InUse,
    /// It was written for these clusters.
    Of([Option<String>; 2]),
}

/// Looks at a state directory.
///
/// # Errors
/// It cannot be used; as of [`run`].
pub(crate) fn look_at_state(directory: &Path) -> anyhow::Result<Present> {
    if !directory.join("state.redb").exists() {
        return Ok(Present::Empty);
    }
    match open_state(directory) {
        Ok((_, restored)) => Ok(Present::Of(restored.cluster_ids)),
        Err(problem) if problem.is::<InUse>() => Ok(Present::InUse),
        Err(problem) => Err(problem),
    }
}

/// Opens the state and reads all of it.
///
/// # Errors
/// As [`Store::open`]; or it cannot be used: then with where it can be had again.
fn open_state(directory: &Path) -> anyhow::Result<(Store, Restored)> {
    let unusable = |why: String| {
        anyhow!(
            "state.directory {}: state.redb cannot be used ({why}); look at its disk. If the file is damaged, move the directory away, keep it, and run `crossover state restore`: it rebuilds the state from the copies in the clusters (docs/runbook.md, \"The state is lost\")",
            directory.display()
        )
    };
    let read = || {
        let store = Store::open(directory).map_err(|problem| match is_of_the_file(&problem) {
            true => unusable(format!("{:#}", problem.root_cause())),
            false => problem,
        })?;
        let restored = store.restore().map_err(|problem| unusable(format!("{problem:#}")))?;
        Ok((store, restored))
    };
    // The database panics where pages that are damaged contradict each other.
    std::panic::catch_unwind(read)
        .unwrap_or_else(|_| Err(unusable("its pages contradict each other, see above".to_owned())))
}

/// Whether the database has said so: what is wrong with the directory has a remedy of its own.
fn is_of_the_file(problem: &anyhow::Error) -> bool {
    problem.chain().any(|cause| {
        cause.is::<redb::DatabaseError>()
            || cause.is::<redb::StorageError>()
            || cause.is::<redb::TransactionError>()
            || cause.is::<redb::TableError>()
            || cause.is::<redb::CommitError>()
    })
}

/// The stored state as text, or as JSON.
///
/// # Errors
/// The state is in use or damaged.
pub(crate) fn show_state(config: &Config, json: bool) -> anyhow::Result<String> {
    let (_store, state) = open_state(&config.state.directory)?;
    let topics: Vec<_> = state
        .topics
        .iter()
        .map(|(name, topic)| {
            serde_json::json!({
                "topic": &**name,
                "owner": topic.owner.as_str(),
                "mode": topic.mode.as_str(),
                "partitions": topic.timelines.len(),
                "eras": topic.timelines.iter().map(|t| t.eras().count()).max().unwrap_or(0),
            })
        })
        .collect();
    let shown = |homes: &BTreeMap<Arc<str>, ClusterSide>| -> Vec<_> {
        homes.iter().map(|(g, s)| serde_json::json!({"group": &**g, "home": s.as_str()})).collect()
    };
    let (homes, offset_homes) = (shown(&state.homes), shown(&state.offset_homes));
    let all = serde_json::json!({
        "source_cluster": state.cluster_ids[0],
        "target_cluster": state.cluster_ids[1],
        "revision": state.revision,
        "unsealed_operation": state.intent,
        "topics": topics,
        "group_homes": homes,
        "offset_homes": offset_homes,
    });
    if json {
        return Ok(format!("{all}\n"));
    }
    let mut out = format!("revision {}\n", state.revision);
    for topic in &topics {
        out += &format!("topic {} on the {}, {} eras\n", topic["topic"], topic["owner"], topic["eras"]);
    }
    for home in &homes {
        out += &format!("group {} at home on the {}\n", home["group"], home["home"]);
    }
    for home in &offset_homes {
        out += &format!("transactional commits of group {} on the {}\n", home["group"], home["home"]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What opening says of a state whose file was made another one.
    fn said_of(name: &str, spoil: impl Fn(&Path)) -> String {
        let directory = std::env::temp_dir().join(format!("crossover-run-{}-{name}", std::process::id()));
        drop(open_state(&directory).expect("a new state"));
        spoil(&directory.join("state.redb"));
        let problem = open_state(&directory).err().map(|problem| format!("{problem:#}"));
        std::fs::remove_dir_all(&directory).expect("removed");
        problem.expect("it was opened")
    }

    #[test]
    fn a_damaged_state_says_where_it_can_be_had_again() {
        let garbage = said_of("garbage", |file| std::fs::write(file, [7; 9_000]).expect("written"));
        // The database does not report this one, it panics.
        let cut = said_of("cut", |file| {
            let file = std::fs::File::options().write(true).open(file).expect("opened");
            file.set_len(8_192).expect("cut");
        });
        for said in [garbage, cut] {
            assert!(said.contains("state.redb cannot be used"), "{said}");
            assert!(said.contains("`crossover state restore`") && said.contains("runbook"), "{said}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_used_has_its_own_remedy() {
        let file = std::env::temp_dir().join(format!("crossover-run-{}-file", std::process::id()));
        std::fs::write(&file, "").expect("written");
        let said = open_state(&file).err().map(|problem| format!("{problem:#}")).expect("it is a file");
        std::fs::remove_file(&file).expect("removed");
        assert!(said.contains("name a directory") && !said.contains("restore"), "{said}");
    }
}
