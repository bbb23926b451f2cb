//! Checkpoints: partials and idempotency records, then marks, then the position that makes them count, then the segments
//! that are not needed any more.
//!
//! The position moves only under the owner's epoch. Whatever was written before it is harmless without it: rows carry the
//! time of their entry, and marks are found through the position alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::super::{Checkpoint, Error};
use super::schema::missing;
use super::takeover::ShardRow;
use super::{CassandraStore, Step};
use crate::counter::Id;
use crate::limits;
use crate::shard::entry::{KeyRecord, Mark};

/// A dropped segment's id is never used again, so its deletion may carry a time after every clock.
const DROP_AHEAD: Duration = Duration::from_secs(3600);

impl CassandraStore {
    pub(super) async fn write_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let Checkpoint { shard, epoch, seq, partials, keys, marks } = checkpoint;
        let before = self.shard_row(*shard).await?;
        if before.epoch != *epoch || before.position > *seq {
            return Ok(());
        }
        self.write_partials(*shard, partials).await?;
        self.write_keys(*shard, keys).await?;
        // At the same position nothing but rows can be new.
        if *seq > before.position && !self.move_position(*shard, *epoch, *seq, marks, before).await? {
            return Ok(());
        }
        self.change(*shard, *epoch, |owned| owned.covered(*seq));
        self.drop_segments(*shard).await;
        Ok(())
    }

    /// False when another owner came, or a later checkpoint.
    async fn move_position(
        &self,
        shard: u32,
        epoch: u64,
        seq: u64,
        marks: &[Mark],
        mut before: ShardRow,
    ) -> Result<bool, Error> {
        let id: i64 = rand::random();
        let chunks = self.write_marks(shard, id, marks).await?;
        self.reached(Step::MarksWritten)?;
        while before.epoch == epoch && before.position <= seq {
            // The pointer is a condition too: a copy that arrives late must not move it back to a segment that is gone.
            let owned = self.owned(shard).filter(|owned| owned.epoch == epoch);
            let segment = owned.map_or_else(|| before.segment.clone(), |owned| owned.last().id.clone());
            let values = (seq as i64, id, chunks, segment, shard as i32, epoch as i64, seq as i64, &before.segment);
            let answer = self.cql.settle(&self.statements.move_position, values).await?;
            self.reached(Step::PositionMoved)?;
            let now = self.shard_row(shard).await?;
            if answer.applied || now.marks == id {
                self.delete_marks(shard, before.marks, before.mark_chunks).await;
                return Ok(true);
            }
            before = now;
        }
        self.delete_marks(shard, id, chunks).await;
        Ok(false)
    }

    /// Marks that no position names are never read again.
    async fn delete_marks(&self, shard: u32, id: i64, chunks: i32) {
        for chunk in 0..chunks {
            if let Err(why) = self.cql.run(&self.statements.delete_mark, (shard as i32, id, chunk)).await {
                tracing::debug!("old marks of shard {shard} stay: {why}");
            }
        }
    }

    /// In rows of a limited size. Answers how many.
    async fn write_marks(&self, shard: u32, id: i64, marks: &[Mark]) -> Result<i32, Error> {
        let mut encoded = Vec::new();
        for mark in marks {
            let start = encoded.len();
            encoded.extend_from_slice(&[0; 4]);
            mark.encode(&mut encoded);
            let length = (encoded.len() - start - 4) as u32;
            encoded[start..start + 4].copy_from_slice(&length.to_le_bytes());
        }
        if encoded.is_empty() {
            return Ok(0);
        }
        let crc = crc32c::crc32c(&encoded);
        encoded.extend_from_slice(&crc.to_le_bytes());
        let mut chunks = 0;
        for data in encoded.chunks(limits::CASSANDRA_CHUNK_BYTES) {
            self.cql.run(&self.statements.put_mark, (shard as i32, id, chunks, data)).await?;
            chunks += 1;
        }
        Ok(chunks)
    }

    /// The marks that belong to a position.
    pub(super) async fn load_marks(&self, shard: u32, row: &ShardRow) -> Result<Vec<Mark>, Error> {
        let mut encoded = Vec::new();
        for chunk in 0..row.mark_chunks {
            let found = self.cql.row::<(Vec<u8>,)>(&self.statements.mark, (shard as i32, row.marks, chunk)).await?;
            let Some((data,)) = found else {
                // They go when a later position has its own.
                return Err(if self.shard_row(shard).await?.marks == row.marks {
                    missing(&format!("a row of the marks of shard {shard}"))
                } else {
                    Error::NotApplied(format!("a newer owner took shard {shard} over"))
                });
            };
            encoded.extend_from_slice(&data);
        }
        parse_marks(&encoded).ok_or_else(|| Error::Damaged(format!("the marks of shard {shard} cannot be read")))
    }

    async fn write_keys(&self, shard: u32, keys: &[KeyRecord]) -> Result<(), Error> {
        // Cassandra drops them by its own clock, which may be ahead, and while nobody serves the shard.
        let kept = 2 * self.settings.key_window + limits::KEY_EXPIRY_SLACK;
        let ttl_s = i32::try_from(kept.as_secs()).unwrap_or(i32::MAX);
        let mut writes = Vec::with_capacity(keys.len());
        for record in keys {
            writes.push(self.write_key(shard, record, ttl_s));
        }
        stream::iter(writes).buffer_unordered(limits::CASSANDRA_WRITES_IN_FLIGHT).try_collect().await
    }

    async fn write_key(&self, shard: u32, record: &KeyRecord, ttl_s: i32) -> Result<(), Error> {
        let mut encoded = Vec::new();
        record.encode(&mut encoded);
        let (counter, crc) = (record.counter.as_str(), i64::from(crc32c::crc32c(&encoded)));
        // A key that is used again after its window has a later time.
        let values = (shard as i32, counter, &*record.key, encoded, crc, record.kept_by_ms() as i64, ttl_s);
        self.cql.run(&self.statements.put_key, values).await?;
        Ok(())
    }

    pub(super) async fn load_record(&self, shard: u32, counter: &Id, key: &str) -> Result<Option<KeyRecord>, Error> {
        let values = (shard as i32, counter.as_str(), key);
        let Some((encoded, crc)) = self.cql.row::<(Vec<u8>, i64)>(&self.statements.key, values).await? else {
            return Ok(None);
        };
        let damaged = || Error::Damaged(format!("an idempotency record of counter '{counter}' on shard {shard}"));
        if i64::from(crc32c::crc32c(&encoded)) != crc {
            return Err(damaged());
        }
        KeyRecord::decode(&encoded).map(Some).map_err(|_| damaged())
    }

    /// What fails here is dropped after a later checkpoint.
    async fn drop_segments(&self, shard: u32) {
        let Some(owned) = self.owned(shard) else { return };
        let droppable = owned.droppable();
        if droppable.is_empty() {
            return;
        }
        let dropped = async {
            // A takeover begins at the pointer: it must have passed what is dropped.
            let row = self.shard_row(shard).await?;
            for segment in droppable {
                if row.segment == segment.id || row.epoch != owned.epoch {
                    break;
                }
                self.reached(Step::SegmentDrops)?;
                let time_us = now_us() + DROP_AHEAD.as_micros() as i64;
                self.cql.run(&self.statements.drop_segment, (time_us, shard as i32, &segment.id)).await?;
                self.change(shard, owned.epoch, |owned| owned.dropped(&segment.id));
            }
            Ok::<(), Error>(())
        };
        if let Err(why) = dropped.await {
            tracing::debug!("old segments of shard {shard} stay for now: {why}");
        }
    }
}

/// `(length u32 · mark)* · crc32c of all before`, little-endian; nothing at all when there are no marks.
fn parse_marks(encoded: &[u8]) -> Option<Vec<Mark>> {
    if encoded.is_empty() {
        return Some(Vec::new());
    }
    let (mut rest, crc) = encoded.split_last_chunk::<4>()?;
    if crc32c::crc32c(rest) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut marks = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (mark, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        marks.push(Mark::decode(mark).ok()?);
        rest = after;
    }
    Some(marks)
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
