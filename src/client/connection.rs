//! A connection that one thread may read while another writes. A read returns how the connection ended,
//! even if a write failed first.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::is_timeout;
use crate::platform::socket::TIMEOUTS_KEEP_DATA;
use crate::platform::wait::{POLL_INTERVAL, PollFlags, wait_for_socket};

/// A connection whose reads report a reset as a reset, even if a write met it first.
///
/// Linux reports a socket's error once, to whichever call comes first. If that is a write, the next
/// read returns 0, as it does after FIN. So a write stores its error for the next read.
///
/// Calls that a signal interrupts are retried. The timeouts of reads and writes are options of the
/// socket. On Windows the socket is non-blocking, and reads and writes enforce them.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    /// How long a write may send nothing and, by default, a read may receive nothing.
    pub(super) timeout: Duration,
    /// Locked during each write, because a write takes the socket's error before it stores it.
    write_error: Mutex<Option<io::Error>>,
}

impl Connection {
    /// Connects, sets `TCP_NODELAY`, and limits each read and write to the timeout.
    ///
    /// If no server listens there, the system can pick that port as the local one. TCP then connects
    /// the socket to itself (RFC 9293, simultaneous open), and such a connection echoes perfectly.
    pub(super) fn open(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        // A socket that the server has reset already has no peer.
        let peer = stream.peer_addr().map_err(|_| ErrorKind::ConnectionReset)?;
        if stream.local_addr()? == peer {
            // Closes with RST: TIME_WAIT would block the server's port.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            return Err(ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        stream.set_nonblocking(!TIMEOUTS_KEEP_DATA)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream,
            address,
            timeout,
            write_error: Mutex::default(),
        })
    }

    /// Sends all of `bytes`. If a write times out, calls `on_timeout` and tries again.
    pub(super) fn send_all(&self, mut bytes: &[u8], on_timeout: impl Fn()) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&mut &*self).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if is_timeout(&error) => on_timeout(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends FIN. If the connection has ended already, the next read returns how.
    pub(super) fn half_close(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes both directions, which wakes a thread that is blocked in a read or a write: on Windows
    /// within 0.1 s.
    pub(super) fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Calls `call`, and again if a signal interrupts it. If the socket is non-blocking, waits until the
    /// call can succeed or the socket's timeout has passed.
    fn retry<T>(&self, event: PollFlags, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut blocked_since = None;
        loop {
            match call() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !TIMEOUTS_KEEP_DATA => {
                    let timeout = if event == PollFlags::IN {
                        self.stream.read_timeout()?
                    } else {
                        self.stream.write_timeout()?
                    };
                    let elapsed = blocked_since.get_or_insert_with(Instant::now).elapsed();
                    let time_left = timeout.unwrap_or(Duration::MAX).saturating_sub(elapsed);
                    if time_left.is_zero() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    // On Windows, `close` does not wake a thread that polls.
                    let deadline = Instant::now() + time_left.min(POLL_INTERVAL);
                    wait_for_socket(&self.stream, event, Some(deadline), None)?;
                }
                result => return result,
            }
        }
    }

    fn lock_write_error(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.write_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for &Connection {
    /// Reads from the socket. Returns 0 only if the peer has sent FIN.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.retry(PollFlags::IN, || (&self.stream).read(buffer)) {
            // The lock is free soon: on a socket that is no longer connected, a write does not block.
            Ok(0) if self.stream.peer_addr().is_err() => {
                self.lock_write_error().take().map_or(Ok(0), Err)
            }
            result => result,
        }
    }
}

impl Write for &Connection {
    /// Writes to the socket. After an error other than a timeout, the next read returns how the
    /// connection ended.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut write_error = self.lock_write_error();
        match self.retry(PollFlags::OUT, || (&self.stream).write(bytes)) {
            // EPIPE only says that the connection has ended; the next read returns how.
            Err(error) if !is_timeout(&error) && error.kind() != ErrorKind::BrokenPipe => {
                let kind = error.kind();
                *write_error = Some(error);
                Err(kind.into())
            }
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::client::is_reset;

    /// Returns a connection and its peer, which resets the connection when dropped.
    fn connect() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("the listener has an address");
        let connection =
            Connection::open(address, Duration::from_secs(60)).expect("the listener accepts");
        let (peer, _) = listener.accept().expect("a connection is pending");
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .expect("the option can be set");
        (connection, peer)
    }

    fn write_until_error(mut connection: &Connection) {
        while connection.write(b"x").is_ok() {}
    }

    #[test]
    fn a_read_returns_the_reset_that_a_write_met() {
        let (connection, peer) = connect();
        drop(peer);
        write_until_error(&connection);
        let error = (&connection).read(&mut [0]).expect_err("there is no FIN");
        assert!(is_reset(&error), "{error}");
    }

    /// Other systems report the reset instead.
    #[test]
    #[cfg(target_os = "linux")]
    fn linux_a_read_returns_fin_if_the_reset_came_after_it() {
        let (connection, peer) = connect();
        peer.shutdown(Shutdown::Write).expect("FIN can be sent");
        drop(peer);
        write_until_error(&connection);
        assert_eq!((&connection).read(&mut [0]).expect("FIN came first"), 0);
    }
}
