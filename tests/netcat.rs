//! The clients `nc` and `ncat`, as the manual uses them. Windows has no `nc`, so the manual uses
//! PowerShell there.
#![cfg(unix)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use crate::common::{Server, end, noise, start_tool};

#[test]
fn nc_gets_a_megabyte_back() {
    // On macOS, `nc` half-closes at the end of its stdin without an option.
    let options: &[&str] = if cfg!(target_os = "macos") {
        &[]
    } else {
        &["-N"]
    };
    check_echo(Command::new("nc").args(options));
}

#[test]
fn ncat_gets_a_megabyte_back() {
    check_echo(&mut Command::new("ncat"));
}

/// Sends a megabyte to a server through the stdin of `client`, and checks its stdout.
fn check_echo(client: &mut Command) {
    let server = Server::start(&[]);
    client
        .arg(server.address.ip().to_string())
        .arg(server.address.port().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let Some(mut client) = start_tool(client) else {
        return;
    };
    let mut stdin = client.stdin.take().expect("stdin is piped");
    let bytes = noise(1_000_000, 7);
    let output = thread::scope(|scope| {
        let bytes = &bytes;
        scope.spawn(move || stdin.write_all(bytes).expect("the client reads its stdin"));
        end(client)
    });
    assert!(output.status.success(), "{:?}", output.status);
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    server.wait_for_log("closed by client, 1000000 bytes echoed");
}
