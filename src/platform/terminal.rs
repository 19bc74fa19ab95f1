//! The terminal that the client runs in.

/// What a terminal sends between a line and its newline: on Windows a carriage return.
pub(crate) const BEFORE_NEWLINE: &[u8] = if cfg!(windows) { b"\r" } else { b"" };

/// Blocks until the terminal is closed and returns true. Returns false at once if the system does not
/// report that.
#[cfg(all(unix, not(target_vendor = "apple")))]
pub(crate) fn wait_until_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    let stdin = std::io::stdin();
    // A hang-up is reported even if no event is requested.
    let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
    fds[0].revents().contains(PollFlags::HUP)
}

/// Returns false: macOS reports a hang-up only if other events are requested too, such as keys, which
/// are for the prompt. Windows ends a process whose console is closed.
#[cfg(any(windows, target_vendor = "apple"))]
pub(crate) fn wait_until_gone() -> bool {
    false
}

/// Suspends the job of this process, as Ctrl+Z does outside raw mode, until the shell continues it.
#[cfg(unix)]
pub(crate) fn suspend() {
    use rustix::process::{Signal, kill_current_process_group};

    // It cannot fail for this process. Other processes of the job may belong to another user.
    let _ = kill_current_process_group(Signal::TSTP);
}

/// Does nothing: Windows cannot suspend a process.
#[cfg(windows)]
pub(crate) fn suspend() {}
