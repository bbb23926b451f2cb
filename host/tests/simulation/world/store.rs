//! What passes between an owner and the store: look-ups, appends, checkpoints, evictions.

use quipu::shard::writer::{Append, Event};

use super::super::Mutation;
use super::super::disk;
use super::super::node::{Ask, Checkpoint};
use super::{Flight, KEY_WINDOW_MS, MARK_LIFETIME_MS, World};

impl World {
    /// Asks the store, unless the same is being asked.
    pub(super) fn ask(&mut self, at: usize, ask: Ask) {
        if let Some(owner) = &mut self.nodes[at].owner
            && !owner.asks.iter().any(|other| other.same(&ask))
        {
            owner.asks.push(ask);
        }
    }

    /// The store answers a look-up, or the writer learns what it said.
    pub(super) fn answer_ask(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(owner) = &mut node.owner else { return };
        if owner.asks.is_empty() {
            return;
        }
        let nth = self.rng.below(owner.asks.len());
        match &mut owner.asks[nth] {
            Ask::Load { counter, found: found @ None, .. } => {
                *found = Some(self.disk.partials.get(counter.as_str()).cloned());
                return;
            }
            Ask::LookUp { counter, key, found: found @ None, .. } => {
                let id = (counter.as_str().to_owned(), key.to_string());
                let hidden_ms = node.keys_from_ms;
                *found = Some(self.disk.keys.get(&id).filter(|record| record.kept_by_ms() >= hidden_ms).cloned());
                return;
            }
            Ask::Load { .. } | Ask::LookUp { .. } => {}
        }
        match owner.asks.swap_remove(nth) {
            Ask::Load { hash, counter, evictions, found } => {
                if node.partials.evictions() == evictions {
                    node.partials.load(hash, &counter, found.flatten());
                }
            }
            Ask::LookUp { as_of, hash, counter, key, found } => {
                self.step(at, Event::LookedUp { as_of, hash, counter, key, record: found.flatten() });
            }
        }
    }

    pub(super) fn flight(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let nth = self.rng.below(self.flights.len());
        let fate = if self.calm { 0 } else { self.rng.below(100) };
        match fate {
            0..60 => {
                let flight = self.flights.swap_remove(nth);
                let result = self.disk.append(&flight.entry, self.mutation);
                let lost = !self.calm && self.rng.percent(25);
                self.note(|_| format!("{:?}: {result:?}", flight.entry));
                self.appended(&flight, if lost { None } else { Some(result) });
            }
            // No answer in time; it may still arrive.
            60..72 if self.flights[nth].waits => {
                let flight = &mut self.flights[nth];
                let early = Flight { entry: flight.entry.clone(), ..*flight };
                flight.waits = false;
                self.appended(&early, None);
            }
            72..80 => {
                let flight = self.flights.swap_remove(nth);
                self.not_written(&flight);
            }
            _ => {}
        }
    }

    /// The writer learns the result of an append; None: that it is unknown.
    pub(super) fn appended(&mut self, flight: &Flight, result: Option<disk::Result>) {
        if !self.is_current(flight) {
            return;
        }
        match result {
            Some(disk::Result::Applied) => {
                self.set_unsure(flight.node, false);
                self.step(flight.node, Event::Appended(Append::Applied));
            }
            Some(disk::Result::Fenced { applied }) => {
                self.summary.fenced += 1;
                let told = self.rng.percent(70);
                self.lose(flight.node, Append::Lost { applied: told.then_some(applied) });
            }
            None => {
                self.summary.resent += 1;
                self.set_unsure(flight.node, true);
                self.step(flight.node, Event::Appended(Append::Unknown));
            }
        }
    }

    pub(super) fn not_written(&mut self, flight: &Flight) {
        if !self.is_current(flight) {
            return;
        }
        let unsure = self.nodes[flight.node].owner.as_ref().is_some_and(|owner| owner.unsure);
        if unsure && self.mutation == Some(Mutation::NotWrittenAfterUnknown) {
            self.lose(flight.node, Append::Lost { applied: Some(false) });
        } else {
            self.step(flight.node, Event::Appended(Append::NotWritten));
        }
    }

    pub(super) fn is_current(&self, flight: &Flight) -> bool {
        flight.waits && self.nodes[flight.node].owner.as_ref().is_some_and(|owner| owner.serial == flight.serial)
    }

    pub(super) fn set_unsure(&mut self, at: usize, unsure: bool) {
        if let Some(owner) = &mut self.nodes[at].owner {
            owner.unsure = unsure;
        }
    }

    /// Begins a checkpoint, writes a piece of it, or tells the writer of its end.
    pub(super) fn checkpoint(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        match &mut node.checkpoint {
            None => {
                let Some(writer) = node.owner.as_ref().and_then(|owner| owner.writer.as_ref()) else { return };
                node.checkpoint = Some(Checkpoint {
                    epoch: writer.epoch(),
                    seq: node.partials.applied(),
                    covered: node.partials.covered(),
                    dirty: node.partials.dirty_len(),
                    from: 0,
                    keys: writer.key_records().cloned().collect(),
                    marks: writer.marks(),
                    done: false,
                });
            }
            Some(run) if !run.done => {
                let piece = 1 + self.rng.below(3);
                let last = run.from + piece >= run.dirty;
                let partials = node.partials.dirty_piece(run.from, piece.min(run.dirty - run.from));
                run.from += piece;
                let whole = last || self.mutation == Some(Mutation::PositionBeforeItsPieces);
                let (seq, keys) = if whole { (run.seq, run.keys.clone()) } else { (run.covered, Vec::new()) };
                self.disk.checkpoint(run.epoch, seq, partials, keys, run.marks.clone());
                run.done = last;
            }
            Some(run) => {
                // The store ignores a checkpoint of an earlier ownership, and does not say so.
                let (seq, epoch) = (run.seq, run.epoch);
                node.checkpoint = None;
                if node.epoch() == Some(epoch) || self.mutation == Some(Mutation::CheckpointOfAnEarlierEpoch) {
                    node.partials.checkpointed(seq);
                    self.summary.checkpoints += 1;
                    self.step(at, Event::Checkpointed { seq });
                    self.expire_keys(at);
                }
            }
        }
    }

    pub(super) fn evict(&mut self, at: usize) {
        let resident_max = self.rng.below(4);
        self.summary.evictions += self.nodes[at].partials.evict_clean(resident_max, 100) as u64;
    }

    pub(super) fn expire(&mut self, at: usize) {
        self.step(at, Event::ExpireMarks { lifetime_ms: MARK_LIFETIME_MS });
    }

    /// What a checkpoint drops of idempotency records.
    fn expire_keys(&mut self, at: usize) {
        let horizon_ms = |now_ms: u64| now_ms.saturating_sub(KEY_WINDOW_MS);
        let (wall_ms, time_ms) = (self.wall_ms(at), self.time_ms(at));
        match self.mutation {
            Some(Mutation::RecordsDroppedByWallClock) => self.disk.expire_keys(horizon_ms(wall_ms)),
            Some(Mutation::RecordsHiddenByWallClock) => {
                let hidden_ms = &mut self.nodes[at].keys_from_ms;
                *hidden_ms = (*hidden_ms).max(horizon_ms(wall_ms));
            }
            _ => {
                let writer = self.nodes[at].owner.as_ref().and_then(|owner| owner.writer.as_ref());
                let since_ms = writer.and_then(|writer| writer.since_ms());
                // As `commit::driver` does: before the first entry there is no journal time but the wall clock.
                if since_ms.is_some_and(|since_ms| horizon_ms(time_ms) > since_ms) {
                    self.disk.expire_keys(horizon_ms(time_ms));
                }
            }
        }
    }
}
