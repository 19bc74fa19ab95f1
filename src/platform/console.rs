//! Console close. On Unix it is a signal like any other, SIGHUP. On Windows the system ends the
//! process as soon as its [handlers] have returned, and the handler of `ctrlc` returns at once, before
//! the server is drained.
//!
//! [handlers]: https://learn.microsoft.com/en-us/windows/console/handlerroutine

use std::io;

/// Calls `stop` when the console is closed, or at log-off or system shutdown, and delays Windows
/// until the process has ended: five seconds by default.
///
/// Must be called after the handler of `ctrlc` is set, because Windows calls the newest one first.
///
/// # Errors
/// Returns an error if the system cannot set the handler or spawn a thread.
#[cfg(windows)]
pub fn on_close(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    use signal_mod::{Coordinator, Signal, SignalSet};

    // `signal-mod` calls console close Terminate; log-off and system shutdown are Hangup.
    let events = SignalSet::empty()
        .with(Signal::Terminate)
        .with(Signal::Hangup);
    // It lives until the process ends: a second event must not end the drain.
    let coordinator = Box::leak(Box::new(Coordinator::builder().signals(events).build()));
    coordinator.install().map_err(io::Error::other)?;
    let wait = move || {
        coordinator.token().wait_blocking();
        stop();
    };
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(wait)
        .map(drop)
}

/// Does nothing: `ctrlc` handles SIGHUP, and the system does not end the process.
///
/// # Errors
/// Never fails.
#[cfg(unix)]
pub fn on_close(_: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Ok(())
}
