//! Recordings: real decisions of a node, as text that `quipu plugin replay` runs again.
//!
//! A policy's answer follows from its component, its config, the seed of its random numbers, everything it was asked
//! since its instance was made, and what the host answered it (clocks, registry, storage, CPU). A recording holds all of
//! that, so the instances of a recorded rule are made anew when it begins: their state may vanish at any call anyway.
//! Calls that missed their deadline on the pool are left out, and so are the answers of the native choice.
//!
//! `format` is the text, `recorder` takes the lines of one recording within its limits, `tape` stands between one
//! instance and the host, `replay` runs a recording again. Which rules are recorded, and how the lines travel, is not
//! decided here.

pub mod format;
pub mod recorder;
pub mod replay;
pub(super) mod tape;

pub use recorder::{Bounds, Busy, Recording};
