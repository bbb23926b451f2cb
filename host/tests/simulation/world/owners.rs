//! The life of an owner: takeover, its writer's effects, loss and crash.

use quipu::shard::takeover;
use quipu::shard::writer::{Append, Effect, Event};
use quipu::shard::{JournalTime, Origin, Outcome, Replay};

use super::super::Mutation;
use super::super::clients::{Told, sum_id};
use super::super::node::{Ask, Node, Owner};
use super::{Flight, NODES, World};

impl World {
    /// Callers learn who owns the shard; if nobody does, somebody takes it over.
    pub(super) fn find_owner(&mut self) {
        let epoch = Some(self.disk.epoch);
        match (0..NODES).find(|&at| self.nodes[at].epoch() == epoch) {
            Some(at) => self.hint = at,
            None if self.nodes.iter().all(|node| node.owner.as_ref().is_none_or(|owner| owner.writer.is_some())) => {
                self.take_over(0);
            }
            None => {}
        }
    }

    pub(super) fn take_over(&mut self, at: usize) {
        self.note(|_| format!("node {at} takes over"));
        self.lose(at, Append::Lost { applied: None });
        self.serial += 1;
        let durable_seq = self.nodes[at].partials.applied();
        let standby = self.nodes[at].standby.take();
        self.summary.stood_by += u64::from(standby.is_some());
        self.nodes[at].owner = Some(Owner::new(self.serial, durable_seq, standby));
        self.summary.takeovers += 1;
    }

    /// Ends the writer of a node, if there is one, and with it the streams to it.
    pub(super) fn lose(&mut self, at: usize, result: Append) {
        if self.nodes[at].serves() {
            self.step(at, Event::Appended(result));
        }
        self.forget_relaxed(at);
        self.nodes[at].owner = None;
        self.nodes[at].routes.forget(0);
        for nth in 0..self.streams.len() {
            if self.streams[nth].node == at && self.streams[nth].open {
                self.cut(nth);
            }
        }
    }

    /// A node that owns nothing reads on in the journal, or begins at the checkpoint.
    pub(super) fn follow(&mut self, at: usize) {
        if self.nodes[at].owner.is_some() {
            return;
        }
        let (covered, marks) = (self.disk.covered, self.disk.marks.clone());
        let begin = || Replay::after_checkpoint(0, super::KEY_WINDOW_MS, covered, marks);
        let mut standby = self.nodes[at].standby.take().unwrap_or_else(begin);
        let mut entries = self.disk.read(standby.last_seq(), 1 + self.rng.below(20));
        if self.mutation == Some(Mutation::StandbyWithoutMarks) {
            entries.iter_mut().for_each(|entry| entry.marks.clear());
        }
        self.nodes[at].standby = standby.replay(entries).is_ok().then_some(standby);
    }

    /// What a writer took with it: in flight without an answer, or in the memory of a node that crashed.
    fn forget_relaxed(&mut self, at: usize) {
        for nth in std::mem::take(&mut self.nodes[at].relaxed) {
            let (id, bit) = (sum_id(self.sums.ops[nth].counter), self.sums.ops[nth].bit);
            let journaled = self.disk.newest(id.as_str()).is_some_and(|partial| partial.value & (1 << bit) != 0);
            if !journaled {
                self.summary.forgotten += 1;
                self.sums.ops[nth].told = Told::Unknown;
            }
        }
    }

    pub(super) fn taking_over(&self) -> Option<usize> {
        (0..NODES).find(|&at| self.nodes[at].owner.as_ref().is_some_and(|owner| owner.takeover.is_some()))
    }

    pub(super) fn progress_takeover(&mut self, at: usize) {
        let clocks = self.clocks(at);
        let node = &mut self.nodes[at];
        let Some(owner) = &mut node.owner else { return };
        let Some((mut machine, effect)) = owner.takeover.take() else { return };
        let event = match effect {
            takeover::Effect::Raise => takeover::Event::Raised {
                epoch: self.disk.raise(self.mutation),
                checkpoint_seq: self.disk.covered,
                marks: self.disk.marks.clone(),
            },
            takeover::Effect::Read { after } => takeover::Event::Read(self.disk.read(after, 1 + self.rng.below(60))),
            takeover::Effect::Serve(writer, read) => {
                owner.time = Some(JournalTime::resume(writer.time_ms(), clocks));
                owner.writer = Some(Box::new(writer.returning()));
                node.partials.replace(*read);
                self.hint = at;
                self.note(|world| format!("node {at} serves under {:?}", world.nodes[at].epoch()));
                return;
            }
            // Another owner trimmed the journal while it was read: begin again.
            takeover::Effect::Damaged { expected_seq, .. } if expected_seq <= self.disk.covered => {
                return self.take_over(at);
            }
            takeover::Effect::Damaged { expected_seq, found_seq } => {
                panic!("the journal goes on at {found_seq} where {expected_seq} should be")
            }
        };
        let effect = machine.step(event);
        owner.takeover = Some((machine, effect));
    }

    pub(super) fn crash(&mut self, at: usize) {
        self.note(|_| format!("node {at} crashes"));
        self.summary.crashes += 1;
        self.nodes[at].owner = None;
        self.lose(at, Append::Lost { applied: None });
        let life = self.nodes[at].life + 1;
        self.nodes[at] = Node { life, ..Node::default() };
        let died: Vec<u64> =
            self.tickets.iter().filter(|(_, (node, _))| *node == at).map(|(&ticket, _)| ticket).collect();
        for ticket in died {
            self.told(ticket, Outcome::Unknown);
        }
    }

    pub(super) fn step(&mut self, at: usize, event: Event) {
        let node = &mut self.nodes[at];
        let Some(owner) = &mut node.owner else { return };
        let Some(writer) = &mut owner.writer else { return };
        let mut effects = Vec::new();
        writer.step(&node.partials, event, &mut effects);
        for effect in effects {
            self.carry_out(at, effect);
        }
    }

    pub(super) fn carry_out(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Load { hash, counter } => {
                let evictions = self.nodes[at].partials.evictions();
                self.ask(at, Ask::Load { hash, counter, evictions, found: None });
            }
            Effect::LookUp { as_of, hash, counter, key } => {
                self.ask(at, Ask::LookUp { as_of, hash, counter, key, found: None });
            }
            Effect::Append(entry) => {
                let Some(owner) = &self.nodes[at].owner else { return };
                let serial = owner.serial;
                let waits = self.mutation != Some(Mutation::AnswerBeforeDurable);
                self.flights.push(Flight { node: at, serial, entry, waits });
                if !waits {
                    self.step(at, Event::Appended(Append::Applied));
                }
            }
            Effect::Confirm => {
                if let Some(owner) = &mut self.nodes[at].owner {
                    owner.confirming = true;
                }
            }
            Effect::Apply(entry, slots) => {
                assert!(self.disk.holds(&entry), "entry {} becomes visible and is not journaled", entry.seq);
                self.nodes[at].partials.apply_at(&entry, &slots);
            }
            Effect::Answer(answers) => {
                for (origin, outcome) in answers {
                    self.answer(at, origin, outcome);
                }
            }
            Effect::Return(ops) => {
                for op in ops {
                    let nth = self.sums.nth(&op);
                    self.summary.returned += 1;
                    self.nodes[at].relaxed.retain(|&taken| taken != nth);
                    if self.mutation != Some(Mutation::DropWhatIsReturned) {
                        self.sum_for_nobody(nth);
                    }
                }
            }
        }
    }

    pub(super) fn answer(&mut self, at: usize, origin: Origin, outcome: Outcome) {
        match origin {
            Origin::Local { ticket, .. } => self.told(ticket, outcome),
            Origin::Relaxed => {}
            Origin::Peer { producer, seq, .. } => {
                if let Some((stream, round)) = self.nodes[at].routes.back(producer, 0, seq) {
                    self.streams[stream].to_peer.push_back((round, seq, outcome));
                }
            }
        }
    }

    pub(super) fn seal(&mut self, at: usize) {
        if self.nodes[at].serves() {
            let entry_id = self.rng.next();
            if self.rng.percent(70) {
                self.step(at, Event::Prepare);
            }
            let time_ms = Some(self.time_ms(at));
            self.step(at, Event::Seal { entry_id, time_ms });
        }
    }

    /// A writer with nothing to write asks whether the shard is still its own.
    pub(super) fn confirm(&mut self, at: usize) {
        let disk_epoch = self.disk.epoch;
        let epoch = self.nodes[at].epoch();
        let Some(owner) = &mut self.nodes[at].owner else { return };
        if !std::mem::take(&mut owner.confirming) {
            return;
        }
        match epoch {
            Some(epoch) if epoch == disk_epoch => self.step(at, Event::Appended(Append::Applied)),
            _ => self.lose(at, Append::Lost { applied: None }),
        }
    }
}
