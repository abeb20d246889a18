//! Producer ids issued by the proxy (RULES R6): `1 << 62 | random 46 bits << 16 | visit 16 bits`.
//!
//! Clusters count their ids up from 0, so these collide with none of them, and no broker checks that the id of a
//! producer without transactions was issued. The visit says how often the partition had entered a side before the
//! batch was written there: a side that is entered again still has the producer's state of the earlier visit, under
//! another id. Clients only ever see visit 0. Ids that were not issued by the proxy pass unchanged everywhere.

const ISSUED: i64 = 1 << 62;
const VISIT_BITS: u32 = 16;
const VISIT_MASK: i64 = (1 << VISIT_BITS) - 1;
/// The 46 bits between the mark and the visit.
const RANDOM_MASK: i64 = (ISSUED - 1) & !VISIT_MASK;

/// A new producer id, as clients see it. The low 46 bits of `random` are used.
#[must_use]
pub fn issue(random: u64) -> i64 {
    ISSUED | ((random << VISIT_BITS).cast_signed() & RANDOM_MASK)
}

/// True for ids of this layout, whatever their visit: `2^62 ..= 2^63 − 1`.
#[must_use]
pub fn is_issued(pid: i64) -> bool {
    pid >= ISSUED
}

/// The id under which batches go to a side during its `visit`-th re-entry.
#[must_use]
pub fn with_visit(pid: i64, visit: u16) -> i64 {
    if is_issued(pid) { (pid & !VISIT_MASK) | i64::from(visit) } else { pid }
}

/// The visit of an issued id; 0 for all other ids.
#[must_use]
pub fn visit_of(pid: i64) -> u16 {
    let [.., high, low] = pid.to_be_bytes();
    if is_issued(pid) { u16::from_be_bytes([high, low]) } else { 0 }
}

/// The id as the client knows it: visit 0.
#[must_use]
pub fn client_pid(pid: i64) -> i64 {
    with_visit(pid, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn r06_issued_ids_lie_above_what_clusters_allocate_and_use_46_random_bits() {
        assert_eq!(issue(0), 1 << 62);
        assert!(is_issued(issue(0)));
        assert_eq!(issue(u64::MAX), i64::MAX & !0xFFFF);
        assert_eq!(issue(1), (1 << 62) | (1 << 16));
        assert_eq!(issue(1 << 45), (1 << 62) | (1 << 61));
        assert_eq!(issue(1 << 46), 1 << 62);
    }

    #[test]
    fn r06_ids_of_others_pass_unchanged() {
        for pid in [i64::MIN, -2, -1, 0, 1, 70_000, (1 << 62) - 1] {
            assert!(!is_issued(pid));
            assert_eq!(with_visit(pid, 7), pid);
            assert_eq!(client_pid(pid), pid);
            assert_eq!(visit_of(pid), 0);
        }
        assert!(is_issued(i64::MAX));
        assert_eq!(visit_of(i64::MAX), u16::MAX);
    }

    proptest! {
        #[test]
        fn r06_visits_are_reversible_and_hidden_from_clients(random: u64, visit: u16, other: u16) {
            let pid = issue(random);
            prop_assert!(is_issued(pid));
            prop_assert_eq!(visit_of(pid), 0);
            let tagged = with_visit(pid, visit);
            prop_assert!(is_issued(tagged));
            prop_assert_eq!(visit_of(tagged), visit);
            prop_assert_eq!(client_pid(tagged), pid);
            prop_assert_eq!(with_visit(tagged, other), with_visit(pid, other));
        }
    }
}
