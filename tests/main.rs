//! Most integration tests, as one binary: cargo runs test binaries one after the other, so the waits
//! of tests overlap only within a binary.

mod common;

mod bench;
mod bench_comparison;
mod cli;
mod client;
mod conformance;
mod connection_limits;
mod documents;
mod drain;
mod echo;
mod faults;
mod haproxy;
mod hostile_clients;
mod idle_timeout;
mod interactive;
mod intermediaries;
mod junit;
mod kubernetes;
mod library;
mod links;
mod netcat;
mod other_servers;
mod output;
mod per_ip_limit;
mod pipe;
mod progress;
mod proxy;
mod resources;
mod shutdown;
mod slow_link;
mod soak;
mod syscall_errors;
mod systemd;

/// Without this, the tests of a file that is missing above would never run.
#[test]
fn every_test_file_is_a_module_or_a_binary() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    for entry in std::fs::read_dir(directory).expect("the directory of the tests can be read") {
        let path = entry.expect("the directory can be read").path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.expect("the names of test files are text");
        let is_module = include_str!("main.rs").contains(&format!("\nmod {name};\n"));
        let is_binary = include_str!("../Cargo.toml").contains(&format!("\nname = \"{name}\"\n"));
        assert!(is_module || is_binary || name == "main", "{name}");
    }
}
