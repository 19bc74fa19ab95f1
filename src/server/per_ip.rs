//! How many clients each IP address has inside, so that one address cannot take all the places.

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::warn;

/// The addresses that have clients inside.
#[derive(Debug)]
pub(crate) struct PerIpLimiter {
    limit: NonZeroUsize,
    inside: Mutex<HashMap<IpAddr, IpEntry>>,
}

/// The clients of one address.
#[derive(Debug, Default)]
struct IpEntry {
    count: usize,
    /// Whether the log has told that the address is at its limit: once, until all have left.
    told: bool,
}

impl PerIpLimiter {
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        Self { limit, inside: Mutex::default() }
    }

    /// Takes one of the seats that `ip` may have, to be given back when the returned value is
    /// dropped. `None` if it has them all.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<PerIpPermit> {
        let mut inside = self.inside();
        let entry = inside.entry(ip).or_default();
        if entry.count < self.limit.get() {
            entry.count += 1;
            return Some(PerIpPermit { per_ip: Arc::clone(self), ip });
        }
        let told = mem::replace(&mut entry.told, true);
        drop(inside);
        if !told {
            warn!("more clients of {ip} are turned away: it has {} already", self.limit);
        }
        None
    }

    fn inside(&self) -> MutexGuard<'_, HashMap<IpAddr, IpEntry>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's per_ip_permit among those of its address.
#[derive(Debug)]
pub(crate) struct PerIpPermit {
    per_ip: Arc<PerIpLimiter>,
    ip: IpAddr,
}

impl Drop for PerIpPermit {
    fn drop(&mut self) {
        let mut inside = self.per_ip.inside();
        if let Some(entry) = inside.get_mut(&self.ip) {
            entry.count -= 1;
            if entry.count == 0 {
                inside.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_that_has_left_leaves_nothing_behind() {
        let per_ip = Arc::new(PerIpLimiter::new(NonZeroUsize::MIN));
        let per_ip_permit = per_ip.enter(Ipv4Addr::LOCALHOST.into()).expect("it is the first");
        assert!(per_ip.enter(Ipv4Addr::LOCALHOST.into()).is_none());
        let other = per_ip.enter(Ipv4Addr::BROADCAST.into()).expect("each counts for itself");
        drop((per_ip_permit, other));
        assert!(per_ip.inside().is_empty());
    }
}
