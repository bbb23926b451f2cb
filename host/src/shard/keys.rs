//! Idempotency records that the writer must know by itself: those of entries that no checkpoint holds yet, and the
//! answers of look-ups in the store for operations that wait in the queue.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::entry::KeyRecord;
use crate::counter::Id;

#[derive(Debug)]
struct Known {
    counter: Id,
    key: Box<str>,
    /// None: the store was asked and has no record.
    record: Option<KeyRecord>,
    /// Sequence of the entry with the record; 0 for what a look-up brought.
    seq: u64,
}

#[derive(Debug, Default)]
pub struct Keys(HashTable<Known>);

fn hash(counter_hash: u64, key: &str) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), counter_hash)
}

fn rehash(known: &Known) -> u64 {
    hash(crate::counter::key_hash(known.counter.as_str()), &known.key)
}

impl Keys {
    /// None: unknown here, the store must be asked. `Some(None)`: never used within the window.
    pub fn get(&self, counter_hash: u64, counter: &Id, key: &str) -> Option<Option<&KeyRecord>> {
        self.0
            .find(hash(counter_hash, key), |known| *known.key == *key && known.counter == *counter)
            .map(|known| known.record.as_ref())
    }

    /// What the store said. A record that this writer made meanwhile is newer and stays.
    pub fn looked_up(&mut self, counter_hash: u64, counter: &Id, key: &str, record: Option<KeyRecord>) {
        if self.get(counter_hash, counter, key).is_none() {
            let known = Known { counter: counter.clone(), key: key.into(), record, seq: 0 };
            self.0.insert_unique(hash(counter_hash, key), known, rehash);
        }
    }

    /// A record of the entry at `seq`.
    pub fn record(&mut self, counter_hash: u64, record: KeyRecord, seq: u64) {
        let hash = hash(counter_hash, &record.key);
        let (counter, key) = (record.counter.clone(), record.key.clone());
        let same = |known: &Known| known.key == key && known.counter == counter;
        if let Some(known) = self.0.find_mut(hash, same) {
            (known.record, known.seq) = (Some(record), seq);
        } else {
            self.0.insert_unique(hash, Known { counter, key, record: Some(record), seq }, rehash);
        }
    }

    /// The store now answers for everything up to `seq`. Look-ups go too: they may be older than that.
    pub fn checkpointed(&mut self, seq: u64) {
        self.0.retain(|known| known.seq > seq);
    }

    /// Records that a checkpoint must write.
    pub fn records(&self) -> impl Iterator<Item = &KeyRecord> {
        self.0.iter().filter(|known| known.seq > 0).filter_map(|known| known.record.as_ref())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
