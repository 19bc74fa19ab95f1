//! The command line of `echo-server`: options, their environment variables, error lines, exit codes
//! and log levels.

use std::process::{Command, Stdio};

use crate::common::{
    self, Server, assert_contains, count_lines, echo_server, error_of, exchange, for_each_at_once,
    line_with, listen, local_server, pipe_without_reader, stderr_of, stdout_of,
};

#[test]
fn error_for_a_port_in_use_has_the_address_and_advice() {
    let (_listener, address) = listen();
    let port = address.port().to_string();
    let message = error_of(echo_server().args(["--host", "127.0.0.1", "-p", &port]));
    assert_contains(
        &message,
        &format!("cannot listen on {address}: the port is in use"),
    );
    assert_contains(&message, "--port");
}

#[test]
fn error_for_a_foreign_address_has_the_address_and_advice() {
    // 192.0.2.0/24 is reserved for documentation (RFC 5737), so no machine has it.
    let message = error_of(echo_server().args(["--host", "192.0.2.1", "--port", "0"]));
    assert_contains(
        &message,
        "cannot listen on 192.0.2.1:0: this machine has no such address",
    );
    assert_contains(&message, "--host 0.0.0.0");
}

/// On other systems every user may bind the port, or the test cannot give up the privilege.
#[test]
#[cfg(target_os = "linux")]
fn linux_error_for_a_privileged_port_has_address_and_advice() {
    use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim().parse().is_ok_and(|first: u16| first <= 7)) {
        return common::skip(format_args!("a privileged port: this system has none"));
    }
    if rustix::process::geteuid().is_root() {
        // For this thread, and so for the server that it spawns.
        remove_capability_from_bounding_set(CapabilitySet::NET_BIND_SERVICE)
            .expect("root can remove a capability");
    }
    let message = error_of(echo_server().args(["--host", "127.0.0.1", "--port", "7"]));
    assert_contains(&message, "cannot listen on 127.0.0.1:7: permission denied");
    assert_contains(&message, "--port");
}

#[test]
fn error_for_a_bad_argument_has_the_option_and_advice() {
    for (flag, value, advice) in [
        ("--port", "65536", "from 0 to 65535"),
        ("--port", "http", "from 0 to 65535"),
        ("--host", "localhost", "did you mean 127.0.0.1?"),
        (
            "--host",
            "127.0.0.1:7",
            "; the port has its own option, --port",
        ),
        ("--host", "", "an IP address is needed"),
        ("--buffer-size", "0", "from 1 byte to 16MiB"),
        ("--buffer-size", "17MiB", "from 1 byte to 16MiB"),
        ("--buffer-size", "much", "such as 64KiB"),
        ("--max-connections", "0", "at least 1"),
        ("--max-connections", "-1", "at least 1"),
        (
            "--max-connections-per-ip",
            "many",
            "a whole number is needed; 0: no limit",
        ),
        ("--proxy-protocol", "yes", "unexpected value"),
        (
            "--idle-timeout",
            "30",
            "such as 500ms, 30s or 5m; did you mean 30s?",
        ),
        ("--shutdown-timeout", "soon", "such as 500ms, 30s or 5m"),
        ("--busy-poll", "50", "from 0s to 10ms, such as 50us"),
        ("--busy-poll", "11ms", "from 0s to 10ms, such as 50us"),
    ] {
        let message = stderr_of(echo_server().arg(format!("{flag}={value}")), 2);
        assert_contains(&message, flag);
        assert_contains(&message, advice);
    }
    assert_contains(&stderr_of(echo_server().arg("--prot=1"), 2), "--port");
    assert_contains(
        &stderr_of(echo_server().arg("--completions=fsh"), 2),
        "'fish'",
    );
    assert!(!stderr_of(echo_server().arg("--colour"), 2).contains("address"));
    for address in ["54000", "127.0.0.1"] {
        let message = stderr_of(echo_server().arg(address), 2);
        assert_contains(&message, address);
        assert_contains(&message, "'--host' and '--port'");
    }
}

#[test]
fn duration_that_overflows_is_an_invalid_value() {
    let value = "18446744073709551615s 1000ms";
    for option in ["--idle-timeout", "--shutdown-timeout", "--busy-poll"] {
        let message = stderr_of(echo_server().args([option, value]), 2);
        assert_contains(&message, option);
        assert_contains(&message, "a number with a unit");
    }
    #[cfg(feature = "client")]
    for options in [
        &["--timeout"][..],
        &["bench", "--duration"],
        &["bench", "--warm-up"],
    ] {
        let message = stderr_of(common::default_client().args(options).arg(value), 2);
        assert_contains(&message, "a number with a unit");
    }
}

#[test]
fn error_for_a_bad_variable_has_the_option_and_the_value() {
    for (variable, flag, value) in [
        ("ECHO_SERVER_PORT", "--port", "http"),
        ("ECHO_SERVER_BUSY_POLL", "--busy-poll", "1s"),
        ("ECHO_SERVER_PROXY_PROTOCOL", "--proxy-protocol", "maybe"),
    ] {
        let message = stderr_of(echo_server().env(variable, value), 2);
        assert_contains(&message, flag);
        assert_contains(&message, value);
    }
}

#[test]
fn default_host_is_every_interface() {
    let server = Server::spawn(echo_server().args(["--port", "0"]));
    let port = server.address.port();
    assert_eq!(
        server.ready_line,
        format!("Server listening on 0.0.0.0:{port}\n")
    );
    assert_ne!(port, 0);
    exchange(&common::connect(([127, 0, 0, 1], port).into()), b"hello");
}

#[test]
fn default_port_is_54000() {
    let help = stdout_of(echo_server().arg("--help"), 0);
    assert_contains(line_with(&help, "--port"), "[default: 54000]");
}

/// The port is in use, so the server's error shows which address it tried. A free port could be taken
/// by another program before the server binds it.
#[test]
fn option_takes_precedence_over_its_variable() {
    let (_listener, address) = listen();
    let port = address.port().to_string();
    let error = format!("cannot listen on {address}: ");

    let mut with_variables = echo_server();
    with_variables
        .env("ECHO_SERVER_HOST", "127.0.0.1")
        .env("ECHO_SERVER_PORT", &port);
    let message = error_of(&mut with_variables);
    assert_contains(&message, &error);

    let mut with_both = echo_server();
    with_both
        .env("ECHO_SERVER_HOST", "192.0.2.1")
        .env("ECHO_SERVER_PORT", "http");
    let message = error_of(with_both.args(["--host", "127.0.0.1", "-p", &port]));
    assert_contains(&message, &error);
}

/// Sends 70,000 bytes and returns the size of the server's longest read.
fn longest_read(server: &Server) -> usize {
    exchange(&server.connect(), &common::noise(70_000, 6));
    server.wait_for_log("closed by client");
    let sizes = server.log().into_iter().filter_map(|line| {
        let (_, size) = line.strip_suffix(" bytes")?.split_once(" sent ")?;
        size.parse::<usize>().ok()
    });
    sizes
        .max()
        .expect("the debug log has the size of each read")
}

#[test]
fn buffer_size_bounds_each_read() {
    let server = Server::start(&["--buffer-size", "1000", "-v"]);
    assert_eq!(longest_read(&server), 1000);
    let server = Server::start(&["--buffer-size", "2KiB", "-v"]);
    assert_eq!(longest_read(&server), 2048);
    let mut command = local_server();
    command.env("ECHO_SERVER_BUFFER_SIZE", "3000").arg("-v");
    assert_eq!(longest_read(&Server::spawn(&mut command)), 3000);
    command.args(["--buffer-size", "4000"]);
    assert_eq!(longest_read(&Server::spawn(&mut command)), 4000);
}

/// Starts a server, exchanges a message with it and shuts it down. Returns its log, or `None` if this
/// machine cannot send the signal.
fn log_of_one_client(command: &mut Command) -> Option<String> {
    if !common::signal::can_be_sent() {
        return None;
    }
    let mut server = Server::spawn(command);
    assert_eq!(
        common::send_and_read_all(&server.connect(), &[b"hello\x1b[2J\r\n"]),
        b"hello\x1b[2J\r\n"
    );
    assert_eq!(server.shut_down().code(), Some(0));
    assert_eq!(
        server.rest_of_stdout(),
        "",
        "stdout has only the ready line"
    );
    Some(server.rest_of_log().join("\n"))
}

#[test]
fn verbosity_ranges_from_silence_to_the_bytes() {
    let levels = [
        "connected\n",
        "sent 11 bytes\n",
        "sent hello\\x1b[2J\\r\\n\n",
    ];
    let shown_levels = [
        ("-qqq", 0),
        ("-qq", 0),
        ("-q", 0),
        ("--", 1),
        ("-v", 2),
        ("-vv", 3),
    ];
    for_each_at_once(shown_levels, |(flag, shown)| {
        let mut command = local_server();
        let flags: &[&str] = if flag == "--" { &[] } else { &[flag] };
        let Some(log) = log_of_one_client(command.args(flags)) else {
            return;
        };
        for (level, text) in levels.iter().enumerate() {
            assert_eq!(
                log.contains(text),
                level < shown,
                "{flag}: {text:?} in {log}"
            );
        }
        assert!(!log.contains("sent 0 bytes"), "FIN is no data: {log}");
    });
}

#[test]
fn rust_log_takes_precedence_over_verbosity() {
    let debug = log_of_one_client(local_server().env("RUST_LOG", "debug").arg("-qqq"));
    let Some(log) = debug else { return };
    assert_contains(&log, "sent 11 bytes");
    let error = log_of_one_client(local_server().env("RUST_LOG", "error").arg("-vv"));
    assert_eq!(error.as_deref(), Some(""));
}

#[test]
fn invalid_rust_log_is_logged_and_ignored() {
    let invalid = log_of_one_client(local_server().env("RUST_LOG", "echo_server=loud"));
    let Some(log) = invalid else { return };
    assert_contains(&log, "WARN ] ignoring invalid RUST_LOG: ");
    assert_contains(&log, " connected\n");

    let mut command = local_server();
    command
        .env("RUST_LOG", "echo_server=loud")
        .stdout(Stdio::piped());
    let server = Server::spawn_as_is(command.stderr(pipe_without_reader()));
    exchange(&server.connect(), b"hello");
}

#[test]
fn info_log_has_two_lines_per_client_and_the_totals() {
    let Some(log) = log_of_one_client(&mut local_server()) else {
        return;
    };
    assert_eq!(count_lines(&log, " connected"), 1, "{log}");
    let end = "disconnected: closed by client, 11 bytes echoed in ";
    assert_eq!(count_lines(&log, end), 1, "{log}");
    let last = log.lines().last().expect("the log has lines");
    assert_contains(
        last,
        "shut down: 1 client served, 0 forcibly closed, 11 bytes echoed in ",
    );
}
