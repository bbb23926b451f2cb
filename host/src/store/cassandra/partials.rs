//! Rows of partials: one per shard and counter, spread over buckets, in the order of lists.
//!
//! A row's write time is the sequence of the entry that it comes from, so that an older checkpoint never wins over a newer
//! one. A removed partial stays as a row: a deletion would need a time of its own. A checksum over all fields tells a row
//! that is half another's.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use scylla::statement::batch::{Batch, BatchType};

use super::super::{Error, Listed};
use super::CassandraStore;
use crate::counter::{Id, key_hash};
use crate::limits;
use crate::shard::partials::Partial;

/// Partitions of one shard's partials. Part of the format.
const BUCKETS: i32 = 8;

const REMOVED: i8 = 1;
const NAMED: i8 = 2;

/// Closes every id in `counter_id`.
const TERMINATOR: u8 = 0xFF;

/// Counter, value, seq, created_at, generation, flags, name, checksum.
type Row = (Vec<u8>, i64, i64, i64, i64, i8, String, i64);

/// As `Row`, between the partition and the write time.
type Values = (i32, i32, Vec<u8>, i64, i64, i64, i64, i8, String, i64, i64);

impl CassandraStore {
    pub(super) async fn write_partials(&self, shard: u32, partials: &[(Id, Partial)]) -> Result<(), Error> {
        let mut buckets: BTreeMap<i32, Vec<Values>> = BTreeMap::new();
        for (id, partial) in partials {
            let bucket = bucket(id);
            buckets.entry(bucket).or_default().push(encode(shard, bucket, id, partial));
        }
        let pieces = buckets.into_values().flat_map(pieces);
        let writes = pieces.map(|rows| async move {
            let mut batch = Batch::new(BatchType::Unlogged);
            batch.set_consistency(self.settings.scope.plain());
            for _ in &rows {
                batch.append_statement(self.statements.put_partial.clone());
            }
            self.cql.session.batch(&batch, rows).await.map_err(super::cql::Unanswered::from)?;
            Ok(())
        });
        stream::iter(writes).buffer_unordered(limits::CASSANDRA_WRITES_IN_FLIGHT).try_collect().await
    }

    pub(super) async fn load_partial(&self, shard: u32, id: &Id) -> Result<Option<Partial>, Error> {
        let values = (shard as i32, bucket(id), key(id.as_str()));
        let row = self.cql.row::<Row>(&self.statements.partial, values).await?;
        row.map(|row| Ok(decode(shard, row)?.1)).transpose()
    }

    /// Whether a checkpoint ever wrote one of the shard's.
    pub(super) async fn has_partials(&self, shard: u32) -> Result<bool, Error> {
        for bucket in 0..BUCKETS {
            let values = (shard as i32, bucket, Vec::<u8>::new(), key(""), 1);
            if self.cql.row::<Row>(&self.statements.list, values).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) async fn list_partials(
        &self,
        prefix: &str,
        after: Option<&Id>,
        limit: usize,
    ) -> Result<Vec<Listed>, Error> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let from = after.map(|after| key(after.as_str())).unwrap_or_default().max(prefix.as_bytes().to_vec());
        let (from, to) = (&from, &key(prefix));
        let page = i32::try_from(limit).unwrap_or(i32::MAX);
        let places = (0..self.settings.shards).flat_map(|shard| (0..BUCKETS).map(move |bucket| (shard, bucket)));
        let reads = places.map(|(shard, bucket)| async move {
            let values = (shard as i32, bucket, from, to, page);
            Ok::<_, Error>((shard, self.cql.rows::<Row>(&self.statements.list, values).await?))
        });
        let mut reads = stream::iter(reads).buffer_unordered(limits::CASSANDRA_LIST_READS_IN_FLIGHT);
        let mut found: BTreeMap<Vec<u8>, Listed> = BTreeMap::new();
        while let Some((shard, rows)) = reads.try_next().await? {
            for row in rows {
                let place = row.0.clone();
                let (id, partial) = decode(shard, row)?;
                let listed = found.entry(place).or_insert_with(|| Listed { id, partials: Vec::new() });
                listed.partials.push((shard, partial));
            }
            while found.len() > limit {
                found.pop_last();
            }
        }
        let listed = found.into_values().map(|mut listed| {
            listed.partials.sort_unstable_by_key(|&(shard, _)| shard);
            listed
        });
        Ok(listed.collect())
    }
}

fn bucket(id: &Id) -> i32 {
    (key_hash(id.as_str()) % BUCKETS as u64) as i32
}

fn key(id: &str) -> Vec<u8> {
    [id.as_bytes(), &[TERMINATOR]].concat()
}

/// Rows of one partition, in batches that the server takes without complaint.
fn pieces(rows: Vec<Values>) -> Vec<Vec<Values>> {
    let (mut pieces, mut bytes) = (vec![Vec::new()], 0);
    for row in rows {
        let row_bytes = row.2.len() + row.8.len() + 64;
        if bytes > 0 && bytes + row_bytes > limits::CASSANDRA_BATCH_BYTES {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += row_bytes;
        pieces.last_mut().expect("begins with one").push(row);
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn encode(shard: u32, bucket: i32, id: &Id, partial: &Partial) -> Values {
    let mut row: Row = (
        key(id.as_str()),
        partial.value,
        partial.seq as i64,
        partial.created_at_ms as i64,
        i64::from(partial.generation),
        if partial.removed { REMOVED } else { 0 } | if partial.name.is_some() { NAMED } else { 0 },
        partial.name.as_deref().unwrap_or_default().to_owned(),
        0,
    );
    row.7 = checksum(shard, &row);
    let (id, value, seq, created_at, generation, flags, name, checksum) = row;
    (shard as i32, bucket, id, value, seq, created_at, generation, flags, name, checksum, seq)
}

fn decode(shard: u32, row: Row) -> Result<(Id, Partial), Error> {
    let damaged = || {
        let id = String::from_utf8_lossy(row.0.strip_suffix(&[TERMINATOR]).unwrap_or(&row.0));
        Error::Damaged(format!("the partial of counter '{id}' on shard {shard} does not match its checksum"))
    };
    if row.7 != checksum(shard, &row) {
        return Err(damaged());
    }
    let (id, value, seq, created_at, generation, flags, name, _) = &row;
    let id = id.strip_suffix(&[TERMINATOR]).and_then(|id| std::str::from_utf8(id).ok());
    let id = id.and_then(|id| Id::new(id).ok()).ok_or_else(damaged)?;
    let partial = Partial {
        value: *value,
        seq: *seq as u64,
        created_at_ms: *created_at as u64,
        generation: u32::try_from(*generation).map_err(|_| damaged())?,
        removed: flags & REMOVED != 0,
        name: (flags & NAMED != 0).then(|| name.as_str().into()),
    };
    Ok((id, partial))
}

fn checksum(shard: u32, row: &Row) -> i64 {
    let (id, value, seq, created_at, generation, flags, name, _) = row;
    let mut crc = crc32c::crc32c(&shard.to_le_bytes());
    for part in [
        &id[..],
        &value.to_le_bytes(),
        &seq.to_le_bytes(),
        &created_at.to_le_bytes(),
        &generation.to_le_bytes(),
        &flags.to_le_bytes(),
        name.as_bytes(),
    ] {
        crc = crc32c::crc32c_append(crc, part);
    }
    i64::from(crc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row_of(values: Values) -> Row {
        let (_, _, id, value, seq, created_at, generation, flags, name, checksum, _) = values;
        (id, value, seq, created_at, generation, flags, name, checksum)
    }

    proptest! {
        #[test]
        fn a_row_is_read_back(
            value: i64, seq: u64, created_at_ms: u64, generation: u32, removed: bool, name in prop::option::of("[ -~]{0,9}")
        ) {
            let partial =
                Partial { value, seq, created_at_ms, generation, removed, name: name.map(|name| name.as_str().into()) };
            let id = Id::new("a/é").expect("valid");
            let values = encode(3, bucket(&id), &id, &partial);
            prop_assert_eq!(values.10 as u64, seq);
            prop_assert_eq!(decode(3, row_of(values)).expect("whole"), (id, partial));
        }

        #[test]
        fn a_field_of_another_row_is_noticed(value: i64, other: i64, seq: u64) {
            prop_assume!(value != other);
            let id = Id::new("a").expect("valid");
            let partial = Partial { value, seq, ..Partial::default() };
            let mut row = row_of(encode(3, 0, &id, &partial));
            row.1 = other;
            prop_assert!(matches!(decode(3, row.clone()), Err(Error::Damaged(_))));
            row.1 = value;
            prop_assert!(decode(3, row.clone()).is_ok());
            prop_assert!(matches!(decode(2, row), Err(Error::Damaged(_))));
        }
    }

    #[test]
    fn batches_are_bounded() {
        let id = Id::new(&"a".repeat(500)).expect("valid");
        let row = encode(0, 0, &id, &Partial::default());
        let rows = limits::CASSANDRA_BATCH_BYTES / 565;
        let sizes: Vec<usize> = pieces(vec![row; 2 * rows + 1]).iter().map(Vec::len).collect();
        assert_eq!(sizes, [rows, rows, 1]);
        assert!(pieces(Vec::new()).is_empty());
    }
}
