//! Why a connection ends early, in the words of the report.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

use crate::client::{is_reset, is_timeout};

pub(super) const WRONG_BYTES: &str = "wrong bytes: the echo differs from what was sent";
pub(super) const CLOSED: &str = "closed: the server closed the connection";
pub(super) const TIMEOUT: &str = "timeout: no echo in time; --timeout waits longer";

/// Why a connection ends early.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// The run was stopped.
    Stopped,
    /// The reason, which is counted in the report.
    Failed(String),
}

impl End {
    pub(super) fn failed(reason: &str) -> Self {
        Self::Failed(reason.to_owned())
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::failed(match error.kind() {
            ErrorKind::ConnectionRefused => "refused: no server accepts connections there",
            ErrorKind::AddrNotAvailable => {
                "no free port: a closed connection keeps its port for about a minute (TIME_WAIT); \
                 use fewer connections, or allow more ports (on Linux \
                 net.ipv4.ip_local_port_range)"
            }
            _ if is_reset(&error) => "reset: the server reset the connection; its log may say why",
            _ if is_timeout(&error) => TIMEOUT,
            _ if Errno::from_io_error(&error) == Some(Errno::MFILE) => {
                "no free file: each connection takes one; raise the limit (ulimit -n), or lower \
                 --connections"
            }
            _ => return Self::Failed(format!("failed: {error}")),
        })
    }
}

/// Returns the reason of a connection for which no thread could be spawned.
pub(super) fn no_thread(error: &io::Error) -> String {
    format!("no thread: the system refused one ({error}); lower --connections")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(error: io::Error) -> String {
        match End::from(error) {
            End::Failed(reason) => reason,
            End::Stopped => panic!("an error is a failure"),
        }
    }

    #[test]
    fn each_error_has_its_reason() {
        for (kind, expected) in [
            (ErrorKind::ConnectionRefused, "refused: "),
            (ErrorKind::AddrNotAvailable, "no free port: "),
            (ErrorKind::ConnectionReset, "reset: "),
            (ErrorKind::ConnectionAborted, "reset: "),
            (ErrorKind::TimedOut, "timeout: "),
            (ErrorKind::WouldBlock, "timeout: "),
        ] {
            assert!(reason(kind.into()).starts_with(expected), "{kind}");
        }
        assert!(reason(Errno::MFILE.into()).starts_with("no free file: "));
        assert_eq!(reason(io::Error::other("broken")), "failed: broken");
    }
}
