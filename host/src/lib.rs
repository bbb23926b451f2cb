//! Quipu: a durable sharded counter service whose policies are WebAssembly components.
//!
//! Start with ARCHITECTURE.md; then `app` (how the parts are put together) and `node` (the way of one request).

pub mod app;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod commit;
pub mod counter;
pub mod cpu;
pub mod error;
pub mod front;
pub mod http;
pub mod limits;
pub mod node;
pub mod panics;
pub mod peer;
pub mod policy;
pub mod registry;
pub mod repeated;
pub mod resp;
pub mod settings;
pub mod shard;
pub mod store;
