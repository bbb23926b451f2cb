//! How a shard gets a new writer: raise the epoch, so that the old one is fenced, then replay what no checkpoint holds.
//!
//! Pure, like the writer. The driver carries the effects out on a store whose `raise` settles which epoch may append.

use super::entry::{Entry, Mark};
use super::partials::Partials;
use super::replay::{Hole, Replay};
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
    epoch: u64,
    /// What is read of the journal; before the epoch is raised, what was read while standing by.
    read: Option<Replay>,
}

impl Takeover {
    /// `durable_seq` is the highest sequence that this process knows to be durable; 0 when it knows nothing. `standby` is
    /// what it has read of the journal already, if it stood by.
    ///
    /// The readable state is made anew from what is read, for another owner may have changed anything since. An entry
    /// whose outcome an earlier writer never learned becomes visible if it is in the journal, and leaves no trace if not.
    pub fn begin(shard: u32, key_window_ms: u64, durable_seq: u64, standby: Option<Replay>) -> (Self, Effect) {
        (Self { shard, key_window_ms, durable_seq, epoch: 0, read: standby }, Effect::Raise)
    }

    pub fn step(&mut self, event: Event) -> Effect {
        match event {
            Event::Raised { epoch, checkpoint_seq, marks } => {
                self.epoch = epoch;
                // What is behind the checkpoint cannot go on: the entries after it may be dropped.
                let stood_by = self.read.take().filter(|read| read.last_seq() >= checkpoint_seq);
                let read = match stood_by {
                    Some(mut read) => {
                        read.checkpointed(checkpoint_seq);
                        read
                    }
                    None => Replay::after_checkpoint(self.shard, self.key_window_ms, checkpoint_seq, marks),
                };
                let after = read.last_seq();
                self.read = Some(read);
                Effect::Read { after }
            }
            Event::Read(entries) if entries.is_empty() => self.serve(),
            Event::Read(entries) => {
                let read = self.read.as_mut().expect("entries are read after the epoch was raised");
                match read.replay(entries) {
                    Ok(()) => Effect::Read { after: read.last_seq() },
                    Err(Hole { expected_seq, found_seq }) => Effect::Damaged { expected_seq, found_seq },
                }
            }
        }
    }

    fn serve(&mut self) -> Effect {
        let read = self.read.take().expect("entries are read after the epoch was raised");
        if read.last_seq() < self.durable_seq {
            return Effect::Damaged { expected_seq: self.durable_seq, found_seq: read.last_seq() };
        }
        let (writer, partials) = read.serve(self.epoch);
        Effect::Serve(writer, partials)
    }
}
