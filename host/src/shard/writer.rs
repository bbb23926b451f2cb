//! The single writer of one shard: queue -> one entry -> durable -> applied -> answered.
//!
//! One append is in flight at a time; what arrives meanwhile becomes the next entry. Every answer of an entry, refusals
//! included, waits for it: a refusal may rest on values that only that entry makes true. What an entry adds to the
//! writer's own knowledge (keys, marks) is taken over when it is durable, so an entry that is not written never was. A
//! writer that loses its shard is thrown away, and [`super::takeover`] makes the next one from the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::draft::{Draft, Durable, Sealed};
use super::entry::{Entry, KeyRecord, Mark};
use super::keys::Keys;
use super::marks::{self, MarkState, Marks};
use super::op::{Op, Origin, Outcome};
use super::partials::Partials;
use super::time::{Times, Window};
use crate::counter::Id;

#[derive(Debug)]
pub enum Event {
    /// See [`Writer::submit`].
    Submit(Op),
    /// Asks for what the waiting operations will need, so that one entry can take them all.
    Prepare,
    /// The store's answer to [`Effect::LookUp`], with its `as_of`.
    LookedUp {
        as_of: u64,
        hash: u64,
        counter: Id,
        key: Box<str>,
        record: Option<KeyRecord>,
    },
    /// The store has room for an append. `entry_id` is drawn at random by the driver, `time_ms` is its
    /// [`super::JournalTime`]; None while format 1 is to be written.
    Seal {
        entry_id: u64,
        time_ms: Option<u64>,
    },
    Appended(Append),
    /// A checkpoint that covers everything up to `seq` is durable.
    Checkpointed {
        seq: u64,
    },
    /// Producers that sent nothing for so long are forgotten with the next entry that has a journal time.
    ExpireMarks {
        lifetime_ms: u64,
    },
}

/// What became of the append in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Append {
    Applied,
    /// No answer: send the identical entry again.
    Unknown,
    /// This attempt is certainly not written, and the shard is still ours: the store had no room. Unless an earlier attempt
    /// may have been, every operation of the entry is answered `NotApplied`; a peer's sequence stays where it was.
    NotWritten,
    /// This writer lost its shard. `applied` tells what the store settled about the entry in flight.
    Lost {
        applied: Option<bool>,
    },
}

/// Who waited, and for what.
pub type Answers = Vec<(Origin, Outcome)>;

#[derive(Debug)]
pub enum Effect {
    /// Make this counter resident, then seal again.
    Load {
        hash: u64,
        counter: Id,
    },
    /// Look this idempotency key up in the store, then seal again.
    LookUp {
        as_of: u64,
        hash: u64,
        counter: Id,
        key: Box<str>,
    },
    Append(Arc<Entry>),
    /// Nothing is to be written, but answers rest on what this writer knows: make sure that the shard is still ours
    /// now, and say [`Append::Applied`] or [`Append::Lost`], or [`Append::Unknown`] to be asked again.
    Confirm,
    /// The entry is durable: make it readable, before its answers. The slots are for [`Partials::apply_at`].
    Apply(Arc<Entry>, Vec<u32>),
    Answer(Answers),
    /// Relaxed operations that are certainly not written and that nobody can send again, since their callers were told
    /// `accepted`: whoever serves the shard now must get them. Only of a writer that is [`Writer::returning`].
    Return(Vec<Op>),
}

/// What an entry, or its being confirmed, settles.
#[derive(Debug)]
struct Unsettled {
    answers: Answers,
    /// The relaxed operations among them, of a writer that returns them.
    relaxed: Vec<Op>,
}

#[derive(Debug)]
struct InFlight {
    entry: Arc<Entry>,
    slots: Vec<u32>,
    marks: BTreeMap<u128, MarkState>,
    /// Older marks go with this entry.
    horizon_ms: Option<u64>,
    unsettled: Unsettled,
    /// An attempt had no answer: no later attempt that is not written says anything about it.
    unsure: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    InFlight(Box<InFlight>),
    /// Answers that need no entry. Another owner may have made them wrong.
    Confirming(Unsettled),
    /// Lost its shard: applies nothing any more.
    Stopped,
}

#[derive(Debug)]
struct Queued {
    op: Op,
    /// Where its counter was when it was prepared.
    slot: u32,
}

/// Before an operation is prepared.
const NO_SLOT: u32 = u32::MAX;

#[derive(Debug)]
pub struct Writer {
    shard: u32,
    epoch: u64,
    next_seq: u64,
    /// Idempotency records older than this are as if they were not there, in milliseconds.
    key_window_ms: u64,
    returning: bool,
    state: State,
    queue: VecDeque<Queued>,
    /// How many at the front of the queue are prepared.
    prepared: usize,
    keys: Keys,
    marks: Marks,
    /// Marks that are older are to go.
    lifetime_ms: Option<u64>,
    /// Empty between events; kept for its memory.
    draft: Draft,
}

impl Writer {
    pub fn new(shard: u32, epoch: u64, next_seq: u64, key_window_ms: u64) -> Self {
        Self {
            shard,
            epoch,
            next_seq,
            key_window_ms,
            returning: false,
            state: State::Idle,
            queue: VecDeque::new(),
            prepared: 0,
            keys: Keys::default(),
            marks: Marks::default(),
            lifetime_ms: None,
            draft: Draft::default(),
        }
    }

    /// Relaxed operations that are not written are given back with [`Effect::Return`], because another owner may take
    /// them. Without this they are answered like all others, for there is no other owner.
    pub fn returning(self) -> Self {
        Self { returning: true, ..self }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Operations that wait for an entry.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn in_flight(&self) -> bool {
        matches!(self.state, State::InFlight(_))
    }

    pub fn stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// The record of a key if a durable entry has one that no checkpoint holds yet.
    pub fn recent_key(&self, hash: u64, counter: &Id, key: &str) -> Option<&KeyRecord> {
        self.keys.recent(hash, counter, key)
    }

    /// What a checkpoint must hold besides partials and marks.
    pub fn key_records(&self) -> impl Iterator<Item = &KeyRecord> {
        self.keys.records()
    }

    /// Idempotency records that no checkpoint holds yet.
    pub fn keys_len(&self) -> usize {
        self.keys.len()
    }

    /// Journal time of the last durable entry; None while the journal knows no time.
    pub fn time_ms(&self) -> Option<u64> {
        self.marks.times().map(|times| times.now_ms)
    }

    /// The first journal time of the shard.
    pub fn since_ms(&self) -> Option<u64> {
        self.marks.times().map(|times| times.since_ms)
    }

    /// For how long idempotency records are in force, as of this journal time of the driver's.
    pub fn window(&self, time_ms: Option<u64>) -> Window {
        Window { length_ms: self.key_window_ms, times: self.times(time_ms) }
    }

    /// The times of an entry that is made now. Journal time never goes back, nor is it given up once it is there.
    fn times(&self, time_ms: Option<u64>) -> Option<Times> {
        match (self.marks.times(), time_ms) {
            (Some(last), now_ms) => Some(Times { now_ms: last.now_ms.max(now_ms.unwrap_or(0)), ..last }),
            (None, Some(now_ms)) => Some(Times { now_ms, since_ms: now_ms }),
            (None, None) => None,
        }
    }

    /// All marks, for a checkpoint.
    pub fn marks(&self) -> Vec<Mark> {
        self.marks.to_marks()
    }

    /// After a replay: the next entry follows the last one read.
    pub(super) fn resume(&mut self, epoch: u64, next_seq: u64) {
        (self.epoch, self.next_seq) = (epoch, next_seq);
    }

    pub(super) fn forget_checkpointed(&mut self, seq: u64) {
        self.keys.checkpointed(seq);
    }

    pub(super) fn restore_key(&mut self, record: KeyRecord, seq: u64) {
        self.keys.record(record, seq);
    }

    /// An entry with this journal time was read.
    pub(super) fn restore_time(&mut self, time_ms: u64) {
        if let Some(times) = self.times(Some(time_ms)) {
            self.marks.passed(times);
        }
    }

    pub(super) fn restore_mark(&mut self, mark: Mark) {
        self.marks.restore(mark);
    }

    /// Takes one event; what is to be done about it is appended to `effects`, to be carried out in order.
    pub fn step(&mut self, partials: &Partials, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Submit(op) => effects.extend(self.submit(op)),
            Event::Prepare => self.prepare(partials, effects),
            Event::LookedUp { as_of, hash, counter, key, record } => {
                self.keys.looked_up(as_of, hash, counter, key, record);
            }
            Event::Seal { entry_id, time_ms } if matches!(self.state, State::Idle) => {
                self.seal(partials, entry_id, time_ms, effects);
            }
            Event::Seal { .. } => {}
            Event::Appended(result) => self.appended(result, effects),
            Event::Checkpointed { seq } => self.keys.checkpointed(seq),
            Event::ExpireMarks { lifetime_ms } => self.lifetime_ms = Some(lifetime_ms),
        }
    }

    /// Queues an operation; only a writer that lost its shard answers it or gives it back at once.
    pub fn submit(&mut self, op: Op) -> Option<Effect> {
        if self.stopped() {
            return Some(match op.origin {
                Origin::Relaxed if self.returning => Effect::Return(vec![op]),
                origin => Effect::Answer(vec![(origin, Outcome::NotApplied)]),
            });
        }
        self.queue.push_back(Queued { op, slot: NO_SLOT });
        None
    }

    fn prepare(&mut self, partials: &Partials, effects: &mut Vec<Effect>) {
        for Queued { op, slot } in self.queue.range_mut(self.prepared..) {
            match partials.find(op.hash, &op.counter) {
                Some(found) => *slot = found,
                None => effects.push(Effect::Load { hash: op.hash, counter: op.counter.clone() }),
            }
            if let Some(key) = &op.key
                && self.keys.get(op.hash, &op.counter, key).is_none()
            {
                let (as_of, counter, key) = (self.keys.as_of(), op.counter.clone(), key.clone());
                effects.push(Effect::LookUp { as_of, hash: op.hash, counter, key });
            }
        }
        self.prepared = self.queue.len();
    }

    fn seal(&mut self, partials: &Partials, entry_id: u64, time_ms: Option<u64>, effects: &mut Vec<Effect>) {
        let window = self.window(time_ms);
        let (keys, marks) = (&self.keys, &self.marks);
        let durable = Durable { partials, keys, marks, window };
        let returning = self.returning;
        self.draft.begin(self.next_seq);
        let mut relaxed = Vec::new();
        while !self.draft.is_full()
            && let Some(Queued { op, slot }) = self.queue.front()
        {
            match self.draft.judge(durable, op, *slot) {
                Ok(verdict) => {
                    let Some(Queued { op, .. }) = self.queue.pop_front() else { break };
                    // The draft takes it apart, and does not keep who sent what.
                    if returning && op.origin == Origin::Relaxed {
                        relaxed.push(op.clone());
                    }
                    self.draft.take(durable, op, verdict);
                    self.prepared = self.prepared.saturating_sub(1);
                }
                Err(needs) => {
                    effects.push(needs);
                    break;
                }
            }
        }
        if self.queue.is_empty() {
            self.keys.forget_look_ups();
        }
        let time_ms = window.times.map(|times| times.now_ms);
        let Sealed { mut entry, slots, marks, answers } = self.draft.seal(self.shard, self.epoch, entry_id, time_ms);
        let unsettled = Unsettled { answers, relaxed };
        let lifetime_ms = self.lifetime_ms.take().filter(|_| self.marks.times().is_some());
        let horizon_ms =
            lifetime_ms.and_then(|lifetime_ms| self.marks.horizon_of(time_ms?.saturating_sub(lifetime_ms)));
        if let Some(horizon_ms) = horizon_ms {
            entry.marks.insert(0, marks::horizon(horizon_ms));
        }
        if entry.is_empty() {
            if !unsettled.answers.is_empty() {
                effects.push(Effect::Confirm);
                self.state = State::Confirming(unsettled);
            }
            return;
        }
        self.next_seq += 1;
        let entry = Arc::new(entry);
        effects.push(Effect::Append(entry.clone()));
        self.state = State::InFlight(Box::new(InFlight { entry, slots, marks, horizon_ms, unsettled, unsure: false }));
    }

    fn appended(&mut self, result: Append, effects: &mut Vec<Effect>) {
        let in_flight = match std::mem::replace(&mut self.state, State::Idle) {
            State::InFlight(in_flight) => Some(in_flight),
            State::Idle => None,
            State::Confirming(unsettled) => return self.confirmed(result, unsettled, effects),
            State::Stopped => {
                self.state = State::Stopped;
                return;
            }
        };
        match (in_flight, result) {
            (in_flight, Append::Lost { applied }) => self.lost(in_flight, applied, effects),
            (None, _) => {}
            (Some(in_flight), Append::Applied) => {
                for record in &in_flight.entry.keys {
                    self.keys.record(record.clone(), in_flight.entry.seq);
                }
                if let Some(time_ms) = in_flight.entry.time_ms {
                    self.restore_time(time_ms);
                }
                if let Some(horizon_ms) = in_flight.horizon_ms {
                    self.marks.expire(horizon_ms);
                }
                self.marks.applied(in_flight.marks);
                effects.push(Effect::Apply(in_flight.entry, in_flight.slots));
                give(effects, in_flight.unsettled.answers);
            }
            (Some(in_flight), Append::NotWritten) if !in_flight.unsure => {
                self.next_seq = in_flight.entry.seq;
                in_flight.unsettled.not_applied(effects);
            }
            (Some(mut in_flight), Append::Unknown | Append::NotWritten) => {
                in_flight.unsure = true;
                effects.push(Effect::Append(in_flight.entry.clone()));
                self.state = State::InFlight(in_flight);
            }
        }
    }

    fn confirmed(&mut self, result: Append, unsettled: Unsettled, effects: &mut Vec<Effect>) {
        match result {
            Append::Applied => give(effects, unsettled.answers),
            Append::Unknown | Append::NotWritten => {
                effects.push(Effect::Confirm);
                self.state = State::Confirming(unsettled);
            }
            Append::Lost { .. } => {
                unsettled.not_applied(effects);
                self.lost(None, Some(false), effects);
            }
        }
    }

    fn lost(&mut self, in_flight: Option<Box<InFlight>>, applied: Option<bool>, effects: &mut Vec<Effect>) {
        self.state = State::Stopped;
        if let Some(in_flight) = in_flight {
            match applied {
                Some(true) => {
                    effects.push(Effect::Apply(in_flight.entry, in_flight.slots));
                    give(effects, in_flight.unsettled.answers);
                }
                Some(false) => in_flight.unsettled.not_applied(effects),
                // A peer sends again what has no answer, and learns its outcome from the next writer's marks.
                None => {
                    let mut answers = all(in_flight.unsettled.answers, Outcome::Unknown);
                    answers.retain(|(origin, _)| !matches!(origin, Origin::Peer { .. }));
                    give(effects, answers);
                }
            }
        }
        self.prepared = 0;
        let mut waiting = Unsettled { answers: Answers::new(), relaxed: Vec::new() };
        for Queued { op, .. } in self.queue.drain(..) {
            waiting.answers.push((op.origin, Outcome::NotApplied));
            if self.returning && op.origin == Origin::Relaxed {
                waiting.relaxed.push(op);
            }
        }
        waiting.not_applied(effects);
    }
}

impl Unsettled {
    /// Nothing of it is written, nor ever will be.
    fn not_applied(self, effects: &mut Vec<Effect>) {
        let mut answers = all(self.answers, Outcome::NotApplied);
        if !self.relaxed.is_empty() {
            answers.retain(|(origin, _)| *origin != Origin::Relaxed);
            effects.push(Effect::Return(self.relaxed));
        }
        give(effects, answers);
    }
}

fn all(mut answers: Answers, outcome: Outcome) -> Answers {
    answers.iter_mut().for_each(|(_, each)| *each = outcome);
    answers
}

fn give(effects: &mut Vec<Effect>, answers: Answers) {
    if !answers.is_empty() {
        effects.push(Effect::Answer(answers));
    }
}
