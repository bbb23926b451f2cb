//! Which node should own which shard, and how a node gets there.
//!
//! `assignment` is the map that every node computes alike; `ownership` decides what this node does next; both are pure.
//! `agent` carries that out on the registry and the shards of this node. Nothing here can make two writers of a shard: the
//! store fences that.

pub mod agent;
pub mod assignment;
pub mod ownership;
#[cfg(test)]
mod simulation;

pub use agent::{Agent, Claims, Shards};
pub use ownership::{Config, Effect, Event, Ownership};
