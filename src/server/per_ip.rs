//! How many clients each IP address has inside, so that one address cannot take all the places.

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::warn;

/// The addresses that have clients inside.
#[derive(Debug)]
pub(crate) struct PerIp {
    limit: NonZeroUsize,
    inside: Mutex<HashMap<IpAddr, Guests>>,
}

/// The clients of one address.
#[derive(Debug, Default)]
struct Guests {
    count: usize,
    /// Whether the log has told that the address is at its limit: once, until all have left.
    told: bool,
}

impl PerIp {
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        Self { limit, inside: Mutex::default() }
    }

    /// Takes one of the seats that `ip` may have, to be given back when the returned value is
    /// dropped. `None` if it has them all.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Seat> {
        let mut inside = self.inside();
        let guests = inside.entry(ip).or_default();
        if guests.count < self.limit.get() {
            guests.count += 1;
            return Some(Seat { per_ip: Arc::clone(self), ip });
        }
        let told = mem::replace(&mut guests.told, true);
        drop(inside);
        if !told {
            warn!("more clients of {ip} are turned away: it has {} already", self.limit);
        }
        None
    }

    fn inside(&self) -> MutexGuard<'_, HashMap<IpAddr, Guests>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's seat among those of its address.
#[derive(Debug)]
pub(crate) struct Seat {
    per_ip: Arc<PerIp>,
    ip: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inside = self.per_ip.inside();
        if let Some(guests) = inside.get_mut(&self.ip) {
            guests.count -= 1;
            if guests.count == 0 {
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
        let per_ip = Arc::new(PerIp::new(NonZeroUsize::MIN));
        let seat = per_ip.enter(Ipv4Addr::LOCALHOST.into()).expect("it is the first");
        assert!(per_ip.enter(Ipv4Addr::LOCALHOST.into()).is_none());
        let other = per_ip.enter(Ipv4Addr::BROADCAST.into()).expect("each counts for itself");
        drop((seat, other));
        assert!(per_ip.inside().is_empty());
    }
}
