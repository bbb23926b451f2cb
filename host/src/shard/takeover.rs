//! How a shard gets a new writer: raise the epoch, so that the old one is fenced, then replay what no checkpoint holds.
//!
//! Pure, like the writer. The driver carries the effects out on a store whose `raise` settles which epoch may append.

use super::entry::{Entry, Mark};
use super::partials::Partials;
use super::writer::Writer;

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
    /// The shard serves again, with what was read as its readable state.
    Serve(Box<Writer>, Box<Partials>),
    /// The journal has a hole, goes backwards, or ends before what was durable: serving would show a wrong total. An
    /// operator must look.
    Damaged { expected_seq: u64, found_seq: u64 },
}

#[derive(Debug)]
pub struct Takeover {
    shard: u32,
    key_window_ms: u64,
    /// The journal must reach this far.
    durable_seq: u64,
    read: Option<(Box<Writer>, Box<Partials>)>,
    last_seq: u64,
    last_epoch: u64,
}

impl Takeover {
    /// `durable_seq` is the highest sequence that this process knows to be durable; 0 when it knows nothing.
    ///
    /// The readable state is made anew from what is read, for another owner may have changed anything since. An entry
    /// whose outcome an earlier writer never learned becomes visible if it is in the journal, and leaves no trace if not.
    pub fn begin(shard: u32, key_window_ms: u64, durable_seq: u64) -> (Self, Effect) {
        (Self { shard, key_window_ms, durable_seq, read: None, last_seq: 0, last_epoch: 0 }, Effect::Raise)
    }

    pub fn step(&mut self, event: Event) -> Effect {
        match event {
            Event::Raised { epoch, checkpoint_seq, marks } => {
                let mut writer = Writer::new(self.shard, epoch, checkpoint_seq + 1, self.key_window_ms);
                for mark in marks {
                    writer.restore_mark(mark);
                }
                self.last_seq = checkpoint_seq;
                self.read = Some((Box::new(writer), Box::new(Partials::after_checkpoint(checkpoint_seq))));
                Effect::Read { after: checkpoint_seq }
            }
            Event::Read(entries) if entries.is_empty() => self.serve(),
            Event::Read(entries) => self.replay(entries),
        }
    }

    fn serve(&mut self) -> Effect {
        if self.last_seq < self.durable_seq {
            return Effect::Damaged { expected_seq: self.durable_seq, found_seq: self.last_seq };
        }
        let (mut writer, partials) = self.read.take().expect("entries are read after the epoch was raised");
        writer.resume(self.last_seq + 1);
        Effect::Serve(writer, partials)
    }

    fn replay(&mut self, entries: Vec<Entry>) -> Effect {
        let (writer, partials) = self.read.as_mut().expect("entries are read after the epoch was raised");
        for entry in entries {
            if entry.seq != self.last_seq + 1 || entry.epoch < self.last_epoch || entry.shard != self.shard {
                return Effect::Damaged { expected_seq: self.last_seq + 1, found_seq: entry.seq };
            }
            partials.apply(&entry);
            for record in entry.keys {
                writer.restore_key(record, entry.seq);
            }
            for mark in entry.marks {
                writer.restore_mark(mark);
            }
            (self.last_seq, self.last_epoch) = (entry.seq, entry.epoch);
        }
        Effect::Read { after: self.last_seq }
    }
}
