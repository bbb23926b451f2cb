//! The small values, some of which are not so small: a policy's bytes are megabytes.
//!
//! A large value is stored in pieces, all in one batch. A batch that the power failed to complete must be recognised by
//! the engine as incomplete, and it takes one for damage instead when a whole block is missing inside a single record. So
//! no record is as long as a block.

use fjall::{Database, Keyspace, OwnedWriteBatch, Readable, Snapshot};

use super::super::Error;
use super::keys;
use super::lsm::{broken, damaged, unreadable};

/// With its key and the engine's header, a piece is well below a block of 4 KiB.
const PIECE_BYTES: usize = 2048;

const WHOLE: u8 = 0;
const IN_PIECES: u8 = 1;

pub struct Values {
    /// [`Stored`] by space and key.
    entries: Keyspace,
    /// Bytes by piece and number.
    pieces: Keyspace,
}

/// What an entry says of its value.
#[derive(Debug, PartialEq, Eq)]
enum Stored {
    Whole(Vec<u8>),
    Pieces { id: u64, bytes: u32 },
}

impl Stored {
    /// `0 · value`, or `1 · id of the pieces u64 · bytes of the value u32`, little-endian.
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Whole(value) => [&[WHOLE], &value[..]].concat(),
            Self::Pieces { id, bytes } => [&[IN_PIECES], &id.to_le_bytes()[..], &bytes.to_le_bytes()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&WHOLE, value) => Some(Self::Whole(value.to_vec())),
            (&IN_PIECES, rest) => {
                let (id, bytes) = rest.split_first_chunk::<8>()?;
                Some(Self::Pieces { id: u64::from_le_bytes(*id), bytes: u32::from_le_bytes(bytes.try_into().ok()?) })
            }
            _ => None,
        }
    }
}

impl Values {
    pub fn new(entries: Keyspace, pieces: Keyspace) -> Self {
        Self { entries, pieces }
    }

    pub fn keyspaces(&self) -> [&Keyspace; 2] {
        [&self.entries, &self.pieces]
    }

    pub fn get(&self, database: &Database, space: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let snapshot = database.snapshot();
        let found = snapshot.get(&self.entries, keys::value(space, key)).map_err(unreadable)?;
        found.map(|bytes| self.value(&snapshot, &bytes)).transpose()
    }

    pub fn scan(
        &self,
        database: &Database,
        space: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let snapshot = database.snapshot();
        let found = snapshot.prefix(&self.entries, keys::value(space, prefix)).take(limit);
        let parsed = found.map(|found| {
            let (key, bytes) = found.into_inner().map_err(unreadable)?;
            let key = keys::parse_value(space, &key).ok_or_else(|| damaged("the key of a value"))?;
            Ok((key.to_owned(), self.value(&snapshot, &bytes)?))
        });
        parsed.collect()
    }

    /// Puts or removes a value in `batch`, and commits that. Nobody else may do so meanwhile.
    pub fn set(&self, mut batch: OwnedWriteBatch, space: &str, key: &str, value: Option<&[u8]>) -> Result<(), Error> {
        let key = keys::value(space, key);
        let before = self.entries.get(&key).map_err(unreadable)?;
        if let Some(Stored::Pieces { id, bytes }) = before.and_then(|bytes| Stored::decode(&bytes)) {
            for number in 0..bytes.div_ceil(PIECE_BYTES as u32) {
                batch.remove(&self.pieces, keys::piece(id, number));
            }
        }
        match value {
            None => batch.remove(&self.entries, key),
            Some(value) if value.len() <= PIECE_BYTES => {
                batch.insert(&self.entries, key, Stored::Whole(value.to_vec()).encode());
            }
            Some(value) => {
                let (id, bytes) = (rand::random(), value.len() as u32);
                for (number, piece) in (0..).zip(value.chunks(PIECE_BYTES)) {
                    batch.insert(&self.pieces, keys::piece(id, number), piece);
                }
                batch.insert(&self.entries, key, Stored::Pieces { id, bytes }.encode());
            }
        }
        batch.commit().map_err(broken)
    }

    fn value(&self, snapshot: &Snapshot, stored: &[u8]) -> Result<Vec<u8>, Error> {
        let (id, bytes) = match Stored::decode(stored).ok_or_else(|| damaged("a value"))? {
            Stored::Whole(value) => return Ok(value),
            Stored::Pieces { id, bytes } => (id, bytes as usize),
        };
        let mut value = Vec::with_capacity(bytes);
        for piece in snapshot.prefix(&self.pieces, id.to_be_bytes()) {
            value.extend_from_slice(&piece.value().map_err(unreadable)?);
        }
        if value.len() == bytes { Ok(value) } else { Err(damaged("a value in pieces")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_an_entry_says_is_read_back(value: Vec<u8>, id: u64, bytes: u32) {
            for stored in [Stored::Whole(value.clone()), Stored::Pieces { id, bytes }] {
                prop_assert_eq!(Stored::decode(&stored.encode()), Some(stored));
            }
            let _ = Stored::decode(&value);
        }
    }
}
