//! A store in memory, for unit tests and the simulation: the contract of [`super`] with faults on demand.
//!
//! A [`Disk`] is what would be on disk. Cloning one is cheap (shards are shared until they change), so a simulation can
//! keep it from any moment and start a new store from it, as after a crash.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Appended, Checkpoint, Error, Listed, Raised, RollupPart, Store, list_order};
use crate::counter::Id;
use crate::shard::Entry;
use crate::shard::entry::{KeyRecord, Mark};
use crate::shard::partials::Partial;

/// What the next append meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Written, and the answer lost.
    UnknownApplied,
    /// Lost before it was written.
    UnknownNotApplied,
    /// Refused for want of room; nothing is written.
    NotApplied,
    /// The write fails, and the store refuses everything until `recover`; `applied` tells what recovering will find.
    Broken { applied: bool },
}

/// Sorts as lists do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listing(Id);

impl PartialOrd for Listing {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Listing {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        list_order(self.0.as_str(), other.0.as_str())
    }
}

#[derive(Debug, Clone, Default)]
struct Shard {
    epoch: u64,
    covered: u64,
    marks: Vec<Mark>,
    /// Entries after `covered`.
    entries: VecDeque<Arc<Entry>>,
    partials: BTreeMap<Listing, Partial>,
    keys: BTreeMap<(Id, Box<str>), KeyRecord>,
}

impl Shard {
    fn tail(&self) -> u64 {
        self.covered + self.entries.len() as u64
    }

    /// Whether this very entry was written; None when a checkpoint has covered its place since.
    fn has(&self, entry: &Entry) -> Option<bool> {
        let index = entry.seq.checked_sub(self.covered + 1)?;
        let found = self.entries.get(index as usize);
        Some(found.is_some_and(|found| found.id == entry.id && found.epoch == entry.epoch))
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) {
        let Checkpoint { seq, partials, keys, marks, .. } = checkpoint;
        let covered = (seq - self.covered).min(self.entries.len() as u64);
        self.entries.drain(..covered as usize);
        (self.covered, self.marks) = (seq, marks);
        self.partials.extend(partials.into_iter().map(|(id, partial)| (Listing(id), partial)));
        self.keys.extend(keys.into_iter().map(|record| ((record.counter.clone(), record.key.clone()), record)));
    }
}

/// Everything durable.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    shards: Vec<Arc<Shard>>,
    values: Arc<BTreeMap<(String, String), Vec<u8>>>,
    rollups: Arc<BTreeMap<(Id, u32), RollupPart>>,
}

impl Disk {
    pub fn new(shards: u32) -> Self {
        let shards = (0..shards).map(|_| Arc::default()).collect();
        Self { shards, values: Arc::default(), rollups: Arc::default() }
    }

    fn shard(&mut self, shard: u32) -> &mut Shard {
        Arc::make_mut(&mut self.shards[shard as usize])
    }

    fn raise_all(&mut self) {
        for shard in 0..self.shards.len() as u32 {
            self.shard(shard).epoch += 1;
        }
    }
}

#[derive(Debug)]
struct State {
    disk: Disk,
    faults: VecDeque<Fault>,
    broken: bool,
    /// Shards whose epoch was raised by opening, and not handed out yet.
    fresh: Vec<bool>,
    /// How long an append takes.
    append_delay: Duration,
}

#[derive(Debug)]
pub struct MemoryStore(Mutex<State>);

impl MemoryStore {
    pub fn new(shards: u32) -> Self {
        Self::open(Disk::new(shards))
    }

    /// Opens what a store before this one left.
    pub fn open(mut disk: Disk) -> Self {
        disk.raise_all();
        let fresh = vec![true; disk.shards.len()];
        let append_delay = Duration::ZERO;
        Self(Mutex::new(State { disk, faults: VecDeque::new(), broken: false, fresh, append_delay }))
    }

    /// What is durable now.
    pub fn disk(&self) -> Disk {
        self.0.lock().disk.clone()
    }

    /// Faults of the next appends, one each, in the order of the calls.
    pub fn inject(&self, fault: Fault) {
        self.0.lock().faults.push_back(fault);
    }

    /// Every append takes so long from now on, as on a store behind a network.
    pub fn delay_appends(&self, by: Duration) {
        self.0.lock().append_delay = by;
    }

    /// The process dies: this store answers `Broken` from now on, and nothing durable is lost.
    pub fn crash(&self) -> Disk {
        let mut state = self.0.lock();
        state.broken = true;
        state.disk.clone()
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.0.lock();
        if state.broken { Err(Error::Broken("as injected".into())) } else { work(&mut state) }
    }
}

impl State {
    fn known(&self, shard: u32) -> Result<(), Error> {
        let count = self.disk.shards.len();
        let known = (shard as usize) < count;
        if known { Ok(()) } else { Err(Error::NotApplied(format!("there is no shard {shard}, only {count}"))) }
    }

    fn append(&mut self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error> {
        for (at, entry) in group.iter().enumerate() {
            self.known(entry.shard)?;
            if group[..at].iter().any(|before| before.shard == entry.shard) {
                return Err(Error::NotApplied(format!("two entries of shard {} in one group", entry.shard)));
            }
        }
        let fault = self.faults.pop_front();
        let unknown = matches!(fault, Some(Fault::UnknownApplied | Fault::UnknownNotApplied));
        let written =
            !matches!(fault, Some(Fault::UnknownNotApplied | Fault::NotApplied | Fault::Broken { applied: false }));
        if fault == Some(Fault::NotApplied) {
            return Err(Error::NotApplied("as injected".into()));
        }
        let results = group.iter().map(|entry| {
            let result = self.append_one(entry, written);
            if unknown { Appended::Unknown } else { result }
        });
        let results = results.collect();
        if matches!(fault, Some(Fault::Broken { .. })) {
            self.broken = true;
            return Err(Error::Broken("as injected".into()));
        }
        Ok(results)
    }

    fn append_one(&mut self, entry: &Arc<Entry>, write: bool) -> Appended {
        let shard = &self.disk.shards[entry.shard as usize];
        if entry.epoch == shard.epoch && entry.seq == shard.tail() + 1 {
            if write {
                self.disk.shard(entry.shard).entries.push_back(entry.clone());
            }
            return Appended::Applied;
        }
        let known = shard.has(entry);
        if entry.epoch == shard.epoch && known == Some(true) {
            return Appended::Applied;
        }
        Appended::Fenced { applied: known }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn raise(&self, shard: u32) -> Result<Raised, Error> {
        self.with(|state| {
            state.known(shard)?;
            let fresh = std::mem::take(&mut state.fresh[shard as usize]);
            let disk = state.disk.shard(shard);
            disk.epoch += u64::from(!fresh);
            Ok(Raised { epoch: disk.epoch, checkpoint_seq: disk.covered, marks: disk.marks.clone() })
        })
    }

    async fn standing(&self, shard: u32) -> Result<Raised, Error> {
        self.with(|state| {
            state.known(shard)?;
            let disk = &state.disk.shards[shard as usize];
            Ok(Raised { epoch: disk.epoch, checkpoint_seq: disk.covered, marks: disk.marks.clone() })
        })
    }

    fn release(&self, _: u32, _: u64) {}

    async fn read(&self, shard: u32, after_seq: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        self.with(|state| {
            state.known(shard)?;
            let (mut found, mut bytes) = (Vec::new(), 0);
            for entry in state.disk.shards[shard as usize].entries.iter().filter(|entry| entry.seq > after_seq) {
                bytes += encoded_bytes(entry);
                if !found.is_empty() && bytes > bytes_max {
                    break;
                }
                found.push(Entry::clone(entry));
            }
            Ok(found)
        })
    }

    async fn append(&self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error> {
        let delay = self.0.lock().append_delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.with(|state| state.append(group))
    }

    async fn confirm(&self, shard: u32, epoch: u64) -> Result<bool, Error> {
        self.with(|state| {
            state.known(shard)?;
            Ok(state.disk.shards[shard as usize].epoch == epoch)
        })
    }

    async fn checkpoint(&self, checkpoints: Vec<Checkpoint>) -> Result<(), Error> {
        self.with(|state| {
            for checkpoint in &checkpoints {
                state.known(checkpoint.shard)?;
            }
            for checkpoint in checkpoints {
                let shard = state.disk.shard(checkpoint.shard);
                if checkpoint.epoch == shard.epoch && checkpoint.seq >= shard.covered {
                    shard.checkpoint(checkpoint);
                }
            }
            Ok(())
        })
    }

    async fn load(&self, shard: u32, counter: &Id) -> Result<Option<Partial>, Error> {
        self.with(|state| {
            state.known(shard)?;
            Ok(state.disk.shards[shard as usize].partials.get(&Listing(counter.clone())).cloned())
        })
    }

    async fn load_key(&self, shard: u32, counter: &Id, key: &str) -> Result<Option<KeyRecord>, Error> {
        self.with(|state| {
            state.known(shard)?;
            Ok(state.disk.shards[shard as usize].keys.get(&(counter.clone(), key.into())).cloned())
        })
    }

    async fn expire_keys(&self, before_ms: u64, limit: usize) -> Result<usize, Error> {
        self.with(|state| {
            let mut dropped = 0;
            for shard in 0..state.disk.shards.len() as u32 {
                state.disk.shard(shard).keys.retain(|_, record| {
                    let drop = record.kept_by_ms() < before_ms && dropped < limit;
                    dropped += usize::from(drop);
                    !drop
                });
            }
            Ok(dropped)
        })
    }

    async fn list(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Result<Vec<Listed>, Error> {
        self.with(|state| {
            let mut found: BTreeMap<Listing, Vec<(u32, Partial)>> = BTreeMap::new();
            let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(Listing(after.clone())));
            for (number, shard) in state.disk.shards.iter().enumerate() {
                let listed = shard.partials.range((from.clone(), Bound::Unbounded));
                let listed = listed.filter(|(listing, _)| listing.0.as_str().starts_with(prefix));
                for (listing, partial) in listed.take(limit) {
                    found.entry(listing.clone()).or_default().push((number as u32, partial.clone()));
                }
            }
            Ok(found.into_iter().take(limit).map(|(Listing(id), partials)| Listed { id, partials }).collect())
        })
    }

    async fn put_rollup(&self, counter: &Id, parts: &[RollupPart]) -> Result<(), Error> {
        self.with(|state| {
            let rollups = Arc::make_mut(&mut state.disk.rollups);
            for part in parts {
                let known = rollups.entry((counter.clone(), part.shard)).or_insert(*part);
                if (known.seq, known.at_ms) < (part.seq, part.at_ms) {
                    *known = *part;
                }
            }
            Ok(())
        })
    }

    async fn rollup(&self, counter: &Id) -> Result<Vec<RollupPart>, Error> {
        self.with(|state| {
            let places = (counter.clone(), 0)..=(counter.clone(), u32::MAX);
            Ok(state.disk.rollups.range(places).map(|(_, part)| *part).collect())
        })
    }

    async fn get(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.with(|state| Ok(state.disk.values.get(&(space.into(), key.into())).cloned()))
    }

    async fn put(&self, space: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        self.with(|state| {
            Arc::make_mut(&mut state.disk.values).insert((space.into(), key.into()), value.into());
            Ok(())
        })
    }

    async fn delete(&self, space: &str, key: &str) -> Result<(), Error> {
        self.with(|state| {
            Arc::make_mut(&mut state.disk.values).remove(&(space.into(), key.into()));
            Ok(())
        })
    }

    async fn scan(&self, space: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.with(|state| {
            let from = (space.to_owned(), prefix.to_owned());
            let found = state.disk.values.range(from..);
            let found = found.take_while(|((in_space, key), _)| in_space == space && key.starts_with(prefix));
            Ok(found.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
        })
    }

    async fn recover(&self) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.disk.raise_all();
        state.broken = false;
        state.fresh.fill(true);
        Ok(())
    }

    fn journal_bytes(&self) -> u64 {
        let state = self.0.lock();
        let entries = state.disk.shards.iter().flat_map(|shard| &shard.entries);
        entries.map(|entry| encoded_bytes(entry) as u64).sum()
    }
}

fn encoded_bytes(entry: &Entry) -> usize {
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    bytes.len()
}
