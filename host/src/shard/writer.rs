//! The single writer of one shard: queue -> one entry -> durable -> applied -> answered.
//!
//! One append is in flight at a time; what arrives meanwhile becomes the next entry. Every answer of an entry, refusals
//! included, waits for it: a refusal may rest on values that only that entry makes true. A writer that loses its shard
//! is thrown away, and [`super::takeover`] makes the next one from the store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashTable;

use super::entry::{Action, Change, Entry, KeyRecord, Mark};
use super::keys::Keys;
use super::op::{Kind, Op, Origin, Outcome, Refusal};
use super::partials::{Partial, Partials, Resident};
use crate::counter::{Id, arithmetic};
use crate::limits;

#[derive(Debug)]
pub enum Event {
    Submit(Op),
    /// The store's answer to [`Effect::LookUp`], or one that the driver fetched ahead.
    LookedUp {
        hash: u64,
        counter: Id,
        key: Box<str>,
        record: Option<KeyRecord>,
    },
    /// The store has room for an append. `entry_id` is drawn at random by the driver.
    Seal {
        entry_id: u64,
    },
    Appended(Append),
    /// A checkpoint that covers everything up to `seq` is durable.
    Checkpointed {
        seq: u64,
    },
}

/// What became of the append in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Append {
    Applied,
    /// No answer: send the identical entry again.
    Unknown,
    /// This writer lost its shard. `applied` tells what the store settled about the entry in flight.
    Lost {
        applied: Option<bool>,
    },
}

#[derive(Debug)]
pub enum Effect {
    /// Make this counter resident, then seal again.
    Load {
        hash: u64,
        counter: Id,
    },
    /// Look this idempotency key up in the store, then seal again.
    LookUp {
        hash: u64,
        counter: Id,
        key: Box<str>,
    },
    Append(Arc<Entry>),
    /// The entry is durable: make it readable. Always before its answers.
    Apply(Arc<Entry>),
    Answer(Origin, Outcome),
}

#[derive(Debug)]
enum State {
    Idle,
    InFlight {
        entry: Arc<Entry>,
        answers: Vec<(Origin, Outcome)>,
    },
    /// Lost its shard: answers nothing but `NotApplied`.
    Stopped,
}

#[derive(Debug, Default)]
pub(super) struct MarkState {
    pub through: u64,
    pub outcomes: VecDeque<(u64, Outcome)>,
}

#[derive(Debug)]
pub struct Writer {
    shard: u32,
    epoch: u64,
    next_seq: u64,
    /// Idempotency records older than this are as if they were not there, in milliseconds.
    key_window_ms: u64,
    state: State,
    queue: VecDeque<Op>,
    keys: Keys,
    pub(super) marks: BTreeMap<u128, MarkState>,
    /// Kept between entries for its memory only.
    index: HashTable<u32>,
}

/// The entry being made.
#[derive(Default)]
struct Draft {
    changes: Vec<Change>,
    index: HashTable<u32>,
    keys: Vec<KeyRecord>,
    producers: BTreeSet<u128>,
    answers: Vec<(Origin, Outcome)>,
}

impl Draft {
    fn find(&self, hash: u64, id: &Id) -> Option<usize> {
        self.index.find(hash, |&at| self.changes[at as usize].counter == *id).map(|&at| at as usize)
    }

    fn insert(&mut self, hash: u64, counter: &Id, partial: Partial) {
        let at = u32::try_from(self.changes.len()).expect("an entry has at most ENTRY_OPS_MAX changes");
        self.changes.push(Change { counter: counter.clone(), hash, partial });
        let changes = &self.changes;
        self.index.insert_unique(hash, at, |&at| changes[at as usize].hash);
    }
}

impl Writer {
    pub fn new(shard: u32, epoch: u64, next_seq: u64, key_window_ms: u64) -> Self {
        Self {
            shard,
            epoch,
            next_seq,
            key_window_ms,
            state: State::Idle,
            queue: VecDeque::new(),
            keys: Keys::default(),
            marks: BTreeMap::new(),
            index: HashTable::new(),
        }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Operations that wait for an entry.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn in_flight(&self) -> bool {
        matches!(self.state, State::InFlight { .. })
    }

    pub fn stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// Whether the writer can decide about this key without a look-up.
    pub fn knows_key(&self, hash: u64, counter: &Id, key: &str) -> bool {
        self.keys.get(hash, counter, key).is_some()
    }

    /// The record of a key if the writer has one that no checkpoint holds yet.
    pub fn recent_key(&self, hash: u64, counter: &Id, key: &str) -> Option<&KeyRecord> {
        self.keys.get(hash, counter, key).flatten()
    }

    /// What a checkpoint must hold besides partials.
    pub fn key_records(&self) -> impl Iterator<Item = &KeyRecord> {
        self.keys.records()
    }

    /// Idempotency records and look-ups held in memory.
    pub fn keys_len(&self) -> usize {
        self.keys.len()
    }

    pub fn marks(&self) -> Vec<Mark> {
        self.marks.keys().map(|&producer| self.mark(producer)).collect()
    }

    fn mark(&self, producer: u128) -> Mark {
        let state = &self.marks[&producer];
        Mark { producer, through: state.through, outcomes: state.outcomes.iter().copied().collect() }
    }

    /// After a replay: the next entry follows the last one read.
    pub(super) fn resume(&mut self, next_seq: u64) {
        self.next_seq = next_seq;
    }

    pub(super) fn restore_key(&mut self, record: KeyRecord, seq: u64) {
        self.keys.record(crate::counter::key_hash(record.counter.as_str()), record, seq);
    }

    /// Takes one event; what is to be done about it is appended to `effects`, to be carried out in order.
    pub fn step(&mut self, partials: &Partials, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Submit(op) if self.stopped() => answer(effects, op.origin, Outcome::NotApplied),
            Event::Submit(op) => self.queue.push_back(op),
            Event::LookedUp { hash, counter, key, record } => self.keys.looked_up(hash, &counter, &key, record),
            Event::Seal { entry_id } if matches!(self.state, State::Idle) => self.seal(partials, entry_id, effects),
            Event::Seal { .. } => {}
            Event::Appended(result) => self.appended(result, effects),
            Event::Checkpointed { seq } => self.keys.checkpointed(seq),
        }
    }

    fn seal(&mut self, partials: &Partials, entry_id: u64, effects: &mut Vec<Effect>) {
        let mut draft = Draft { index: std::mem::take(&mut self.index), ..Draft::default() };
        for _ in 0..limits::ENTRY_OPS_MAX {
            let Some(op) = self.queue.pop_front() else { break };
            if let Err(needs) = self.plan(&mut draft, partials, &op) {
                effects.push(needs);
                self.queue.push_front(op);
                break;
            }
        }
        let Draft { changes, mut index, keys, producers, answers } = draft;
        index.clear();
        self.index = index;
        let marks: Vec<Mark> = producers.into_iter().map(|producer| self.mark(producer)).collect();
        if changes.is_empty() && keys.is_empty() && marks.is_empty() {
            // Nothing changed, and everything these answers rest on is durable already.
            effects.extend(answers.into_iter().map(|(origin, outcome)| Effect::Answer(origin, outcome)));
            return;
        }
        let entry =
            Entry { shard: self.shard, epoch: self.epoch, seq: self.next_seq, id: entry_id, changes, keys, marks };
        let entry = Arc::new(entry);
        self.next_seq += 1;
        effects.push(Effect::Append(entry.clone()));
        self.state = State::InFlight { entry, answers };
    }

    /// Decides one operation into the draft, or says what must be known first.
    fn plan(&mut self, draft: &mut Draft, partials: &Partials, op: &Op) -> Result<(), Effect> {
        if let Origin::Peer { producer, seq, acked } = op.origin {
            if let Some(outcome) = self.repeated(producer, seq, acked) {
                draft.answers.push((op.origin, outcome));
                return Ok(());
            }
        }
        let outcome = match self.replayed(op)? {
            Some(outcome) => outcome,
            None => self.change(draft, partials, op)?,
        };
        if let Origin::Peer { producer, seq, .. } = op.origin {
            let state = self.marks.entry(producer).or_default();
            state.through = seq;
            state.outcomes.push_back((seq, outcome));
            draft.producers.insert(producer);
        }
        draft.answers.push((op.origin, outcome));
        Ok(())
    }

    /// The first outcome of a peer's operation that comes again, or a refusal when one before it is missing.
    fn repeated(&mut self, producer: u128, seq: u64, acked: u64) -> Option<Outcome> {
        let Some(state) = self.marks.get_mut(&producer) else {
            return (seq != 1).then_some(Outcome::Refused(Refusal::Gap));
        };
        while state.outcomes.front().is_some_and(|&(seq, _)| seq <= acked) {
            state.outcomes.pop_front();
        }
        if seq > state.through {
            return (seq != state.through + 1).then_some(Outcome::Refused(Refusal::Gap));
        }
        let first = state.outcomes.iter().find(|&&(known, _)| known == seq);
        // An outcome the producer acknowledged is forgotten here, and it will not listen to this answer.
        Some(first.map_or(Outcome::Unknown, |&(_, outcome)| outcome))
    }

    /// The outcome of an operation whose idempotency key was seen within the window.
    fn replayed(&self, op: &Op) -> Result<Option<Outcome>, Effect> {
        let Some(key) = op.key.as_deref() else { return Ok(None) };
        match self.keys.get(op.hash, &op.counter, key) {
            None => Err(Effect::LookUp { hash: op.hash, counter: op.counter.clone(), key: key.into() }),
            Some(Some(record)) if op.at_ms.saturating_sub(record.at_ms) <= self.key_window_ms => {
                if record.action == Action::from(&op.kind) {
                    Ok(Some(Outcome::Applied { value: record.value, replayed: true }))
                } else {
                    Ok(Some(Outcome::Refused(Refusal::KeyReused)))
                }
            }
            Some(_) => Ok(None),
        }
    }

    fn change(&mut self, draft: &mut Draft, partials: &Partials, op: &Op) -> Result<Outcome, Effect> {
        let drafted = draft.find(op.hash, &op.counter);
        let current = match drafted {
            Some(at) => Some(&draft.changes[at].partial),
            None => match partials.get(op.hash, &op.counter) {
                Resident::Unloaded => return Err(Effect::Load { hash: op.hash, counter: op.counter.clone() }),
                Resident::Missing => None,
                Resident::Present(partial) => Some(partial),
            },
        };
        let outcome = match decide(op, current) {
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
            Ok(Decision::Nothing(outcome)) => outcome,
            Ok(Decision::Value(value)) => {
                // The common case touches an integer and clones nothing.
                match drafted {
                    Some(at) => draft.changes[at].partial.value = value,
                    None => {
                        let partial = Partial { value, seq: self.next_seq, ..current.cloned().unwrap_or_default() };
                        draft.insert(op.hash, &op.counter, partial);
                    }
                }
                Outcome::Applied { value, replayed: false }
            }
            Ok(Decision::Partial(partial)) => {
                let (value, partial) = (partial.value, Partial { seq: self.next_seq, ..partial });
                match drafted {
                    Some(at) => draft.changes[at].partial = partial,
                    None => draft.insert(op.hash, &op.counter, partial),
                }
                Outcome::Applied { value, replayed: false }
            }
        };
        if let (Some(key), Outcome::Applied { value, .. }) = (&op.key, outcome) {
            let (counter, key, action) = (op.counter.clone(), key.clone(), Action::from(&op.kind));
            let record = KeyRecord { counter, key, action, value, at_ms: op.at_ms };
            self.keys.record(op.hash, record.clone(), self.next_seq);
            draft.keys.push(record);
        }
        Ok(outcome)
    }

    fn appended(&mut self, result: Append, effects: &mut Vec<Effect>) {
        let State::InFlight { entry, answers } = std::mem::replace(&mut self.state, State::Idle) else { return };
        match result {
            Append::Applied => {
                effects.push(Effect::Apply(entry));
                effects.extend(answers.into_iter().map(|(origin, outcome)| Effect::Answer(origin, outcome)));
            }
            Append::Unknown => {
                effects.push(Effect::Append(entry.clone()));
                self.state = State::InFlight { entry, answers };
            }
            Append::Lost { applied } => {
                self.state = State::Stopped;
                if applied == Some(true) {
                    effects.push(Effect::Apply(entry));
                }
                for (origin, outcome) in answers {
                    let settled = match applied {
                        Some(true) => outcome,
                        Some(false) => Outcome::NotApplied,
                        None => Outcome::Unknown,
                    };
                    answer(effects, origin, settled);
                }
                for op in self.queue.drain(..) {
                    answer(effects, op.origin, Outcome::NotApplied);
                }
            }
        }
    }
}

fn answer(effects: &mut Vec<Effect>, origin: Origin, outcome: Outcome) {
    effects.push(Effect::Answer(origin, outcome));
}

enum Decision {
    Nothing(Outcome),
    /// Only the value changes.
    Value(i64),
    Partial(Partial),
}

/// What an operation does to a partial: the whole meaning of a counter on one shard.
fn decide(op: &Op, current: Option<&Partial>) -> Result<Decision, Refusal> {
    let live = current.filter(|partial| !partial.removed);
    let generation = current.map_or(0, |partial| partial.generation);
    let born = Partial { created_at_ms: op.at_ms, generation, ..Partial::default() };
    match &op.kind {
        Kind::Add { amount, bounds } => {
            let value = arithmetic::add(live.map_or(0, |partial| partial.value), *amount, *bounds)?;
            Ok(if live.is_some() { Decision::Value(value) } else { Decision::Partial(Partial { value, ..born }) })
        }
        Kind::Create { .. } if live.is_some() => Err(Refusal::Exists),
        Kind::Create { name } => Ok(Decision::Partial(Partial { name: name.clone(), ..born })),
        Kind::Remove if live.is_none() => Ok(Decision::Nothing(Outcome::Applied { value: 0, replayed: false })),
        Kind::Remove => {
            Ok(Decision::Partial(Partial { generation: generation + 1, removed: true, ..Partial::default() }))
        }
        Kind::Skip => Ok(Decision::Nothing(Outcome::NotApplied)),
    }
}
