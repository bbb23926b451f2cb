//! How far each producer's operations are applied on this shard, so that one that comes again is recognised.
//!
//! Marks expire without a wall clock. An operation has a journal time that the shard had reached before it was first sent. A
//! mark has the journal time of the last entry with an operation of its producer, or a later one that such an operation had.
//! When marks are dropped, the *horizon*
//! rises above the youngest of them. An operation of an unknown producer from before the horizon may be one that such a
//! mark knew: it is answered `Forgotten`, never applied. One from after the horizon cannot have been applied, or its mark
//! would still be here. The producer knows whether a copy of the operation may be under way from before; if not, it sends it
//! as a new one.
//!
//! The horizon is journaled before anything rests on it, as the mark of a producer that does not exist: what one owner
//! forgot, no later owner must know, or a copy on its way could still be applied. Journal time goes into a checkpoint in the
//! same way. A shard whose entries have no journal time yet drops no marks.

use std::collections::{BTreeMap, VecDeque};

use super::entry::Mark;
use super::op::{Origin, Outcome, Refusal};
use super::time::Times;
use crate::limits;

/// The producer under whose mark the horizon is stored.
const HORIZON: u128 = 0;
/// The producer under whose mark a checkpoint stores journal time: `through` is the last, `at_ms` the first of the shard.
const TIMES: u128 = 1;
/// No process draws an id up to this one.
pub const RESERVED: u128 = TIMES;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkState {
    through: u64,
    /// As [`Mark::at_ms`].
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
    /// In journal time; in that of wall clocks while the journal knows no time.
    horizon_ms: u64,
    /// None: the journal knows no time yet.
    times: Option<Times>,
}

impl Marks {
    pub fn get(&self, producer: u128) -> Option<&MarkState> {
        self.producers.get(&producer)
    }

    /// Journal time as of the last durable entry.
    pub fn times(&self) -> Option<Times> {
        self.times
    }

    /// The answer to an operation that is not the next of its producer; None: it is the next. `state` is the
    /// producer's mark, that of the entry being made before the durable one. `times` are those of the entry being made.
    pub fn repeated(
        &self,
        state: Option<&MarkState>,
        origin: Origin,
        at_ms: u64,
        times: Option<Times>,
    ) -> Option<Outcome> {
        let Origin::Peer { producer, seq, as_of_ms, .. } = origin else { return None };
        let gap = Some(Outcome::Refused(Refusal::Gap));
        match state {
            _ if producer <= RESERVED || seq == 0 => gap,
            Some(state) if seq > state.through => {
                if seq == state.through + 1 {
                    None
                } else {
                    gap
                }
            }
            // An outcome the producer acknowledged is forgotten, and it will not listen to this answer.
            Some(state) => Some(state.outcome(seq).unwrap_or(Outcome::Unknown)),
            None => match times {
                Some(Times { now_ms, .. }) if as_of_ms < self.horizon(times) => {
                    Some(Outcome::Refused(Refusal::Forgotten { time_ms: now_ms }))
                }
                None if at_ms < self.horizon_ms => Some(Outcome::Unknown),
                _ if seq == 1 => None,
                _ => gap,
            },
        }
    }

    /// The horizon for an entry with these times.
    fn horizon(&self, times: Option<Times>) -> u64 {
        match (self.times, times) {
            (None, Some(times)) => self.first_horizon(times),
            _ => self.horizon_ms,
        }
    }

    /// The horizon with which journal time begins: producers that were known or forgotten before it counted in wall clocks.
    fn first_horizon(&self, times: Times) -> u64 {
        if self.horizon_ms == 0 && self.producers.is_empty() { 0 } else { times.since_ms }
    }

    /// The marks of an entry that is durable.
    pub fn applied(&mut self, marks: BTreeMap<u128, MarkState>) {
        self.producers.extend(marks);
    }

    /// A durable entry had this journal time, and the first of the shard was that. Comes before the marks of the entry.
    pub fn passed(&mut self, times: Times) {
        if self.times.is_none() {
            self.horizon_ms = self.first_horizon(times);
            self.producers.values_mut().for_each(|state| state.at_ms = times.since_ms);
        }
        self.times = Some(times);
    }

    /// A mark read from the journal or a checkpoint; the one read last stays.
    pub fn restore(&mut self, mark: Mark) {
        match mark.producer {
            HORIZON => self.expire(mark.through),
            TIMES => self.times = Some(Times { now_ms: mark.through, since_ms: mark.at_ms }),
            producer => {
                let outcomes = mark.outcomes.into_iter().map(|(_, outcome)| outcome).collect();
                self.producers.insert(producer, MarkState { through: mark.through, at_ms: mark.at_ms, outcomes });
            }
        }
    }

    /// The horizon under which all marks may go that are older than `before_ms`; None when there is none.
    pub fn horizon_of(&self, before_ms: u64) -> Option<u64> {
        let old = self.producers.values().map(|state| state.at_ms).filter(|&at_ms| at_ms < before_ms);
        old.max().map(|youngest_ms| youngest_ms.saturating_add(1))
    }

    /// Drops the marks of producers that sent nothing since `horizon_ms`. That must be durable already.
    pub fn expire(&mut self, horizon_ms: u64) {
        self.producers.retain(|_, state| state.at_ms >= horizon_ms);
        self.horizon_ms = self.horizon_ms.max(horizon_ms);
    }

    /// All of them, for a checkpoint.
    pub fn to_marks(&self) -> Vec<Mark> {
        let times = self.times.map(|Times { now_ms, since_ms }| Mark {
            producer: TIMES,
            through: now_ms,
            at_ms: since_ms,
            outcomes: Vec::new(),
        });
        let horizon = (self.horizon_ms > 0).then(|| horizon(self.horizon_ms));
        let reserved = times.into_iter().chain(horizon);
        reserved.chain(self.producers.iter().map(|(&producer, state)| state.to_mark(producer))).collect()
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

    fn timed(now_ms: u64) -> Option<Times> {
        Some(Times { now_ms, since_ms: 1 })
    }

    /// At journal time 1000.
    fn ask(marks: &Marks, producer: u128, seq: u64, as_of_ms: u64) -> Option<Outcome> {
        let origin = Origin::Peer { producer, seq, acked: 0, as_of_ms };
        marks.repeated(marks.get(producer), origin, 0, timed(1000))
    }

    const FORGOTTEN: Outcome = Outcome::Refused(Refusal::Forgotten { time_ms: 1000 });

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
        marks.times = timed(100);
        assert_eq!(marks.horizon_of(100), None);
        assert_eq!(marks.horizon_of(150), Some(101), "it comes from what is dropped");
        marks.expire(100);
        assert_eq!(ask(&marks, 5, 1, 0), Some(APPLIED), "a mark at the horizon stays");
        marks.expire(101);
        assert_eq!(ask(&marks, 5, 1, 100), Some(FORGOTTEN));
        assert_eq!(ask(&marks, 5, 2, 100), Some(FORGOTTEN));
        assert_eq!(ask(&marks, 5, 2, 101), Some(Outcome::Refused(Refusal::Gap)), "the producer must begin anew");
        assert_eq!(ask(&marks, 6, 1, 101), None);
    }

    #[test]
    fn the_horizon_and_the_time_survive_a_checkpoint() {
        let mut before = marks(5, 1, 100);
        before.passed(Times { now_ms: 900, since_ms: 50 });
        before.expire(200);
        let mut after = Marks::default();
        before.to_marks().into_iter().for_each(|mark| after.restore(mark));
        assert_eq!(after.times(), Some(Times { now_ms: 900, since_ms: 50 }));
        assert_eq!(ask(&after, 5, 1, 199), Some(FORGOTTEN));
        assert_eq!(ask(&after, 6, 1, 200), None);
        for reserved in 0..=RESERVED {
            assert_eq!(ask(&after, reserved, 201, 300), Some(Outcome::Refused(Refusal::Gap)));
        }
    }

    #[test]
    fn marks_of_wall_clocks_are_as_old_as_journal_time() {
        let mut marks = marks(5, 1, 9_999);
        let before = Origin::Peer { producer: 6, seq: 1, acked: 0, as_of_ms: 0 };
        assert_eq!(marks.repeated(None, before, 1, None), None);
        let forgotten = Some(Outcome::Refused(Refusal::Forgotten { time_ms: 700 }));
        let begins = Times { now_ms: 700, since_ms: 700 };
        assert_eq!(marks.repeated(None, before, 1, Some(begins)), forgotten, "a forgotten one may have sent it");
        marks.passed(begins);
        assert_eq!(marks.get(5).map(|state| state.at_ms), Some(700));
        assert_eq!(ask(&marks, 6, 1, 699), Some(FORGOTTEN));
        assert_eq!(ask(&marks, 6, 1, 700), None);
        assert_eq!(ask(&marks, 5, 1, 0), Some(APPLIED));
    }

    #[test]
    fn a_mark_survives_a_checkpoint() {
        let before = marks(5, 3, 100);
        let mut after = Marks::default();
        before.to_marks().into_iter().for_each(|mark| after.restore(mark));
        assert_eq!(after.get(5), before.get(5));
    }
}
