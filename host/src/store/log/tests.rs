use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::frame::{BLOCK_BYTES, HEADER_BYTES};
use super::*;

const SEGMENT_BYTES: u64 = 64 * 1024;

type Found = Vec<(u64, Vec<u8>)>;

fn open(dir: &Path, floor: u64) -> Result<(Log, Found), Error> {
    let mut found = Vec::new();
    let log = Log::open(dir, floor, SEGMENT_BYTES, |number, payload| {
        found.push((number, payload.to_vec()));
        Ok(())
    })?;
    Ok((log, found))
}

fn payload(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (number.wrapping_mul(31).wrapping_add(at) % 251) as u8).collect()
}

/// A log with frames of these sizes, closed again.
fn written(sizes: &[usize]) -> (tempfile::TempDir, Found) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 1).expect("opens");
    let mut all = Vec::new();
    for &bytes in sizes {
        let payload = payload(log.next(), bytes);
        let number = log.append(|out| out.extend_from_slice(&payload)).expect("appends");
        all.push((number, payload));
    }
    (dir, all)
}

/// Files by the number of their first frame; spares are left out.
fn files(dir: &Path) -> BTreeMap<u64, PathBuf> {
    let paths = segment::paths(dir).expect("reads").into_iter();
    let numbered = paths
        .filter_map(|path| frame::parse(&fs::read(&path).expect("reads")).map(|frame| (frame.number, path.clone())));
    numbered.collect()
}

fn last_file(dir: &Path) -> PathBuf {
    files(dir).pop_last().expect("has frames").1
}

fn assert_damaged(dir: &Path, floor: u64, what: &str) {
    match open(dir, floor) {
        Err(Error::Damaged(_)) => {}
        other => panic!("{what}: {:?}", other.map(|(_, found)| found.len())),
    }
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    for last_bytes in [10, 300, 5000] {
        let (dir, all) = written(&[100, 4072, last_bytes]);
        let path = last_file(dir.path());
        let whole = fs::read(&path).expect("reads");
        let start = 2 * BLOCK_BYTES;
        let end = start + HEADER_BYTES + last_bytes;
        let step = if last_bytes > 1000 { 97 } else { 1 };
        for cut in (start..end).step_by(step) {
            for fill in [0x00, 0xA5] {
                let mut torn = whole.clone();
                torn[cut..end].fill(fill);
                if torn == whole {
                    continue;
                }
                fs::write(&path, &torn).expect("writes");
                let (mut log, found) = open(dir.path(), 1).expect("opens");
                assert_eq!(found, all[..2], "cut at {cut}");
                let left = fs::read(&path).expect("reads");
                assert!(left[start..end].iter().all(|&byte| byte == 0) || cut < start + 20, "what is torn is gone");
                assert_eq!(log.append(|out| out.push(1)).expect("appends"), 3);
                drop(log);
                assert_eq!(open(dir.path(), 1).expect("opens").1[2], (3, vec![1]));
            }
        }
    }
}

#[test]
fn blocks_that_reached_the_disk_out_of_order_are_cut() {
    let (dir, all) = written(&[100, 20_000]);
    let path = last_file(dir.path());
    let whole = fs::read(&path).expect("reads");
    for lost in 1..6 {
        let mut torn = whole.clone();
        torn[lost * BLOCK_BYTES..(lost + 1) * BLOCK_BYTES].fill(0);
        if torn == whole {
            continue;
        }
        fs::write(&path, &torn).expect("writes");
        assert_eq!(open(dir.path(), 1).expect("opens").1, all[..1], "without block {lost}");
    }
}

#[test]
fn a_flipped_bit_before_the_last_frame_is_damage() {
    let (dir, all) = written(&[10_000; 12]);
    for (first, path) in files(dir.path()) {
        let whole = fs::read(&path).expect("reads");
        let mut at = 0;
        for (number, payload) in all.iter().filter(|&&(number, _)| number >= first) {
            let bytes = frame::padded(HEADER_BYTES + payload.len());
            if *number == 12 || at + bytes > whole.len() {
                break;
            }
            for offset in [0, 9, 17, 21, 24, 5000, HEADER_BYTES + payload.len() - 1] {
                let mut flipped = whole.clone();
                flipped[at + offset] ^= 4;
                fs::write(&path, &flipped).expect("writes");
                assert_damaged(dir.path(), 1, &format!("frame {number}, byte {offset}"));
            }
            at += bytes;
        }
        fs::write(&path, &whole).expect("writes");
    }
    assert_eq!(open(dir.path(), 1).expect("opens").1, all);
}

#[test]
fn a_missing_segment_is_damage() {
    let (dir, all) = written(&[20_000; 20]);
    let mut files = files(dir.path());
    assert!(files.len() > 3);
    files.pop_last();
    for (first, path) in files {
        let kept = fs::read(&path).expect("reads");
        fs::remove_file(&path).expect("removes");
        assert_damaged(dir.path(), 1, &format!("the segment from frame {first} on"));
        fs::write(&path, kept).expect("writes");
    }
    assert_eq!(open(dir.path(), 1).expect("opens").1, all);
    assert_damaged(dir.path(), 0, "the floor lies before the first frame");
}

#[test]
fn only_what_is_needed_must_be_there() {
    let (dir, all) = written(&[20_000; 20]);
    let files = files(dir.path());
    let (&first_needed, _) = files.iter().nth(2).expect("has three");
    for (_, path) in files.iter().take(2) {
        fs::remove_file(path).expect("removes");
    }
    let (log, found) = open(dir.path(), first_needed + 1).expect("opens");
    assert_eq!(found, all[first_needed as usize..]);
    assert_eq!(log.next(), 21);
}

#[test]
fn trimmed_segments_are_written_again() {
    let (dir, _) = written(&[]);
    let (mut log, _) = open(dir.path(), 1).expect("opens");
    for round in 0..500 {
        let number = log.append(|out| out.resize(out.len() + 9_000, round as u8)).expect("appends");
        if number > 12 {
            log.raise_floor(number - 10);
        }
        assert!(log.bytes() <= 12 * 12_288);
    }
    let count = segment::paths(dir.path()).expect("reads").len();
    assert!(count <= 4 + limits::LOG_SPARE_SEGMENTS_MAX, "{count} files");
    drop(log);
    let (log, found) = open(dir.path(), 490).expect("opens");
    assert_eq!(found.iter().map(|&(number, _)| number).collect::<Vec<_>>(), (490..=500).collect::<Vec<_>>());
    assert_eq!(log.bytes(), 11 * 12_288);
}

#[test]
fn a_frame_larger_than_a_segment_gets_its_own() {
    let (dir, all) = written(&[100, 300_000, 100, 65_536, 200_000, 1]);
    let (mut log, found) = open(dir.path(), 1).expect("opens");
    assert_eq!(found, all);
    log.raise_floor(7);
    log.append(|out| out.push(1)).expect("appends");
    drop(log);
    let (log, found) = open(dir.path(), 7).expect("opens");
    assert_eq!((found, log.next()), (vec![(7, vec![1])], 8));
}

#[test]
fn a_frame_beyond_the_limit_is_refused() {
    let (dir, _) = written(&[100]);
    let (mut log, _) = open(dir.path(), 1).expect("opens");
    let refused = log.append(|out| out.resize(limits::LOG_FRAME_BYTES_MAX + 1, 0));
    assert!(matches!(refused, Err(Error::NotApplied(_))), "{refused:?}");
    assert_eq!(log.append(|out| out.push(1)).expect("appends"), 2);
}

#[test]
fn a_failed_write_ends_the_log() {
    let (dir, all) = written(&[100]);
    let (mut log, _) = open(dir.path(), 1).expect("opens");
    let active = log.segments.back_mut().expect("has one");
    let writable = std::mem::replace(&mut active.file, fs::File::open(&active.path).expect("opens"));
    assert!(matches!(log.append(|out| out.push(1)), Err(Error::Broken(_))));
    log.segments.back_mut().expect("has one").file = writable;
    assert!(matches!(log.append(|out| out.push(1)), Err(Error::Broken(_))), "it is not tried again");
    drop(log);
    assert_eq!(open(dir.path(), 1).expect("opens").1, all);
}

#[test]
fn an_interrupted_preparation_is_cleared_away() {
    let (dir, all) = written(&[100]);
    fs::write(dir.path().join("00000099.log"), vec![0; 5000]).expect("writes");
    fs::write(dir.path().join("00000100.log"), []).expect("writes");
    let (log, found) = open(dir.path(), 1).expect("opens");
    assert_eq!(found, all);
    assert!(!dir.path().join("00000099.log").exists() && !dir.path().join("00000100.log").exists());
    assert!(log.next_name > 100);
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Trim(prop::sample::Index),
    Reopen,
    /// Reopens after the next frame was torn at this place.
    Torn(usize, prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0usize..20_000).prop_map(Step::Append),
        1 => (60_000usize..150_000).prop_map(Step::Append),
        2 => any::<prop::sample::Index>().prop_map(Step::Trim),
        2 => Just(Step::Reopen),
        2 => (0usize..20_000, any::<prop::sample::Index>()).prop_map(|(bytes, at)| Step::Torn(bytes, at)),
    ]
}

/// Writes a frame and takes its end back, as if the power had failed before the sync.
fn tear(mut log: Log, bytes: usize, at: &prop::sample::Index) {
    let payload = payload(log.next(), bytes);
    log.append(|out| out.extend_from_slice(&payload)).expect("appends");
    let active = log.segments.back().expect("has one");
    let from = active.offset(active.next() - 1);
    let lost = at.index(HEADER_BYTES + bytes) as u64;
    let stale = vec![0x5A; (active.end - from - lost) as usize];
    active.file.write_all_at(&stale, from + lost).expect("writes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_acknowledged_frame_is_found_again(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut floor, mut kept): (u64, Found) = (1, Vec::new());
        let mut log = open(dir.path(), floor).expect("opens").0;
        for step in steps {
            match step {
                Step::Append(bytes) => {
                    let payload = payload(log.next(), bytes);
                    let number = log.append(|out| out.extend_from_slice(&payload)).expect("appends");
                    kept.push((number, payload));
                }
                Step::Trim(at) => {
                    floor += at.index(kept.len() + 1) as u64;
                    kept.retain(|&(number, _)| number >= floor);
                    log.raise_floor(floor);
                }
                Step::Reopen | Step::Torn(..) => {
                    if let Step::Torn(bytes, at) = &step {
                        tear(log, *bytes, at);
                    } else {
                        drop(log);
                    }
                    let (opened, found) = open(dir.path(), floor).expect("opens");
                    prop_assert_eq!(&found, &kept);
                    log = opened;
                }
            }
            let mut buffer = Vec::new();
            if let Some((number, payload)) = kept.last() {
                log.read(*number, 0, payload.len() as u32, &mut buffer).expect("reads");
                prop_assert_eq!(&buffer, payload);
            }
            prop_assert_eq!(log.bytes(), kept.iter().map(|(_, payload)| frame::padded(HEADER_BYTES + payload.len()) as u64).sum::<u64>());
        }
    }
}
