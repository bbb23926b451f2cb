//! Requests of one serving thread that wait for their answers from the commit thread.
//!
//! A slot is used again only when every operation of it was answered, even if nobody listens any more: an answer that
//! comes late must not reach somebody else.

use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use crate::shard::Outcome;

pub type Outcomes = SmallVec<[Outcome; 1]>;

#[derive(Debug, Default)]
pub struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Counted by [`Slots::expire`].
    tick: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Operations not answered yet.
    remaining: usize,
    outcomes: Outcomes,
    waker: Option<Waker>,
    began_tick: u64,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Waiting,
    /// The deadline passed: whoever waits gets `Unknown` for what is missing.
    Expired,
    /// Nobody waits.
    Abandoned,
}

impl Slots {
    /// A slot for `count` operations, at least one.
    pub fn take(&mut self, count: usize) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("the queue's limit bounds the slots")
        });
        let slot = &mut self.slots[at as usize];
        slot.remaining = count;
        slot.outcomes.clear();
        slot.outcomes.resize(count, Outcome::Unknown);
        slot.began_tick = self.tick;
        slot.state = State::Waiting;
        at
    }

    /// Takes an answer in. Wakes the waiting request with the last one.
    pub fn answer(&mut self, at: u32, index: u32, outcome: Outcome) {
        let slot = &mut self.slots[at as usize];
        slot.outcomes[index as usize] = outcome;
        slot.remaining -= 1;
        if slot.remaining > 0 {
            return;
        }
        match slot.state {
            State::Abandoned => self.release(at),
            _ => {
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    pub fn poll(&mut self, at: u32, context: &mut Context<'_>) -> Poll<Outcomes> {
        let slot = &mut self.slots[at as usize];
        if slot.remaining == 0 {
            let outcomes = std::mem::take(&mut slot.outcomes);
            self.release(at);
            return Poll::Ready(outcomes);
        }
        if slot.state == State::Expired {
            slot.state = State::Abandoned;
            return Poll::Ready(slot.outcomes.clone());
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// The request went away before its answer.
    pub fn abandon(&mut self, at: u32) {
        let slot = &mut self.slots[at as usize];
        slot.waker = None;
        slot.state = State::Abandoned;
        if slot.remaining == 0 {
            self.release(at);
        }
    }

    /// Lets a tick pass and ends the wait of everybody who has waited for more than `ticks`.
    pub fn expire(&mut self, ticks: u64) {
        self.tick += 1;
        let tick = self.tick;
        for slot in self.slots.iter_mut().filter(|slot| slot.state == State::Waiting && slot.remaining > 0) {
            if tick - slot.began_tick > ticks {
                slot.state = State::Expired;
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Slots in use, abandoned ones included.
    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn release(&mut self, at: u32) {
        let slot = &mut self.slots[at as usize];
        (slot.state, slot.waker) = (State::Free, None);
        self.free.push(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APPLIED: Outcome = Outcome::Applied { value: 1, replayed: false };

    fn poll(slots: &mut Slots, at: u32) -> Poll<Outcomes> {
        slots.poll(at, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_last_answer_completes_a_batch() {
        let mut slots = Slots::default();
        let at = slots.take(2);
        slots.answer(at, 1, APPLIED);
        assert!(poll(&mut slots, at).is_pending());
        slots.answer(at, 0, Outcome::NotApplied);
        assert_eq!(poll(&mut slots, at), Poll::Ready(Outcomes::from_slice(&[Outcome::NotApplied, APPLIED])));
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn a_late_answer_reaches_nobody_else() {
        let mut slots = Slots::default();
        let gone = slots.take(1);
        slots.abandon(gone);
        let next = slots.take(1);
        assert_ne!(gone, next, "the slot still waits for its answer");
        slots.answer(gone, 0, APPLIED);
        assert!(poll(&mut slots, next).is_pending());
        assert_eq!(slots.take(1), gone);
    }

    #[test]
    fn what_is_not_answered_in_time_is_unknown() {
        let mut slots = Slots::default();
        let at = slots.take(2);
        slots.answer(at, 0, APPLIED);
        slots.expire(1);
        assert!(poll(&mut slots, at).is_pending());
        slots.expire(1);
        assert_eq!(poll(&mut slots, at), Poll::Ready(Outcomes::from_slice(&[APPLIED, Outcome::Unknown])));
        slots.answer(at, 1, APPLIED);
        assert_eq!(slots.in_use(), 0);
    }
}
