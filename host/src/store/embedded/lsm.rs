//! The LSM: everything but the log. One keyspace per kind of record, each with its own encode and decode.
//!
//! Deliberately no cleverness here: what must be atomic is one batch, what must be durable is synced before it returns.
//! Every record is shorter than a block; `values` says why.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::super::{Checkpoint, Error, Listed};
use super::keys;
use super::values::Values;
use crate::counter::Id;
use crate::shard::entry::{KeyRecord, Mark};
use crate::shard::partials::Partial;

/// Blocks read from disk that stay in memory.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Written records of one keyspace in memory before they go to a table. The large ones come with checkpoints.
const WRITE_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
/// The same of rules and plugins: written now and then, and read from memory elsewhere.
const VALUES_BUFFER_BYTES: u64 = 256 * 1024;
/// The engine's own journal: what is not in a table yet.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Below what makes the engine stop writers: four sealed buffers, twenty tables in level 0.
const SEALED_BUFFERS_MAX: usize = 2;
const TABLES_UNSORTED_MAX: usize = 12;
const WAIT: Duration = Duration::from_millis(1);

pub struct Lsm {
    database: Database,
    /// [`Partial`]s by id and shard.
    partials: Keyspace,
    /// [`KeyRecord`]s by shard, counter and key.
    records: Keyspace,
    /// Keys of `records` by time.
    expiry: Keyspace,
    /// Epochs and [`Covered`] by shard, and the log's floor.
    state: Keyspace,
    values: Values,
}

/// How far a shard's checkpoint goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Covered {
    pub seq: u64,
    pub marks: Vec<Mark>,
}

const FLOOR: &[u8] = b"floor";

fn epoch_key(shard: u32) -> Vec<u8> {
    [b"epoch", &shard.to_be_bytes()[..]].concat()
}

fn covered_key(shard: u32) -> Vec<u8> {
    [b"covered", &shard.to_be_bytes()[..]].concat()
}

impl Lsm {
    pub fn open(dir: &Path) -> Result<Self, fjall::Error> {
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(1)
            .open()?;
        let with =
            |buffer, name| database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(buffer));
        let keyspace = |name| with(WRITE_BUFFER_BYTES, name);
        let (partials, records, expiry) = (keyspace("partials")?, keyspace("records")?, keyspace("expiry")?);
        let values = |name| with(VALUES_BUFFER_BYTES, name);
        let (state, values) = (keyspace("state")?, Values::new(values("values")?, values("pieces")?));
        // The engine makes the names inside a keyspace durable, but not that of a new keyspace.
        File::open(dir.join("keyspaces"))?.sync_all()?;
        Ok(Self { database, partials, records, expiry, state, values })
    }

    /// Writes everything that only the engine's journal holds to tables. After a failed sync, what the journal shows may
    /// not be on disk.
    pub fn flush(&self) -> Result<(), fjall::Error> {
        for keyspace in self.keyspaces() {
            keyspace.rotate_memtable()?;
        }
        self.wait_until(|keyspace| keyspace.sealed_memtable_count() == 0)
    }

    fn keyspaces(&self) -> impl Iterator<Item = &Keyspace> {
        [&self.partials, &self.records, &self.expiry, &self.state].into_iter().chain(self.values.keyspaces())
    }

    /// Waits for the engine's background work. The engine's own waits never end when that work has failed; this one does.
    fn wait_until(&self, reached: impl Fn(&Keyspace) -> bool) -> Result<(), fjall::Error> {
        while !self.keyspaces().all(&reached) {
            // Writes nothing here, and fails once the engine has failed.
            self.database.persist(PersistMode::Buffer)?;
            std::thread::sleep(WAIT);
        }
        Ok(())
    }

    /// Holds a large batch back until the engine can take it without a wait of its own.
    fn pace(&self) -> Result<(), Error> {
        let keeps_up = |keyspace: &Keyspace| {
            keyspace.sealed_memtable_count() <= SEALED_BUFFERS_MAX && keyspace.l0_table_count() <= TABLES_UNSORTED_MAX
        };
        self.wait_until(keeps_up).map_err(broken)
    }

    fn synced(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncAll))
    }

    pub fn floor(&self) -> Result<Option<u64>, Error> {
        read(&self.state, FLOOR, "the floor of the log", decode_u64)
    }

    pub fn epoch(&self, shard: u32) -> Result<u64, Error> {
        Ok(read(&self.state, &epoch_key(shard), "an epoch", decode_u64)?.unwrap_or(0))
    }

    pub fn covered(&self, shard: u32) -> Result<Covered, Error> {
        Ok(read(&self.state, &covered_key(shard), "a checkpoint", Covered::decode)?.unwrap_or_default())
    }

    /// Makes these epochs durable, all at once.
    pub fn set_epochs(&self, epochs: impl Iterator<Item = (u32, u64)>) -> Result<(), Error> {
        let mut batch = self.synced();
        for (shard, epoch) in epochs {
            batch.insert(&self.state, epoch_key(shard), epoch.to_le_bytes());
        }
        batch.commit().map_err(broken)
    }

    /// Makes checkpoints and the floor that they allow durable, all at once.
    pub fn checkpoint(&self, checkpoints: &[Checkpoint], floor: u64) -> Result<(), Error> {
        self.pace()?;
        let mut batch = self.synced();
        for checkpoint in checkpoints {
            let shard = checkpoint.shard;
            for (id, partial) in &checkpoint.partials {
                batch.insert(&self.partials, keys::partial(id, shard), encoded(|out| partial.encode(out)));
            }
            for record in &checkpoint.keys {
                let key = keys::record(shard, &record.counter, &record.key);
                batch.insert(&self.expiry, keys::expiry(record.kept_by_ms(), &key), []);
                batch.insert(&self.records, key, encoded(|out| record.encode(out)));
            }
            batch.insert(&self.state, covered_key(shard), Covered::encode(checkpoint.seq, &checkpoint.marks));
        }
        batch.insert(&self.state, FLOOR, floor.to_le_bytes());
        batch.commit().map_err(broken)
    }

    pub fn partial(&self, shard: u32, id: &Id) -> Result<Option<Partial>, Error> {
        read(&self.partials, &keys::partial(id, shard), "a partial", |bytes| Partial::decode(bytes).ok())
    }

    pub fn record(&self, shard: u32, counter: &Id, key: &str) -> Result<Option<KeyRecord>, Error> {
        read(&self.records, &keys::record(shard, counter, key), "an idempotency record", decode_record)
    }

    pub fn list(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Result<Vec<Listed>, Error> {
        let mut listed: Vec<Listed> = Vec::new();
        for found in self.partials.range(keys::partials(prefix, after)) {
            let (key, value) = found.into_inner().map_err(unreadable)?;
            let parsed = keys::parse_partial(&key).zip(Partial::decode(&value).ok());
            let ((id, shard), partial) = parsed.ok_or_else(|| damaged("a partial"))?;
            let count = listed.len();
            match listed.last_mut() {
                Some(last) if last.id == id => last.partials.push((shard, partial)),
                _ if count == limit => break,
                _ => listed.push(Listed { id, partials: vec![(shard, partial)] }),
            }
        }
        Ok(listed)
    }

    /// Drops records from before `before_ms`. Not synced: what comes back is dropped again.
    pub fn expire(&self, before_ms: u64, limit: usize) -> Result<usize, Error> {
        self.pace()?;
        let mut batch = self.database.batch();
        let mut dropped = 0;
        for found in self.expiry.range(..keys::expiry(before_ms, &[])) {
            if dropped == limit {
                break;
            }
            let key = found.key().map_err(unreadable)?;
            let (at_ms, record_key) = keys::parse_expiry(&key).ok_or_else(|| damaged("an expiry"))?;
            let record = read(&self.records, record_key, "an idempotency record", decode_record)?;
            // The same key may have been used again since.
            if record.is_some_and(|record| record.kept_by_ms() == at_ms) {
                batch.remove(&self.records, record_key);
                dropped += 1;
            }
            batch.remove(&self.expiry, key);
        }
        batch.commit().map_err(broken)?;
        Ok(dropped)
    }

    pub fn value(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.values.get(&self.database, space, key)
    }

    /// Puts or removes a value, durably. Nobody else may do so meanwhile.
    pub fn set_value(&self, space: &str, key: &str, value: Option<&[u8]>) -> Result<(), Error> {
        self.pace()?;
        self.values.set(self.synced(), space, key, value)
    }

    pub fn scan(&self, space: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.values.scan(&self.database, space, prefix, limit)
    }
}

impl Covered {
    /// `seq u64 · for each mark: bytes u32 · mark`, little-endian.
    fn encode(seq: u64, marks: &[Mark]) -> Vec<u8> {
        let mut out = seq.to_le_bytes().to_vec();
        for mark in marks {
            let mark = encoded(|out| mark.encode(out));
            out.extend_from_slice(&(mark.len() as u32).to_le_bytes());
            out.extend_from_slice(&mark);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (seq, mut rest) = bytes.split_first_chunk::<8>()?;
        let mut marks = Vec::new();
        while !rest.is_empty() {
            let (length, from) = rest.split_first_chunk::<4>()?;
            let (mark, behind) = from.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            marks.push(Mark::decode(mark).ok()?);
            rest = behind;
        }
        Some(Self { seq: u64::from_le_bytes(*seq), marks })
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

fn decode_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().map(u64::from_le_bytes).ok()
}

fn decode_record(bytes: &[u8]) -> Option<KeyRecord> {
    KeyRecord::decode(bytes).ok()
}

fn read<T>(
    from: &Keyspace,
    key: &[u8],
    what: &str,
    decode: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>, Error> {
    let found = from.get(key).map_err(unreadable)?;
    found.map(|bytes| decode(&bytes).ok_or_else(|| damaged(what))).transpose()
}

pub(super) fn damaged(what: &str) -> Error {
    Error::Damaged(format!("{what} is stored in a form that cannot be read"))
}

/// A failed write: the engine takes no more of them until it is opened again.
pub(super) fn broken(why: fjall::Error) -> Error {
    Error::Broken(format!("writing records: {why}"))
}

pub(super) fn unreadable(why: fjall::Error) -> Error {
    Error::Broken(format!("reading records: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Outcome;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_covers_a_shard_is_read_back(seq: u64, throughs: Vec<u64>) {
            let mark = |through| Mark {
                producer: u128::from(through) << 40,
                through,
                at_ms: through / 2,
                outcomes: vec![(through, Outcome::Applied { value: -1, replayed: false })],
            };
            let covered = Covered { seq, marks: throughs.into_iter().map(mark).collect() };
            prop_assert_eq!(Covered::decode(&Covered::encode(seq, &covered.marks)), Some(covered));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Covered::decode(&bytes);
        }
    }
}
