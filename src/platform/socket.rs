//! Socket options, and the calls that differ by platform.
//!
//! | | Linux | other Unix | Windows |
//! | --- | --- | --- | --- |
//! | `recv`, `send` or `accept` with nothing to do | blocks for a short time | returns at once | returns at once |
//! | shutdown wakes a thread | at once in `poll`, within 0.25 s in a call | at once | within 0.1 s |
//! | options of a client's socket | inherited from the listener | set after `accept` | set after `accept` |
//! | client that resets in the backlog | is accepted; `recv` fails | `accept` returns an error | `accept` returns an error |
//! | restart on the same port | `SO_REUSEADDR` | `SO_REUSEADDR` | needs no option |

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::net::RecvFlags;
use socket2::{SockRef, TcpKeepalive};

/// Whether sockets block in the call itself, for a short time.
///
/// Linux can do that, and it is the cheapest way to wait: one system call per message. Elsewhere
/// sockets are non-blocking: `accept` ignores the timeout on BSD, and a `recv` that times out may
/// lose bytes on Windows (Microsoft on `SO_RCVTIMEO`).
const BLOCKING: bool = cfg!(target_os = "linux");

/// Whether a `recv` or `send` that times out leaves the connection intact. On Windows it may lose
/// bytes, or not report those that were sent (Microsoft on `SO_RCVTIMEO` and `SO_SNDTIMEO`).
#[cfg(feature = "client")]
pub(crate) const TIMEOUTS_KEEP_DATA: bool = cfg!(not(windows));

/// Whether a client's socket inherits the options of the listener that accepted it.
pub(crate) const CLIENTS_INHERIT_OPTIONS: bool = cfg!(target_os = "linux");

/// How long `recv` and `accept` block at most, on Linux. A client that is slower than this costs
/// its thread one more system call per message.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long `send` blocks at most, on Linux. Shorter than [`RECEIVE_TIMEOUT`]: a `send` with room for
/// only a part of its bytes returns only after this time, and only then restarts the idle timeout.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// How many unsent bytes a client's socket accepts, on Linux. With the kernel's own limit of 4 MiB, a
/// client that reads slowly would look idle while it reads a megabyte. With half of this, parallel bulk
/// streams are slower.
#[cfg(target_os = "linux")]
const NOTSENT_LOWAT: u32 = 262_144;

/// Sets the options of a listener. Must be called before `bind`, except for an inherited socket.
///
/// `SO_REUSEADDR` lets a server restart at once while old connections are in `TIME_WAIT`. On
/// Windows that needs no option, and `SO_REUSEADDR` would let another process take the port.
pub(crate) fn set_listener_options(
    listener: &SockRef<'_>,
    idle_timeout: Option<Duration>,
) -> io::Result<()> {
    if cfg!(not(windows)) {
        listener.set_reuse_address(true)?;
    }
    set_options(listener, idle_timeout)
}

/// Sets the options that the listener and its clients have:
/// - `TCP_NODELAY`: an echo is complete, so it need not wait for more data.
/// - `SO_OOBINLINE`: urgent bytes are echoed in order with the others (RFC 6093, section 6).
/// - keepalive: a dead peer frees its thread in two to three minutes.
/// - on Linux, timeouts: no call blocks for longer than `idle_timeout`.
pub(crate) fn set_options(socket: &SockRef<'_>, idle_timeout: Option<Duration>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10));
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_keepalive(&keepalive)?;
    // Also set to false: an inherited socket may be non-blocking.
    socket.set_nonblocking(!BLOCKING)?;
    if BLOCKING {
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
        let max_block = idle_timeout
            .unwrap_or(Duration::MAX)
            .max(Duration::from_millis(1));
        socket.set_read_timeout(Some(RECEIVE_TIMEOUT.min(max_block)))?;
        socket.set_write_timeout(Some(SEND_TIMEOUT.min(max_block)))?;
    }
    Ok(())
}

/// Receives into the spare capacity of `buffer`, without initialising it first, so that a client
/// that sends little touches one page of its buffer. Returns the number of bytes; 0 means FIN.
pub(crate) fn receive(client: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let (_, received) = rustix::net::recv(client, spare_capacity(buffer), RecvFlags::empty())?;
    Ok(received)
}

/// Accepts a client.
///
/// # Errors
/// Returns `ConnectionAborted` if the client gave up while it was in the backlog, or any other error
/// of `accept(2)`.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    listener.accept()
}

/// Accepts a client. macOS also returns a client that has reset while it was in the backlog. Such
/// a client may have no address, which `std` does not expect, and rejects every option.
///
/// # Errors
/// Returns `ConnectionAborted` for such a client, or any other error of `accept(2)`.
#[cfg(target_vendor = "apple")]
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    use std::io::ErrorKind;

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
