//! The threads on a memory store, with the faults that it can be told to have.

use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::counter::{Bounds, key_hash};
use crate::node::now_ms;
use crate::shard::partials::Resident;
use crate::shard::{Kind, Origin, Outcome, Refusal};
use crate::store::memory::{Disk, Fault, MemoryStore};

pub(crate) const SHARDS: u32 = 3;
pub(super) const SETTINGS: Settings =
    Settings { key_window: Duration::from_secs(3600), replay_bytes: 1 << 20, resident_max: 1_000_000 };
/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node of one serving thread, which is the test's.
pub(crate) struct Node {
    pub commits: Arc<Commits>,
    pub store: Arc<MemoryStore>,
    threads: Threads,
    inbox: Arc<Inbox>,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn open(disk: Disk) -> Self {
        let store = Arc::new(MemoryStore::open(disk));
        let inbox = Arc::new(Inbox::default());
        let commits = Arc::new(Commits::new(SHARDS, vec![inbox.clone()]));
        let as_store: Arc<dyn Store> = store.clone();
        let threads = spawn(&commits, &as_store, SETTINGS).expect("a memory store opens");
        Self::with(commits, store, threads, inbox)
    }

    /// One of several nodes on one store, without shards at first.
    pub fn on(store: &Arc<MemoryStore>) -> Self {
        let inbox = Arc::new(Inbox::default());
        let commits = Arc::new(Commits::new(SHARDS, vec![inbox.clone()]));
        let as_store: Arc<dyn Store> = store.clone();
        let threads = spawn_lanes(&commits, &as_store, SETTINGS, 2).expect("the threads start");
        Self::with(commits, store.clone(), threads, inbox)
    }

    fn with(commits: Arc<Commits>, store: Arc<MemoryStore>, threads: Threads, inbox: Arc<Inbox>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        Self { commits, store, threads, inbox, runtime }
    }

    fn new() -> Self {
        Self::open(Disk::new(SHARDS))
    }

    pub fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        let within = async { tokio::time::timeout(PATIENCE, what).await };
        self.runtime.block_on(within).expect("done in time")
    }

    /// Submits as soon as the node serves, and waits for every answer.
    pub fn ask(&self, ops: Vec<Op>) -> Vec<Outcome> {
        let count = ops.len();
        self.wait(async {
            while !self.commits.serving() {
                tokio::task::yield_now().await;
            }
            self.commits.submit(ops.into_iter()).expect("there is room");
            let mut outcomes = vec![None; count];
            let mut answers = Vec::new();
            while outcomes.iter().any(Option::is_none) {
                self.inbox.take(&mut answers).await;
                for answer in answers.drain(..) {
                    let answered = outcomes[answer.index as usize].replace(answer.outcome);
                    assert_eq!(answered, None, "one answer each");
                }
            }
            outcomes.into_iter().flatten().collect()
        })
    }

    pub fn add(&self, id: &str, amount: i64) -> Outcome {
        self.ask(vec![add(id, amount, 0)])[0]
    }

    pub fn value(&self, id: &str) -> Option<i64> {
        let table = &self.commits.tables[shard(id) as usize];
        match table.partials.read().get(key_hash(id), &counter(id)) {
            Resident::Present(partial) if !partial.removed => Some(partial.value),
            Resident::Unloaded | Resident::Missing | Resident::Present(_) => None,
        }
    }

    pub fn stop(self) -> Disk {
        self.commits.stop();
        self.threads.join().expect("the threads end well");
        self.store.disk()
    }
}

pub(super) fn counter(id: &str) -> Id {
    Id::new(id).expect("valid")
}

pub(super) fn shard(id: &str) -> u32 {
    crate::counter::candidates::home(key_hash(id), SHARDS)
}

pub(super) fn op(id: &str, kind: Kind, key: Option<&str>, index: u32) -> Op {
    let origin = Origin::Local { ticket: ticket(0, 1), index };
    let key = key.map(Into::into);
    Op { shard: shard(id), counter: counter(id), hash: key_hash(id), kind, key, origin, at_ms: now_ms() }
}

pub(super) fn add(id: &str, amount: i64, index: u32) -> Op {
    op(id, Kind::Add { amount, bounds: Bounds::NONE }, None, index)
}

pub(super) fn keyed(id: &str, amount: i64, key: &str, index: u32) -> Op {
    op(id, Kind::Add { amount, bounds: Bounds::NONE }, Some(key), index)
}

pub(super) fn applied(value: i64) -> Outcome {
    Outcome::Applied { value, replayed: false }
}

#[test]
fn what_is_acknowledged_survives_a_crash() {
    let node = Node::new();
    assert_eq!(node.add("a", 5), applied(5));
    assert_eq!(node.ask(vec![add("a", 1, 0), add("b", 2, 1), add("a", -10, 2)]), [applied(6), applied(2), applied(-4)]);
    let node = Node::open(node.store.crash());
    assert_eq!((node.value("a"), node.value("b")), (Some(-4), Some(2)));
    assert_eq!(node.add("a", 1), applied(-3));
}

#[test]
fn a_stop_leaves_everything_in_the_checkpoint() {
    let node = Node::new();
    node.ask((0..100).map(|i| add(&format!("c{i}"), i64::from(i), i)).collect());
    let disk = node.stop();
    let node = Node::open(disk);
    assert_eq!(node.store.journal_bytes(), 0);
    assert_eq!(node.value("c7"), None, "nothing is resident before it is asked for");
    assert_eq!(node.add("c7", 1), applied(8));
}

#[test]
fn a_key_counts_once_within_an_entry_after_it_and_after_a_restart() {
    let node = Node::new();
    let outcomes = node.ask(vec![keyed("a", 5, "k", 0), keyed("a", 5, "k", 1), keyed("a", 6, "k", 2)]);
    let again = Outcome::Applied { value: 5, replayed: true };
    assert_eq!(outcomes, [applied(5), again, Outcome::Refused(Refusal::KeyReused)]);
    assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [again]);
    assert_eq!(node.ask(vec![keyed("b", 5, "k", 0)]), [applied(5)], "keys are scoped to the counter");
    let node = Node::open(node.store.crash());
    assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [again], "from the journal");
    let node = Node::open(node.stop());
    assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [again], "from the checkpoint");
}

#[test]
fn a_key_counts_once_whatever_the_clock_of_its_retry_says() {
    let node = Node::new();
    let at = |at_ms, index| Op { at_ms, ..keyed("a", 1, "k", index) };
    let (now_ms, day_ms) = (now_ms(), 24 * 3_600_000);
    let again = Outcome::Applied { value: 1, replayed: true };
    let outcomes = node.ask(vec![at(now_ms, 0), at(now_ms + 2 * day_ms, 1), at(0, 2), at(u64::MAX, 3)]);
    assert_eq!(outcomes, [applied(1), again, again, again]);
    let node = Node::open(node.stop());
    assert_eq!(node.ask(vec![at(now_ms + 2 * day_ms, 0), at(0, 1)]), [again, again], "from the checkpoint");
}

#[test]
fn a_refused_entry_leaves_no_trace() {
    let node = Node::new();
    node.add("a", 1);
    node.store.inject(Fault::NotApplied);
    let ops = vec![keyed("a", 5, "k", 0), op("a", Kind::Create { name: None }, None, 1)];
    assert_eq!(node.ask(ops), [Outcome::NotApplied, Outcome::NotApplied]);
    assert_eq!(node.value("a"), Some(1));
    assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [applied(6)], "the key was not used up");
    let node = Node::open(node.store.crash());
    assert_eq!(node.value("a"), Some(6));
}

#[test]
fn a_lost_answer_is_settled_by_sending_the_entry_again() {
    let node = Node::new();
    for fault in [Fault::UnknownApplied, Fault::UnknownNotApplied] {
        let before = node.value("a").unwrap_or(0);
        node.store.inject(fault);
        assert_eq!(node.add("a", 3), applied(before + 3));
    }
    // After an attempt without an answer, one that is certainly not written settles nothing.
    node.store.inject(Fault::UnknownApplied);
    node.store.inject(Fault::NotApplied);
    assert_eq!(node.add("a", 1), applied(7));
    assert_eq!(node.commits.stats.recoveries.load(Ordering::Relaxed), 0);
}

#[test]
fn after_a_broken_write_the_table_is_what_is_on_disk() {
    for on_disk in [true, false] {
        let node = Node::new();
        node.ask(vec![add("a", 1, 0), add("b", 1, 1)]);
        let epoch = node.commits.tables[shard("a") as usize].epoch.load(Ordering::Acquire);
        node.store.inject(Fault::Broken { applied: on_disk });
        assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [Outcome::Unknown]);
        let value = if on_disk { 6 } else { 1 };
        let retried = Outcome::Applied { value: 6, replayed: on_disk };
        node.wait(async {
            while !node.commits.serving() {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!((node.value("a"), node.value("b")), (Some(value), Some(1)));
        assert!(node.commits.tables[shard("a") as usize].epoch.load(Ordering::Acquire) > epoch);
        assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [retried]);
    }
}

#[test]
fn a_checkpoint_moves_everything_to_the_store() {
    let node = Node::new();
    node.ask(vec![keyed("a", 5, "k", 0), add("b", 2, 1), op("b", Kind::Remove, None, 2)]);
    node.commits.checkpoint_due.notify_one();
    node.wait(async {
        while node.store.journal_bytes() > 0
            || node.commits.tables.iter().any(|table| table.partials.read().dirty_len() > 0)
        {
            tokio::task::yield_now().await;
        }
        let recent = node.commits.recent_key(shard("a"), key_hash("a"), counter("a"), "k").await;
        assert_eq!(recent.expect("it is served").record, None, "the store has it now");
        let stored = node.store.load_key(shard("a"), &counter("a"), "k").await.expect("open");
        assert_eq!(stored.map(|record| record.value), Some(5));
    });
    assert_eq!(node.ask(vec![keyed("a", 5, "k", 0)]), [Outcome::Applied { value: 5, replayed: true }]);
    assert_eq!(node.add("b", 1), applied(1), "a removed counter starts from 0");
}

#[test]
fn a_recent_key_is_answered_after_what_was_submitted_before() {
    let node = Node::new();
    node.commits.submit(std::iter::once(keyed("a", 5, "k", 0))).expect("there is room");
    let found = node.wait(node.commits.recent_key(shard("a"), key_hash("a"), counter("a"), "k"));
    assert_eq!(found.expect("it is served").record.map(|record| record.value), Some(5));
    let commits = node.commits.clone();
    node.stop();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let gone = runtime.block_on(commits.recent_key(shard("a"), key_hash("a"), counter("a"), "k"));
    assert_eq!(gone.err(), Some(Rejected::Stopped), "no proof of anything");
}

#[test]
fn create_add_and_remove_in_one_entry_follow_their_order() {
    let node = Node::new();
    let create = |index| op("a", Kind::Create { name: Some("likes".into()) }, None, index);
    let remove = |index| op("a", Kind::Remove, None, index);
    let exists = Outcome::Refused(Refusal::Exists);
    let ops = vec![
        remove(0),
        create(1),
        create(2),
        add("a", 3, 3),
        remove(4),
        add("a", 4, 5),
        create(6),
        remove(7),
        create(8),
    ];
    let expected = [applied(0), applied(0), exists, applied(3), applied(0), applied(4), exists, applied(0), applied(0)];
    assert_eq!(node.ask(ops), expected);
    let partials = node.commits.tables[shard("a") as usize].partials.read();
    let Resident::Present(partial) = partials.get(key_hash("a"), &counter("a")) else {
        panic!("it was created");
    };
    assert_eq!((partial.generation, partial.name.as_deref(), partial.value), (2, Some("likes"), 0));
}

#[test]
fn bounds_hold_within_an_entry() {
    let node = Node::new();
    let bounds = Bounds { min: Some(0), max: Some(2) };
    let take = |amount, index| op("stock", Kind::Add { amount, bounds }, None, index);
    let outcomes = node.ask(vec![take(2, 0), take(-1, 1), take(-2, 2), take(-1, 3), take(-1, 4), take(3, 5)]);
    let refused = |refused: crate::counter::Refused| Outcome::Refused(refused.into());
    let below = refused(crate::counter::Refused::BelowMin { min: 0 });
    assert_eq!(outcomes[..2], [applied(2), applied(1)]);
    assert_eq!(outcomes[2..5], [below, applied(0), below]);
    assert_eq!(outcomes[5], refused(crate::counter::Refused::AboveMax { max: 2 }));
}

#[test]
fn the_queue_has_a_limit_and_gives_its_room_back() {
    let node = Node::new();
    assert_eq!(node.commits.reserve(limits::QUEUE_OPS_MAX), Ok(()));
    assert_eq!(node.commits.submit(std::iter::once(add("a", 1, 0))), Err(Rejected::Full));
    node.commits.queued.store(0, Ordering::Relaxed);
    node.ask((0..1000).map(|index| add("a", 1, index)).collect());
    assert_eq!(node.value("a"), Some(1000));
    node.wait(async {
        while node.commits.queued() > 0 {
            tokio::task::yield_now().await;
        }
    });
    assert!(node.commits.tables.iter().all(|table| table.queued.load(Ordering::Relaxed) == 0));
}

#[test]
fn a_stop_answers_everything_submitted_before() {
    let node = Node::new();
    let (commits, inbox) = (node.commits.clone(), node.inbox.clone());
    let (tell, told) = mpsc::channel();
    let submitter = std::thread::spawn(move || {
        let mut taken = 0u32;
        loop {
            match commits.submit(std::iter::once(add("a", 1, taken))) {
                Ok(()) => taken += 1,
                Err(Rejected::Full) => std::thread::yield_now(),
                Err(_) => return taken,
            }
            if taken == 1_000 {
                tell.send(()).expect("the test waits");
            }
        }
    });
    told.recv_timeout(PATIENCE).expect("it submits");
    let disk = node.stop();
    let taken = submitter.join().expect("no panic");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let answered = runtime.block_on(async {
        let (mut answered, mut answers) = (Vec::new(), Vec::new());
        while (answered.len() as u32) < taken {
            tokio::time::timeout(PATIENCE, inbox.take(&mut answers)).await.expect("every operation is answered");
            answered.append(&mut answers);
        }
        answered
    });
    assert!(answered.iter().all(|answer| matches!(answer.outcome, Outcome::Applied { .. })), "none was dropped");
    let node = Node::open(disk);
    assert_eq!(node.add("a", 0), applied(i64::from(taken)));
}

#[test]
fn clean_counters_are_forgotten_when_there_are_too_many() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(SHARDS));
    let inbox = Arc::new(Inbox::default());
    let commits = Arc::new(Commits::new(SHARDS, vec![inbox.clone()]));
    let threads = spawn(&commits, &store, Settings { resident_max: 10, ..SETTINGS }).expect("a memory store opens");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let round = |value: i64| {
        for i in 0..100 {
            commits.submit(std::iter::once(add(&format!("c{i}"), 1, 0))).expect("there is room");
            let mut answers = Vec::new();
            let waiting = async { tokio::time::timeout(PATIENCE, inbox.take(&mut answers)).await };
            runtime.block_on(waiting).expect("in time");
            assert_eq!(answers[0].outcome, applied(value), "c{i}");
        }
        commits.checkpoint_due.notify_one();
        let clean = async {
            while commits.tables.iter().any(|table| table.partials.read().dirty_len() > 0) {
                tokio::task::yield_now().await;
            }
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, clean).await }).expect("in time");
    };
    (1..4).for_each(round);
    assert!(commits.stats.evictions.load(Ordering::Relaxed) > 0);
    commits.stop();
    threads.join().expect("the threads end well");
}

#[test]
fn a_shard_may_use_what_others_leave() {
    let share = 10;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(SHARDS));
    let inbox = Arc::new(Inbox::default());
    let commits = Arc::new(Commits::new(SHARDS, vec![inbox.clone()]));
    let threads = spawn(&commits, &store, Settings { resident_max: share, ..SETTINGS }).expect("a memory store opens");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let add_to_one = |count: usize| {
        let ids = (0..).map(|i| format!("c{i}")).filter(|id| shard(id) == 0).take(count);
        for id in ids {
            commits.submit(std::iter::once(add(&id, 1, 0))).expect("there is room");
            let waiting = async { tokio::time::timeout(PATIENCE, inbox.take(&mut Vec::new())).await };
            runtime.block_on(waiting).expect("in time");
        }
        commits.checkpoint_due.notify_one();
        let clean = async {
            while commits.tables[0].partials.read().dirty_len() > 0 {
                tokio::task::yield_now().await;
            }
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, clean).await }).expect("in time");
    };
    add_to_one(share * SHARDS as usize);
    add_to_one(1);
    assert_eq!(commits.stats.evictions.load(Ordering::Relaxed), 0, "as many as the node may have");
    add_to_one(share * SHARDS as usize + 5);
    add_to_one(1);
    assert!(commits.tables[0].partials.read().len() <= share * SHARDS as usize, "and no more");
    commits.stop();
    threads.join().expect("the threads end well");
}

#[test]
fn a_journal_that_ends_too_early_is_not_served() {
    let node = Node::new();
    node.add("a", 1);
    // The table says that the entry is durable, and the store that it never had it.
    node.commits.tables[shard("a") as usize].partials.write().apply(&crate::shard::Entry {
        shard: shard("a"),
        epoch: 1,
        seq: 2,
        id: 1,
        time_ms: None,
        changes: Vec::new(),
        keys: Vec::new(),
        marks: Vec::new(),
    });
    node.store.inject(Fault::Broken { applied: false });
    assert_eq!(node.add("b", 1), Outcome::Unknown);
    node.wait(node.commits.ended());
    assert_eq!(node.commits.submit(std::iter::once(add("a", 1, 0))), Err(Rejected::Stopped));
    let ended = node.threads.join().expect_err("damage is told");
    assert!(matches!(ended, store::Error::Damaged(_)), "{ended}");
}
