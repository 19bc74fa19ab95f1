//! The limits on clients, in all and per IP address. Both issue permits; dropping a permit releases it,
//! even if the thread that holds it panics.

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::warn;

/// Counts the permits that exist. Before the accept loop takes another, it compares the count with the
/// limit. That is the configured limit, or during graceful shutdown what the system can hold.
#[derive(Debug, Default)]
pub(crate) struct PermitCounter {
    /// Decremented only under the mutex, so that a waiting thread cannot miss a release.
    active: AtomicUsize,
    mutex: Mutex<()>,
    released: Condvar,
}

impl PermitCounter {
    /// Returns the number of permits that exist, at the cost of one load.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// Takes a permit. Only the thread of `Server::run` calls this, so no other can take the last permit
    /// between its check and this call.
    pub(crate) fn acquire(self: &Arc<Self>) -> Permit {
        self.active.fetch_add(1, Relaxed);
        Permit(Arc::clone(self))
    }

    /// Blocks until fewer than `limit` permits exist, or `timeout` passes.
    pub(crate) fn wait_until_below(&self, limit: usize, timeout: Duration) {
        let _ = self
            .released
            .wait_timeout_while(self.lock(), timeout, |()| self.active() >= limit);
    }

    /// Blocks until a permit is released or `timeout` passes.
    pub(crate) fn wait_for_release(&self, timeout: Duration) {
        self.wait_until_below(self.active(), timeout);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One unit of the limit. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Permit(Arc<PermitCounter>);

impl Drop for Permit {
    fn drop(&mut self) {
        let _guard = self.0.lock();
        self.0.active.fetch_sub(1, Relaxed);
        self.0.released.notify_all();
    }
}

/// Limits how many permits each IP address holds, so that one address cannot take them all.
#[derive(Debug)]
pub(crate) struct PerIpLimiter {
    limit: NonZeroUsize,
    /// One entry for each address that holds permits.
    entries: Mutex<HashMap<IpAddr, IpEntry>>,
}

#[derive(Debug, Default)]
struct IpEntry {
    active: usize,
    /// Whether the warning has been logged. Forgotten with the entry, when its last permit is released.
    logged: bool,
}

impl PerIpLimiter {
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        Self {
            limit,
            entries: Mutex::default(),
        }
    }

    /// Takes a permit for `ip`, or returns `None` if the address is at its limit.
    pub(crate) fn try_acquire(self: &Arc<Self>, ip: IpAddr) -> Option<PerIpPermit> {
        let mut entries = self.lock();
        let entry = entries.entry(ip).or_default();
        if entry.active < self.limit.get() {
            entry.active += 1;
            return Some(PerIpPermit {
                limiter: Arc::clone(self),
                ip,
            });
        }
        let logged = mem::replace(&mut entry.logged, true);
        // Logging must not delay threads that need the lock.
        drop(entries);
        if !logged {
            warn!(
                "per-IP limit reached for {ip} ({}): rejecting its new connections",
                self.limit
            );
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, IpEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right of an IP address to one connection. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct PerIpPermit {
    limiter: Arc<PerIpLimiter>,
    ip: IpAddr,
}

impl Drop for PerIpPermit {
    fn drop(&mut self) {
        let mut entries = self.limiter.lock();
        if let Some(entry) = entries.get_mut(&self.ip) {
            entry.active -= 1;
            if entry.active == 0 {
                entries.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Longer than any of these tests takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_waiting_thread_wakes_when_a_permit_is_released() {
        let permits = Arc::new(PermitCounter::default());
        let (first, second) = (permits.acquire(), permits.acquire());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let begin = Instant::now();
                permits.wait_until_below(2, LONG);
                begin.elapsed()
            });
            drop(first);
            assert!(waiting.join().expect("it does not panic") < LONG);
        });
        assert_eq!(permits.active(), 1);
        drop(second);
        assert_eq!(permits.active(), 0);
    }

    #[test]
    fn an_address_without_permits_has_no_entry() {
        let limiter = Arc::new(PerIpLimiter::new(NonZeroUsize::MIN));
        let permit = limiter
            .try_acquire(Ipv4Addr::LOCALHOST.into())
            .expect("it is the first");
        assert!(limiter.try_acquire(Ipv4Addr::LOCALHOST.into()).is_none());
        let other = limiter
            .try_acquire(Ipv4Addr::BROADCAST.into())
            .expect("another address");
        drop((permit, other));
        assert!(limiter.lock().is_empty());
    }
}
