//! Becoming a shard's owner: the epoch is raised first where everybody looks for it, then on every segment that an older
//! owner could still append to.
//!
//! The pointer in `shards` never runs ahead of the journal's end, so following `next` from it, raising on the way, ends
//! at the segment that is open, and from then on it takes our entries alone.

use std::collections::VecDeque;

use super::super::{Error, Raised};
use super::CassandraStore;
use super::owned::{Owned, Segment};
use super::schema::missing;
use crate::limits;

/// A row of `shards`.
#[derive(Debug, Clone)]
pub struct ShardRow {
    pub epoch: u64,
    pub segment: String,
    pub position: u64,
    pub marks: i64,
    pub mark_chunks: i32,
}

/// Static columns of a segment.
#[derive(Debug, Clone)]
pub struct SegmentRow {
    pub epoch: u64,
    pub tail: u64,
    pub base: u64,
    pub bytes: u64,
    pub next: Option<String>,
    /// Empty for a shard's first.
    pub prev: String,
}

/// A segment was dropped, or another owner came, while the chain was followed.
struct Moved;

/// No crash leaves this, but restoring a part of what was saved does, or rows of two times on top of each other. Serving
/// it would be worse: rows of partials from ahead of the journal win over all that is counted until it is as long.
fn of_two_times(shard: u32, tail: u64) -> Error {
    Error::Damaged(format!(
        "the journal of shard {shard} ends at {tail}, before counters that are stored: restore a backup into an empty \
         keyspace, without `quipu store init` before it"
    ))
}

impl CassandraStore {
    /// What the last conditional write left.
    pub(super) async fn shard_row(&self, shard: u32) -> Result<ShardRow, Error> {
        type Columns = (i64, String, i64, i64, i32);
        let row = self.cql.row::<Columns>(&self.statements.shard, (shard as i32,)).await?;
        let (epoch, segment, position, marks, mark_chunks) =
            row.ok_or_else(|| missing(&format!("the row of shard {shard}")))?;
        Ok(ShardRow { epoch: epoch as u64, segment, position: position as u64, marks, mark_chunks })
    }

    /// None when the segment has been dropped.
    pub(super) async fn segment_row(&self, shard: u32, id: &str) -> Result<Option<SegmentRow>, Error> {
        type Columns =
            (i32, String, Option<i64>, Option<i64>, Option<String>, Option<String>, Option<i64>, Option<i64>);
        let row = self.cql.row::<Columns>(&self.statements.segment, (shard as i32, id)).await?;
        Ok(row.and_then(|(_, _, epoch, tail, next, prev, base, bytes)| {
            Some(SegmentRow {
                epoch: epoch? as u64,
                tail: tail? as u64,
                base: base? as u64,
                bytes: bytes? as u64,
                next,
                prev: prev?,
            })
        }))
    }

    pub(super) async fn take_over(&self, shard: u32) -> Result<Raised, Error> {
        for _ in 0..limits::CASSANDRA_TAKEOVER_TRIES {
            let before = self.shard_row(shard).await?.epoch;
            let epoch = before + 1;
            // Sent once: a copy of unknown outcome leaves an epoch that nobody uses.
            let values = (epoch as i64, shard as i32, before as i64);
            if !self.cql.conditional(&self.statements.raise_shard, values).await?.applied {
                continue;
            }
            self.reached(super::Step::EpochRaised)?;
            let row = self.shard_row(shard).await?;
            if row.epoch != epoch {
                continue;
            }
            let Ok((tail, segments)) = self.raise_segments(shard, epoch, &row.segment).await? else {
                self.pointer_holds(shard, &row).await?;
                continue;
            };
            let position = row.position;
            if tail < position || tail == 0 && self.has_partials(shard).await? {
                return Err(of_two_times(shard, tail));
            }
            let marks = self.load_marks(shard, &row).await?;
            self.owned.lock().insert(shard, Owned::new(epoch, position, tail, segments));
            return Ok(Raised { epoch, checkpoint_seq: position, marks });
        }
        Err(Error::NotApplied(format!("other nodes are taking shard {shard} over at the same time")))
    }

    /// A pointer to a segment that is gone, although nobody moved it since, is damage.
    async fn pointer_holds(&self, shard: u32, row: &ShardRow) -> Result<(), Error> {
        let there = self.segment_row(shard, &row.segment).await?.is_some();
        let now = self.shard_row(shard).await?;
        if there || now.epoch != row.epoch || now.segment != row.segment {
            return Ok(());
        }
        let segment = &row.segment;
        Err(Error::Damaged(format!("the journal of shard {shard} should go on in segment {segment}, which is missing")))
    }

    /// From the pointer to the open segment. Answers the last sequence and all segments that are left.
    async fn raise_segments(
        &self,
        shard: u32,
        epoch: u64,
        pointer: &str,
    ) -> Result<Result<(u64, VecDeque<Segment>), Moved>, Error> {
        let mut id = pointer.to_owned();
        let mut segments = VecDeque::new();
        loop {
            let values = (epoch as i64, shard as i32, &id, epoch as i64);
            let raised = self.cql.settle(&self.statements.raise_segment, values).await?;
            if !raised.applied && raised.int("epoch") != Some(epoch) {
                return Ok(Err(Moved));
            }
            self.reached(super::Step::SegmentRaised)?;
            let Some(row) = self.segment_row(shard, &id).await? else { return Ok(Err(Moved)) };
            if row.epoch != epoch {
                return Ok(Err(Moved));
            }
            if segments.is_empty() {
                segments = self.segments_before(shard, &row.prev).await?;
            }
            segments.push_back(Segment { id, base: row.base, bytes: row.bytes });
            match row.next {
                None => return Ok(Ok((row.tail, segments))),
                Some(next) => id = next,
            }
        }
    }

    /// The sealed segments up to `id` that have not been dropped, oldest first. They are dropped in that order, so the
    /// first one that is missing is the end.
    async fn segments_before(&self, shard: u32, id: &str) -> Result<VecDeque<Segment>, Error> {
        let (mut id, mut found) = (id.to_owned(), VecDeque::new());
        while !id.is_empty() {
            let Some(row) = self.segment_row(shard, &id).await? else { break };
            found.push_front(Segment { id, base: row.base, bytes: row.bytes });
            id = row.prev;
        }
        Ok(found)
    }

    /// Of a shard that need not be ours: the position of its checkpoint, its last sequence, and its segments, oldest first.
    /// Nothing is raised.
    pub(super) async fn segments_of(&self, shard: u32) -> Result<(u64, u64, VecDeque<Segment>), Error> {
        let ShardRow { segment: mut id, position, .. } = self.shard_row(shard).await?;
        let mut segments: VecDeque<Segment> = VecDeque::new();
        loop {
            let Some(row) = self.segment_row(shard, &id).await? else {
                return Err(Error::NotApplied(format!("the journal of shard {shard} moved while it was read")));
            };
            if segments.is_empty() {
                segments = self.segments_before(shard, &row.prev).await?;
            }
            segments.push_back(Segment { id, base: row.base, bytes: row.bytes });
            match row.next {
                None => return Ok((position, row.tail, segments)),
                Some(next) => id = next,
            }
        }
    }
}
