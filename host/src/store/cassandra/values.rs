//! The small values, some of which are not so small: a policy's bytes are megabytes.
//!
//! A large one is stored in chunks under a fresh version, before the row that names the version is written. Rows are
//! written conditionally, so that of two writers the later one wins whatever their clocks say.

use scylla::value::CqlValue;

use super::super::Error;
use super::CassandraStore;
use super::cql::Conditional;
use crate::limits;

/// No text has this byte.
const AFTER_ANY_TEXT: u8 = 0xFF;

/// Version, chunks (0: `data` has it all), checksum, data.
type Row = (i64, i32, i64, Vec<u8>);

impl CassandraStore {
    pub(super) async fn get_value(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        for _ in 0..limits::CASSANDRA_VALUE_TRIES {
            let row = self.cql.row::<Row>(&self.statements.value, (partition(space), key.as_bytes())).await?;
            let Some(row) = row else { return Ok(None) };
            if let Some(value) = self.whole(space, key, row).await? {
                return Ok(Some(value));
            }
        }
        Err(self.gone(space, key))
    }

    /// None when a chunk is missing: the value has been replaced since its row was read.
    async fn whole(&self, space: &str, key: &str, row: Row) -> Result<Option<Vec<u8>>, Error> {
        let (version, chunks, crc, mut value) = row;
        for chunk in 0..chunks {
            let found = self.cql.row::<(Vec<u8>,)>(&self.statements.chunk, (version, chunk)).await?;
            let Some((data,)) = found else { return Ok(None) };
            value.extend_from_slice(&data);
        }
        if i64::from(crc32c::crc32c(&value)) == crc {
            Ok(Some(value))
        } else {
            Err(Error::Damaged(format!("the value {key} of {space} does not match its checksum")))
        }
    }

    fn gone(&self, space: &str, key: &str) -> Error {
        Error::NotApplied(format!("the value {key} of {space} is replaced faster than it can be read"))
    }

    pub(super) async fn put_value(&self, space: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        let (version, crc) = (rand::random::<i64>(), i64::from(crc32c::crc32c(value)));
        let (mut chunks, mut data) = (0, value);
        if value.len() > limits::CASSANDRA_CHUNK_BYTES {
            for chunk in value.chunks(limits::CASSANDRA_CHUNK_BYTES) {
                self.cql.run(&self.statements.put_chunk, (version, chunks, chunk)).await?;
                chunks += 1;
            }
            data = &[];
        }
        let place = partition(space);
        for _ in 0..limits::CASSANDRA_VALUE_TRIES {
            let before = self.cql.row::<Row>(&self.statements.value, (&place, key.as_bytes())).await?;
            let answer = match &before {
                None => {
                    let values = (&place, key.as_bytes(), version, chunks, crc, data);
                    self.cql.settle(&self.statements.create_value, values).await?
                }
                Some((old, ..)) => {
                    let values = (version, chunks, crc, data, &place, key.as_bytes(), old);
                    self.cql.settle(&self.statements.replace_value, values).await?
                }
            };
            if answer.applied || is_version(&answer, version) {
                if let Some((old, old_chunks, ..)) = before {
                    self.drop_chunks(old, old_chunks).await;
                }
                return Ok(());
            }
        }
        self.drop_chunks(version, chunks).await;
        Err(Error::NotApplied(format!("others write the value {key} of {space} at the same time")))
    }

    pub(super) async fn delete_value(&self, space: &str, key: &str) -> Result<(), Error> {
        let place = partition(space);
        for _ in 0..limits::CASSANDRA_VALUE_TRIES {
            let before = self.cql.row::<Row>(&self.statements.value, (&place, key.as_bytes())).await?;
            let Some((version, chunks, ..)) = before else { return Ok(()) };
            let values = (&place, key.as_bytes(), version);
            if self.cql.settle(&self.statements.delete_value, values).await?.applied {
                self.drop_chunks(version, chunks).await;
                return Ok(());
            }
        }
        Err(Error::NotApplied(format!("others write the value {key} of {space} at the same time")))
    }

    /// Chunks that no row names; what fails here costs room and nothing else.
    async fn drop_chunks(&self, version: i64, chunks: i32) {
        for chunk in 0..chunks {
            if let Err(why) = self.cql.run(&self.statements.delete_chunk, (version, chunk)).await {
                tracing::debug!("the chunks of an old value stay: {why}");
            }
        }
    }

    pub(super) async fn scan_values(
        &self,
        space: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        type Scanned = (Vec<u8>, i64, i32, i64, Vec<u8>);
        let (place, mut from) = (partition(space), prefix.as_bytes().to_vec());
        let to = [prefix.as_bytes(), &[AFTER_ANY_TEXT]].concat();
        let mut found = Vec::new();
        while found.len() < limit {
            let page = (limit - found.len()).min(limits::CASSANDRA_SCAN_PAGE);
            let values = (&place, &from, &to, page as i32);
            let rows = self.cql.rows::<Scanned>(&self.statements.scan, values).await?;
            let full = rows.len() == page;
            for (key, version, chunks, crc, data) in rows {
                // The least key after this one.
                from = [&key[..], &[0]].concat();
                let key = String::from_utf8(key);
                let key = key.map_err(|_| Error::Damaged(format!("a key of {space} is no text")))?;
                let value = match self.whole(space, &key, (version, chunks, crc, data)).await? {
                    Some(value) => Some(value),
                    None => self.get_value(space, &key).await?,
                };
                found.extend(value.map(|value| (key, value)));
            }
            if !full {
                break;
            }
        }
        Ok(found)
    }
}

/// A space may be empty, a partition key may not.
fn partition(space: &str) -> String {
    format!("={space}")
}

fn is_version(answer: &Conditional, version: i64) -> bool {
    answer.value("version") == Some(&CqlValue::BigInt(version))
}
