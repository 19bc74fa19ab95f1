//! The PROXY protocol ([specification][spec]). Behind a load balancer every connection comes from
//! the load balancer's address, so it begins with a header that carries the client's address. The
//! header is not echoed. Any client can forge one, so a server that accepts headers must be
//! reachable only through the load balancer.
//!
//! [spec]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::{Duration, Instant};

use proxy_header::{Error, ParseConfig, ProxyHeader};

use super::{CloseReason, Connection};
use crate::server::listener::canonical;

/// How long a PROXY header may take. The specification asks for at least 3 s, so that a lost packet can
/// be sent again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest header that is accepted, in bytes. Version 2 allows 64 KiB, but no load balancer
/// needs that much, and each connection must stay within its memory. nginx has the same limit.
const MAX_LENGTH: usize = 4096;

/// The beginning of a header of version 2 with the command LOCAL, which load balancers send on
/// connections of their own, such as health checks.
const LOCAL_PREFIX: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20";

/// The address family of a header without addresses.
const AF_UNSPEC: u8 = 0;

impl Connection {
    /// Removes the PROXY header from the stream. Returns the client's address if the header has
    /// one.
    pub(super) fn read_proxy_header(&mut self) -> ControlFlow<CloseReason, Option<SocketAddr>> {
        let invalid = |why| Break(CloseReason::InvalidProxyHeader(why));
        let deadline = Instant::now() + TIMEOUT;
        let mut header = Vec::new();
        if let Err(error) = header.try_reserve_exact(MAX_LENGTH) {
            return Break(io::Error::from(error).into());
        }
        while Instant::now() < deadline {
            if self.shared.shutdown.is_requested() {
                self.wait_for_data_or_quiet()?;
            }
            match self.receive_or_wait(Some(deadline))? {
                None => continue,
                Some(0) => return invalid("closed by client before it was complete"),
                Some(_) => {}
            }
            let length_before = header.len();
            let piece = &self.buffer[..self.buffer.len().min(MAX_LENGTH - length_before)];
            header.extend_from_slice(piece);
            // The specification requires ignoring the addresses of such a header, but `parse` would
            // check them.
            if header.starts_with(LOCAL_PREFIX)
                && let Some(family) = header.get_mut(LOCAL_PREFIX.len())
            {
                *family = AF_UNSPEC;
            }
            match ProxyHeader::parse(&header, ParseConfig::default()) {
                Ok((parsed, length)) => {
                    // What follows the header is echoed.
                    self.buffer.drain(..length - length_before);
                    let address = parsed.proxied_address();
                    return Continue(address.map(|address| canonical(address.source)));
                }
                Err(Error::BufferTooShort) if header.len() < MAX_LENGTH => {}
                Err(_) => return invalid("missing, malformed or too long"),
            }
        }
        invalid("incomplete after 5s")
    }
}
