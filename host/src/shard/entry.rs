//! The journal's format: one entry is one group commit of one shard.
//!
//! An entry holds the *absolute* partials of the counters it changes, together with everything that recognises a
//! repetition (producer marks, idempotency records), so that both become durable at once and replay is idempotent.
//!
//! Layout: `version u8 · shard · epoch · seq · id · changes · keys · marks · crc32c of all before, u32 LE`. Integers are
//! LEB128, signed ones zigzagged, texts length-prefixed. Readers refuse versions they do not know.

use super::op::{Kind, Outcome, Refusal};
use super::partials::Partial;
use crate::counter::{Id, Refused, key_hash};

const VERSION: u8 = 1;

/// The value of one counter after the entry. `partial.seq` is the entry's and not stored twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub counter: Id,
    pub hash: u64,
    pub partial: Partial,
}

/// What a keyed operation did, kept for the idempotency window. Only applied operations have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    pub counter: Id,
    pub key: Box<str>,
    pub action: Action,
    /// The shard's partial right after it.
    pub value: i64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// What a key stands for: the same key with another action is a mistake of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Add(i64),
    Create,
    Remove,
    /// A peer's sequence whose caller gave up.
    Skip,
}

impl From<&Kind> for Action {
    fn from(kind: &Kind) -> Self {
        match kind {
            Kind::Add { amount, .. } => Self::Add(*amount),
            Kind::Create { .. } => Self::Create,
            Kind::Remove => Self::Remove,
            Kind::Skip => Self::Skip,
        }
    }
}

/// How far one producer's operations are applied on this shard, and the outcomes it may still ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub producer: u128,
    pub through: u64,
    /// Newest receive time of its operations, in milliseconds since 1970.
    pub at_ms: u64,
    /// Of sequences that the producer had not acknowledged, dense and ascending, the last being `through`.
    pub outcomes: Vec<(u64, Outcome)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub shard: u32,
    pub epoch: u64,
    /// Dense per shard, going on across epochs; the first is 1.
    pub seq: u64,
    /// Drawn by the writer: tells whether the entry at this sequence is the one that it sent.
    pub id: u64,
    pub changes: Vec<Change>,
    pub keys: Vec<KeyRecord>,
    pub marks: Vec<Mark>,
}

/// Why bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    #[error("the entry ends early")]
    Short,
    #[error("the checksum does not match")]
    Checksum,
    #[error("format version {0} is newer than this program knows")]
    Version(u8),
    #[error("a field has no valid value")]
    Field,
}

impl Entry {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.keys.is_empty() && self.marks.is_empty()
    }

    /// Appends the encoded entry to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(VERSION);
        put(out, u64::from(self.shard));
        put(out, self.epoch);
        put(out, self.seq);
        put(out, self.id);
        put(out, self.changes.len() as u64);
        for change in &self.changes {
            put_text(out, change.counter.as_str());
            put_partial(out, &change.partial);
        }
        put(out, self.keys.len() as u64);
        for record in &self.keys {
            record.encode(out);
        }
        put(out, self.marks.len() as u64);
        for mark in &self.marks {
            mark.encode(out);
        }
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Damaged::Short)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(Damaged::Checksum);
        }
        let mut from = Reader(body);
        match from.byte()? {
            VERSION => {}
            other => return Err(Damaged::Version(other)),
        }
        let shard = u32::try_from(from.int()?).map_err(|_| Damaged::Field)?;
        let (epoch, seq, id) = (from.int()?, from.int()?, from.int()?);
        let changes = from.list(|from| {
            let counter = from.id()?;
            let partial = Partial { seq, ..from.partial()? };
            Ok(Change { hash: key_hash(counter.as_str()), counter, partial })
        })?;
        let keys = from.list(Reader::key_record)?;
        let marks = from.list(Reader::mark)?;
        if from.0.is_empty() { Ok(Self { shard, epoch, seq, id, changes, keys, marks }) } else { Err(Damaged::Field) }
    }
}

impl KeyRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, self.counter.as_str());
        put_text(out, &self.key);
        match self.action {
            Action::Add(amount) => {
                out.push(0);
                put_signed(out, amount);
            }
            Action::Create => out.push(1),
            Action::Remove => out.push(2),
            Action::Skip => out.push(3),
        }
        put_signed(out, self.value);
        put(out, self.at_ms);
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        Reader(bytes).key_record()
    }
}

impl Mark {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.producer.to_le_bytes());
        put(out, self.through);
        put(out, self.at_ms);
        put(out, self.outcomes.len() as u64);
        for (seq, outcome) in &self.outcomes {
            put(out, *seq);
            put_outcome(out, outcome);
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        Reader(bytes).mark()
    }
}

impl Partial {
    /// As a checkpoint stores it: the sequence travels with it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.seq);
        put_partial(out, self);
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut from = Reader(bytes);
        let seq = from.int()?;
        Ok(Self { seq, ..from.partial()? })
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

const REMOVED: u8 = 1;
const NAMED: u8 = 2;

fn put_partial(out: &mut Vec<u8>, partial: &Partial) {
    let name = partial.name.as_deref();
    out.push(if partial.removed { REMOVED } else { 0 } | if name.is_some() { NAMED } else { 0 });
    put_signed(out, partial.value);
    put(out, partial.created_at_ms);
    put(out, u64::from(partial.generation));
    if let Some(name) = name {
        put_text(out, name);
    }
}

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Applied { value, replayed } => {
            out.push(if *replayed { 1 } else { 0 });
            put_signed(out, *value);
        }
        Outcome::Refused(Refusal::Arithmetic(Refused::Overflow)) => out.push(2),
        Outcome::Refused(Refusal::Arithmetic(Refused::BelowMin { min })) => {
            out.push(3);
            put_signed(out, *min);
        }
        Outcome::Refused(Refusal::Arithmetic(Refused::AboveMax { max })) => {
            out.push(4);
            put_signed(out, *max);
        }
        Outcome::Refused(Refusal::Exists) => out.push(5),
        Outcome::Refused(Refusal::KeyReused) => out.push(6),
        Outcome::Refused(Refusal::Gap) => out.push(7),
        Outcome::NotApplied => out.push(8),
        Outcome::Unknown => out.push(9),
    }
}

/// Reads what the functions above wrote; never panics, whatever the bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, Damaged> {
        let (&first, rest) = self.0.split_first().ok_or(Damaged::Short)?;
        self.0 = rest;
        Ok(first)
    }

    fn int(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7F);
            if shift == 63 && part > 1 {
                return Err(Damaged::Field);
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damaged::Field)
    }

    fn signed(&mut self) -> Result<i64, Damaged> {
        let raw = self.int()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn text(&mut self) -> Result<&str, Damaged> {
        let length = usize::try_from(self.int()?).map_err(|_| Damaged::Short)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Damaged::Short)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Damaged::Field)
    }

    fn id(&mut self) -> Result<Id, Damaged> {
        Id::new(self.text()?).map_err(|_| Damaged::Field)
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T, Damaged>) -> Result<Vec<T>, Damaged> {
        let length = usize::try_from(self.int()?).map_err(|_| Damaged::Short)?;
        // Every item takes a byte at least: a length beyond that is damage, not a reason to reserve memory.
        if length > self.0.len() {
            return Err(Damaged::Short);
        }
        (0..length).map(|_| one(self)).collect()
    }

    fn partial(&mut self) -> Result<Partial, Damaged> {
        let flags = self.byte()?;
        if flags & !(REMOVED | NAMED) != 0 {
            return Err(Damaged::Field);
        }
        let value = self.signed()?;
        let created_at_ms = self.int()?;
        let generation = u32::try_from(self.int()?).map_err(|_| Damaged::Field)?;
        let name = if flags & NAMED != 0 { Some(self.text()?.into()) } else { None };
        Ok(Partial { value, seq: 0, created_at_ms, generation, removed: flags & REMOVED != 0, name })
    }

    fn key_record(&mut self) -> Result<KeyRecord, Damaged> {
        let counter = self.id()?;
        let key = self.text()?.into();
        let action = match self.byte()? {
            0 => Action::Add(self.signed()?),
            1 => Action::Create,
            2 => Action::Remove,
            3 => Action::Skip,
            _ => return Err(Damaged::Field),
        };
        Ok(KeyRecord { counter, key, action, value: self.signed()?, at_ms: self.int()? })
    }

    fn mark(&mut self) -> Result<Mark, Damaged> {
        let (producer, rest) = self.0.split_first_chunk::<16>().ok_or(Damaged::Short)?;
        let producer = u128::from_le_bytes(*producer);
        self.0 = rest;
        let (through, at_ms) = (self.int()?, self.int()?);
        let outcomes = self.list(|from| Ok((from.int()?, from.outcome()?)))?;
        Ok(Mark { producer, through, at_ms, outcomes })
    }

    fn outcome(&mut self) -> Result<Outcome, Damaged> {
        Ok(match self.byte()? {
            flag @ (0 | 1) => Outcome::Applied { value: self.signed()?, replayed: flag == 1 },
            2 => Outcome::Refused(Refused::Overflow.into()),
            3 => Outcome::Refused(Refused::BelowMin { min: self.signed()? }.into()),
            4 => Outcome::Refused(Refused::AboveMax { max: self.signed()? }.into()),
            5 => Outcome::Refused(Refusal::Exists),
            6 => Outcome::Refused(Refusal::KeyReused),
            7 => Outcome::Refused(Refusal::Gap),
            8 => Outcome::NotApplied,
            9 => Outcome::Unknown,
            _ => return Err(Damaged::Field),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> impl Strategy<Value = Id> {
        "[a-zé/]{1,40}".prop_map(|text| Id::new(&text).expect("valid"))
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            (any::<i64>(), any::<bool>()).prop_map(|(value, replayed)| Outcome::Applied { value, replayed }),
            Just(Outcome::Refused(Refused::Overflow.into())),
            any::<i64>().prop_map(|min| Outcome::Refused(Refused::BelowMin { min }.into())),
            any::<i64>().prop_map(|max| Outcome::Refused(Refused::AboveMax { max }.into())),
            Just(Outcome::Refused(Refusal::Exists)),
            Just(Outcome::Refused(Refusal::KeyReused)),
            Just(Outcome::Refused(Refusal::Gap)),
            Just(Outcome::NotApplied),
            Just(Outcome::Unknown),
        ]
    }

    fn partial() -> impl Strategy<Value = Partial> {
        (any::<i64>(), any::<u64>(), any::<u32>(), any::<bool>(), prop::option::of("[ -~]{0,20}")).prop_map(
            |(value, created_at_ms, generation, removed, name)| Partial {
                value,
                seq: 0,
                created_at_ms,
                generation,
                removed,
                name: name.map(Into::into),
            },
        )
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let action = prop_oneof![any::<i64>().prop_map(Action::Add), Just(Action::Create), Just(Action::Remove)];
        let key = (id(), "[ -~]{1,128}", action, any::<i64>(), any::<u64>()).prop_map(
            |(counter, key, action, value, at_ms)| KeyRecord { counter, key: key.into(), action, value, at_ms },
        );
        let outcomes = prop::collection::vec((any::<u64>(), outcome()), 0..4);
        let mark = (any::<u128>(), any::<u64>(), any::<u64>(), outcomes)
            .prop_map(|(producer, through, at_ms, outcomes)| Mark { producer, through, at_ms, outcomes });
        (
            (any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>()),
            prop::collection::vec((id(), partial()), 0..6),
            prop::collection::vec(key, 0..4),
            prop::collection::vec(mark, 0..4),
        )
            .prop_map(|((shard, epoch, seq, id), changes, keys, marks)| Entry {
                shard,
                epoch,
                seq,
                id,
                changes: changes
                    .into_iter()
                    .map(|(counter, partial)| Change {
                        hash: key_hash(counter.as_str()),
                        counter,
                        partial: Partial { seq, ..partial },
                    })
                    .collect(),
                keys,
                marks,
            })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(entry in entry()) {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            prop_assert_eq!(Entry::decode(&bytes), Ok(entry));
        }

        #[test]
        fn one_flipped_bit_is_noticed(entry in entry(), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Entry::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(mut bytes: Vec<u8>) {
            let _ = Entry::decode(&bytes);
            // Behind a right checksum the fields themselves are exercised.
            bytes.insert(0, VERSION);
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            let _ = Entry::decode(&bytes);
            let _ = KeyRecord::decode(&bytes);
            let _ = Mark::decode(&bytes);
        }

        #[test]
        fn a_partial_survives_its_checkpoint(partial in partial(), seq: u64) {
            let partial = Partial { seq, ..partial };
            let mut bytes = Vec::new();
            partial.encode(&mut bytes);
            prop_assert_eq!(Partial::decode(&bytes), Ok(partial));
        }
    }
}
