//! How a shard gets a new writer: raise the epoch, so that the old one is fenced, then replay what no checkpoint holds.
//!
//! Pure, like the writer. The driver carries the effects out on a store whose `raise` settles which epoch may append.

use super::entry::{Entry, Mark};
use super::partials::Partials;
use super::writer::{MarkState, Writer};

#[derive(Debug)]
pub enum Event {
    /// The store gave the shard to us under `epoch`. Everything up to `checkpoint_seq` is in its checkpoint.
    Raised { epoch: u64, checkpoint_seq: u64, marks: Vec<Mark> },
    /// Entries after the one asked for, in order; empty when there are no more.
    Read(Vec<Entry>),
}

#[derive(Debug)]
pub enum Effect {
    /// Raise the epoch; nobody older can append afterwards.
    Raise,
    /// Read entries after this sequence.
    Read { after: u64 },
    /// The shard serves again.
    Serve(Box<Writer>),
    /// The journal has a hole or goes backwards: serving would show a wrong total. An operator must look.
    Damaged { expected_seq: u64, found_seq: u64 },
}

#[derive(Debug)]
pub struct Takeover {
    shard: u32,
    key_window_ms: u64,
    writer: Option<Box<Writer>>,
    last_seq: u64,
    last_epoch: u64,
}

impl Takeover {
    pub fn begin(shard: u32, key_window_ms: u64) -> (Self, Effect) {
        (Self { shard, key_window_ms, writer: None, last_seq: 0, last_epoch: 0 }, Effect::Raise)
    }

    /// `partials` may be what an earlier writer of this process left: all of it was journaled.
    pub fn step(&mut self, partials: &mut Partials, event: Event) -> Effect {
        match event {
            Event::Raised { epoch, checkpoint_seq, marks } => {
                let mut writer = Writer::new(self.shard, epoch, checkpoint_seq + 1, self.key_window_ms);
                for mark in marks {
                    restore(&mut writer, mark);
                }
                partials.start_after(checkpoint_seq);
                self.last_seq = checkpoint_seq;
                self.writer = Some(Box::new(writer));
                Effect::Read { after: checkpoint_seq }
            }
            Event::Read(entries) => self.replay(partials, entries),
        }
    }

    fn replay(&mut self, partials: &mut Partials, entries: Vec<Entry>) -> Effect {
        let writer = self.writer.as_mut().expect("entries are read after the epoch was raised");
        if entries.is_empty() {
            writer.resume(self.last_seq + 1);
            return Effect::Serve(self.writer.take().expect("it was there a line ago"));
        }
        for entry in entries {
            if entry.seq != self.last_seq + 1 || entry.epoch < self.last_epoch || entry.shard != self.shard {
                return Effect::Damaged { expected_seq: self.last_seq + 1, found_seq: entry.seq };
            }
            partials.apply(&entry);
            for record in entry.keys {
                writer.restore_key(record, entry.seq);
            }
            for mark in entry.marks {
                restore(writer, mark);
            }
            (self.last_seq, self.last_epoch) = (entry.seq, entry.epoch);
        }
        Effect::Read { after: self.last_seq }
    }
}

fn restore(writer: &mut Writer, mark: Mark) {
    let state = MarkState { through: mark.through, outcomes: mark.outcomes.into() };
    writer.marks.insert(mark.producer, state);
}
