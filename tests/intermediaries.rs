//! `echo-client test` through intermediaries, with the configurations of the manual's page on them.
//! Each one passes or fails as the page says.
#![cfg(all(target_os = "linux", feature = "client"))]

use std::fs;
use std::iter::zip;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::conformance::failed_checks;
use crate::common::tools::Tool;
use crate::common::{
    Log, Server, assert_contains, for_each_at_once, manual_block, reserve_port, run_at_once, skip,
    wait_until,
};
use rustix::process::geteuid;
use socket2::Socket;

/// The user without privileges, as which the intermediaries run if the tests run as root.
const NOBODY: u32 = 65534;

/// Starts an intermediary. Skips it and returns `None` if a program is not installed.
type Start = fn(&Setup) -> Option<Vec<Running>>;

/// Takes six seconds, as the whole suite does on any server, which mostly waits.
#[test]
fn intermediaries_pass_or_fail_as_the_manual_says() {
    run_at_once(&[
        these_pass_the_suite,
        these_lose_bytes_after_a_half_close,
        stunnel_fails_at_half_closes_at_most,
    ]);
}

fn these_pass_the_suite() {
    let all: [(&str, Start); 5] = [
        ("HAProxy", haproxy),
        ("HAProxy with TLS", haproxy_with_tls),
        ("nginx", nginx),
        ("ssh", ssh),
        ("socat", socat),
    ];
    for_each_at_once(all, |(name, start)| {
        let setup = Setup::new();
        let Some(running) = start(&setup) else {
            return;
        };
        let failures = failed_checks("", setup.front(), "20s");
        let logs = logs(&running);
        assert!(failures.is_empty(), "{name}: {failures:#?}, {logs}");
    });
}

fn these_lose_bytes_after_a_half_close() {
    let half_close: &[&str] = &["both ways", "half-close"];
    let all: [(&str, Start, &[&str]); 3] = [
        ("nginx", nginx_with_defaults, &[""]),
        ("redir", redir, half_close),
        ("rinetd", rinetd, half_close),
    ];
    for_each_at_once(all, |(name, start, filters)| {
        let setup = Setup::new();
        let Some(running) = start(&setup) else {
            return;
        };
        let failed = failed_half_closes(name, &setup, filters);
        assert_ne!(failed, 0, "{name} loses no byte, {}", logs(&running));
    });
}

/// stunnel loses bytes in some runs only, so these checks may pass.
fn stunnel_fails_at_half_closes_at_most() {
    let setup = Setup::new();
    if let Some(_running) = stunnel(&setup) {
        failed_half_closes("stunnel", &setup, &["both ways", "half-close"]);
    }
}

/// Runs the checks whose names contain one of `filters`. Fails the test if a check fails for another
/// reason than bytes lost after a half-close. Returns how many checks have failed.
fn failed_half_closes(intermediary: &str, setup: &Setup, filters: &[&str]) -> usize {
    let mut failed = 0;
    for filter in filters {
        for [name, _, got] in failed_checks(filter, setup.front(), "5s") {
            let known = [
                "64 MiB both ways at once",
                "half-close with megabytes pending",
            ];
            assert!(
                known.contains(&name.as_str()),
                "{intermediary}: {name}: {got}"
            );
            // redir stalls in some runs.
            assert!(
                got.ends_with(" bytes, then FIN") || got.ends_with(" bytes, then nothing for 5s"),
                "{intermediary}: {name}: {got}"
            );
            failed += 1;
        }
    }
    failed
}

fn haproxy(setup: &Setup) -> Option<Vec<Running>> {
    let example = manual_block("client", "### Testing an intermediary", "haproxy");
    assert_eq!(
        example,
        manual_block("intermediaries", "## HAProxy", "haproxy")
    );
    setup.write("haproxy.cfg", &setup.block("## HAProxy", "haproxy"));
    let haproxy = setup.start("haproxy -db -f haproxy.cfg", setup.front())?;
    Some(vec![haproxy])
}

fn haproxy_with_tls(setup: &Setup) -> Option<Vec<Running>> {
    setup.make_certificate()?;
    let config = setup.block("### HAProxy with TLS", "haproxy");
    setup.write("tunnel.cfg", &config);
    let haproxy = setup.start("haproxy -db -f tunnel.cfg", setup.front())?;
    Some(vec![haproxy])
}

fn stunnel(setup: &Setup) -> Option<Vec<Running>> {
    setup.make_certificate()?;
    setup.write("tunnel.conf", &setup.block("### stunnel", "ini"));
    let stunnel = setup.start("stunnel tunnel.conf", setup.front())?;
    Some(vec![stunnel])
}

fn nginx(setup: &Setup) -> Option<Vec<Running>> {
    start_nginx(setup, &setup.block("## nginx", "nginx"))
}

fn nginx_with_defaults(setup: &Setup) -> Option<Vec<Running>> {
    let config = setup.block("## nginx", "nginx");
    let setting = "    proxy_half_close on;\n";
    assert_contains(&config, setting);
    start_nginx(setup, &config.replace(setting, ""))
}

fn start_nginx(setup: &Setup, config: &str) -> Option<Vec<Running>> {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    assert_contains(config, module);
    if !Path::new(module).exists() {
        skip(format_args!("nginx has no {module}"));
        return None;
    }
    // What belongs to the system's own nginx must stay as it is.
    let here = "daemon off; pid nginx.pid; error_log stderr;\n";
    setup.write("nginx.conf", &format!("{here}{config}"));
    let directory = setup.directory.display();
    let command = format!("nginx -e stderr -p {directory} -c nginx.conf");
    Some(vec![setup.start(&command, setup.front())?])
}

fn socat(setup: &Setup) -> Option<Vec<Running>> {
    let socat = setup.start(&setup.block("## socat", "sh"), setup.front())?;
    Some(vec![socat])
}

fn redir(setup: &Setup) -> Option<Vec<Running>> {
    let redir = setup.start(&setup.block("## redir", "sh"), setup.front())?;
    Some(vec![redir])
}

fn rinetd(setup: &Setup) -> Option<Vec<Running>> {
    setup.write("rinetd.conf", &setup.block("## rinetd", "conf"));
    let rinetd = setup.start("rinetd -f -c rinetd.conf", setup.front())?;
    Some(vec![rinetd])
}

/// Starts an sshd with keys of its own, and connects to it.
fn ssh(setup: &Setup) -> Option<Vec<Running>> {
    for key in ["host_key", "user_key"] {
        let mut command = setup.command("ssh-keygen -q -t ed25519 -N");
        run(command.args(["", "-f", key]))?;
    }
    let (directory, sshd_address) = (setup.directory.display(), setup.inner.1);
    let config = format!(
        "ListenAddress {sshd_address}\n\
         HostKey {directory}/host_key\n\
         AuthorizedKeysFile {directory}/user_key.pub\n\
         PidFile none\n\
         StrictModes no # the directory is in /tmp, which everybody may write to\n\
         UsePAM yes # as in Debian; otherwise accounts without a password count as locked\n"
    );
    setup.write("sshd_config", &config);
    let command = format!("/usr/sbin/sshd -D -e -f {directory}/sshd_config");
    let sshd = setup.start(&command, sshd_address)?;

    let tunnel = setup.block("## ssh", "sh");
    let tunnel = tunnel.trim_end().strip_suffix(" server");
    let tunnel = tunnel.expect("the command ends with the machine's name");
    let port = sshd_address.port();
    let options = "-F none -i user_key -o BatchMode=yes -o StrictHostKeyChecking=no \
                   -o UserKnownHostsFile=/dev/null";
    let command = format!("{tunnel} {options} -p {port} 127.0.0.1");
    Some(vec![setup.start(&command, setup.front())?, sshd])
}

/// A running program. Dropping it kills the program.
struct Running {
    _tool: Tool,
    log: Log,
}

/// Returns what the programs have written to stderr.
fn logs(running: &[Running]) -> String {
    let logs: Vec<_> = running.iter().map(|program| program.log.lines()).collect();
    format!("logs: {logs:#?}")
}

/// Runs a program that must succeed. Skips it and returns `None` if it is not installed.
fn run(command: &mut Command) -> Option<()> {
    let mut tool = Tool::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    assert!(tool.wait().success(), "{command:?} fails");
    Some(())
}

/// What an intermediary needs: a server behind it, ports, and a directory for its files.
struct Setup {
    server: Server,
    front: (Socket, SocketAddr),
    /// The address of the far end of a tunnel.
    inner: (Socket, SocketAddr),
    directory: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let (server, front) = (Server::start(&["-q"]), reserve_port());
        let name = format!("echo-server-intermediary-{}", front.1.port());
        let directory = std::env::temp_dir().join(name);
        // A run that was killed may have left it, with the same port.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).expect("the directory can be created");
        if geteuid().is_root() {
            chown(&directory, Some(NOBODY), Some(NOBODY)).expect("root can do this");
        }
        Self {
            server,
            front,
            inner: reserve_port(),
            directory,
        }
    }

    /// Returns the address at which the intermediary accepts clients.
    fn front(&self) -> SocketAddr {
        self.front.1
    }

    /// Returns a block of the page, with the ports of this test.
    fn block(&self, heading: &str, language: &str) -> String {
        let mut block = manual_block("intermediaries", heading, language).to_owned();
        let names = [("54000", "SERVER"), ("54001", "FRONT"), ("54002", "INNER")];
        for (port, name) in names {
            block = block.replace(port, name);
        }
        // Only now, because one of these ports may be a port of the page.
        let ports = [self.server.address, self.front.1, self.inner.1].map(|a| a.port());
        for ((_, name), port) in zip(names, ports) {
            block = block.replace(name, &port.to_string());
        }
        block
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).expect("the file can be written");
    }

    /// Returns a command that runs `line` in the directory. As root, it runs as another user, because
    /// sshd would need a directory in /run.
    fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = crate::common::command(words.next().expect("the line names a program"));
        command.args(words).current_dir(&self.directory);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts a program and waits until it listens on `address`. Skips it and returns `None` if it is
    /// not installed.
    fn start(&self, line: &str, address: SocketAddr) -> Option<Running> {
        let mut command = self.command(line);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tool = Tool::start(&mut command)?;
        let mut log = Log::read(tool.0.stderr.take().expect("stderr is piped"));
        let mut has_exited = false;
        wait_until(&format!("{line} listens"), || {
            has_exited = tool.0.try_wait().expect("the status can be read").is_some();
            has_exited || TcpStream::connect(address).is_ok()
        });
        assert!(!has_exited, "{line} exits: {:#?}", log.read_to_end());
        Some(Running { _tool: tool, log })
    }

    /// Makes the key and the certificate of a tunnel.
    fn make_certificate(&self) -> Option<()> {
        run(&mut self.command(&self.block("## TLS tunnels", "sh")))
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
