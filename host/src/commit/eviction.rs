//! Memory stays bounded: clean counters are forgotten when too many are resident.

use std::sync::atomic::Ordering;

use super::{Commits, Settings, Table};
use crate::limits;

impl Settings {
    /// Forgets some clean counters if too many are resident on the node and this shard has more than its share of them. If few
    /// of them are clean, a checkpoint is needed first.
    pub(super) fn evict(&self, commits: &Commits, table: &Table) {
        let (resident, dirty) = {
            let partials = table.partials.read();
            (partials.len(), partials.dirty_len())
        };
        if resident <= self.resident_max {
            return;
        }
        // Policies may fill some shards more than others, and the default one does.
        let all: usize = commits.tables.iter().map(|table| table.partials.read().len()).sum();
        let excess = all.saturating_sub(self.resident_max.saturating_mul(commits.tables.len()));
        if excess == 0 {
            return;
        }
        let keep = resident.saturating_sub(excess).max(self.resident_max);
        if resident - dirty < resident / 8 {
            commits.checkpoint_due.notify_one();
            return;
        }
        let evicted = table.partials.write().evict_clean(keep, limits::EVICTION_PIECE);
        commits.stats.evictions.fetch_add(evicted as u64, Ordering::Relaxed);
    }
}
