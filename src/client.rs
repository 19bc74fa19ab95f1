//! The client: where the server is, how to connect to it, and the sentences for what can fail on
//! the way. What it does once it is connected is in the files of its commands.

pub mod bench;
pub mod conformance;
mod connection;
pub mod interactive;
pub mod pipe;

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use socket2::SockRef;

use crate::platform;

/// The server to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How long the server may take to accept a connection, and to go on while it owes bytes.
    pub timeout: Duration,
}

/// Why a command did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A sentence for the person at the terminal: what failed, on which address, what to do.
    Message(String),
    /// All has been said, or nobody listens any more: only the exit code is left.
    AlreadyReported,
}

impl From<String> for Error {
    fn from(sentence: String) -> Self {
        Self::Message(sentence)
    }
}

impl Target {
    /// Connects to the first of the host's addresses that answers. Small writes then go out at
    /// once (`TCP_NODELAY`).
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use std::time::Duration;
    ///
    /// use echo_server::client::Target;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let port = server.local_addr()?.port();
    /// let timeout = Duration::from_secs(5);
    /// let target = Target { host: "127.0.0.1".to_owned(), port, timeout };
    /// let (_stream, address) = target.connect().expect("it listens");
    /// assert_eq!(address, server.local_addr()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The name is not known, or no address has accepted the connection within the timeout.
    pub fn connect(&self) -> Result<(TcpStream, SocketAddr), Error> {
        let Self {
            host,
            port,
            timeout,
        } = self;
        let addresses: Vec<SocketAddr> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|error| {
                format!(
                    "cannot find the host {host}: {error}; look at its spelling, or give an IP \
                     address with --host"
                )
            })?
            .collect();
        let mut failure = format!("cannot connect to {host}: the name has no address").into();
        for address in addresses {
            match connect(address, *timeout) {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => failure = explain_connect_error(address, *timeout, &error).into(),
            }
        }
        Err(failure)
    }
}

/// Connects to `address`; small writes then go out at once.
///
/// Where nobody listens, and the system happens to choose the very port that is connected to, TCP
/// connects a socket to itself (RFC 9293, simultaneous open), and that one echoes well.
fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    if stream.local_addr()? == stream.peer_addr()? {
        // Closed with RST, or it would keep the server's port for a while (`TIME_WAIT`).
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Each connection takes a file. Where the limit stays too low, those that find none fail.
fn raise_file_limit() {
    let _ = platform::raise_file_limit();
}

/// The sentence for a connection that could not be had.
fn explain_connect_error(address: SocketAddr, timeout: Duration, error: &io::Error) -> String {
    let port = address.port();
    let why = match error.kind() {
        ErrorKind::ConnectionRefused => format!(
            "connection refused; is the server running there? Start it with: echo-server --port \
             {port}"
        ),
        // It is the system that gave up, before the timeout.
        ErrorKind::TimedOut if error.raw_os_error().is_some() => format!(
            "no answer, and the system asks no more ({error}); is the address right, and no \
             firewall in between?"
        ),
        ErrorKind::TimedOut => format!(
            "no answer within {timeout:?}; is the address right, and no firewall in between? \
             --timeout waits longer"
        ),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            "no way there; is the address right, and this machine's network up?".to_owned()
        }
        _ => format!("{error}; are --host and --port right?"),
    };
    format!("cannot connect to {address}: {why}")
}

/// The sentence for a connection that broke while it was in use.
fn explain_lost_connection(address: SocketAddr, error: &io::Error) -> String {
    if is_reset(error) {
        format!("{address} reset the connection; its log may say why")
    } else {
        format!("the connection to {address} broke: {error}")
    }
}

/// Returns whether the peer, or an intermediary, sent RST. Windows calls some resets "aborted".
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

/// Whether a call on a socket came to the end of its timeout: Unix and Windows name it differently.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// What a failed write to stdout means: a reader that has gone, as `head` goes, need not be told.
fn explain_stdout_error(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Error::AlreadyReported,
        _ => format!("cannot write to stdout: {error}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_not_to_get_there_has_its_advice() {
        let address = SocketAddr::from(([192, 0, 2, 1], 54000));
        for (kind, advice) in [
            (
                ErrorKind::ConnectionRefused,
                "Start it with: echo-server --port 54000",
            ),
            (ErrorKind::TimedOut, "no answer within 5s"),
            (ErrorKind::NetworkUnreachable, "no way there"),
            (ErrorKind::HostUnreachable, "no way there"),
            (ErrorKind::PermissionDenied, "are --host and --port right?"),
        ] {
            let sentence = explain_connect_error(address, Duration::from_secs(5), &kind.into());
            assert!(
                sentence.starts_with("cannot connect to 192.0.2.1:54000: "),
                "{sentence}"
            );
            assert!(sentence.contains(advice), "{kind:?}: {sentence}");
        }
        let given_up = rustix::io::Errno::TIMEDOUT.into();
        let sentence = explain_connect_error(address, Duration::from_secs(600), &given_up);
        assert!(sentence.contains("the system asks no more"), "{sentence}");
        assert!(
            !sentence.contains("--timeout"),
            "it would not help: {sentence}"
        );
    }

    #[test]
    fn only_a_reset_is_told_as_one() {
        let address = SocketAddr::from(([192, 0, 2, 1], 54000));
        let told = |kind: ErrorKind| explain_lost_connection(address, &kind.into());
        for kind in [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted] {
            assert!(told(kind).contains("reset the connection"), "{kind:?}");
        }
        assert!(told(ErrorKind::HostUnreachable).contains("192.0.2.1:54000 broke: "));
    }
}
