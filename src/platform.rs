//! Everything that differs by platform, behind functions that do not. The rest of the source is the
//! same on all platforms.
//!
//! | | Linux | other Unix | Windows |
//! | --- | --- | --- | --- |
//! | `platform/socket.rs` | calls block for a short time | sockets are non-blocking | sockets are non-blocking |
//! | `platform/wait.rs` | a pipe wakes waiting threads | a pipe wakes waiting threads | threads check for shutdown every 0.1 s |
//! | `platform/tcp_info.rs` | `TCP_INFO` | nothing | nothing |
//! | `platform/capacity.rs` | files, memory maps, threads, memory | files | no limits |
//! | [`systemd`] | with the feature `systemd`: inherited socket, readiness notification | nothing | nothing |
//! | signals that `ctrlc` handles | SIGINT, SIGTERM, SIGHUP | SIGINT, SIGTERM, SIGHUP | Ctrl+C, Ctrl+Break |
//! | [`console`] | nothing: SIGHUP suffices | nothing: SIGHUP suffices | holds up console close for the drain |
//! | `platform/terminal.rs` | waits until the terminal is closed | the same, except on macOS | nothing: the process ends with its console |

pub(crate) mod capacity;
pub mod console;
pub(crate) mod socket;
#[cfg(all(feature = "systemd", target_os = "linux"))]
pub mod systemd;
pub(crate) mod tcp_info;
#[cfg(feature = "client")]
pub(crate) mod terminal;
pub(crate) mod wait;

pub use capacity::raise_file_limit;

/// Without systemd there is no inherited socket and no service manager to notify.
#[cfg(not(all(feature = "systemd", target_os = "linux")))]
pub mod systemd {
    /// Returns `None`.
    ///
    /// # Errors
    /// Never fails.
    pub fn listener() -> Result<Option<std::net::TcpListener>, String> {
        Ok(None)
    }

    /// Does nothing.
    pub fn ready() {}

    /// Does nothing.
    pub fn stopping() {}
}
