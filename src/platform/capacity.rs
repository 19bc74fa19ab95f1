//! How many connections the system can hold. Beyond that, a new thread may find no memory for its
//! alternate signal stack, and then the standard library ends the process.

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
    use super::Capacity;

    pub(super) fn capacities(_: usize) -> Vec<Capacity> {
        Vec::new()
    }

    pub(super) fn available_memory() -> Option<u64> {
        None
    }
}

/// The stack of a connection's thread, in bytes: enough to write a log line in a debug build.
pub(crate) const STACK_SIZE: usize = 131_072;

/// From this size on, in bytes, `malloc` gives a block a memory map of its own.
const MMAP_THRESHOLD: usize = 131_072;

/// How many connections the system can hold.
#[derive(Debug)]
pub(crate) struct Capacity {
    /// How many connections fit.
    pub(crate) connections: usize,
    /// The limit, and what to do about it.
    pub(crate) reason: String,
}

/// Returns how much memory a connection takes, in bytes.
fn connection_size(buffer_size: usize) -> usize {
    /// The alternate signal stack, guard pages, and small allocations.
    const OVERHEAD: usize = 65_536;
    STACK_SIZE + buffer_size + OVERHEAD
}

/// Raises the limit of open files as far as possible: the default is for programs that cannot
/// handle more than 1024. Windows has no such limit.
///
/// # Errors
/// Returns an error if the system refuses.
pub fn raise_file_limit() -> io::Result<()> {
    #[cfg(unix)]
    rlimit::increase_nofile_limit(u64::MAX)?;
    Ok(())
}

/// Returns how many connections with buffers of this size the system can hold: at least 1, or
/// `usize::MAX` if no limit is known.
pub(crate) fn capacity(buffer_size: usize) -> Capacity {
    let mut lowest = Capacity {
        connections: usize::MAX,
        reason: String::new(),
    };
    for capacity in system::capacities(buffer_size)
        .into_iter()
        .chain(open_files())
    {
        if capacity.connections < lowest.connections {
            lowest = capacity;
        }
    }
    lowest.connections = lowest.connections.max(1);
    lowest
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

/// Checks before each new connection whether the memory suffices, if it is limited. That does not
/// follow from the number of connections, because `malloc` reserves address space as it sees fit.
#[derive(Debug)]
pub(crate) struct MemoryCheck {
    pub(crate) is_needed: bool,
    buffer_size: usize,
    /// The largest number of connections so far. Their memory stays with the process after they end,
    /// except for large buffers, so as many connections fit again.
    peak: AtomicUsize,
}

impl MemoryCheck {
    pub(crate) fn new(buffer_size: usize) -> Self {
        Self {
            is_needed: system::available_memory().is_some(),
            buffer_size,
            peak: AtomicUsize::new(0),
        }
    }

    /// Returns an error if the memory may not suffice for one more connection beside the `active`
    /// ones.
    pub(crate) fn check(&self, active: usize) -> io::Result<()> {
        /// What each connection may need to log its end.
        const RESERVE_PER_CONNECTION: usize = 8192;
        /// What other threads may need in the meantime: `malloc` takes memory by the megabyte.
        const RESERVE: usize = 4_194_304;
        let peak = self.peak.fetch_max(active, Relaxed);
        if !self.is_needed || (active < peak && self.buffer_size < MMAP_THRESHOLD) {
            return Ok(());
        }
        let needed = connection_size(self.buffer_size) + active * RESERVE_PER_CONNECTION + RESERVE;
        match system::available_memory() {
            Some(available) if available < needed as u64 => Err(io::ErrorKind::OutOfMemory.into()),
            _ => Ok(()),
        }
    }
}
