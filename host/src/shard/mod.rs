//! The single writer of a shard, as pure state machines: `step(event) -> effects`.
//!
//! No runtime, clock or randomness lives here (a test of the code's boundaries holds that), so that the simulation
//! runs exactly this code. `commit` drives it on a real store; `entry` is the journal's format.

mod draft;
pub mod entry;
pub mod keys;
pub mod marks;
pub mod op;
pub mod partials;
pub mod producer;
pub mod replay;
pub mod routes;
pub mod takeover;
#[cfg(test)]
mod tests;
pub mod time;
pub mod writer;

pub use entry::Entry;
pub use op::{Kind, Op, Origin, Outcome, Refusal};
pub use partials::{Partial, Partials};
pub use replay::Replay;
pub use routes::Routes;
pub use time::{JournalTime, Window};
pub use writer::Writer;
