//! Readers, and what they may see.

use quipu::counter::key_hash;
use quipu::shard::Partial;
use quipu::shard::partials::Resident;

use super::super::Mutation;
use super::super::clients::{SUMS, sum_id};
use super::super::node::Read;
use super::World;

impl World {
    pub(super) fn begin_read(&mut self, at: usize) {
        let Some(epoch) = self.nodes[at].epoch() else { return };
        let counter = self.rng.below(SUMS);
        let id = sum_id(counter);
        let acked = self.sums.acked(counter);
        let node = &mut self.nodes[at];
        let found = match node.partials.get(key_hash(id.as_str()), &id) {
            Resident::Present(partial) => Some(partial.clone()),
            Resident::Missing => None,
            Resident::Unloaded => {
                let evictions = node.partials.evictions();
                node.reads.push(Read { counter, evictions, epoch, acked, found: None });
                return;
            }
        };
        let value = self.judge_read(at, counter, epoch, acked, found.as_ref());
        // This read began and ended in one moment: those after it see no less.
        if epoch == self.disk.epoch {
            assert!(
                value >= self.last_read[counter],
                "{counter} went back from {} to {value}",
                self.last_read[counter]
            );
            self.last_read[counter] = value;
        }
    }

    pub(super) fn judge_read(
        &mut self,
        at: usize,
        counter: usize,
        epoch: u64,
        acked: i64,
        found: Option<&Partial>,
    ) -> i64 {
        self.summary.reads += 1;
        let id = sum_id(counter);
        if let Some(partial) = found {
            assert!(self.disk.was_durable(id.as_str(), partial), "{id} shows {partial:?}, which is not journaled");
        }
        let value = found.map_or(0, |partial| partial.value);
        // Only the owner that the store confirms is exact.
        if self.nodes[at].epoch() == Some(epoch) && epoch == self.disk.epoch {
            assert_eq!(value & acked, acked, "{id} lacks what was acknowledged before");
        }
        value
    }

    pub(super) fn finish_read(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.reads.is_empty() {
            return;
        }
        let nth = self.rng.below(node.reads.len());
        let id = sum_id(node.reads[nth].counter);
        if node.reads[nth].found.is_none() {
            node.reads[nth].found = Some(self.disk.partials.get(id.as_str()).cloned());
            return;
        }
        let Read { counter, evictions, epoch, acked, found } = node.reads.swap_remove(nth);
        let hash = key_hash(id.as_str());
        let loaded = found.flatten();
        let seen = match node.partials.get(hash, &id) {
            Resident::Present(partial) => Some(partial.clone()),
            Resident::Missing => None,
            Resident::Unloaded => loaded.clone(),
        };
        if self.mutation == Some(Mutation::ReaderWithoutGuard) {
            node.partials.load(hash, &id, loaded);
        } else {
            // As of a counter that another shard has: then it is remembered, too, that this one has none.
            node.partials.load_if(evictions, hash, &id, loaded, true);
        }
        self.judge_read(at, counter, epoch, acked, seen.as_ref());
    }
}
