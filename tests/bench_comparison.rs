//! `echo-client bench` with several servers, which it measures in turns.
#![cfg(feature = "client")]

use std::iter::zip;
use std::sync::mpsc;

use crate::common::bench::{
    assert_positive, bench_addresses, echo, failures, interrupted_report, notifying_server, number,
    run_json, run_text, server,
};
use crate::common::{Server, assert_contains, closed_port, signal};
use serde_json::Value;

/// Returns the reports of the servers in a JSON report.
fn servers(report: &Value) -> &[Value] {
    report["servers"].as_array().expect("a list of servers")
}

/// Returns the reports of the rounds of a server.
fn measurements(server: &Value) -> &[Value] {
    server["measurements"].as_array().expect("a list of rounds")
}

/// Starts two servers. Returns their addresses too.
fn two_servers() -> ([Server; 2], [String; 2]) {
    let servers = [Server::start(&["-q"]), Server::start(&["-q"])];
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    (servers, addresses)
}

#[test]
fn each_round_measures_every_server_in_the_same_order() {
    let (connected, connections) = mpsc::channel();
    let addresses = ["first", "second", "third"].map(|name| {
        let connected = connected.clone();
        let address = server(move |_, mut stream| {
            connected.send(name).expect("the test waits");
            echo(&mut stream, |_, _| true);
        });
        address.to_string()
    });
    run_text(bench_addresses(&addresses, "--rounds 2"), 0);
    drop(connected);
    let order: Vec<&str> = connections.try_iter().collect();
    assert_eq!(
        order,
        ["first", "second", "third", "first", "second", "third"]
    );
}

#[test]
fn json_has_the_ratio_and_the_figures_of_each_round() {
    let (_servers, addresses) = two_servers();
    for (mode, throughput) in [
        ("rtt", "messages_per_s"),
        ("bulk", "bytes_per_s"),
        ("connect", "messages_per_s"),
    ] {
        let options = &format!("--json --rounds 3 --mode {mode}");
        let report = run_json(bench_addresses(&addresses, options), 0);
        assert_eq!(report["rounds"], 3);
        let median = |server: &Value| {
            let rounds = measurements(server).iter();
            let mut rounds: Vec<f64> = rounds.map(|round| number(round, throughput)).collect();
            assert_eq!(rounds.len(), 3, "{server}");
            rounds.sort_by(f64::total_cmp);
            rounds[1]
        };
        let first_median = median(&report["servers"][0]);
        for (server, address) in zip(servers(&report), &addresses) {
            assert_eq!(server["address"], *address);
            if first_median > 0.0 {
                let error = number(server, "ratio") - median(server) / first_median;
                assert!(error.abs() < 1e-9, "{report}");
            } else {
                // A busy machine has delayed the server in two of the rounds.
                assert!(server["ratio"].is_null(), "{report}");
            }
            for round in measurements(server) {
                assert_eq!(round["server"], *address);
                assert_eq!(round["mode"], mode);
            }
        }
    }
}

#[test]
fn a_round_has_the_fields_of_the_report_of_one_server() {
    let server = Server::start(&["-q"]);
    let address = [server.address.to_string()];
    let alone = run_json(bench_addresses(&address, "--json"), 0);
    let in_turns = run_json(bench_addresses(&address, "--json --rounds 1"), 0);
    let keys = |report: &Value| -> Vec<String> {
        let fields = report.as_object().expect("an object");
        fields.keys().cloned().collect()
    };
    assert!(keys(&alone).len() > 10, "{alone}");
    let round = &in_turns["servers"][0]["measurements"][0];
    assert_eq!(keys(round), keys(&alone));
}

#[test]
fn text_report_has_a_row_for_each_server() {
    let (_servers, addresses) = two_servers();
    for (mode, unit) in [
        ("rtt", "messages/s"),
        ("bulk", "bytes/s"),
        ("connect", "connections/s"),
    ] {
        let options = &format!("--mode {mode} --rounds 3");
        let report = run_text(bench_addresses(&addresses, options), 0);
        let lines: Vec<&str> = report.lines().collect();
        assert!(
            lines[0].starts_with(&format!("{mode} in turns, 50ms each: ")),
            "{report}"
        );
        assert!(lines[0].ends_with(unit), "{report}");
        let words = |line: &str| -> Vec<String> {
            // "12.5 MiB" is one figure.
            let units = [" B", " KiB", " MiB", " GiB"];
            let line = units.iter().fold(line.to_owned(), |line, unit| {
                line.replace(unit, unit.trim_start())
            });
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(
            words(lines[2]),
            [
                "server", "rounds", "ratio", "median", "lowest", "highest", "p50", "p99"
            ]
        );
        for (line, address) in zip(&lines[3..], &addresses) {
            let row = words(line);
            assert_eq!(row.len(), 8, "{report}");
            assert_eq!(row[..2], [address, "3"], "{report}");
            assert_eq!(row[7] == "-", mode == "bulk", "{report}");
        }
        // A busy machine may have delayed the server in two of the rounds.
        let first = words(lines[3]);
        let has_median = !["0", "0B"].contains(&&*first[3]);
        assert_eq!(first[2], if has_median { "1.00" } else { "-" }, "{report}");
        assert!(!report.contains("failures"), "{report}");
    }
}

#[test]
fn other_servers_are_measured_if_one_fails() {
    let (_good, [first, last]) = two_servers();
    let (_socket, refusing) = closed_port();
    let closes_at_once = Server::start(&["-q", "--fault", "limit=0"]);
    let [refusing, closing] = [refusing, closes_at_once.address].map(|a| a.to_string());
    let addresses = [first, refusing.clone(), closing.clone(), last];

    let object = run_json(bench_addresses(&addresses, "--json --rounds 3"), 1);
    let refused = format!("cannot connect to {refusing}");
    let expected: [&[(&str, u64)]; 4] = [&[], &[(&refused, 1)], &[("closed", 1)], &[]];
    for (server, expected) in zip(servers(&object), expected) {
        assert_eq!(measurements(server).len(), 3, "{object}");
        assert_eq!(failures(&measurements(server)[1]), expected, "{object}");
    }
    assert!(object["servers"][1]["ratio"].is_null(), "{object}");
    for round in measurements(&object["servers"][3]) {
        assert_positive(round, &["max_us"]);
    }

    let text = run_text(bench_addresses(&addresses, "--rounds 3"), 1);
    let row = text.lines().find(|line| line.starts_with(&refusing));
    let has_no_figures = row.is_some_and(|row| row.ends_with(" 0  not measured"));
    assert!(has_no_figures, "{text}");
    let (_, failures) = text.split_once("\nfailures\n").expect("failures");
    let refused = format!("   3 {refusing}: {refused}: connection refused");
    assert_contains(failures, &refused);
    assert_contains(failures, &format!("   3 {closing}: closed: "));
    assert_eq!(failures.lines().count(), 2, "{text}");
}

#[test]
fn ratio_is_null_if_the_first_server_fails() {
    let good = Server::start(&["-q"]);
    let (_socket, refusing) = closed_port();
    let addresses = [refusing.to_string(), good.address.to_string()];
    let report = run_json(bench_addresses(&addresses, "--json --rounds 1"), 1);
    for server in servers(&report) {
        assert!(server["ratio"].is_null(), "{report}");
    }
    let round = &report["servers"][1]["measurements"][0];
    assert_positive(round, &["max_us"]);
}

#[test]
fn one_address_replaces_host_and_port() {
    let server = Server::start(&["-q"]);
    let address = [format!("localhost:{}", server.address.port())];
    let report = run_text(bench_addresses(&address, ""), 0);
    assert!(
        report.starts_with(&format!("rtt on {}: ", server.address)),
        "{report}"
    );
}

#[test]
fn ctrl_c_ends_all_rounds_with_a_report() {
    if !signal::can_be_sent() {
        return;
    }
    let fast = Server::start(&["-q"]);
    let (slow, received) = notifying_server(50 * 64, true);
    let unused = server(|_, _| panic!("this server is measured last"));
    let addresses = [slow, fast.address, unused].map(|address| address.to_string());
    let command = bench_addresses(&addresses, "--json --duration 1h");
    let report = interrupted_report(&received, command, 0);
    assert_eq!(report["rounds"], 5);
    let [first, others @ ..] = servers(&report) else {
        panic!("there are three servers: {report}");
    };
    assert_eq!(first["ratio"], 1.0);
    assert_eq!(measurements(first).len(), 1, "{report}");
    let messages = number(&measurements(first)[0], "messages");
    assert!(messages >= 49.0, "{report}");
    for server in others {
        assert!(server["ratio"].is_null(), "{report}");
        assert!(measurements(server).is_empty(), "{report}");
    }
}
