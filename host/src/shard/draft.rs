//! The entry being made: what each operation does to a counter, given everything before it.
//!
//! Nothing here is durable, so nothing of it may be seen outside; a draft that is thrown away leaves no trace.

use std::collections::BTreeMap;

use hashbrown::HashTable;

use super::entry::{Action, Change, Entry, KeyRecord};
use super::keys::{self, Keys};
use super::marks::{MarkState, Marks};
use super::op::{Kind, Op, Origin, Outcome, Refusal};
use super::partials::{Partial, Partials};
use super::time::Window;
use super::writer::{Answers, Effect};
use crate::counter::{Id, arithmetic};
use crate::limits;

/// What is durable, on which a draft builds.
#[derive(Clone, Copy)]
pub(super) struct Durable<'a> {
    pub partials: &'a Partials,
    pub keys: &'a Keys,
    pub marks: &'a Marks,
    /// As of the entry being made.
    pub window: Window,
}

#[derive(Debug, Default)]
pub(super) struct Draft {
    seq: u64,
    changes: Vec<Change>,
    /// The slot of each change.
    slots: Vec<u32>,
    index: HashTable<u32>,
    keys: Vec<KeyRecord>,
    key_index: HashTable<u32>,
    marks: BTreeMap<u128, MarkState>,
    answers: Answers,
    bytes: usize,
}

/// A draft that is closed.
pub(super) struct Sealed {
    pub entry: Entry,
    pub slots: Vec<u32>,
    pub marks: BTreeMap<u128, MarkState>,
    pub answers: Answers,
}

/// What becomes of one operation.
#[derive(Debug)]
pub(super) struct Verdict {
    outcome: Outcome,
    write: Option<(Place, Write)>,
    /// It is the next of its producer, and moves the mark.
    sequenced: bool,
    /// Its key is recorded.
    recorded: bool,
}

#[derive(Debug)]
enum Place {
    Drafted(usize),
    Slot(u32),
}

#[derive(Debug, PartialEq)]
enum Write {
    /// Only the value changes.
    Value(i64),
    Partial(Partial),
}

/// Encoded size of a change or key besides its texts, about.
const ITEM_BYTES: usize = 32;

impl Draft {
    pub fn begin(&mut self, seq: u64) {
        self.seq = seq;
    }

    pub fn is_full(&self) -> bool {
        self.answers.len() >= limits::ENTRY_OPS_MAX || self.bytes >= limits::ENTRY_BYTES_MAX
    }

    /// Decides one operation, or says what must be known first. `slot` is where its counter was found.
    pub fn judge(&self, durable: Durable<'_>, op: &Op, slot: u32) -> Result<Verdict, Effect> {
        let mut sequenced = false;
        if let Origin::Peer { producer, .. } = op.origin {
            let state = self.marks.get(&producer).or_else(|| durable.marks.get(producer));
            if let Some(outcome) = durable.marks.repeated(state, op.origin, op.at_ms, durable.window.times) {
                return Ok(Verdict { outcome, write: None, sequenced: false, recorded: false });
            }
            sequenced = true;
        }
        let verdict = |outcome, write, recorded| Verdict { outcome, write, sequenced, recorded };
        if op.kind == Kind::Skip {
            return Ok(verdict(Outcome::Unknown, None, false));
        }
        if let Some(outcome) = self.replayed(durable, op)? {
            return Ok(verdict(outcome, None, false));
        }
        let (place, current) = self.current(durable, op, slot)?;
        Ok(match decide(op, current) {
            Err(refusal) => verdict(Outcome::Refused(refusal), None, false),
            Ok(write) => {
                let value = write.as_ref().map_or(0, Write::value);
                let outcome = Outcome::Applied { value, replayed: false };
                verdict(outcome, write.map(|write| (place, write)), op.key.is_some())
            }
        })
    }

    fn current<'a>(&'a self, durable: Durable<'a>, op: &Op, slot: u32) -> Result<(Place, Option<&'a Partial>), Effect> {
        let slot = if durable.partials.holds(slot, &op.counter) {
            slot
        } else {
            let load = || Effect::Load { hash: op.hash, counter: op.counter.clone() };
            durable.partials.find(op.hash, &op.counter).ok_or_else(load)?
        };
        let drafted = self.index.find(op.hash, |&nth| self.slots[nth as usize] == slot);
        Ok(match drafted.map(|&nth| nth as usize) {
            Some(nth) => (Place::Drafted(nth), Some(&self.changes[nth].partial)),
            None => (Place::Slot(slot), durable.partials.at(slot)),
        })
    }

    /// The outcome of an operation whose idempotency key was seen within the window.
    fn replayed(&self, durable: Durable<'_>, op: &Op) -> Result<Option<Outcome>, Effect> {
        let Some(key) = op.key.as_deref() else { return Ok(None) };
        let known = match self.drafted_key(op.hash, &op.counter, key) {
            Some(record) => Some(record),
            None => durable.keys.get(op.hash, &op.counter, key).ok_or_else(|| Effect::LookUp {
                as_of: durable.keys.as_of(),
                hash: op.hash,
                counter: op.counter.clone(),
                key: key.into(),
            })?,
        };
        let within = known.filter(|record| durable.window.holds(record, op.at_ms));
        Ok(within.map(|record| {
            if record.action == Action::from(&op.kind) {
                Outcome::Applied { value: record.value, replayed: true }
            } else {
                Outcome::Refused(Refusal::KeyReused)
            }
        }))
    }

    fn drafted_key(&self, counter_hash: u64, counter: &Id, key: &str) -> Option<&KeyRecord> {
        let record = |nth: u32| &self.keys[nth as usize];
        let same = |&nth: &u32| *record(nth).key == *key && record(nth).counter == *counter;
        self.key_index.find(keys::hash(counter_hash, key), same).map(|&nth| record(nth))
    }

    /// Takes an operation in as [`Self::judge`] decided, before anything else is judged.
    pub fn take(&mut self, durable: Durable<'_>, op: Op, verdict: Verdict) {
        self.answers.push((op.origin, verdict.outcome));
        if verdict.sequenced {
            self.advance(durable, &op, verdict.outcome);
        }
        if verdict.recorded {
            self.record(durable, &op, verdict.outcome);
        }
        match verdict.write {
            None => {}
            Some((Place::Drafted(nth), Write::Value(value))) => self.changes[nth].partial.value = value,
            Some((Place::Drafted(nth), Write::Partial(partial))) => {
                self.bytes += partial.name.as_ref().map_or(0, |name| name.len());
                self.changes[nth].partial = Partial { seq: self.seq, ..partial };
            }
            Some((Place::Slot(slot), Write::Value(value))) => {
                let current = durable.partials.at(slot).cloned().unwrap_or_default();
                self.insert(op, slot, Partial { value, ..current });
            }
            Some((Place::Slot(slot), Write::Partial(partial))) => self.insert(op, slot, partial),
        }
    }

    fn advance(&mut self, durable: Durable<'_>, op: &Op, outcome: Outcome) {
        let Origin::Peer { producer, acked, as_of_ms, .. } = op.origin else { return };
        let known = || durable.marks.get(producer).cloned().unwrap_or_default();
        // The stamp may be of an earlier owner, whose time went on for long without an entry. A mark younger than the stamps
        // behind it is dropped only under a horizon above them.
        let at_ms = durable.window.times.map_or(op.at_ms, |times| times.now_ms.max(as_of_ms));
        self.marks.entry(producer).or_insert_with(known).push(outcome, acked, at_ms);
        self.bytes += ITEM_BYTES;
    }

    fn record(&mut self, durable: Durable<'_>, op: &Op, outcome: Outcome) {
        let (Some(key), Outcome::Applied { value, .. }) = (&op.key, outcome) else { return };
        let (action, at_ms) = (Action::from(&op.kind), op.at_ms);
        let time_ms = durable.window.times.map(|times| times.now_ms);
        let record = KeyRecord { counter: op.counter.clone(), key: key.clone(), action, value, at_ms, time_ms };
        self.bytes += record.counter.as_str().len() + key.len() + ITEM_BYTES;
        let key_hash = keys::hash(op.hash, key);
        let same = |&nth: &u32| {
            let known: &KeyRecord = &self.keys[nth as usize];
            known.key == record.key && known.counter == record.counter
        };
        // One of this very entry, but older than the window.
        if let Some(&nth) = self.key_index.find(key_hash, same) {
            self.keys[nth as usize] = record;
            return;
        }
        let nth = u32::try_from(self.keys.len()).expect("an entry has at most ENTRY_OPS_MAX keys");
        self.keys.push(record);
        let records = &self.keys;
        let rehash = |&nth: &u32| {
            let record = &records[nth as usize];
            keys::hash(crate::counter::key_hash(record.counter.as_str()), &record.key)
        };
        self.key_index.insert_unique(key_hash, nth, rehash);
    }

    fn insert(&mut self, op: Op, slot: u32, partial: Partial) {
        let nth = u32::try_from(self.changes.len()).expect("an entry has at most ENTRY_OPS_MAX changes");
        self.bytes += op.counter.as_str().len() + partial.name.as_ref().map_or(0, |name| name.len()) + ITEM_BYTES;
        let partial = Partial { seq: self.seq, ..partial };
        self.changes.push(Change { counter: op.counter, hash: op.hash, partial });
        self.slots.push(slot);
        let changes = &self.changes;
        self.index.insert_unique(op.hash, nth, |&nth| changes[nth as usize].hash);
    }

    /// Closes the draft; it is empty afterwards.
    pub fn seal(&mut self, shard: u32, epoch: u64, id: u64, time_ms: Option<u64>) -> Sealed {
        self.index.clear();
        self.key_index.clear();
        self.bytes = 0;
        let marks = std::mem::take(&mut self.marks);
        let entry = Entry {
            shard,
            epoch,
            seq: self.seq,
            id,
            time_ms,
            changes: std::mem::take(&mut self.changes),
            keys: std::mem::take(&mut self.keys),
            marks: marks.iter().map(|(&producer, state)| state.to_mark(producer)).collect(),
        };
        Sealed { entry, slots: std::mem::take(&mut self.slots), marks, answers: std::mem::take(&mut self.answers) }
    }
}

impl Write {
    fn value(&self) -> i64 {
        match self {
            Self::Value(value) => *value,
            Self::Partial(partial) => partial.value,
        }
    }
}

/// What an operation does to a partial: the whole meaning of a counter on one shard. `Ok(None)`: nothing.
fn decide(op: &Op, current: Option<&Partial>) -> Result<Option<Write>, Refusal> {
    let live = current.filter(|partial| !partial.removed);
    let generation = current.map_or(0, |partial| partial.generation);
    let born = || Partial { created_at_ms: op.at_ms, generation, ..Partial::default() };
    Ok(Some(match &op.kind {
        Kind::Add { amount, bounds } => {
            let value = arithmetic::add(live.map_or(0, |partial| partial.value), *amount, *bounds)?;
            if live.is_some() { Write::Value(value) } else { Write::Partial(Partial { value, ..born() }) }
        }
        Kind::Create { .. } if live.is_some() => return Err(Refusal::Exists),
        Kind::Create { name } => Write::Partial(Partial { name: name.clone(), ..born() }),
        Kind::Remove if live.is_some() => {
            Write::Partial(Partial { generation: generation.saturating_add(1), removed: true, ..Partial::default() })
        }
        Kind::Remove | Kind::Skip => return Ok(None),
    }))
}
