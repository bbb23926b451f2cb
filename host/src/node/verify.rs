//! The audit: recounts every counter of this node's shards from checkpoints and journal, and compares it with what is
//! served.
//!
//! Nothing is paused. A counter that changed between the two looks is looked at again; what remains different, at the
//! same place of the journal or behind it, is wrong.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::counter::{Id, key_hash};
use crate::error::Error;
use crate::limits;
use crate::shard::partials::{Partial, Resident};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    pub shards: usize,
    /// Partials that were recounted.
    pub partials: u64,
    /// How many are not served as they were recounted.
    pub different: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub id: String,
    pub shard: u32,
    /// None: the counter does not exist there.
    pub recounted: Option<i64>,
    pub served: Option<i64>,
}

impl Audit {
    pub fn add(&mut self, other: Self) {
        self.shards += other.shards;
        self.partials += other.partials;
        self.different += other.different;
        let room = limits::AUDIT_DIFFERENCES_MAX.saturating_sub(self.differences.len());
        self.differences.extend(other.differences.into_iter().take(room));
    }

    fn differs(&mut self, difference: Difference) {
        self.different += 1;
        if self.differences.len() < limits::AUDIT_DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }
}

/// What the journal holds beyond the checkpoint, by shard.
type Tail = HashMap<u32, HashMap<Id, Partial>>;

impl Node {
    /// Reads everything that the store holds: work in proportion to all counters, a page at a time.
    pub async fn verify(self: &Arc<Self>) -> Result<Audit, Error> {
        self.off_thread(|node| async move { node.verify_here().await }).await
    }

    async fn verify_here(&self) -> Result<Audit, Error> {
        let own: Vec<u32> = (0..self.shards).filter(|&shard| self.commits.serves(shard)).collect();
        let mut audit = Audit { shards: own.len(), ..Audit::default() };
        let mut tail = Tail::new();
        for &shard in &own {
            tail.insert(shard, self.read_tail(shard).await?);
        }
        let mut after: Option<Id> = None;
        loop {
            let page = self.store.list("", after.as_ref(), limits::LIST_LIMIT_MAX).await?;
            let last = page.len() < limits::LIST_LIMIT_MAX;
            after = page.last().map(|listed| listed.id.clone());
            for listed in page {
                for (shard, stored) in listed.partials {
                    let Some(newer) = tail.get_mut(&shard) else { continue };
                    let partial = newer.remove(&listed.id).filter(|newer| newer.seq > stored.seq).unwrap_or(stored);
                    self.compare(&mut audit, shard, &listed.id, partial).await?;
                }
            }
            if last {
                break;
            }
        }
        // Counters that no checkpoint holds yet.
        for (shard, partials) in tail {
            for (id, partial) in partials {
                self.compare(&mut audit, shard, &id, partial).await?;
            }
        }
        Ok(audit)
    }

    async fn read_tail(&self, shard: u32) -> Result<HashMap<Id, Partial>, Error> {
        let mut after = self.commits.tables[shard as usize].partials.read().covered();
        let mut tail = HashMap::new();
        loop {
            let entries = self.store.read(shard, after, limits::REPLAY_BYTES).await?;
            let Some(last) = entries.last() else { return Ok(tail) };
            after = last.seq;
            for entry in entries {
                for change in entry.changes {
                    tail.insert(change.counter, Partial { seq: entry.seq, ..change.partial });
                }
            }
        }
    }

    async fn compare(&self, audit: &mut Audit, shard: u32, id: &Id, recounted: Partial) -> Result<(), Error> {
        audit.partials += 1;
        for look in 0..limits::AUDIT_LOOKS {
            let served = match self.commits.tables[shard as usize].partials.read().get(key_hash(id.as_str()), id) {
                Resident::Present(partial) => Some(partial.clone()),
                Resident::Missing => None,
                // Not in memory: what is stored is what is served.
                Resident::Unloaded => return Ok(()),
            };
            // Newer than the recount: additions went on meanwhile.
            if served.as_ref().is_some_and(|served| served.seq > recounted.seq) || !self.commits.serves(shard) {
                return Ok(());
            }
            let live = |partial: &Partial| (!partial.removed).then_some(partial.value);
            let (recounted_value, served_value) = (live(&recounted), served.as_ref().and_then(live));
            if recounted_value == served_value {
                return Ok(());
            }
            // The journal is ahead of what is readable until the entry is applied.
            if look + 1 < limits::AUDIT_LOOKS {
                tokio::time::sleep(limits::MOVED_RETRY).await;
                continue;
            }
            let id = id.as_str().to_owned();
            audit.differs(Difference { id, shard, recounted: recounted_value, served: served_value });
        }
        Ok(())
    }
}
