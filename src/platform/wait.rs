//! Waiting for a socket, in a way that shutdown can end.
//!
//! A thread that is blocked in `accept`, `recv` or `send` cannot be woken in a way that works on
//! every platform and loses no data. So these calls fail with "would block", at once or on Linux after a
//! short time. Then the thread [waits](wait_for_socket) in `poll(2)`, which shutdown can interrupt.

use std::io;
use std::time::{Duration, Instant};

pub(crate) use rustix::event::PollFlags;
use rustix::event::{PollFd, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;

pub(crate) use waker::Waker;

/// How long a thread waits before it checks again, if no event can wake it.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Blocks until one of `events` has occurred on `socket`, `deadline` passes or `waker` wakes the
/// thread. Returns whether an event has occurred. May return early, so callers must check again.
///
/// # Errors
/// Returns an error if `poll` fails, such as for lack of memory.
pub(crate) fn wait_for_socket(
    socket: &impl AsFd,
    events: PollFlags,
    deadline: Option<Instant>,
    waker: Option<&Waker>,
) -> io::Result<bool> {
    loop {
        let socket = PollFd::new(socket, events);
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let result = match waker {
            Some(waker) => waker.poll_with(socket, timeout),
            None => poll_first(&mut [socket], timeout),
        };
        match result {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Returns whether the socket is readable, at the cost of one system call. If `poll` fails, returns
/// true: the next `recv` will report the error.
pub(crate) fn is_readable(socket: &impl AsFd) -> bool {
    poll_first(
        &mut [PollFd::new(socket, PollFlags::IN)],
        Some(Duration::ZERO),
    )
    .unwrap_or(true)
}

/// Polls `fds` and returns whether the first one is ready.
fn poll_first(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<bool, Errno> {
    // Windows counts milliseconds in 32 bits. Waking once a day does no harm.
    const LONGEST: Duration = Duration::from_secs(86_400);
    let timeout = timeout.map(|timeout| {
        Timespec::try_from(timeout.min(LONGEST)).expect("a day fits in every Timespec")
    });
    poll(fds, timeout.as_ref())?;
    Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty()))
}

/// On Unix the waker is a pipe. Closing the write end wakes every thread that polls the read end. Closing
/// needs no new file descriptor and cannot fail.
#[cfg(unix)]
mod waker {
    use std::io::{PipeReader, PipeWriter, pipe};
    use std::sync::{Mutex, PoisonError};

    use super::{Duration, Errno, PollFd, PollFlags, io, poll_first};

    #[derive(Debug)]
    pub(crate) struct Waker {
        reader: PipeReader,
        writer: Mutex<Option<PipeWriter>>,
    }

    impl Waker {
        pub(crate) fn new() -> io::Result<Self> {
            let (reader, writer) = pipe()?;
            Ok(Self {
                reader,
                writer: Mutex::new(Some(writer)),
            })
        }

        pub(crate) fn wake_all(&self) {
            drop(
                self.writer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(),
            );
        }

        pub(super) fn poll_with(
            &self,
            socket: PollFd<'_>,
            timeout: Option<Duration>,
        ) -> Result<bool, Errno> {
            // Nothing is ever written to the pipe, so readable means closed. macOS reports a
            // hang-up only if an event is requested.
            let pipe = PollFd::new(&self.reader, PollFlags::IN);
            poll_first(&mut [socket, pipe], timeout)
        }
    }
}

/// On Windows only sockets can be polled, so a waiting thread checks for shutdown at intervals.
#[cfg(windows)]
mod waker {
    use super::{Duration, Errno, POLL_INTERVAL, PollFd, io, poll_first};

    #[derive(Debug)]
    pub(crate) struct Waker;

    impl Waker {
        #[expect(clippy::unnecessary_wraps, reason = "on Unix it can fail")]
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        #[expect(clippy::unused_self, reason = "on Unix it closes a pipe")]
        pub(crate) fn wake_all(&self) {}

        #[expect(clippy::unused_self, reason = "on Unix it polls the pipe too")]
        pub(super) fn poll_with(
            &self,
            socket: PollFd<'_>,
            timeout: Option<Duration>,
        ) -> Result<bool, Errno> {
            let interval = timeout.map_or(POLL_INTERVAL, |timeout| timeout.min(POLL_INTERVAL));
            poll_first(&mut [socket], Some(interval))
        }
    }
}
