//! The store: journal, checkpoints, idempotency records and small values. The docs here are the durability contract,
//! and `conformance` holds every implementation to it.
//!
//! Whoever drives a store has at most one [`Store::append`] of a shard under way; everything else may run beside it. An implementation
//! may block its thread inside these futures when the work is a local disk's: the driver has a thread of its own, and
//! long work (checkpoints, lists, expiry) belongs on one that may block.
//!
//! Next: `embedded` for a single process, `cassandra` for a cluster, `memory` for tests.

pub mod cassandra;
#[cfg(test)]
pub(crate) mod conformance;
pub mod embedded;
mod log;
pub mod memory;

use std::sync::Arc;

use async_trait::async_trait;

use crate::counter::Id;
use crate::limits;
use crate::shard::entry::{Entry, KeyRecord, Mark};
use crate::shard::partials::Partial;

/// What a shard's new owner starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Above every epoch this shard ever had.
    pub epoch: u64,
    /// The checkpoint covers every entry up to this sequence; 0 when there is none.
    pub checkpoint_seq: u64,
    pub marks: Vec<Mark>,
}

/// What became of one entry of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Durable: it survives the loss of the process and, for the embedded store, of power.
    Applied,
    /// The store cannot tell. The identical entry may be sent again.
    Unknown,
    /// Not written now: the shard has another epoch, or another entry is at this sequence or missing before it.
    /// `applied` tells whether this very entry got in before; None when a checkpoint has covered its place since.
    Fenced { applied: Option<bool> },
}

/// Everything up to `seq` of one shard, for [`Store::checkpoint`].
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    pub shard: u32,
    pub epoch: u64,
    pub seq: u64,
    /// Partials changed since the checkpoint before. Values may be newer than `seq`, never older; all must be durable in
    /// the journal.
    pub partials: Vec<(Id, Partial)>,
    /// Idempotency records since the checkpoint before.
    pub keys: Vec<KeyRecord>,
    /// All marks.
    pub marks: Vec<Mark>,
}

impl Checkpoint {
    /// About how many bytes it takes in a store.
    pub fn bytes(&self) -> u64 {
        let partials =
            self.partials.iter().map(|(id, partial)| id.as_str().len() + partial.name.as_deref().map_or(0, str::len));
        let keys = self.keys.iter().map(|record| 2 * (record.counter.as_str().len() + record.key.len()));
        let marks = self.marks.iter().map(|mark| 16 * mark.outcomes.len());
        let (rows, bytes) =
            partials.chain(keys).chain(marks).fold((0, 0), |(rows, sum), bytes| (rows + 1, sum + bytes));
        (bytes + rows * 64) as u64
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was written: there was no room, or the store is not open. Safe to try again.
    #[error("the store cannot write now: {0}")]
    NotApplied(String),
    /// A write or a sync failed: what it carried may or may not be durable. The store refuses everything until
    /// [`Store::recover`] has closed it, opened it again and read what is there.
    #[error("the store failed while writing: {0}")]
    Broken(String),
    /// What is on disk is not what was written. Serving it would show wrong totals.
    #[error("the data is damaged: {0}")]
    Damaged(String),
    /// Another process has it, its format is newer, or its number of shards is another. One sentence for the operator.
    #[error("{0}")]
    Refused(String),
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes this process the owner of `shard`: returns an epoch above all before, durably, after which no append under
    /// an older epoch can be applied. Every call raises it.
    async fn raise(&self, shard: u32) -> Result<Raised, Error>;

    /// What [`Self::raise`] would answer, without raising: `epoch` is the present one's. For whoever stands by.
    async fn standing(&self, shard: u32) -> Result<Raised, Error>;

    /// This process serves `shard` no more under `epoch`: what is remembered of that ownership is forgotten.
    fn release(&self, shard: u32, epoch: u64);

    /// Entries of `shard` after `seq`, in order, at most about `bytes_max` of them (at least one, if there is any).
    /// Includes everything that was ever answered `Applied`, unless a checkpoint covers it. What is read once is read
    /// always, until a checkpoint covers it.
    async fn read(&self, shard: u32, after_seq: u64, bytes_max: usize) -> Result<Vec<Entry>, Error>;

    /// Called once in the runtime of the thread that will append: a store behind a network makes its connections for that
    /// there, so that an answer wakes no other thread. An error leaves the store as it was, and appending works without.
    async fn attend(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Appends one entry each of several shards, in one durable write where the store can. Answers one result per entry,
    /// in order. `Err(NotApplied)`: none is written. `Err(Broken)`: each is unknown.
    ///
    /// An entry goes in if its epoch is the shard's and its sequence the next one. The identical entry (same shard, epoch,
    /// sequence and id) sent again is written once and answered `Applied`; a fenced entry keeps no other one out.
    async fn append(&self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error>;

    /// Whether `epoch` still is the shard's, at a moment after this was called. True: nothing that another owner was
    /// answered for can have come before that moment. Whoever serves an exact read asks, unless one of its appends that
    /// began after the read arrived was applied.
    async fn confirm(&self, shard: u32, epoch: u64) -> Result<bool, Error>;

    /// Writes checkpoints, all or none, durable when it answers; afterwards the journal up to there may be dropped. One
    /// is ignored if its shard's epoch is another by now, or a later checkpoint was written; the same one again changes
    /// nothing. `Err(NotApplied)`: nothing was written, and everything goes on. `Err(Broken)`: it may be durable or not.
    async fn checkpoint(&self, checkpoints: Vec<Checkpoint>) -> Result<(), Error>;

    /// What the last checkpoint holds of a counter.
    async fn load(&self, shard: u32, counter: &Id) -> Result<Option<Partial>, Error>;

    /// What the last checkpoint holds of an idempotency key.
    async fn load_key(&self, shard: u32, counter: &Id, key: &str) -> Result<Option<KeyRecord>, Error>;

    /// Drops checkpointed idempotency records of all shards from before `before_ms` (see [`KeyRecord::kept_by_ms`]), at most
    /// `limit`. Returns how many; fewer than `limit` means that none is left. Not durable by itself: what comes back is
    /// dropped again. A store whose records expire by themselves, later than they are in force, does nothing and answers 0.
    async fn expire_keys(&self, before_ms: u64, limit: usize) -> Result<usize, Error>;

    /// Checkpointed counters with this prefix, after `after`, ascending in [`list_order`]: up to `limit` ids, each with its
    /// partials by shard. Removed partials are included.
    async fn list(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Result<Vec<Listed>, Error>;

    /// Keeps what was seen of a counter, by shard. Of two parts of one shard that with the higher sequence stays, in
    /// whatever order they are written, and of two with the same that confirmed later. Durable when it answers. A store of
    /// one process need not keep any, because the owner of every shard is there whenever it is.
    async fn put_rollup(&self, counter: &Id, parts: &[RollupPart]) -> Result<(), Error>;

    /// What is kept of it, by ascending shard.
    async fn rollup(&self, counter: &Id) -> Result<Vec<RollupPart>, Error>;

    /// A small value of the registry's or a plugin's: `space` keeps them apart. Reads see every answered write. Space and
    /// key have at most `VALUE_KEY_BYTES_MAX` bytes together, a value `VALUE_BYTES_MAX`.
    async fn get(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Durable when it answers.
    async fn put(&self, space: &str, key: &str, value: &[u8]) -> Result<(), Error>;

    /// Durable when it answers. Removing what is not there is no error.
    async fn delete(&self, space: &str, key: &str) -> Result<(), Error>;

    /// Values of a space whose key starts with `prefix`, in key order, at most `limit`.
    async fn scan(&self, space: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// After `Broken`, or when the store is not open: closes, opens again, verifies. Then every shard must be raised and
    /// read anew; no append under an epoch from before is applied. When it fails, the store is not open, and it may be
    /// called again.
    async fn recover(&self) -> Result<(), Error>;

    /// Bytes of journal that no checkpoint covers. The driver takes a checkpoint when they are many.
    fn journal_bytes(&self) -> u64;
}

/// What was seen of a counter on one shard, for totals that may be old. Nothing else rests on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollupPart {
    pub shard: u32,
    /// Sequence of the entry that last changed it; 0 when the counter never was on this shard.
    pub seq: u64,
    pub value: i64,
    /// False: the counter is not there, or not any more.
    pub exists: bool,
    /// When the shard's owner confirmed it, in milliseconds since 1970.
    pub at_ms: u64,
}

/// One counter of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: Id,
    pub partials: Vec<(u32, Partial)>,
}

/// The order in which every store lists ids: that of their bytes, a longer id before its own prefix (a terminator of
/// 0xFF, which UTF-8 never has, closes each).
pub fn list_order(a: &str, b: &str) -> std::cmp::Ordering {
    a.bytes().chain([0xFF]).cmp(b.bytes().chain([0xFF]))
}

/// Refuses keys of small values that are longer than a store takes.
fn checked_key(space: &str, key: &str) -> Result<(), Error> {
    let (bytes, max) = (space.len() + key.len(), limits::VALUE_KEY_BYTES_MAX);
    if bytes <= max {
        Ok(())
    } else {
        Err(Error::NotApplied(format!("a key of {bytes} bytes; at most {max} are stored")))
    }
}
