//! What the server takes from the system: files, threads, memory; and what it does where there is
//! no more to be had. Linux alone lets a test limit and count them from outside.
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Server, exchange, fill, noise, read_until_fin, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

/// A shell that starts the server under the limits that `ulimit` sets.
fn under(ulimit: &str, flags: &str) -> Server {
    let program = env!("CARGO_BIN_EXE_echo-server");
    let script = format!("{ulimit} && exec {program} --host 127.0.0.1 --port 0 {flags}");
    Server::spawn(common::command("sh").args(["-c", &script]))
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let server = under("ulimit -Sn 50 && ulimit -Hn 2000", "--max-connections 100");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id()));
    let limits = limits.expect("the server runs");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let columns: Vec<&str> = line
        .expect("there is such a limit")
        .split_whitespace()
        .collect();
    assert_eq!(columns[3..5], ["2000", "2000"]);
    exchange(&server.connect(), b"hello");
    server.wait_for_log("closed by client");
    assert!(
        !server.log().iter().any(|line| line.contains("do not fit")),
        "{:?}",
        server.log()
    );
}

#[test]
fn a_client_that_never_reads_costs_the_server_one_buffer() {
    let resident = |server: &Server| {
        // Exact, where that of `status` is off by what each processor has not yet reported.
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", server.child.id()));
        let maps = maps.expect("the server runs");
        let line = maps
            .lines()
            .find(|line| line.starts_with("Rss:"))
            .expect("it has one");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<usize>().ok())
            .expect("in KiB")
    };
    let server = Server::start(&[]);
    exchange(&server.connect(), &noise(200_000, 8));
    let before = resident(&server);
    let clients: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    for client in &clients {
        fill(client);
    }
    let each = resident(&server).saturating_sub(before) / clients.len();
    // A thread, a buffer of 64 KiB and what the allocator keeps; each has sent megabytes.
    assert!(each < 256, "{each} KiB for each client");
}

#[test]
fn nine_thousand_clients_at_once_are_all_served() {
    let files = rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be raised");
    // Other tests, in threads of the same process, need some too.
    let count = 9000.min(
        usize::try_from(files)
            .unwrap_or(usize::MAX)
            .saturating_sub(1000),
    );
    if count < 9000 {
        common::skip(format_args!(
            "9,000 clients: this system allows {files} open files"
        ));
    }
    let server = Server::start(&["-q"]);
    let clients: Vec<TcpStream> = (0..count).map(|_| server.connect()).collect();
    for (number, client) in clients.iter().enumerate() {
        exchange(client, &number.to_le_bytes());
    }
    assert_eq!(server.threads(), count + 3);
    for (number, client) in clients.iter().enumerate() {
        exchange(client, &(number + 1).to_be_bytes());
    }
}

/// How often threads of the server have gone to sleep so far.
fn sleeps(server: &Server) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id()));
    let tasks = tasks.expect("the server runs").filter_map(Result::ok);
    let statuses =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let sleeps = statuses.filter_map(|status| {
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    sleeps.sum()
}

#[test]
fn an_idle_server_with_idle_clients_does_not_wake_up() {
    let server = Server::start(&["--idle-timeout", "1h"]);
    let clients: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    for client in &clients {
        exchange(client, b"hello");
    }
    comes_to_rest(&server);
}

#[test]
fn a_server_that_looked_for_bytes_does_not_wake_up_once_its_client_is_idle() {
    let server = Server::start(&["--busy-poll", "10ms"]);
    let client = server.connect();
    for _ in 0..2000 {
        exchange(&client, b"hello");
    }
    comes_to_rest(&server);
}

/// Waits until the server's threads sleep, and neither wake up nor use the processor.
fn comes_to_rest(server: &Server) {
    let patience = Instant::now() + common::PATIENCE;
    loop {
        let before = (sleeps(server), processor_time(server));
        std::thread::sleep(Duration::from_secs(1));
        if (sleeps(server), processor_time(server)) == before {
            return;
        }
        assert!(
            Instant::now() < patience,
            "its threads wake up again and again"
        );
    }
}

/// Lowers one limit of a running server, or lifts it to the highest that there is.
fn limit(server: &Server, resource: Resource, to: Option<u64>) {
    let pid = Some(Pid::from_child(&server.child));
    let maximum = getrlimit(resource).maximum;
    let current = to.or(maximum);
    prlimit(pid, resource, Rlimit { current, maximum }).expect("the limit can be set");
}

/// A server that has files for `clients` clients, and as many clients inside.
fn out_of_files(clients: usize) -> (Server, Vec<TcpStream>) {
    let server = Server::start(&[]);
    // The limit is one on the numbers of files: so many below it must be free.
    let taken = server.files();
    let mut free = (0..).filter(|number| !taken.contains(number));
    limit(&server, Resource::Nofile, free.nth(clients));
    let inside: Vec<TcpStream> = (0..clients).map(|_| server.connect()).collect();
    for client in &inside {
        exchange(client, b"inside");
    }
    (server, inside)
}

/// Processor time that the server has used.
fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id()));
    let stat = stat.expect("the server runs");
    let (_, columns) = stat.rsplit_once(") ").expect("the name is in parentheses");
    let ticks = columns
        .split(' ')
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().expect("ticks"));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

#[test]
fn out_of_files_those_inside_are_served_and_those_outside_once_files_come_free() {
    let (server, mut inside) = out_of_files(3);
    let mut outside = server.connect();
    outside.write_all(b"outside").expect("the bytes are sent");
    server.wait_for_log("cannot accept new clients: Too many open files");
    let (begin, used) = (Instant::now(), processor_time(&server));
    while begin.elapsed() < Duration::from_secs(1) {
        for client in &inside {
            exchange(client, b"unharmed");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let used = processor_time(&server).saturating_sub(used);
    assert!(
        used < begin.elapsed() / 5,
        "it spins: {used:?} of processor time"
    );

    drop(inside.pop());
    let mut echo = [0; 7];
    outside.read_exact(&mut echo).expect("it is served now");
    assert_eq!(&echo, b"outside");
    drop((inside, outside));
    server.wait_for_log("accepting new clients again");
    let told = server
        .log()
        .iter()
        .filter(|line| line.contains("cannot accept"))
        .count();
    assert_eq!(told, 1, "{:#?}", server.log());
}

#[test]
fn out_of_files_a_stop_works() {
    let (mut server, inside) = out_of_files(3);
    let _outside = server.connect();
    server.wait_for_log("cannot accept new clients");
    server.signal(Signal::TERM);
    for client in &inside {
        assert_eq!(read_until_fin(client), b"");
    }
    drop(inside);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn out_of_files_a_stop_serves_those_in_the_queue_as_files_come_free() {
    let (mut server, inside) = out_of_files(3);
    let outside: Vec<TcpStream> = (0..10).map(|_| server.connect()).collect();
    for mut client in &outside {
        client.write_all(b"outside").expect("the bytes are sent");
    }
    server.wait_for_log("cannot accept new clients");
    server.signal(Signal::TERM);
    drop(inside);
    for client in outside {
        assert_eq!(read_until_fin(&client), b"outside");
    }
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("shut down: 13 clients served, 0 forcibly closed, ");
}

#[test]
fn client_without_a_thread_is_rejected_and_others_are_unharmed() {
    // The kernel does not apply the limit on threads to root, so the server runs as another user.
    // Another server of that user holds most of the threads that the user may have.
    let other = rustix::process::geteuid()
        .is_root()
        .then(|| as_user(1, None));
    let held: Vec<TcpStream> = match &other {
        Some(other) => (0..50).map(|_| other.connect()).collect(),
        None => Vec::new(),
    };
    for client in &held {
        exchange(client, b"hold");
    }
    // 53 threads of the other server, 3 of this one, and one client.
    let server = if other.is_some() {
        as_user(1, Some(57))
    } else {
        Server::start(&[])
    };
    let first = server.connect();
    exchange(&first, b"first");
    if other.is_none() {
        limit(&server, Resource::Nproc, Some(1));
    }
    for _ in 0..3 {
        let mut rejected = server.connect();
        assert!(
            matches!(rejected.read(&mut [0]), Ok(0) | Err(_)),
            "it is served"
        );
    }
    server.wait_for_logs(3, "rejected: cannot spawn a thread");
    exchange(&first, b"unharmed");
    if let Some(other) = &other {
        drop(held);
        wait_until("threads are free", || other.threads() <= 3);
    } else {
        limit(&server, Resource::Nproc, None);
    }
    exchange(&server.connect(), b"served again");
}

/// Starts a server as a user that has no other threads but those of this test, and may have as many
/// threads as `limit` says.
fn as_user(number: u32, limit: Option<u32>) -> Server {
    use std::os::unix::process::CommandExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let user = 20_000 + (std::process::id() + number) % 40_000;
    // The user may enter the folder of temporary files. Each server has a copy of the binary: a
    // process that another test spawns might still hold a shared copy open for writing.
    let copy = COPIES.fetch_add(1, Ordering::Relaxed);
    let binary = std::env::temp_dir().join(format!("echo-server-{}-{copy}", std::process::id()));
    let mut install = common::command("install");
    install
        .args(["-m", "755", env!("CARGO_BIN_EXE_echo-server")])
        .arg(&binary);
    assert!(common::run(&mut install).status.success());
    // `ulimit -u` is `-p` in dash.
    let set_limit = match limit {
        Some(limit) => format!("{{ ulimit -u {limit} || ulimit -p {limit}; }} 2>/dev/null"),
        None => "true".to_owned(),
    };
    let script = format!(r#"{set_limit}; exec "$0" --host 127.0.0.1 --port 0"#);
    let mut shell = common::command("sh");
    let server = Server::spawn(shell.arg("-c").arg(script).arg(&binary).uid(user));
    let _ = std::fs::remove_file(&binary);
    // The thread that writes the ready line counts until it has ended.
    wait_until("the server has started", || server.threads() <= 3);
    server
}

#[test]
fn connection_limit_is_lowered_to_the_threads() {
    // As in the test above, root's threads are not counted.
    let root = rustix::process::geteuid().is_root();
    let server = if root {
        as_user(2, Some(512))
    } else {
        under("{ ulimit -u 5000 || ulimit -p 5000; } 2>/dev/null", "")
    };
    let line = server.wait_for_log("connection limit lowered from 10000 to ");
    assert!(
        line.contains("WARN") && line.contains(" threads are allowed"),
        "{line}"
    );
    exchange(&server.connect(), b"hello");
}
