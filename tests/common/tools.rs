//! Runs programs of other projects, such as haproxy.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Log, listen, skip, start_tool, wait, wait_until};

/// Waits until a program listens on `address`.
pub fn wait_until_listening(address: SocketAddr) {
    wait_until("a program listens", || TcpStream::connect(address).is_ok());
}

/// Runs `probe` to find out whether this machine can do `what`. Skips the test and returns false if it
/// fails.
pub fn is_possible(what: &str, probe: &mut Command) -> bool {
    let error = match probe.output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned(),
        Err(error) => error.to_string(),
    };
    skip(format_args!("{what}: {error}"));
    false
}

/// A running program. Dropping it kills the program and the processes that it has forked.
pub struct Tool(pub Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Tool {
    /// Spawns `command`. Skips the test and returns `None` if the program is not installed.
    pub fn start(command: &mut Command) -> Option<Self> {
        start_tool(command.process_group(0)).map(Self)
    }

    /// Waits until the program exits.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.0).expect("the program exits")
    }
}

/// A running haproxy, which listens on `address`.
pub struct Haproxy {
    _tool: Tool,
    pub address: SocketAddr,
    log: Log,
}

impl Haproxy {
    /// What the configuration must bind to. haproxy does not report which port it got, so it inherits
    /// a listening socket; as its stdout, so that no other process inherits it.
    pub const BIND: &str = "fd@1";

    /// Starts haproxy with this configuration. Skips the test and returns `None` if it is not
    /// installed.
    pub fn start(config: &str) -> Option<Self> {
        let (listener, address) = listen();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f", "/dev/stdin"]);
        command
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(listener))
            .stderr(Stdio::piped());
        let mut tool = Tool::start(&mut command)?;
        let log = Log::read(tool.0.stderr.take().expect("stderr is piped"));
        let mut stdin = tool.0.stdin.take().expect("stdin is piped");
        stdin
            .write_all(config.as_bytes())
            .expect("haproxy reads its configuration");
        Some(Self {
            _tool: tool,
            address,
            log,
        })
    }

    /// Waits for a log line that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(1, text).remove(0)
    }
}
