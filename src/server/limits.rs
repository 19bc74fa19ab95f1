//! Who is inside: how many, whether there is a place for one more, and what they got in all.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::{CloseReason, Summary};

/// The clients that are being served, and the totals of those who were.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    limit: usize,
    /// How many are inside. It changes under the mutex alone, or a release could slip past who
    /// waits for one; and everybody may read it.
    inside: AtomicUsize,
    count: Mutex<Count>,
    /// Notified when a client leaves and somebody waits for that.
    left: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    /// Whether somebody waits for a client to leave: a wake-up for nobody costs a system call.
    awaited: bool,
    totals: Totals,
}

impl ConnectionLimiter {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, inside: AtomicUsize::new(0), count: Mutex::default(), left: Condvar::new() }
    }

    /// How many are inside, at the cost of a load.
    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Relaxed)
    }

    /// How many places are free.
    pub(crate) fn available(&self) -> usize {
        self.limit.saturating_sub(self.inside())
    }

    pub(crate) fn totals(&self) -> Totals {
        self.count().totals
    }

    /// Counts a client that a stop cut off before it was served.
    pub(crate) fn count_forcibly_closed(&self) {
        self.count().totals.forcibly_closed += 1;
    }

    /// Takes a place, to be given back when the returned value is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Permit {
        let _count = self.count();
        self.inside.fetch_add(1, Relaxed);
        Permit(Arc::clone(self))
    }

    /// Blocks until there is a place, for `timeout` at most; whether there is one.
    pub(crate) fn acquire_timeout(&self, timeout: Duration) -> bool {
        self.wait_while(timeout, |inside| inside >= self.limit) < self.limit
    }

    /// Blocks until a client has left, for `timeout` at most; whether one has.
    pub(crate) fn wait_for_release(&self, timeout: Duration) -> bool {
        let before = self.inside();
        self.wait_while(timeout, |inside| inside >= before) < before
    }

    /// Blocks until all have left, for `timeout` at most.
    pub(crate) fn wait_until_idle(&self, timeout: Duration) {
        self.wait_while(timeout, |inside| inside > 0);
    }

    /// Blocks while `condition` holds for the number of clients inside; what it is then.
    fn wait_while(&self, timeout: Duration, condition: impl Fn(usize) -> bool) -> usize {
        let mut count = self.count();
        count.awaited = true;
        let waited = self.left.wait_timeout_while(count, timeout, |_| condition(self.inside()));
        let (mut count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        count.awaited = false;
        self.inside()
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's place. Dropping it frees the place, also where the client's thread panicked.
#[derive(Debug)]
pub(crate) struct Permit(Arc<ConnectionLimiter>);

impl Permit {
    /// Adds a client that was served to the totals, and frees its place.
    pub(crate) fn leave(self, summary: &Summary) {
        let totals = &mut self.0.count().totals;
        totals.served += u64::from(summary.admitted);
        totals.echoed += summary.echoed;
        totals.forcibly_closed += u64::from(matches!(summary.reason, CloseReason::ForciblyClosed));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let count = self.0.count();
        self.0.inside.fetch_sub(1, Relaxed);
        if count.awaited {
            self.0.left.notify_all();
        }
    }
}

/// What the server did in its time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    served: u64,
    /// Bytes.
    echoed: u64,
    forcibly_closed: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { served, echoed, forcibly_closed } = self;
        write!(f, "{served} clients served, {forcibly_closed} cut off, {echoed} bytes echoed")
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Longer than any of these tests takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_waits_for_a_place_or_a_departure_learns_whether_there_was_one() {
        let clients = Arc::new(ConnectionLimiter::new(2));
        let first = clients.enter();
        assert!(clients.acquire_timeout(Duration::ZERO));
        let second = clients.enter();
        assert!(!clients.acquire_timeout(Duration::ZERO));
        assert!(!clients.wait_for_release(Duration::ZERO));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| clients.wait_for_release(LONG));
            while !clients.count().awaited && !waiting.is_finished() {
                thread::yield_now();
            }
            drop(first);
            assert!(waiting.join().expect("it does not panic"));
        });
        assert!(clients.acquire_timeout(Duration::ZERO));
        drop(second);
        assert_eq!((clients.inside(), clients.available()), (0, 2));
    }
}
