//! Small limits of the system: the server lowers its connection limit to what fits, warns about it
//! once, and survives as many clients as connect.
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Write, pipe};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use common::{Server, echo_server, exchange, noise};

/// Held by each test that opens thousands of connections: this process may have only so many files.
static MANY_FILES: Mutex<()> = Mutex::new(());

/// Starts the server from a shell that first runs the command `ulimit`.
fn start_under(ulimit: &str, arguments: &str) -> Server {
    let binary = env!("CARGO_BIN_EXE_echo-server");
    let script = format!("{ulimit} && exec {binary} --host 127.0.0.1 --port 0 {arguments}");
    Server::spawn(common::command("sh").args(["-c", &script]))
}

/// Returns the limit that the server's warning names, which must be its only one and contain
/// `setting`.
fn lowered_limit(server: &Server, from: usize, setting: &str) -> usize {
    let start = format!("connection limit lowered from {from} to ");
    let line = server.wait_for_log(&start);
    assert!(line.contains("WARN") && line.contains(setting), "{line}");
    let warnings = server
        .log()
        .iter()
        .filter(|line| line.contains("limit lowered"))
        .count();
    assert_eq!(warnings, 1, "{:#?}", server.log());
    let number = line
        .split(&start)
        .last()
        .and_then(|rest| rest.split(':').next());
    number
        .and_then(|number| number.parse().ok())
        .expect("the warning names the new limit")
}

#[test]
fn connection_limit_is_lowered_to_the_open_files() {
    let server = start_under("ulimit -n 64", "");
    let limit = lowered_limit(&server, 10_000, "ulimit -n");
    assert!((32..64).contains(&limit), "{limit}");

    let mut clients: Vec<TcpStream> = (0..limit).map(|_| server.connect()).collect();
    for client in &clients {
        exchange(client, b"hello");
    }
    let mut waiting = server.connect();
    waiting.write_all(b"hello").expect("the bytes are sent");
    server.wait_for_log(&format!("connection limit reached ({limit})"));
    clients.pop();
    let mut echo = [0; 5];
    waiting
        .read_exact(&mut echo)
        .expect("the client is admitted");
    assert_eq!(&echo, b"hello");
    assert!(
        !server.log().iter().any(|line| line.contains("os error")),
        "{:#?}",
        server.log()
    );
}

#[test]
fn connection_limit_that_fits_is_not_lowered() {
    let server = start_under("ulimit -n 64", "--max-connections 32");
    exchange(&server.connect(), b"hello");
    server.wait_for_log(" disconnected: ");
    assert!(
        !server.log().iter().any(|line| line.contains("lowered")),
        "{:#?}",
        server.log()
    );
}

#[test]
fn connection_limit_is_lowered_to_the_address_space() {
    let server = start_under("ulimit -v 204800", "");
    lowered_limit(&server, 10_000, "ulimit -v");
    exchange(&server.connect(), b"hello");
}

/// Depending on the limit, different things fail first: a new thread's stack, what it maps before it
/// serves its client, or the client's buffer.
#[test]
fn server_survives_more_clients_than_its_memory_holds() {
    let _guard = MANY_FILES.lock().unwrap_or_else(PoisonError::into_inner);
    for mebibytes in (70..=300).step_by(10) {
        let mut server = start_under(&format!("ulimit -v {}", mebibytes * 1024), "");
        survives(&mut server, 300, &format!("{mebibytes} MiB"));
    }
}

/// Connects `count` clients, each of which sends 64 KiB and reads nothing, and checks that the server
/// still serves the first one, then serves new ones, and shuts down as usual.
fn survives(server: &mut Server, count: usize, what: &str) {
    let first = server.connect();
    exchange(&first, b"first");
    let bytes = noise(65_536, 1);
    let clients: Vec<TcpStream> = (0..count)
        .map_while(|_| {
            let mut client = TcpStream::connect(server.address).ok()?;
            // The server may reject it.
            let _ = client.write_all(&bytes);
            Some(client)
        })
        .collect();
    assert_lives(server, what);
    exchange(&first, &bytes);
    drop(clients);
    server.wait_for_log(" disconnected: ");
    exchange(&server.connect(), &bytes);
    drop(first);
    assert_lives(server, what);
    assert_eq!(
        server.shut_down().code(),
        Some(0),
        "{what}: {:#?}",
        server.log()
    );
}

fn assert_lives(server: &mut Server, what: &str) {
    let status = server.child.try_wait().expect("its status can be read");
    assert!(
        status.is_none(),
        "{what}: {status:?}, log: {:#?}",
        server.log()
    );
}

/// Takes a few seconds, because it takes as many clients to reach the default of 65,530 maps. Where
/// more maps are allowed, all the clients fit.
#[test]
fn server_survives_more_clients_than_its_memory_maps() {
    const CLIENTS: usize = 17_000;
    let _guard = MANY_FILES.lock().unwrap_or_else(PoisonError::into_inner);
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
    let mut command = echo_server();
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "-q",
        "--max-connections",
        "17000",
    ]);
    let mut server = Server::spawn(&mut command);
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map_while(|_| TcpStream::connect(server.address).ok())
        .collect();
    assert_eq!(clients.len(), CLIENTS, "{:#?}", server.log());
    exchange(&clients[0], b"hello");
    let limit = if maps < CLIENTS * 4 {
        lowered_limit(&server, CLIENTS, "vm.max_map_count")
    } else {
        CLIENTS
    };
    assert!(limit <= maps / 4, "{limit}");
    for client in clients.iter().take(limit) {
        exchange(client, b"hello");
    }
    drop(clients);
    assert_lives(&mut server, "17,000 clients");
    exchange(&server.connect(), b"hello again");
}

#[test]
fn unread_log_under_a_memory_limit_does_not_end_the_server() {
    let (_unread, stderr) = pipe().expect("the system has a pipe");
    let binary = env!("CARGO_BIN_EXE_echo-server");
    let arguments = "--host 127.0.0.1 --port 0 -vv --buffer-size 1KiB";
    let script = format!("ulimit -v 30720 && exec {binary} {arguments}");
    let mut command = common::command("sh");
    command.args(["-c", &script]).stdout(Stdio::piped());
    let server = Server::spawn_as_is(command.stderr(stderr));

    // As many clients as the memory allows.
    let mut clients = Vec::new();
    loop {
        let mut client = server.connect();
        let timeout = client.read_timeout().expect("the timeout can be read");
        client
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("the timeout can be set");
        client.write_all(b"x").expect("the byte is sent");
        if client.read_exact(&mut [0]).is_err() {
            break;
        }
        client
            .set_read_timeout(timeout)
            .expect("the timeout can be set");
        clients.push(client);
    }
    // Far more lines than the queue holds.
    let bytes = noise(100_000, 17);
    thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| assert!(common::send_and_read_all(client, &[&bytes]) == bytes));
        }
    });
    drop(clients);
    exchange(&server.connect(), b"hello");
}
