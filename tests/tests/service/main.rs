//! One node over its real interfaces: what clients, operators and authors of policies meet.
//!
//! One program for all of it, so that it is linked once. A test that must not share the machine is in `measured`.

mod admin;
mod authors;
mod batch;
mod bounds;
mod client;
mod clocks;
mod compat_first;
mod compat_second;
mod counters;
mod disk;
mod durability;
mod errors;
mod formats;
mod fuzz;
mod http2;
mod idempotency;
mod lifecycle;
mod panics;
mod policies;
mod power;
mod recordings;
mod resp;
mod rules;
mod uploads;
mod watch;
