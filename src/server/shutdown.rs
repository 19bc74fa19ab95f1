//! The stop: one `AtomicBool` that every loop looks at, and a waker for threads that wait.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::platform::wait::Waker;

/// Asks a running [`Server`](super::Server) to stop; from a signal handler's thread, or any other.
#[derive(Clone, Debug)]
pub struct ShutdownHandle(pub(crate) Arc<Shutdown>);

impl ShutdownHandle {
    /// Starts the stop and returns at once; [`Server::run`](super::Server::run) returns when it is
    /// done. Asking again changes nothing.
    pub fn shutdown(&self) {
        self.0.request();
    }

    /// Whether a stop has been asked for.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        self.0.is_requested()
    }
}

/// What the accept loop and all clients' threads share of a stop.
#[derive(Debug)]
pub(crate) struct Shutdown {
    requested: AtomicBool,
    /// How long clients that are still owed bytes may keep a stop waiting.
    timeout: Duration,
    /// When the stop cuts off who is left; `None` inside: a time too far away to be told.
    deadline: OnceLock<Option<Instant>>,
    waker: Waker,
}

impl Shutdown {
    pub(crate) fn new(timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            timeout,
            deadline: OnceLock::new(),
            waker: Waker::new()?,
        })
    }

    fn request(&self) {
        self.deadline.get_or_init(|| Instant::now().checked_add(self.timeout));
        self.requested.store(true, Ordering::Release);
        self.waker.wake_all();
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// When who is left is cut off; `None` without a stop, or where it is too far away to be told.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied().flatten()
    }

    /// How long it is until the deadline; a year where that is too far away to be told.
    pub(crate) fn time_left(&self) -> Duration {
        const YEAR: Duration = Duration::from_secs(31_536_000);
        self.deadline().map_or(YEAR, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether a stop has been requested and its deadline is over.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline().is_some_and(|deadline| Instant::now() >= deadline)
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }
}
