//! The listening socket: made with `socket2`, since `std`'s `TcpListener::bind` has a backlog of
//! only 128 and no say over IP versions, then handed to `std`.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::wait::{Alarm, Interest, prepare_listener, wait};

/// How many clients the kernel keeps in its queue until they are accepted, the most that Linux
/// gives by default (`net.core.somaxconn`). When it is full, a client's SYN is dropped and sent
/// again a second later: with `std`'s 128, 2,000 clients at once take seconds to get in.
const BACKLOG: u16 = 4096;

/// A socket that listens, and whose `accept` never blocks for long (see [`wait`](mod@wait)).
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

impl Listener {
    /// Binds and listens. On `::` it serves both IP versions.
    ///
    /// `SO_REUSEADDR` lets a server start again at once while connections of the one before are in
    /// `TIME_WAIT`. On Windows that is so anyway, and the option would mean something else: that any
    /// other process may take the port over. There it stays off.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if cfg!(not(windows)) {
            socket.set_reuse_address(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        prepare_listener(&SockRef::from(&socket))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG.into())?;
        Ok(Self(socket.into()))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The next client in the queue, with its address.
    ///
    /// # Errors
    /// `WouldBlock` if none came for a moment; what else `accept(2)` can meet.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().map(|(stream, peer)| (stream, plain(peer)))
    }

    /// Blocks until a client is in the queue, as [`wait()`] does.
    pub(crate) fn wait(&self, until: Option<Instant>, alarm: &Alarm) -> io::Result<bool> {
        wait(&self.0, Interest::Read, until, Some(alarm))
    }

    /// Takes the clients that are already in the queue, then closes: new ones are refused at once.
    pub(crate) fn close(self) -> Vec<(TcpStream, SocketAddr)> {
        if self.0.set_nonblocking(true).is_err() {
            return Vec::new();
        }
        // Those who keep coming cannot keep it open: no more than the queue can have held.
        (0..BACKLOG).map_while(|_| self.accept().ok()).collect()
    }
}

/// On a socket for both versions an IPv4 peer is told as `::ffff:192.0.2.1`; people know it
/// without the prefix.
fn plain(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, peer.port()),
        IpAddr::V6(_) => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::wait::prepare_client;

    #[test]
    fn a_client_has_no_delay_and_keepalive() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into())?;
        let _client = TcpStream::connect(listener.local_addr()?)?;
        let (stream, _) = listener.accept()?;
        let socket = SockRef::from(&stream);
        prepare_client(&socket)?;
        assert!(socket.tcp_nodelay()?);
        assert!(socket.keepalive()?);
        Ok(())
    }

    #[test]
    fn accept_gives_up_when_nobody_comes() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into())?;
        let error = listener.accept().expect_err("nobody came");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        Ok(())
    }

    #[test]
    fn closing_gives_those_in_the_queue_in_their_order_and_refuses_the_next() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into())?;
        let address = listener.local_addr()?;
        let clients = [TcpStream::connect(address)?, TcpStream::connect(address)?];
        let queue = listener.close();
        let peers: Vec<_> = queue.iter().map(|(_, peer)| *peer).collect();
        assert_eq!(peers, [clients[0].local_addr()?, clients[1].local_addr()?]);
        let error = TcpStream::connect(address).expect_err("it is closed");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        Ok(())
    }
}
