//! Entries, and the records of a checkpoint, as bytes.
//!
//! Layout: `version u8 · shard · epoch · seq · id · [time] · changes · keys · marks · [sections] · crc32c of all before,
//! u32 LE`. Integers are LEB128, signed ones zigzagged, texts length-prefixed. Readers refuse versions they do not know.
//!
//! Format 2 has what is in brackets: the journal time, which is that of the idempotency records too, and, after every item
//! and at the end, *sections*: `count · (tag · length · bytes)*`, by which later programs add what belongs to an item. A reader
//! skips a section with an even tag that it does not know, and refuses an entry that has one with an odd tag. A cluster
//! writes format 1 until all of its nodes read format 2 and an operator says so (`quipu cluster finalize`).
//!
//! Records of a checkpoint are the same items alone; there the end of the bytes tells that no section follows.

use super::{Action, Change, Entry, KeyRecord, Mark};
use crate::counter::{Id, Refused, key_hash};
use crate::shard::op::{Outcome, Refusal};
use crate::shard::partials::Partial;

/// Without journal time and sections.
const FORMAT_1: u8 = 1;
const FORMAT_2: u8 = 2;

/// Why bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    #[error("the entry ends early")]
    Short,
    #[error("the checksum does not match")]
    Checksum,
    #[error("format version {0} is newer than this program knows; use the program that wrote it, or a later one")]
    Version(u8),
    #[error("it holds data of a later program (section {0}) that this one must not pass over; use a later program")]
    Section(u64),
    #[error("a field has no valid value")]
    Field,
}

impl Entry {
    /// Appends the encoded entry to `out`, in the lowest format that holds it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let sections = if self.time_ms.is_some() { put_no_sections } else { |_: &mut Vec<u8>| {} };
        out.push(if self.time_ms.is_some() { FORMAT_2 } else { FORMAT_1 });
        put(out, u64::from(self.shard));
        put(out, self.epoch);
        put(out, self.seq);
        put(out, self.id);
        if let Some(time_ms) = self.time_ms {
            put(out, time_ms);
        }
        put(out, self.changes.len() as u64);
        for change in &self.changes {
            put_text(out, change.counter.as_str());
            put_partial(out, &change.partial);
            sections(out);
        }
        put(out, self.keys.len() as u64);
        for record in &self.keys {
            put_key_record(out, record);
            sections(out);
        }
        put(out, self.marks.len() as u64);
        for mark in &self.marks {
            mark.encode(out);
            sections(out);
        }
        sections(out);
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Damaged::Short)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(Damaged::Checksum);
        }
        let mut from = Reader(body);
        let timed = match from.byte()? {
            FORMAT_1 => false,
            FORMAT_2 => true,
            other => return Err(Damaged::Version(other)),
        };
        let sections = |from: &mut Reader<'_>| if timed { from.pass_sections() } else { Ok(()) };
        let shard = u32::try_from(from.int()?).map_err(|_| Damaged::Field)?;
        let (epoch, seq, id) = (from.int()?, from.int()?, from.int()?);
        let time_ms = if timed { Some(from.int()?) } else { None };
        let changes = from.list(|from| {
            let counter = from.id()?;
            let partial = Partial { seq, ..from.partial()? };
            sections(from)?;
            Ok(Change { hash: key_hash(counter.as_str()), counter, partial })
        })?;
        let keys = from.list(|from| {
            let record = from.key_record()?;
            sections(from)?;
            Ok(KeyRecord { time_ms, ..record })
        })?;
        let marks = from.list(|from| {
            let mark = from.mark()?;
            sections(from)?;
            Ok(mark)
        })?;
        sections(&mut from)?;
        from.end()?;
        Ok(Self { shard, epoch, seq, id, time_ms, changes, keys, marks })
    }
}

impl KeyRecord {
    /// As a checkpoint stores it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_key_record(out, self);
        if let Some(time_ms) = self.time_ms {
            put(out, time_ms);
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut from = Reader(bytes);
        let record = from.key_record()?;
        let time_ms = if from.0.is_empty() { None } else { Some(from.int()?) };
        from.pass_last_sections()?;
        Ok(Self { time_ms, ..record })
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
        let mut from = Reader(bytes);
        let mark = from.mark()?;
        from.pass_last_sections()?;
        Ok(mark)
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
        let partial = from.partial()?;
        from.pass_last_sections()?;
        Ok(Self { seq, ..partial })
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

/// This program writes no section yet.
fn put_no_sections(out: &mut Vec<u8>) {
    out.push(0);
}

fn put_key_record(out: &mut Vec<u8>, record: &KeyRecord) {
    put_text(out, record.counter.as_str());
    put_text(out, &record.key);
    match record.action {
        Action::Add(amount) => {
            out.push(0);
            put_signed(out, amount);
        }
        Action::Create => out.push(1),
        Action::Remove => out.push(2),
        Action::Skip => out.push(3),
    }
    put_signed(out, record.value);
    put(out, record.at_ms);
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
        // Never of an operation that had its turn, and so in no mark.
        Outcome::Refused(Refusal::Forgotten { .. }) => out.push(9),
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

    fn end(&self) -> Result<(), Damaged> {
        if self.0.is_empty() { Ok(()) } else { Err(Damaged::Field) }
    }

    /// Skips sections. This program knows none.
    fn pass_sections(&mut self) -> Result<(), Damaged> {
        self.list(|from| {
            let (tag, length) = (from.int()?, from.int()?);
            let length = usize::try_from(length).map_err(|_| Damaged::Short)?;
            let (_, rest) = from.0.split_at_checked(length).ok_or(Damaged::Short)?;
            from.0 = rest;
            if tag % 2 == 0 { Ok(()) } else { Err(Damaged::Section(tag)) }
        })
        .map(drop)
    }

    /// Of a record that stands alone.
    fn pass_last_sections(&mut self) -> Result<(), Damaged> {
        if !self.0.is_empty() {
            self.pass_sections()?;
        }
        self.end()
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
        Ok(KeyRecord { counter, key, action, value: self.signed()?, at_ms: self.int()?, time_ms: None })
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
mod tests;
