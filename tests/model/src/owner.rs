//! What one owner knows and does: takeover, appends and their outcome, rotation, checkpoint, dropping, exact reads.
//!
//! An owner that stops between two steps is one that takes no further step, and one that is paused takes its next step
//! late. So neither needs an action of its own. An owner that restarts begins a new takeover and has forgotten all else.

use crate::store::{Answer, Epoch, Op, Position, Request, Segment, SegmentId, Seq, Store};
use crate::variants::Variant;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Owns nothing: never did, or learned that it was fenced.
    Idle,
    /// Raised the epoch in `shards`; next it reads pointer and position.
    Raised { epoch: Epoch },
    /// Follows the segments from the pointer on. `seen` is what a takeover that reads too early has read.
    Walking { epoch: Epoch, pointer: SegmentId, position: Position, at: SegmentId, seen: Option<Segment> },
    /// Stands on an unsealed segment that carries its epoch; next it replays.
    Fencing { epoch: Epoch, pointer: SegmentId, position: Position, at: SegmentId, tail: Seq },
    /// Serves, whether or not somebody has fenced it since.
    Serving(Serving),
    /// Its append was refused under a higher epoch; next it reads the seq of the append.
    Settling { id: SegmentId, seq: Seq, op: Op },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serving {
    pub epoch: Epoch,
    pub segment: SegmentId,
    /// Every entry that it knows to be journaled: what its readable state is made of.
    pub log: Vec<Op>,
    /// Sealed segments that it has not dropped, in order.
    pub sealed: Vec<SegmentId>,
    /// Where the pointer and the position were when it last heard.
    pub pointer: SegmentId,
    pub position: (SegmentId, Seq),
    /// How many segment ids it has made in this epoch.
    pub created: u8,
    /// The next segment, created and not yet linked.
    pub rotating: Option<SegmentId>,
    pub waiting: Option<Waiting>,
    pub read: Option<Read>,
    pub confirmation: Option<Confirmation>,
}

/// A request that it sends again until it has an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub request: Request,
    /// The answer on its way back.
    pub answer: Option<Answer>,
    /// The exact read that waits arrived before this was sent.
    pub covers_read: bool,
}

/// An exact read that waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    /// The highest seq that was acknowledged, by anybody, when it arrived. No owner knows this.
    pub floor: Seq,
}

/// A SERIAL read of the epoch in `shards`, whose answer is on its way back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Confirmation {
    pub epoch_stands: bool,
    /// The exact read that waits arrived before this began.
    pub covers_read: bool,
}

/// What an operation's caller is told, or an exact read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied { op: Op, seq: Seq },
    NotApplied { op: Op },
    Unknown { op: Op },
    ReadAnswered { floor: Seq, seq: Seq },
}

impl Owner {
    /// Takes the next step of a takeover that has raised the epoch in `shards`. False when it has none to take.
    pub fn take_over_step(&mut self, store: &mut Store, variant: Variant) -> bool {
        *self = match std::mem::replace(self, Owner::Idle) {
            Owner::Raised { epoch } => {
                let shard = &store.shard;
                let (pointer, position) = (shard.pointer, shard.position.clone());
                match shard.epoch == epoch {
                    true => Owner::Walking { epoch, pointer, position, at: pointer, seen: None },
                    false => Owner::Idle,
                }
            }
            Owner::Walking { epoch, pointer, position, at, seen: None }
                if variant == Variant::TakeoverReadsBeforeRaise =>
            {
                match store.segments.get(&at) {
                    Some(segment) => Owner::Walking { epoch, pointer, position, at, seen: Some(segment.clone()) },
                    None => Owner::Raised { epoch },
                }
            }
            Owner::Walking { epoch, pointer, position, at, seen } => match store.raise_segment(at, epoch) {
                // Missing, or somebody is further: start again, which ends when `shards` has a higher epoch.
                None => Owner::Raised { epoch },
                Some(raised) => {
                    let segment = seen.unwrap_or(raised);
                    match segment.next {
                        Some(next) if variant != Variant::TakeoverIgnoresNext => {
                            Owner::Walking { epoch, pointer, position, at: next, seen: None }
                        }
                        _ => Owner::Fencing { epoch, pointer, position, at, tail: segment.tail },
                    }
                }
            },
            Owner::Fencing { epoch, pointer, position, at, tail } => match store.replay(&position) {
                Err(_) => Owner::Raised { epoch },
                Ok((log, walked)) => Owner::Serving(Serving::begin(epoch, pointer, position, at, tail, log, walked)),
            },
            other => {
                *self = other;
                return false;
            }
        };
        true
    }

    /// Reads the seq of an append that was refused under a higher epoch: its entry there means applied, absence means
    /// not applied, and a missing partition decides nothing.
    pub fn settle(&mut self, store: &Store, variant: Variant) -> Option<Outcome> {
        let Owner::Settling { id, seq, op } = *self else { return None };
        *self = Owner::Idle;
        Some(match store.segments.get(&id) {
            Some(segment) if segment.entries.get(&seq) == Some(&op) => Outcome::Applied { op, seq },
            Some(_) => Outcome::NotApplied { op },
            None if variant == Variant::AbsenceInDropped => Outcome::NotApplied { op },
            None => Outcome::Unknown { op },
        })
    }

    /// Takes the answer to the request that it waits for. Returns what callers are told, and the request, of which
    /// further copies may still be on their way.
    pub fn receive(&mut self, variant: Variant) -> Option<(Vec<Outcome>, Request)> {
        let Owner::Serving(serving) = self else { return None };
        serving.waiting.as_ref()?.answer.as_ref()?;
        let Waiting { request, answer, covers_read } = serving.waiting.take()?;
        let answer = answer?;
        let done = matches!(answer, Answer::Applied | Answer::Refused { done: true, .. });
        let mut outcomes = Vec::new();
        match &request {
            &Request::Append { id, seq, op, .. } if !done => *self = Owner::Settling { id, seq, op },
            _ if !done => *self = Owner::Idle,
            &Request::Append { seq, op, .. } => {
                serving.log.push(op);
                outcomes.push(Outcome::Applied { op, seq });
                // It applied after the read arrived, also when a copy of it is refused under a higher epoch by now.
                if covers_read || variant == Variant::ConfirmedBeforeArrival {
                    outcomes.extend(serving.answer_read());
                }
            }
            &Request::Create { id, .. } => serving.rotating = Some(id),
            &Request::Seal { next, .. } => {
                serving.sealed.push(serving.segment);
                serving.segment = next;
                serving.rotating = None;
            }
            &Request::MovePointer { to, .. } => serving.pointer = to,
            Request::MovePosition { to, covered, .. } => serving.position = (*to, covered.len() as Seq),
            Request::Drop { id } => serving.sealed.retain(|sealed| sealed != id),
        }
        Some((outcomes, request))
    }

    /// Takes the answer to the SERIAL read of the epoch.
    pub fn confirmed(&mut self, variant: Variant) -> Option<Outcome> {
        let Owner::Serving(serving) = self else { return None };
        let Confirmation { epoch_stands, covers_read } = serving.confirmation.take()?;
        if !epoch_stands {
            // A read is answered by the next owner. An append in flight goes on until it has its outcome.
            serving.take_read();
            return None;
        }
        if covers_read || variant == Variant::ConfirmedBeforeArrival { serving.answer_read() } else { None }
    }
}

impl Serving {
    fn begin(
        epoch: Epoch,
        pointer: SegmentId,
        position: Position,
        at: SegmentId,
        tail: Seq,
        mut log: Vec<Op>,
        walked: Vec<SegmentId>,
    ) -> Self {
        // What the fence did not cover is not served: in the protocol as specified there is nothing beyond it.
        log.truncate(usize::from(tail));
        let sealed = walked.into_iter().take_while(|id| *id != at).collect();
        let position = (position.segment, position.covered.len() as Seq);
        Self {
            epoch,
            segment: at,
            log,
            sealed,
            pointer,
            position,
            created: 0,
            rotating: None,
            waiting: None,
            read: None,
            confirmation: None,
        }
    }

    pub fn tail(&self) -> Seq {
        self.log.len() as Seq
    }

    /// Free to send its next request. The confirmation of reads goes beside it.
    pub fn is_free(&self) -> bool {
        self.waiting.is_none()
    }

    pub fn send(&mut self, request: Request) {
        self.waiting = Some(Waiting { request, answer: None, covers_read: self.read.is_some() });
    }

    pub fn append(&self, op: Op) -> Request {
        Request::Append { id: self.segment, seq: self.tail() + 1, op, epoch: self.epoch }
    }

    /// First step of a rotation. The id is fresh: epoch and number.
    pub fn create(&mut self, variant: Variant) -> Request {
        self.created += 1;
        let fresh = SegmentId { epoch: self.epoch, number: self.created };
        let id = match variant {
            Variant::SegmentIdsReused => SegmentId { epoch: 0, number: self.segment.number + 1 },
            _ => fresh,
        };
        Request::Create { id, epoch: self.epoch, tail: self.tail() }
    }

    /// Second step, when the first is done.
    pub fn seal(&self, variant: Variant) -> Option<Request> {
        let next = self.rotating?;
        if variant == Variant::PointerBeforeSeal && self.pointer != next {
            return None;
        }
        Some(Request::Seal { id: self.segment, next, epoch: self.epoch, tail: self.tail() })
    }

    /// Third step, at any time after the second: the pointer goes to the live segment.
    pub fn move_pointer(&self, variant: Variant) -> Option<Request> {
        let to = match (variant, self.rotating) {
            (Variant::PointerBeforeSeal, Some(next)) => next,
            _ => self.segment,
        };
        (self.pointer != to).then_some(Request::MovePointer { from: self.pointer, to, epoch: self.epoch })
    }

    /// A checkpoint up to the tail.
    pub fn move_position(&self) -> Option<Request> {
        let to = (self.segment, self.tail());
        (self.position != to).then(|| Request::MovePosition {
            from: self.position,
            to: self.segment,
            covered: self.log.clone(),
            epoch: self.epoch,
        })
    }

    /// The oldest sealed segment, once pointer and position have passed it.
    pub fn drop_segment(&self, variant: Variant) -> Option<Request> {
        let id = *self.sealed.first()?;
        let passed = |by: SegmentId| by == self.segment || self.sealed[1..].contains(&by);
        let by_pointer = passed(self.pointer) || variant == Variant::DropBeforePointer;
        let by_position = passed(self.position.0) || variant == Variant::DropBeforePosition;
        (by_pointer && by_position).then_some(Request::Drop { id })
    }

    /// Answers the exact read that waits with all that is journaled.
    fn answer_read(&mut self) -> Option<Outcome> {
        self.take_read().map(|Read { floor }| Outcome::ReadAnswered { floor, seq: self.tail() })
    }

    /// Ends the read that waits. What is in flight now confirms no read that comes after.
    fn take_read(&mut self) -> Option<Read> {
        if let Some(waiting) = &mut self.waiting {
            waiting.covers_read = false;
        }
        if let Some(confirmation) = &mut self.confirmation {
            confirmation.covers_read = false;
        }
        self.read.take()
    }
}
