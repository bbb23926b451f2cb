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
}

impl Follower {
    async fn run(self) {
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
    async fn step(&self) -> Result<bool, store::Error> {
        let (shard, place) = (self.shard, &self.commits.standbys.shards[self.shard as usize]);
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
        let mut place = place.lock();
        // A takeover may have taken it meanwhile.
        let Some(read) = place.as_mut().filter(|read| read.last_seq() == after) else { return Ok(false) };
        let any = !entries.is_empty();
        let replayed = read.replay(entries);
        if let Err(Hole { expected_seq, found_seq }) = replayed {
            debug!("shard {shard} goes on at entry {found_seq}, after a checkpoint of those from {expected_seq} on");
        }
        if replayed.is_err() || read.records() > limits::STANDBY_RECORDS_MAX {
            // Begun anew from the newest checkpoint.
            *place = None;
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
