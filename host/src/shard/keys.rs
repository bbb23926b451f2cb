//! Idempotency records that the writer must know by itself: those of durable entries that no checkpoint holds yet, and
//! what look-ups in the store said about operations that wait in the queue.
//!
//! Records of the entry being made are not here but in its draft: an entry that is never written leaves no trace.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::entry::KeyRecord;
use crate::counter::{Id, key_hash};

#[derive(Debug)]
struct Recent {
    record: KeyRecord,
    /// Sequence of the entry with the record.
    seq: u64,
}

#[derive(Debug)]
struct LookedUp {
    counter: Id,
    key: Box<str>,
    /// None: the store has no record.
    record: Option<KeyRecord>,
}

#[derive(Debug, Default)]
pub struct Keys {
    recent: HashTable<Recent>,
    looked_up: HashTable<LookedUp>,
    /// Checkpoints so far. A look-up begun before one may have missed what went from here to the store.
    checkpoints: u64,
}

pub(super) fn hash(counter_hash: u64, key: &str) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), counter_hash)
}

fn rehash(counter: &Id, key: &str) -> u64 {
    hash(key_hash(counter.as_str()), key)
}

impl Keys {
    /// None: unknown here, the store must be asked. `Some(None)`: the store has no record either.
    pub fn get(&self, counter_hash: u64, counter: &Id, key: &str) -> Option<Option<&KeyRecord>> {
        if let Some(record) = self.recent(counter_hash, counter, key) {
            return Some(Some(record));
        }
        let found =
            self.looked_up.find(hash(counter_hash, key), |known| *known.key == *key && known.counter == *counter);
        found.map(|known| known.record.as_ref())
    }

    /// The record of a durable entry that no checkpoint holds yet.
    pub fn recent(&self, counter_hash: u64, counter: &Id, key: &str) -> Option<&KeyRecord> {
        let same = |known: &Recent| *known.record.key == *key && known.record.counter == *counter;
        self.recent.find(hash(counter_hash, key), same).map(|known| &known.record)
    }

    /// To be handed to [`Self::looked_up`] by whoever asks the store now.
    pub fn as_of(&self) -> u64 {
        self.checkpoints
    }

    /// What the store said. An answer that may be older than a checkpoint is dropped, and asked for again.
    pub fn looked_up(&mut self, as_of: u64, counter_hash: u64, counter: Id, key: Box<str>, record: Option<KeyRecord>) {
        if as_of == self.checkpoints && self.get(counter_hash, &counter, &key).is_none() {
            let known = LookedUp { counter, key, record };
            self.looked_up
                .insert_unique(hash(counter_hash, &known.key), known, |known| rehash(&known.counter, &known.key));
        }
    }

    /// Nothing that was looked up is waited for any more.
    pub fn forget_look_ups(&mut self) {
        self.looked_up.clear();
    }

    /// A record of the durable entry at `seq`.
    pub fn record(&mut self, record: KeyRecord, seq: u64) {
        let hash = rehash(&record.counter, &record.key);
        let same = |known: &Recent| known.record.key == record.key && known.record.counter == record.counter;
        match self.recent.find_mut(hash, same) {
            Some(known) => *known = Recent { record, seq },
            None => {
                let rehash = |known: &Recent| rehash(&known.record.counter, &known.record.key);
                self.recent.insert_unique(hash, Recent { record, seq }, rehash);
            }
        }
    }

    /// The store now answers for everything up to `seq`. Look-ups go too: they may be older than that.
    pub fn checkpointed(&mut self, seq: u64) {
        self.checkpoints += 1;
        self.recent.retain(|known| known.seq > seq);
        self.recent.shrink_to(2 * self.recent.len(), |known| rehash(&known.record.counter, &known.record.key));
        self.looked_up.clear();
    }

    /// Records that a checkpoint must write.
    pub fn records(&self) -> impl Iterator<Item = &KeyRecord> {
        self.recent.iter().map(|known| &known.record)
    }

    /// Records that no checkpoint holds yet.
    pub fn len(&self) -> usize {
        self.recent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }
}
