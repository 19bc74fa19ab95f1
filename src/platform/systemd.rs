//! What systemd gives to a service and wants to hear from it, behind the feature `systemd`: the
//! listening socket that it holds and hands over ([sd_listen_fds(3)]), so that a restart refuses
//! nobody; and the service's news ([sd_notify(3)]), so that whoever waits for it can go on.
//!
//! Both are promises in the environment (`LISTEN_FDS`, `NOTIFY_SOCKET`) that any program can make.
//!
//! [sd_listen_fds(3)]: https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
//! [sd_notify(3)]: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

use std::net::TcpListener;

use listenfd::ListenFd;
use log::{info, warn};
use sd_notify::NotifyState;
use socket2::SockRef;

/// The listening socket that was handed over, if one was.
///
/// # Errors
/// A sentence for the person who wrote the socket unit: what was handed over cannot be served.
pub fn listener() -> Result<Option<TcpListener>, String> {
    let mut handed_over = ListenFd::from_env();
    match handed_over.len() {
        0 => return Ok(None),
        1 => {}
        n => {
            return Err(format!(
                "{n} sockets were handed over (LISTEN_FDS); one can be served: write one \
                 ListenStream= in the socket unit"
            ));
        }
    }
    let refuse = |why: &str| {
        format!(
            "cannot serve the socket that was handed over (LISTEN_FDS): {why}; in the socket unit, \
             ListenStream= must be a TCP port and Accept= no"
        )
    };
    let listener = handed_over.take_tcp_listener(0).map_err(|error| refuse(&error.to_string()))?;
    if let Some(listener) = &listener
        && !SockRef::from(listener).is_listener().unwrap_or(true)
    {
        return Err(refuse("it does not listen"));
    }
    info!("the socket was handed over (LISTEN_FDS): --host and --port mean nothing");
    Ok(listener)
}

/// Tells the service manager that clients can connect.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells the service manager that a stop has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Who did not ask is not told.
fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        warn!("the service manager cannot be told (NOTIFY_SOCKET): {error}");
    }
}
