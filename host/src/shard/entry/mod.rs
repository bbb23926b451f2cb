//! The journal's format: one entry is one group commit of one shard.
//!
//! An entry holds the *absolute* partials of the counters it changes, together with everything that recognises a
//! repetition (producer marks, idempotency records), so that both become durable at once and replay is idempotent.
//!
//! How they become bytes: [`codec`].

mod codec;

pub use codec::Damaged;

use super::op::{Kind, Outcome};
use super::partials::Partial;
use crate::counter::Id;

/// The value of one counter after the entry. `partial.seq` is the entry's and not stored twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub counter: Id,
    pub hash: u64,
    pub partial: Partial,
}

/// What a keyed operation did, kept for the idempotency window. Only applied operations have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    pub counter: Id,
    pub key: Box<str>,
    pub action: Action,
    /// The shard's partial right after it.
    pub value: i64,
    /// When the operation was received, by the wall clock of the node that received it, in milliseconds since 1970: for
    /// people, never for ages.
    pub at_ms: u64,
    /// Journal time of its entry; None where that was of format 1.
    pub time_ms: Option<u64>,
}

/// What a key stands for: the same key with another action is a mistake of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Add(i64),
    Create,
    Remove,
    /// A peer's sequence whose caller gave up.
    Skip,
}

impl From<&Kind> for Action {
    fn from(kind: &Kind) -> Self {
        match kind {
            Kind::Add { amount, .. } => Self::Add(*amount),
            Kind::Create { .. } => Self::Create,
            Kind::Remove => Self::Remove,
            Kind::Skip => Self::Skip,
        }
    }
}

/// How far one producer's operations are applied on this shard, and the outcomes it may still ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub producer: u128,
    pub through: u64,
    /// Journal time of the last entry with one of its operations, and not below what any of them was sent as of; in format 1
    /// the newest receive time of its operations.
    pub at_ms: u64,
    /// Of sequences that the producer had not acknowledged, dense and ascending, the last being `through`.
    pub outcomes: Vec<(u64, Outcome)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub shard: u32,
    pub epoch: u64,
    /// Dense per shard, going on across epochs; the first is 1.
    pub seq: u64,
    /// Drawn by the writer: tells whether the entry at this sequence is the one that it sent.
    pub id: u64,
    /// Journal time, see [`super::time`], not below that of the entry before. None: the entry is of format 1.
    pub time_ms: Option<u64>,
    pub changes: Vec<Change>,
    pub keys: Vec<KeyRecord>,
    pub marks: Vec<Mark>,
}

impl Entry {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.keys.is_empty() && self.marks.is_empty()
    }
}

impl KeyRecord {
    /// The time by which a store keeps its records in order and drops them.
    pub fn kept_by_ms(&self) -> u64 {
        self.time_ms.unwrap_or(self.at_ms)
    }
}
