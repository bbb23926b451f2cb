//! The embedded store over power failures: whatever it acknowledged is there afterwards, and nothing else has changed.
//!
//! The child is this very test program. It appends groups, takes checkpoints and puts values as fast as it can, and says
//! so after each answer. What entry `seq` of a shard does is a function of both, so any state can be checked exactly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use powerloss::{arm, ignore_syncs, restore, restore_torn};
use quipu::counter::{Id, key_hash};
use quipu::shard::Entry;
use quipu::shard::entry::Change;
use quipu::shard::partials::Partial;
use quipu::store::embedded::{EmbeddedStore, Settings};
use quipu::store::{Appended, Checkpoint, Error, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const CHILD: &str = "POWERLOSS_TEST_STORE";
const UNSYNCED_CHILD: &str = "POWERLOSS_TEST_UNSYNCED";
const SHARDS: u32 = 3;
const COUNTERS: u64 = 17;

fn settings(dir: &Path) -> Settings {
    // Small segments: a second sees hundreds of rotations.
    Settings { segment_bytes: 32 * 1024, ..Settings::new(dir.join("data"), SHARDS) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn counter(number: u64) -> Id {
    // Of any length, so that frames take one block or several.
    Id::new(&format!("counter-{number}-{}", "x".repeat(number as usize * 29))).expect("a valid id")
}

fn value(shard: u32, seq: u64) -> i64 {
    seq as i64 * 1000 + i64::from(shard)
}

/// Which counters an entry changes.
fn changed(shard: u32, seq: u64) -> impl Iterator<Item = u64> {
    let count = (seq * 7 + u64::from(shard)) % COUNTERS;
    (0..=count).map(move |at| (seq + at) % COUNTERS)
}

fn entry(shard: u32, epoch: u64, seq: u64) -> Arc<Entry> {
    let change = |number| {
        let counter = counter(number);
        Change {
            hash: key_hash(counter.as_str()),
            counter,
            partial: Partial { value: value(shard, seq), seq, ..Partial::default() },
        }
    };
    let changes = changed(shard, seq).map(change).collect();
    Arc::new(Entry {
        shard,
        epoch,
        seq,
        id: epoch << 32 | seq,
        time_ms: Some(seq),
        changes,
        keys: vec![],
        marks: vec![],
    })
}

/// What every counter of a shard is after this entry.
fn state(shard: u32, seq: u64) -> BTreeMap<Id, i64> {
    let first = seq.saturating_sub(2 * COUNTERS).max(1);
    (first..=seq).flat_map(|seq| changed(shard, seq).map(move |number| (counter(number), value(shard, seq)))).collect()
}

fn checkpoint(shard: u32, epoch: u64, seq: u64) -> Checkpoint {
    let partials =
        state(shard, seq).into_iter().map(|(id, value)| (id, Partial { value, seq, ..Partial::default() })).collect();
    Checkpoint { shard, epoch, seq, partials, ..Checkpoint::default() }
}

/// A value of many blocks that no compression shortens.
fn large(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize_with(8 + (number as usize * 97) % 100_000, {
        let mut random = StdRng::seed_from_u64(number);
        move || random.random()
    });
    bytes
}

/// What the child does; a test of its own only in name.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let store = EmbeddedStore::open(settings(Path::new(&dir))).expect("opens");
    let tails: Vec<AtomicU64> = (0..SHARDS).map(|_| AtomicU64::new(0)).collect();
    let epochs: Vec<u64> = (0..SHARDS).map(|shard| runtime().block_on(take_over(&store, shard, &tails))).collect();
    std::thread::scope(|scope| {
        let beside = || {
            let runtime = runtime();
            for number in 1.. {
                let take = |shard: u32| {
                    checkpoint(shard, epochs[shard as usize], tails[shard as usize].load(Ordering::Acquire))
                };
                // Not all at once, so that the floor is held back by some.
                let some = (0..SHARDS).filter(|shard| number % (u64::from(*shard) + 1) == 0).map(take).collect();
                runtime.block_on(store.checkpoint(some)).expect("checkpoints");
                let number: u64 = tails[0].load(Ordering::Acquire);
                runtime.block_on(store.put("space", "key", &large(number))).expect("puts");
                say(&format!("put {number}"));
            }
        };
        scope.spawn(beside);
        let runtime = runtime();
        let mut random = StdRng::from_os_rng();
        loop {
            let shards: Vec<u32> = (0..SHARDS).filter(|_| random.random_bool(0.7)).collect();
            let next =
                |&shard: &u32| entry(shard, epochs[shard as usize], tails[shard as usize].load(Ordering::Acquire) + 1);
            let group: Vec<_> = shards.iter().map(next).collect();
            let results = runtime.block_on(store.append(&group)).expect("appends");
            assert!(results.iter().all(|&result| result == Appended::Applied), "{results:?}");
            for &shard in &shards {
                let seq = tails[shard as usize].fetch_add(1, Ordering::AcqRel) + 1;
                say(&format!("acknowledged {shard} {seq}"));
            }
        }
    });
}

/// What the log shows but no sync has reached, after a failed one or a crash: what opening serves of it must last.
#[test]
fn child_that_serves_what_was_not_synced() {
    let Ok(dir) = std::env::var(UNSYNCED_CHILD) else { return };
    let dir = Path::new(&dir);
    let tails: Vec<AtomicU64> = (0..SHARDS).map(|_| AtomicU64::new(0)).collect();
    let append = |seqs: std::ops::RangeInclusive<u64>| {
        let store = EmbeddedStore::open(settings(dir)).expect("opens");
        let epoch = runtime().block_on(take_over(&store, 0, &tails));
        for seq in seqs {
            runtime().block_on(store.append(&[entry(0, epoch, seq)])).expect("appends");
        }
    };
    append(1..=10);
    let before = log_files(dir);
    append(11..=11);
    for (path, after) in log_files(dir) {
        let Some(before) = before.get(&path).filter(|before| **before != after) else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
        file.write_all_at(before, 0).expect("writes");
        file.sync_all().expect("syncs");
        file.write_all_at(&after, 0).expect("writes, and does not sync");
    }
    let store = EmbeddedStore::open(settings(dir)).expect("opens");
    runtime().block_on(take_over(&store, 0, &tails));
    say(&format!("acknowledged 0 {}", tails[0].load(Ordering::Acquire)));
    loop {
        std::thread::park();
    }
}

fn log_files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(dir.join("data/log")).expect("reads");
    files
        .map(|file| file.expect("reads").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("reads")))
        .collect()
}

async fn take_over(store: &EmbeddedStore, shard: u32, tails: &[AtomicU64]) -> u64 {
    let raised = store.raise(shard).await.expect("raises");
    let entries = store.read(shard, raised.checkpoint_seq, usize::MAX).await.expect("reads");
    let tail = entries.last().map_or(raised.checkpoint_seq, |last| last.seq);
    tails[shard as usize].store(tail, Ordering::Release);
    raised.epoch
}

/// One line in one write, past the harness's capture.
fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).expect("writes");
    std::io::stdout().flush().expect("flushes");
}

#[derive(Debug, Default)]
struct Acknowledged {
    seqs: [u64; SHARDS as usize],
    put: u64,
}

/// Runs a child until it has acknowledged so many lines, and kills it.
fn run(dir: &Path, shadow: &Path, lines_min: usize, prepare: impl FnOnce(&mut Command)) -> Acknowledged {
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--nocapture", "--exact", "child"]).env(CHILD, dir).stdout(Stdio::piped());
    arm(&mut child, dir, shadow);
    prepare(&mut child);
    let mut child = child.spawn().expect("starts");
    let output = BufReader::new(child.stdout.take().expect("is piped"));
    let mut acknowledged = Acknowledged::default();
    let mut count = 0;
    for line in output.lines() {
        let line = line.expect("reads");
        let mut words = line.split(' ');
        match words.next() {
            Some("acknowledged") => {
                let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
                // The last line may be cut short by the kill.
                let (Some(shard), Some(seq)) = (number(), number()) else { break };
                let last = &mut acknowledged.seqs[shard as usize];
                *last = seq.max(*last);
            }
            Some("put") => acknowledged.put = words.next().and_then(|word| word.parse().ok()).expect("a number"),
            _ => continue,
        }
        count += 1;
        if count == lines_min {
            child.kill().expect("is killed");
        }
    }
    child.wait().expect("is gone");
    assert!(count >= lines_min, "the child ended by itself after {count} lines");
    acknowledged
}

/// Everything acknowledged that is not there, in words.
fn lost(dir: &Path, acknowledged: &Acknowledged) -> Result<Vec<String>, Error> {
    let store = EmbeddedStore::open(settings(dir))?;
    runtime().block_on(async {
        let mut lost = Vec::new();
        for shard in 0..SHARDS {
            let raised = store.raise(shard).await?;
            let mut found = BTreeMap::new();
            for listed in store.list("", None, usize::MAX).await? {
                let here = listed.partials.into_iter().find(|&(on, _)| on == shard);
                found.extend(here.map(|(_, partial)| (listed.id, partial.value)));
            }
            let mut tail = raised.checkpoint_seq;
            assert_eq!(found, state(shard, tail), "the checkpoint of shard {shard} at {tail}");
            for entry in store.read(shard, tail, usize::MAX).await? {
                assert_eq!(entry.seq, tail + 1);
                assert_eq!(entry.changes, self::entry(shard, entry.epoch, entry.seq).changes);
                tail = entry.seq;
            }
            let expected = acknowledged.seqs[shard as usize];
            if tail < expected {
                lost.push(format!("shard {shard} ends at {tail}, and {expected} was acknowledged"));
            }
        }
        let put = store.get("space", "key").await?.map_or(0, |bytes| {
            let put = u64::from_le_bytes(bytes[..8].try_into().expect("a number"));
            assert!(bytes == large(put), "a value that was never put");
            put
        });
        if put < acknowledged.put {
            lost.push(format!("the value is {put}, and {} was acknowledged", acknowledged.put));
        }
        Ok(lost)
    })
}

fn places() -> (tempfile::TempDir, tempfile::TempDir) {
    let in_memory = || tempfile::tempdir_in("/dev/shm").expect("a directory");
    (in_memory(), in_memory())
}

#[test]
fn every_acknowledged_entry_survives_a_power_failure() {
    let (dir, shadow) = places();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..20 {
        // The first rounds fail early, when names and files are new.
        let lines_min = if round < 5 { 1 + round } else { random.random_range(1..4_000) };
        let acknowledged = run(dir.path(), shadow.path(), lines_min, |_| {});
        if round % 2 == 0 {
            restore(shadow.path(), dir.path()).expect("restores");
        } else {
            restore_torn(shadow.path(), dir.path(), random.random()).expect("restores");
        }
        let lost = lost(dir.path(), &acknowledged).unwrap_or_else(|why| panic!("seed {seed}, round {round}: {why}"));
        assert!(lost.is_empty(), "seed {seed}, round {round}: {lost:?}");
        println!("round {round}: {acknowledged:?}");
    }
}

#[test]
fn without_syncs_acknowledged_entries_are_lost() {
    let (dir, shadow) = places();
    let acknowledged = run(dir.path(), shadow.path(), 500, ignore_syncs);
    restore(shadow.path(), dir.path()).expect("restores");
    let lost = lost(dir.path(), &acknowledged).expect("opens");
    assert!(lost.len() >= SHARDS as usize, "this test would not notice a missing sync: {lost:?}");
}

#[test]
fn what_opening_serves_survives_a_power_failure() {
    let (dir, shadow) = places();
    let acknowledged = run(dir.path(), shadow.path(), 1, |child| {
        child.env_remove(CHILD).env(UNSYNCED_CHILD, dir.path()).arg("child_that_serves_what_was_not_synced");
    });
    assert_eq!(acknowledged.seqs[0], 11);
    restore(shadow.path(), dir.path()).expect("restores");
    assert_eq!(lost(dir.path(), &acknowledged).expect("opens"), [""; 0]);
}
