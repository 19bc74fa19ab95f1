//! The progress that `echo-client test` and `echo-client bench` show in a terminal.
#![cfg(all(unix, feature = "client"))]

use crate::common::signal::{self, Signal};
use crate::common::terminal::Terminal;
use crate::common::{Server, accept, listen, wait_until};

#[test]
fn test_results_start_on_a_new_row() {
    let server = Server::start(&[]);
    for (arguments, result) in [
        (&["test", "NUL"][..], "1 passed, 0 failed"),
        (&["test", "NUL", "--json"], "{"),
    ] {
        let mut terminal = Terminal::start(server.address, arguments);
        let shown = terminal.end_with(0);
        // The progress bar ends with "clear the row".
        let mut rows = shown.lines().filter_map(|row| row.rsplit("\x1b[2K").next());
        assert!(rows.any(|row| row.starts_with(result)), "{shown:?}");
    }
}

#[test]
fn bench_shows_progress_and_throughput() {
    let server = Server::start(&[]);
    // One percent is 0.3 s. The test does not wait for the end.
    let arguments = ["bench", "--warm-up", "0s", "--duration", "30s"];
    let mut terminal = Terminal::start(server.address, &arguments);
    wait_until("a percentage and two rates are shown", || {
        let shown = terminal.text();
        let positive_numbers = |unit: &str| {
            let numbers = shown.split(unit).filter_map(|part| part.rsplit(' ').next());
            numbers
                .filter(|n| n.starts_with(|c| ('1'..='9').contains(&c)))
                .count()
        };
        positive_numbers(" %") >= 1 && positive_numbers(" messages/s") >= 2
    });
    signal::send(&terminal.client, Signal::INT);
    terminal.wait_for("rtt on ");
    terminal.end_with(0);
}

#[test]
fn bench_shows_the_round_and_the_server() {
    let servers = [listen(), listen()];
    let addresses = servers.each_ref().map(|(_, address)| address.to_string());
    let mut terminal = Terminal::spawn_client("", |client| {
        let options = ["--rounds=2", "--duration=1h", "--timeout=1h"];
        client.arg("bench").args(options).args(&addresses);
    });
    for round in [1, 2] {
        for ((listener, _), address) in servers.iter().zip(&addresses) {
            let connection = accept(listener);
            terminal.wait_for(&format!("round {round}/2, {address}  "));
            terminal.wait_for(" messages/s");
            // Ends the round.
            drop(connection);
        }
    }
    terminal.end_with(1);
}
