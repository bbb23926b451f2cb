//! How many appends are under way at once, and whose turn is next.
//!
//! A third of the lanes that have something to write, and never more than a node is allowed to. What a lane gathers while two
//! others write goes into one entry; were all to write at once, each would carry only what came during its own write,
//! and a store pays by the write. A lane that is alone never waits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::limits;

pub struct Turns {
    max: usize,
    /// Lanes that have something to write.
    at_work: Cell<usize>,
    under_way: Cell<usize>,
    /// In the order in which they came.
    waiting: RefCell<VecDeque<oneshot::Sender<Turn>>>,
}

/// An append may be under way until this is dropped.
pub struct Turn(Rc<Turns>);

impl Turns {
    pub fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { max: max.max(1), at_work: Cell::new(0), under_way: Cell::new(0), waiting: RefCell::default() })
    }

    pub fn begin_work(&self) {
        self.at_work.set(self.at_work.get() + 1);
    }

    pub fn end_work(&self) {
        self.at_work.set(self.at_work.get().saturating_sub(1));
    }

    /// Waits for its turn. Only lanes at work ask.
    pub async fn next(self: &Rc<Self>) -> Turn {
        let (hand, handed) = oneshot::channel();
        self.waiting.borrow_mut().push_back(hand);
        self.hand_out();
        handed.await.expect("whoever waits is handed a turn before it is forgotten")
    }

    fn allowed(&self) -> usize {
        self.at_work.get().div_ceil(limits::LANES_PER_APPEND).clamp(1, self.max)
    }

    fn hand_out(self: &Rc<Self>) {
        while self.under_way.get() < self.allowed() {
            let Some(next) = self.waiting.borrow_mut().pop_front() else { return };
            self.under_way.set(self.under_way.get() + 1);
            // Of one that went away the turn comes back at once.
            let _ = next.send(Turn(self.clone()));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn at_work(lanes: usize, max: usize) -> Rc<Turns> {
        let turns = Turns::new(max);
        (0..lanes).for_each(|_| turns.begin_work());
        turns
    }

    /// How many turns are handed out while nobody gives one back.
    fn at_once(turns: &Rc<Turns>) -> usize {
        std::iter::repeat_with(|| turns.next().now_or_never()).map_while(|turn| turn).collect::<Vec<_>>().len()
    }

    #[test]
    fn a_third_of_the_lanes_at_work_append_at_once() {
        for (lanes, max, expected) in
            [(0, 4, 1), (1, 4, 1), (3, 4, 1), (4, 4, 2), (12, 4, 4), (64, 4, 4), (64, 256, 22)]
        {
            assert_eq!(at_once(&at_work(lanes, max)), expected, "{lanes} lanes, {max} at most");
        }
    }

    #[test]
    fn turns_go_round_in_order() {
        let turns = at_work(2, 1);
        let first = turns.next().now_or_never().expect("nobody else has it");
        let (mut second, mut third) = (Box::pin(turns.next()), Box::pin(turns.next()));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().expect("it waits longest");
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.now_or_never().is_some());
        assert_eq!(at_once(&turns), 1);
    }

    #[test]
    fn one_that_went_away_keeps_no_turn() {
        let turns = at_work(2, 1);
        let first = turns.next().now_or_never().expect("nobody else has it");
        let mut gone = Box::pin(turns.next());
        assert!(gone.as_mut().now_or_never().is_none());
        drop((gone, first));
        assert!(turns.next().now_or_never().is_some());
    }

    #[test]
    fn more_work_brings_more_turns() {
        let turns = at_work(3, 4);
        let first = turns.next().now_or_never().expect("nobody else has it");
        assert!(turns.next().now_or_never().is_none());
        turns.begin_work();
        // The one that went away above is passed over.
        let second = turns.next().now_or_never().expect("four lanes have two turns");
        turns.end_work();
        drop(second);
        assert!(turns.next().now_or_never().is_none());
        drop(first);
        assert!(turns.next().now_or_never().is_some());
    }
}
