//! All that differs by platform, behind functions that do not. The rest of the source knows of no
//! platform.
//!
//! | | Linux | other Unix | Windows |
//! | --- | --- | --- | --- |
//! | `platform/wait.rs` | sockets block for a moment, a pipe rings | sockets never block, a pipe rings | sockets never block, who waits looks again and again |
//! | [`systemd`] | with the feature `systemd`: a socket handed over, and news for the manager | nothing | nothing |
//! | what `ctrlc` hears in time | SIGINT, SIGTERM, SIGHUP | SIGINT, SIGTERM, SIGHUP | Ctrl+C, Ctrl+Break |
//! | [`console`] | nothing: SIGHUP tells | nothing: SIGHUP tells | hears the close in time |
//! | [`raise_file_limit`] | to the hard limit | to the hard limit | there is none |
//! | `platform/terminal.rs` | tells when the terminal has gone | the same, but for macOS | the program goes with its console |

pub mod console;
#[cfg(all(feature = "systemd", target_os = "linux"))]
pub mod systemd;
#[cfg(feature = "client")]
pub(crate) mod terminal;
pub(crate) mod wait;

use std::io;

/// Raises the limit of open files as far as it goes: the soft one is for programs that cannot count
/// above 1024. How many files this program may have open.
///
/// # Errors
/// The system refuses.
#[cfg(unix)]
pub fn raise_file_limit() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// How many files this program may have open: Windows sets no limit.
///
/// # Errors
/// None here.
#[cfg(windows)]
pub fn raise_file_limit() -> io::Result<u64> {
    Ok(u64::MAX)
}

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
