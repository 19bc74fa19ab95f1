//! What all connections of a run share: the workload, and when the run starts and ends.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::payload::Payload;
use crate::cli::{BenchMode, BenchOptions};
use crate::client::connect;
use crate::client::connection::Connection;

/// The most that a connection receives at once, and the most of one message that is in flight, in
/// bytes. The buffers on the way hold that much, so the server can always write its echoes.
pub(super) const MAX_IN_FLIGHT: usize = 65_536;

/// How long a read may block before the thread checks whether the run is over.
const MAX_READ_TIMEOUT: Duration = Duration::from_millis(50);

pub(super) struct Load {
    address: SocketAddr,
    pub(super) timeout: Duration,
    pub(super) mode: BenchMode,
    /// The size of each message or, in bulk mode, of each write, in bytes.
    pub(super) size: usize,
    pub(super) payload: Payload,
    /// Set once all connections are ready.
    window: OnceLock<Window>,
    /// When the run was stopped, or when the last connection ended.
    stopped: OnceLock<Instant>,
}

/// When messages are measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: Instant,
    pub(super) end: Instant,
}

impl Load {
    pub(super) fn new(address: SocketAddr, timeout: Duration, options: &BenchOptions) -> Self {
        Self {
            address,
            timeout,
            mode: options.mode,
            size: options.size(),
            payload: Payload::new(options.size().max(MAX_IN_FLIGHT)),
            window: OnceLock::new(),
            stopped: OnceLock::new(),
        }
    }

    /// Starts the run, which wakes all workers in [`Self::wait_for_start`].
    pub(super) fn start(&self, warm_up: Duration, duration: Duration) -> Window {
        let start = Instant::now() + warm_up;
        let end = start + duration;
        *self.window.get_or_init(|| Window { start, end })
    }

    /// Blocks until the run starts.
    pub(super) fn wait_for_start(&self) {
        self.window.wait();
    }

    /// Returns when messages are measured. Called once the run has started.
    pub(super) fn window(&self) -> Window {
        *self.window.wait()
    }

    /// Ends the run, unless it has ended already.
    pub(super) fn stop(&self) {
        self.stopped.get_or_init(Instant::now);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get().is_some()
    }

    /// Returns whether connections send no new message.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.window().end || self.is_stopped()
    }

    /// Returns whether the timeout has passed since the end of the window. The run then ends, even
    /// if echoes are pending and still arrive.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.window().end + self.timeout
    }

    /// Returns how much of the window the run has lasted.
    pub(super) fn measured_time(&self) -> Duration {
        let window = self.window();
        let stopped = *self.stopped.get_or_init(Instant::now);
        stopped
            .min(window.end)
            .saturating_duration_since(window.start)
    }

    /// Prepares `stream`, or a new connection, so that reads and writes on it time out.
    pub(super) fn open(&self, stream: Option<TcpStream>) -> io::Result<Connection> {
        let stream = match stream {
            Some(stream) => stream,
            None => connect(self.address, self.timeout)?,
        };
        stream.set_read_timeout(Some(self.read_timeout()))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(Connection::new(stream))
    }

    pub(super) fn read_timeout(&self) -> Duration {
        MAX_READ_TIMEOUT.min(self.timeout)
    }
}
