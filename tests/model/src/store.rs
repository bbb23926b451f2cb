//! What the store holds for one shard, and the requests that change it.
//!
//! Every request is a write on one partition and is applied in one step. It names everything that it depends on, so it
//! means the same whenever and however often it arrives. How requests travel: `system.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::variants::Variant;

/// The number of an ownership. Every takeover makes a higher one.
pub type Epoch = u8;
/// The place of an entry in the journal of the shard, from 1, dense, going on across segments and epochs.
pub type Seq = u8;
/// The id of an entry. Every operation is sent as one entry, and as one only.
pub type Op = u8;

/// Names a segment, and is never given twice: the epoch that made it, and its number in that epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId {
    pub epoch: Epoch,
    pub number: u8,
}

/// The row of the shard in `shards`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    pub epoch: Epoch,
    /// A segment from which the live one is reached by following `next`: a hint that may lag and never runs ahead.
    pub pointer: SegmentId,
    pub position: Position,
}

/// How far the checkpoint goes. The seq that it covers is the length of `covered`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The segment in which replay begins.
    pub segment: SegmentId,
    /// The entries whose effect is in the partials. The real position is their number; they stand here to be compared.
    pub covered: Vec<Op>,
}

/// One partition of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub epoch: Epoch,
    pub tail: Seq,
    /// The segment that follows. Once it is set this one is sealed.
    pub next: Option<SegmentId>,
    pub entries: BTreeMap<Seq, Op>,
}

/// A write on one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// First step of a rotation: a partition for the next segment. What was ever there stays as it is.
    Create { id: SegmentId, epoch: Epoch, tail: Seq },
    /// Second step: SET next IF epoch AND tail AND next = null. This is the moment of rotation.
    Seal { id: SegmentId, next: SegmentId, epoch: Epoch, tail: Seq },
    /// Third step: SET pointer IF epoch AND pointer = `from`.
    MovePointer { from: SegmentId, to: SegmentId, epoch: Epoch },
    /// One batch: INSERT the entry and SET tail = seq, IF epoch AND tail = seq - 1 AND next = null.
    Append { id: SegmentId, seq: Seq, op: Op, epoch: Epoch },
    /// SET position IF epoch AND position = `from`.
    MovePosition { from: (SegmentId, Seq), to: SegmentId, covered: Vec<Op>, epoch: Epoch },
    /// DELETE of the whole partition, without a condition: its id is never used again.
    Drop { id: SegmentId },
}

/// What the store answers. A refusal carries the values that the condition met, as Cassandra's does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Applied,
    /// Not applied this time. `done` says that what the request would write is there already: an earlier copy of it
    /// applied, for nothing but that request writes it. `epoch` is none when the partition is missing.
    Refused {
        epoch: Option<Epoch>,
        done: bool,
    },
}

/// Why the journal cannot be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    MissingSegment(SegmentId),
    /// A segment follows itself.
    Cycle(SegmentId),
    /// An entry does not follow the one before it, or differs from what the checkpoint covers at its seq.
    WrongEntry(Seq),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    pub shard: Shard,
    pub segments: BTreeMap<SegmentId, Segment>,
    /// The ids of segments that were dropped: what Cassandra knows by their tombstones.
    pub dropped: BTreeSet<SegmentId>,
}

impl Store {
    /// A new shard: one empty segment, epoch 0, which nobody owns.
    pub fn new() -> Self {
        let first = SegmentId { epoch: 0, number: 0 };
        let segment = Segment { epoch: 0, tail: 0, next: None, entries: BTreeMap::new() };
        Self {
            shard: Shard { epoch: 0, pointer: first, position: Position { segment: first, covered: Vec::new() } },
            segments: BTreeMap::from([(first, segment)]),
            dropped: BTreeSet::new(),
        }
    }

    /// Applies one request in one step.
    pub fn apply(&mut self, request: &Request, variant: Variant) -> Answer {
        match request {
            Request::Create { id, epoch, tail } => self.create(*id, *epoch, *tail, variant),
            Request::Seal { id, next, epoch, tail } => self.seal(*id, *next, *epoch, *tail),
            Request::Append { id, seq, op, epoch } => self.append(*id, *seq, *op, *epoch, variant),
            Request::MovePointer { from, to, epoch } => {
                let shard = &mut self.shard;
                let applies = shard.epoch == *epoch && (shard.pointer == *from || variant.pointer_ignores_previous());
                answer(applies, Some(shard.epoch), shard.pointer == *to, || shard.pointer = *to)
            }
            Request::MovePosition { from, to, covered, epoch } => {
                let shard = &mut self.shard;
                let met = (shard.position.segment, shard.position.covered.len() as Seq);
                let applies = (shard.epoch == *epoch || variant.position_ignores_epoch())
                    && (met == *from || variant.position_ignores_previous());
                let to = Position { segment: *to, covered: covered.clone() };
                answer(applies, Some(shard.epoch), shard.position == to, || shard.position = to.clone())
            }
            Request::Drop { id } => {
                if self.segments.remove(id).is_some() {
                    self.dropped.insert(*id);
                }
                Answer::Applied
            }
        }
    }

    /// Says `applied` whatever was there, as a write without a condition does. It loses to all that was ever written to
    /// the partition, its drop included.
    fn create(&mut self, id: SegmentId, epoch: Epoch, tail: Seq, variant: Variant) -> Answer {
        if !self.dropped.contains(&id) || variant == Variant::CreateOutlivesDrop {
            self.segments.entry(id).or_insert(Segment { epoch, tail, next: None, entries: BTreeMap::new() });
        }
        Answer::Applied
    }

    fn seal(&mut self, id: SegmentId, next: SegmentId, epoch: Epoch, tail: Seq) -> Answer {
        let Some(segment) = self.segments.get_mut(&id) else {
            return Answer::Refused { epoch: None, done: false };
        };
        let applies = segment.epoch == epoch && segment.tail == tail && segment.next.is_none();
        answer(applies, Some(segment.epoch), segment.next == Some(next), || segment.next = Some(next))
    }

    fn append(&mut self, id: SegmentId, seq: Seq, op: Op, epoch: Epoch, variant: Variant) -> Answer {
        let Some(segment) = self.segments.get_mut(&id) else {
            return Answer::Refused { epoch: None, done: false };
        };
        let applies = (segment.epoch == epoch || variant == Variant::AppendIgnoresEpoch)
            && (segment.tail + 1 == seq || variant == Variant::AppendIgnoresTail)
            && (segment.next.is_none() || variant == Variant::AppendIgnoresSeal);
        answer(applies, Some(segment.epoch), segment.entries.get(&seq) == Some(&op), || {
            segment.entries.insert(seq, op);
            segment.tail = seq;
        })
    }

    /// Raises the epoch of a segment IF it is lower, and reads tail and next back. None when the segment is missing or
    /// carries a higher epoch.
    pub fn raise_segment(&mut self, id: SegmentId, epoch: Epoch) -> Option<Segment> {
        let segment = self.segments.get_mut(&id)?;
        (segment.epoch <= epoch).then(|| {
            segment.epoch = epoch;
            segment.clone()
        })
    }

    /// The journal as an owner reads it back from a position: what the checkpoint covers, then the entries of the
    /// segments from the position's on. Also returns those segments, in order.
    pub fn replay(&self, position: &Position) -> Result<(Vec<Op>, Vec<SegmentId>), Damage> {
        let mut log = position.covered.clone();
        let mut walked = Vec::new();
        let mut at = position.segment;
        loop {
            let segment = self.segments.get(&at).ok_or(Damage::MissingSegment(at))?;
            if walked.contains(&at) {
                return Err(Damage::Cycle(at));
            }
            walked.push(at);
            for (&seq, &op) in &segment.entries {
                let known = log.get(usize::from(seq) - 1).copied();
                match known {
                    Some(known) if known == op => {}
                    None if usize::from(seq) == log.len() + 1 => log.push(op),
                    _ => return Err(Damage::WrongEntry(seq)),
                }
            }
            match segment.next {
                Some(next) => at = next,
                None if usize::from(segment.tail) == log.len() => return Ok((log, walked)),
                None => return Err(Damage::WrongEntry(segment.tail)),
            }
        }
    }

    /// True when no later state of the store can apply the request, so that its late copies can be forgotten. This
    /// holds because epochs and tails only grow, `next` stays set, and no pointer, position or id comes back.
    pub fn can_never_apply(&self, request: &Request, variant: Variant) -> bool {
        if variant == Variant::SegmentIdsReused {
            return false;
        }
        let gone = |id: &SegmentId| self.dropped.contains(id) && variant != Variant::CreateOutlivesDrop;
        let fenced = self.shard.epoch;
        match request {
            Request::Create { id, .. } => {
                variant != Variant::CreateOutlivesDrop && (self.segments.contains_key(id) || self.dropped.contains(id))
            }
            Request::Seal { id, epoch, tail, .. } => match self.segments.get(id) {
                Some(segment) => {
                    variant != Variant::CreateOutlivesDrop
                        && (segment.epoch > *epoch || segment.tail > *tail || segment.next.is_some())
                }
                None => gone(id),
            },
            Request::Append { id, seq, epoch, .. } => match self.segments.get(id) {
                Some(segment) => {
                    variant != Variant::CreateOutlivesDrop
                        && ((segment.epoch > *epoch && variant != Variant::AppendIgnoresEpoch)
                            || (segment.tail >= *seq && variant != Variant::AppendIgnoresTail)
                            || (segment.next.is_some() && variant != Variant::AppendIgnoresSeal))
                }
                None => gone(id),
            },
            Request::MovePointer { from, epoch, .. } => {
                fenced > *epoch || (self.shard.pointer != *from && !variant.pointer_ignores_previous())
            }
            Request::MovePosition { from, epoch, .. } => {
                let met = (self.shard.position.segment, self.shard.position.covered.len() as Seq);
                (fenced > *epoch && !variant.position_ignores_epoch())
                    || (met != *from && !variant.position_ignores_previous())
            }
            Request::Drop { id } => gone(id),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

fn answer(applies: bool, epoch: Option<Epoch>, done: bool, write: impl FnOnce()) -> Answer {
    if applies {
        write();
        Answer::Applied
    } else {
        Answer::Refused { epoch, done }
    }
}
