//! All that differs by platform, behind functions that do not. The rest of the source knows of no
//! platform.
//!
//! | | Linux | other Unix | Windows |
//! | --- | --- | --- | --- |
//! | `platform/socket.rs` | calls block for a short time | sockets are non-blocking | sockets are non-blocking |
//! | `platform/wait.rs` | a pipe wakes waiting threads | a pipe wakes waiting threads | threads check for shutdown every 0.1 s |
//! | `platform/tcp_info.rs` | `TCP_INFO` | nothing | nothing |
//! | `platform/capacity.rs` | files, memory maps, threads, memory | files | no limits |
//! | [`systemd`] | with the feature `systemd`: a socket handed over, and news for the manager | nothing | nothing |
//! | what `ctrlc` hears in time | SIGINT, SIGTERM, SIGHUP | SIGINT, SIGTERM, SIGHUP | Ctrl+C, Ctrl+Break |
//! | [`console`] | nothing: SIGHUP tells | nothing: SIGHUP tells | hears the close in time |
//! | `platform/terminal.rs` | tells when the terminal has gone | the same, but for macOS | the program goes with its console |

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

/// Where there is no systemd: nobody hands a socket over, and nobody wants news.
#[cfg(not(all(feature = "systemd", target_os = "linux")))]
pub mod systemd {
    /// None.
    ///
    /// # Errors
    /// None here.
    pub fn listener() -> Result<Option<std::net::TcpListener>, String> {
        Ok(None)
    }

    /// Tells nobody.
    pub fn ready() {}

    /// Tells nobody.
    pub fn stopping() {}
}
