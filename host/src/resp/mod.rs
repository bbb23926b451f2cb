//! The Redis front: counters by the commands that clients of Redis know, over RESP2 or RESP3. It parses and answers;
//! `node` decides.
//!
//! `wire` takes commands off the bytes that came and writes replies, `command` is the table of what can be asked and how
//! it is done, `connection` keeps many of them under way and their replies in order. docs/redis.md is for users.

mod command;
mod connection;
mod wire;

pub use connection::serve;
