//! What a tired operator writes into the file: refused at the start, with the field and the remedy.

use super::{done, two_clusters};
use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::one_at_a_time;
use std::net::TcpListener;
use std::path::Path;

/// What is wrong, the file with it, and what the start must say.
type Mistake = (&'static str, String, Vec<&'static str>);

#[test]
fn a_wrong_configuration_is_refused_at_the_start() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = two_clusters()?;
    rig.stop_proxy()?;
    let file = rig.directory.join("crossover.toml");
    let good = std::fs::read_to_string(&file)?;
    std::fs::write(rig.directory.join("a-file"), "")?;
    let mut problems = Vec::new();
    for (what, text, said) in mistakes(&rig, &good)? {
        ensure!(text != good, "{what}: the file is not changed");
        std::fs::write(&file, text)?;
        if let Err(problem) = refused(&mut rig, &said) {
            problems.push(format!("{what}: {problem:#}"));
        }
    }
    ensure!(problems.is_empty(), "{} starts went otherwise:\n{}", problems.len(), problems.join("\n"));
    ports_in_use(&mut rig, &file, &good)?;
    one_cluster_at_the_first_start(&mut rig, &file, &good)?;
    std::fs::write(&file, &good)?;
    rig.start_proxy()?;
    // A second process with the same file.
    let second = rig.crossover(&["state", "show"])?;
    let text = crossover_tests::text(&second);
    ensure!(text.contains("in use by another crossover process"), "{text}");
    done(&mut rig);
    Ok(())
}

fn mistakes(rig: &Rig, good: &str) -> Result<Vec<Mistake>> {
    let (source, target) = (rig.source.bootstrap(), rig.target.bootstrap());
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned()).context("no port");
    let (own, admin) = (port(&rig.bootstrap)?, port(&rig.admin)?);
    let nodes = good.lines().find(|line| line.starts_with("node_ports")).context("no node_ports")?;
    let first: u16 = admin.parse::<u16>()? + 1;
    let with_ports = |from: &str, to: u16| good.replace(nodes, &format!("node_ports = \"{from}-{to}\""));
    let localhost = source.replace("127.0.0.1", "localhost");
    let state = |directory: &str| good.replace("\"crossover-state\"", &format!("\"{directory}\""));
    Ok(vec![
        (
            "one cluster twice",
            good.replace(&target, &source),
            vec!["target.bootstrap", "two different clusters"],
        ),
        (
            "one cluster twice, by another name",
            good.replace(&target, &localhost),
            vec!["the target is cluster", "or both are one cluster"],
        ),
        (
            "node ports over the bootstrap's",
            with_ports(&own, first + 9),
            vec!["listener.node_ports", "listener.bootstrap"],
        ),
        (
            "node ports over the admin's",
            with_ports(&admin, first + 9),
            vec!["listener.node_ports", "admin.address"],
        ),
        ("node ports backwards", with_ports(&(first + 5).to_string(), first), vec!["listener.node_ports"]),
        (
            "admin at the bootstrap's port",
            good.replace(&admin, &own),
            vec!["admin.address", "choose another port"],
        ),
        (
            "a broker that is the proxy",
            good.replace(&source, &rig.bootstrap),
            vec!["source.bootstrap", "Crossover itself"],
        ),
        (
            "a state below a file",
            state("a-file/state"),
            vec!["state.directory a-file/state", "name a directory"],
        ),
        ("a state in a file", state("a-file"), vec!["state.directory a-file", "name a directory"]),
        (
            "a state where nothing can be written",
            state("/proc/crossover-state"),
            vec!["state.directory /proc", "name a directory"],
        ),
        ("an unknown key", good.replace("[state]", "[state]\npath = \"x\""), vec!["state.path"]),
        (
            "admin for everybody",
            good.replace("[admin]\naddress = \"127.0.0.1:", "[admin]\naddress = \"0.0.0.0:"),
            vec!["admin", "token_file"],
        ),
    ])
}

/// It does not become ready, ends by itself, and says all of this.
fn refused(rig: &mut Rig, said: &[&str]) -> Result<()> {
    let log = rig.directory.join("crossover.log");
    let before = std::fs::read_to_string(&log)?.len();
    let started = rig.start_proxy();
    let log = std::fs::read_to_string(&log)?.get(before..).unwrap_or_default().to_owned();
    if started.is_ok() {
        rig.stop_proxy()?;
        anyhow::bail!("it started:\n{log}");
    }
    println!("{}", log.trim());
    for part in said {
        ensure!(log.contains(part), "it does not say {part:?}:\n{log}");
    }
    ensure!(!log.contains("panicked"), "it panicked:\n{log}");
    Ok(())
}

/// A first start with one cluster on both sides is refused, and binds the new state to nothing: the corrected file works.
fn one_cluster_at_the_first_start(rig: &mut Rig, file: &Path, good: &str) -> Result<()> {
    let fresh = good.replace("\"crossover-state\"", "\"another-state\"");
    let localhost = rig.source.bootstrap().replace("127.0.0.1", "localhost");
    std::fs::write(file, fresh.replace(&rig.target.bootstrap(), &localhost))?;
    refused(rig, &["and so is the target", "must be two clusters", "point the configuration"])?;
    std::fs::write(file, fresh)?;
    rig.start_proxy().context("the corrected file is refused")?;
    Ok(rig.stop_proxy()?)
}

/// Somebody else listens where Crossover should.
fn ports_in_use(rig: &mut Rig, file: &Path, good: &str) -> Result<()> {
    let bootstrap = rig.bootstrap.clone();
    let admin = rig.admin.trim_start_matches("http://").to_owned();
    let port: u16 = admin.rsplit_once(':').context("no port")?.1.parse()?;
    std::fs::write(file, good)?;
    let uses = [
        (bootstrap, "listener.bootstrap"),
        (admin, "admin.address"),
        (format!("127.0.0.1:{}", port + 1), "listener.node_ports"),
    ];
    for (address, field) in uses {
        let other = TcpListener::bind(&address)?;
        refused(rig, &[field, "free the port", &address]).with_context(|| format!("{address} is in use"))?;
        drop(other);
    }
    Ok(())
}
