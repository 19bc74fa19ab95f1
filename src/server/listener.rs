//! The listening socket: made with `socket2`, since `std`'s `TcpListener::bind` has a backlog of
//! only 128 and no say over IP versions, then handed to `std`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::platform::socket::{OPTIONS_INHERITED, SocketOptions, accept};
use crate::platform::wait::{Interest, Waker, wait};

/// How many clients the kernel keeps in its queue until they are accepted, the most that Linux
/// gives by default (`net.core.somaxconn`). When it is full, a client's SYN is dropped and sent
/// again a second later: with `std`'s 128, 2,000 clients at once take seconds to get in.
const BACKLOG: u16 = 4096;

/// A socket that listens, and whose `accept` never blocks for long (see `platform/wait.rs`).
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    /// Whether somebody else bound it, and may hold it still. Clients may have been in its queue
    /// before it had our options.
    adopted: bool,
}

impl Listener {
    /// Binds and listens. On `::` it serves both IP versions.
    pub(crate) fn bind(address: SocketAddr, options: SocketOptions) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        options.apply_to_listener(&SockRef::from(&socket))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG.into())?;
        Ok(Self {
            socket: socket.into(),
            adopted: false,
        })
    }

    /// Takes over a socket that somebody else has bound and listens on.
    pub(crate) fn adopt(listener: TcpListener, options: SocketOptions) -> io::Result<Self> {
        options.apply_to_listener(&SockRef::from(&listener))?;
        Ok(Self {
            socket: listener,
            adopted: true,
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether each client's socket has the listener's options from the start.
    pub(crate) fn options_inherited(&self) -> bool {
        OPTIONS_INHERITED && !self.adopted
    }

    /// The next client in the queue, with its address.
    ///
    /// # Errors
    /// `WouldBlock` if none came for a moment; what else `accept(2)` can meet.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        accept(&self.socket).map(|(stream, peer)| (stream, canonical(peer)))
    }

    /// Blocks until a client is in the queue, as [`wait()`] does.
    pub(crate) fn wait(&self, until: Option<Instant>, waker: &Waker) -> io::Result<bool> {
        wait(&self.socket, Interest::Read, until, Some(waker))
    }

    /// Refuses new clients from now on; those in the queue are still to be had. From a socket that
    /// somebody else may hold they are only as many as there are places: the next server can serve
    /// the others, and who comes from now on.
    pub(crate) fn close(self, places: usize) -> Queue {
        // Those who keep coming cannot keep it open: no more than the queue can have held, which on
        // Linux is one more than it was asked for.
        let room = if self.adopted {
            places
        } else {
            usize::from(BACKLOG) + 1
        };
        let listener = self.socket.set_nonblocking(true).is_ok().then_some(self);
        let mut queue = Queue {
            listener,
            room,
            taken: VecDeque::new(),
        };
        queue.take();
        queue
    }
}

/// The clients who were in the queue of a listener when it closed.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Open only as long as the system has no file for those who are still in its queue.
    listener: Option<Listener>,
    room: usize,
    taken: VecDeque<(TcpStream, SocketAddr)>,
}

impl Queue {
    /// The next client, where there is one and the system has a file for it.
    pub(crate) fn next(&mut self) -> Option<(TcpStream, SocketAddr)> {
        self.take();
        self.taken.pop_front()
    }

    /// Whether there is no next client, and none to come.
    pub(crate) fn is_empty(&self) -> bool {
        self.listener.is_none() && self.taken.is_empty()
    }

    /// Takes over as many as there are files for, and closes the listener behind the last.
    fn take(&mut self) {
        while let Some(listener) = &self.listener {
            if self.room == 0 {
                self.listener = None;
                return;
            }
            match listener.accept() {
                Ok(client) => {
                    self.room -= 1;
                    self.taken.push_back(client);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.listener = None,
                Err(_) => return,
            }
        }
    }
}

/// On a socket for both versions an IPv4 peer is told as `::ffff:192.0.2.1`; people know it
/// without the prefix.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, peer.port()),
        IpAddr::V6(_) => peer,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn options() -> SocketOptions {
        SocketOptions::new(None)
    }

    #[test]
    fn a_client_has_no_delay_and_keepalive() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), options())?;
        let _client = TcpStream::connect(listener.local_addr()?)?;
        let (stream, _) = listener.accept()?;
        let socket = SockRef::from(&stream);
        if !listener.options_inherited() {
            options().apply_to_client(&socket)?;
        }
        assert!(socket.tcp_nodelay()?);
        assert!(socket.keepalive()?);
        Ok(())
    }

    #[test]
    fn accept_gives_up_when_nobody_comes() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), options())?;
        let error = listener.accept().expect_err("nobody came");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        Ok(())
    }

    #[test]
    fn closing_gives_those_in_the_queue_in_their_order_and_refuses_the_next() -> io::Result<()> {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), options())?;
        let address = listener.local_addr()?;
        let clients = [TcpStream::connect(address)?, TcpStream::connect(address)?];
        let mut queue = listener.close(0);
        let error = TcpStream::connect(address).expect_err("it is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        for client in clients {
            assert!(!queue.is_empty());
            let (_, peer) = queue.next().expect("it was in the queue");
            assert_eq!(peer, client.local_addr()?);
        }
        assert!(queue.next().is_none() && queue.is_empty());
        Ok(())
    }

    #[test]
    fn closing_a_socket_of_somebody_else_takes_as_many_as_there_are_places() -> io::Result<()> {
        let manager = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = manager.local_addr()?;
        let [_first, _second, third] = [(); 3].map(|()| TcpStream::connect(address));
        let mut queue = Listener::adopt(manager.try_clone()?, options())?.close(2);
        assert!(queue.next().is_some() && queue.next().is_some());
        assert!(queue.next().is_none() && queue.is_empty());
        let (_, peer) = manager.accept()?;
        assert_eq!(peer, third?.local_addr()?);
        Ok(())
    }
}
