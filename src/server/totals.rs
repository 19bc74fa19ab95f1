//! What the server has done, for its last log line.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::plural::plural;

/// Counts since the server started.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Clients that were admitted.
    pub(crate) clients_served: AtomicU64,
    /// Clients that were forcibly closed, in the listen backlog too.
    pub(crate) forcibly_closed: AtomicU64,
    pub(crate) bytes_echoed: AtomicU64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} served, {} forcibly closed, {} echoed",
            plural(self.clients_served.load(Relaxed), "client"),
            self.forcibly_closed.load(Relaxed),
            plural(self.bytes_echoed.load(Relaxed), "byte"),
        )
    }
}
