//! The readable state of one shard: what is journaled of each resident counter, and what a checkpoint still owes.
//!
//! Readers hold it behind a read lock; the driver takes the write lock only to apply an entry that is durable, so
//! nothing unjournaled is ever visible.

use hashbrown::HashTable;

use super::entry::{Change, Entry};
use crate::counter::{Id, key_hash};

/// One counter's value on one shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partial {
    pub value: i64,
    /// Sequence of the entry that last changed it; an older entry never overwrites it.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// Rises with every removal, so that a value from before is recognised.
    pub generation: u32,
    /// A removal that is remembered: the value is 0 and the counter does not exist here.
    pub removed: bool,
    /// Only on the home shard of a counter that was created with a name.
    pub name: Option<Box<str>>,
}

#[derive(Debug)]
struct Slot {
    id: Id,
    /// None: the store was asked and holds nothing, so that it is not asked again.
    partial: Option<Partial>,
    dirty: bool,
}

#[derive(Debug, Default)]
pub struct Partials {
    slots: Vec<Slot>,
    index: HashTable<u32>,
    /// Slots changed since the last checkpoint began, each once.
    dirty: Vec<u32>,
    /// Sequence of the last entry applied.
    applied: u64,
}

/// What the resident state says of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resident<'a> {
    /// Not resident: only the store knows.
    Unloaded,
    /// It holds nothing here, and never did.
    Missing,
    /// Present, possibly as a removal.
    Present(&'a Partial),
}

impl Partials {
    pub fn get(&self, hash: u64, id: &Id) -> Resident<'_> {
        match self.find(hash, id).map(|at| &self.slots[at as usize].partial) {
            None => Resident::Unloaded,
            Some(None) => Resident::Missing,
            Some(Some(partial)) => Resident::Present(partial),
        }
    }

    fn find(&self, hash: u64, id: &Id) -> Option<u32> {
        self.index.find(hash, |&at| self.slots[at as usize].id == *id).copied()
    }

    /// Makes what the store holds resident. What is resident already is newer and stays.
    pub fn load(&mut self, hash: u64, id: &Id, partial: Option<Partial>) {
        if self.find(hash, id).is_none() {
            self.insert(hash, Slot { id: id.clone(), partial, dirty: false });
        }
    }

    fn insert(&mut self, hash: u64, slot: Slot) -> u32 {
        let at = u32::try_from(self.slots.len()).expect("a shard has fewer resident counters than 2^32");
        self.slots.push(slot);
        let slots = &self.slots;
        self.index.insert_unique(hash, at, |&at| key_hash(slots[at as usize].id.as_str()));
        at
    }

    /// Applies a durable entry. Entries that are already in are skipped change by change, so replay is idempotent.
    pub fn apply(&mut self, entry: &Entry) {
        for change in &entry.changes {
            self.apply_change(entry.seq, change);
        }
        self.applied = self.applied.max(entry.seq);
    }

    fn apply_change(&mut self, seq: u64, change: &Change) {
        let at = match self.find(change.hash, &change.counter) {
            Some(at) => at,
            None => self.insert(change.hash, Slot { id: change.counter.clone(), partial: None, dirty: false }),
        };
        let slot = &mut self.slots[at as usize];
        if slot.partial.as_ref().is_some_and(|partial| partial.seq >= seq) {
            return;
        }
        slot.partial = Some(Partial { seq, ..change.partial.clone() });
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(at);
        }
    }

    /// Sequence of the last entry applied; what a checkpoint taken now covers.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// After a takeover: everything up to here is in the checkpoint.
    pub fn start_after(&mut self, seq: u64) {
        self.applied = self.applied.max(seq);
    }

    /// Resident counters, removed ones included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Changed counters that no checkpoint holds yet, for lists.
    pub fn dirty(&self) -> impl Iterator<Item = (&Id, &Partial)> {
        self.dirty.iter().filter_map(|&at| {
            let slot = &self.slots[at as usize];
            slot.partial.as_ref().map(|partial| (&slot.id, partial))
        })
    }

    /// Everything a checkpoint must write. It stays dirty until [`Self::checkpointed`].
    pub fn snapshot_dirty(&self) -> Vec<(Id, Partial)> {
        self.dirty().map(|(id, partial)| (id.clone(), partial.clone())).collect()
    }

    /// A checkpoint that covers everything up to `seq` is durable: what has not changed since is clean.
    pub fn checkpointed(&mut self, seq: u64) {
        let slots = &mut self.slots;
        self.dirty.retain(|&at| {
            let slot = &mut slots[at as usize];
            slot.dirty = slot.partial.as_ref().is_some_and(|partial| partial.seq > seq);
            slot.dirty
        });
    }

    /// Forgets every clean counter once more than `resident_max` are resident; the store still has them.
    /// Returns how many were forgotten. Called when a checkpoint ended, when few are dirty.
    pub fn evict_clean(&mut self, resident_max: usize) -> usize {
        if self.slots.len() <= resident_max {
            return 0;
        }
        let before = self.slots.len();
        let kept: Vec<Slot> = std::mem::take(&mut self.slots).into_iter().filter(|slot| slot.dirty).collect();
        self.index = HashTable::new();
        self.dirty.clear();
        for slot in kept {
            let at = self.insert(key_hash(slot.id.as_str()), slot);
            self.dirty.push(at);
        }
        before - self.slots.len()
    }
}
