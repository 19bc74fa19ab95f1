//! The listening socket. It is created with `socket2`, because `TcpListener::bind` has a backlog of
//! only 128 and cannot set `IPV6_V6ONLY`.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use log::debug;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::platform::socket::{CLIENTS_INHERIT_OPTIONS, accept, set_listener_options, set_options};
use crate::platform::wait::{PollFlags, Waker, wait_for_socket};

/// The length of the listen backlog, the most that Linux allows by default
/// (`net.core.somaxconn`). When the backlog is full, the kernel drops SYNs, and clients retry only
/// after a second.
pub(crate) const BACKLOG: u16 = 4096;

/// A client that has been accepted, with its address.
pub(crate) type Accepted = (TcpStream, SocketAddr);

/// A listening socket whose `accept` never blocks for long (see `platform/socket.rs`).
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    idle_timeout: Option<Duration>,
    /// Whether the socket is inherited from another process, which may still hold it. Clients may have
    /// connected before the socket had our options, so each client's socket is given them.
    pub(crate) inherited: bool,
}

impl Listener {
    /// Binds and listens. On `::` it serves both IP versions.
    pub(crate) fn bind(address: SocketAddr, idle_timeout: Option<Duration>) -> io::Result<Self> {
        // An IPv4 address in IPv6 notation needs an IPv4 socket.
        let address = canonical(address);
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        set_listener_options(&SockRef::from(&socket), idle_timeout)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG.into())?;
        Ok(Self {
            socket: socket.into(),
            idle_timeout,
            inherited: false,
        })
    }

    /// Takes over an inherited socket that listens already.
    pub(crate) fn inherit(socket: TcpListener, idle_timeout: Option<Duration>) -> io::Result<Self> {
        set_listener_options(&SockRef::from(&socket), idle_timeout)?;
        Ok(Self {
            socket,
            idle_timeout,
            inherited: true,
        })
    }

    /// Accepts a client, whose socket has all options. Returns `None` if no client is in the listen
    /// backlog: on Linux after a short time, elsewhere at once.
    pub(crate) fn accept(&self) -> io::Result<Option<Accepted>> {
        loop {
            let (stream, peer) = match accept(&self.socket) {
                Ok((stream, peer)) => (stream, canonical(peer)),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    // The client gave up while it was in the listen backlog.
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => continue,
                    _ => return Err(error),
                },
            };
            let has_options = CLIENTS_INHERIT_OPTIONS && !self.inherited;
            if !has_options
                && let Err(error) = set_options(&SockRef::from(&stream), self.idle_timeout)
            {
                // The client has reset the connection: macOS rejects options then.
                debug!("{peer} rejected: cannot set its socket options ({error})");
                continue;
            }
            return Ok(Some((stream, peer)));
        }
    }

    /// Accepts a client if one is in the listen backlog. Otherwise waits until one connects, `deadline`
    /// passes or `waker` wakes the thread, and returns `None`; the next call accepts the client. May return
    /// early.
    pub(crate) fn accept_or_wait(
        &self,
        waker: &Waker,
        deadline: Option<Instant>,
    ) -> io::Result<Option<Accepted>> {
        let accepted = self.accept()?;
        if accepted.is_none() {
            wait_for_socket(&self.socket, PollFlags::IN, deadline, Some(waker))?;
        }
        Ok(accepted)
    }
}

/// Removes the prefix that an IPv4 address has on a socket for both IP versions:
/// `::ffff:192.0.2.1` is `192.0.2.1`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_sockets_have_no_delay_and_keepalive() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), None)?;
        let _client = TcpStream::connect(listener.socket.local_addr()?)?;
        let (stream, _) = listener.accept()?.expect("a client has connected");
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay()?);
        assert!(socket.keepalive()?);
        Ok(())
    }

    #[test]
    fn accept_returns_if_no_client_connects() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), None)?;
        assert!(listener.accept()?.is_none());
        Ok(())
    }
}
