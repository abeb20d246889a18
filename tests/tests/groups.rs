//! Groups that move along with a topic.

#[path = "groups/mirrored_commits.rs"]
mod mirrored_commits;

use anyhow::{Result, ensure};
use crossover_tests::{flip, one_at_a_time, rig, wait_count};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

/// A group named in a cutover has moved when the command ends; one with a position that has no place on the target
/// refuses the whole operation, and nothing moves.
#[test]
fn groups_move_along_or_refuse_the_cutover() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 4, 1, &[])?;
    }
    rig.source.create_topic("only-here", 1, 1, &[])?;
    let args = |topic, partitions, writer| {
        ["--topic", topic, "--partitions", partitions, "--rate", "100", "--writer", writer]
    };
    let mut producer = rig.driver("java-3.9.2", "producer", "p1", &args("orders", "4", "1"))?;
    let mut other = rig.driver("java-3.9.2", "producer", "p2", &args("only-here", "1", "2"))?;
    let group = |topic, group| {
        ["--topic", topic, "--group", group, "--reset", "earliest", "--commit", "sync-each-second"]
    };
    let mut fits = rig.driver("java-3.9.2", "consumer", "c1", &group("orders", "fits"))?;
    let mut both = rig.driver("java-3.9.2", "consumer", "c2", &group("orders,only-here", "both"))?;
    wait_count(&mut producer, "P.ok", 200, WAIT)?;
    wait_count(&mut other, "P.ok", 200, WAIT)?;
    wait_count(&mut fits, "C.commit", 2, WAIT)?;
    wait_count(&mut both, "C.commit", 2, WAIT)?;
    let refused = flip(&rig, "cutover", &["orders", "--group", "both"])
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    ensure!(refused.contains("does not exist on the target"), "not refused: {refused:?}");
    flip(&rig, "cutover", &["orders", "--group", "fits"])?;
    let read = fits.count("C.poll");
    wait_count(&mut fits, "C.poll", read + 200, WAIT)?;
    let read = both.count("C.poll");
    wait_count(&mut both, "C.poll", read + 200, WAIT)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
