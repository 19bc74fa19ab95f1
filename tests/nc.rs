//! The `nc` of the README, for real. Where there is none, CI fails and others are told. Windows comes
//! without one, and the README gives PowerShell there.
#![cfg(unix)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::{Server, end, noise, start_tool};

/// Runs `nc` with `input` on its stdin; what it prints.
fn nc(server: &Server, input: &[u8]) -> Option<Vec<u8>> {
    let (host, port) = (
        server.address.ip().to_string(),
        server.address.port().to_string(),
    );
    let mut nc = Command::new("nc");
    if cfg!(not(target_os = "macos")) {
        // The one of macOS closes its sending side at the end of its input unasked.
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
        .expect("no panic")
        .expect("nc takes its input");
    assert!(output.status.success(), "{:?}", output.status);
    Some(output.stdout)
}

#[test]
fn nc_gets_a_line_back() {
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
        assert!(echo == bytes, "{} bytes came back", echo.len());
    }
}
