//! Every fault that can be made for real: out of files, out of threads, resets by the hundred,
//! a log that nobody reads, payload that wants to be a line of the log.
#![cfg(unix)]

mod common;

use std::io::{Read, Write, pipe};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Server, echo_server, exchange, fill, noise, read_until_fin, reset};
use rustix::process::Signal;
#[cfg(target_os = "linux")]
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Lowers one limit of a running server, or lifts it to the highest that there is.
#[cfg(target_os = "linux")]
fn limit(server: &Server, resource: Resource, to: Option<u64>) {
    let pid = Some(Pid::from_child(&server.child));
    let maximum = getrlimit(resource).maximum;
    let current = to.or(maximum);
    prlimit(pid, resource, Rlimit { current, maximum }).expect("the limit can be set");
}

/// A server that has files for `clients` clients, and as many clients inside.
#[cfg(target_os = "linux")]
fn out_of_files(clients: usize) -> (Server, Vec<TcpStream>) {
    let server = Server::start(&[]);
    // Files are numbered without gaps here, and the limit is one on the numbers.
    let limit_on_numbers = server.files() + clients;
    limit(&server, Resource::Nofile, Some(limit_on_numbers as u64));
    let inside: Vec<TcpStream> = (0..clients).map(|_| server.connect()).collect();
    for client in &inside {
        exchange(client, b"inside");
    }
    (server, inside)
}

/// Processor time that the server has used.
#[cfg(target_os = "linux")]
fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id()));
    let stat = stat.expect("the server runs");
    let (_, columns) = stat.rsplit_once(") ").expect("the name is in parentheses");
    let ticks = columns.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks"));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

#[test]
#[cfg(target_os = "linux")]
fn linux_out_of_files_those_inside_are_served_and_those_outside_once_files_come_free() {
    let (server, mut inside) = out_of_files(3);
    let mut outside = server.connect();
    outside.write_all(b"outside").expect("the bytes go out");
    server.wait_for_log("new clients must wait: the system accepts none (Too many open files");
    let (begin, used) = (Instant::now(), processor_time(&server));
    while begin.elapsed() < Duration::from_secs(1) {
        for client in &inside {
            exchange(client, b"unharmed");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let used = processor_time(&server).saturating_sub(used);
    assert!(used < begin.elapsed() / 2, "it spins: {used:?} of processor time");

    drop(inside.pop());
    let mut echo = [0; 7];
    outside.read_exact(&mut echo).expect("it is served now");
    assert_eq!(&echo, b"outside");
    drop((inside, outside));
    server.wait_for_log("new clients no longer wait");
    let told = server.log().iter().filter(|line| line.contains("must wait")).count();
    assert_eq!(told, 1, "{:#?}", server.log());
}

#[test]
#[cfg(target_os = "linux")]
fn linux_out_of_files_a_stop_works() {
    let (mut server, inside) = out_of_files(3);
    let _outside = server.connect();
    server.wait_for_log("new clients must wait");
    server.signal(Signal::TERM);
    for client in &inside {
        assert_eq!(read_until_fin(client), b"");
    }
    drop(inside);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn linux_without_a_thread_to_be_had_a_client_is_turned_away_and_the_others_are_unharmed() {
    // The limit counts a user's threads, but not root's: there the server runs as a user that has
    // nothing else, with as many threads as it has of its own and one more. Anybody else's threads
    // are as many as they are: there the limit is set when the first client is inside.
    let root = rustix::process::geteuid().is_root();
    let server = if root { with_threads(4) } else { Server::start(&[]) };
    let inside = server.connect();
    exchange(&inside, b"inside");
    if !root {
        limit(&server, Resource::Nproc, Some(1));
    }
    for _ in 0..3 {
        let mut outside = server.connect();
        assert!(matches!(outside.read(&mut [0]), Ok(0) | Err(_)), "it is served");
    }
    server.wait_for_logs(3, "turned away: the system gives no thread for it");
    exchange(&inside, b"unharmed");
    if root {
        drop(inside);
        server.wait_for_log("disconnected: closed by client");
        while server.threads() > 3 {
            std::thread::yield_now();
        }
    } else {
        limit(&server, Resource::Nproc, None);
    }
    exchange(&server.connect(), b"served again");
}

/// A server of a user that has no other threads, and may have no more than these.
#[cfg(target_os = "linux")]
fn with_threads(count: usize) -> Server {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    // In a folder that this user may enter.
    let program = std::env::temp_dir().join(format!("echo-server-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_echo-server"), &program).expect("it can be copied");
    let all = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, all).expect("the copy is ours");
    // `ulimit -u` is `-p` in dash, and `-u` in bash.
    let script = format!(
        r#"{{ ulimit -u {count} || ulimit -p {count}; }} 2>/dev/null
        exec "$0" --host 127.0.0.1 --port 0"#
    );
    let mut shell = common::command("sh");
    let server = Server::spawn(shell.arg("-c").arg(script).arg(&program).uid(54_321));
    let _ = std::fs::remove_file(&program);
    server
}

#[test]
fn clients_that_reset_while_they_are_in_the_queue_do_not_keep_the_next_one_out() {
    let server = Server::start(&[]);
    server.signal(Signal::STOP);
    for _ in 0..100 {
        reset(server.connect());
    }
    let polite = server.connect();
    server.signal(Signal::CONT);
    exchange(&polite, b"hello");
}

#[test]
fn a_flood_of_connects_and_resets_is_two_lines_a_client_in_the_log() {
    let mut server = Server::start(&[]);
    for number in 0..500 {
        let client = server.connect();
        if number % 2 == 0 {
            reset(client);
        }
    }
    let last = server.connect();
    exchange(&last, b"all those before were accepted");
    drop(last);
    server.wait_for_logs(501, " disconnected: ");
    assert_eq!(server.stop().code(), Some(0));
    let lines = server.rest_of_log().len();
    assert_eq!(lines, 2 * 501 + 2, "two for each client, and the stop's");
}

#[test]
fn a_log_that_nobody_reads_stops_neither_the_service_nor_the_stop() {
    let (_nobody_reads, stderr) = pipe().expect("a pipe can be had");
    let mut command = echo_server();
    command.args(["--host", "127.0.0.1", "--port", "0", "-vv", "--buffer-size", "64"]);
    let mut server = Server::spawn_as_is(command.stdout(Stdio::piped()).stderr(stderr));
    // Each 64 bytes are three lines of the log: far more than the pipe and the queue hold.
    let client = server.connect();
    let bytes = noise(2_000_000, 10);
    assert!(common::send_and_read_all(&client, &[&bytes]) == bytes);
    exchange(&server.connect(), b"hello");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn payload_cannot_forge_a_line_of_the_log_nor_drive_the_terminal() {
    let mut server = Server::start(&["-vv"]);
    let forged = b"x\n[2026-01-01T00:00:00Z INFO ] 192.0.2.1:1 connected\r\n\x1b[2J\x07\x9b31m\0";
    exchange(&server.connect(), forged);
    exchange(&server.connect(), &vec![b'\n'; 100_000]);
    server.wait_for_logs(2, "disconnected: closed by client");
    assert_eq!(server.stop().code(), Some(0));
    for line in server.rest_of_log() {
        let printable = line.chars().all(|c| !c.is_control());
        assert!(line.starts_with("[2") && printable && line.len() < 1000, "{line:?}");
        assert!(
            !line.contains("] 192.0.2.1:1 connected") || line.contains(r"\n[2026-01-01"),
            "{line:?}"
        );
    }
}

#[test]
fn a_client_that_never_reads_does_not_slow_the_next_one_down_to_a_halt() {
    let server = Server::start(&[]);
    let stuck: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    for client in &stuck {
        fill(client);
    }
    let bytes = noise(5_000_000, 11);
    assert!(common::send_and_read_all(&server.connect(), &[&bytes]) == bytes);
}
