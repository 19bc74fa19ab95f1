//! The close of the console in which a program runs. On Unix it is a signal as any other, SIGHUP. On
//! Windows it is the end: the system ends the program as soon as its [handlers] of that have
//! returned, and the handler of `ctrlc` returns at once, before anything can be drained.
//!
//! [handlers]: https://learn.microsoft.com/en-us/windows/console/handlerroutine

use std::io;

/// Calls `stop` when the console is closed (or a service is told of a log-off or a shutdown), and holds
/// up the system until the program has ended by itself. As Windows comes, it waits five seconds.
///
/// To be called once `ctrlc` has its handler: Windows asks the newest first.
///
/// # Errors
/// The system gives no handler or no thread.
#[cfg(windows)]
pub fn on_close(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    use signal_mod::{Coordinator, Signal, SignalSet};

    // By these names it knows the close, and log-off and shutdown.
    let events = SignalSet::empty()
        .with(Signal::Terminate)
        .with(Signal::Hangup);
    // To the end: one more event must not end the drain.
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

/// Does nothing: `ctrlc` hears SIGHUP, and nothing ends the program before its time.
///
/// # Errors
/// None here.
#[cfg(unix)]
pub fn on_close(_: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Ok(())
}
