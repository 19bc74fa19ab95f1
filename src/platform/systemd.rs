//! What systemd gives to a service and wants to hear from it, behind the feature `systemd`: the
//! listening socket that it holds and hands over ([sd_listen_fds(3)]), so that a restart refuses
//! nobody; and the service's news ([sd_notify(3)]), so that whoever waits for it can go on.
//!
//! Both are promises in the environment (`LISTEN_FDS`, `NOTIFY_SOCKET`) that any program can make.
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

/// How long news may wait for a manager that does not read them: a stop, and a second signal, must
/// not hang there.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(1);

/// The listening socket that was handed over, if one was.
///
/// # Errors
/// A sentence for the person who wrote the socket unit: what was handed over cannot be served.
pub fn listener() -> Result<Option<TcpListener>, String> {
    match sockets_handed_over() {
        0 => return Ok(None),
        1 => {}
        // Before `listenfd` makes a list of them all.
        n => {
            return Err(format!(
                "inherited {n} sockets (LISTEN_FDS), but can serve only one: write one \
                 ListenStream= in the socket unit"
            ));
        }
    }
    let refuse = |why: &str| {
        format!(
            "cannot serve the inherited socket (LISTEN_FDS): {why}; in the socket unit, \
             ListenStream= must be a TCP port and Accept= no"
        )
    };
    let listener = ListenFd::from_env().take_tcp_listener(0);
    let listener = listener.map_err(|error| refuse(&error.to_string()))?;
    if let Some(listener) = &listener
        && !SockRef::from(listener).is_listener().unwrap_or(true)
    {
        return Err(refuse("it does not listen"));
    }
    info!("using the inherited socket (LISTEN_FDS); --host and --port are ignored");
    Ok(listener)
}

/// How many there are for this process; what was meant for another one may be inherited.
fn sockets_handed_over() -> u64 {
    let ours = env::var("LISTEN_PID").map_or(true, |pid| pid == process::id().to_string());
    let count = env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse().ok());
    count.filter(|_| ours).unwrap_or(0)
}

/// Tells the service manager that clients can connect.
pub fn ready() {
    tell("READY=1");
}

/// Tells the service manager that a stop has begun.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Who did not ask is not told.
fn tell(news: &str) {
    if let Some(manager) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&manager, news)
    {
        warn!("cannot send {news} to the service manager: {error}");
    }
}

fn send(manager: &OsStr, news: &str) -> io::Result<()> {
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    socket.send_to_addr(news.as_bytes(), &address).map(drop)
}
