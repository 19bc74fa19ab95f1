//! How many connections the system can hold. Beyond that, a new thread may find no memory for its
//! signal stack, and then the standard library ends the process.

#[cfg(unix)]
use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;

/// Elsewhere no other limits are known.
#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Capacity, ConnectionSize};

    pub(super) fn capacities(_: ConnectionSize) -> Vec<Capacity> {
        Vec::new()
    }

    pub(super) fn available_memory() -> Option<u64> {
        None
    }
}

/// From this size on, in bytes, `malloc` gives a block a memory map of its own.
const MMAP_THRESHOLD: usize = 131_072;

/// The resource that limits the number of connections.
#[derive(Debug)]
pub(crate) struct Capacity {
    /// How many connections fit.
    pub(crate) connections: usize,
    /// The limit, and what to do about it.
    pub(crate) reason: String,
}

/// What one connection takes, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionSize {
    pub(crate) stack: usize,
    pub(crate) buffer: usize,
}

impl ConnectionSize {
    fn total(self) -> usize {
        /// The signal stack, guard pages, and small allocations.
        const OVERHEAD: usize = 65_536;
        self.stack + self.buffer + OVERHEAD
    }
}

/// Raises the limit of open files as far as possible: the default is for programs that cannot
/// handle more than 1024.
///
/// # Errors
/// Returns an error if the system refuses.
#[cfg(unix)]
pub fn raise_file_limit() -> io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX).map(drop)
}

/// Does nothing: Windows has no such limit.
///
/// # Errors
/// Never fails.
#[cfg(windows)]
pub fn raise_file_limit() -> io::Result<()> {
    Ok(())
}

/// Returns the resource that allows the fewest connections, if any is limited.
pub(crate) fn capacity(size: ConnectionSize) -> Option<Capacity> {
    let mut capacities = system::capacities(size);
    capacities.extend(open_files());
    capacities
        .into_iter()
        .min_by_key(|capacity| capacity.connections)
}

#[cfg(unix)]
fn open_files() -> Option<Capacity> {
    /// For the waker, and files that are open only for a moment.
    const RESERVE: u64 = 15;
    let (limit, _) = rlimit::Resource::NOFILE.get().ok()?;
    if limit == rlimit::INFINITY {
        return None;
    }
    // The standard streams, and what the parent process has left open.
    let in_use = fs::read_dir("/dev/fd").map_or(3, Iterator::count) as u64;
    Some(Capacity {
        connections: usize::try_from(limit.saturating_sub(in_use + RESERVE)).ok()?,
        reason: format!("only {limit} files can be open (raise it with ulimit -n)"),
    })
}

/// Returns `None`: Windows has no such limit.
#[cfg(windows)]
fn open_files() -> Option<Capacity> {
    None
}

/// A limit on this process's memory. How much memory is in use does not follow from the number of
/// connections, because `malloc` reserves address space as it sees fit. So it is measured before each
/// new connection.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    size: ConnectionSize,
    /// The largest number of connections so far. The memory that they have used stays with the
    /// process, except for large buffers, and is used again.
    peak: AtomicUsize,
}

impl MemoryLimit {
    /// Returns the limit, if there is one.
    pub(crate) fn find(size: ConnectionSize) -> Option<Self> {
        system::available_memory().map(|_| Self {
            size,
            peak: AtomicUsize::new(0),
        })
    }

    /// Returns an error if the memory may not suffice for one more connection beside the `active`
    /// ones.
    pub(crate) fn check(&self, active: usize) -> io::Result<()> {
        /// What each connection may need to log its end.
        const RESERVE_PER_CONNECTION: usize = 8192;
        /// What other threads may need in the meantime: `malloc` takes memory by the megabyte.
        const RESERVE: usize = 4_194_304;
        if active < self.peak.load(Relaxed) && self.size.buffer < MMAP_THRESHOLD {
            return Ok(());
        }
        let needed = self.size.total() + active * RESERVE_PER_CONNECTION + RESERVE;
        match system::available_memory() {
            Some(available) if available < needed as u64 => Err(io::ErrorKind::OutOfMemory.into()),
            _ => Ok(()),
        }
    }

    /// Records that there are `active` connections.
    pub(crate) fn record_peak(&self, active: usize) {
        self.peak.fetch_max(active, Relaxed);
    }
}
