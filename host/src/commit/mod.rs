//! Group commit for all shards of this node: the handle that everybody holds.
//!
//! Serving threads submit operations here and find the answers in their [`Inbox`]. The commit thread owns the writers and
//! writes the journal: as [`driver`] on a store of this machine, where one synced write carries all shards, or as
//! [`lanes`] on one behind a network, where every shard that this node serves goes its own way; [`checkpoint`] copies changed partials to their own rows so that the
//! journal stays short. What an operation means is decided in [`crate::shard`], how bytes become durable in
//! [`crate::store`].

mod answers;
pub mod checkpoint;
pub mod driver;
mod eviction;
pub mod inbox;
pub mod lanes;
pub mod standby;
mod takeover;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use crate::counter::Id;
use crate::limits;
use crate::panics;
use crate::shard::entry::{KeyRecord, Mark};
use crate::shard::{Op, Partials, Window};
use crate::store::{self, Store};

pub use answers::{Collected, PeerAnswer};
pub use checkpoint::Checkpointer;
pub use driver::Driver;
pub use inbox::{Answer, Inbox, ticket};
pub use lanes::Lanes;
pub use standby::{Followers, Standbys};

/// The state of one shard that other threads read. The journal position is `partials.applied()`, the number of resident
/// counters `partials.len()`.
#[derive(Debug)]
pub struct Table {
    pub partials: RwLock<Partials>,
    /// Of the ownership that this node has; 0 while it has none.
    pub epoch: AtomicU64,
    /// Operations submitted and not yet answered.
    pub queued: Queued,
    /// The shard's lane comes for what was submitted without being woken. Written before the queue is looked at, and read under
    /// its lock, so that either sees the other.
    at_work: AtomicBool,
    /// The lane sleeps until so many are queued; 0 when it does not. Read and written as `at_work` is.
    gather: AtomicU32,
    /// Bumped after entries were applied, for watches.
    pub changed: watch::Sender<()>,
}

impl Table {
    /// Whether the shard's lane is to be woken for what was submitted.
    fn wants_to_know(&self) -> bool {
        let gather = self.gather.load(Ordering::Relaxed);
        !self.at_work.load(Ordering::Relaxed) || gather > 0 && self.queued.load(Ordering::Relaxed) >= gather
    }
}

/// A count that every submission changes, on a cache line of its own: readers of the table beside it do not wait for it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Queued(AtomicU32);

impl std::ops::Deref for Queued {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        &self.0
    }
}

/// What a checkpoint needs of a writer. The partials are read from the table afterwards: newer ones do no harm.
#[derive(Debug)]
struct WriterState {
    epoch: u64,
    seq: u64,
    keys: Vec<KeyRecord>,
    marks: Vec<Mark>,
}

/// What other threads ask of the commit thread. It answers between two groups, so after everything submitted before.
#[derive(Debug)]
enum Control {
    Snapshot {
        shard: u32,
        answer: oneshot::Sender<WriterState>,
    },
    /// A checkpoint taken under `epoch` is durable.
    Checkpointed {
        shard: u32,
        epoch: u64,
        seq: u64,
        answer: oneshot::Sender<()>,
    },
    RecentKey {
        shard: u32,
        hash: u64,
        counter: Id,
        key: Box<str>,
        answer: oneshot::Sender<Recent>,
    },
    /// Up to when idempotency records may be dropped, by their [`KeyRecord::kept_by_ms`]. Not answered when none may.
    KeyHorizon {
        answer: oneshot::Sender<u64>,
    },
    /// The store said so to somebody else.
    StoreBroken(store::Error),
    /// Serve this shard from now on.
    TakeOver {
        shard: u32,
        answer: oneshot::Sender<Result<u64, store::Error>>,
    },
    /// Finish what waits, and serve the shard no more.
    HandOver {
        shard: u32,
        answer: oneshot::Sender<()>,
    },
    /// Make sure, at a moment after this was asked, that the shard is still ours.
    Confirm {
        shard: u32,
        answer: oneshot::Sender<bool>,
    },
    /// Look whether it is time to stop.
    Wake,
}

/// What the commit thread knows of an idempotency key.
#[derive(Debug)]
pub struct Recent {
    /// None: only the store can know.
    pub record: Option<KeyRecord>,
    /// Whether a record, also one of the store's, is in force.
    pub window: Window,
}

#[derive(Debug, Default)]
struct Queue {
    batches: Vec<Vec<Op>>,
    control: Vec<Control>,
    /// The commit thread is gone: nothing will be answered any more.
    closed: bool,
}

/// Counters for `/metrics`; written by the commit and checkpoint threads only.
#[derive(Debug, Default)]
pub struct Stats {
    pub groups: AtomicU64,
    pub entries: AtomicU64,
    pub operations: AtomicU64,
    pub recoveries: AtomicU64,
    pub checkpoints: AtomicU64,
    pub checkpoint_failures: AtomicU64,
    pub evictions: AtomicU64,
    /// Relaxed operations that were accepted and then not applied, or perhaps not: the store failed, or the node ended
    /// while a write of it had no answer.
    pub relaxed_lost: AtomicU64,
    /// Time inside the store's durable write.
    pub append_nanos: AtomicU64,
    /// Idempotency records in memory, not yet in a checkpoint.
    pub recent_keys: AtomicUsize,
}

/// Why operations are not taken. None of them was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    Full,
    /// The store is being recovered.
    Unavailable,
    Stopped,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub key_window: Duration,
    /// Journal bytes read at once while taking over.
    pub replay_bytes: usize,
    /// A shard's share of the counters that a node keeps in memory before clean ones are forgotten.
    pub resident_max: usize,
}

impl Settings {
    /// How old a record may be, in journal time, and still be in force: that may pass faster by its drift, and a repetition
    /// that arrived within the window may wait for its turn.
    fn key_window_ms(self) -> u64 {
        let window = self.key_window + self.key_window / 1_000 + limits::OPERATION_DEADLINE;
        u64::try_from(window.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The handle that everybody else holds.
#[derive(Debug)]
pub struct Commits {
    queue: Mutex<Queue>,
    wake: Notify,
    /// Wakes the checkpointer.
    checkpoint_due: Notify,
    /// Checkpointers that still need the commit thread.
    checkpointers: AtomicUsize,
    /// Operations submitted and not yet answered by a group.
    queued: AtomicUsize,
    serving: AtomicBool,
    stopped: AtomicBool,
    ended: watch::Sender<bool>,
    /// Of entries that are written.
    format: AtomicU32,
    pub tables: Vec<Table>,
    inboxes: Vec<Arc<Inbox>>,
    /// What became of operations that other nodes sent.
    pub peers: Inbox<PeerAnswer>,
    /// Shards that another node took over while this one served them.
    pub lost: Inbox<u32>,
    /// Relaxed operations that were answered already and whose shard went to another node before they were written.
    pub strays: Inbox<Op>,
    /// What was read of shards that this node would serve next.
    pub standbys: Standbys,
    pub stats: Stats,
}

impl Commits {
    /// `inboxes` in the order in which tickets number them.
    pub fn new(shards: u32, inboxes: Vec<Arc<Inbox>>) -> Self {
        let table = || Table {
            partials: RwLock::default(),
            epoch: AtomicU64::new(0),
            queued: Queued::default(),
            at_work: AtomicBool::new(false),
            gather: AtomicU32::new(0),
            changed: watch::Sender::new(()),
        };
        Self {
            queue: Mutex::default(),
            wake: Notify::new(),
            checkpoint_due: Notify::new(),
            checkpointers: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            serving: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            format: AtomicU32::new(limits::FORMAT),
            tables: (0..shards).map(|_| table()).collect(),
            inboxes,
            peers: Inbox::default(),
            lost: Inbox::default(),
            strays: Inbox::default(),
            standbys: Standbys::new(shards),
            stats: Stats::default(),
        }
    }

    /// Entries are written in this format from now on. A shard whose journal has journal time goes on with it.
    pub fn write_format(&self, format: u32) {
        self.format.store(format, Ordering::Relaxed);
    }

    /// Journal time is written with entries.
    fn timed(&self) -> bool {
        self.format.load(Ordering::Relaxed) >= 2
    }

    /// Whether operations are taken now.
    pub fn serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// Whether this node serves the shard now. In a single process it always does.
    pub fn serves(&self, shard: u32) -> bool {
        self.tables[shard as usize].epoch.load(Ordering::Acquire) != 0
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whether nothing more will be served: the node stops, or the commit thread ended by itself.
    fn over(&self) -> bool {
        self.stopped() || *self.ended.borrow()
    }

    /// Operations that wait to be journaled.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Hands operations to the commit thread, all or none. Their answers come to the inbox that their tickets name. The
    /// iterator runs on the caller's thread, outside the lock.
    pub fn submit(&self, ops: impl ExactSizeIterator<Item = Op>) -> Result<(), Rejected> {
        self.reserve(ops.len())?;
        let refused = self.submit_reserved(&mut ops.collect());
        if refused.is_empty() { Ok(()) } else { Err(self.rejected()) }
    }

    /// Takes room in the queue for operations that follow with [`Self::submit_reserved`].
    pub fn reserve(&self, count: usize) -> Result<(), Rejected> {
        if !self.serving() {
            return Err(self.rejected());
        }
        if self.queued.fetch_add(count, Ordering::Relaxed) + count > limits::QUEUE_OPS_MAX {
            self.queued.fetch_sub(count, Ordering::Relaxed);
            return Err(Rejected::Full);
        }
        Ok(())
    }

    /// Gives room back that was reserved and is not needed.
    pub fn unreserve(&self, count: usize) {
        self.queued.fetch_sub(count, Ordering::Relaxed);
    }

    /// Hands over operations that room was reserved for, leaving `ops` empty. Returns those that are refused because the
    /// node stopped serving meanwhile: all or none.
    pub fn submit_reserved(&self, ops: &mut Vec<Op>) -> Vec<Op> {
        let ops = std::mem::replace(ops, Vec::with_capacity(ops.len()));
        if ops.is_empty() {
            return ops;
        }
        for op in &ops {
            self.tables[op.shard as usize].queued.fetch_add(1, Ordering::Relaxed);
        }
        let mut queue = self.queue.lock();
        if queue.closed || !self.serving() {
            drop(queue);
            self.release(&ops);
            return ops;
        }
        let wake = ops.iter().any(|op| self.tables[op.shard as usize].wants_to_know());
        queue.batches.push(ops);
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
        Vec::new()
    }

    fn release(&self, ops: &[Op]) {
        for op in ops {
            self.tables[op.shard as usize].queued.fetch_sub(1, Ordering::Relaxed);
        }
        self.queued.fetch_sub(ops.len(), Ordering::Relaxed);
    }

    fn rejected(&self) -> Rejected {
        if self.over() { Rejected::Stopped } else { Rejected::Unavailable }
    }

    /// A control message for a thread that is gone is dropped, and whoever waits for its answer is told so by that.
    fn control(&self, control: Control) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.control.push(control);
            drop(queue);
            self.wake.notify_one();
        }
    }

    async fn snapshot(&self, shard: u32) -> Option<WriterState> {
        let (answer, answered) = oneshot::channel();
        self.control(Control::Snapshot { shard, answer });
        answered.await.ok()
    }

    async fn key_horizon(&self) -> Option<u64> {
        let (answer, answered) = oneshot::channel();
        self.control(Control::KeyHorizon { answer });
        answered.await.ok()
    }

    async fn checkpointed(&self, shard: u32, epoch: u64, seq: u64) {
        let (answer, answered) = oneshot::channel();
        self.control(Control::Checkpointed { shard, epoch, seq, answer });
        let _ = answered.await;
    }

    /// The record of an idempotency key that no checkpoint holds yet. The answer comes after everything submitted before
    /// is settled. No record, followed by a look-up in the store that finds nothing, in this order, means: not applied.
    pub async fn recent_key(&self, shard: u32, hash: u64, counter: Id, key: &str) -> Result<Recent, Rejected> {
        let (answer, answered) = oneshot::channel();
        self.control(Control::RecentKey { shard, hash, counter, key: key.into(), answer });
        answered.await.map_err(|_| self.rejected())
    }

    /// Takes a shard over, so that this node serves it. Returns its epoch. Tried until it succeeds; an error says that the
    /// shard cannot be served by anybody (its data is damaged), or that the node stops or hands it over meanwhile.
    pub async fn take_over(&self, shard: u32) -> Result<u64, store::Error> {
        let (answer, answered) = oneshot::channel();
        self.control(Control::TakeOver { shard, answer });
        let gone = |_| Err(store::Error::NotApplied("the shard is not taken over".into()));
        answered.await.unwrap_or_else(gone)
    }

    /// Finishes what waits for the shard, answers what comes later as not applied, and serves it no more when this answers.
    pub async fn hand_over(&self, shard: u32) {
        let (answer, answered) = oneshot::channel();
        self.control(Control::HandOver { shard, answer });
        let _ = answered.await;
    }

    /// Whether the shard is still this node's at a moment after the call. What its table shows afterwards is then all that
    /// was acknowledged before the call.
    pub async fn confirm(&self, shard: u32) -> bool {
        let (answer, answered) = oneshot::channel();
        self.control(Control::Confirm { shard, answer });
        answered.await.unwrap_or(false)
    }

    /// Takes no more operations, writes those that wait and a last checkpoint, and lets the threads end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.serving.store(false, Ordering::Release);
        self.checkpoint_due.notify_one();
        self.control(Control::Wake);
    }

    /// Waits until the commit thread ended: after [`Self::stop`], or because the data is damaged.
    pub async fn ended(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// The threads behind a [`Commits`].
#[derive(Debug)]
pub struct Threads {
    commit: JoinHandle<Result<(), store::Error>>,
    checkpoint: JoinHandle<()>,
}

/// Starts the commit and the checkpoint thread. Returns when every shard is taken over and served.
pub fn spawn(commits: &Arc<Commits>, store: &Arc<dyn Store>, settings: Settings) -> Result<Threads, store::Error> {
    let (started, start) = std::sync::mpsc::channel();
    // Made here, so that the commit thread cannot end before it is counted.
    let checkpointer = Checkpointer::new(commits.clone(), store.clone());
    let (of_commit, its_store) = (commits.clone(), store.clone());
    let commit = thread("quipu-commit", move |runtime| {
        let _owner = panics::Owner::new("the commit thread");
        prefer_this_thread();
        runtime.block_on(async move {
            let driver = match Driver::start(of_commit, its_store, settings).await {
                Ok(driver) => driver,
                Err(why) => {
                    // The receiver waits until this is sent.
                    let _ = started.send(Err(why));
                    return Ok(());
                }
            };
            let _ = started.send(Ok(()));
            driver.run().await
        })
    })?;
    start.recv().unwrap_or_else(|_| Err(panicked("commit")))?;
    let checkpoint = spawn_checkpointer(checkpointer)?;
    Ok(Threads { commit, checkpoint })
}

fn spawn_checkpointer(checkpointer: Checkpointer) -> Result<JoinHandle<()>, store::Error> {
    thread("quipu-checkpoint", move |runtime| {
        let _owner = panics::Owner::new("the checkpoint thread");
        runtime.block_on(checkpointer.run());
    })
}

/// Starts the commit and the checkpoint thread of a node that serves the shards it is told to, on a store behind a
/// network. At most `appends_max` appends are under way at once.
pub fn spawn_lanes(
    commits: &Arc<Commits>,
    store: &Arc<dyn Store>,
    settings: Settings,
    appends_max: usize,
) -> Result<Threads, store::Error> {
    let checkpointer = Checkpointer::new(commits.clone(), store.clone());
    let (commits, store) = (commits.clone(), store.clone());
    commits.serving.store(true, Ordering::Release);
    let commit = thread("quipu-commit", move |runtime| {
        let _owner = panics::Owner::new("the commit thread");
        let lanes = Lanes::new(commits, store, settings, appends_max);
        tokio::task::LocalSet::new().block_on(&runtime, lanes.run());
        Ok(())
    })?;
    let checkpoint = spawn_checkpointer(checkpointer)?;
    Ok(Threads { commit, checkpoint })
}

impl Threads {
    /// Waits for both threads; [`Commits::stop`] makes them end. An error: the commit thread ended by itself, because the data on
    /// disk is damaged or was taken by another process. The process should exit then.
    pub fn join(self) -> Result<(), store::Error> {
        self.checkpoint.join().map_err(|_| panicked("checkpoint"))?;
        self.commit.join().unwrap_or_else(|_| Err(panicked("commit")))
    }
}

fn panicked(thread: &str) -> store::Error {
    store::Error::Broken(format!("the {thread} thread panicked"))
}

/// Every request waits for the commit thread, so it should run as soon as its write is done. Most systems allow this to
/// privileged processes only; without it everything works, a little slower when cores are scarce.
fn prefer_this_thread() {
    if rustix::process::setpriority_process(None, COMMIT_NICENESS).is_err() {
        tracing::debug!("the commit thread keeps the usual priority");
    }
}

/// Of the commit thread, where the system allows it.
const COMMIT_NICENESS: i32 = -10;

/// A named thread with a runtime of its own, because a store may block inside its futures.
fn thread<T: Send + 'static>(
    name: &str,
    run: impl FnOnce(tokio::runtime::Runtime) -> T + Send + 'static,
) -> Result<JoinHandle<T>, store::Error> {
    let refused = |why: std::io::Error| store::Error::Refused(format!("cannot start the thread {name}: {why}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
    std::thread::Builder::new().name(name.into()).spawn(move || run(runtime)).map_err(refused)
}
