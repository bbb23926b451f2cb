//! How far each producer's operations are applied on this shard, so that one that comes again is recognised.
//!
//! Marks expire without trusting a clock. A mark remembers the newest receive time of the operations behind it, and
//! an operation keeps its receive time however often it is sent. When marks older than the *horizon* are dropped, an
//! operation of an unknown producer from before the horizon may be one that such a mark knew: it is answered
//! `Unknown`, never applied. One from after the horizon cannot have been applied, or its mark would still be here. A
//! wrong clock costs an answer, not a count.
//!
//! The horizon is journaled before anything rests on it, as the mark of a producer that does not exist: what one owner
//! forgot, no later owner must know, or a copy on its way could still be applied.

use std::collections::{BTreeMap, VecDeque};

use super::entry::Mark;
use super::op::{Outcome, Refusal};
use crate::limits;

/// The producer under whose mark the horizon is stored. No process draws it.
const HORIZON: u128 = 0;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkState {
    through: u64,
    /// Newest receive time of its operations, in milliseconds since 1970.
    at_ms: u64,
    /// Of the sequences that the producer has not acknowledged, dense and ascending, the last being `through`.
    outcomes: VecDeque<Outcome>,
}

impl MarkState {
    fn outcome(&self, seq: u64) -> Option<Outcome> {
        let from_end = usize::try_from(self.through.checked_sub(seq)?).ok()?;
        let nth = self.outcomes.len().checked_sub(from_end + 1)?;
        self.outcomes.get(nth).copied()
    }

    /// Takes the next sequence in. The producer has every answer up to `acked`.
    pub fn push(&mut self, outcome: Outcome, acked: u64, at_ms: u64) {
        self.through += 1;
        self.at_ms = self.at_ms.max(at_ms);
        self.outcomes.push_back(outcome);
        let unanswered = usize::try_from(self.through.saturating_sub(acked)).unwrap_or(usize::MAX);
        while self.outcomes.len() > unanswered.clamp(1, limits::PRODUCER_UNANSWERED_MAX) {
            self.outcomes.pop_front();
        }
    }

    pub fn to_mark(&self, producer: u128) -> Mark {
        let first = self.through + 1 - self.outcomes.len() as u64;
        let outcomes = (first..).zip(self.outcomes.iter().copied()).collect();
        Mark { producer, through: self.through, at_ms: self.at_ms, outcomes }
    }
}

#[derive(Debug, Default)]
pub struct Marks {
    producers: BTreeMap<u128, MarkState>,
    horizon_ms: u64,
}

impl Marks {
    pub fn get(&self, producer: u128) -> Option<&MarkState> {
        self.producers.get(&producer)
    }

    /// The answer to an operation that is not the next of its producer; None: it is the next. `state` is the
    /// producer's mark, that of the entry being made before the durable one.
    pub fn repeated(&self, state: Option<&MarkState>, producer: u128, seq: u64, at_ms: u64) -> Option<Outcome> {
        let gap = Some(Outcome::Refused(Refusal::Gap));
        match state {
            _ if producer == HORIZON || seq == 0 => gap,
            Some(state) if seq > state.through => {
                if seq == state.through + 1 {
                    None
                } else {
                    gap
                }
            }
            // An outcome the producer acknowledged is forgotten, and it will not listen to this answer.
            Some(state) => Some(state.outcome(seq).unwrap_or(Outcome::Unknown)),
            None if at_ms < self.horizon_ms => Some(Outcome::Unknown),
            None => {
                if seq == 1 {
                    None
                } else {
                    gap
                }
            }
        }
    }

    /// The marks of an entry that is durable.
    pub fn applied(&mut self, marks: BTreeMap<u128, MarkState>) {
        self.producers.extend(marks);
    }

    /// A mark read from the journal or a checkpoint; the one read last stays.
    pub fn restore(&mut self, mark: Mark) {
        if mark.producer == HORIZON {
            return self.expire(mark.through);
        }
        let outcomes = mark.outcomes.into_iter().map(|(_, outcome)| outcome).collect();
        self.producers.insert(mark.producer, MarkState { through: mark.through, at_ms: mark.at_ms, outcomes });
    }

    /// Whether a producer sent nothing since `horizon_ms`.
    pub fn any_before(&self, horizon_ms: u64) -> bool {
        self.producers.values().any(|state| state.at_ms < horizon_ms)
    }

    /// Drops the marks of producers that sent nothing since `horizon_ms`. That must be durable already.
    pub fn expire(&mut self, horizon_ms: u64) {
        self.producers.retain(|_, state| state.at_ms >= horizon_ms);
        self.horizon_ms = self.horizon_ms.max(horizon_ms);
    }

    /// All of them, for a checkpoint.
    pub fn to_marks(&self) -> Vec<Mark> {
        let horizon =
            Mark { producer: HORIZON, through: self.horizon_ms, at_ms: self.horizon_ms, outcomes: Vec::new() };
        let horizon = (self.horizon_ms > 0).then_some(horizon);
        horizon.into_iter().chain(self.producers.iter().map(|(&producer, state)| state.to_mark(producer))).collect()
    }
}

/// The mark that carries a horizon. It comes before all others.
pub(super) fn horizon(horizon_ms: u64) -> Mark {
    Mark { producer: HORIZON, through: horizon_ms, at_ms: horizon_ms, outcomes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APPLIED: Outcome = Outcome::Applied { value: 7, replayed: false };

    fn marks(producer: u128, count: u64, at_ms: u64) -> Marks {
        let mut state = MarkState::default();
        for _ in 0..count {
            state.push(APPLIED, 0, at_ms);
        }
        let mut marks = Marks::default();
        marks.applied(BTreeMap::from([(producer, state)]));
        marks
    }

    fn ask(marks: &Marks, producer: u128, seq: u64, at_ms: u64) -> Option<Outcome> {
        marks.repeated(marks.get(producer), producer, seq, at_ms)
    }

    #[test]
    fn sequences_are_dense() {
        let marks = marks(5, 3, 100);
        assert_eq!(ask(&marks, 5, 4, 100), None);
        assert_eq!(ask(&marks, 5, 5, 100), Some(Outcome::Refused(Refusal::Gap)));
        assert_eq!(ask(&marks, 5, 2, 100), Some(APPLIED));
        assert_eq!(ask(&marks, 5, 0, 100), Some(Outcome::Refused(Refusal::Gap)));
        assert_eq!(ask(&marks, 6, 1, 100), None);
        assert_eq!(ask(&marks, 6, 2, 100), Some(Outcome::Refused(Refusal::Gap)));
    }

    #[test]
    fn acknowledged_outcomes_are_forgotten() {
        let mut state = MarkState::default();
        for acked in [0, 0, 2] {
            state.push(APPLIED, acked, 1);
        }
        assert_eq!((state.outcome(2), state.outcome(3), state.outcome(4)), (None, Some(APPLIED), None));
        assert_eq!(state.to_mark(9).outcomes, [(3, APPLIED)]);
    }

    #[test]
    fn an_operation_from_before_the_horizon_is_never_applied_again() {
        let mut marks = marks(5, 1, 100);
        marks.expire(100);
        assert_eq!(ask(&marks, 5, 1, 100), Some(APPLIED), "a mark at the horizon stays");
        marks.expire(101);
        assert_eq!(ask(&marks, 5, 1, 100), Some(Outcome::Unknown));
        assert_eq!(ask(&marks, 5, 2, 101), Some(Outcome::Refused(Refusal::Gap)), "the producer must begin anew");
        assert_eq!(ask(&marks, 6, 1, 101), None);
    }

    #[test]
    fn the_horizon_survives_a_checkpoint() {
        let mut before = marks(5, 1, 100);
        before.expire(200);
        let mut after = Marks::default();
        before.to_marks().into_iter().for_each(|mark| after.restore(mark));
        assert_eq!(ask(&after, 5, 1, 100), Some(Outcome::Unknown));
        assert_eq!(ask(&after, HORIZON, 201, 300), Some(Outcome::Refused(Refusal::Gap)));
    }

    #[test]
    fn a_mark_survives_a_checkpoint() {
        let before = marks(5, 3, 100);
        let mut after = Marks::default();
        before.to_marks().into_iter().for_each(|mark| after.restore(mark));
        assert_eq!(after.get(5), before.get(5));
    }
}
