//! The write-ahead log of the embedded store: numbered frames in segment files, one synced write per group commit.
//!
//! It is our own because the time of this one synced write decides the speed of a durable increment. It knows nothing of
//! what frames hold. Their numbers are dense for ever; the *floor* is the first number that is still needed, kept by the
//! caller in a durable place. Segments wholly below it are written again from the start, and never renamed.
//!
//! One frame is in flight at a time, so only the last one can be torn. Opening (in [`recovery`]) cuts a torn one, and
//! takes everything else that is missing or unreadable for damage. The one thing it cannot see is the loss of the very
//! last frames as if they had never been written.
//!
//! A frame has at most `LOG_FRAME_BYTES_MAX` bytes; one larger than a segment gets a segment of its own size.

mod frame;
mod recovery;
mod segment;

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use self::segment::{Preparer, Segment};
use super::Error;
use crate::limits;

/// Frames beyond this are rare, and their buffer is given back.
const BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    segment_bytes: u64,
    /// In order; the last is being written.
    segments: VecDeque<Segment>,
    /// Ready to be written from the start.
    spares: Vec<Segment>,
    preparer: Preparer,
    next_name: u64,
    next: u64,
    floor: u64,
    buffer: Vec<u8>,
    /// Why nothing can be written any more.
    failed: Option<String>,
}

impl Log {
    /// Opens the log in `dir`, which must exist, and shows every frame from `floor` on, in order. Afterwards the last of
    /// them is known to be on disk.
    pub fn open(
        dir: &Path,
        floor: u64,
        segment_bytes: u64,
        visit: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let recovery::Recovered { segments, spares, next, next_name } =
            recovery::recover(dir, floor, segment_bytes, visit)?;
        let preparer = Preparer::start(dir.to_owned()).map_err(|why| not_opened(dir, &why))?;
        let (dir, buffer) = (dir.to_owned(), Vec::new());
        let mut log =
            Self { dir, segment_bytes, segments, spares, preparer, next_name, next, floor, buffer, failed: None };
        log.trim_spares();
        log.order_spare();
        Ok(log)
    }

    /// Number of the frame that is written next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Writes one frame, whose payload `fill` appends to the buffer, and syncs it. Returns its number.
    ///
    /// `NotApplied`: nothing was written, and the log goes on. `Broken`: the frame may or may not be durable, and this log
    /// writes nothing more.
    pub fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<u64, Error> {
        if let Some(why) = &self.failed {
            return Err(Error::Broken(why.clone()));
        }
        frame::begin(&mut self.buffer);
        fill(&mut self.buffer);
        if self.buffer.len() > limits::LOG_FRAME_BYTES_MAX {
            let (bytes, max) = (self.buffer.len(), limits::LOG_FRAME_BYTES_MAX);
            self.buffer = Vec::new();
            return Err(Error::NotApplied(format!("a group of {bytes} bytes; the log takes at most {max}")));
        }
        frame::seal(&mut self.buffer, self.next);
        self.make_room()?;
        let active = self.segments.back_mut().expect("make_room left a segment to write to");
        let written = active.file.write_all_at(&self.buffer, active.end).and_then(|()| active.file.sync_data());
        if let Err(why) = written {
            let why = format!("writing frame {} to {}: {why}", self.next, active.path.display());
            self.failed = Some(why.clone());
            return Err(Error::Broken(why));
        }
        active.push(self.next, self.buffer.len());
        self.next += 1;
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        Ok(self.next - 1)
    }

    /// Reads a part of a frame's payload. What it holds is for the caller to verify.
    pub fn read(&self, number: u64, offset: u32, bytes: u32, into: &mut Vec<u8>) -> Result<(), Error> {
        let at = self.segments.partition_point(|segment| segment.next() <= number);
        let segment = self.segments.get(at).filter(|segment| segment.holds(number));
        let segment = segment.ok_or_else(|| Error::Damaged(format!("frame {number} is not in the log")))?;
        into.resize(bytes as usize, 0);
        let at = segment.offset(number) + (frame::HEADER_BYTES as u64) + u64::from(offset);
        let read = segment.file.read_exact_at(into, at);
        read.map_err(|why| Error::Broken(format!("reading frame {number} from {}: {why}", segment.path.display())))
    }

    /// Frames below `floor` are not needed any more, which must be durable by now.
    pub fn raise_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while self.segments.len() > 1 && self.segments[0].next() <= self.floor {
            let mut free = self.segments.pop_front().expect("there are two");
            free.recycle();
            self.spares.push(free);
        }
        self.trim_spares();
    }

    /// Bytes from the floor to the end.
    pub fn bytes(&self) -> u64 {
        let needed = |segment: &Segment| match segment {
            covered if covered.next() <= self.floor => 0,
            part if part.holds(self.floor) => part.end - part.offset(self.floor),
            whole => whole.end,
        };
        self.segments.iter().map(needed).sum()
    }

    fn make_room(&mut self) -> Result<(), Error> {
        let bytes = self.buffer.len() as u64;
        if self.segments.back().is_some_and(|active| active.end + bytes <= active.bytes) {
            return Ok(());
        }
        let next = self.next_segment(bytes)?;
        if self.segments.back().is_some_and(|active| active.blocks.is_empty()) {
            self.spares.extend(self.segments.pop_back());
        }
        self.segments.push_back(next);
        self.order_spare();
        Ok(())
    }

    fn next_segment(&mut self, bytes: u64) -> Result<Segment, Error> {
        if let Some(Ok(prepared)) = self.preparer.take(false) {
            self.spares.push(prepared);
        }
        if let Some(at) = self.spares.iter().position(|spare| spare.bytes >= bytes) {
            return Ok(self.spares.swap_remove(at));
        }
        if let Some(mut covered) =
            self.segments.pop_back_if(|active| active.next() <= self.floor && active.bytes >= bytes)
        {
            covered.recycle();
            return Ok(covered);
        }
        if bytes <= self.segment_bytes
            && let Some(Ok(prepared)) = self.preparer.take(true)
        {
            return Ok(prepared);
        }
        // Whatever kept the preparer from it may have passed; if not, this says why.
        let name = self.take_name();
        segment::prepare(&self.dir, name, self.segment_bytes.max(bytes))
            .map_err(|why| Error::NotApplied(format!("the log in {} gets no new segment: {why}", self.dir.display())))
    }

    fn order_spare(&mut self) {
        if self.spares.is_empty() && !self.preparer.pending() {
            let name = self.take_name();
            self.preparer.order(name, self.segment_bytes);
        }
    }

    fn take_name(&mut self) -> u64 {
        self.next_name += 1;
        self.next_name - 1
    }

    /// Keeps a few spares of the usual size. A file that fails to go is found again by the next opening.
    fn trim_spares(&mut self) {
        let mut kept = 0;
        let usual = self.segment_bytes;
        self.spares.retain(|spare| {
            let keep = spare.bytes == usual && kept < limits::LOG_SPARE_SEGMENTS_MAX;
            kept += usize::from(keep);
            if !keep {
                let _ = std::fs::remove_file(&spare.path);
            }
            keep
        });
    }
}

fn not_opened(dir: &Path, why: &std::io::Error) -> Error {
    Error::NotApplied(format!("the log in {} cannot be opened: {why}", dir.display()))
}

#[cfg(test)]
mod tests;
