//! How a client is accepted, how a thread waits for a socket and still hears the stop, and the
//! options of sockets.
//!
//! A thread blocked in `accept`, `read` or `write` cannot be woken in a way that works everywhere
//! and loses nothing. So none of them blocks for long: a call gives up with "would block" after at
//! most [`SOCKET_TIMEOUT`], and only then does its thread [`wait`] in `poll(2)`, where the stop reaches
//! it. On Linux a busy client's thread never gets there: a read is one system call, and so a write.
//!
//! | | Linux | other Unix | Windows |
//! | --- | --- | --- | --- |
//! | a call that finds nothing to do | blocks for [`SOCKET_TIMEOUT`] | returns at once | returns at once |
//! | who waits hears the stop | at once, by a pipe | at once, by a pipe | within [`POLL_INTERVAL`] |
//! | a client's socket gets its options | from the listener, unless that was handed over | from its thread | from its thread |
//! | who has reset in the queue | is accepted, the first read tells | an error, on macOS by [`accept`] | an error |
//! | a port is free again at once | with `SO_REUSEADDR` | with `SO_REUSEADDR` | without |

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};

pub(crate) use waker::Waker;

/// The longest that a call on a socket blocks, on Linux. A client that is slower than this costs its
/// thread one more waking for each message: with 8,000 busy clients, whose turn comes every 0.15 s,
/// a patience of 0.1 s took a third of all messages.
const SOCKET_TIMEOUT: Duration = Duration::from_millis(250);

/// How often a wait that cannot hear the stop looks for it.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Linux can block in the call itself, the cheapest wait, and hands a listener's options down to
/// the sockets that it accepts. Elsewhere the sockets are non-blocking: BSD's `accept` knows no
/// timeout, and a Windows read that times out may lose bytes (Microsoft on `SO_RCVTIMEO`).
const LINUX: bool = cfg!(target_os = "linux");

/// Whether a client's socket has the options of the listener that accepted it.
pub(crate) const OPTIONS_INHERITED: bool = LINUX;

/// How much a client's socket takes from a write beyond what it can send, in bytes. Linux would let
/// it grow to 4 MiB for a client that does not read; and a write that waits for room in that would
/// not see a slow client move for a megabyte. Twice the default buffer costs a fast one nothing.
const NOTSENT_LOWAT: u32 = 131_072;

/// What a socket is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Bytes to read, or a client to accept.
    Read,
    /// Room to write.
    Write,
}

/// Gives a listener, before it is bound unless it was handed over, its options and those that its
/// clients' sockets share.
///
/// `SO_REUSEADDR` lets a server start again at once while connections of the one before are in
/// `TIME_WAIT`. On Windows that is so anyway, and the option would mean something else: that any
/// other process may take the port over. There it stays off.
pub(crate) fn prepare_listener(listener: &SockRef<'_>) -> io::Result<()> {
    if cfg!(not(windows)) {
        listener.set_reuse_address(true)?;
    }
    set_options(listener)
}

/// Gives a client's socket its options, where the listener has not handed them down.
pub(crate) fn prepare_client(client: &SockRef<'_>) -> io::Result<()> {
    match set_options(client) {
        // The client has reset the connection, and macOS takes no option any more: the first read
        // tells.
        Err(error) if cfg!(target_vendor = "apple") && error.kind() == ErrorKind::InvalidInput => {
            Ok(())
        }
        result => result,
    }
}

/// `accept(2)`, by `std`.
///
/// # Errors
/// `ConnectionAborted` where the client gave up while it was in the queue; what else there is.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    listener.accept()
}

/// `accept(2)`, by `socket2`: macOS also gives a client that has reset while it was in the queue. That
/// one may have no address, where `std` takes what it finds in its place, and takes no options.
///
/// # Errors
/// `ConnectionAborted` for such a client; what else there is.
#[cfg(target_vendor = "apple")]
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match SockRef::from(listener).accept() {
            Ok((client, address)) => {
                let address = address.as_socket().ok_or(ErrorKind::ConnectionAborted)?;
                return Ok((client.into(), address));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// `TCP_NODELAY`, since no echo is the first half of a longer message; urgent bytes in line with
/// the others, or they would not be read and not be echoed (RFC 6093, section 6); keepalive, so that a peer
/// that vanished without a word frees its thread in two or three minutes, where nothing was on its
/// way to it (TCP itself gives that up later); and [`SOCKET_TIMEOUT`].
fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10));
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_keepalive(&keepalive)?;
    // Also where it must be off: who hands a listener over may have left it on.
    socket.set_nonblocking(!LINUX)?;
    if LINUX {
        set_unsent(socket, NOTSENT_LOWAT)?;
        socket.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    }
    Ok(())
}

/// From now on a client's socket counts as writable when every byte in it has been sent.
///
/// `socket2` offers it on Linux alone; elsewhere it is writable when there is room in its buffer, and what is
/// in there is left to the system to deliver.
pub(crate) fn report_writable_when_all_is_sent(client: &SockRef<'_>) -> io::Result<()> {
    set_unsent(client, 1)
}

/// Lets a socket hold no more than about `limit` bytes that have yet to be sent.
#[cfg(target_os = "linux")]
fn set_unsent(socket: &SockRef<'_>, limit: u32) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(limit)
}

#[cfg(not(target_os = "linux"))]
fn set_unsent(_: &SockRef<'_>, _: u32) -> io::Result<()> {
    Ok(())
}

/// Blocks until `socket` is ready, `until` has come or the waker rings, and now and then for less:
/// who calls it looks again at what it waits for. True if the socket is ready.
///
/// Without a waker it is the wait of a drain, to which the stop is no news.
///
/// # Errors
/// The system has not the memory to wait.
pub(crate) fn wait(
    socket: &impl AsFd,
    interest: Interest,
    until: Option<Instant>,
    waker: Option<&Waker>,
) -> io::Result<bool> {
    let events = match interest {
        Interest::Read => PollFlags::IN,
        Interest::Write => PollFlags::OUT,
    };
    let socket = PollFd::new(socket, events);
    let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
    let ready = match waker {
        Some(waker) => waker.poll_with(socket, timeout),
        None => poll_first(&mut [socket], timeout),
    };
    match ready {
        Err(Errno::INTR) => Ok(false),
        ready => Ok(ready?),
    }
}

/// Whether a read of `socket` would not block, at the cost of one system call. Where the system does
/// not tell, the read will.
pub(crate) fn is_readable(socket: &impl AsFd) -> bool {
    poll_first(&mut [PollFd::new(socket, PollFlags::IN)], Some(Duration::ZERO)).unwrap_or(true)
}

/// Polls, and tells whether the first of `fds` is ready.
fn poll_first(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<bool, Errno> {
    // Windows counts the milliseconds in 32 bits; who wakes after a day looks again.
    const LONGEST: Duration = Duration::from_secs(86_400);
    let timeout = timeout.map(|timeout| {
        Timespec::try_from(timeout.min(LONGEST)).expect("a day fits in any Timespec")
    });
    poll(fds, timeout.as_ref())?;
    Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty()))
}

/// On Unix the waker is a pipe: closing its write end wakes all who poll its read end, at once and
/// for good, takes no file that might not be there to be had, and cannot fail.
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
            Ok(Self { reader, writer: Mutex::new(Some(writer)) })
        }

        pub(crate) fn wake_all(&self) {
            drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
        }

        pub(super) fn poll_with(
            &self,
            socket: PollFd<'_>,
            timeout: Option<Duration>,
        ) -> Result<bool, Errno> {
            // Nobody writes to it: what can be read is its end. A hang-up is told unasked, but not
            // on macOS, which looks at nothing where no event is asked for.
            let closed = PollFd::new(&self.reader, PollFlags::IN);
            poll_first(&mut [socket, closed], timeout)
        }
    }
}

/// On Windows only sockets can be polled: there who waits looks at the flag again and again.
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

        #[expect(clippy::unused_self, reason = "on Unix there is something to do")]
        pub(crate) fn wake_all(&self) {}

        #[expect(clippy::unused_self, reason = "on Unix it polls the pipe too")]
        pub(super) fn poll_with(
            &self,
            socket: PollFd<'_>,
            timeout: Option<Duration>,
        ) -> Result<bool, Errno> {
            let tick = timeout.map_or(POLL_INTERVAL, |timeout| timeout.min(POLL_INTERVAL));
            poll_first(&mut [socket], Some(tick))
        }
    }
}
