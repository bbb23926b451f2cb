//! The store of a cluster: Cassandra or ScyllaDB, reached through the `scylla` driver, which nothing else names.
//!
//! Every shard has a journal of segments, one partition each, to which only the owner of the highest epoch can append:
//! each append is a conditional write. Several processes may use it at once; what makes a write of an old owner fail is
//! in the store, not in a clock. A failing network is never `Broken` here: an append is `Unknown`, and everything else
//! may be done again.
//!
//! It deliberately has no cache, and no queue: callers bound what is under way. Deletions that fail (old marks, chunks,
//! segments that a crash left unlinked) cost room alone.
//!
//! Next: `schema` (tables), `journal` (appends, rotation), `takeover`, `checkpoint`, `partials`, `values`.

mod checkpoint;
mod connect;
mod cql;
mod journal;
mod owned;
mod partials;
mod rollups;
mod schema;
mod statements;
mod takeover;
mod values;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;
use scylla::statement::prepared::PreparedStatement;

pub use self::connect::{Scope, Settings, Tls};
use self::cql::Cql;
use self::owned::Owned;
pub use self::schema::{Initialised, init};
use self::statements::Statements;
use super::{Appended, Checkpoint, Error, Listed, Raised, RollupPart, Store, checked_key};
use crate::counter::Id;
use crate::limits;
use crate::shard::Entry;
use crate::shard::entry::KeyRecord;
use crate::shard::partials::Partial;

/// The driver's own news, unless they are asked for; that it finds nobody is told by who connects.
pub const DRIVER_LOG_FILTER: &str = "scylla=error,scylla::cluster::metadata=off";

pub struct CassandraStore {
    settings: Settings,
    cql: Cql,
    statements: Statements,
    /// A session of the thread that appends, and its statement; until it is there, the other one is used.
    appending: OnceLock<(Cql, PreparedStatement)>,
    /// Shards that this process took over last; another may have come since.
    owned: Mutex<HashMap<u32, Owned>>,
    #[cfg(test)]
    faults: tests::Faults,
}

/// Moments of a work in several writes at which a test stops it, as a crash would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    EpochRaised,
    SegmentRaised,
    SegmentCreated,
    SegmentSealed,
    MarksWritten,
    PositionMoved,
    SegmentDrops,
}

/// Connects and checks that everything is as it must be. `Refused`, with one sentence for the operator, when it is not.
pub async fn open(settings: Settings) -> Result<Arc<CassandraStore>, Error> {
    settings.checked()?;
    let cql = connect::connect(&settings).await?;
    schema::check(&cql, &settings).await?;
    let statements = Statements::prepare(&cql.session, settings.scope).await?;
    Ok(Arc::new(CassandraStore {
        settings,
        cql,
        statements,
        appending: OnceLock::new(),
        owned: Mutex::default(),
        #[cfg(test)]
        faults: tests::Faults::default(),
    }))
}

impl CassandraStore {
    fn known(&self, shard: u32) -> Result<(), Error> {
        let count = self.settings.shards;
        if shard < count { Ok(()) } else { Err(Error::NotApplied(format!("there is no shard {shard}, only {count}"))) }
    }

    fn owned(&self, shard: u32) -> Option<Owned> {
        self.owned.lock().get(&shard).cloned()
    }

    /// Changes what is known of a shard, unless another takeover replaced it.
    fn change(&self, shard: u32, epoch: u64, change: impl FnOnce(&mut Owned)) {
        if let Some(owned) = self.owned.lock().get_mut(&shard).filter(|owned| owned.epoch == epoch) {
            change(owned);
        }
    }

    fn update(&self, entry: &Entry, change: impl FnOnce(&mut Owned)) {
        self.change(entry.shard, entry.epoch, change);
    }

    /// Another owner was met.
    fn lost(&self, entry: &Entry) {
        self.release(entry.shard, entry.epoch);
    }

    fn lapse(&self, shard: u32) {
        if let Some(owned) = self.owned.lock().get_mut(&shard) {
            owned.lapsed = true;
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests stop here")]
    fn reached(&self, _: Step) -> Result<(), Error> {
        Ok(())
    }

    #[cfg(test)]
    fn reached(&self, step: Step) -> Result<(), Error> {
        self.faults.reached(step)
    }
}

#[async_trait]
impl Store for CassandraStore {
    async fn raise(&self, shard: u32) -> Result<Raised, Error> {
        self.known(shard)?;
        self.take_over(shard).await
    }

    async fn standing(&self, shard: u32) -> Result<Raised, Error> {
        self.known(shard)?;
        let row = self.shard_row(shard).await?;
        let marks = self.load_marks(shard, &row).await?;
        Ok(Raised { epoch: row.epoch, checkpoint_seq: row.position, marks })
    }

    fn release(&self, shard: u32, epoch: u64) {
        let mut owned = self.owned.lock();
        if owned.get(&shard).is_some_and(|owned| owned.epoch == epoch) {
            owned.remove(&shard);
        }
    }

    async fn read(&self, shard: u32, after_seq: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        self.known(shard)?;
        self.read_entries(shard, after_seq, bytes_max).await
    }

    async fn attend(&self) -> Result<(), Error> {
        let cql = connect::connect(&self.settings).await?;
        schema::use_keyspace(&cql, &self.settings.cluster).await?;
        let append = statements::append(&cql.session, self.settings.scope).await?;
        // A second caller has none of its own.
        let _ = self.appending.set((cql, append));
        Ok(())
    }

    /// The entries are written at the same time, each on its own.
    async fn append(&self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error> {
        for (at, entry) in group.iter().enumerate() {
            self.known(entry.shard)?;
            if group[..at].iter().any(|before| before.shard == entry.shard) {
                return Err(Error::NotApplied(format!("two entries of shard {} in one group", entry.shard)));
            }
        }
        let results = join_all(group.iter().map(|entry| self.append_one(entry))).await;
        if let Some(Err(why)) = results.iter().find(|_| results.iter().all(Result::is_err)) {
            return Err(Error::NotApplied(why.to_string()));
        }
        // Beside one that was sent, one that was not is unknown for the caller: it sends it again.
        Ok(results.into_iter().map(|result| result.unwrap_or(Appended::Unknown)).collect())
    }

    async fn confirm(&self, shard: u32, epoch: u64) -> Result<bool, Error> {
        self.known(shard)?;
        Ok(self.shard_row(shard).await?.epoch == epoch)
    }

    /// One after the other: each is whole or ignored, and those before one that fails are written. Writing all of them
    /// again changes nothing.
    async fn checkpoint(&self, checkpoints: Vec<Checkpoint>) -> Result<(), Error> {
        for checkpoint in &checkpoints {
            self.known(checkpoint.shard)?;
        }
        for checkpoint in &checkpoints {
            self.write_checkpoint(checkpoint).await?;
        }
        Ok(())
    }

    async fn load(&self, shard: u32, counter: &Id) -> Result<Option<Partial>, Error> {
        self.load_partial(shard, counter).await
    }

    async fn load_key(&self, shard: u32, counter: &Id, key: &str) -> Result<Option<KeyRecord>, Error> {
        self.load_record(shard, counter, key).await
    }

    /// The rows expire by themselves.
    async fn expire_keys(&self, _before_ms: u64, _limit: usize) -> Result<usize, Error> {
        Ok(0)
    }

    async fn list(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Result<Vec<Listed>, Error> {
        self.list_partials(prefix, after, limit).await
    }

    async fn put_rollup(&self, counter: &Id, parts: &[RollupPart]) -> Result<(), Error> {
        self.write_rollup(counter, parts).await
    }

    async fn rollup(&self, counter: &Id) -> Result<Vec<RollupPart>, Error> {
        self.read_rollup(counter).await
    }

    async fn get(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        checked_key(space, key)?;
        self.get_value(space, key).await
    }

    async fn put(&self, space: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        checked_key(space, key)?;
        let (bytes, max) = (value.len(), limits::VALUE_BYTES_MAX);
        if bytes > max {
            return Err(Error::NotApplied(format!("a value of {bytes} bytes; at most {max} are stored")));
        }
        self.put_value(space, key, value).await
    }

    async fn delete(&self, space: &str, key: &str) -> Result<(), Error> {
        checked_key(space, key)?;
        self.delete_value(space, key).await
    }

    async fn scan(&self, space: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        checked_key(space, prefix)?;
        self.scan_values(space, prefix, limit).await
    }

    /// The driver connects anew by itself: this asks whether it did. What was owned is not any more.
    async fn recover(&self) -> Result<(), Error> {
        for owned in self.owned.lock().values_mut() {
            owned.lapsed = true;
        }
        self.shard_row(0).await?;
        Ok(())
    }

    fn journal_bytes(&self) -> u64 {
        self.owned.lock().values().map(Owned::journal_bytes).sum()
    }
}

#[cfg(test)]
pub(super) mod tests;
