//! The command line of `echo-client`, and the errors before it is connected.
#![cfg(feature = "client")]

use crate::common::{
    Server, assert_contains, assert_silent_exit, closed_port, default_client, echo_client,
    error_of, run, stderr_of, stdout_of,
};

#[test]
fn error_for_a_refused_connection_has_address_and_advice() {
    let (_socket, address) = closed_port();
    for arguments in [&[][..], &["test"], &["test", "--json"], &["bench"]] {
        let message = error_of(echo_client(address).args(arguments));
        assert_contains(
            &message,
            &format!("cannot connect to {address}: connection refused"),
        );
        assert_contains(&message, &format!("echo-server --port {}", address.port()));
    }
}

#[test]
fn error_for_an_unknown_host_has_its_name_and_advice() {
    // No real name ends in .invalid (RFC 2606).
    let message = error_of(default_client().args(["--host", "no-such-host.invalid"]));
    assert_contains(&message, "cannot find the host no-such-host.invalid: ");
    assert_contains(&message, "give an IP address");
}

#[test]
fn error_for_an_unreachable_address_has_the_address() {
    // 2001:db8::/32 is reserved for documentation (RFC 3849): there is no route to it or no answer.
    let message = error_of(default_client().args(["--host", "2001:db8::1", "--timeout", "500ms"]));
    assert_contains(&message, "cannot connect to [2001:db8::1]:54000: ");
    assert!(
        message.contains("no route to it") || message.contains("no answer within"),
        "{message}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn linux_full_listen_backlog_is_an_error_after_the_timeout() {
    use std::net::TcpStream;
    use std::time::Duration;
    let (listener, address) = closed_port();
    listener.listen(0).expect("the socket can listen");
    let timeout = Duration::from_millis(200);
    // If the listen backlog is full, Linux drops the SYN of a new client.
    let (mut backlog, mut failures) = (Vec::new(), 0);
    // A busy machine may delay the test, so one failure proves little.
    while failures < 2 {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                backlog.push(stream);
                failures = 0;
            }
            Err(_) => failures += 1,
        }
    }
    let message = error_of(echo_client(address).args(["--timeout", "200ms"]));
    let expected = format!("cannot connect to {address}: no answer within 200ms");
    assert_contains(&message, &expected);
    assert_contains(&message, "--timeout");
}

#[test]
fn host_may_be_a_name() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let output = run(default_client().args(["--host", "localhost", "--port", &port]));
    assert_silent_exit(&output, 0);
    server.wait_for_log("closed by client, 0 bytes echoed");
}

#[test]
fn options_may_precede_or_follow_the_command() {
    let (_socket, address) = closed_port();
    let port = address.port().to_string();
    for arguments in [["--port", &port, "test"], ["test", "--port", &port]] {
        let message = error_of(default_client().args(arguments));
        assert_contains(&message, &address.to_string());
    }
}

#[test]
fn defaults_are_127_0_0_1_54000_and_5s() {
    let help = stdout_of(default_client().arg("--help"), 0);
    for default in ["127.0.0.1", "54000", "5s"] {
        assert_contains(&help, &format!("[default: {default}]"));
    }
}

#[test]
fn error_for_a_bad_argument_has_the_option_and_advice() {
    let needed = "HOST:PORT is needed, such as 127.0.0.1:54000";
    let replaced = "an ADDRESS cannot be used with --host or --port";
    for (line, advice) in [
        ("--host localhost:54000", "--port"),
        ("--host ", "a name or an IP address"),
        ("--host a\x1b[31m", "a name or an IP address"),
        ("--port 0", "not in 1..=65535"),
        ("--port http", "invalid digit"),
        ("--timeout 0s", "from 1ms to 24h"),
        ("--timeout 25h", "from 1ms to 24h"),
        ("--timeout 5", "such as 500ms, 30s or 5m"),
        ("127.0.0.1", "given with '--host' and '--port'"),
        ("tset", "test"),
        ("test --jsno", "--json"),
        ("bench --connections 0", "not in 1..=65535"),
        ("bench --connections many", "invalid digit"),
        ("bench --size 0", "from 1 byte to 16MiB"),
        ("bench --size 17MiB", "from 1 byte to 16MiB"),
        ("bench --duration 0s", "from 1ms to 24h"),
        ("bench --duration 5", "such as 500ms"),
        ("bench --mode udp", "rtt"),
        ("bench 127.0.0.1", needed),
        ("bench 127.0.0.1:54000 server", needed),
        ("bench 127.0.0.1:0", needed),
        ("bench 127.0.0.1:http", needed),
        ("bench ::1:54000", needed),
        ("bench 127.0.0.1 54000", needed),
        ("bench server:1 --host server", replaced),
        ("--port 1 bench server:1", replaced),
        ("--port 1 bench server:1", "Usage: echo-client bench"),
        ("bench --rounds 3", "<ADDRESS>"),
        ("bench server:1 --rounds 0", "not in 1..=1000"),
        ("bench server:1 --rounds 1001", "not in 1..=1000"),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let message = stderr_of(default_client().args(&arguments), 2);
        let option = arguments.iter().find(|argument| argument.starts_with("--"));
        let option = option.unwrap_or(&arguments[arguments.len() - 1]);
        assert_contains(&message, option);
        assert_contains(&message, advice);
    }
}
