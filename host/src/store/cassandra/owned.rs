//! What this process knows of a shard that it owns: where its journal ends, and which segments are left.
//!
//! Memory only, and never trusted over the store: every write carries it as its condition.

use std::collections::VecDeque;

/// Entries whose bytes are counted together.
const RUN_BYTES: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub id: String,
    /// The sequence before its first entry.
    pub base: u64,
    /// Of its entries, encoded.
    pub bytes: u64,
}

#[derive(Debug, Clone)]
pub struct Owned {
    pub epoch: u64,
    /// A recovery came since: nothing more is appended under this epoch.
    pub lapsed: bool,
    /// The checkpoint covers everything up to here.
    pub position: u64,
    /// Sequence of the last entry.
    pub tail: u64,
    /// Oldest first; entries go into the last. Never empty.
    pub segments: VecDeque<Segment>,
    /// Segments begun under this epoch.
    pub begun: u32,
    /// A rotation's new segment, while it is not known whether it became the last one.
    pub rotating: Option<Segment>,
    /// Id of the entry that is or was sent, and not known to be in.
    pub pending: Option<u64>,
    /// Bytes of entries after `position`, as last sequence and sum of runs.
    uncovered: VecDeque<(u64, u64)>,
}

impl Owned {
    /// `uncovered`: last sequence and bytes of each segment.
    pub fn new(epoch: u64, position: u64, tail: u64, segments: VecDeque<Segment>) -> Self {
        let ends = segments.iter().skip(1).map(|segment| segment.base).chain([tail]);
        let uncovered = segments.iter().zip(ends).map(|(segment, end)| (end, segment.bytes));
        let uncovered = uncovered.filter(|&(end, bytes)| end > position && bytes > 0).collect();
        let (rotating, pending) = (None, None);
        Self { epoch, lapsed: false, position, tail, segments, begun: 0, rotating, pending, uncovered }
    }

    pub fn last(&self) -> &Segment {
        self.segments.back().expect("there is always a segment to append to")
    }

    pub fn appended(&mut self, seq: u64, bytes: u64) {
        self.tail = seq;
        self.pending = None;
        if let Some(last) = self.segments.back_mut() {
            last.bytes += bytes;
        }
        match self.uncovered.back_mut() {
            Some((end, sum)) if *sum < RUN_BYTES => (*end, *sum) = (seq, *sum + bytes),
            _ => self.uncovered.push_back((seq, bytes)),
        }
    }

    /// A segment to go on in after the last one, under an id that was never used.
    pub fn next_segment(&self) -> Segment {
        Segment { id: format!("{}.{}", self.epoch, self.begun + 1), base: self.tail, bytes: 0 }
    }

    /// A rotation to `next` begins, or is tried again.
    pub fn begin(&mut self, next: Segment) {
        if self.rotating.as_ref() != Some(&next) {
            self.begun += 1;
            self.rotating = Some(next);
        }
    }

    /// A rotation is done: `next` takes the entries from now on.
    pub fn rotated(&mut self, next: Segment) {
        self.rotating = None;
        self.segments.push_back(next);
    }

    pub fn covered(&mut self, position: u64) {
        self.position = self.position.max(position);
        while self.uncovered.front().is_some_and(|&(end, _)| end <= self.position) {
            self.uncovered.pop_front();
        }
    }

    /// Sealed segments that hold nothing after the checkpoint, oldest first.
    pub fn droppable(&self) -> Vec<Segment> {
        let next_bases = self.segments.iter().skip(1).map(|segment| segment.base);
        let sealed = self.segments.iter().zip(next_bases);
        sealed.take_while(|&(_, end)| end <= self.position).map(|(segment, _)| segment.clone()).collect()
    }

    pub fn dropped(&mut self, id: &str) {
        if self.segments.len() > 1 && self.segments.front().is_some_and(|first| first.id == id) {
            self.segments.pop_front();
        }
    }

    /// Bytes of journal that no checkpoint covers, counted in runs.
    pub fn journal_bytes(&self) -> u64 {
        self.uncovered.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: &str, base: u64, bytes: u64) -> Segment {
        Segment { id: id.into(), base, bytes }
    }

    #[test]
    fn only_sealed_segments_behind_the_checkpoint_are_droppable() {
        let segments = VecDeque::from([segment("a", 0, 10), segment("b", 5, 10), segment("c", 9, 0)]);
        let mut owned = Owned::new(3, 4, 9, segments);
        assert!(owned.droppable().is_empty());
        owned.covered(5);
        assert_eq!(owned.droppable(), [segment("a", 0, 10)]);
        owned.dropped("a");
        owned.covered(9);
        assert_eq!(owned.droppable(), [segment("b", 5, 10)]);
        owned.dropped("b");
        owned.dropped("c");
        assert_eq!(owned.last().id, "c");
    }

    #[test]
    fn bytes_are_counted_until_they_are_covered() {
        let mut owned = Owned::new(3, 5, 9, VecDeque::from([segment("a", 0, 70), segment("b", 5, 30)]));
        assert_eq!(owned.journal_bytes(), 30);
        owned.appended(10, RUN_BYTES);
        owned.appended(11, 7);
        assert_eq!(owned.journal_bytes(), 37 + RUN_BYTES);
        owned.covered(10);
        assert_eq!(owned.journal_bytes(), 7);
        owned.covered(11);
        assert_eq!((owned.journal_bytes(), owned.last().bytes), (0, 37 + RUN_BYTES));
    }
}
