//! Sockets and the threads that serve them, whatever is spoken there: `http` or `resp`.
//!
//! `server` accepts and deals connections out, `activity` knows what each of them is doing.

mod activity;
pub mod server;

pub use activity::Activity;
