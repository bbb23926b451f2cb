//! What is asked of a shard, and what can become of it.

use crate::counter::{Bounds, Id};

/// What an operation does to one partial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Adds, creating the partial when there is none.
    Add { amount: i64, bounds: Bounds },
    /// Makes the counter exist with value 0 and this name. Sent to the home shard only; refused when it exists.
    Create { name: Option<Box<str>> },
    /// Removes the partial; a later addition starts from 0. Removing a missing one succeeds.
    Remove,
    /// Nothing: the place of a peer's operation whose caller was told `unknown` before it was sent. Its own outcome is
    /// `Unknown` too, which a late copy of the operation also gets.
    Skip,
}

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A caller in this process; the ticket means something to the driver only.
    Local { ticket: u64, index: u32 },
    /// Nobody: a relaxed operation, answered when it was queued.
    Relaxed,
    /// Another node. `seq` is dense per (producer, shard), from 1; the producer has every answer up to and with
    /// `acked`, so that those outcomes need not be kept. `producer` is drawn at random and above
    /// [`super::marks::RESERVED`]. `as_of_ms` is a journal time that the shard had reached before the operation was first
    /// sent; 0 when the producer knows none.
    Peer { producer: u128, seq: u64, acked: u64, as_of_ms: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub shard: u32,
    pub counter: Id,
    /// [`crate::counter::key_hash`] of `counter`.
    pub hash: u64,
    pub kind: Kind,
    /// Recognises a repetition within the window. Scoped to the counter.
    pub key: Option<Box<str>>,
    pub origin: Origin,
    /// When the operation was received, in milliseconds since 1970, by the wall clock of the node that did: the time of
    /// creation that people read. The same however often the operation is sent again.
    pub at_ms: u64,
}

/// Why a shard changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Arithmetic(#[from] crate::counter::Refused),
    #[error("a counter with this id exists")]
    Exists,
    #[error("this idempotency key was used on this counter with another kind or amount")]
    KeyReused,
    /// A peer's sequence left a gap, or an unknown producer began above 1: something of it is lost.
    #[error("an operation before this one is missing")]
    Gap,
    /// The shard knows no such producer, and may have forgotten it after it had applied this very operation. The producer
    /// begins anew, with operations as of `time_ms` of journal time.
    #[error("the shard may have forgotten this producer")]
    Forgotten { time_ms: u64 },
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Journaled. `value` is this shard's partial right after; `replayed` tells that an earlier attempt did it.
    Applied {
        value: i64,
        replayed: bool,
    },
    Refused(Refusal),
    /// Never written: the shard has no writer here now, or the store no room. Safe to send again; a peer's sequence is
    /// not used up.
    NotApplied,
    /// The write may or may not be in the journal.
    Unknown,
}
