use std::io::Write;

use parking_lot::Mutex;

use super::*;
use crate::shard::entry::Mark;

/// Where the next works stop.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Option<Step>>);

impl Faults {
    pub(super) fn reached(&self, step: Step) -> Result<(), Error> {
        if *self.0.lock() == Some(step) { Err(Error::NotApplied(format!("stopped at {step:?}"))) } else { Ok(()) }
    }

    fn stop_at(&self, step: Option<Step>) {
        *self.0.lock() = step;
    }
}

/// Where a Cassandra for tests answers, as `HOST:PORT`.
const ADDRESS: &str = "QUIPU_TEST_CASSANDRA";

/// The schema is changed by one test at a time: servers take such changes one after the other anyway.
static SCHEMA: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A fresh keyspace on a running Cassandra.
pub struct Keyspace(Settings);

impl Keyspace {
    /// None, said aloud, when there is no Cassandra.
    pub async fn new(shards: u32) -> Option<Self> {
        let Ok(address) = std::env::var(ADDRESS) else {
            // The handle, not the macro: a test that passes does not show what the macro prints.
            let said = format!("skipped: {ADDRESS} does not say where a Cassandra answers (HOST:PORT)\n");
            let _ = std::io::stderr().write_all(said.as_bytes());
            return None;
        };
        let name = format!("quipu_test_{:016x}", rand::random::<u64>());
        let settings = Settings { replication_factor: 1, ..Settings::new(vec![address], name, shards) };
        let _alone = SCHEMA.lock().await;
        assert_eq!(init(&settings).await.expect("initialises"), Initialised::Created);
        Some(Self(settings))
    }

    pub async fn open(&self, change: impl FnOnce(&mut Settings)) -> Arc<CassandraStore> {
        let mut settings = self.0.clone();
        change(&mut settings);
        open(settings).await.expect("opens")
    }

    pub async fn end(self) {
        let _alone = SCHEMA.lock().await;
        let cql = connect::connect(&self.0).await.expect("connects");
        let mut drop = scylla::statement::Statement::new(format!("DROP KEYSPACE {}", self.0.cluster));
        drop.set_request_timeout(Some(limits::CASSANDRA_SCHEMA_TIMEOUT));
        cql.session.query_unpaged(drop, ()).await.expect("drops the keyspace");
    }
}

mod ownership;
mod rotation;
mod unknown;

use std::time::Duration;

use crate::store::conformance::{checkpoint, entry, id, partial};

/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);

async fn append_one(store: &CassandraStore, entry: &Arc<Entry>) -> Appended {
    store.append(std::slice::from_ref(entry)).await.expect("the server answers")[0]
}

async fn raise(store: &CassandraStore) -> u64 {
    store.raise(0).await.expect("raises").epoch
}

async fn seqs(store: &CassandraStore) -> Vec<u64> {
    store.read(0, 0, usize::MAX).await.expect("reads").iter().map(|entry| entry.seq).collect()
}

/// Appends to shard 0, each of some 20 bytes.
async fn fill(store: &CassandraStore, epoch: u64, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        assert_eq!(append_one(store, &entry(0, epoch, seq, "a", seq as i64)).await, Appended::Applied, "entry {seq}");
    }
}

/// How many segments of shard 0 there are, and their ids.
async fn segments(store: &CassandraStore) -> Vec<String> {
    store.segments_of(0).await.expect("reads").2.into_iter().map(|segment| segment.id).collect()
}

#[tokio::test]
async fn a_start_that_cannot_work_is_refused_with_a_sentence() {
    let Some(place) = Keyspace::new(2).await else { return };
    let refused = async |change: fn(&mut Settings)| {
        let mut settings = place.0.clone();
        change(&mut settings);
        match open(settings).await {
            Err(Error::Refused(why)) => why,
            Err(why) => panic!("another error: {why}"),
            Ok(_) => panic!("it opened"),
        }
    };
    assert!(refused(|settings| settings.shards = 3).await.contains("set `shards` to 2"));
    assert!(refused(|settings| settings.cluster = "quipu_nowhere".into()).await.contains("`quipu store init`"));
    assert!(refused(|settings| settings.cluster = "a; DROP".into()).await.contains("cluster name"));
    let unreachable = refused(|settings| {
        settings.contact_points = vec!["127.0.0.1:1".into()];
        settings.start_timeout = Duration::from_millis(300);
    });
    let unreachable = unreachable.await;
    assert!(unreachable.contains("127.0.0.1:1"), "{unreachable}");
    assert_eq!(init(&place.0).await.expect("again"), Initialised::AlreadyThere);
    let store = place.open(|_| ()).await;
    store.cql.session.query_unpaged("UPDATE meta SET value = 99 WHERE key = 'schema'", ()).await.expect("writes");
    assert!(refused(|_| ()).await.contains("schema version 99"));
    assert!(matches!(init(&place.0).await, Err(Error::Refused(why)) if why.contains("schema version 99")));
    drop(store);
    place.end().await;
}

#[tokio::test]
async fn an_older_schema_is_brought_forward_and_keeps_its_data() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(|_| ()).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=2).await;
    let query = async |text: &str| store.cql.session.query_unpaged(text, ()).await.map(drop).expect("runs");
    query("DROP TABLE rollups").await;
    query("UPDATE meta SET value = 1 WHERE key = 'schema' IF EXISTS").await;
    let refused = open(place.0.clone()).await.err().map(|why| why.to_string()).unwrap_or_default();
    assert!(refused.contains("schema version 1") && refused.contains("`quipu store init`"), "{refused}");
    assert_eq!(init(&place.0).await.expect("migrates"), Initialised::Migrated { from: 1 });
    assert_eq!(init(&place.0).await.expect("again"), Initialised::AlreadyThere);
    let migrated = place.open(|_| ()).await;
    assert_eq!(migrated.rollup(&id("a")).await.expect("the table is there"), []);
    assert_eq!(migrated.read(0, 0, usize::MAX).await.expect("reads").len(), 2);
    drop((store, migrated));
    place.end().await;
}

#[tokio::test]
async fn a_changed_partial_is_damage() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(|_| ()).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=1).await;
    store.checkpoint(vec![checkpoint(0, epoch, 1, vec![(id("a"), partial(7, 1))])]).await.expect("checkpoints");
    let rows = store.cql.session.query_unpaged("SELECT bucket FROM partials", ()).await.expect("reads");
    let (bucket,) = rows.into_rows_result().expect("rows").first_row::<(i32,)>().expect("one");
    let change = "UPDATE partials SET value = 8 WHERE shard = 0 AND bucket = ? AND counter_id = ?";
    store.cql.session.query_unpaged(change, (bucket, &b"a\xFF"[..])).await.expect("writes");
    assert!(matches!(store.load(0, &id("a")).await, Err(Error::Damaged(why)) if why.contains("'a'")));
    assert!(matches!(store.list("", None, 9).await, Err(Error::Damaged(_))));
    drop(store);
    place.end().await;
}

#[tokio::test]
async fn journal_bytes_are_known_after_reopening() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(|settings| settings.segment_bytes = 60).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=40).await;
    let written = store.journal_bytes();
    assert!(segments(&store).await.len() > 3);
    drop(store);
    let store = place.open(|settings| settings.segment_bytes = 60).await;
    assert_eq!(store.journal_bytes(), 0, "nothing is owned yet");
    let epoch = raise(&store).await;
    assert_eq!(store.journal_bytes(), written);
    assert_eq!(seqs(&store).await, (1..=40).collect::<Vec<_>>());
    store.checkpoint(vec![checkpoint(0, epoch, 40, vec![(id("a"), partial(40, 40))])]).await.expect("checkpoints");
    assert_eq!(store.journal_bytes(), 0);
    assert_eq!(segments(&store).await.len(), 1);
    drop(store);
    place.end().await;
}

/// A checkpoint that stopped anywhere is written again, and marks come with their position or not at all.
#[tokio::test]
async fn a_checkpoint_may_stop_anywhere() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(|_| ()).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=9).await;
    let outcomes: Vec<_> = (0..9_000)
        .map(|seq| (seq, crate::shard::op::Outcome::Applied { value: i64::MIN + seq as i64, replayed: false }))
        .collect();
    let marks: Vec<Mark> =
        (0..8).map(|producer| Mark { producer, through: 9, at_ms: 5, outcomes: outcomes.clone() }).collect();
    let wanted =
        |seq| Checkpoint { marks: marks.clone(), ..checkpoint(0, epoch, seq, vec![(id("a"), partial(1, seq))]) };
    for (step, seq, holds) in [(Step::MarksWritten, 4, 0), (Step::PositionMoved, 6, 6)] {
        store.faults.stop_at(Some(step));
        assert!(matches!(store.checkpoint(vec![wanted(seq)]).await, Err(Error::NotApplied(_))));
        store.faults.stop_at(None);
        assert_eq!(store.shard_row(0).await.expect("reads").position, holds);
    }
    store.checkpoint(vec![wanted(9)]).await.expect("checkpoints");
    let other = place.open(|_| ()).await;
    let raised = other.raise(0).await.expect("raises");
    assert_eq!((raised.checkpoint_seq, raised.marks == marks), (9, true));
    assert!(other.shard_row(0).await.expect("reads").mark_chunks > 1, "they fill several rows");
    drop((store, other));
    place.end().await;
}

/// Appends a second and their times, by streams under way at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, checks nothing"]
async fn figures() {
    const STREAMS_MAX: u32 = 64;
    let Some(place) = Keyspace::new(STREAMS_MAX).await else { return };
    println!("streams  appends/s  operations/s  p50 ms  p99 ms");
    for streams in [1, 3, 12, STREAMS_MAX] {
        let store = place.open(|_| ()).await;
        let until = std::time::Instant::now() + Duration::from_secs(5);
        let mut tasks = tokio::task::JoinSet::new();
        for shard in 0..streams {
            let store = store.clone();
            tasks.spawn(async move {
                let raised = store.raise(shard).await.expect("raises");
                let entries = store.read(shard, 0, usize::MAX).await.expect("reads");
                let (mut seq, mut times) = (entries.last().map_or(0, |entry| entry.seq), Vec::new());
                while std::time::Instant::now() < until {
                    seq += 1;
                    let mut one = Entry::clone(&entry(shard, raised.epoch, seq, "a", 1));
                    let change = one.changes[0].clone();
                    one.changes = (0..64)
                        .map(|at| crate::shard::entry::Change {
                            counter: id(&format!("stock/item-{at:08}")),
                            ..change.clone()
                        })
                        .collect();
                    let began = std::time::Instant::now();
                    assert_eq!(append_one(&store, &Arc::new(one)).await, Appended::Applied);
                    times.push(began.elapsed());
                }
                times
            });
        }
        let mut times = tasks.join_all().await.concat();
        times.sort_unstable();
        let per_second = times.len() / 5;
        let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
        println!("{streams:7}  {per_second:9}  {:12}  {:6.2}  {:6.2}", per_second * 64, at(50), at(99));
    }
    place.end().await;
}
