//! Owners and store together: the state of the model, and every step that can be taken in it.
//!
//! Requests travel as badly as they can. While an owner waits for an answer, its request may arrive at any time, any
//! number of times, and each answer may be lost: that is sending the identical request again after a timeout. When the
//! owner has gone on, copies may still be on their way, and they arrive at any later time or never. Answers are
//! delivered late, too. Reads are one step each; one whose answer is late is one whose reader is paused after it.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::owner::{Confirmation, Outcome, Owner, Read, Serving};
use crate::properties;
use crate::store::{Answer, Request, Seq, Store};
use crate::variants::Variant;

/// How much may happen, which keeps the number of states finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    pub owners: u8,
    /// Takeovers, over all owners.
    pub epochs: u8,
    /// Operations, each of which is sent as one entry.
    pub ops: u8,
    /// Rotations that are begun.
    pub rotations: u8,
    /// Exact reads.
    pub reads: u8,
}

impl Bounds {
    /// Bounds with two owners.
    pub const fn new(epochs: u8, ops: u8, rotations: u8, reads: u8) -> Self {
        Self { owners: 2, epochs, ops, rotations, reads }
    }
}

/// The model: a protocol within bounds.
#[derive(Clone, Debug)]
pub struct Journal {
    pub variant: Variant,
    pub bounds: Bounds,
}

/// What the caller of an operation knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Nothing yet: it is in flight, or its owner stopped.
    Nothing,
    Applied(Seq),
    NotApplied,
    /// That nobody can know: its segment was dropped before its owner learned the outcome.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub store: Store,
    pub owners: Vec<Owner>,
    /// Copies of requests on which nobody waits any more.
    pub late: BTreeSet<Request>,
    /// What became of each operation, by its id.
    pub told: Vec<Told>,
    pub rotations: u8,
    pub reads: u8,
    /// An exact read was answered with less than was acknowledged before it arrived.
    pub read_below: bool,
}

/// One step. The number is that of the owner that takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin a takeover: raise the epoch in `shards`. Everything that the owner knew is forgotten.
    Raise(usize),
    /// The next step of the takeover.
    TakeOver(usize),
    /// Send a request.
    Append(usize),
    Create(usize),
    Seal(usize),
    MovePointer(usize),
    MovePosition(usize),
    Drop(usize),
    /// The request on which the owner waits arrives. The flag says that the answer will.
    Arrive(usize, bool),
    /// A late copy of a request arrives.
    ArriveLate(Request),
    /// The owner takes the answer to its request.
    Receive(usize),
    /// The owner reads what became of its append.
    Settle(usize),
    /// The broken way to do that, without an answer to the append.
    SettleByRead(usize),
    /// An exact read arrives at the owner.
    Read(usize),
    /// The SERIAL read of the epoch is done at the store.
    Confirm(usize),
    /// Its answer arrives.
    Confirmed(usize),
}

impl State {
    /// The highest seq that anybody was told of.
    pub fn acknowledged(&self) -> Seq {
        let seqs = self.told.iter().filter_map(|told| match told {
            Told::Applied(seq) => Some(*seq),
            _ => None,
        });
        seqs.max().unwrap_or(0)
    }

    fn serving(&mut self, owner: usize) -> Option<&mut Serving> {
        match &mut self.owners[owner] {
            Owner::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    fn tell(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Applied { op, seq } => self.told[usize::from(op)] = Told::Applied(seq),
            Outcome::NotApplied { op } => self.told[usize::from(op)] = Told::NotApplied,
            Outcome::Unknown { op } => self.told[usize::from(op)] = Told::Unknown,
            Outcome::ReadAnswered { floor, seq } => self.read_below |= seq < floor,
        }
    }
}

impl Journal {
    fn actions_of(&self, state: &State, i: usize, serving: &Serving, actions: &mut Vec<Action>) {
        if serving.is_free() {
            if serving.rotating.is_none() {
                if state.told.len() < usize::from(self.bounds.ops) {
                    actions.push(Action::Append(i));
                }
                if state.rotations < self.bounds.rotations {
                    actions.push(Action::Create(i));
                }
                if serving.move_position().is_some() {
                    actions.push(Action::MovePosition(i));
                }
            }
            if serving.seal(self.variant).is_some() {
                actions.push(Action::Seal(i));
            }
            if serving.move_pointer(self.variant).is_some() {
                actions.push(Action::MovePointer(i));
            }
            if serving.drop_segment(self.variant).is_some() {
                actions.push(Action::Drop(i));
            }
        } else {
            actions.push(Action::Arrive(i, false));
            actions.push(Action::Arrive(i, true));
            actions.push(Action::Receive(i));
            if self.variant == Variant::SettledByRead {
                actions.push(Action::SettleByRead(i));
            }
        }
        if serving.read.is_none() && state.reads < self.bounds.reads {
            actions.push(Action::Read(i));
        }
        match &serving.confirmation {
            Some(_) => actions.push(Action::Confirmed(i)),
            None if serving.read.is_some() || self.variant == Variant::ConfirmedBeforeArrival => {
                actions.push(Action::Confirm(i));
            }
            None => {}
        }
    }

    /// Sends what `make` returns for a serving owner.
    fn send(&self, state: &mut State, i: usize, make: impl FnOnce(&mut Serving) -> Option<Request>) -> Option<()> {
        let serving = state.serving(i)?;
        let request = make(serving)?;
        serving.send(request);
        Some(())
    }

    fn arrive(&self, state: &mut State, i: usize, answered: bool) -> Option<()> {
        let waiting = state.serving(i)?.waiting.as_ref()?;
        if answered && waiting.answer.is_some() {
            return None;
        }
        let request = waiting.request.clone();
        let answer = state.store.apply(&request, self.variant);
        match answered {
            true => state.serving(i)?.waiting.as_mut()?.answer = Some(answer),
            false if answer != Answer::Applied => return None,
            false => {}
        }
        Some(())
    }

    /// Copies of the request on which the owner waited may arrive after it has gone.
    fn forget(&self, state: &mut State, i: usize) {
        if let Some(waiting) = state.serving(i).and_then(|serving| serving.waiting.take()) {
            state.late.insert(waiting.request);
        }
    }

    fn step(&self, state: &mut State, action: &Action) -> Option<()> {
        let variant = self.variant;
        match *action {
            Action::Raise(i) => {
                self.forget(state, i);
                state.store.shard.epoch += 1;
                state.owners[i] = Owner::Raised { epoch: state.store.shard.epoch };
            }
            Action::TakeOver(i) => {
                state.owners[i].take_over_step(&mut state.store, variant).then_some(())?;
            }
            Action::Append(i) => {
                let op = state.told.len() as u8;
                state.told.push(Told::Nothing);
                self.send(state, i, |serving| Some(serving.append(op)))?;
            }
            Action::Create(i) => {
                state.rotations += 1;
                self.send(state, i, |serving| Some(serving.create(variant)))?;
            }
            Action::Seal(i) => self.send(state, i, |serving| serving.seal(variant))?,
            Action::MovePointer(i) => self.send(state, i, |serving| serving.move_pointer(variant))?,
            Action::MovePosition(i) => self.send(state, i, |serving| serving.move_position())?,
            Action::Drop(i) => self.send(state, i, |serving| serving.drop_segment(variant))?,
            Action::Arrive(i, answered) => self.arrive(state, i, answered)?,
            Action::ArriveLate(ref request) => {
                if state.store.apply(request, variant) != Answer::Applied {
                    return None;
                }
            }
            Action::Receive(i) => {
                let (outcomes, request) = state.owners[i].receive(variant)?;
                state.late.insert(request);
                outcomes.into_iter().for_each(|outcome| state.tell(outcome));
            }
            Action::Settle(i) => {
                let outcome = state.owners[i].settle(&state.store, variant)?;
                state.tell(outcome);
            }
            Action::SettleByRead(i) => self.settle_by_read(state, i)?,
            Action::Read(i) => {
                let floor = state.acknowledged();
                state.reads += 1;
                state.serving(i)?.read = Some(Read { floor });
            }
            Action::Confirm(i) => {
                let epoch = state.store.shard.epoch;
                let serving = state.serving(i)?;
                let covers_read = serving.read.is_some();
                let epoch_stands = serving.epoch == epoch || variant == Variant::ReadNotConfirmed;
                serving.confirmation = Some(Confirmation { epoch_stands, covers_read });
            }
            Action::Confirmed(i) => {
                let outcome = state.owners[i].confirmed(variant);
                outcome.into_iter().for_each(|outcome| state.tell(outcome));
            }
        }
        Some(())
    }

    fn settle_by_read(&self, state: &mut State, i: usize) -> Option<()> {
        let serving = state.serving(i)?;
        let (epoch, waiting) = (serving.epoch, serving.waiting.clone()?);
        let Request::Append { id, seq, op, .. } = waiting.request else { return None };
        let segment = state.store.segments.get(&id)?;
        if segment.epoch != epoch || segment.entries.contains_key(&seq) {
            return None;
        }
        self.forget(state, i);
        state.tell(Outcome::NotApplied { op });
        Some(())
    }
}

impl Model for Journal {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            store: Store::new(),
            owners: vec![Owner::Idle; usize::from(self.bounds.owners)],
            late: BTreeSet::new(),
            told: Vec::new(),
            rotations: 0,
            reads: 0,
            read_below: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (i, owner) in state.owners.iter().enumerate() {
            // Owners are alike, so the first of them may as well be the first to own the shard.
            if state.store.shard.epoch < self.bounds.epochs && (i == 0 || state.store.shard.epoch > 0) {
                actions.push(Action::Raise(i));
            }
            match owner {
                Owner::Idle => {}
                Owner::Raised { .. } | Owner::Walking { .. } | Owner::Fencing { .. } => {
                    actions.push(Action::TakeOver(i));
                }
                Owner::Settling { .. } => actions.push(Action::Settle(i)),
                Owner::Serving(serving) => self.actions_of(state, i, serving, actions),
            }
        }
        actions.extend(state.late.iter().cloned().map(Action::ArriveLate));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, &action)?;
        let store = &state.store;
        state.late.retain(|request| !store.can_never_apply(request, self.variant));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
