//! The model of a store: one shard, fenced by epoch and sequence. It remembers every state that ever was durable, so
//! that whatever is read anywhere can be held against it.

use std::collections::BTreeMap;
use std::sync::Arc;

use quipu::counter::Id;
use quipu::shard::entry::{KeyRecord, Mark};
use quipu::shard::{Entry, Partial};

use super::Mutation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    Applied,
    Fenced { applied: bool },
}

#[derive(Default)]
pub struct Disk {
    pub epoch: u64,
    tail: u64,
    /// Encoded, after the checkpoint.
    journal: BTreeMap<u64, Vec<u8>>,
    /// Id of the entry at each sequence, for ever.
    ids: BTreeMap<u64, u64>,
    /// What each entry made of a counter, for ever.
    history: BTreeMap<(String, u64), Partial>,
    pub covered: u64,
    pub partials: BTreeMap<String, Partial>,
    pub keys: BTreeMap<(String, String), KeyRecord>,
    pub marks: Vec<Mark>,
}

impl Disk {
    pub fn raise(&mut self, mutation: Option<Mutation>) -> u64 {
        if mutation != Some(Mutation::TakeoverWithoutFence) || self.epoch == 0 {
            self.epoch += 1;
        }
        self.epoch
    }

    pub fn append(&mut self, entry: &Arc<Entry>, mutation: Option<Mutation>) -> Result {
        if self.ids.get(&entry.seq) == Some(&entry.id) {
            return if entry.epoch == self.epoch { Result::Applied } else { Result::Fenced { applied: true } };
        }
        if entry.epoch != self.epoch || entry.seq != self.tail + 1 {
            return Result::Fenced { applied: false };
        }
        let mut written = Entry::clone(entry);
        match mutation {
            Some(Mutation::MarksNotInTheEntry) => written.marks.clear(),
            Some(Mutation::KeysNotInTheEntry) => written.keys.clear(),
            _ => {}
        }
        let mut bytes = Vec::new();
        written.encode(&mut bytes);
        self.journal.insert(entry.seq, bytes);
        self.ids.insert(entry.seq, entry.id);
        for change in &entry.changes {
            let partial = Partial { seq: entry.seq, ..change.partial.clone() };
            self.history.insert((change.counter.as_str().into(), entry.seq), partial);
        }
        self.tail = entry.seq;
        Result::Applied
    }

    pub fn read(&self, after: u64, limit: usize) -> Vec<Entry> {
        let entries = self.journal.range(after + 1..).take(limit);
        entries.map(|(_, bytes)| Entry::decode(bytes).expect("what was written is read")).collect()
    }

    pub fn checkpoint(
        &mut self,
        epoch: u64,
        seq: u64,
        partials: Vec<(Id, Partial)>,
        keys: Vec<KeyRecord>,
        marks: Vec<Mark>,
    ) {
        if epoch != self.epoch || seq < self.covered {
            return;
        }
        for (id, partial) in partials {
            assert!(self.was_durable(id.as_str(), &partial), "a checkpoint of {id} holds what was never journaled");
            self.partials.insert(id.as_str().into(), partial);
        }
        for record in keys {
            self.keys.insert((record.counter.as_str().into(), record.key.as_ref().into()), record);
        }
        (self.covered, self.marks) = (seq, marks);
        self.journal = self.journal.split_off(&(seq + 1));
    }

    pub fn expire_keys(&mut self, before_ms: u64) {
        self.keys.retain(|_, record| record.kept_by_ms() >= before_ms);
    }

    /// Whether this is what some entry made of the counter.
    pub fn was_durable(&self, id: &str, partial: &Partial) -> bool {
        self.history.get(&(id.into(), partial.seq)) == Some(partial)
    }

    pub fn holds(&self, entry: &Entry) -> bool {
        self.ids.get(&entry.seq) == Some(&entry.id)
    }

    /// The counter as the last durable entry left it.
    pub fn newest(&self, id: &str) -> Option<&Partial> {
        self.history.range((id.into(), 0)..=(id.into(), u64::MAX)).next_back().map(|(_, partial)| partial)
    }
}
