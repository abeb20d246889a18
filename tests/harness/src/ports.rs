//! Loopback ports that nobody else takes.
//!
//! Below the kernel's ephemeral range, because a port inside it is now and then taken by an outgoing connection while
//! its broker is down. A lease is a locked file: parallel tests in other processes see it, and the kernel ends it with
//! the process.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use crate::cache;
use crate::error::{HarnessError, IoContext, Result};

const FIRST: u16 = 20_000;
const EPHEMERAL_DEFAULT: u16 = 32_768;

/// One port, ours until dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _lock: File,
}

impl PortLease {
    /// The port's number.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The given port, or `None` if it is leased or in use.
    pub(crate) fn take(port: u16) -> Result<Option<Self>> {
        let dir = cache::root().join("ports");
        fs::create_dir_all(&dir).context("create", &dir)?;
        let path = dir.join(port.to_string());
        let lock = File::create(&path).context("create", &path)?;
        let free = lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        Ok(free.then_some(Self { port, _lock: lock }))
    }
}

/// `count` ports in `20000..32768`, free at this moment and leased until dropped.
///
/// # Errors
/// [`HarnessError::Ports`] if there are not as many, or the cache directory cannot be written.
pub fn lease_ports(count: usize) -> Result<Vec<PortLease>> {
    let end = ephemeral_start().clamp(FIRST + 1, EPHEMERAL_DEFAULT);
    let span = end - FIRST;
    // Anywhere, so that two processes rarely try the same ports.
    let start = getrandom::u32().unwrap_or_else(|_| std::process::id());
    let mut leases = Vec::new();
    for step in 0..u32::from(span) {
        if leases.len() == count {
            break;
        }
        let offset = (start % u32::from(span) + step) % u32::from(span);
        leases.extend(PortLease::take(FIRST + offset as u16)?);
    }
    if leases.len() == count { Ok(leases) } else { Err(HarnessError::Ports(count)) }
}

/// Like [`lease_ports`], but leased until this process ends.
///
/// # Errors
/// As [`lease_ports`].
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    static KEPT: Mutex<Vec<PortLease>> = Mutex::new(Vec::new());
    let leases = lease_ports(count)?;
    let ports = leases.iter().map(PortLease::port).collect();
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(leases);
    Ok(ports)
}

fn ephemeral_start() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(EPHEMERAL_DEFAULT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;

    use super::{PortLease, lease_ports};

    #[test]
    fn a_leased_port_is_not_given_out_again_until_it_is_dropped() {
        let first = lease_ports(20).unwrap();
        let second = lease_ports(20).unwrap();
        let numbers: BTreeSet<u16> = first.iter().chain(&second).map(PortLease::port).collect();
        assert_eq!(numbers.len(), 40);
        assert!(numbers.iter().all(|port| (20_000..32_768).contains(port)));

        let port = first[0].port();
        assert!(PortLease::take(port).unwrap().is_none());
        drop(first);
        assert!(PortLease::take(port).unwrap().is_some());
    }

    #[test]
    fn a_port_in_use_is_not_given_out() {
        let lease = lease_ports(1).unwrap().remove(0);
        let port = lease.port();
        let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        drop(lease);
        assert!(PortLease::take(port).unwrap().is_none());
    }
}
