//! How a test asks a program to stop, as a person or a service manager does: what the tests know of
//! signals, and of what Windows has in their place.

use std::process::{Child, Command};

#[cfg(unix)]
pub use rustix::process::Signal;

/// On Windows a test can send Ctrl+Break to a program, and nothing else: Ctrl+C goes to every program
/// of the console, the test too, and a console that is closed takes the test with it. `ctrlc` has one
/// handler for the first two, so Ctrl+Break stands for what Unix calls by these names.
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

/// Each signal that stops a program.
#[cfg(unix)]
pub const STOPS: &[Signal] = &[Signal::INT, Signal::TERM, Signal::HUP];
#[cfg(windows)]
pub const STOPS: &[Signal] = &[Signal::CtrlBreak];

#[cfg(unix)]
pub fn send(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("it can be signalled");
}

/// Stops the program as job control does, until it gets SIGCONT.
#[cfg(unix)]
pub fn pause(child: &Child) {
    use rustix::process::{Pid, WaitOptions, waitpid};

    send(child, Signal::STOP);
    // SIGCONT would take back a SIGSTOP that has not got through to every thread.
    let stopped = waitpid(Some(Pid::from_child(child)), WaitOptions::UNTRACED);
    let (_, status) = stopped
        .expect("it can be waited for")
        .expect("it has stopped");
    assert!(status.stopped(), "it has ended");
}

/// The program must have been [prepared](prepare) for it.
#[cfg(windows)]
pub fn send(child: &Child, Signal::CtrlBreak: Signal) {
    windows::send(child).expect("it can be signalled");
}

#[cfg(unix)]
pub fn prepare(_: &mut Command) {}

/// Ctrl+Break goes to a group of programs: makes `command` the first of its own.
#[cfg(windows)]
pub fn prepare(command: &mut Command) {
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
    std::os::windows::process::CommandExt::creation_flags(command, CREATE_NEW_PROCESS_GROUP);
}

#[cfg(unix)]
pub fn can_be_sent() -> bool {
    true
}

/// Ctrl+Break takes a console, which the test and the program share; and Wine has learnt it only
/// after its version 8. Where it cannot be sent, CI fails and others are told.
#[cfg(windows)]
pub fn can_be_sent() -> bool {
    static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CAN.get_or_init(|| {
        let sent = windows::send(&super::Server::start(&[]).child);
        let error = sent.as_ref().err();
        error.inspect(|error| super::leave_out(format_args!("Ctrl+Break cannot be sent: {error}")));
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

    /// A program that is the first of its group, by its number.
    struct Group(u32);

    impl Interruptible for Group {
        fn pid(&mut self) -> io::Result<Option<u32>> {
            Ok(Some(self.0))
        }
    }
}
