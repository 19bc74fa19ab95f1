//! Limits of the system: files, threads and memory. The server lowers its connection limit to what
//! fits and warns about it once. If it still reaches a system limit, other clients are unharmed.
//! Only Linux lets a test limit and count these resources from outside.
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Write, pipe};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    PATIENCE, Server, assert_contains, connect_from, cpu_time, exchange, exchange_all, fill,
    for_each_at_once, line_with, local_address, local_server, noise, read_until_fin, receive_echo,
    server_from_shell, set_read_timeout, wait_until,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

/// Starts the server from a shell that first runs the command `ulimit`.
fn start_under(ulimit: &str, arguments: &str) -> Server {
    Server::spawn(&mut server_from_shell(ulimit, arguments))
}

/// Sets a limit of a running server. `None` sets the highest possible limit.
fn limit(server: &Server, resource: Resource, to: Option<u64>) {
    let pid = Some(Pid::from_child(&server.child));
    let maximum = getrlimit(resource).maximum;
    let current = to.or(maximum);
    prlimit(pid, resource, Rlimit { current, maximum }).expect("the limit can be set");
}

/// Returns the limit that the server's warning names. It must be its only warning and contain
/// `setting`.
fn lowered_limit(server: &Server, from: usize, setting: &str) -> usize {
    let start = format!("connection limit lowered from {from} to ");
    let line = server.wait_for_log(&start);
    assert_contains(&line, "WARN");
    assert_contains(&line, setting);
    server.assert_log_count(1, "limit lowered");
    let (_, rest) = line.split_once(&start).expect("the line contains it");
    let (number, _) = rest.split_once(':').expect("the reason follows");
    number.parse().expect("the warning names the new limit")
}

#[test]
fn soft_limit_of_open_files_is_raised_to_the_hard_limit() {
    let server = start_under("ulimit -Sn 50 && ulimit -Hn 2000", "--max-connections 100");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id()));
    let limits = limits.expect("the server runs");
    let line = line_with(&limits, "Max open files");
    let columns: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(columns[3..5], ["2000", "2000"]);
    exchange(&server.connect(), b"hello");
    server.wait_for_log("closed by client");
    server.assert_log_count(0, "lowered");
}

#[test]
fn connection_limit_is_lowered_to_the_open_files() {
    let server = start_under("ulimit -n 64", "");
    let limit = lowered_limit(&server, 10_000, "ulimit -n");
    assert!((32..64).contains(&limit), "{limit}");

    let mut clients = server.connect_many(limit);
    exchange_all(&clients, b"hello");
    let waiting = server.connect_and_send(b"hello");
    server.wait_for_log(&format!("connection limit reached ({limit})"));
    clients.pop();
    receive_echo(&waiting, b"hello");
    server.assert_log_count(0, "os error");
}

#[test]
fn connection_limit_that_fits_is_not_lowered() {
    let server = start_under("ulimit -n 64", "--max-connections 32");
    exchange(&server.connect(), b"hello");
    server.wait_for_log(" disconnected: ");
    server.assert_log_count(0, "lowered");
}

#[test]
fn connection_limit_is_lowered_to_the_address_space() {
    let server = start_under("ulimit -v 204800", "");
    lowered_limit(&server, 10_000, "limited to 200 MiB (raise ulimit -v)");
    exchange(&server.connect(), b"hello");
}

/// Starts a server that may open files for `clients` clients, and connects as many.
fn start_out_of_files(clients: usize) -> (Server, Vec<TcpStream>) {
    let server = Server::start(&[]);
    // The limit is the highest file descriptor plus one, so count the free numbers below it.
    let used = server.files();
    let mut free = (0..).filter(|number| !used.contains(number));
    limit(&server, Resource::Nofile, free.nth(clients));
    let admitted = server.connect_many(clients);
    exchange_all(&admitted, b"admitted");
    (server, admitted)
}

#[test]
fn out_of_files_waiting_clients_are_served_once_files_are_free() {
    let (server, mut admitted) = start_out_of_files(3);
    let waiting = server.connect_and_send(b"waiting");
    server.wait_for_log("cannot accept new clients: Too many open files");
    let (begin, used) = (Instant::now(), cpu_time(&server.child));
    while begin.elapsed() < Duration::from_millis(500) {
        exchange_all(&admitted, b"unharmed");
        thread::sleep(Duration::from_millis(20));
    }
    let used = cpu_time(&server.child).saturating_sub(used);
    assert!(
        used < begin.elapsed() / 5,
        "the accept loop spins: {used:?} of CPU time"
    );

    drop(admitted.pop());
    receive_echo(&waiting, b"waiting");
    drop((admitted, waiting));
    server.wait_for_log("accepting new clients again");
    server.assert_log_count(1, "cannot accept");
}

#[test]
fn out_of_files_the_drain_serves_the_listen_backlog() {
    let (mut server, admitted) = start_out_of_files(3);
    // The last client sends nothing.
    let messages = [&b"waiting"[..]; 10].into_iter().chain([&b""[..]]);
    let waiting: Vec<_> = messages
        .map(|message| (server.connect_and_send(message), message))
        .collect();
    server.wait_for_log("cannot accept new clients");
    server.signal(Signal::TERM);
    for client in admitted {
        assert_eq!(read_until_fin(&client), b"");
    }
    for (client, message) in waiting {
        assert_eq!(read_until_fin(&client), message);
    }
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("shut down: 14 clients served, 0 forcibly closed, ");
}

#[test]
fn client_beyond_the_capacity_is_forcibly_closed_at_the_timeout() {
    let mut server = start_under("ulimit -n 30", "--shutdown-timeout 500ms");
    let limit = lowered_limit(&server, 10_000, "ulimit -n");
    let admitted = server.connect_many(limit);
    for client in &admitted {
        fill(client);
    }
    let waiting = server.connect();
    assert_eq!(server.shut_down().code(), Some(0));
    let address = local_address(&waiting);
    server.wait_for_log(&format!("{address} forcibly closed in the listen backlog"));
}

#[test]
fn client_without_a_thread_is_rejected_and_others_are_unharmed() {
    // The kernel does not apply the limit on threads to root, so the server runs as another user.
    // Another server of that user holds most of the threads that the user may have.
    let other = rustix::process::geteuid()
        .is_root()
        .then(|| start_as_user(1, None));
    let held: Vec<TcpStream> = match &other {
        Some(other) => (0..50).map(|_| other.connect()).collect(),
        None => Vec::new(),
    };
    exchange_all(&held, b"hold");
    // 53 threads of the other server, 3 of this one, and one client.
    let server = if other.is_some() {
        start_as_user(1, Some(57))
    } else {
        Server::start(&[])
    };
    let first = server.connect_and_exchange(b"first");
    if other.is_none() {
        limit(&server, Resource::Nproc, Some(1));
    }
    for _ in 0..3 {
        let mut rejected = server.connect();
        assert!(
            matches!(rejected.read(&mut [0]), Ok(0) | Err(_)),
            "the client is served"
        );
    }
    server.wait_for_logs(3, "rejected: cannot spawn a thread");
    server.assert_log_count(0, "cannot accept new clients");
    exchange(&first, b"unharmed");
    if let Some(other) = &other {
        drop(held);
        wait_until("threads are free", || other.threads() <= 3);
    } else {
        limit(&server, Resource::Nproc, None);
    }
    exchange(&server.connect(), b"served again");
}

/// Starts a server as a user that has only the threads of this test, and may have `limit` threads.
fn start_as_user(number: u32, limit: Option<u32>) -> Server {
    use std::os::unix::process::CommandExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let user = 20_000 + (std::process::id() + number) % 40_000;
    // The user may read the directory of temporary files. Each server has a copy of the binary: a
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
        start_as_user(2, Some(512))
    } else {
        start_under("{ ulimit -u 5000 || ulimit -p 5000; } 2>/dev/null", "")
    };
    let line = server.wait_for_log("connection limit lowered from 10000 to ");
    assert_contains(&line, "WARN");
    assert_contains(&line, " threads are allowed");
    exchange(&server.connect(), b"hello");
}

/// In a rootless container, root is a user of the host like any other.
#[test]
fn root_of_a_user_namespace_has_the_limit_on_threads() {
    let namespace = ["--user", "--map-root-user"];
    let probe = common::command("unshare")
        .args(namespace)
        .arg("true")
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        return common::skip(format_args!("no user namespace can be made"));
    }
    let binary = env!("CARGO_BIN_EXE_echo-server");
    let script = r#"{ ulimit -u 512 || ulimit -p 512; } 2>/dev/null
        exec "$0" --host 127.0.0.1 --port 0"#;
    let mut unshare = common::command("unshare");
    unshare.args(namespace).args(["sh", "-c", script, binary]);
    let server = Server::spawn(&mut unshare);
    assert_eq!(lowered_limit(&server, 10_000, "raise ulimit -u"), 462);
}

/// Depending on the limit, different things fail first: a new thread's stack, what it maps before it
/// serves its client, or the client's buffer. So this test takes seconds to try several limits. Near
/// 78 MiB, malloc may take for a moment what the server needs to start.
#[test]
fn server_survives_more_clients_than_its_memory_holds() {
    for_each_at_once((98..=300).step_by(20), |mebibytes| {
        let mut server = start_under(&format!("ulimit -v {}", mebibytes * 1024), "");
        check_survival(&mut server);
    });
}

/// At these limits malloc would reserve so much that no client fits.
#[test]
fn one_malloc_arena_leaves_memory_for_clients() {
    for mebibytes in [146, 210] {
        let ulimit = format!("export MALLOC_ARENA_MAX=1; ulimit -v {}", mebibytes * 1024);
        let mut server = start_under(&ulimit, "");
        check_survival(&mut server);
    }
}

#[test]
fn out_of_memory_a_server_without_clients_exits_at_once() {
    let mut server = start_under("ulimit -Sv 409600", "--shutdown-timeout 20s");
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id()));
    let status = status.expect("the server runs");
    let size = line_with(&status, "VmSize:").split_whitespace().nth(1);
    let kibibytes: u64 = size.and_then(|size| size.parse().ok()).expect("a number");
    // A client needs more than 4 MiB.
    limit(&server, Resource::As, Some((kibibytes + 2048) * 1024));
    let begin = Instant::now();
    assert_eq!(server.shut_down().code(), Some(0), "{:#?}", server.log());
    assert!(begin.elapsed() < Duration::from_secs(10));
}

/// Connects 300 clients, each of which sends 64 KiB and reads nothing. Checks that the server
/// still serves the first one, then serves new ones, and shuts down as usual.
fn check_survival(server: &mut Server) {
    let first = server.connect_and_exchange(b"first");
    let bytes = noise(65_536, 1);
    let clients: Vec<TcpStream> = (0..300)
        .map_while(|_| {
            let mut client = TcpStream::connect(server.address).ok()?;
            // The server may reject it.
            let _ = client.write_all(&bytes);
            Some(client)
        })
        .collect();
    server.assert_running();
    exchange(&first, &bytes);
    drop(clients);
    server.wait_for_log(" disconnected: ");
    wait_until("the clients' threads have ended", || server.threads() == 4);
    exchange(&server.connect(), &bytes);
    drop(first);
    server.assert_running();
    assert_eq!(server.shut_down().code(), Some(0), "{:#?}", server.log());
}

/// Takes five seconds, because it takes as many clients to reach the default of 65,530 maps. If more
/// maps are allowed, all the clients fit.
#[test]
fn server_survives_more_clients_than_its_memory_maps() {
    const CLIENTS: usize = 17_000;
    let files = rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be raised");
    // Other tests, in threads of the same process, need a few too.
    if files < CLIENTS as u64 + 1000 {
        common::skip(format_args!(
            "17,000 clients: this system allows {files} open files"
        ));
        return;
    }
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("Linux has this limit");
    let maps: usize = maps.trim().parse().expect("a number");
    let mut server = Server::spawn(local_server().args(["-q", "--max-connections", "17000"]));
    let limit = if maps < CLIENTS * 4 {
        lowered_limit(&server, CLIENTS, "vm.max_map_count")
    } else {
        CLIENTS
    };
    assert!(limit <= maps / 4, "{limit}");
    let mut clients = Vec::new();
    // From many addresses: Linux takes milliseconds to find a free port for an address that already
    // uses half of them, also for connections of the last minute.
    let addresses = (1..=100).cycle().map(|number| [127, 2, 0, number]);
    for (number, ip) in (0..CLIENTS).zip(addresses) {
        let client = connect_from(ip, server.address);
        // Otherwise the listen backlog may overflow, and the client tries again after a second.
        if number % 1000 == 0 && number < limit {
            exchange(&client, b"hello");
        }
        clients.push(client);
    }
    for (number, client) in clients.iter().take(limit).enumerate() {
        exchange(client, &number.to_le_bytes());
    }
    wait_until("there is a thread for each client", || {
        server.threads() == limit + 3
    });
    drop(clients);
    server.assert_running();
    exchange(&server.connect(), b"hello again");
}

#[test]
fn unread_log_under_a_memory_limit_does_not_end_the_server() {
    let (_unread, stderr) = pipe().expect("the system has a pipe");
    let mut command = server_from_shell("ulimit -v 30720", "-vv --buffer-size 1KiB");
    let server = Server::spawn_as_is(command.stdout(Stdio::piped()).stderr(stderr));

    // As many clients as the memory allows.
    let mut clients = Vec::new();
    loop {
        let mut client = server.connect_and_send(b"x");
        set_read_timeout(&client, Duration::from_millis(500));
        if client.read_exact(&mut [0]).is_err() {
            break;
        }
        set_read_timeout(&client, PATIENCE);
        clients.push(client);
    }
    // Far more lines than the queue holds.
    let bytes = noise(100_000, 17);
    for_each_at_once(&clients, |client| {
        assert!(common::send_and_read_all(client, &[&bytes]) == bytes);
    });
    drop(clients);
    exchange(&server.connect(), b"hello");
}
