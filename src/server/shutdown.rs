//! Graceful shutdown: one `AtomicBool` that every loop checks, a waker for threads that wait, and
//! the deadline at which remaining connections are forcibly closed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::platform::wait::Waker;

/// Shuts a running [`Server`](super::Server) down, from a signal handler or any other thread.
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

/// The shutdown signal that the accept loop and all connections share.
#[derive(Debug)]
pub(crate) struct Shutdown {
    requested: AtomicBool,
    /// When shutdown was requested. Set before the flag.
    requested_at: OnceLock<Instant>,
    /// How long the drain may take.
    timeout: Duration,
    /// When data of any client last arrived during the drain.
    last_arrival: Mutex<Option<Instant>>,
    waker: Waker,
}

impl Shutdown {
    pub(crate) fn new(timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            requested_at: OnceLock::new(),
            timeout,
            last_arrival: Mutex::new(None),
            waker: Waker::new()?,
        })
    }

    fn request(&self) {
        self.requested_at.get_or_init(Instant::now);
        self.requested.store(true, Ordering::Release);
        self.waker.wake_all();
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Returns when shutdown was requested, if it was.
    pub(crate) fn requested_at(&self) -> Option<Instant> {
        self.requested_at.get().copied()
    }

    /// Returns when remaining connections are forcibly closed: `None` before shutdown, or if that
    /// is too far in the future for an `Instant`.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.requested_at()?.checked_add(self.timeout)
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
        self.deadline()
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Records that data of a client has arrived during the drain.
    pub(crate) fn record_arrival(&self) {
        *self
            .last_arrival
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns when data of any client last arrived during the drain.
    pub(crate) fn last_arrival(&self) -> Option<Instant> {
        *self
            .last_arrival
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }
}
