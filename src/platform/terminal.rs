//! How the prompt learns that its terminal has gone.

/// Blocks until the terminal has gone. False, and at once, where the system does not tell.
#[cfg(unix)]
pub(crate) fn wait_until_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    let stdin = std::io::stdin();
    // No event is asked for: a hang-up is reported unasked.
    let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
    fds[0].revents().contains(PollFlags::HUP)
}

/// There is nobody to tell: Windows ends a program whose console is closed.
#[cfg(windows)]
pub(crate) fn wait_until_gone() -> bool {
    false
}
