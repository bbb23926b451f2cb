//! The readable state of one shard: what is journaled of each resident counter, and what a checkpoint still owes.
//!
//! Readers hold it behind a read lock; the driver takes the write lock only to apply an entry that is durable, so
//! nothing unjournaled is ever visible. Slots are kept in chunks, so that growing never copies them, and a slot keeps
//! its number until its counter is forgotten, so that one look-up serves planning and applying.

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
    /// None: free. Some other counter takes the slot later.
    id: Option<Id>,
    /// None: the store was asked and holds nothing, so that it is not asked again.
    partial: Option<Partial>,
    dirty: bool,
}

/// A chunk of 400 slots is just below 32 KiB, which allocators serve without waste.
const CHUNK_SLOTS: usize = 400;

/// Slots by number. All chunks but the first are reserved whole; the first grows, because most shards stay small.
#[derive(Debug, Default)]
struct Slots(Vec<Vec<Slot>>);

impl Slots {
    fn get(&self, at: u32) -> Option<&Slot> {
        self.0.get(at as usize / CHUNK_SLOTS)?.get(at as usize % CHUNK_SLOTS)
    }

    fn at(&self, at: u32) -> &Slot {
        &self.0[at as usize / CHUNK_SLOTS][at as usize % CHUNK_SLOTS]
    }

    fn at_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.0[at as usize / CHUNK_SLOTS][at as usize % CHUNK_SLOTS]
    }

    fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * CHUNK_SLOTS + last.len())
    }

    fn push(&mut self, slot: Slot) -> u32 {
        let at = u32::try_from(self.len()).expect("a shard has fewer resident counters than 2^32");
        match self.0.last_mut() {
            Some(last) if last.len() < CHUNK_SLOTS => last.push(slot),
            None => self.0.push(vec![slot]),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK_SLOTS);
                chunk.push(slot);
                self.0.push(chunk);
            }
        }
        at
    }
}

#[derive(Debug, Default)]
pub struct Partials {
    slots: Slots,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Slots changed since the last checkpoint began, each once.
    dirty: Vec<u32>,
    /// Sequence of the last entry applied.
    applied: u64,
    /// Everything up to this sequence is in a checkpoint.
    covered: u64,
    /// How often a counter was forgotten.
    evictions: u64,
    /// Where the next eviction goes on looking.
    hand: u32,
    /// Readers make no counter resident beyond this many. None: no limit.
    resident_max: Option<usize>,
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
        match self.find(hash, id).map(|at| &self.slots.at(at).partial) {
            None => Resident::Unloaded,
            Some(None) => Resident::Missing,
            Some(Some(partial)) => Resident::Present(partial),
        }
    }

    /// The slot of a resident counter.
    pub(super) fn find(&self, hash: u64, id: &Id) -> Option<u32> {
        self.index.find(hash, |&at| self.slots.at(at).id.as_ref() == Some(id)).copied()
    }

    /// Whether the slot still holds this counter. Any number may be asked for.
    pub(super) fn holds(&self, at: u32, id: &Id) -> bool {
        self.slots.get(at).is_some_and(|slot| slot.id.as_ref() == Some(id))
    }

    /// What a slot from [`Self::find`] holds; None when the counter never was on this shard.
    pub(super) fn at(&self, at: u32) -> Option<&Partial> {
        self.slots.at(at).partial.as_ref()
    }

    /// Makes what the store holds resident, for the writer. What is resident already is newer and stays.
    /// Only whoever evicts may call this: nothing can have been forgotten since it asked the store.
    pub fn load(&mut self, hash: u64, id: &Id, partial: Option<Partial>) {
        if self.find(hash, id).is_none() {
            self.insert(hash, id.clone(), partial);
        }
    }

    /// How often a counter was forgotten; for [`Self::load_if`].
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Makes what a reader found in the store resident, unless a counter was forgotten since the reader saw
    /// `evictions_seen`: the writer may have loaded, changed and forgotten this very one, and the value be too old.
    /// The value is right for the reader's answer all the same, for it was the newest when the reader began.
    ///
    /// That the store holds nothing is remembered for readers only of a counter that `exists` on another shard: guessed
    /// ids would fill the memory. Nor is anything, once `resident_max` counters are resident.
    pub fn load_if(&mut self, evictions_seen: u64, hash: u64, id: &Id, partial: Option<Partial>, exists: bool) {
        let room = self.resident_max.is_none_or(|max| self.len() < max);
        if evictions_seen == self.evictions && (partial.is_some() || exists) && room {
            self.load(hash, id, partial);
        }
    }

    fn insert(&mut self, hash: u64, id: Id, partial: Option<Partial>) -> u32 {
        let slot = Slot { id: Some(id), partial, dirty: false };
        let at = match self.free.pop() {
            Some(at) => {
                *self.slots.at_mut(at) = slot;
                at
            }
            None => self.slots.push(slot),
        };
        let slots = &self.slots;
        self.index.insert_unique(hash, at, |&at| slot_hash(slots.at(at)));
        at
    }

    /// Applies a durable entry. Changes that are already in are skipped one by one, so replay is idempotent.
    pub fn apply(&mut self, entry: &Entry) {
        self.apply_at(entry, &[]);
    }

    /// Like [`Self::apply`]; `slots` says where the changes were found when the entry was made.
    pub fn apply_at(&mut self, entry: &Entry, slots: &[u32]) {
        for (nth, change) in entry.changes.iter().enumerate() {
            let at = match slots.get(nth) {
                Some(&at) if self.holds(at, &change.counter) => at,
                _ => self
                    .find(change.hash, &change.counter)
                    .unwrap_or_else(|| self.insert(change.hash, change.counter.clone(), None)),
            };
            self.apply_change(at, entry.seq, change);
        }
        self.applied = self.applied.max(entry.seq);
    }

    fn apply_change(&mut self, at: u32, seq: u64, change: &Change) {
        let slot = self.slots.at_mut(at);
        match &mut slot.partial {
            Some(partial) if partial.seq >= seq => return,
            Some(partial) => {
                partial.clone_from(&change.partial);
                partial.seq = seq;
            }
            None => slot.partial = Some(Partial { seq, ..change.partial.clone() }),
        }
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(at);
        }
    }

    /// Sequence of the last entry applied; what a checkpoint taken now covers.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Sequence up to which a checkpoint holds everything.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Nothing yet, everything up to `checkpoint_seq` being in the checkpoint.
    pub(super) fn after_checkpoint(checkpoint_seq: u64) -> Self {
        Self { applied: checkpoint_seq, covered: checkpoint_seq, ..Self::default() }
    }

    /// A takeover ended: what it read replaces what was here. Nothing stays, for another owner may have changed it.
    pub fn replace(&mut self, read: Self) {
        *self = Self { evictions: self.evictions + 1, resident_max: self.resident_max, ..read };
    }

    /// Resident counters, removed ones included.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Changed counters that no checkpoint holds yet, for lists.
    pub fn dirty(&self) -> impl Iterator<Item = (&Id, &Partial)> {
        self.dirty.iter().filter_map(|&at| self.changed(at))
    }

    fn changed(&self, at: u32) -> Option<(&Id, &Partial)> {
        let slot = self.slots.at(at);
        slot.id.as_ref().zip(slot.partial.as_ref())
    }

    /// Some of what a checkpoint must write: at most `limit` changed counters, beginning with the `from`th. They stay
    /// dirty until [`Self::checkpointed`]; until then later changes are only ever added behind.
    pub fn dirty_piece(&self, from: usize, limit: usize) -> Vec<(Id, Partial)> {
        let piece = self.dirty.iter().skip(from).take(limit);
        piece.filter_map(|&at| self.changed(at)).map(|(id, partial)| (id.clone(), partial.clone())).collect()
    }

    /// A checkpoint that covers everything up to `seq` is durable: what has not changed since is clean.
    pub fn checkpointed(&mut self, seq: u64) {
        let slots = &mut self.slots;
        self.dirty.retain(|&at| {
            let slot = slots.at_mut(at);
            slot.dirty = slot.partial.as_ref().is_some_and(|partial| partial.seq > seq);
            slot.dirty
        });
        self.dirty.shrink_to(CHUNK_SLOTS.max(2 * self.dirty.len()));
        self.covered = self.covered.max(seq);
    }

    /// Limits what readers make resident; see [`Self::load_if`].
    pub fn limit_readers(&mut self, resident_max: usize) {
        self.resident_max = Some(resident_max);
    }

    /// Forgets clean counters while more than `resident_max` are resident, in turn, looking at no more than
    /// `slots_max` slots. The store still has them. Returns how many were forgotten.
    pub fn evict_clean(&mut self, resident_max: usize, slots_max: usize) -> usize {
        let excess = self.len().saturating_sub(resident_max);
        let mut evicted = 0;
        for _ in 0..slots_max.min(self.slots.len()) {
            if evicted == excess {
                break;
            }
            let at = self.hand;
            self.hand = if (at as usize + 1) < self.slots.len() { at + 1 } else { 0 };
            evicted += usize::from(self.evict(at));
        }
        self.evictions += evicted as u64;
        evicted
    }

    fn evict(&mut self, at: u32) -> bool {
        let slot = self.slots.at(at);
        if slot.dirty || slot.id.is_none() {
            return false;
        }
        if let Ok(entry) = self.index.find_entry(slot_hash(slot), |&other| other == at) {
            entry.remove();
        }
        *self.slots.at_mut(at) = Slot { id: None, partial: None, dirty: false };
        self.free.push(at);
        true
    }
}

fn slot_hash(slot: &Slot) -> u64 {
    key_hash(slot.id.as_ref().expect("a slot in the index holds a counter").as_str())
}
