//! Standing by: the journals of shards that this node would serve next are read while another node still writes them,
//! so that a takeover has the last entries to read only, and finds in memory what was counted lately.
//!
//! A takeover takes whatever is there, also nothing. What was read is held against the checkpoint then, and never
//! decides whether a journal is damaged; so whatever goes wrong here costs time, not counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tracing::debug;

use super::{Commits, Settings};
use crate::limits;
use crate::shard::Replay;
use crate::shard::replay::Hole;
use crate::store::{self, Raised, Store};

/// By shard, what was read while standing by.
#[derive(Debug)]
pub struct Standbys {
    shards: Vec<Mutex<Option<Replay>>>,
    /// Shards that are followed now.
    followed: AtomicUsize,
}

impl Standbys {
    pub(super) fn new(shards: u32) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::new(None)).collect(), followed: AtomicUsize::new(0) }
    }

    /// How many shards this node stands by for.
    pub fn followed(&self) -> usize {
        self.followed.load(Ordering::Relaxed)
    }

    /// Counters and idempotency records in memory for all of them.
    pub fn records(&self) -> usize {
        self.shards.iter().map(|standby| standby.lock().as_ref().map_or(0, Replay::records)).sum()
    }

    /// For a takeover, which goes on from there.
    pub(super) fn take(&self, shard: u32) -> Option<Replay> {
        self.shards[shard as usize].lock().take()
    }
}

/// The tasks that follow shards, one each. Dropping it ends them.
pub struct Followers {
    commits: Arc<Commits>,
    store: Arc<dyn Store>,
    settings: Settings,
    tasks: Mutex<BTreeMap<u32, AbortHandle>>,
}

impl Followers {
    pub fn new(commits: Arc<Commits>, store: Arc<dyn Store>, settings: Settings) -> Self {
        Self { commits, store, settings, tasks: Mutex::default() }
    }

    /// Follows these shards and no others from now on.
    pub fn follow(&self, shards: &BTreeSet<u32>) {
        let mut tasks = self.tasks.lock();
        tasks.retain(|shard, task| {
            let goes_on = shards.contains(shard);
            if !goes_on {
                task.abort();
                self.commits.standbys.take(*shard);
            }
            goes_on
        });
        for &shard in shards {
            tasks.entry(shard).or_insert_with(|| {
                let follower = Follower {
                    commits: self.commits.clone(),
                    store: self.store.clone(),
                    settings: self.settings,
                    shard,
                    forget_at: limits::STANDBY_RECORDS,
                };
                tokio::spawn(follower.run()).abort_handle()
            });
        }
        self.commits.standbys.followed.store(tasks.len(), Ordering::Relaxed);
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.tasks.lock().values().for_each(AbortHandle::abort);
    }
}

struct Follower {
    commits: Arc<Commits>,
    store: Arc<dyn Store>,
    settings: Settings,
    shard: u32,
    /// With so many records in memory it is time to forget some.
    forget_at: usize,
}

impl Follower {
    async fn run(mut self) {
        let (first, most) = limits::STANDBY_INTERVAL;
        let mut wait = first;
        loop {
            match self.step().await {
                Ok(true) => {
                    wait = first;
                    // The next part of a long journal follows at once.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(false) => {}
                Err(why) => debug!("shard {} cannot be followed now: {why}", self.shard),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(most);
        }
    }

    /// Reads what is new; whether there was anything.
    async fn step(&mut self) -> Result<bool, store::Error> {
        let (shard, commits) = (self.shard, self.commits.clone());
        let place = &commits.standbys.shards[shard as usize];
        let at = place.lock().as_ref().map(Replay::last_seq);
        let Some(after) = at else {
            // Nothing is read beside a takeover, nor after it.
            if self.commits.serves(shard) {
                return Ok(false);
            }
            let Raised { checkpoint_seq, marks, .. } = self.store.standing(shard).await?;
            let window_ms = self.settings.key_window_ms();
            *place.lock() = Some(Replay::after_checkpoint(shard, window_ms, checkpoint_seq, marks));
            return Ok(true);
        };
        let entries = self.store.read(shard, after, self.settings.replay_bytes).await?;
        let any = !entries.is_empty();
        let records = {
            let mut place = place.lock();
            // A takeover may have taken it meanwhile.
            let Some(read) = place.as_mut().filter(|read| read.last_seq() == after) else { return Ok(false) };
            if let Err(Hole { expected_seq, found_seq }) = read.replay(entries) {
                debug!("shard {shard} goes on at entry {found_seq}; a checkpoint holds those from {expected_seq} on");
                *place = None;
                return Ok(true);
            }
            read.records()
        };
        if records >= self.forget_at {
            let Raised { checkpoint_seq, .. } = self.store.standing(shard).await?;
            if let Some(read) = &mut *place.lock() {
                read.forget_checkpointed(checkpoint_seq);
                self.forget_at = limits::STANDBY_RECORDS.max(2 * read.records());
            }
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::commit::tests::{Node, SETTINGS, SHARDS, add, applied, keyed, shard};
    use crate::shard::Outcome;
    use crate::store::memory::MemoryStore;

    fn owner(store: &Arc<MemoryStore>) -> Node {
        let node = Node::on(store);
        for shard in 0..SHARDS {
            node.wait(node.commits.take_over(shard)).expect("taken over");
        }
        node
    }

    /// A node that follows the shard of `a`, and has read everything up to `seq`.
    fn standby(store: &Arc<MemoryStore>, seq: u64) -> (Node, Followers) {
        let node = Node::on(store);
        let followers = Followers::new(node.commits.clone(), store.clone(), SETTINGS);
        node.wait(async { followers.follow(&BTreeSet::from([shard("a")])) });
        read_up_to(&node, seq);
        (node, followers)
    }

    fn read_up_to(node: &Node, seq: u64) {
        let place = &node.commits.standbys.shards[shard("a") as usize];
        node.wait(async {
            while place.lock().as_ref().is_none_or(|read| read.last_seq() < seq) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn a_takeover_goes_on_from_what_was_read() {
        let store = Arc::new(MemoryStore::new(SHARDS));
        let first = owner(&store);
        assert_eq!(first.ask(vec![keyed("a", 5, "k", 0)]), [applied(5)]);
        let (second, _followers) = standby(&store, 1);
        assert_eq!(second.commits.standbys.followed(), 1);
        assert_eq!(first.add("a", 2), applied(7));
        second.wait(second.commits.take_over(shard("a"))).expect("taken over");
        assert_eq!(second.value("a"), Some(7));
        assert_eq!(second.ask(vec![keyed("a", 5, "k", 0)]), [Outcome::Applied { value: 5, replayed: true }]);
        assert_eq!(second.add("a", 1), applied(8));
        assert_eq!(first.add("a", 1), Outcome::NotApplied);
    }

    #[test]
    fn what_is_behind_the_checkpoint_begins_anew() {
        let store = Arc::new(MemoryStore::new(SHARDS));
        let first = owner(&store);
        assert_eq!(first.add("a", 1), applied(1));
        let (second, followers) = standby(&store, 1);
        // Stands still, with what it has read, while the owner goes on and drops the journal.
        followers.tasks.lock().values().for_each(AbortHandle::abort);
        assert_eq!(first.ask(vec![add("a", 1, 0), keyed("a", 1, "k", 1)]), [applied(2), applied(3)]);
        first.stop();
        second.wait(second.commits.take_over(shard("a"))).expect("taken over");
        assert_eq!(second.ask(vec![keyed("a", 1, "k", 0)]), [Outcome::Applied { value: 3, replayed: true }]);
        assert_eq!(second.add("a", 1), applied(4));
    }

    #[test]
    fn what_a_checkpoint_holds_is_forgotten_before_it_is_much() {
        const ROUND: u32 = 10_000;
        let ids: Vec<String> = (0..).map(|n| format!("a{n}")).filter(|id| shard(id) == 0).take(70_000).collect();
        let round = |nth: u32| (0..ROUND).map(|n| add(&ids[(nth * ROUND + n) as usize], 1, n)).collect::<Vec<_>>();
        let store = Arc::new(MemoryStore::new(SHARDS));
        let (first, second) = (owner(&store), Node::on(&store));
        let (commits, of_store) = (second.commits.clone(), store.clone());
        let forget_at = limits::STANDBY_RECORDS;
        let mut follower = Follower { commits, store: of_store, settings: SETTINGS, shard: 0, forget_at };
        let mut follow = || while second.wait(follower.step()).expect("the store answers") {};
        follow();
        for nth in 0..3 {
            first.ask(round(nth));
            follow();
        }
        assert_eq!(second.commits.standbys.records(), 30_000, "no checkpoint holds any");
        let before = first.commits.stats.checkpoints.load(Ordering::Relaxed);
        first.commits.checkpoint_due.notify_one();
        first.wait(async {
            while first.commits.stats.checkpoints.load(Ordering::Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        for nth in 3..7 {
            first.ask(round(nth));
            follow();
        }
        assert!(second.commits.standbys.records() < 60_000, "{} of 70,000", second.commits.standbys.records());
        second.wait(second.commits.take_over(0)).expect("taken over");
        assert_eq!(second.ask(vec![add(&ids[0], 1, 0), add(&ids[69_999], 1, 1)]), [applied(2), applied(2)]);
    }

    #[test]
    fn a_shard_that_is_not_followed_any_more_leaves_nothing() {
        let store = Arc::new(MemoryStore::new(SHARDS));
        let first = owner(&store);
        assert_eq!(first.add("a", 1), applied(1));
        let (second, followers) = standby(&store, 1);
        assert!(second.commits.standbys.records() > 0);
        second.wait(async { followers.follow(&BTreeSet::new()) });
        assert_eq!((second.commits.standbys.followed(), second.commits.standbys.records()), (0, 0));
    }
}
