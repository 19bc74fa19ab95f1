//! What all connections of a run share: the workload, and when the run starts and ends.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::cli::BenchOptions;

/// Maximum number of bytes in flight of one message, and maximum size of one read. The buffers on the
/// way hold that much, so the server can always write its echoes.
pub(super) const MAX_IN_FLIGHT: usize = 65_536;

/// The random bytes repeat after this many. The number is prime, so an echo that is shifted by the size
/// of a buffer, usually a power of two, is detected.
const PERIOD: usize = 65_521;

/// The distance between the first bytes of two connections.
const SPACING: usize = 7_919;

pub(super) struct Workload<'a> {
    pub(super) address: SocketAddr,
    pub(super) timeout: Duration,
    pub(super) options: &'a BenchOptions,
    /// A period of random bytes, and as many of the next as are sent or verified at once.
    payload: Vec<u8>,
    /// One for each connection.
    pub(super) counters: Vec<Counter>,
    /// When messages are measured. Set once all connections are ready.
    window: OnceLock<Range<Instant>>,
    /// Set to end the run early.
    stop: &'a AtomicBool,
}

/// The messages or, in bulk mode, the bytes that a connection has received so far. No other counter
/// shares its cache line, so counting takes no time.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Counter(pub(super) AtomicU64);

impl<'a> Workload<'a> {
    pub(super) fn new(
        address: SocketAddr,
        timeout: Duration,
        options: &'a BenchOptions,
        stop: &'a AtomicBool,
    ) -> Self {
        let mut payload = vec![0; PERIOD];
        fastrand::Rng::with_seed(862).fill(&mut payload);
        while payload.len() < PERIOD + options.size.max(MAX_IN_FLIGHT) {
            payload.extend_from_within(..PERIOD);
        }
        Self {
            address,
            timeout,
            options,
            payload,
            counters: (0..options.connections)
                .map(|_| Counter::default())
                .collect(),
            window: OnceLock::new(),
            stop,
        }
    }

    /// Returns `len` bytes of the stream of a connection, from `offset` on. Each connection has other
    /// bytes, and each message (unless its size is a multiple of the period) others than the last, so
    /// stale, mixed-up and shifted echoes are detected.
    pub(super) fn bytes(&self, connection: usize, offset: usize, len: usize) -> &[u8] {
        let position = (connection * SPACING + offset) % PERIOD;
        &self.payload[position..position + len]
    }

    /// Starts the run, which wakes all workers that wait for the window.
    pub(super) fn start(&self) {
        let start = Instant::now() + self.options.warm_up;
        self.window
            .get_or_init(|| start..start + self.options.duration);
    }

    /// Returns when messages are measured. Blocks until the run starts.
    pub(super) fn window(&self) -> &Range<Instant> {
        self.window.wait()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Returns whether connections send no new message.
    pub(super) fn sending_is_over(&self, now: Instant) -> bool {
        now >= self.window().end || self.is_stopped()
    }

    /// Returns whether the timeout has passed since the end of the window. The run then ends, even
    /// if echoes are pending and still arrive.
    pub(super) fn deadline_has_passed(&self, now: Instant) -> bool {
        now >= self.window().end + self.timeout
    }
}
