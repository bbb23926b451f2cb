//! The harness of the black-box tests: it starts the real binary, talks to it over real sockets, and kills it.
//!
//! `server` starts and ends a node, `cluster` several of them on the `services`, `http` is a small HTTP/1.1 client that can
//! also misbehave, `load` drives many connections at once and `traffic` those of a whole cluster, `components` are
//! what is uploaded, `metrics` reads
//! `/metrics`, `clock` sets wall clocks, `volume` mounts small file systems, `network` has links that can be cut. Nothing here knows how the server works inside: the tests in `tests/`
//! are written against the contract.

pub mod clock;
pub mod cluster;
pub mod components;
pub mod http;
pub mod load;
pub mod metrics;
pub mod network;
pub mod server;
pub mod services;
pub mod traffic;
pub mod volume;

use std::time::{Duration, Instant};

pub use cluster::Cluster;
pub use http::{Answer, Client, encode};
pub use server::{Launch, Server};
pub use traffic::{Plan, Traffic};

/// What a condition may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives a value, and panics with `what` when it does not within `deadline`.
pub fn within<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(5);
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::park_timeout(PAUSE);
    }
}

/// As [`within`], with the usual patience and a yes or no.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(PATIENCE, what, || condition().then_some(()));
}
