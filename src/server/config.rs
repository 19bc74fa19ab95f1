//! The configuration of a server.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use super::connection::Faults;

/// The largest buffer of a connection, in bytes: 16 MiB. Thousands of buffers must fit into memory.
pub const MAX_BUFFER_SIZE: usize = 16_777_216;

/// The longest time to busy-poll. Meanwhile, a thread does not notice shutdown.
pub const MAX_BUSY_POLL: Duration = Duration::from_millis(10);

/// The configuration of a [`Server`](crate::Server).
///
/// ```
/// use std::num::NonZeroUsize;
/// use std::time::Duration;
///
/// use echo_server::Config;
///
/// // For unknown clients: at most 16 per address, and none that is idle for 5 minutes.
/// let config = Config {
///     max_connections_per_ip: NonZeroUsize::new(16),
///     idle_timeout: Some(Duration::from_secs(300)),
///     ..Config::default()
/// };
/// assert_eq!(config.address.to_string(), "0.0.0.0:54000");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address to listen on. With port 0 the system chooses a free port; `::` serves IPv6 and
    /// IPv4.
    pub address: SocketAddr,
    /// Whether each connection must begin with a PROXY protocol header, which carries the client's
    /// address. Any client can forge one, so the server must be reachable only through the load
    /// balancer.
    pub proxy_protocol: bool,
    /// The connection limit: how many clients are served at once, at least 1. Further clients wait
    /// in the listen backlog. Graceful shutdown serves those too, beyond the limit.
    pub max_connections: usize,
    /// The per-IP limit: how many clients of one IP address are served at once. Further
    /// connections are rejected.
    pub max_connections_per_ip: Option<NonZeroUsize>,
    /// Closes a connection after this long without a byte in or out.
    pub idle_timeout: Option<Duration>,
    /// How long graceful shutdown waits for pending echoes.
    pub shutdown_timeout: Duration,
    /// The size of each connection's buffer in bytes, from 1 byte to 16 MiB.
    pub buffer_size: usize,
    /// The maximum time to busy-poll for the next bytes before a thread blocks, up to 10 ms.
    /// Connections do so only while it pays and clients are fewer than CPUs. Zero turns it off.
    pub busy_poll: Duration,
    /// What the server does wrong on purpose.
    pub faults: Faults,
}

impl Default for Config {
    /// Returns the defaults of the command line: `0.0.0.0:54000`, no PROXY header, 10,000 clients,
    /// no per-IP limit, no idle timeout, 5 s for shutdown, buffers of 64 KiB, 50 µs of busy
    /// polling, no faults.
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::UNSPECIFIED, 54000).into(),
            proxy_protocol: false,
            max_connections: 10_000,
            max_connections_per_ip: None,
            idle_timeout: None,
            shutdown_timeout: Duration::from_secs(5),
            buffer_size: 65_536,
            busy_poll: Duration::from_micros(50),
            faults: Faults::default(),
        }
    }
}

impl Config {
    /// Returns an error if a number is out of bounds.
    pub(crate) fn validate(&self) -> io::Result<()> {
        if self.max_connections >= 1
            && (1..=MAX_BUFFER_SIZE).contains(&self.buffer_size)
            && self.busy_poll <= MAX_BUSY_POLL
        {
            return Ok(());
        }
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "max_connections must be at least 1, buffer_size from 1 byte to 16 MiB, busy_poll at \
             most 10 ms",
        ))
    }
}
