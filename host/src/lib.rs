//! Quipu: a durable sharded counter service whose policies are WebAssembly components.
//!
//! Start with ARCHITECTURE.md; then `app` (how the parts are put together) and `node` (the way of one request).

pub mod counter;
pub mod limits;
pub mod shard;
pub mod store;
