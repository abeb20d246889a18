//! How often a peer's nonsense is logged: once in a while for each address, however often it comes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines about the same thing from the same address.
const EVERY: Duration = Duration::from_secs(60);
/// Addresses remembered at most; those that find no room share one place.
const PEERS_MAX: usize = 1_024;

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum About {
    Tls,
    BadFrame,
    BadRequest,
}

struct Told {
    at: Instant,
    /// What has not been told since.
    kept_back: u64,
}

/// Whom was told of lately.
#[derive(Default)]
pub(crate) struct Warned(Mutex<HashMap<(Option<IpAddr>, About), Told>>);

impl Warned {
    /// Whether to log it now: `Some` with how many of its kind were kept back before it.
    pub(crate) fn of(&self, peer: IpAddr, about: About, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(&(Some(peer), about)) && all.len() >= PEERS_MAX {
            all.retain(|_, told| now.saturating_duration_since(told.at) < EVERY);
        }
        let has_room = all.contains_key(&(Some(peer), about)) || all.len() < PEERS_MAX;
        let at = (has_room.then_some(peer), about);
        match all.get_mut(&at) {
            Some(told) if now.saturating_duration_since(told.at) < EVERY => {
                told.kept_back += 1;
                None
            }
            Some(told) => {
                told.at = now;
                Some(std::mem::take(&mut told.kept_back))
            }
            None => {
                all.insert(at, Told { at: now, kept_back: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn peer(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(number))
    }

    #[test]
    fn one_line_for_each_address_and_kind_in_a_while() {
        let (warned, now) = (Warned::default(), Instant::now());
        assert_eq!(warned.of(peer(1), About::Tls, now), Some(0));
        assert_eq!(warned.of(peer(1), About::Tls, now + EVERY / 2), None);
        assert_eq!(warned.of(peer(1), About::BadFrame, now), Some(0));
        assert_eq!(warned.of(peer(2), About::Tls, now), Some(0));
        assert_eq!(warned.of(peer(1), About::Tls, now + EVERY), Some(1), "with what was kept back");
        assert_eq!(warned.of(peer(1), About::Tls, now + EVERY), None);
    }

    #[test]
    fn many_addresses_cost_no_more_memory_and_no_more_lines() {
        let (warned, now) = (Warned::default(), Instant::now());
        let lines = (0..10 * PEERS_MAX as u32).filter_map(|n| warned.of(peer(n), About::BadFrame, now));
        assert_eq!(lines.count(), PEERS_MAX + 1, "those without room share one line");
        assert!(warned.0.lock().expect("lock").len() <= PEERS_MAX + 3, "a shared place for each kind");
        assert_eq!(warned.of(peer(u32::MAX), About::BadFrame, now + EVERY), Some(0), "room was made");
    }
}
