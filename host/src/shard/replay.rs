//! A shard as its journal tells it: what the checkpoint does not hold, entry by entry.
//!
//! A new owner reads it after it raised the epoch. A node that stands by reads it before, while another still writes: an
//! entry that can be read never changes, so both come to the same state, and the one that stood by has the last entries
//! to read only.

use super::entry::{Entry, Mark};
use super::partials::Partials;
use super::writer::Writer;

/// The journal goes on elsewhere than it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    pub expected_seq: u64,
    pub found_seq: u64,
}

#[derive(Debug)]
pub struct Replay {
    shard: u32,
    /// Has no epoch yet, and writes nothing.
    writer: Box<Writer>,
    partials: Box<Partials>,
    last_seq: u64,
    last_epoch: u64,
}

impl Replay {
    /// What a checkpoint of everything up to `checkpoint_seq` says besides partials and keys, which are asked for one by
    /// one.
    pub fn after_checkpoint(shard: u32, key_window_ms: u64, checkpoint_seq: u64, marks: Vec<Mark>) -> Self {
        let mut writer = Box::new(Writer::new(shard, 0, checkpoint_seq + 1, key_window_ms));
        for mark in marks {
            writer.restore_mark(mark);
        }
        let partials = Box::new(Partials::after_checkpoint(checkpoint_seq));
        Self { shard, writer, partials, last_seq: checkpoint_seq, last_epoch: 0 }
    }

    /// Sequence of the last entry that is in.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Counters and idempotency records in memory.
    pub fn records(&self) -> usize {
        self.partials.len() + self.writer.keys_len()
    }

    /// Takes in what was read after [`Self::last_seq`]. After an error this is of no use any more.
    pub fn replay(&mut self, entries: Vec<Entry>) -> Result<(), Hole> {
        for entry in entries {
            if entry.seq != self.last_seq + 1 || entry.epoch < self.last_epoch || entry.shard != self.shard {
                return Err(Hole { expected_seq: self.last_seq + 1, found_seq: entry.seq });
            }
            self.partials.apply(&entry);
            if let Some(time_ms) = entry.time_ms {
                self.writer.restore_time(time_ms);
            }
            for record in entry.keys {
                self.writer.restore_key(record, entry.seq);
            }
            for mark in entry.marks {
                self.writer.restore_mark(mark);
            }
            (self.last_seq, self.last_epoch) = (entry.seq, entry.epoch);
        }
        Ok(())
    }

    /// Forgets what a checkpoint of everything up to `seq` holds.
    pub fn forget_checkpointed(&mut self, seq: u64) {
        self.checkpointed(seq);
        self.partials.evict_clean(0, usize::MAX);
    }

    /// A checkpoint holds everything up to `seq`, which need not be kept for the next one.
    pub(super) fn checkpointed(&mut self, seq: u64) {
        self.partials.checkpointed(seq);
        self.writer.forget_checkpointed(seq);
    }

    /// The writer that goes on after the last entry, and what is readable.
    pub(super) fn serve(mut self, epoch: u64) -> (Box<Writer>, Box<Partials>) {
        self.writer.resume(epoch, self.last_seq + 1);
        (self.writer, self.partials)
    }
}
