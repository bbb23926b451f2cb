//! One process that may own the shard: what it holds in memory, and what it waits for.

use quipu::counter::Id;
use quipu::shard::entry::{KeyRecord, Mark};
use quipu::shard::takeover::{self, Takeover};
use quipu::shard::{JournalTime, Partial, Partials, Replay, Routes, Writer};

#[derive(Default)]
pub struct Node {
    /// Which process this is: a crash makes a new one.
    pub life: u64,
    pub partials: Partials,
    pub owner: Option<Owner>,
    /// What it has read of the journal while another owns it.
    pub standby: Option<Replay>,
    /// By streams, as [`super::world::World`] numbers them.
    pub routes: Routes<usize>,
    pub reads: Vec<Read>,
    /// Relaxed operations that the present writer has taken.
    pub relaxed: Vec<usize>,
    /// Idempotency records from before are hidden, by a mistake put in.
    pub keys_from_ms: u64,
    /// Outlives an owner, as the checkpoint thread does.
    pub checkpoint: Option<Checkpoint>,
}

pub struct Owner {
    pub serial: u64,
    pub takeover: Option<(Takeover, takeover::Effect)>,
    pub writer: Option<Box<Writer>>,
    /// As soon as there is a writer.
    pub time: Option<JournalTime>,
    pub asks: Vec<Ask>,
    /// An attempt to append what is in flight had no answer.
    pub unsure: bool,
    pub confirming: bool,
}

impl Owner {
    pub fn new(serial: u64, durable_seq: u64, standby: Option<Replay>) -> Self {
        let takeover = Some(Takeover::begin(0, super::world::KEY_WINDOW_MS, durable_seq, standby));
        Self { serial, takeover, writer: None, time: None, asks: Vec::new(), unsure: false, confirming: false }
    }
}

/// A look-up in the store. `found` is set when the store has answered, which the writer learns later.
pub enum Ask {
    Load { hash: u64, counter: Id, evictions: u64, found: Option<Option<Partial>> },
    LookUp { as_of: u64, hash: u64, counter: Id, key: Box<str>, found: Option<Option<KeyRecord>> },
}

impl Ask {
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Load { counter: one, .. }, Self::Load { counter: other, .. }) => one == other,
            (Self::LookUp { counter: one, key, .. }, Self::LookUp { counter: other, key: other_key, .. }) => {
                one == other && key == other_key
            }
            _ => false,
        }
    }
}

/// A checkpoint under way.
pub struct Checkpoint {
    pub epoch: u64,
    pub seq: u64,
    pub covered: u64,
    pub dirty: usize,
    pub from: usize,
    pub keys: Vec<KeyRecord>,
    pub marks: Vec<Mark>,
    /// Written, and the writer not told yet.
    pub done: bool,
}

/// A reader that found nothing in memory and asks the store.
pub struct Read {
    pub counter: usize,
    pub evictions: u64,
    pub epoch: u64,
    /// What must be in the value: acknowledged before the read began.
    pub acked: i64,
    pub found: Option<Option<Partial>>,
}

impl Node {
    pub fn serves(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.writer.is_some())
    }

    pub fn epoch(&self) -> Option<u64> {
        Some(self.owner.as_ref()?.writer.as_ref()?.epoch())
    }
}
