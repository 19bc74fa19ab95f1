//! A connection that one thread reads while another one writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};

use super::is_timeout;

/// A connection whose reads return how it ended, even if a write was the first to fail.
///
/// Linux reports a connection's error once, to whichever call comes first. If that is a write, the
/// next read returns 0, as it does after FIN. So a write keeps its error for the next read.
pub(super) struct Connection {
    stream: TcpStream,
    /// The error that a write has taken. Locked during each write: while it is locked, a write may
    /// have taken an error that is not stored yet.
    write_error: Mutex<Option<io::Error>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            write_error: Mutex::default(),
        }
    }

    /// The socket, for its options.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends FIN. If the connection has ended already, the next read returns how.
    pub(super) fn half_close(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes both directions, which also wakes a thread that is blocked in a read or a write.
    pub(super) fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Read for &Connection {
    /// Reads from the socket. Returns 0 only if the peer has sent FIN.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (&self.stream).read(buffer) {
            // The socket is no longer connected: then a write returns at once and unlocks.
            Ok(0) if self.stream.peer_addr().is_err() => {
                let error = self
                    .write_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                error.map_or(Ok(0), Err)
            }
            result => result,
        }
    }
}

impl Write for &Connection {
    /// Writes to the socket. After an error other than a timeout or an interruption, the next read
    /// returns how the connection ended.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self
            .write_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match (&self.stream).write(bytes) {
            Err(error) if is_fatal(&error) => {
                let kind = error.kind();
                // EPIPE only reports that the connection has ended; reads return how.
                if kind != ErrorKind::BrokenPipe {
                    *taken = Some(error);
                }
                Err(kind.into())
            }
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_fatal(error: &io::Error) -> bool {
    !is_timeout(error) && error.kind() != ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;
    use crate::client::is_reset;

    /// A connection, and its peer, which resets it when dropped.
    fn connect() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let stream = TcpStream::connect(address).expect("it listens");
        let (peer, _) = listener.accept().expect("the connection is there");
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .expect("it can be set");
        (Connection::new(stream), peer)
    }

    fn write_until_error(mut connection: &Connection) {
        while connection.write(b"x").is_ok() {}
    }

    #[test]
    fn a_read_returns_the_reset_that_a_write_has_met() {
        let (connection, peer) = connect();
        drop(peer);
        write_until_error(&connection);
        let error = (&connection).read(&mut [0]).expect_err("there is no FIN");
        assert!(is_reset(&error), "{error}");
    }

    /// Other systems report the reset.
    #[test]
    #[cfg(target_os = "linux")]
    fn linux_a_read_returns_fin_if_the_reset_came_after_it() {
        let (connection, peer) = connect();
        peer.shutdown(Shutdown::Write).expect("FIN goes out");
        drop(peer);
        write_until_error(&connection);
        assert_eq!((&connection).read(&mut [0]).expect("FIN came first"), 0);
    }
}
