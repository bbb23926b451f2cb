//! Totals that outlive their owners: what reads of cached totals found is written to the store behind them, and used
//! while nobody serves a shard.
//!
//! A rollup is a list of what was seen on each shard, merged by sequence in the store; its age is that of the part
//! confirmed longest ago. Ages compare the clocks of two nodes, so they are as good as those are.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;

use super::cluster::{Journaled, Missing};
use super::read::Live;
use super::{Node, Peers, now_ms};
use crate::counter::Id;
use crate::error::Error;
use crate::limits;
use crate::store::RollupPart;

/// Rollups on their way to the store, the newest of each counter.
#[derive(Debug, Default)]
pub struct Rollups(Mutex<HashMap<Id, Vec<RollupPart>>>);

impl Rollups {
    /// Written within a second. While very many wait, others are left out: the next read brings them again.
    fn keep(&self, id: &Id, parts: Vec<RollupPart>) {
        let mut waiting = self.0.lock();
        if waiting.len() < limits::ROLLUPS_WAITING_MAX || waiting.contains_key(id) {
            waiting.insert(id.clone(), parts);
        }
    }
}

/// Partials for a total that may be old.
pub struct Recalled {
    pub live: Live,
    /// When the part confirmed longest ago was, in milliseconds since 1970.
    pub as_of_ms: u64,
    /// Every part was confirmed by its owner after the read arrived.
    pub confirmed: bool,
}

impl Node {
    /// The partials of a counter for a read that accepts a total of this age, or of any when `stale` is allowed. What the
    /// owners cannot say now is recalled from the rollup; what is older than allowed is waited for.
    pub(super) async fn recall(
        self: &Arc<Self>,
        peers: &Peers,
        id: &Id,
        shards: &[u32],
        max_age_ms: u64,
        stale: bool,
    ) -> Result<Recalled, Error> {
        let asked_ms = now_ms();
        let gathered = self.gather(peers, id, shards, Missing::LeaveOut).await?;
        if gathered.missing.is_empty() {
            return Ok(self.confirmed(id, shards, &gathered.found, asked_ms));
        }
        let stored = self.store.rollup(id).await?;
        let recalled = stored.into_iter().filter(|part| gathered.missing.contains(&part.shard));
        let recalled: Vec<RollupPart> = recalled.collect();
        let complete = recalled.len() == gathered.missing.len();
        let oldest_ms = recalled.iter().map(|part| part.at_ms).min().filter(|_| complete);
        if let Some(as_of_ms) = oldest_ms.filter(|&at_ms| stale || age_ms(at_ms) <= max_age_ms) {
            let recalled = recalled.into_iter().map(Journaled::from);
            let live = gathered.found.into_iter().chain(recalled).filter_map(Journaled::live).collect();
            return Ok(Recalled { live, as_of_ms, confirmed: false });
        }
        let asked_ms = now_ms();
        let gathered = self.gather(peers, id, shards, Missing::Wait).await.map_err(|why| match oldest_ms {
            Some(at_ms) => {
                let hint = "With stale=allow the last known total answers";
                Error::new(why.kind, format!("{} {hint}, which is {} ms old.", why.detail, age_ms(at_ms)))
            }
            None => why,
        })?;
        Ok(self.confirmed(id, shards, &gathered.found, asked_ms))
    }

    fn confirmed(&self, id: &Id, shards: &[u32], found: &[Journaled], as_of_ms: u64) -> Recalled {
        let part = |&shard: &u32| {
            let found = found.iter().find(|found| found.shard == shard);
            let Journaled { seq, value, exists, .. } = found.copied().unwrap_or(Journaled::nothing(shard));
            RollupPart { shard, seq, value, exists, at_ms: as_of_ms }
        };
        self.rollups.keep(id, shards.iter().map(part).collect());
        let live = found.iter().copied().filter_map(Journaled::live).collect();
        Recalled { live, as_of_ms, confirmed: true }
    }

    /// Writes what waits, once a second, for ever.
    pub async fn write_rollups_regularly(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(limits::ROLLUP_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.write_rollups().await;
        }
    }

    /// A rollup that cannot be written now is left out: the next read brings a newer one.
    pub async fn write_rollups(&self) {
        let waiting = std::mem::take(&mut *self.rollups.0.lock());
        let writes = waiting.into_iter().map(|(id, parts)| async move {
            if let Err(why) = self.store.put_rollup(&id, &parts).await {
                tracing::debug!("the rollup of a counter was not written: {why}");
            }
        });
        stream::iter(writes).buffer_unordered(limits::ROLLUP_WRITES_IN_FLIGHT).for_each(|()| async {}).await;
    }
}

fn age_ms(at_ms: u64) -> u64 {
    now_ms().saturating_sub(at_ms)
}

impl From<RollupPart> for Journaled {
    fn from(RollupPart { shard, seq, value, exists, .. }: RollupPart) -> Self {
        Self { shard, seq, value, exists }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded() {
        let rollups = Rollups::default();
        let part = |value| vec![RollupPart { shard: 0, seq: 1, value, exists: true, at_ms: 1 }];
        let id = |i: usize| Id::new(&format!("c{i}")).expect("valid");
        for i in 0..2 * limits::ROLLUPS_WAITING_MAX {
            rollups.keep(&id(i), part(1));
        }
        rollups.keep(&id(0), part(2));
        let waiting = rollups.0.lock();
        assert_eq!(waiting.len(), limits::ROLLUPS_WAITING_MAX);
        assert_eq!(waiting[&id(0)], part(2));
    }
}
