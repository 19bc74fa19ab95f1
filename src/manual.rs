//! The manual. The same pages are in `src/manual`, readable on GitHub.
//!
//! | page | content |
//! | --- | --- |
//! | [`install`] | releases, building, shell completions |
//! | [`client`] | `echo-client`: interactive, pipe, `test`, `bench`; `nc` and PowerShell |
//! | [`logs`] | each log line and close reason |
//! | [`operations`] | exposure, limits, timeouts, graceful shutdown, platforms |
//! | [`deploy`] | systemd, containers, PROXY protocol, HAProxy, Kubernetes |
//! | [`faults`] | a server that misbehaves on request, and the mistakes of clients that it brings to light |
//! | [`intermediaries`] | proxies and tunnels that pass the conformance suite, and those that lose bytes |
//! | [`performance`] | method, results, busy polling, failed experiments |
//! | [`internals`] | one connection beside the code, graceful shutdown step by step |
//! | [`troubleshooting`] | error messages and what to do |

/// Defines a module whose documentation is a page of the manual.
///
/// The pages link to each other by reference, such as `[logs]`. Each page ends with definitions that
/// suit GitHub. The definitions here come first, so they take precedence in rustdoc.
macro_rules! page {
    ($name:ident, $file:literal) => {
        pub mod $name {
            #![allow(clippy::doc_markdown, reason = "prose has names such as HAProxy")]
            #![doc = "[install]: super::install"]
            #![doc = "[client]: super::client"]
            #![doc = "[logs]: super::logs"]
            #![doc = "[operations]: super::operations"]
            #![doc = "[deploy]: super::deploy"]
            #![doc = "[faults]: super::faults"]
            #![doc = "[intermediaries]: super::intermediaries"]
            #![doc = "[performance]: super::performance"]
            #![doc = "[internals]: super::internals"]
            #![doc = "[troubleshooting]: super::troubleshooting"]
            #![doc = ""]
            #![doc = include_str!($file)]
        }
    };
}

page!(install, "manual/install.md");
page!(client, "manual/client.md");
page!(logs, "manual/logs.md");
page!(operations, "manual/operations.md");
page!(deploy, "manual/deploy.md");
page!(faults, "manual/faults.md");
page!(intermediaries, "manual/intermediaries.md");
page!(performance, "manual/performance.md");
page!(internals, "manual/internals.md");
page!(troubleshooting, "manual/troubleshooting.md");
