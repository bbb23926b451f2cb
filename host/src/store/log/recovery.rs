//! Opening a log: which segments hold what, where the log ends, and whether anything is missing.
//!
//! The *chain* is the run of frames from the floor to the end. A valid frame numbered from the floor on that is not in
//! the chain means that one before it is gone: damage. What is below the floor may be anything.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::{self, BLOCK_BYTES};
use super::segment::{self, Segment};
use super::{Error, not_opened};

pub struct Recovered {
    /// Those with frames of the chain, in order.
    pub segments: VecDeque<Segment>,
    pub spares: Vec<Segment>,
    pub next: u64,
    pub next_name: u64,
}

pub fn recover(
    dir: &Path,
    floor: u64,
    segment_bytes: u64,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<Recovered, Error> {
    let unreadable = |why: &io::Error| not_opened(dir, why);
    let paths = segment::paths(dir).map_err(|why| unreadable(&why))?;
    let next_name = paths.iter().map(|path| segment::name_number(path) + 1).max().unwrap_or(1);
    let mut files = Vec::new();
    for path in paths {
        let segment = Segment::existing(path).map_err(|why| unreadable(&why))?;
        let first = first_number(&segment.file).map_err(|why| unreadable(&why))?;
        files.push((first, segment));
    }
    files.sort_by_key(|&(first, _)| first);

    let mut recovered = Recovered { segments: VecDeque::new(), spares: Vec::new(), next: floor, next_name };
    let mut bytes = Vec::new();
    for (first, mut segment) in files {
        read_whole(&segment.file, &mut bytes).map_err(|why| unreadable(&why))?;
        if let Some(first) = first {
            follow(&mut segment, first, &bytes);
        }
        no_frame_behind(&segment, floor, &bytes)?;
        if segment.blocks.is_empty() || segment.next() <= floor {
            segment.recycle();
            recovered.spares.push(segment);
            continue;
        }
        let goes_on = segment.first == recovered.next || (recovered.segments.is_empty() && segment.first < floor);
        if !goes_on {
            return Err(missing(recovered.next, &segment));
        }
        for number in segment.first.max(floor)..segment.next() {
            let frame = frame::parse(&bytes[segment.offset(number) as usize..]).expect("follow has parsed it");
            visit(number, frame.payload)?;
        }
        recovered.next = segment.next();
        recovered.segments.push_back(segment);
    }
    recovered.spares.retain(|spare| {
        // One whose preparation was interrupted.
        let whole = spare.bytes >= segment_bytes;
        if !whole {
            let _ = std::fs::remove_file(&spare.path);
        }
        whole
    });
    if let Some(last) = recovered.segments.back() {
        make_durable(last).map_err(|why| unreadable(&why))?;
    }
    Ok(recovered)
}

fn missing(number: u64, found: &Segment) -> Error {
    let (first, path) = (found.first, found.path.display());
    Error::Damaged(format!(
        "the log lacks frame {number}: {path} goes on with frame {first}; restore the directory from a backup"
    ))
}

/// Number of a valid first frame.
fn first_number(file: &File) -> io::Result<Option<u64>> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    let Some(claimed) = frame::claimed_bytes(&bytes) else { return Ok(None) };
    if claimed as u64 > file.metadata()?.len() {
        return Ok(None);
    }
    bytes.resize(claimed, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(frame::parse(&bytes).map(|frame| frame.number))
}

fn read_whole(mut file: &File, into: &mut Vec<u8>) -> io::Result<()> {
    into.clear();
    file.rewind()?;
    file.read_to_end(into)?;
    Ok(())
}

/// Finds the frames of a segment: each is its predecessor's number plus one. In a segment that was written before, what
/// lies behind them has lower numbers.
fn follow(segment: &mut Segment, first: u64, bytes: &[u8]) {
    let mut number = first;
    while let Some(frame) = bytes.get(segment.end as usize..).and_then(frame::parse) {
        if frame.number != number || frame.padded_bytes() as u64 > segment.bytes - segment.end {
            break;
        }
        segment.push(number, frame.padded_bytes());
        number += 1;
    }
}

fn no_frame_behind(segment: &Segment, floor: u64, bytes: &[u8]) -> Result<(), Error> {
    for at in (segment.end as usize..bytes.len()).step_by(BLOCK_BYTES) {
        let needed = frame::claimed_number(&bytes[at..]).is_some_and(|number| number >= floor);
        if needed && let Some(frame) = frame::parse(&bytes[at..]) {
            let (number, path) = (frame.number, segment.path.display());
            return Err(Error::Damaged(format!(
                "{path} holds frame {number}, but what should lead to it is unreadable from byte {} on; restore the \
                 directory from a backup",
                segment.end
            )));
        }
    }
    Ok(())
}

/// Writes the last frame once more and zeros over what is torn behind it: pages of a sync that failed may look written
/// without being on disk, and another sync alone would not write them.
fn make_durable(last: &Segment) -> io::Result<()> {
    let from = last.offset(last.next() - 1);
    let mut bytes = vec![0; (last.end - from) as usize];
    last.file.read_exact_at(&mut bytes, from)?;
    last.file.write_all_at(&bytes, from)?;
    if last.end < last.bytes {
        let mut head = [0; frame::HEADER_BYTES];
        last.file.read_exact_at(&mut head, last.end)?;
        let torn = frame::claimed_bytes(&head).unwrap_or(BLOCK_BYTES) as u64;
        bytes.clear();
        bytes.resize(torn.min(last.bytes - last.end) as usize, 0);
        last.file.write_all_at(&bytes, last.end)?;
    }
    last.file.sync_data()
}
