//! The store of a single process: entries in a write-ahead log of our own ([`super::log`]), everything else in an LSM.
//!
//! All shards share the log, so a group commit is one synced write. A checkpoint moves partials, idempotency records and
//! marks to the LSM and raises the log's floor in the same batch. Nothing of a checkpointed counter stays in memory here,
//! but what the engine's small cache holds. The directory's lock makes this process the only writer; epochs still rise,
//! so that an entry of a writer from before a recovery is refused.
//!
//! Next: `directory` (lock and format), `journal` (entries in the log), `lsm`, `values` and `keys` (records).

mod directory;
mod journal;
mod keys;
mod lsm;
mod values;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use self::directory::Directory;
use self::journal::Journal;
use self::lsm::{Covered, Lsm};
use super::{Appended, Checkpoint, Error, Listed, Raised, RollupPart, Store, checked_key};
use crate::counter::Id;
use crate::limits;
use crate::shard::Entry;
use crate::shard::entry::KeyRecord;
use crate::shard::partials::Partial;

/// Room that the engine must find beside a checkpoint, for tables and compactions.
const FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;

/// A log filter that leaves the storage engine's own news out.
pub const ENGINE_LOG_FILTER: &str = "fjall=warn,lsm_tree=warn";

#[derive(Debug, Clone)]
pub struct Settings {
    /// Created when it is missing.
    pub dir: PathBuf,
    /// Fixed when the directory is created.
    pub shards: u32,
    /// Whole blocks of 4 KiB; [`limits::LOG_SEGMENT_BYTES`] but in tests.
    pub segment_bytes: u64,
}

impl Settings {
    pub fn new(dir: impl Into<PathBuf>, shards: u32) -> Self {
        Self { dir: dir.into(), shards, segment_bytes: limits::LOG_SEGMENT_BYTES }
    }
}

pub struct EmbeddedStore {
    settings: Settings,
    /// Held through recoveries, so that nobody else gets in between.
    directory: Directory,
    /// None while a recovery has not succeeded.
    open: RwLock<Option<Open>>,
    journal_bytes: AtomicU64,
}

/// What a recovery closes and opens again.
struct Open {
    journal: Mutex<Journal>,
    lsm: Lsm,
    /// Shards whose epoch was raised by opening, and not handed out yet. Held while records that rest on one another are
    /// written; never while the log is synced.
    fresh: Mutex<Vec<bool>>,
    broken: OnceLock<String>,
}

impl EmbeddedStore {
    /// Opens the directory and raises the epoch of every shard.
    ///
    /// `Refused` when it is in use, has a newer format or another number of shards, or cannot be read and written;
    /// `Damaged` when something of it is missing.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let directory = Directory::open(&settings.dir, settings.shards)?;
        let open = Open::new(&directory, &settings, false)?;
        let journal_bytes = AtomicU64::new(open.journal.lock().bytes());
        Ok(Self { settings, directory, open: RwLock::new(Some(open)), journal_bytes })
    }

    /// Runs `work` on the open store, and remembers when it breaks it.
    fn with<T>(&self, work: impl FnOnce(&Open) -> Result<T, Error>) -> Result<T, Error> {
        let open: RwLockReadGuard<'_, Option<Open>> = self.open.read();
        let open = open.as_ref().ok_or_else(|| Error::NotApplied("the store is not open".into()))?;
        if let Some(why) = open.broken.get() {
            return Err(Error::Broken(why.clone()));
        }
        let result = work(open);
        if let Err(Error::Broken(why)) = &result {
            let _ = open.broken.set(why.clone());
        }
        result
    }

    fn known(&self, shard: u32) -> Result<(), Error> {
        let count = self.settings.shards;
        if shard < count { Ok(()) } else { Err(Error::NotApplied(format!("there is no shard {shard}, only {count}"))) }
    }

    /// A checkpoint on a disk that is nearly full would break the engine halfway; refusing it leaves everything usable.
    fn room_for(&self, bytes: u64) -> Result<(), Error> {
        let dir = self.directory.path();
        let Ok(disk) = rustix::fs::statvfs(dir) else { return Ok(()) };
        let (free, needed) = (disk.f_bavail.saturating_mul(disk.f_frsize), bytes.saturating_mul(2) + FREE_BYTES_MIN);
        if free >= needed {
            return Ok(());
        }
        let (dir, free_mib, needed_mib) = (dir.display(), free >> 20, needed.div_ceil(1 << 20));
        Err(Error::NotApplied(format!("the disk of {dir} has {free_mib} MiB free, and {needed_mib} MiB are needed")))
    }
}

impl Open {
    fn new(directory: &Directory, settings: &Settings, after_failure: bool) -> Result<Self, Error> {
        let lsm = Lsm::open(&directory.lsm()).map_err(|why| not_opened(directory, &why))?;
        if after_failure {
            lsm.flush().map_err(|why| not_opened(directory, &why))?;
        }
        let shards = settings.shards;
        let covered: Vec<Covered> = (0..shards).map(|shard| lsm.covered(shard)).collect::<Result<_, _>>()?;
        let floor = lsm.floor()?.unwrap_or(1);
        let mut journal = Journal::open(&directory.log(), floor, settings.segment_bytes, &covered)?;
        for shard in 0..shards {
            journal.set_epoch(shard, lsm.epoch(shard)? + 1);
        }
        lsm.set_epochs((0..shards).map(|shard| (shard, journal.epoch(shard))))?;
        let (journal, fresh) = (Mutex::new(journal), Mutex::new(vec![true; shards as usize]));
        Ok(Self { journal, lsm, fresh, broken: OnceLock::new() })
    }

    fn raise(&self, shard: u32) -> Result<Raised, Error> {
        let mut fresh = self.fresh.lock();
        let mut epoch = self.journal.lock().epoch(shard);
        if !std::mem::take(&mut fresh[shard as usize]) {
            epoch += 1;
            self.lsm.set_epochs(std::iter::once((shard, epoch)))?;
            self.journal.lock().set_epoch(shard, epoch);
        }
        let Covered { seq, marks } = self.lsm.covered(shard)?;
        Ok(Raised { epoch, checkpoint_seq: seq, marks })
    }

    fn checkpoint(&self, mut checkpoints: Vec<Checkpoint>) -> Result<(), Error> {
        let _alone = self.fresh.lock();
        let floor = {
            let journal = self.journal.lock();
            checkpoints.retain(|checkpoint| {
                let (shard, seq) = (checkpoint.shard, checkpoint.seq);
                checkpoint.epoch == journal.epoch(shard) && seq >= journal.covered(shard)
            });
            journal.floor_with(checkpoints.iter().map(|checkpoint| (checkpoint.shard, checkpoint.seq)))
        };
        if checkpoints.is_empty() {
            return Ok(());
        }
        self.lsm.checkpoint(&checkpoints, floor)?;
        let mut journal = self.journal.lock();
        for checkpoint in &checkpoints {
            journal.cover(checkpoint.shard, checkpoint.seq);
        }
        journal.raise_floor(floor);
        Ok(())
    }
}

/// Opening may fail for reasons that pass, such as a full disk.
fn not_opened(directory: &Directory, why: &fjall::Error) -> Error {
    let dir = directory.lsm();
    let dir = dir.display();
    match why {
        fjall::Error::Io(why) | fjall::Error::Storage(fjall::LsmError::Io(why)) => {
            Error::NotApplied(format!("the records in {dir} cannot be opened: {why}"))
        }
        fjall::Error::Poisoned => Error::NotApplied(format!("the records in {dir} cannot be written")),
        fjall::Error::Locked => {
            Error::Refused(format!("the records in {dir} are in use by another process: stop that one"))
        }
        why => Error::Damaged(format!("the records in {dir}: {why}")),
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn raise(&self, shard: u32) -> Result<Raised, Error> {
        self.known(shard)?;
        self.with(|open| open.raise(shard))
    }

    async fn standing(&self, shard: u32) -> Result<Raised, Error> {
        self.known(shard)?;
        self.with(|open| {
            let Covered { seq, marks } = open.lsm.covered(shard)?;
            Ok(Raised { epoch: open.journal.lock().epoch(shard), checkpoint_seq: seq, marks })
        })
    }

    /// Its shards are this process's until it ends.
    fn release(&self, _: u32, _: u64) {}

    async fn read(&self, shard: u32, after_seq: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        self.known(shard)?;
        self.with(|open| open.journal.lock().read(shard, after_seq, bytes_max))
    }

    async fn append(&self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error> {
        self.with(|open| {
            let mut journal = open.journal.lock();
            let results = journal.append(group)?;
            self.journal_bytes.store(journal.bytes(), Ordering::Relaxed);
            Ok(results)
        })
    }

    /// The lock on the directory keeps every other process away.
    async fn confirm(&self, shard: u32, epoch: u64) -> Result<bool, Error> {
        self.known(shard)?;
        self.with(|open| Ok(open.journal.lock().epoch(shard) == epoch))
    }

    async fn checkpoint(&self, checkpoints: Vec<Checkpoint>) -> Result<(), Error> {
        for checkpoint in &checkpoints {
            self.known(checkpoint.shard)?;
        }
        self.room_for(checkpoints.iter().map(Checkpoint::bytes).sum())?;
        self.with(|open| {
            open.checkpoint(checkpoints)?;
            self.journal_bytes.store(open.journal.lock().bytes(), Ordering::Relaxed);
            Ok(())
        })
    }

    async fn load(&self, shard: u32, counter: &Id) -> Result<Option<Partial>, Error> {
        self.with(|open| open.lsm.partial(shard, counter))
    }

    async fn load_key(&self, shard: u32, counter: &Id, key: &str) -> Result<Option<KeyRecord>, Error> {
        self.with(|open| open.lsm.record(shard, counter, key))
    }

    async fn expire_keys(&self, before_ms: u64, limit: usize) -> Result<usize, Error> {
        self.with(|open| {
            let _alone = open.fresh.lock();
            open.lsm.expire(before_ms, limit)
        })
    }

    async fn list(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Result<Vec<Listed>, Error> {
        self.with(|open| open.lsm.list(prefix, after, limit))
    }

    async fn put_rollup(&self, _: &Id, _: &[RollupPart]) -> Result<(), Error> {
        Ok(())
    }

    async fn rollup(&self, _: &Id) -> Result<Vec<RollupPart>, Error> {
        Ok(Vec::new())
    }

    async fn get(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        checked_key(space, key)?;
        self.with(|open| open.lsm.value(space, key))
    }

    async fn put(&self, space: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        checked_key(space, key)?;
        let (bytes, max) = (value.len(), limits::VALUE_BYTES_MAX);
        if bytes > max {
            return Err(Error::NotApplied(format!("a value of {bytes} bytes; at most {max} are stored")));
        }
        self.room_for(bytes as u64)?;
        self.with(|open| {
            let _alone = open.fresh.lock();
            open.lsm.set_value(space, key, Some(value))
        })
    }

    async fn delete(&self, space: &str, key: &str) -> Result<(), Error> {
        checked_key(space, key)?;
        self.with(|open| {
            let _alone = open.fresh.lock();
            open.lsm.set_value(space, key, None)
        })
    }

    async fn scan(&self, space: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        checked_key(space, prefix)?;
        self.with(|open| open.lsm.scan(space, prefix, limit))
    }

    async fn recover(&self) -> Result<(), Error> {
        let mut open = self.open.write();
        // Closed before it is opened again: the engine locks its files too.
        drop(open.take());
        let fresh = Open::new(&self.directory, &self.settings, true)?;
        self.journal_bytes.store(fresh.journal.lock().bytes(), Ordering::Relaxed);
        *open = Some(fresh);
        Ok(())
    }

    fn journal_bytes(&self) -> u64 {
        self.journal_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
