//! The clients `nc` and `ncat`, as the manual uses them. Windows has no `nc`, so the manual uses PowerShell there.
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
    nc.args([&host, &port]);
    run(nc, input)
}

/// Runs `ncat`, which half-closes without an option, with `input` as its stdin. Returns its stdout.
fn ncat(server: &Server, input: &[u8]) -> Option<Vec<u8>> {
    let mut ncat = Command::new("ncat");
    ncat.arg(server.address.ip().to_string())
        .arg(server.address.port().to_string());
    run(ncat, input)
}

/// Runs `client` with `input` as its stdin, and returns its stdout.
fn run(mut client: Command, input: &[u8]) -> Option<Vec<u8>> {
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = start_tool(&mut client)?;
    let mut stdin = client.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = end(client);
    writer
        .join()
        .expect("the writer does not panic")
        .expect("the client reads its stdin");
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

#[test]
fn ncat_gets_a_megabyte_back() {
    let server = Server::start(&[]);
    let bytes = noise(1_000_000, 7);
    if let Some(echo) = ncat(&server, &bytes) {
        assert!(echo == bytes, "{} bytes arrived", echo.len());
    }
}
