//! The shards' journals on the shared log: which entry of a shard is where, and what the log may forget.
//!
//! A frame's payload is, for each entry: `shard u32 · seq u64 · bytes u32 · entry`, little-endian.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::super::log::Log;
use super::super::{Appended, Error};
use super::lsm::Covered;
use crate::shard::Entry;

const HEAD_BYTES: usize = 16;

/// Where an entry is.
#[derive(Debug, Clone, Copy)]
struct At {
    frame: u64,
    offset: u32,
    bytes: u32,
}

#[derive(Debug, Default)]
struct Shard {
    epoch: u64,
    /// The checkpoint covers everything up to here.
    covered: u64,
    /// Of the entries after `covered`, in order and without holes.
    entries: VecDeque<At>,
    /// Has an entry in the group being judged.
    in_group: bool,
}

impl Shard {
    fn tail(&self) -> u64 {
        self.covered + self.entries.len() as u64
    }

    fn at(&self, seq: u64) -> Option<At> {
        let index = seq.checked_sub(self.covered + 1)?;
        self.entries.get(usize::try_from(index).ok()?).copied()
    }

    fn cover(&mut self, seq: u64) {
        let covered = seq.saturating_sub(self.covered).min(self.entries.len() as u64);
        self.entries.drain(..covered as usize);
        self.covered = self.covered.max(seq);
    }
}

#[derive(Debug)]
pub struct Journal {
    log: Log,
    shards: Vec<Shard>,
    /// Indices of the entries of a group to be written; kept for its memory.
    writes: Vec<usize>,
}

impl Journal {
    /// Opens the log and finds the entries that no checkpoint covers.
    pub fn open(dir: &Path, floor: u64, segment_bytes: u64, covered: &[Covered]) -> Result<Self, Error> {
        let shard = |covered: &Covered| Shard { covered: covered.seq, ..Shard::default() };
        let mut shards: Vec<Shard> = covered.iter().map(shard).collect();
        let log = Log::open(dir, floor, segment_bytes, |frame, payload| index(&mut shards, frame, payload))?;
        Ok(Self { log, shards, writes: Vec::new() })
    }

    pub fn epoch(&self, shard: u32) -> u64 {
        self.shards[shard as usize].epoch
    }

    pub fn set_epoch(&mut self, shard: u32, epoch: u64) {
        self.shards[shard as usize].epoch = epoch;
    }

    pub fn covered(&self, shard: u32) -> u64 {
        self.shards[shard as usize].covered
    }

    /// Writes the entries that go on where their shards end, as one frame.
    pub fn append(&mut self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error> {
        let mut writes = std::mem::take(&mut self.writes);
        writes.clear();
        let judged = self.judge(group, &mut writes);
        for &at in &writes {
            self.shards[group[at].shard as usize].in_group = false;
        }
        let written = judged.and_then(|results| {
            if !writes.is_empty() {
                self.write(group, &writes)?;
            }
            Ok(results)
        });
        self.writes = writes;
        written
    }

    fn judge(&mut self, group: &[Arc<Entry>], writes: &mut Vec<usize>) -> Result<Vec<Appended>, Error> {
        let mut results = Vec::with_capacity(group.len());
        for (at, entry) in group.iter().enumerate() {
            let count = self.shards.len();
            let Some(shard) = self.shards.get_mut(entry.shard as usize) else {
                return Err(Error::NotApplied(format!("there is no shard {}, only {count}", entry.shard)));
            };
            if entry.epoch == shard.epoch && entry.seq == shard.tail() + 1 {
                if std::mem::replace(&mut shard.in_group, true) {
                    return Err(Error::NotApplied(format!("two entries of shard {} in one group", entry.shard)));
                }
                writes.push(at);
                results.push(Appended::Applied);
                continue;
            }
            let known = self.has(entry)?;
            let repeated = entry.epoch == self.epoch(entry.shard) && known == Some(true);
            results.push(if repeated { Appended::Applied } else { Appended::Fenced { applied: known } });
        }
        Ok(results)
    }

    /// Whether this very entry was written; None when a checkpoint has covered its place since.
    fn has(&self, entry: &Entry) -> Result<Option<bool>, Error> {
        let shard = &self.shards[entry.shard as usize];
        if entry.seq <= shard.covered {
            return Ok(None);
        }
        let Some(at) = shard.at(entry.seq) else { return Ok(Some(false)) };
        let found = self.entry(at, &mut Vec::new())?;
        Ok(Some(found.id == entry.id && found.epoch == entry.epoch))
    }

    fn write(&mut self, group: &[Arc<Entry>], writes: &[usize]) -> Result<(), Error> {
        let mut offset = 0;
        let frame = self.log.next();
        let shards = &mut self.shards;
        let written = self.log.append(|out| {
            let payload = out.len();
            for &at in writes {
                let entry = &group[at];
                out.extend_from_slice(&entry.shard.to_le_bytes());
                out.extend_from_slice(&entry.seq.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
                let from = out.len();
                entry.encode(out);
                let bytes = (out.len() - from) as u32;
                out[from - 4..from].copy_from_slice(&bytes.to_le_bytes());
                offset = (from - payload) as u32;
                shards[entry.shard as usize].entries.push_back(At { frame, offset, bytes });
            }
        });
        if let Err(why) = written {
            for &at in writes {
                shards[group[at].shard as usize].entries.pop_back();
            }
            return Err(why);
        }
        Ok(())
    }

    /// Entries of a shard after `after_seq`; at least one, if there is any.
    pub fn read(&self, shard: u32, after_seq: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let shard = &self.shards[shard as usize];
        let skip = usize::try_from(after_seq.saturating_sub(shard.covered)).unwrap_or(usize::MAX);
        let (mut found, mut bytes, mut buffer) = (Vec::new(), 0, Vec::new());
        for &at in shard.entries.iter().skip(skip) {
            bytes += at.bytes as usize;
            if !found.is_empty() && bytes > bytes_max {
                break;
            }
            found.push(self.entry(at, &mut buffer)?);
        }
        Ok(found)
    }

    fn entry(&self, at: At, buffer: &mut Vec<u8>) -> Result<Entry, Error> {
        self.log.read(at.frame, at.offset, at.bytes, buffer)?;
        Entry::decode(buffer).map_err(|why| Error::Damaged(format!("an entry in frame {} of the log: {why}", at.frame)))
    }

    /// First frame that is needed once these shards are covered up to these sequences.
    pub fn floor_with(&self, checkpoints: impl Iterator<Item = (u32, u64)>) -> u64 {
        let mut covered: Vec<u64> = self.shards.iter().map(|shard| shard.covered).collect();
        for (shard, seq) in checkpoints {
            covered[shard as usize] = seq;
        }
        let first_needed = |(shard, covered): (&Shard, &u64)| shard.at(covered + 1).map(|at| at.frame);
        self.shards.iter().zip(&covered).filter_map(first_needed).min().unwrap_or(self.log.next())
    }

    /// A checkpoint up to `seq` is durable.
    pub fn cover(&mut self, shard: u32, seq: u64) {
        self.shards[shard as usize].cover(seq);
    }

    pub fn raise_floor(&mut self, floor: u64) {
        self.log.raise_floor(floor);
    }

    pub fn bytes(&self) -> u64 {
        self.log.bytes()
    }
}

/// Notes where a frame's entries are.
fn index(shards: &mut [Shard], frame: u64, payload: &[u8]) -> Result<(), Error> {
    let damaged = |what: &str| Error::Damaged(format!("frame {frame} of the log {what}"));
    let mut rest = payload;
    while !rest.is_empty() {
        let head = rest.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| damaged("ends within an entry"))?;
        let (&[a, b, c, d, seq @ .., e, f, g, h], behind) = head;
        let (number, seq) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(seq));
        let bytes = u32::from_le_bytes([e, f, g, h]);
        let offset = (payload.len() - behind.len()) as u32;
        rest = behind.get(bytes as usize..).ok_or_else(|| damaged("ends within an entry"))?;
        let shard = shards.get_mut(number as usize).ok_or_else(|| damaged("names a shard that does not exist"))?;
        if seq <= shard.covered {
            continue;
        }
        if seq != shard.tail() + 1 {
            let expected = shard.tail() + 1;
            return Err(damaged(&format!("goes on with entry {seq} of shard {number}, where {expected} should be")));
        }
        shard.entries.push_back(At { frame, offset, bytes });
    }
    Ok(())
}
