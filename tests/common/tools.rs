//! Programs that are not ours, for the tests that need them.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Log, listen, start_tool, wait, wait_until};

pub fn wait_until_it_listens(address: SocketAddr) {
    wait_until("somebody listens", || TcpStream::connect(address).is_ok());
}

/// A program that is killed when the test ends, with the processes that it has forked.
pub struct Tool(pub Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Tool {
    pub fn start(command: &mut Command) -> Option<Self> {
        start_tool(command.process_group(0)).map(Self)
    }

    /// Waits for its end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.0).expect("it ends")
    }
}

/// haproxy, which listens on `address`.
pub struct Haproxy {
    _tool: Tool,
    pub address: SocketAddr,
    log: Log,
}

impl Haproxy {
    /// What `config` is to bind instead of an address. haproxy cannot say which port it got, so it
    /// gets a socket that listens already; as its stdout, for no other process to inherit it.
    pub const BIND: &str = "fd@1";

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

    /// Waits for a line of its log that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(1, text).remove(0)
    }
}
