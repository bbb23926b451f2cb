//! The sending side between nodes: one producer (a process) and one shard that another node owns.
//!
//! Operations get dense sequences when they are first written to a stream. Whatever has no answer is sent again, in
//! order, after a reconnect, a takeover or a refusal, and the shard's mark recognises what it applied before. Every
//! sequence is delivered: one whose deadline passed goes as a [`Kind::Skip`], its caller having been told `Unknown`.
//! What was ever written to a stream is never answered `NotApplied` here, and so never moved to another shard; what was
//! not is still free.
//!
//! Pure: the driver owns streams, deadlines and randomness. The receiving side is [`super::marks`].

use std::collections::VecDeque;

use super::op::{Kind, Op, Origin, Outcome, Refusal};
use crate::limits;

#[derive(Debug)]
pub enum Event {
    /// An operation of a caller, who is known by `token`. Its origin is set here.
    Submit { token: u64, op: Op },
    /// The deadline of an operation that was submitted has passed. One that is answered already is ignored.
    Expired { token: u64 },
    /// A stream to the shard's owner is open, be it the first, a new one, or one to a new owner.
    Connected,
    /// The stream is gone; answers of it may still be delivered.
    Disconnected,
    /// The driver waited a little after [`Effect::RetryLater`].
    Retry,
    /// An answer to what was sent in `round`.
    Answered { round: u64, seq: u64, outcome: Outcome },
    /// The answer to [`Effect::DrawId`]: a random id that no producer had before, above [`super::marks::RESERVED`].
    Renamed { producer: u128 },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write to the stream, in this order. Answers to it carry [`Producer::round`] as it is now.
    Send(Op),
    Answer {
        token: u64,
        outcome: Outcome,
    },
    /// The shard did not take what was sent: say [`Event::Retry`] after a pause, unless the stream ends before.
    RetryLater,
    /// The shard does not know this producer: it had sent nothing for long, or never.
    DrawId,
}

#[derive(Debug)]
struct Sent {
    op: Op,
    /// Journal time that the shard had reached before it was first sent.
    as_of_ms: u64,
    /// None: the caller has been answered.
    token: Option<u64>,
    /// The shard has answered; it waits only for those before it.
    done: bool,
    /// The last copy that was sent was not answered.
    pending: bool,
    /// A copy was sent and never answered: it may have been applied, or be under way still.
    unsure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Disconnected,
    /// Everything in the window is on the stream.
    Flowing,
    /// The shard refused something: what follows would be refused too.
    Stalled,
}

#[derive(Debug)]
pub struct Producer {
    id: u128,
    state: State,
    /// Rises whenever the window is sent again.
    round: u64,
    /// Answers from before this round are for sequences of an earlier id.
    first_round: u64,
    /// [`Effect::DrawId`] was asked for and not answered yet.
    drawing: bool,
    /// It was because the shard may have forgotten what it applied.
    forgotten: bool,
    /// Journal time that the shard has reached, as far as it told.
    time_ms: u64,
    /// Sequence of the first in the window.
    first: u64,
    /// Written to some stream, and not yet answered up to there.
    window: VecDeque<Sent>,
    /// Never written to a stream.
    waiting: VecDeque<(u64, Op)>,
}

impl Producer {
    /// `id` is random, one per process start, and above [`super::marks::RESERVED`].
    pub fn new(id: u128) -> Self {
        Self {
            id,
            state: State::Disconnected,
            round: 0,
            first_round: 0,
            drawing: false,
            forgotten: false,
            time_ms: 0,
            first: 1,
            window: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    pub fn round(&self) -> u64 {
        self.round
    }

    /// Operations that are not answered yet.
    pub fn unanswered(&self) -> usize {
        self.window.iter().filter(|sent| !sent.done).count() + self.waiting.len()
    }

    /// Takes one event; what is to be done about it is appended to `effects`, to be carried out in order.
    pub fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Submit { token, op } => self.submit(token, op, effects),
            Event::Expired { token } => self.expired(token, effects),
            Event::Connected => self.resend(effects),
            Event::Disconnected => self.state = State::Disconnected,
            Event::Retry if self.state == State::Stalled => self.resend(effects),
            Event::Retry => {}
            Event::Answered { round, seq, outcome } => self.answered(round, seq, outcome, effects),
            Event::Renamed { producer } if self.drawing => self.renamed(producer, effects),
            Event::Renamed { .. } => {}
        }
    }

    /// Whether another operation would be answered `NotApplied` for want of room.
    pub fn is_full(&self) -> bool {
        self.window.len() + self.waiting.len() >= limits::PRODUCER_UNANSWERED_MAX
    }

    fn submit(&mut self, token: u64, op: Op, effects: &mut Vec<Effect>) {
        if self.is_full() {
            effects.push(Effect::Answer { token, outcome: Outcome::NotApplied });
            return;
        }
        self.waiting.push_back((token, op));
        if self.state == State::Flowing {
            self.send_waiting(effects);
        }
    }

    fn expired(&mut self, token: u64, effects: &mut Vec<Effect>) {
        if let Some(at) = self.waiting.iter().position(|&(waiting, _)| waiting == token) {
            self.waiting.remove(at);
            effects.push(Effect::Answer { token, outcome: Outcome::NotApplied });
        } else if let Some(sent) = self.window.iter_mut().find(|sent| sent.token == Some(token)) {
            sent.token = None;
            // Its place must still be delivered; its journal time stays, for the shard judges copies by it.
            (sent.op.kind, sent.op.key) = (Kind::Skip, None);
            effects.push(Effect::Answer { token, outcome: Outcome::Unknown });
        }
    }

    fn resend(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Flowing;
        self.round += 1;
        for nth in 0..self.window.len() {
            let sent = &mut self.window[nth];
            if !sent.done {
                sent.unsure |= sent.pending;
                sent.pending = true;
                effects.push(self.send(nth));
            }
        }
        self.send_waiting(effects);
    }

    fn send_waiting(&mut self, effects: &mut Vec<Effect>) {
        for (token, op) in std::mem::take(&mut self.waiting) {
            let (token, as_of_ms) = (Some(token), self.time_ms);
            self.window.push_back(Sent { op, as_of_ms, token, done: false, pending: true, unsure: false });
            effects.push(self.send(self.window.len() - 1));
        }
    }

    fn send(&self, nth: usize) -> Effect {
        let Sent { op, as_of_ms, .. } = &self.window[nth];
        let (seq, acked) = (self.first + nth as u64, self.first - 1);
        let origin = Origin::Peer { producer: self.id, seq, acked, as_of_ms: *as_of_ms };
        Effect::Send(Op { origin, ..op.clone() })
    }

    fn answered(&mut self, round: u64, seq: u64, outcome: Outcome, effects: &mut Vec<Effect>) {
        if round < self.first_round {
            return;
        }
        let nth = seq.checked_sub(self.first).and_then(|nth| usize::try_from(nth).ok());
        let Some(sent) = nth.and_then(|nth| self.window.get_mut(nth)) else { return };
        match outcome {
            Outcome::NotApplied | Outcome::Refused(Refusal::Gap | Refusal::Forgotten { .. }) => {
                if let Outcome::Refused(Refusal::Forgotten { time_ms }) = outcome {
                    self.time_ms = self.time_ms.max(time_ms);
                }
                // An old refusal says nothing about what was sent since.
                if round != self.round {
                    return;
                }
                sent.pending = false;
                if self.state == State::Flowing {
                    self.state = State::Stalled;
                    // All before the first are settled, so only a shard without our mark finds a gap there.
                    if seq != self.first || outcome == Outcome::NotApplied {
                        effects.push(Effect::RetryLater);
                    } else if !self.drawing {
                        self.drawing = true;
                        self.forgotten = outcome != Outcome::Refused(Refusal::Gap);
                        effects.push(Effect::DrawId);
                    }
                }
            }
            Outcome::Applied { .. } | Outcome::Refused(_) | Outcome::Unknown => {
                sent.done = true;
                if let Some(token) = sent.token.take() {
                    effects.push(Effect::Answer { token, outcome });
                }
                while self.window.front().is_some_and(|sent| sent.done) {
                    self.window.pop_front();
                    self.first += 1;
                }
            }
        }
    }

    /// Begins anew under another id: the shard has no mark of the earlier one. What their callers gave up on need not be
    /// delivered at all. What the shard may have forgotten, and a copy of which has no answer, is unknown; everything else
    /// was never applied, and becomes new.
    fn renamed(&mut self, producer: u128, effects: &mut Vec<Effect>) {
        let forgetting = std::mem::take(&mut self.forgotten);
        for mut sent in std::mem::take(&mut self.window) {
            let Some(token) = sent.token else { continue };
            if forgetting && sent.unsure {
                effects.push(Effect::Answer { token, outcome: Outcome::Unknown });
            } else {
                sent.as_of_ms = self.time_ms;
                self.window.push_back(sent);
            }
        }
        (self.id, self.first, self.first_round, self.drawing) = (producer, 1, self.round + 1, false);
        if self.state != State::Disconnected {
            self.resend(effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::{Bounds, Id, key_hash};

    const APPLIED: Outcome = Outcome::Applied { value: 1, replayed: false };
    const GAP: Outcome = Outcome::Refused(Refusal::Gap);

    fn op() -> Op {
        Op {
            shard: 0,
            counter: Id::new("c").expect("valid"),
            hash: key_hash("c"),
            kind: Kind::Add { amount: 1, bounds: Bounds::NONE },
            key: None,
            origin: Origin::Relaxed,
            at_ms: 5,
        }
    }

    fn step(producer: &mut Producer, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        producer.step(event, &mut effects);
        effects
    }

    /// (producer, seq, acked, is a skip) of everything sent.
    fn sent(effects: &[Effect]) -> Vec<(u128, u64, u64, bool)> {
        let sent = effects.iter().filter_map(|effect| match effect {
            Effect::Send(Op { origin: Origin::Peer { producer, seq, acked, .. }, kind, .. }) => {
                Some((*producer, *seq, *acked, *kind == Kind::Skip))
            }
            _ => None,
        });
        sent.collect()
    }

    fn flowing(tokens: std::ops::Range<u64>) -> Producer {
        let mut producer = Producer::new(9);
        step(&mut producer, Event::Connected);
        for token in tokens {
            step(&mut producer, Event::Submit { token, op: op() });
        }
        producer
    }

    fn answer(producer: &mut Producer, seq: u64, outcome: Outcome) -> Vec<Effect> {
        let round = producer.round();
        step(producer, Event::Answered { round, seq, outcome })
    }

    #[test]
    fn unanswered_operations_are_sent_again_in_order() {
        let mut producer = flowing(0..3);
        assert_eq!(answer(&mut producer, 1, APPLIED), [Effect::Answer { token: 0, outcome: APPLIED }]);
        step(&mut producer, Event::Disconnected);
        assert_eq!(step(&mut producer, Event::Submit { token: 7, op: op() }), []);
        let effects = step(&mut producer, Event::Connected);
        assert_eq!(sent(&effects), [(9, 2, 1, false), (9, 3, 1, false), (9, 4, 1, false)]);
    }

    #[test]
    fn an_answer_is_acknowledged_only_when_all_before_it_are() {
        let mut producer = flowing(0..3);
        answer(&mut producer, 2, APPLIED);
        assert_eq!(sent(&step(&mut producer, Event::Submit { token: 3, op: op() })), [(9, 4, 0, false)]);
        answer(&mut producer, 1, APPLIED);
        assert_eq!(sent(&step(&mut producer, Event::Submit { token: 4, op: op() })), [(9, 5, 2, false)]);
    }

    #[test]
    fn what_was_never_written_is_not_applied_at_its_deadline() {
        let mut producer = Producer::new(9);
        step(&mut producer, Event::Submit { token: 1, op: op() });
        let effects = step(&mut producer, Event::Expired { token: 1 });
        assert_eq!(effects, [Effect::Answer { token: 1, outcome: Outcome::NotApplied }]);
        assert_eq!(sent(&step(&mut producer, Event::Connected)), []);
    }

    #[test]
    fn what_was_written_becomes_a_skip_at_its_deadline() {
        let mut producer = flowing(0..2);
        let effects = step(&mut producer, Event::Expired { token: 0 });
        assert_eq!(effects, [Effect::Answer { token: 0, outcome: Outcome::Unknown }]);
        assert_eq!(step(&mut producer, Event::Expired { token: 0 }), []);
        assert_eq!(sent(&step(&mut producer, Event::Connected)), [(9, 1, 0, true), (9, 2, 0, false)]);
        assert_eq!(answer(&mut producer, 1, APPLIED), [], "the caller was told already");
    }

    #[test]
    fn a_refusal_holds_everything_back_until_it_is_sent_again() {
        let mut producer = flowing(0..2);
        assert_eq!(answer(&mut producer, 1, Outcome::NotApplied), [Effect::RetryLater]);
        assert_eq!(answer(&mut producer, 2, GAP), []);
        assert_eq!(step(&mut producer, Event::Submit { token: 2, op: op() }), []);
        let effects = step(&mut producer, Event::Retry);
        assert_eq!(sent(&effects), [(9, 1, 0, false), (9, 2, 0, false), (9, 3, 0, false)]);
        let stale = Event::Answered { round: 1, seq: 1, outcome: Outcome::NotApplied };
        assert_eq!(step(&mut producer, stale), []);
    }

    #[test]
    fn a_forgotten_producer_begins_anew() {
        let mut producer = flowing(0..1);
        answer(&mut producer, 1, APPLIED);
        step(&mut producer, Event::Submit { token: 1, op: op() });
        step(&mut producer, Event::Submit { token: 2, op: op() });
        step(&mut producer, Event::Expired { token: 1 });
        assert_eq!(answer(&mut producer, 2, GAP), [Effect::DrawId]);
        assert_eq!(sent(&step(&mut producer, Event::Renamed { producer: 10 })), [(10, 1, 0, false)]);
        let stale = Event::Answered { round: 1, seq: 1, outcome: APPLIED };
        assert_eq!(step(&mut producer, stale), [], "an answer to the earlier id");
        assert_eq!(step(&mut producer, Event::Renamed { producer: 11 }), [], "nobody asked");
        assert_eq!(answer(&mut producer, 1, APPLIED), [Effect::Answer { token: 2, outcome: APPLIED }]);
    }

    /// Journal times of everything sent.
    fn as_of_ms(effects: &[Effect]) -> Vec<u64> {
        let of = |effect: &Effect| match effect {
            Effect::Send(Op { origin: Origin::Peer { as_of_ms, .. }, .. }) => Some(*as_of_ms),
            _ => None,
        };
        effects.iter().filter_map(of).collect()
    }

    #[test]
    fn a_stranger_learns_the_time_and_sends_anew() {
        let mut producer = flowing(0..2);
        let forgotten = Outcome::Refused(Refusal::Forgotten { time_ms: 70 });
        assert_eq!(answer(&mut producer, 1, forgotten), [Effect::DrawId]);
        let effects = step(&mut producer, Event::Renamed { producer: 10 });
        assert_eq!(sent(&effects), [(10, 1, 0, false), (10, 2, 0, false)], "no copy of them can have been applied");
        assert_eq!(as_of_ms(&effects), [70, 70]);
        assert_eq!(as_of_ms(&step(&mut producer, Event::Submit { token: 2, op: op() })), [70]);
    }

    #[test]
    fn what_may_have_been_applied_and_forgotten_is_unknown() {
        let mut producer = flowing(0..1);
        step(&mut producer, Event::Disconnected);
        step(&mut producer, Event::Submit { token: 1, op: op() });
        step(&mut producer, Event::Connected);
        let forgotten = Outcome::Refused(Refusal::Forgotten { time_ms: 70 });
        answer(&mut producer, 1, forgotten);
        let effects = step(&mut producer, Event::Renamed { producer: 10 });
        assert_eq!(effects[0], Effect::Answer { token: 0, outcome: Outcome::Unknown });
        assert_eq!(sent(&effects), [(10, 1, 0, false)], "the other was sent once, and refused");
    }

    #[test]
    fn what_was_refused_before_is_known_not_to_be_applied() {
        let mut producer = flowing(0..1);
        answer(&mut producer, 1, Outcome::NotApplied);
        step(&mut producer, Event::Retry);
        answer(&mut producer, 1, Outcome::Refused(Refusal::Forgotten { time_ms: 70 }));
        assert_eq!(sent(&step(&mut producer, Event::Renamed { producer: 10 })), [(10, 1, 0, false)]);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut producer = flowing(0..limits::PRODUCER_UNANSWERED_MAX as u64);
        let effects = step(&mut producer, Event::Submit { token: u64::MAX, op: op() });
        assert_eq!(effects, [Effect::Answer { token: u64::MAX, outcome: Outcome::NotApplied }]);
    }
}
