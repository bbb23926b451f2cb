//! Rows of rollups: what was seen of a counter, one row a shard.
//!
//! As with partials a row's write time is the sequence that it comes from, so that a late writer never moves one back. Of
//! two writes of one sequence the later confirmation stays: fields of equal time are settled by the greater value, and all
//! others are equal.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::super::{Error, RollupPart};
use super::CassandraStore;
use crate::counter::Id;
use crate::limits;

/// Shard, seq, value, exists, confirmed at.
type Row = (i32, i64, i64, bool, i64);

impl CassandraStore {
    pub(super) async fn write_rollup(&self, counter: &Id, parts: &[RollupPart]) -> Result<(), Error> {
        let mut writes = Vec::with_capacity(parts.len());
        for part in parts {
            writes.push(self.write_part(counter, *part));
        }
        stream::iter(writes).buffer_unordered(limits::CASSANDRA_WRITES_IN_FLIGHT).try_collect().await
    }

    async fn write_part(&self, counter: &Id, part: RollupPart) -> Result<(), Error> {
        let RollupPart { shard, seq, value, exists, at_ms } = part;
        // No write may have time 0 or less.
        let written = seq as i64 + 1;
        let values = (counter.as_str(), shard as i32, seq as i64, value, exists, at_ms as i64, written);
        self.cql.run(&self.statements.put_rollup, values).await?;
        Ok(())
    }

    pub(super) async fn read_rollup(&self, counter: &Id) -> Result<Vec<RollupPart>, Error> {
        let rows = self.cql.rows::<Row>(&self.statements.rollup, (counter.as_str(),)).await?;
        let parts = rows.into_iter().map(|(shard, seq, value, exists, at_ms)| RollupPart {
            shard: shard as u32,
            seq: seq as u64,
            value,
            exists,
            at_ms: at_ms as u64,
        });
        Ok(parts.collect())
    }
}
