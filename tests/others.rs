//! `echo-client test` against programs that are not ours: echo servers of Debian's packages as they
//! stand.
#![cfg(all(target_os = "linux", feature = "client"))]

mod common;

use std::process::{Command, Stdio};

use common::conformance::{failures, run_suite};
use common::tools::{Tool, wait_until_listening};
use common::{Log, reserve_port};

/// A process for each client, and a queue of five.
#[test]
fn socat_passes() {
    let listen = "TCP-LISTEN:0,bind=127.0.0.1,fork,reuseaddr";
    let mut command = Command::new("socat");
    command
        .args(["-d", "-d", listen, "EXEC:cat"])
        .stderr(Stdio::piped());
    let Some(mut socat) = Tool::start(&mut command) else {
        return;
    };
    let log = Log::read(socat.0.stderr.take().expect("stderr is piped"));
    let line = log.wait_for(1, "listening on ").remove(0);
    let address = line
        .split(' ')
        .next_back()
        .and_then(|address| address.parse().ok());

    let (report, code) = run_suite(address.expect("an address"), "20s");
    assert_eq!(failures(&report), Vec::<[String; 3]>::new());
    assert_eq!(code, Some(0));
}

/// It is wrong where much is under way: it waits for `cat` to read while `cat` waits for it, and at
/// the client's FIN it leaves without what is still in `cat`. `nc -N` loses bytes with it too.
#[test]
fn ncat_passes_but_for_streams_of_megabytes() {
    let (_reserved, address) = reserve_port();
    let mut command = Command::new("ncat");
    command.args([
        "-l",
        "-k",
        "127.0.0.1",
        &address.port().to_string(),
        "--exec",
        "/bin/cat",
    ]);
    let Some(_ncat) = Tool::start(&mut command) else {
        return;
    };
    wait_until_listening(address);

    let (report, _) = run_suite(address, "10s");
    let failures = failures(&report);
    let known = [
        "64 MiB both ways at once",
        "half-close with megabytes pending",
    ];
    assert!(
        failures
            .iter()
            .all(|[name, ..]| known.contains(&name.as_str())),
        "{failures:#?}"
    );
}
