//! What a counter is, without any machinery: ids, candidates, rules and arithmetic.
//!
//! Pure code: no runtime, no store, no clock. `shard` builds the single writer on it, `node` the way of a request.

pub mod arithmetic;
pub mod candidates;
pub mod id;
pub mod rule;

pub use arithmetic::{Bounds, Refused};
pub use candidates::{Candidates, candidates, key_hash};
pub use id::Id;
pub use rule::{Rule, Rules};
