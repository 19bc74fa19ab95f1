//! The client's foundation: which server to talk to, how to connect to it, and the messages for
//! errors that every command can meet. Each command has a module of its own.

pub mod bench;
pub mod conformance;
mod connection;
pub mod interactive;
pub mod pipe;

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use self::connection::Connection;

/// The server to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A host name or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How long the server may take to accept a connection, and how long it may send nothing while
    /// echoes are pending. At the prompt, that wait begins when the user disconnects.
    pub timeout: Duration,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The line to print on stderr: what failed, for which address, and what to do.
    Message(String),
    /// The report shows the failure, or the reader of stdout has gone: only the exit code is left.
    AlreadyReported,
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.as_str(), self.port) {
            (ipv6, port) if ipv6.contains(':') => write!(f, "[{ipv6}]:{port}"),
            (host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl Target {
    /// Connects to the first of the host's addresses that accepts.
    ///
    /// # Errors
    /// Returns an error if the host name cannot be resolved, or if none of its addresses accepts
    /// within the timeout.
    fn connect(&self) -> Result<Connection, Error> {
        let host = &self.host;
        let addresses = (host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|error| {
                format!(
                    "cannot find the host {host}: {error}; check its spelling, or give an IP address"
                )
            })?;
        let mut message = format!("cannot connect to {host}: the name has no address");
        for address in addresses {
            match Connection::open(address, self.timeout) {
                Ok(connection) => return Ok(connection),
                Err(error) => message = explain_connect_error(address, self.timeout, &error),
            }
        }
        Err(message.into())
    }
}

/// Spawns a thread that may end only with the process, because its reads cannot be interrupted.
fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    match thread::Builder::new().spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot spawn a thread: {error}").into()),
    }
}

/// Writes `text` to stdout and flushes it.
fn print(text: impl Display) -> Result<(), Error> {
    let mut stdout = io::stdout();
    write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| explain_stdout_error(&error))
}

/// Returns the message for a connection attempt that failed.
fn explain_connect_error(address: SocketAddr, timeout: Duration, error: &io::Error) -> String {
    let reason = match error.kind() {
        ErrorKind::ConnectionRefused => format!(
            "connection refused; is the server running there? Start it with: echo-server --port {}",
            address.port()
        ),
        // The system gave up before the timeout.
        ErrorKind::TimedOut if error.raw_os_error().is_some() => format!(
            "no answer, and the system stopped trying ({error}); is the address right, and no \
             firewall in between?"
        ),
        ErrorKind::TimedOut => format!(
            "no answer within {timeout:?}; is the address right, and no firewall in between? \
             --timeout waits longer"
        ),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            "no route to it; is the address right, and this machine's network up?".to_owned()
        }
        _ if is_reset(error) => "the server reset the connection; its log may say why".to_owned(),
        _ => format!("{error}; are the host and the port right?"),
    };
    format!("cannot connect to {address}: {reason}")
}

/// Returns the message for an established connection that failed.
fn explain_lost_connection(address: SocketAddr, error: &io::Error) -> String {
    if is_reset(error) {
        format!("{address} reset the connection; its log may say why")
    } else {
        format!("the connection to {address} failed: {error}")
    }
}

/// Returns the error for a failed write to stdout. A reader that closed the pipe, as `head` does,
/// needs no message.
fn explain_stdout_error(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Error::AlreadyReported,
        _ => format!("cannot write to stdout: {error}").into(),
    }
}

/// Returns whether the peer, or an intermediary, sent RST. Windows calls some resets "aborted".
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

/// Returns whether a connection attempt, a read or a write took longer than its timeout. `TimedOut`
/// from the system itself means that the connection has failed.
fn is_timeout(error: &io::Error) -> bool {
    match error.kind() {
        ErrorKind::WouldBlock => true,
        ErrorKind::TimedOut => error.raw_os_error().is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connect_error_has_its_advice() {
        let address = SocketAddr::from(([192, 0, 2, 1], 54000));
        for (kind, advice) in [
            (
                ErrorKind::ConnectionRefused,
                "Start it with: echo-server --port 54000",
            ),
            (ErrorKind::TimedOut, "no answer within 5s"),
            (ErrorKind::NetworkUnreachable, "no route to it"),
            (ErrorKind::HostUnreachable, "no route to it"),
            (ErrorKind::ConnectionReset, "its log may say why"),
            (
                ErrorKind::PermissionDenied,
                "are the host and the port right?",
            ),
        ] {
            let message = explain_connect_error(address, Duration::from_secs(5), &kind.into());
            assert!(
                message.starts_with("cannot connect to 192.0.2.1:54000: "),
                "{message}"
            );
            assert!(message.contains(advice), "{kind:?}: {message}");
        }
        let system_timeout = rustix::io::Errno::TIMEDOUT.into();
        let message = explain_connect_error(address, Duration::from_secs(600), &system_timeout);
        assert!(message.contains("the system stopped trying"), "{message}");
        assert!(
            !message.contains("--timeout"),
            "--timeout would not help: {message}"
        );
    }

    #[test]
    fn only_ipv6_addresses_have_brackets() {
        for (host, expected) in [("::1", "[::1]:7"), ("localhost", "localhost:7")] {
            let target = Target {
                host: host.to_owned(),
                port: 7,
                timeout: Duration::ZERO,
            };
            assert_eq!(target.to_string(), expected);
        }
    }

    #[test]
    fn a_dead_path_is_not_a_timeout() {
        assert!(is_timeout(&ErrorKind::TimedOut.into()));
        assert!(is_timeout(&rustix::io::Errno::WOULDBLOCK.into()));
        assert!(!is_timeout(&rustix::io::Errno::TIMEDOUT.into()));
    }

    #[test]
    fn only_a_reset_is_reported_as_one() {
        let address = SocketAddr::from(([192, 0, 2, 1], 54000));
        let message = |kind: ErrorKind| explain_lost_connection(address, &kind.into());
        for kind in [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted] {
            assert!(message(kind).contains("reset the connection"), "{kind:?}");
        }
        assert!(message(ErrorKind::HostUnreachable).contains("192.0.2.1:54000 failed: "));
    }
}
