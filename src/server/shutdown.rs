//! The state of graceful shutdown: one `AtomicBool` that every loop checks, a waker for threads that
//! block, and the deadline.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::platform::wait::Waker;

/// Shuts a running [`Server`](super::Server) down from another thread, such as that of `ctrlc`.
#[derive(Clone, Debug)]
pub struct ShutdownHandle(pub(crate) Arc<Shutdown>);

impl ShutdownHandle {
    /// Requests graceful shutdown and returns at once. [`Server::run`](super::Server::run) returns
    /// when the shutdown is complete. Further calls have no effect.
    pub fn shutdown(&self) {
        self.0.request();
    }

    /// Returns whether shutdown has been requested.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        self.0.is_requested()
    }
}

/// The state of graceful shutdown, which the accept loop and all connections share.
#[derive(Debug)]
pub(crate) struct Shutdown {
    requested: AtomicBool,
    /// When shutdown was requested. Set before the flag, so that a thread that sees the flag sees it too.
    requested_at: OnceLock<Instant>,
    /// How long graceful shutdown may take.
    pub(crate) timeout: Duration,
    /// When data last arrived during graceful shutdown, from any client.
    last_activity: Mutex<Option<Instant>>,
    /// Wakes blocked threads when shutdown is requested.
    pub(crate) waker: Waker,
}

impl Shutdown {
    pub(crate) fn new(timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            requested_at: OnceLock::new(),
            timeout,
            last_activity: Mutex::new(None),
            waker: Waker::new()?,
        })
    }

    pub(crate) fn request(&self) {
        self.requested_at.get_or_init(Instant::now);
        self.requested.store(true, Ordering::Release);
        self.waker.wake_all();
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Returns the time of the request, if there was one.
    pub(crate) fn requested_at(&self) -> Option<Instant> {
        self.requested_at.get().copied()
    }

    /// Returns the time at which remaining connections are forcibly closed. `None` before the request,
    /// or if the timeout is too long for an `Instant`.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.requested_at.get()?.checked_add(self.timeout)
    }

    /// Returns the time until the deadline, or a year if there is none.
    pub(crate) fn time_left(&self) -> Duration {
        const YEAR: Duration = Duration::from_secs(31_536_000);
        match self.deadline() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => YEAR,
        }
    }

    /// Returns whether the deadline has passed.
    pub(crate) fn is_overdue(&self) -> bool {
        self.time_left().is_zero()
    }

    /// Records that data of a client has arrived. Before shutdown this has no effect.
    pub(crate) fn record_activity(&self) {
        if self.is_requested() {
            *self.lock_last_activity() = Some(Instant::now());
        }
    }

    /// Returns the time at which data last arrived during graceful shutdown, from any client.
    pub(crate) fn last_activity(&self) -> Option<Instant> {
        *self.lock_last_activity()
    }

    fn lock_last_activity(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
