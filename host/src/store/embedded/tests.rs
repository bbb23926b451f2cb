use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::counter::key_hash;
use crate::shard::entry::Change;
use crate::store::conformance::{checkpoint, entry, id, partial};

/// A process that another test starts holds this one's locks from its fork until it runs its own program, a moment later.
const FORKED_MAX: Duration = Duration::from_secs(5);

fn open(settings: Settings) -> Result<EmbeddedStore, Error> {
    let end = Instant::now() + FORKED_MAX;
    loop {
        match EmbeddedStore::open(settings.clone()) {
            Err(Error::Refused(why)) if why.contains("in use") && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}

fn refusal(settings: Settings) -> String {
    refused(open(settings))
}

fn refused(opened: Result<EmbeddedStore, Error>) -> String {
    match opened {
        Err(Error::Refused(why)) => why,
        other => panic!("{:?}", other.map(|_| "opened")),
    }
}

async fn append_one(store: &EmbeddedStore, shard: u32, epoch: u64, seq: u64) -> Result<(), Error> {
    let results = store.append(&[entry(shard, epoch, seq, "a", seq as i64)]).await?;
    assert_eq!(results, [Appended::Applied]);
    Ok(())
}

async fn last_seq(store: &EmbeddedStore, shard: u32) -> u64 {
    store.read(shard, 0, usize::MAX).await.expect("reads").last().map_or(0, |entry| entry.seq)
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(Settings::new(dir.path(), 3)).expect("opens");
    let why = refused(EmbeddedStore::open(Settings::new(dir.path(), 3)));
    assert!(why.contains("in use") && why.contains(dir.path().to_str().expect("a plain path")), "{why}");
    drop(store);
    open(Settings::new(dir.path(), 3)).expect("is free again");
}

#[test]
fn another_number_of_shards_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(Settings::new(dir.path(), 3)).expect("opens"));
    let why = refusal(Settings::new(dir.path(), 12));
    assert!(why.contains("3 shards") && why.contains("with 12"), "{why}");
}

#[test]
fn a_newer_or_unreadable_format_is_not_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(Settings::new(dir.path(), 3)).expect("opens"));
    fs::write(dir.path().join("format"), "version 3\nshards 3\n").expect("writes");
    let why = refusal(Settings::new(dir.path(), 3));
    assert!(why.contains("format 3"), "{why}");
    fs::write(dir.path().join("format"), "version 1\n").expect("writes");
    assert!(matches!(open(Settings::new(dir.path(), 3)), Err(Error::Damaged(_))));
    fs::remove_file(dir.path().join("format")).expect("removes");
    assert!(matches!(open(Settings::new(dir.path(), 3)), Err(Error::Damaged(_))));
}

#[test]
fn a_directory_of_format_1_is_adopted() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(Settings::new(dir.path(), 3)).expect("opens"));
    let format = dir.path().join("format");
    fs::write(&format, "version 1\nshards 3\n").expect("writes");
    drop(open(Settings::new(dir.path(), 3)).expect("opens"));
    assert_eq!(fs::read_to_string(&format).expect("text"), "version 2\nshards 3\n");
}

#[test]
fn a_path_that_is_no_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, "").expect("writes");
    let why = refusal(Settings::new(&path, 3));
    assert!(why.contains(path.to_str().expect("a plain path")), "{why}");
}

#[tokio::test]
async fn values_beyond_the_limits_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(Settings::new(dir.path(), 3)).expect("opens");
    let long = "k".repeat(limits::VALUE_KEY_BYTES_MAX);
    assert!(matches!(store.put("s", &long, b"").await, Err(Error::NotApplied(_))));
    assert!(matches!(store.get("s", &long).await, Err(Error::NotApplied(_))));
    let large = vec![0; limits::VALUE_BYTES_MAX + 1];
    assert!(matches!(store.put("s", "k", &large).await, Err(Error::NotApplied(_))));
    store.put("s", &long[1..], b"fits").await.expect("puts");
}

#[tokio::test]
async fn damage_to_the_log_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = Settings { segment_bytes: 16 * 1024, ..Settings::new(dir.path(), 1) };
    let store = open(settings.clone()).expect("opens");
    let epoch = store.raise(0).await.expect("raises").epoch;
    for seq in 1..=20 {
        append_one(&store, 0, epoch, seq).await.expect("appends");
    }
    // The floor rests on a checkpoint; a log that begins after it lacks something.
    store.checkpoint(vec![checkpoint(0, epoch, 6, vec![])]).await.expect("checkpoints");
    drop(store);
    let mut files: Vec<_> =
        fs::read_dir(dir.path().join("log")).expect("reads").map(|file| file.expect("reads").path()).collect();
    files.sort_by_key(|path| fs::read(path).expect("reads")[8..16].to_vec());
    let needed =
        files.iter().find(|path| fs::read(path).expect("reads")[8] == 5).expect("frames 5 to 8 share a segment");
    fs::remove_file(needed).expect("removes");
    match open(settings) {
        Err(Error::Damaged(why)) => assert!(why.contains("lacks frame 7"), "{why}"),
        other => panic!("{:?}", other.map(|_| "opened")),
    }
}

#[tokio::test]
async fn a_broken_store_says_so_until_it_is_recovered() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(Settings::new(dir.path(), 3)).expect("opens");
    let epoch = store.raise(0).await.expect("raises").epoch;
    append_one(&store, 0, epoch, 1).await.expect("appends");
    let broken: Result<(), Error> = store.with(|_| Err(Error::Broken("as tried".into())));
    assert!(broken.is_err());
    assert!(matches!(append_one(&store, 0, epoch, 2).await, Err(Error::Broken(why)) if why == "as tried"));
    assert!(matches!(store.list("", None, 1).await, Err(Error::Broken(_))));
    store.recover().await.expect("recovers");
    let epoch = store.raise(0).await.expect("raises").epoch;
    append_one(&store, 0, epoch, 2).await.expect("appends");
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for file in fs::read_dir(from).expect("reads") {
        let file = file.expect("reads");
        if file.file_type().expect("is there").is_dir() {
            copy_tree(&file.path(), &to.join(file.file_name()));
        } else {
            fs::copy(file.path(), to.join(file.file_name())).expect("copies");
        }
    }
}

#[tokio::test]
async fn a_large_value_torn_anywhere_leaves_the_one_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = |name: &str| Settings { segment_bytes: 16 * 1024, ..Settings::new(dir.path().join(name), 1) };
    let store = open(settings("whole")).expect("opens");
    store.put("s", "k", b"before").await.expect("puts");
    drop(store);
    // The engine's journal ends with what was written from here on.
    drop(open(settings("whole")).expect("opens"));
    let journal = |name: &str| dir.path().join(name).join("lsm/0.jnl");
    let begin = fs::metadata(journal("whole")).expect("is there").len() as usize;
    let store = open(settings("whole")).expect("opens");
    // Not to be compressed.
    let mut large = vec![0; 60_000];
    rand::RngCore::fill_bytes(&mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1), &mut large);
    store.put("s", "k", &large).await.expect("puts");
    assert_eq!(store.get("s", "k").await.expect("gets").as_ref(), Some(&large));
    drop(store);
    let bytes = fs::read(journal("whole")).expect("reads");
    assert!(bytes.len() > begin + large.len(), "{begin} to {}", bytes.len());
    for page in (begin.next_multiple_of(4096)..bytes.len()).step_by(4096) {
        let name = format!("torn-{page}");
        copy_tree(&dir.path().join("whole"), &dir.path().join(&name));
        let mut torn = bytes.clone();
        let end = torn.len().min(page + 4096);
        torn[page..end].fill(0);
        fs::write(journal(&name), torn).expect("writes");
        let store = open(settings(&name)).unwrap_or_else(|why| panic!("page {page}: {why}"));
        assert_eq!(store.get("s", "k").await.expect("gets").as_deref(), Some(&b"before"[..]), "page {page}");
    }
}

/// A small disk of its own, or None without the right to mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|done| done.status.success()) {
            return Some(Self(dir));
        }
        println!("skipped: mounting a small disk needs root");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all space but so much.
    fn fill_leaving(&self, mib: u64) {
        let file = fs::File::create(self.path().join("filler")).expect("creates");
        for bytes in [1 << 20, 4096] {
            let more = || rustix::fs::statvfs(self.path()).expect("reads").f_bavail * 4096 > mib << 20;
            while more() && std::io::Write::write_all(&mut &file, &vec![1; bytes]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("filler")).expect("removes");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_service_goes_on_when_space_is_back() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let settings = Settings { segment_bytes: 1024 * 1024, ..Settings::new(disk.path().join("data"), 2) };
    let store = open(settings.clone()).expect("opens");
    let epoch = store.raise(0).await.expect("raises").epoch;
    append_one(&store, 0, epoch, 1).await.expect("appends");
    store.put("s", "k", b"v").await.expect("puts");
    disk.fill_leaving(0);
    let mut seq = 1;
    let refused = loop {
        match append_one(&store, 0, epoch, seq + 1).await {
            Ok(()) => seq += 1,
            Err(why) => break why,
        }
        assert!(seq < 2_000, "the disk is full, and segments do not grow on it");
    };
    assert!(matches!(&refused, Error::NotApplied(why) if why.contains("log")), "{refused}");
    let full = vec![checkpoint(0, epoch, seq, vec![(id("a"), partial(seq as i64, seq))])];
    assert!(matches!(store.checkpoint(full.clone()).await, Err(Error::NotApplied(why)) if why.contains("MiB free")));
    assert!(matches!(store.put("s", "k", b"w").await, Err(Error::NotApplied(_))));
    assert_eq!(store.get("s", "k").await.expect("gets"), Some(b"v".to_vec()));
    assert_eq!(last_seq(&store, 0).await, seq);

    disk.empty();
    seq += 1;
    append_one(&store, 0, epoch, seq).await.expect("service goes on");
    store.checkpoint(full).await.expect("checkpoints");
    drop(store);
    let store = open(settings).expect("opens");
    assert_eq!(store.raise(0).await.expect("raises").checkpoint_seq, seq - 1);
    assert_eq!(last_seq(&store, 0).await, seq);
}

#[tokio::test]
async fn checkpoints_keep_a_nearly_full_disk_in_service() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let settings = Settings { segment_bytes: 64 * 1024, ..Settings::new(disk.path().join("data"), 1) };
    let store = open(settings).expect("opens");
    let epoch = store.raise(0).await.expect("raises").epoch;
    append_one(&store, 0, epoch, 1).await.expect("appends");
    disk.fill_leaving(50);
    let mut refused = 0;
    for seq in 2..=500 {
        if let Err(why) = append_one(&store, 0, epoch, seq).await {
            assert!(matches!(&why, Error::NotApplied(why) if why.contains("MiB are free")), "{why}");
            refused += 1;
            let covered = vec![checkpoint(0, epoch, seq - 1, vec![(id("a"), partial(1, seq - 1))])];
            store.checkpoint(covered).await.expect("there is room for checkpoints");
            append_one(&store, 0, epoch, seq).await.expect("a segment was given back");
        }
    }
    assert!(refused > 3, "the log had room for all");
}

#[tokio::test]
async fn a_store_broken_by_a_full_disk_recovers_when_space_is_back() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let settings = Settings { segment_bytes: 1024 * 1024, ..Settings::new(disk.path().join("data"), 2) };
    let store = open(settings).expect("opens");
    let mut epoch = store.raise(0).await.expect("raises").epoch;
    append_one(&store, 0, epoch, 1).await.expect("appends");
    disk.fill_leaving(0);
    let broken = loop {
        match store.raise(0).await {
            Ok(raised) => epoch = raised.epoch,
            Err(why) => break why,
        }
        assert!(epoch < 100_000, "the disk is full, and epochs take space");
    };
    assert!(matches!(broken, Error::Broken(_)), "{broken}");
    assert!(matches!(append_one(&store, 0, epoch, 2).await, Err(Error::Broken(_))));
    // A little room may have been given back by closing.
    match store.recover().await {
        Ok(()) => assert_eq!(last_seq(&store, 0).await, 1),
        Err(why) => {
            assert!(matches!(why, Error::NotApplied(_) | Error::Broken(_)), "{why}");
            assert!(matches!(append_one(&store, 0, epoch, 2).await, Err(Error::NotApplied(_))));
        }
    }
    disk.empty();
    store.recover().await.expect("recovers");
    assert!(store.raise(0).await.expect("raises").epoch > epoch);
    assert_eq!(last_seq(&store, 0).await, 1);
}

#[tokio::test]
async fn readers_and_checkpoints_run_beside_appends() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = Settings { segment_bytes: 64 * 1024, ..Settings::new(dir.path(), 2) };
    let store = Arc::new(open(settings.clone()).expect("opens"));
    let epochs = [store.raise(0).await.expect("raises").epoch, store.raise(1).await.expect("raises").epoch];
    let done = Arc::new(AtomicU64::new(0));
    let beside = std::thread::spawn({
        let (store, done) = (store.clone(), done.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let mut covered = 0;
            while covered < 2_000 {
                let seq = done.load(Ordering::Acquire);
                let partials = vec![(id("a"), partial(seq as i64, seq))];
                runtime.block_on(store.checkpoint(vec![checkpoint(0, epochs[0], seq, partials)])).expect("checkpoints");
                let read = runtime.block_on(store.read(0, seq, 1 << 20)).expect("reads");
                assert!(read.first().is_none_or(|first| first.seq == seq + 1));
                covered = seq;
            }
        }
    });
    for seq in 1..=2_000 {
        let group = [entry(0, epochs[0], seq, "a", seq as i64), entry(1, epochs[1], seq, "b", seq as i64)];
        assert_eq!(store.append(&group).await.expect("appends"), [Appended::Applied; 2]);
        done.store(seq, Ordering::Release);
    }
    beside.join().expect("no panic");
    drop(store);
    let store = open(settings).expect("opens");
    assert_eq!(store.raise(0).await.expect("raises").checkpoint_seq, 2_000);
    assert_eq!(store.read(1, 0, usize::MAX).await.expect("reads").len(), 2_000);
}

fn changes(count: usize, seq: u64, prefix: &str) -> Vec<Change> {
    let change = |at| {
        let counter = id(&format!("{prefix}-{at:020}"));
        Change { hash: key_hash(counter.as_str()), counter, partial: partial(at as i64, seq) }
    };
    (0..count).map(change).collect()
}

fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// `cargo test --release -p quipu --lib store::embedded::tests::figures -- --ignored --nocapture`
#[tokio::test]
#[ignore = "prints figures, checks nothing"]
async fn figures() {
    let dir = tempfile::tempdir_in(std::env::var("QUIPU_FIGURES_DIR").unwrap_or(".".into())).expect("a directory");
    let begun = Instant::now();
    let store = open(Settings::new(dir.path().join("a"), 12)).expect("opens");
    println!("open, empty directory: {:?}", begun.elapsed());
    let epoch = store.raise(0).await.expect("raises").epoch;
    let mut seq = 0;
    for (name, count) in [("4 KiB", 90), ("64 KiB", 1_600)] {
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..5_000 / (1 + count / 400) {
            seq += 1;
            let changes = changes(count, seq, "figure");
            let entry = Entry { shard: 0, epoch, seq, id: seq, time_ms: None, changes, keys: vec![], marks: vec![] };
            let (group, before) = ([Arc::new(entry)], store.journal_bytes());
            let begun = Instant::now();
            store.append(&group).await.expect("appends");
            times.push(begun.elapsed());
            bytes = store.journal_bytes() - before;
            if store.journal_bytes() > 48 << 20 {
                store.checkpoint(vec![checkpoint(0, epoch, seq, vec![])]).await.expect("checkpoints");
            }
        }
        let (p50, p99) = quantiles(times);
        println!("append + sync, {name} ({bytes} bytes on disk): p50 {p50:?}, p99 {p99:?}");
    }
    for round in 0..3 {
        seq += 1;
        append_one(&store, 0, epoch, seq).await.expect("appends");
        let partials =
            changes(100_000, seq, "figure").into_iter().map(|change| (change.counter, change.partial)).collect();
        let begun = Instant::now();
        store.checkpoint(vec![checkpoint(0, epoch, seq, partials)]).await.expect("checkpoints");
        println!("checkpoint of 100,000 partials, round {round}: {:?}", begun.elapsed());
    }
    let counters = [changes(100, 1, "figure"), changes(100, 1, "missing")].concat();
    let begun = Instant::now();
    for change in &counters {
        store.load(0, &change.counter).await.expect("loads");
    }
    println!("load of one partial: {:?}", begun.elapsed() / counters.len() as u32);
    while store.journal_bytes() < 64 << 20 {
        seq += 1;
        let entry = Entry {
            shard: 0,
            epoch,
            seq,
            id: seq,
            time_ms: None,
            changes: changes(1_600, seq, "figure"),
            keys: vec![],
            marks: vec![],
        };
        store.append(&[Arc::new(entry)]).await.expect("appends");
    }
    drop(store);
    let begun = Instant::now();
    let lsm = Lsm::open(&dir.path().join("a/lsm")).expect("opens");
    println!("open of the records alone: {:?}", begun.elapsed());
    let covered: Vec<_> = (0..12).map(|shard| lsm.covered(shard).expect("reads")).collect();
    let floor = lsm.floor().expect("reads").expect("is there");
    let begun = Instant::now();
    let journal = Journal::open(&dir.path().join("a/log"), floor, limits::LOG_SEGMENT_BYTES, &covered).expect("opens");
    println!("open of the log alone: {:?}", begun.elapsed());
    drop((journal, lsm));
    let begun = Instant::now();
    let store = open(Settings::new(dir.path().join("a"), 12)).expect("opens");
    println!("open, 64 MiB of log: {:?}", begun.elapsed());
    let begun = Instant::now();
    let entries = store.read(0, 0, usize::MAX).await.expect("reads").len();
    println!("read of {entries} entries, 64 MiB: {:?}", begun.elapsed());
    let begun = Instant::now();
    store.recover().await.expect("recovers");
    println!("recover: {:?}", begun.elapsed());
    drop(store);
    let store = open(Settings::new(dir.path().join("million"), 12)).expect("opens");
    let epoch = store.raise(0).await.expect("raises").epoch;
    let before = resident_kib();
    for seq in 1..=10 {
        append_one(&store, 0, epoch, seq).await.expect("appends");
        let changes = changes(100_000, seq, &format!("{seq:03}"));
        let partials = changes.into_iter().map(|change| (change.counter, change.partial)).collect();
        store.checkpoint(vec![checkpoint(0, epoch, seq, partials)]).await.expect("checkpoints");
    }
    println!("a million counters in ten checkpoints: {} MiB resident more", (resident_kib() - before) / 1024);
    drop(store);
    let before = resident_kib();
    let begun = Instant::now();
    let _store = open(Settings::new(dir.path().join("million"), 12)).expect("opens");
    println!("opened again in {:?}: {} MiB resident more", begun.elapsed(), (resident_kib() - before) / 1024);
}

fn resident_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("is there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
