//! Policies: WebAssembly components that choose shards and make totals, and the walls around them.
//!
//! [`Engine`] loads components ([`Revision`]), binds them to a rule's config ([`Binding`]) and publishes the view. A
//! serving thread has a [`Local`] with its own instances and asks it without a lock; policies that wait for something,
//! or are too large for every thread, run on a small pool ([`select_pooled`] and its like). A policy can be wrong, slow
//! or hostile: every question is answered, by the native choice if need be, and the fault is counted.
//!
//! No other module names wasmtime. Start with `engine`, then `local` (the way of a call), `limits` (the walls),
//! `breaker` and `stats`; `admission` says what may be loaded and bound, `trust` from whom, `canary` what is rolled back.
//! `recording` keeps real decisions and runs them again. `imports` has one file per interface of `wit/`. Which rule uses which binding is not decided here.

pub mod admission;
pub mod binding;
pub mod breaker;
pub mod builtin;
mod cache;
pub mod canary;
pub mod catalog;
pub mod engine;
pub mod fault;
pub mod imports;
mod instance;
pub mod limits;
pub mod local;
mod places;
mod pool;
pub mod recording;
pub mod revision;
mod scan;
mod share;
mod state;
pub mod stats;
mod trial;
pub mod trust;
mod vectors;
pub mod view;

pub use admission::{Refusal, Report, admit};
pub use binding::Binding;
pub use catalog::Catalog;
pub use engine::{Engine, Settings};
pub use fault::{Fault, Kind};
pub use imports::{Backend, Grants, StoreBackend};
pub use limits::Limits;
pub use local::Local;
pub use pool::{combine_pooled, plan_pooled, select_pooled};
pub use recording::Recording;
pub use revision::{Awake, Options, Placement, Rejected, Revision, World, digest};
pub use trust::Trust;
pub use view::{Chosen, Combined, Partial, Plan, Planned, Read, Select, ShardInfo, View};
