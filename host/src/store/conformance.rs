//! One suite over every store: what the trait's docs promise, as tests. A store adds itself with a [`Fixture`] and one
//! line of [`suite!`].

use std::sync::Arc;

use proptest::prelude::*;

use super::cassandra::tests::Keyspace;
use super::embedded::{EmbeddedStore, Settings};
use super::memory::{Disk, MemoryStore};
use super::{Appended, Checkpoint, Error, Raised, RollupPart, Store, list_order};
use crate::counter::{Id, key_hash};
use crate::shard::entry::{Action, Change, Entry, KeyRecord, Mark};
use crate::shard::partials::Partial;

pub const SHARDS: u32 = 3;

/// A place where stores are opened one after the other.
pub trait Fixture: Sized {
    /// Records expire in the store itself: how many it dropped is not known.
    const EXPIRES_BY_ITSELF: bool = false;
    /// What was seen of a counter is kept for other processes.
    const KEEPS_ROLLUPS: bool = true;
    /// Rounds of the tests that draw at random.
    const ROUNDS: u32 = 24;

    /// None when what it needs is not there, which it says.
    async fn new() -> Option<Self>;
    async fn open(&mut self) -> Arc<dyn Store>;
    /// After the store is dropped: what the next opening finds.
    fn close(&mut self, store: Arc<dyn Store>);
    /// Leaves nothing behind.
    async fn end(self) {}
}

struct InMemory(Arc<MemoryStore>, Disk);

impl Fixture for InMemory {
    async fn new() -> Option<Self> {
        Some(Self(Arc::new(MemoryStore::new(SHARDS)), Disk::new(SHARDS)))
    }

    async fn open(&mut self) -> Arc<dyn Store> {
        self.0 = Arc::new(MemoryStore::open(self.1.clone()));
        self.0.clone()
    }

    fn close(&mut self, store: Arc<dyn Store>) {
        self.1 = self.0.disk();
        drop(store);
    }
}

struct OnDisk(tempfile::TempDir);

impl Fixture for OnDisk {
    const KEEPS_ROLLUPS: bool = false;

    async fn new() -> Option<Self> {
        Some(Self(tempfile::tempdir().expect("a temporary directory")))
    }

    async fn open(&mut self) -> Arc<dyn Store> {
        Arc::new(
            EmbeddedStore::open(Settings { segment_bytes: 64 * 1024, ..Settings::new(self.0.path(), SHARDS) })
                .expect("opens"),
        )
    }

    fn close(&mut self, store: Arc<dyn Store>) {
        drop(store);
    }
}

/// A keyspace of its own on a running Cassandra.
struct OnCassandra(Keyspace);

impl Fixture for OnCassandra {
    const EXPIRES_BY_ITSELF: bool = true;
    const ROUNDS: u32 = 3;

    async fn new() -> Option<Self> {
        Keyspace::new(SHARDS).await.map(Self)
    }

    async fn open(&mut self) -> Arc<dyn Store> {
        self.0.open(|settings| settings.segment_bytes = 4 * 1024).await
    }

    fn close(&mut self, store: Arc<dyn Store>) {
        drop(store);
    }

    async fn end(self) {
        self.0.end().await;
    }
}

pub fn id(text: &str) -> Id {
    Id::new(text).expect("a valid id")
}

pub fn partial(value: i64, seq: u64) -> Partial {
    Partial { value, seq, created_at_ms: 5, ..Partial::default() }
}

pub fn entry(shard: u32, epoch: u64, seq: u64, counter: &str, value: i64) -> Arc<Entry> {
    let counter = id(counter);
    let change = Change { hash: key_hash(counter.as_str()), counter, partial: partial(value, seq) };
    let entry_id = (epoch << 32) + seq;
    Arc::new(Entry {
        shard,
        epoch,
        seq,
        id: entry_id,
        time_ms: Some(seq),
        changes: vec![change],
        keys: Vec::new(),
        marks: Vec::new(),
    })
}

pub fn record(counter: &str, key: &str, at_ms: u64) -> KeyRecord {
    KeyRecord { counter: id(counter), key: key.into(), action: Action::Add(1), value: 1, at_ms, time_ms: Some(at_ms) }
}

pub fn checkpoint(shard: u32, epoch: u64, seq: u64, partials: Vec<(Id, Partial)>) -> Checkpoint {
    Checkpoint { shard, epoch, seq, partials, ..Checkpoint::default() }
}

async fn raised(store: &dyn Store, shard: u32) -> Raised {
    store.raise(shard).await.expect("raises")
}

async fn append(store: &dyn Store, group: &[Arc<Entry>]) -> Vec<Appended> {
    store.append(group).await.expect("appends")
}

async fn seqs(store: &dyn Store, shard: u32, after: u64) -> Vec<u64> {
    store.read(shard, after, usize::MAX).await.expect("reads").iter().map(|entry| entry.seq).collect()
}

async fn epochs_rise_and_fence<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let first = raised(&*store, 0).await;
    assert_eq!((first.checkpoint_seq, &first.marks[..]), (0, &[][..]));
    let a = entry(0, first.epoch, 1, "a", 1);
    assert_eq!(append(&*store, std::slice::from_ref(&a)).await, [Appended::Applied]);
    let second = raised(&*store, 0).await;
    assert!(second.epoch > first.epoch);
    assert_eq!(append(&*store, &[a]).await, [Appended::Fenced { applied: Some(true) }]);
    let late = entry(0, first.epoch, 2, "a", 2);
    assert_eq!(append(&*store, &[late]).await, [Appended::Fenced { applied: Some(false) }]);
    assert!(!store.confirm(0, first.epoch).await.expect("asks") && store.confirm(0, second.epoch).await.expect("asks"));
    let other = raised(&*store, 1).await;
    let group = [entry(0, second.epoch, 2, "a", 3), entry(1, other.epoch, 1, "b", 1)];
    assert_eq!(append(&*store, &group).await, [Appended::Applied; 2]);
    place.close(store);
    let store = place.open().await;
    let third = raised(&*store, 0).await;
    assert!(third.epoch > second.epoch);
    assert_eq!(
        append(&*store, &[entry(0, second.epoch, 3, "a", 4)]).await,
        [Appended::Fenced { applied: Some(false) }]
    );
    assert_eq!(seqs(&*store, 0, 0).await, [1, 2]);
}

async fn a_fenced_entry_does_not_keep_others_out<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let (old, other) = (raised(&*store, 0).await.epoch, raised(&*store, 1).await.epoch);
    raised(&*store, 0).await;
    let group = [entry(0, old, 1, "a", 1), entry(1, other, 1, "b", 1)];
    assert_eq!(append(&*store, &group).await, [Appended::Fenced { applied: Some(false) }, Appended::Applied]);
    assert_eq!((seqs(&*store, 0, 0).await, seqs(&*store, 1, 0).await), (vec![], vec![1]));
}

async fn what_is_appended_is_read<F: Fixture>(place: &mut F) {
    let mut store = place.open().await;
    let mut written = Vec::new();
    for round in 0..4 {
        let epoch = raised(&*store, 2).await.epoch;
        for _ in 0..50 {
            let seq = written.len() as u64 + 1;
            let entry = entry(2, epoch, seq, &"long id ".repeat(seq as usize % 60 + 1), seq as i64);
            assert_eq!(append(&*store, std::slice::from_ref(&entry)).await, [Appended::Applied], "round {round}");
            written.push(entry);
        }
        let read = store.read(2, 0, usize::MAX).await.expect("reads");
        assert!(read.iter().eq(written.iter().map(|entry| &**entry)), "round {round}");
        assert!(store.journal_bytes() > 0);
        place.close(store);
        store = place.open().await;
    }
    assert_eq!(seqs(&*store, 2, 197).await, [198, 199, 200]);
    assert_eq!(seqs(&*store, 2, 200).await, [0u64; 0]);
    assert_eq!(seqs(&*store, 2, u64::MAX).await, [0u64; 0]);
    assert_eq!(store.read(2, 10, 1).await.expect("reads").len(), 1, "at least one, however small the budget");
    let some = store.read(2, 0, 2_000).await.expect("reads").len();
    assert!((2..200).contains(&some), "{some} entries for 2000 bytes");
}

async fn an_identical_entry_is_written_once<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let epoch = raised(&*store, 0).await.epoch;
    let one = entry(0, epoch, 1, "a", 1);
    assert_eq!(append(&*store, std::slice::from_ref(&one)).await, [Appended::Applied]);
    assert_eq!(append(&*store, std::slice::from_ref(&one)).await, [Appended::Applied]);
    let impostor = Arc::new(Entry { id: 99, ..Entry::clone(&one) });
    assert_eq!(append(&*store, &[impostor]).await, [Appended::Fenced { applied: Some(false) }]);
    let gap = entry(0, epoch, 3, "a", 3);
    assert_eq!(append(&*store, &[gap]).await, [Appended::Fenced { applied: Some(false) }]);
    assert_eq!(seqs(&*store, 0, 0).await, [1]);
}

async fn groups_that_make_no_sense_are_refused_whole<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let epoch = raised(&*store, 0).await.epoch;
    let unknown = [entry(0, epoch, 1, "a", 1), entry(SHARDS, epoch, 1, "a", 1)];
    assert!(matches!(store.append(&unknown).await, Err(Error::NotApplied(_))));
    let twice = [entry(0, epoch, 1, "a", 1), entry(0, epoch, 1, "a", 1)];
    assert!(matches!(store.append(&twice).await, Err(Error::NotApplied(_))));
    assert!(matches!(store.raise(SHARDS).await, Err(Error::NotApplied(_))));
    assert_eq!(seqs(&*store, 0, 0).await, [0u64; 0]);
    assert_eq!(append(&*store, &[entry(0, epoch, 1, "a", 1)]).await, [Appended::Applied]);
}

async fn a_checkpoint_covers_the_journal<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let epoch = raised(&*store, 0).await.epoch;
    let other = raised(&*store, 1).await.epoch;
    for seq in 1..=10 {
        append(&*store, &[entry(0, epoch, seq, "a", seq as i64), entry(1, other, seq, "b", 1)]).await;
    }
    let before = store.journal_bytes();
    let mark = Mark { producer: 7, through: 3, at_ms: 5, outcomes: vec![] };
    let full = Checkpoint { marks: vec![mark.clone()], ..checkpoint(0, epoch, 6, vec![(id("a"), partial(6, 6))]) };
    for _ in 0..2 {
        store.checkpoint(vec![full.clone(), checkpoint(1, other, 10, vec![])]).await.expect("checkpoints");
        assert_eq!(seqs(&*store, 0, 0).await, [7, 8, 9, 10]);
        assert_eq!(seqs(&*store, 1, 0).await, [0u64; 0]);
    }
    assert!(store.journal_bytes() < before);
    assert_eq!(store.load(0, &id("a")).await.expect("loads"), Some(partial(6, 6)));
    assert_eq!(store.load(1, &id("a")).await.expect("loads"), None);
    let covered = entry(0, epoch, 2, "a", 2);
    assert_eq!(append(&*store, &[covered]).await, [Appended::Fenced { applied: None }]);
    place.close(store);
    let store = place.open().await;
    let again = raised(&*store, 0).await;
    assert_eq!((again.checkpoint_seq, &again.marks[..]), (6, &[mark][..]));
    assert_eq!(raised(&*store, 1).await.checkpoint_seq, 10);
    assert_eq!(seqs(&*store, 0, 6).await, [7, 8, 9, 10]);
    assert_eq!(append(&*store, &[entry(0, again.epoch, 11, "a", 11)]).await, [Appended::Applied]);
    let rest = vec![checkpoint(0, again.epoch, 11, vec![(id("a"), partial(11, 11))])];
    store.checkpoint(rest).await.expect("checkpoints");
    assert_eq!(store.journal_bytes(), 0);
}

async fn a_checkpoint_of_the_past_is_ignored<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let old = raised(&*store, 0).await.epoch;
    append(&*store, &[entry(0, old, 1, "a", 1)]).await;
    append(&*store, &[entry(0, old, 2, "a", 2)]).await;
    let epoch = raised(&*store, 0).await.epoch;
    store.checkpoint(vec![checkpoint(0, old, 2, vec![(id("a"), partial(9, 2))])]).await.expect("is ignored");
    assert_eq!(store.load(0, &id("a")).await.expect("loads"), None);
    assert_eq!(seqs(&*store, 0, 0).await, [1, 2]);
    store.checkpoint(vec![checkpoint(0, epoch, 2, vec![(id("a"), partial(2, 2))])]).await.expect("checkpoints");
    store.checkpoint(vec![checkpoint(0, epoch, 1, vec![(id("a"), partial(1, 1))])]).await.expect("is ignored");
    assert_eq!(store.load(0, &id("a")).await.expect("loads"), Some(partial(2, 2)));
    assert_eq!(raised(&*store, 0).await.checkpoint_seq, 2);
    assert!(matches!(store.checkpoint(vec![checkpoint(SHARDS, 1, 1, vec![])]).await, Err(Error::NotApplied(_))));
}

async fn keys_are_found_until_they_expire<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let epoch = raised(&*store, 0).await.epoch;
    for seq in 1..=2 {
        append(&*store, &[entry(0, epoch, seq, "a", 1)]).await;
    }
    let keys = vec![record("a", "k1", 100), record("a", "k2", 200), record("b", "k1", 300), record("a", "k4", 50)];
    store.checkpoint(vec![Checkpoint { keys, ..checkpoint(0, epoch, 1, vec![]) }]).await.expect("checkpoints");
    // A key that is used again after its window has a newer record.
    let keys = vec![record("a", "k4", 400)];
    store.checkpoint(vec![Checkpoint { keys, ..checkpoint(0, epoch, 2, vec![]) }]).await.expect("checkpoints");
    let find = async |counter: &str, key: &str| {
        store.load_key(0, &id(counter), key).await.expect("loads").map(|found| found.at_ms)
    };
    assert_eq!(
        (find("a", "k1").await, find("b", "k1").await, find("a", "k4").await),
        (Some(100), Some(300), Some(400))
    );
    assert_eq!(store.load_key(0, &id("a"), "k2").await.expect("loads"), Some(record("a", "k2", 200)));
    assert_eq!((find("b", "k2").await, store.load_key(1, &id("a"), "k1").await.expect("loads")), (None, None));
    let dropped = usize::from(!F::EXPIRES_BY_ITSELF);
    assert_eq!(store.expire_keys(301, 0).await.expect("expires"), 0);
    assert_eq!(store.expire_keys(300, 1).await.expect("expires"), dropped);
    assert_eq!(store.expire_keys(300, 100).await.expect("expires"), dropped);
    assert_eq!(store.expire_keys(300, 100).await.expect("expires"), 0);
    // A store of the other kind goes by its own time.
    let left = if F::EXPIRES_BY_ITSELF { (Some(100), Some(200)) } else { (None, None) };
    assert_eq!((find("a", "k1").await, find("a", "k2").await), left);
    assert_eq!((find("b", "k1").await, find("a", "k4").await), (Some(300), Some(400)));
}

async fn lists_are_in_order_and_paged<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let mut epochs = Vec::new();
    for shard in 0..SHARDS {
        epochs.push(raised(&*store, shard).await.epoch);
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(F::ROUNDS));
    let mut all = std::collections::BTreeMap::<String, Vec<u32>>::new();
    let mut seq = 0;
    for _ in 0..F::ROUNDS {
        let ids = prop::collection::vec(("[ab/é]{1,5}", 0..SHARDS), 0..12);
        let tree = ids.new_tree(&mut runner).expect("generates");
        seq += 1;
        for shard in 0..SHARDS {
            append(&*store, &[entry(shard, epochs[shard as usize], seq, "x", 1)]).await;
            let here = proptest::strategy::ValueTree::current(&tree);
            let here: Vec<String> = here.into_iter().filter(|&(_, on)| on == shard).map(|(text, _)| text).collect();
            let partials = here.iter().map(|text| (id(text), partial(i64::from(shard), seq))).collect();
            store
                .checkpoint(vec![checkpoint(shard, epochs[shard as usize], seq, partials)])
                .await
                .expect("checkpoints");
            for text in here {
                let shards = all.entry(text).or_default();
                shards.retain(|&known| known != shard);
                shards.push(shard);
                shards.sort_unstable();
            }
        }
        for prefix in ["", "a", "ab", "é", "/", "zz"] {
            let mut expected: Vec<&String> = all.keys().filter(|text| text.starts_with(prefix)).collect();
            expected.sort_by(|a, b| list_order(a, b));
            for page in [1, 7, 1000] {
                let mut found = Vec::new();
                let mut after = None;
                loop {
                    let listed = store.list(prefix, after.as_ref(), page).await.expect("lists");
                    assert!(listed.len() <= page);
                    let Some(last) = listed.last() else { break };
                    after = Some(last.id.clone());
                    found.extend(listed);
                }
                let ids: Vec<&str> = found.iter().map(|listed| listed.id.as_str()).collect();
                assert_eq!(ids, expected);
                for listed in &found {
                    let shards: Vec<u32> = listed.partials.iter().map(|&(shard, _)| shard).collect();
                    assert_eq!(shards, all[listed.id.as_str()]);
                }
            }
        }
        let outside = store.list("a", Some(&id("b")), 10).await.expect("lists");
        assert!(outside.iter().all(|listed| list_order(listed.id.as_str(), "b").is_gt()));
    }
    assert_eq!(store.list("", None, 0).await.expect("lists"), []);
}

async fn what_was_seen_last_of_a_counter_is_kept<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let part = |shard, seq, value, at_ms| RollupPart { shard, seq, value, exists: seq > 0, at_ms };
    let (counter, put) = (id("a"), async |parts: &[RollupPart]| store.put_rollup(&id("a"), parts).await.expect("puts"));
    put(&[part(2, 7, -5, 100), part(0, 0, 0, 100)]).await;
    // Late: older than what is there, by sequence or by confirmation.
    put(&[part(2, 6, 3, 900), part(0, 0, 0, 90)]).await;
    // The same, confirmed later.
    put(&[part(2, 7, -5, 120)]).await;
    put(&[part(0, 3, 1, 80)]).await;
    store.put_rollup(&id("ab"), &[part(1, 1, 1, 1)]).await.expect("puts");
    let kept = if F::KEEPS_ROLLUPS { vec![part(0, 3, 1, 80), part(2, 7, -5, 120)] } else { Vec::new() };
    assert_eq!(store.rollup(&counter).await.expect("reads"), kept);
    let gone = RollupPart { exists: false, value: 0, ..part(2, 8, 0, 130) };
    put(&[gone]).await;
    assert_eq!(store.rollup(&counter).await.expect("reads").last(), F::KEEPS_ROLLUPS.then_some(&gone));
    assert!(store.rollup(&id("nobody")).await.expect("reads").is_empty());
}

async fn standing_by_sees_what_the_owner_writes<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let epoch = raised(&*store, 0).await.epoch;
    for seq in 1..=3 {
        append(&*store, &[entry(0, epoch, seq, "a", 1)]).await;
    }
    let mark = Mark { producer: 5, through: 1, at_ms: 9, outcomes: Vec::new() };
    let covered = Checkpoint { marks: vec![mark.clone()], ..checkpoint(0, epoch, 2, vec![(id("a"), partial(1, 2))]) };
    store.checkpoint(vec![covered]).await.expect("checkpoints");
    let standing = store.standing(0).await.expect("stands by");
    assert_eq!(standing, Raised { epoch, checkpoint_seq: 2, marks: vec![mark] });
    assert_eq!(seqs(&*store, 0, 2).await, [3]);
    // The owner goes on: nothing was raised.
    assert_eq!(append(&*store, &[entry(0, epoch, 4, "a", 1)]).await, [Appended::Applied]);
    store.release(0, epoch);
    assert_eq!(seqs(&*store, 0, 3).await, [4]);
    assert!(raised(&*store, 0).await.epoch > epoch);
    assert_eq!(seqs(&*store, 0, 2).await, [3, 4]);
}

async fn small_values_are_kept_and_scanned<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    for (space, key) in
        [("rules", "a"), ("rules", "ab"), ("rules", "b"), ("rule", "sa"), ("rules2", "a"), ("", "rules")]
    {
        store.put(space, key, format!("{space}:{key}").as_bytes()).await.expect("puts");
    }
    store.put("rules", "b", b"").await.expect("overwrites");
    store.delete("rules", "missing").await.expect("is no error");
    place.close(store);
    let store = place.open().await;
    assert_eq!(store.get("rules", "a").await.expect("gets"), Some(b"rules:a".to_vec()));
    assert_eq!(store.get("rules", "b").await.expect("gets"), Some(vec![]));
    assert_eq!(store.get("rule", "a").await.expect("gets"), None);
    let keys = async |prefix: &str, limit| {
        let found = store.scan("rules", prefix, limit).await.expect("scans");
        found.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(keys("", 10).await, ["a", "ab", "b"]);
    assert_eq!(keys("a", 10).await, ["a", "ab"]);
    assert_eq!(keys("", 2).await, ["a", "ab"]);
    assert_eq!(keys("", 0).await, [""; 0]);
    for bytes in [100_000, 2048, 2049, 5_000, 10] {
        let large: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        store.put("rules", "b", &large).await.expect("puts");
        store.put("rules", "c", &large).await.expect("puts");
        assert_eq!(store.get("rules", "b").await.expect("gets").as_ref(), Some(&large));
        assert_eq!(store.scan("rules", "c", 1).await.expect("scans"), [("c".to_owned(), large)]);
        store.delete("rules", "c").await.expect("deletes");
        assert_eq!(store.get("rules", "c").await.expect("gets"), None);
    }
    store.delete("rules", "a").await.expect("deletes");
    assert_eq!(keys("", 10).await, ["ab", "b"]);
}

async fn recovering_fences_and_keeps_everything<F: Fixture>(place: &mut F) {
    let store = place.open().await;
    let epoch = raised(&*store, 0).await.epoch;
    append(&*store, &[entry(0, epoch, 1, "a", 1)]).await;
    append(&*store, &[entry(0, epoch, 2, "a", 2)]).await;
    store.checkpoint(vec![checkpoint(0, epoch, 1, vec![(id("a"), partial(1, 1))])]).await.expect("checkpoints");
    store.put("s", "k", b"v").await.expect("puts");
    for _ in 0..2 {
        store.recover().await.expect("recovers");
    }
    assert_eq!(append(&*store, &[entry(0, epoch, 3, "a", 3)]).await, [Appended::Fenced { applied: Some(false) }]);
    let again = raised(&*store, 0).await;
    assert!(again.epoch > epoch);
    assert_eq!(again.checkpoint_seq, 1);
    assert_eq!(seqs(&*store, 0, 0).await, [2]);
    assert_eq!(store.load(0, &id("a")).await.expect("loads"), Some(partial(1, 1)));
    assert_eq!(store.get("s", "k").await.expect("gets"), Some(b"v".to_vec()));
    assert_eq!(append(&*store, &[entry(0, again.epoch, 3, "a", 3)]).await, [Appended::Applied]);
}

macro_rules! suite {
    ($name:ident, $fixture:ty, [$($test:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                if let Some(mut place) = <$fixture>::new().await {
                    super::$test(&mut place).await;
                    place.end().await;
                }
            })*
        }
    };
    ($name:ident, $fixture:ty) => {
        suite!($name, $fixture, [
            epochs_rise_and_fence,
            a_fenced_entry_does_not_keep_others_out,
            what_is_appended_is_read,
            an_identical_entry_is_written_once,
            groups_that_make_no_sense_are_refused_whole,
            a_checkpoint_covers_the_journal,
            a_checkpoint_of_the_past_is_ignored,
            keys_are_found_until_they_expire,
            lists_are_in_order_and_paged,
            small_values_are_kept_and_scanned,
            what_was_seen_last_of_a_counter_is_kept,
            standing_by_sees_what_the_owner_writes,
            recovering_fences_and_keeps_everything,
        ]);
    };
}

suite!(memory, InMemory);
suite!(embedded, OnDisk);
suite!(cassandra, OnCassandra);
