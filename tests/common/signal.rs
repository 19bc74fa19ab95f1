//! Sends signals to programs, as a user or a service manager does, or what Windows has instead.

use std::process::{Child, Command};

#[cfg(unix)]
pub use rustix::process::Signal;

/// On Windows a test can only send Ctrl+Break. Ctrl+C would reach every program of the console, so
/// the test too, and closing the console would end the test. `ctrlc` handles both like Ctrl+Break,
/// so that stands for the Unix signals.
#[cfg(windows)]
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    CtrlBreak,
}

#[cfg(windows)]
impl Signal {
    pub const INT: Self = Self::CtrlBreak;
    pub const TERM: Self = Self::CtrlBreak;
}

/// The signals that start a graceful shutdown.
#[cfg(unix)]
pub const SHUTDOWN_SIGNALS: &[Signal] = &[Signal::INT, Signal::TERM, Signal::HUP];
#[cfg(windows)]
pub const SHUTDOWN_SIGNALS: &[Signal] = &[Signal::CtrlBreak];

/// Sends `signal` to the program.
#[cfg(unix)]
pub fn send(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("the signal can be sent");
}

/// Suspends the program as job control does, until it gets SIGCONT.
#[cfg(unix)]
pub fn pause(child: &Child) {
    send(child, Signal::STOP);
    // SIGCONT would cancel a SIGSTOP that has not reached every thread yet.
    wait_until_suspended(child);
}

/// Waits until the program is suspended.
#[cfg(unix)]
pub fn wait_until_suspended(child: &Child) {
    use rustix::process::{Pid, WaitOptions, waitpid};

    let result = waitpid(Some(Pid::from_child(child)), WaitOptions::UNTRACED);
    let (_, status) = result
        .expect("the program can be waited for")
        .expect("its state has changed");
    assert!(status.stopped(), "the program has exited");
}

/// Sends Ctrl+Break to the program, which must have been [prepared](prepare) for it.
#[cfg(windows)]
pub fn send(child: &Child, Signal::CtrlBreak: Signal) {
    windows::send(child).expect("the signal can be sent");
}

#[cfg(unix)]
pub fn prepare(_: &mut Command) {}

/// Makes `command` the first program of a new process group: Ctrl+Break goes to a whole group.
#[cfg(windows)]
pub fn prepare(command: &mut Command) {
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
    std::os::windows::process::CommandExt::creation_flags(command, CREATE_NEW_PROCESS_GROUP);
}

#[cfg(unix)]
pub fn can_be_sent() -> bool {
    true
}

/// Returns whether a test can send Ctrl+Break, and reports a skipped test if not. It needs a console
/// that the test shares with the program, and a Wine later than version 8.
#[cfg(windows)]
pub fn can_be_sent() -> bool {
    static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CAN.get_or_init(|| {
        let sent = windows::send(&super::Server::start(&[]).child);
        let error = sent.as_ref().err();
        error.inspect(|error| super::skip(format_args!("Ctrl+Break cannot be sent: {error}")));
        sent.is_ok()
    })
}

#[cfg(windows)]
mod windows {
    use std::io;
    use std::process::Child;

    use send_ctrlc::Interruptible;

    pub fn send(child: &Child) -> io::Result<()> {
        Group(child.id()).terminate()
    }

    /// The process ID of the first program of a process group.
    struct Group(u32);

    impl Interruptible for Group {
        fn pid(&mut self) -> io::Result<Option<u32>> {
            Ok(Some(self.0))
        }
    }
}
