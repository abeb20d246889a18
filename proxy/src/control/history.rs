//! Operations of earlier processes, as the ledger tells of them: who has started one is told how it ended, although the process
//! that carried it out is gone.

use crossover_admin_api::model::{LedgerEntry, OperationKind, OperationState, OperationView, Side, Step};

/// Entries of the ledger that are looked at: the latest flip of so many partitions is told of whole.
pub(crate) const ENTRIES_MAX: usize = 10_000;

/// The operations of these entries, the oldest first.
pub(super) fn operations(entries: &[LedgerEntry]) -> Vec<OperationView> {
    let mut all: Vec<OperationView> = Vec::new();
    for entry in entries {
        let Some(told) = of(entry) else { continue };
        match all.iter_mut().find(|known| known.id == told.id) {
            None => all.push(told),
            Some(known) => add(known, told),
        }
    }
    all
}

/// What one entry tells of its operation. `None`: it is of none, or does not say enough.
fn of(entry: &LedgerEntry) -> Option<OperationView> {
    let id = entry.operation.as_ref()?;
    let (kind, to, started_ms) = named(id)?;
    let done = ["cutover", "rollback", "group-home"].contains(&entry.kind.as_str());
    if !done && entry.kind != "abort" {
        return None;
    }
    let state = if done { OperationState::Done } else { OperationState::Aborted };
    let partitions: Vec<_> = entry.boundary.iter().cloned().collect();
    Some(OperationView {
        id: id.clone(),
        kind,
        topics: partitions.iter().map(|at| at.topic.clone()).collect(),
        groups: Vec::new(),
        to: entry.to.or(to)?,
        state,
        started_ms,
        finished_ms: Some(entry.at_ms),
        steps: vec![Step { name: state, at_ms: entry.at_ms, took_ms: None }],
        checks: Vec::new(),
        hold_ms: None,
        revision: done.then_some(entry.revision),
        reason: (!done).then(|| entry.text.clone()),
        remedy: (!done).then(|| "what was to move stays where it is; remove the cause and repeat".to_owned()),
        partitions,
    })
}

/// Kind, side and time of an operation, of which its id is made (`backend::claim`). A group that comes along with a flip adds
/// its name: that is a part of the flip, and none that anybody has asked for.
fn named(id: &str) -> Option<(OperationKind, Option<Side>, u64)> {
    let (kind, rest) = id.split_once('-')?;
    let to = match kind {
        "cutover" => Some(Side::Target),
        "rollback" => Some(Side::Source),
        _ => None,
    };
    let kind = match to {
        Some(Side::Target) => OperationKind::Cutover,
        Some(Side::Source) => OperationKind::Rollback,
        None if kind == "groupmove" => OperationKind::GroupMove,
        None => return None,
    };
    Some((kind, to, rest.parse().ok()?))
}

/// Another partition of the same flip, or an end that came later.
fn add(known: &mut OperationView, told: OperationView) {
    if known.state != told.state {
        *known = told;
        return;
    }
    known.finished_ms = told.finished_ms;
    known
        .topics
        .extend(told.topics.into_iter().filter(|topic| !known.topics.contains(topic)).collect::<Vec<_>>());
    known.partitions.extend(told.partitions);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossover_admin_api::model::BoundaryView;

    fn entry(kind: &str, operation: &str, partition: Option<(&str, i32)>) -> LedgerEntry {
        LedgerEntry {
            sequence: 1,
            at_ms: 2_000,
            kind: kind.to_owned(),
            operation: Some(operation.to_owned()),
            revision: 3,
            from: None,
            to: None,
            boundary: partition.map(|(topic, partition)| BoundaryView {
                topic: topic.to_owned(),
                partition,
                virtual_boundary: 5,
                old_native_end: 5,
                new_native_start: 0,
            }),
            text: "why".to_owned(),
        }
    }

    #[test]
    fn a_flip_is_told_of_with_all_its_partitions() {
        let parts = [("a", 0), ("a", 1), ("b", 0)];
        let told = operations(&parts.map(|at| entry("cutover", "cutover-1000", Some(at))));
        let [flip] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(
            (flip.kind, flip.to, flip.state),
            (OperationKind::Cutover, Side::Target, OperationState::Done)
        );
        assert_eq!((flip.topics.join(","), flip.partitions.len()), ("a,b".to_owned(), 3));
        assert_eq!((flip.started_ms, flip.finished_ms, flip.revision), (1_000, Some(2_000), Some(3)));
        assert!(flip.reason.is_none());
    }

    #[test]
    fn an_abort_is_told_of_with_its_reason() {
        let told =
            operations(&[entry("abort", "rollback-7", None), entry("topic-deleted", "rollback-8", None)]);
        let [aborted] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((aborted.kind, aborted.to), (OperationKind::Rollback, Side::Source));
        assert_eq!((aborted.state, aborted.reason.as_deref()), (OperationState::Aborted, Some("why")));
    }

    #[test]
    fn a_move_of_a_group_is_told_of_where_its_side_is_known() {
        let home = LedgerEntry { to: Some(Side::Target), ..entry("group-home", "groupmove-9", None) };
        let along = entry("abort", "cutover-9-my-group", None);
        let told = operations(&[home, along, entry("abort", "groupmove-10", None)]);
        let kinds: Vec<_> = told.iter().map(|one| (one.id.as_str(), one.kind, one.to)).collect();
        assert_eq!(kinds, [("groupmove-9", OperationKind::GroupMove, Side::Target)]);
    }

    #[test]
    fn what_is_no_operation_is_passed_over() {
        for id in ["", "cutover", "cutover-", "cutover-x", "-", "é-1-2"] {
            assert!(operations(&[entry("abort", id, None)]).is_empty(), "{id}");
        }
        assert!(operations(&[LedgerEntry { operation: None, ..entry("abort", "", None) }]).is_empty());
    }
}
