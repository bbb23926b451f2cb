//! Callers on the nodes themselves.

use quipu::shard::producer;
use quipu::shard::writer::Event;
use quipu::shard::{Op, Origin, Outcome};

use super::super::clients::Told;
use super::{Caller, DEADLINE_MS, LIVES, NODES, PEERS, World};

impl World {
    pub(super) fn ticket(&mut self, at: usize, caller: Caller) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, (at, caller));
        self.next_ticket
    }

    pub(super) fn some_node(&mut self) -> usize {
        if self.calm || self.rng.percent(70) { self.hint } else { self.rng.below(NODES) }
    }

    pub(super) fn submit(&mut self, at: usize, ticket: u64, op: Op) {
        if self.nodes[at].serves() {
            self.step(at, Event::Submit(op));
        } else {
            self.told(ticket, Outcome::NotApplied);
        }
    }

    pub(super) fn new_sum(&mut self) {
        let relaxed = self.rng.percent(15);
        let keyed = !relaxed && self.rng.percent(40);
        let Some(nth) = self.sums.draw(&mut self.rng, self.now_ms, keyed) else { return };
        if relaxed {
            return self.sum_relaxed(nth);
        }
        if self.rng.percent(35) { self.sum_locally(nth) } else { self.sum_by_peer(nth) }
    }

    pub(super) fn sum_locally(&mut self, nth: usize) {
        let at = self.some_node();
        let ticket = self.ticket(at, Caller::Sum(nth));
        let op = self.sums.op(nth, Origin::Local { ticket, index: 0 });
        self.submit(at, ticket, op);
    }

    /// Its caller learns no more than that it was taken: nobody but the system can send it again.
    fn sum_relaxed(&mut self, nth: usize) {
        self.summary.relaxed += 1;
        self.sums.ops[nth].told = Told::Accepted;
        let at = self.some_node();
        if self.nodes[at].serves() {
            self.nodes[at].relaxed.push(nth);
            let op = self.sums.op(nth, Origin::Relaxed);
            self.step(at, Event::Submit(op));
        } else {
            self.sum_for_nobody(nth);
        }
    }

    /// A relaxed operation goes to whoever serves the shard, however long that takes.
    pub(super) fn sum_for_nobody(&mut self, nth: usize) {
        let peer = self.rng.below(PEERS);
        self.send_sum(peer, nth, u64::MAX);
    }

    pub(super) fn sum_by_peer(&mut self, nth: usize) {
        let peer = self.rng.below(PEERS);
        self.send_sum(peer, nth, self.now_ms + DEADLINE_MS);
    }

    pub(super) fn send_sum(&mut self, peer: usize, nth: usize, deadline_ms: u64) {
        self.next_ticket += 1;
        let token = self.next_ticket;
        self.peers[peer].tokens.insert(token, (nth, deadline_ms));
        let op = self.sums.op(nth, Origin::Relaxed);
        self.produce(peer, producer::Event::Submit { token, op });
    }

    pub(super) fn retry_sum(&mut self) {
        let Some(nth) = self.sums.ops.iter().position(|op| op.retry) else { return };
        self.sums.ops[nth].retry = false;
        if self.rng.percent(70) { self.sum_locally(nth) } else { self.sum_by_peer(nth) }
    }

    /// A keyed caller loses its patience while the first attempt is still under way.
    pub(super) fn give_up_waiting(&mut self) {
        let keyed = |caller: &Caller| matches!(caller, Caller::Sum(nth) if self.sums.ops[*nth].key.is_some());
        let waiting: Vec<usize> = self
            .tickets
            .values()
            .filter(|(_, caller)| keyed(caller))
            .map(|&(_, caller)| match caller {
                Caller::Sum(nth) | Caller::Life(nth) => nth,
            })
            .collect();
        if !waiting.is_empty() {
            let nth = waiting[self.rng.below(waiting.len())];
            self.sums.told(nth, Outcome::Unknown);
        }
    }

    pub(super) fn live(&mut self) {
        let nth = self.rng.below(LIVES);
        if self.lives[nth].current.is_none() {
            if self.calm {
                return;
            }
            self.lives[nth].begin(&mut self.rng, self.now_ms);
        }
        if self.lives[nth].current.as_ref().is_some_and(|step| step.waits) {
            return;
        }
        let at = self.some_node();
        let ticket = self.ticket(at, Caller::Life(nth));
        if let Some(op) = self.lives[nth].attempt(ticket) {
            self.submit(at, ticket, op);
        }
    }

    pub(super) fn told(&mut self, ticket: u64, outcome: Outcome) {
        let Some((_, caller)) = self.tickets.remove(&ticket) else { return };
        self.count(outcome);
        self.note(|world| match caller {
            Caller::Sum(nth) => {
                let op = &world.sums.ops[nth];
                format!("ticket {ticket}: sum/{} bit {} key {:?}: {outcome:?}", op.counter, op.bit, op.key)
            }
            Caller::Life(nth) => format!("ticket {ticket}: life/{nth}: {outcome:?}"),
        });
        match caller {
            Caller::Sum(nth) => self.sums.told(nth, outcome),
            Caller::Life(nth) => self.lives[nth].told(outcome),
        }
    }

    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Applied { replayed, .. } => {
                self.summary.acknowledged += 1;
                self.summary.replayed += u64::from(replayed);
            }
            Outcome::Refused(_) => self.summary.refused += 1,
            Outcome::Unknown => self.summary.unknown += 1,
            Outcome::NotApplied => {}
        }
    }
}
