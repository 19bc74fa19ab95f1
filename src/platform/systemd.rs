//! Socket activation and readiness notification, behind the feature `systemd`. The service manager
//! keeps the listening socket open ([sd_listen_fds(3)]), so that a restart refuses no client. The
//! server notifies it when it is ready and when it shuts down ([sd_notify(3)]).
//!
//! Both use environment variables (`LISTEN_FDS`, `NOTIFY_SOCKET`), which any program can set.
//!
//! [sd_listen_fds(3)]: https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
//! [sd_notify(3)]: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

use std::env;
use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use listenfd::ListenFd;
use log::{info, warn};
use socket2::SockRef;

/// How long the notification of readiness may block if the service manager does not read it.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the notification of shutdown may block: the thread that sends it also handles the second
/// signal, which must end the server at once.
const STOPPING_TIMEOUT: Duration = Duration::from_millis(50);

/// Returns the inherited listening socket, if there is one.
///
/// # Errors
/// Returns an error message for the author of the socket unit if the socket cannot be served.
pub fn listener() -> Result<Option<TcpListener>, String> {
    match inherited_sockets() {
        0 => return Ok(None),
        1 => {}
        n => {
            return Err(format!(
                "inherited {n} sockets (LISTEN_FDS), but can serve only one: write one \
                 ListenStream= in the socket unit"
            ));
        }
    }
    let explain = |why: &str| {
        format!(
            "cannot serve the inherited socket (LISTEN_FDS): {why}; in the socket unit, \
             ListenStream= must be a TCP port and Accept= no"
        )
    };
    let listener = ListenFd::from_env().take_tcp_listener(0);
    let listener = listener.map_err(|error| explain(&error.to_string()))?;
    if let Some(listener) = &listener
        && !SockRef::from(listener).is_listener().unwrap_or(true)
    {
        return Err(explain("it does not listen"));
    }
    info!("using the inherited socket (LISTEN_FDS); --host and --port are ignored");
    Ok(listener)
}

/// Returns how many sockets this process has inherited. The variables may be meant for another
/// process.
fn inherited_sockets() -> u64 {
    let ours = env::var("LISTEN_PID").map_or(true, |pid| pid == process::id().to_string());
    let count = env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse().ok());
    count.filter(|_| ours).unwrap_or(0)
}

/// Notifies the service manager that clients can connect.
pub fn ready() {
    notify("READY=1", READY_TIMEOUT);
}

/// Notifies the service manager that graceful shutdown has begun.
pub fn stopping() {
    notify("STOPPING=1", STOPPING_TIMEOUT);
}

/// Notifies the service manager, if there is one.
fn notify(state: &str, timeout: Duration) {
    if let Some(manager) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&manager, state, timeout)
    {
        warn!("cannot send {state} to the service manager: {error}");
    }
}

fn send(manager: &OsStr, state: &str, timeout: Duration) -> io::Result<()> {
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(timeout))?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
