//! What the client must know of the terminal that it runs in.

/// What a terminal puts between a line and its newline: on Windows a carriage return.
pub(crate) const BEFORE_NEWLINE: &[u8] = if cfg!(windows) { b"\r" } else { b"" };

/// Blocks until the terminal has gone. False, and at once, where the system does not tell.
#[cfg(all(unix, not(target_vendor = "apple")))]
pub(crate) fn wait_until_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    let stdin = std::io::stdin();
    // No event is asked for: a hang-up is reported unasked.
    let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
    fds[0].revents().contains(PollFlags::HUP)
}

/// macOS tells of a hang-up only where other events are asked for, such as keys, and those are for the
/// prompt. On Windows there is nobody to tell: it ends a program whose console is closed.
#[cfg(any(windows, target_vendor = "apple"))]
pub(crate) fn wait_until_gone() -> bool {
    false
}
