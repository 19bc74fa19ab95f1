//! What the server takes from the system: memory for a client, CPU time while it is idle. Only Linux
//! lets a test measure that from outside.
#![cfg(target_os = "linux")]

use std::thread;
use std::time::Duration;

use crate::common::{
    Server, cpu_time, exchange, exchange_all, fill, for_each_at_once, noise, number_after,
    run_at_once, wait_until,
};

#[test]
fn client_that_never_reads_costs_the_server_one_buffer() {
    let server = Server::start(&[]);
    exchange(&server.connect(), &noise(200_000, 8));
    let before = resident_kib(&server);
    let clients = server.connect_many(4);
    for_each_at_once(&clients, |client| drop(fill(client)));
    let each = resident_kib(&server).saturating_sub(before) / 4;
    // A thread, a buffer of 64 KiB and what the allocator keeps. Each client has sent megabytes.
    assert!(each < 256, "{each} KiB for each client");
}

/// Returns how much memory the server uses.
fn resident_kib(server: &Server) -> u64 {
    // This file is exact. `status` lacks what each CPU has not added yet.
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", server.child.id()));
    let maps = maps.expect("the server runs");
    number_after("Rss:", &maps).expect("Linux shows it")
}

/// Takes two seconds: in the first one, the server may still be busy.
#[test]
fn idle_server_does_not_wake_up() {
    run_at_once(&[
        server_with_idle_clients_does_not_wake_up,
        server_that_busy_polled_does_not_wake_up_once_idle,
    ]);
}

fn server_with_idle_clients_does_not_wake_up() {
    let server = Server::start(&["--idle-timeout", "1h"]);
    let clients = server.connect_many(100);
    exchange_all(&clients, b"hello");
    wait_until_idle(&server);
}

fn server_that_busy_polled_does_not_wake_up_once_idle() {
    let server = Server::start(&["--busy-poll", "10ms"]);
    let client = server.connect();
    for _ in 0..2000 {
        exchange(&client, b"hello");
    }
    wait_until_idle(&server);
}

/// Waits for a second in which no thread of the server wakes up or uses CPU time.
fn wait_until_idle(server: &Server) {
    wait_until("no thread of the server wakes up", || {
        let before = (sleeps(server), cpu_time(&server.child));
        thread::sleep(Duration::from_secs(1));
        (sleeps(server), cpu_time(&server.child)) == before
    });
}

/// Returns how often the server's threads have blocked so far.
fn sleeps(server: &Server) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id()));
    let tasks = tasks.expect("the server runs").filter_map(Result::ok);
    let statuses =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    statuses
        .filter_map(|status| number_after("voluntary_ctxt_switches:", &status))
        .sum()
}
