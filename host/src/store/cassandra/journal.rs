//! The journal: one conditional write per entry, segments that follow one another, and what becomes of an entry whose
//! outcome was not told.
//!
//! An append goes in only while the segment has our epoch, ends right before the entry, and has no successor. So the
//! identical entry may be sent any number of times, and an owner that lost its shard can never get one in. A rotation is
//! a conditional write on the same partition; whatever came of it, the conditions of the next append tell.

use super::super::{Appended, Error};
use super::cql::{Tries, Unanswered};
use super::owned::Owned;
use super::{CassandraStore, Step};
use crate::limits;
use crate::shard::Entry;

/// What the conditions of a refused append found. None: the segment has been dropped.
struct Found {
    epoch: u64,
    tail: u64,
    next: Option<String>,
}

impl CassandraStore {
    /// `Err`: certainly nothing was sent, now or before.
    pub(super) async fn append_one(&self, entry: &Entry) -> Result<Appended, Unanswered> {
        let Some(owned) = self.owned(entry.shard).filter(|owned| owned.epoch == entry.epoch && !owned.lapsed) else {
            return Ok(self.fence(entry).await);
        };
        if entry.seq <= owned.position {
            return Ok(Appended::Fenced { applied: None });
        }
        if entry.seq <= owned.tail {
            return Ok(self.repeated(entry, &owned).await);
        }
        if entry.seq > owned.tail + 1 {
            return Ok(Appended::Fenced { applied: Some(false) });
        }
        if owned.last().bytes >= self.settings.segment_bytes {
            // Without a new segment the old one grows; the next append tries again.
            if let Err(why) = self.rotate(entry.shard, &owned).await {
                tracing::warn!("the journal of shard {} keeps its segment for now: {why}", entry.shard);
            }
        }
        // Before it is sent: the caller may stop waiting at any moment.
        let sent_before = owned.pending == Some(entry.id);
        self.update(entry, |owned| owned.pending = Some(entry.id));
        match self.send(entry).await {
            Err(_) if sent_before => Ok(Appended::Unknown),
            Err(why) => {
                self.update(entry, |owned| owned.pending = None);
                Err(why)
            }
            settled => settled,
        }
    }

    /// Sends until it settles, or the time is over.
    async fn send(&self, entry: &Entry) -> Result<Appended, Unanswered> {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        let mut tries = Tries::new(self.settings.settle_timeout);
        loop {
            let Some(owned) = self.owned(entry.shard).filter(|owned| owned.epoch == entry.epoch) else {
                return Ok(Appended::Unknown);
            };
            let last = owned.last();
            let why = match self.send_once(entry, &last.id, last.bytes, &bytes).await {
                Ok(None) => {
                    self.update(entry, |owned| owned.appended(entry.seq, bytes.len() as u64));
                    return Ok(Appended::Applied);
                }
                Ok(Some(found)) => match self.refused(entry, &owned, found, bytes.len() as u64).await {
                    Ok(Some(settled)) => return Ok(settled),
                    // The journal goes on in the segment of a rotation that had not been answered.
                    Ok(None) => Unanswered::Unknown("the journal's end moved".into()),
                    Err(why) => Unanswered::Unknown(why.to_string()),
                },
                Err(why) => why,
            };
            if let Err(why) = tries.again(why).await {
                return match why {
                    Unanswered::NotSent(_) => Err(why),
                    Unanswered::Unknown(why) => {
                        tracing::warn!("whether entry {} of shard {} is in is unknown: {why}", entry.seq, entry.shard);
                        Ok(Appended::Unknown)
                    }
                };
            }
        }
    }

    /// One copy. None: it is in.
    async fn send_once(
        &self,
        entry: &Entry,
        segment: &str,
        bytes_before: u64,
        bytes: &[u8],
    ) -> Result<Option<Found>, Unanswered> {
        let (shard, epoch, seq) = (entry.shard as i32, entry.epoch as i64, entry.seq as i64);
        let end = bytes_before as i64 + bytes.len() as i64;
        let values = (seq, end, epoch, entry.id as i64, bytes, shard, segment, seq, epoch, seq - 1);
        let (cql, append) = match self.appending.get() {
            Some((cql, append)) => (cql, append),
            None => (&self.cql, &self.statements.append),
        };
        let answer = cql.conditional(append, values).await?;
        if answer.applied {
            return Ok(None);
        }
        let (epoch, tail) = (answer.int("epoch").unwrap_or(0), answer.int("tail").unwrap_or(0));
        Ok(Some(Found { epoch, tail, next: answer.text("next").map(str::to_owned) }))
    }

    /// What a refusal means. None: send again.
    async fn refused(&self, entry: &Entry, owned: &Owned, found: Found, bytes: u64) -> Result<Option<Appended>, Error> {
        let segment = &owned.last().id;
        if found.epoch != entry.epoch {
            // The row first: while the partition is there afterwards, a row that was not found had never been.
            let here = self.is_in(entry, segment).await?;
            let Some(row) = self.segment_row(entry.shard, segment).await? else {
                self.lost(entry);
                return Ok(Some(Appended::Fenced { applied: None }));
            };
            if row.epoch <= entry.epoch {
                return Ok(None);
            }
            self.lost(entry);
            return Ok(Some(Appended::Fenced { applied: Some(here == Some(true)) }));
        }
        if found.tail >= entry.seq {
            return match self.is_in(entry, segment).await? {
                Some(true) => {
                    self.update(entry, |owned| owned.appended(entry.seq, bytes));
                    Ok(Some(Appended::Applied))
                }
                Some(false) => Ok(Some(Appended::Fenced { applied: Some(false) })),
                None => Ok(None),
            };
        }
        if let Some(next) = found.next {
            let rotating = owned.rotating.clone().filter(|rotating| rotating.id == next);
            let Some(rotating) = rotating else {
                return Err(Error::Damaged(format!(
                    "segment {segment} of shard {} has another successor",
                    entry.shard
                )));
            };
            self.update(entry, |owned| owned.rotated(rotating));
        }
        Ok(None)
    }

    /// Whether the entry at this sequence is this very one. None: there is none, yet.
    async fn is_in(&self, entry: &Entry, segment: &str) -> Result<Option<bool>, Error> {
        let values = (entry.shard as i32, segment, entry.seq as i64);
        let row = self.cql.row::<(Option<i64>, Option<i64>)>(&self.statements.entry_id, values).await?;
        Ok(row.map(|(epoch, id)| epoch == Some(entry.epoch as i64) && id == Some(entry.id as i64)))
    }

    /// An entry of ours at a sequence that is taken.
    async fn repeated(&self, entry: &Entry, owned: &Owned) -> Appended {
        let segment = owned.segments.iter().rev().find(|segment| segment.base < entry.seq);
        let Some(segment) = segment else { return Appended::Fenced { applied: None } };
        match self.is_in(entry, &segment.id).await {
            Ok(Some(true)) => Appended::Applied,
            Ok(Some(false)) => Appended::Fenced { applied: Some(false) },
            Ok(None) | Err(_) => Appended::Unknown,
        }
    }

    /// An entry under an epoch that is not ours any more. It is fenced for good before it is looked for.
    async fn fence(&self, entry: &Entry) -> Appended {
        let found = async {
            let lapsed = self.owned(entry.shard).is_some_and(|owned| owned.lapsed && owned.epoch == entry.epoch);
            if lapsed {
                self.take_over(entry.shard).await?;
                self.lapse(entry.shard);
            }
            let (_, _, segments) = self.segments_of(entry.shard).await?;
            let Some(segment) = segments.iter().rev().find(|segment| segment.base < entry.seq) else {
                return Ok(Appended::Fenced { applied: None });
            };
            let here = self.is_in(entry, &segment.id).await?;
            let row = self.shard_row(entry.shard).await?;
            let last = self.segment_row(entry.shard, &segment.id).await?;
            Ok::<_, Error>(match (here, last) {
                _ if row.position >= entry.seq => Appended::Fenced { applied: None },
                (_, None) => Appended::Fenced { applied: None },
                (Some(here), _) => Appended::Fenced { applied: Some(here) },
                (None, Some(last)) if last.epoch > entry.epoch => Appended::Fenced { applied: Some(false) },
                (None, Some(_)) => Appended::Unknown,
            })
        };
        found.await.unwrap_or(Appended::Unknown)
    }

    /// Closes the last segment and begins another. Each step is sent once, for an append waits; each may fail or stay
    /// unanswered, and the journal is whole after any.
    pub(super) async fn rotate(&self, shard: u32, owned: &Owned) -> Result<(), Error> {
        let old = &owned.last().id;
        let (epoch, tail) = (owned.epoch as i64, owned.tail as i64);
        // One whose sealing was not answered may be the successor already: another would not be recognised.
        let begun = owned.rotating.clone().filter(|begun| begun.base == owned.tail);
        let next = begun.unwrap_or_else(|| owned.next_segment());
        self.change(shard, owned.epoch, |owned| owned.begin(next.clone()));
        let values = (shard as i32, &next.id, epoch, tail, tail, old);
        self.cql.conditional(&self.statements.create_segment, values).await?;
        self.reached(Step::SegmentCreated)?;
        let values = (&next.id, shard as i32, old, epoch, tail);
        let sealed = self.cql.conditional(&self.statements.seal_segment, values).await?;
        if !sealed.applied && sealed.text("next") != Some(&next.id) {
            return Err(Error::NotApplied("the segment was not sealed: it has another end or another owner".into()));
        }
        self.reached(Step::SegmentSealed)?;
        self.change(shard, owned.epoch, |owned| owned.rotated(next.clone()));
        // A hint: a takeover follows the chain, and the next checkpoint moves it again.
        let values = (&next.id, shard as i32, epoch, old);
        if let Err(why) = self.cql.conditional(&self.statements.move_pointer, values).await {
            tracing::debug!("the pointer of shard {shard} stays behind: {why}");
        }
        Ok(())
    }

    pub(super) async fn read_entries(&self, shard: u32, after_seq: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let (position, tail, segments) = match self.owned(shard) {
            Some(owned) => (owned.position, owned.tail, owned.segments),
            None => self.segments_of(shard).await?,
        };
        let (mut at, mut bytes, mut found) = (after_seq.max(position), 0, Vec::new());
        let ends: Vec<u64> = segments.iter().skip(1).map(|segment| segment.base).chain([tail]).collect();
        let mut rows_max = limits::CASSANDRA_ENTRIES_PAGE.0;
        for (segment, end) in segments.iter().zip(ends) {
            while at < end {
                let values = (shard as i32, &segment.id, at as i64, end as i64, rows_max);
                let rows = self.cql.rows::<(i64, Vec<u8>)>(&self.statements.entries, values).await?;
                let page_bytes: usize = rows.iter().map(|(_, entry)| entry.len()).sum();
                rows_max = next_page(rows.len(), page_bytes);
                if rows.first().map(|(seq, _)| *seq as u64) != Some(at + 1) {
                    return Err(self.hole(shard, at).await?);
                }
                for (seq, encoded) in rows {
                    bytes += encoded.len();
                    if !found.is_empty() && bytes > bytes_max {
                        return Ok(found);
                    }
                    found.push(self.decode(shard, at + 1, seq as u64, &encoded)?);
                    at += 1;
                }
            }
        }
        if tail > at && found.is_empty() {
            return Err(self.hole(shard, at).await?);
        }
        Ok(found)
    }

    fn decode(&self, shard: u32, expected: u64, seq: u64, encoded: &[u8]) -> Result<Entry, Error> {
        let damaged = |why: String| Error::Damaged(format!("entry {seq} of shard {shard}: {why}"));
        let entry = Entry::decode(encoded).map_err(|why| damaged(why.to_string()))?;
        if (entry.shard, entry.seq, seq) == (shard, expected, expected) {
            Ok(entry)
        } else {
            Err(damaged(format!("found entry {} of shard {} where {expected} must be", entry.seq, entry.shard)))
        }
    }

    /// Entries after `at` are missing: a newer owner may have trimmed them, and otherwise they are lost.
    async fn hole(&self, shard: u32, at: u64) -> Result<Error, Error> {
        let row = self.shard_row(shard).await?;
        let newer = self.owned(shard).is_some_and(|owned| owned.epoch < row.epoch);
        Ok(if row.position > at || newer {
            Error::NotApplied(format!("a newer owner of shard {shard} trimmed its journal: take it over again"))
        } else {
            Error::Damaged(format!("entry {} of shard {shard} is missing, and no checkpoint covers it", at + 1))
        })
    }
}

/// How many rows are asked for next, so that an answer stays small whatever the size of entries.
fn next_page(rows: usize, bytes: usize) -> i32 {
    let (min, max) = limits::CASSANDRA_ENTRIES_PAGE;
    let average = bytes / rows.max(1);
    i32::try_from(limits::CASSANDRA_ANSWER_BYTES / average.max(1)).unwrap_or(max).clamp(min, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_shrink_with_the_entries() {
        let (min, max) = limits::CASSANDRA_ENTRIES_PAGE;
        assert_eq!((next_page(0, 0), next_page(10, 100), next_page(1, usize::MAX)), (max, max, min));
        assert_eq!(next_page(4, limits::CASSANDRA_ANSWER_BYTES / 25), 100);
    }
}
