//! The client `nc`, as the manual uses it. Windows has no `nc`, so the manual uses PowerShell there.
#![cfg(unix)]

use std::io::Write;
use std::process::{Command, Stdio};

use crate::common::{Server, end, noise, start_tool};

/// Runs `nc` with `input` as its stdin, and returns its stdout.
fn nc(server: &Server, input: &[u8]) -> Option<Vec<u8>> {
    let (host, port) = (
        server.address.ip().to_string(),
        server.address.port().to_string(),
    );
    let mut nc = Command::new("nc");
    if cfg!(not(target_os = "macos")) {
        // On macOS, `nc` half-closes at the end of its stdin without an option.
        nc.arg("-N");
    }
    nc.args([&host, &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut nc = start_tool(&mut nc)?;
    let mut stdin = nc.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = end(nc);
    writer
        .join()
        .expect("the writer does not panic")
        .expect("nc reads its stdin");
    assert!(output.status.success(), "{:?}", output.status);
    Some(output.stdout)
}

#[test]
fn nc_gets_its_line_back() {
    let server = Server::start(&[]);
    if let Some(echo) = nc(&server, b"hello\n") {
        assert_eq!(echo, b"hello\n");
        server.wait_for_log("closed by client, 6 bytes echoed");
    }
}

#[test]
fn nc_gets_a_megabyte_back() {
    let server = Server::start(&[]);
    let bytes = noise(1_000_000, 7);
    if let Some(echo) = nc(&server, &bytes) {
        assert!(echo == bytes, "{} bytes arrived", echo.len());
    }
}
