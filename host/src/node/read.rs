//! The way of a read: the aggregation policy's plan, partials from the tables, the policy's total.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::cluster::{Gathered, Journaled, Missing};
use super::rollups::Recalled;
use super::rules::{Answering, LocalRule};
use super::totals::Cached;
use super::{Node, Worker, now_ms};
use crate::counter::arithmetic::total;
use crate::counter::{Id, candidates, key_hash};
use crate::error::{Error, Kind};
use crate::policy::{self, Plan, World};
use crate::shard::partials;
use crate::shard::partials::Resident;

/// The partials of a counter that exist.
pub type Live = SmallVec<[policy::Partial; 16]>;

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    Exact,
    /// A total of this age will do; with `stale` one of any age, while its shards cannot be read.
    Within {
        age: Duration,
        stale: bool,
    },
}

pub struct Total {
    pub value: i128,
    /// When the partials were read, in milliseconds since 1970.
    pub as_of_ms: u64,
    pub age_ms: u64,
    /// Every shard that may hold a part of the counter was read, all of it journaled.
    pub exact: bool,
    /// How many shards were read.
    pub shards: usize,
    /// Shards that nobody served and that the policy's plan left out.
    pub missing: Vec<u32>,
    /// Whose total it is.
    pub policy: Answering,
    /// The policy failed, and the built-in sum answered.
    pub fallback: bool,
}

fn not_found(id: &Id) -> Error {
    Error::new(Kind::CounterNotFound, format!("There is no counter with the id {:?}.", shortened(id.as_str())))
}

/// Ids are echoed, but not at any length.
pub(super) fn shortened(id: &str) -> String {
    match id.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &id[..end]),
        None => id.to_owned(),
    }
}

/// The total of a counter, or `CounterNotFound`.
pub async fn read(worker: &Worker, id: &Id, freshness: Freshness) -> Result<Total, Error> {
    let node = &worker.node;
    let hash = key_hash(id.as_str());
    let certain = node.is_certain_of_rules();
    let rules = worker.rules();
    let rule = rules.governing(id.as_str());
    let policy = Answering::aggregation(rule, hash);
    let aggregation = policy.binding();
    let shards = candidates(hash, node.shards, node.spread_of_reads(certain, rules.spread_of_reads(id.as_str())));
    let max_age = match freshness {
        Freshness::Exact => Duration::ZERO,
        Freshness::Within { age, .. } => age,
    };
    let max_age_ms = u32::try_from(max_age.as_millis()).unwrap_or(u32::MAX);
    let request = policy::Read { counter: id.as_str(), key_hash: hash, shards: &shards, max_age_ms };
    let planned = worker.policies.borrow_mut().plan_now(aggregation, &request);
    let planned = match planned {
        Some(planned) => planned,
        None => policy::plan_pooled(&node.policies, aggregation, &request).await,
    };
    if matches!(planned.plan, Plan::Cached)
        && let Some(cached) =
            node.totals.get(hash, id).filter(|cached| !max_age.is_zero() && cached.at.elapsed() <= max_age)
    {
        let age_ms = u64::try_from(cached.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (value, as_of_ms, fallback) = (cached.value, cached.at_ms, planned.fallback);
        let shards = shards.len();
        let missing = Vec::new();
        return Ok(Total { value, as_of_ms, age_ms, exact: false, shards, missing, policy, fallback });
    }
    crate::panics::point("read");
    let (at, as_of_ms) = (Instant::now(), now_ms());
    let wanted = match &planned.plan {
        Plan::Only(list) => list.as_slice(),
        Plan::All | Plan::Available | Plan::Cached => &shards[..],
    };
    let mut recalled_at_ms = None;
    let (live, missing) = match (&node.peers, &planned.plan, freshness) {
        (None, ..) => (node.live_here(id, hash, wanted).await?, Vec::new()),
        // Whatever its policy plans, an exact read is exact.
        (Some(peers), Plan::Cached, Freshness::Within { stale, .. }) => {
            let Recalled { live, as_of_ms, confirmed } =
                node.recall(peers, id, wanted, u64::from(max_age_ms), stale).await?;
            recalled_at_ms = (!confirmed).then_some(as_of_ms);
            (live, Vec::new())
        }
        (Some(peers), plan, _) => {
            let wait = if matches!(plan, Plan::Available) { Missing::LeaveOut } else { Missing::Wait };
            let Gathered { found, missing } = node.gather(peers, id, wanted, wait).await?;
            (found.into_iter().filter_map(Journaled::live).collect(), missing)
        }
    };
    let whole = !matches!(planned.plan, Plan::Only(_)) && missing.is_empty();
    if live.is_empty() && missing.is_empty() && (whole || !node.exists(id, hash).await?) {
        node.totals.forget(hash, id);
        return Err(not_found(id));
    }
    let combined = if planned.fallback {
        // A policy that failed to plan makes no total.
        policy::Combined { total: total(live.iter().map(|partial| partial.value)), fallback: true }
    } else {
        let combined = worker.policies.borrow_mut().combine_now(aggregation, &live);
        match combined {
            Some(combined) => combined,
            None => policy::combine_pooled(&node.policies, aggregation, &live).await,
        }
    };
    if matches!(planned.plan, Plan::Cached) && recalled_at_ms.is_none() {
        node.totals.put(hash, id, Cached { value: combined.total, at, at_ms: as_of_ms });
    }
    compare(worker, rule, &live, combined);
    let (value, fallback) = (combined.total, combined.fallback);
    let shards = wanted.len() - missing.len();
    let exact = whole && recalled_at_ms.is_none();
    let age_ms = recalled_at_ms.map_or(0, |at_ms| now_ms().saturating_sub(at_ms));
    let as_of_ms = recalled_at_ms.unwrap_or(as_of_ms);
    Ok(Total { value, as_of_ms, age_ms, exact, shards, missing, policy, fallback })
}

/// Lets the rule's shadow make a total of the same partials, and counts whether it is the same. One on the pool is not
/// waited for.
fn compare(worker: &Worker, rule: &LocalRule, live: &Live, total: policy::Combined) {
    let Some(shadow) = rule.shadow_of(World::Aggregation) else { return };
    let other = worker.policies.borrow_mut().combine_now(&shadow.binding, live);
    if let Some(other) = other {
        shadow.compare(!other.fallback && other.total == total.total);
    } else if shadow.enter() {
        let (rule, node, live) = (rule.clone(), worker.node.clone(), live.clone());
        tokio::task::spawn_local(async move {
            let Some(shadow) = rule.shadow_of(World::Aggregation) else { return };
            let other = policy::combine_pooled(&node.policies, &shadow.binding, &live).await;
            shadow.compare(!other.fallback && other.total == total.total);
            shadow.leave();
        });
    }
}

impl Node {
    /// Whether any shard that may hold a part of the counter does.
    pub async fn exists(self: &Arc<Self>, id: &Id, hash: u64) -> Result<bool, Error> {
        let shards = self.read_set(id, hash);
        Ok(!self.live(id, hash, &shards).await?.is_empty())
    }

    /// Whether one shard holds all there is of a counter.
    pub fn is_on_one_shard(&self, id: &Id) -> bool {
        self.read_set(id, key_hash(id.as_str())).len() == 1
    }

    /// Every live partial of a counter, or `CounterNotFound`.
    pub async fn partials(self: &Arc<Self>, id: &Id) -> Result<Live, Error> {
        let hash = key_hash(id.as_str());
        let mut live = self.live(id, hash, &self.read_set(id, hash)).await?;
        if live.is_empty() {
            return Err(not_found(id));
        }
        live.sort_unstable_by_key(|partial| partial.shard);
        Ok(live)
    }

    /// The live partial of one shard.
    pub async fn partial(self: &Arc<Self>, id: &Id, shard: u32) -> Result<Option<i64>, Error> {
        Ok(self.live(id, key_hash(id.as_str()), &[shard]).await?.first().map(|partial| partial.value))
    }

    /// What these shards have journaled of the counter. Shards without a live partial are left out.
    async fn live(self: &Arc<Self>, id: &Id, hash: u64, shards: &[u32]) -> Result<Live, Error> {
        match &self.peers {
            None => self.live_here(id, hash, shards).await,
            Some(peers) => {
                let Gathered { found, .. } = self.gather(peers, id, shards, Missing::Wait).await?;
                Ok(found.into_iter().filter_map(Journaled::live).collect())
            }
        }
    }

    /// The same of shards that this node serves.
    pub(super) async fn live_here(self: &Arc<Self>, id: &Id, hash: u64, shards: &[u32]) -> Result<Live, Error> {
        let live = |shard, partial: &partials::Partial| {
            (!partial.removed).then_some(policy::Partial { shard, value: partial.value })
        };
        self.here(id, hash, shards, live).await
    }

    /// The same, with what was removed.
    pub(super) async fn found_here(
        self: &Arc<Self>,
        id: &Id,
        hash: u64,
        shards: &[u32],
    ) -> Result<Vec<Journaled>, Error> {
        let found = |shard, partial: &partials::Partial| {
            let &partials::Partial { seq, value, removed, .. } = partial;
            Some(Journaled { shard, seq, value, exists: !removed })
        };
        Ok(self.here(id, hash, shards, found).await?.into_vec())
    }

    async fn here<T>(
        self: &Arc<Self>,
        id: &Id,
        hash: u64,
        shards: &[u32],
        pick: fn(u32, &partials::Partial) -> Option<T>,
    ) -> Result<SmallVec<[T; 16]>, Error> {
        let mut found = SmallVec::new();
        let (mut unloaded, mut exists) = (SmallVec::<[u32; 16]>::new(), false);
        for &shard in shards {
            let partials = self.commits.tables[shard as usize].partials.read();
            match partials.get(hash, id) {
                Resident::Present(partial) => {
                    exists = true;
                    found.extend(pick(shard, partial));
                }
                Resident::Missing => {}
                Resident::Unloaded => unloaded.push(shard),
            }
        }
        if !unloaded.is_empty() {
            let id = id.clone();
            let loaded =
                self.off_thread(move |node| async move { node.load(&id, hash, &unloaded, exists).await }).await?;
            found.extend(loaded.iter().filter_map(|(shard, partial)| pick(*shard, partial)));
        }
        Ok(found)
    }

    /// Reads partials that are not in memory from the store, and keeps those that exist. Where the counter `exists` on some
    /// shard it is kept, too, that it is not on the others, so that the next read asks nothing.
    async fn load(
        &self,
        id: &Id,
        hash: u64,
        shards: &[u32],
        mut exists: bool,
    ) -> Result<Vec<(u32, partials::Partial)>, Error> {
        let mut all = SmallVec::<[_; 16]>::new();
        for &shard in shards {
            let evictions = self.commits.tables[shard as usize].partials.read().evictions();
            let loaded = self.store.load(shard, id).await?;
            exists |= loaded.is_some();
            all.push((shard, evictions, loaded));
        }
        let mut found = Vec::new();
        for (shard, evictions, loaded) in all {
            let mut resident = self.commits.tables[shard as usize].partials.write();
            // The writer may have loaded and changed it meanwhile; then its value is the newer one.
            let newest = match resident.get(hash, id) {
                Resident::Present(partial) => Some(partial),
                Resident::Missing => None,
                Resident::Unloaded => loaded.as_ref(),
            };
            found.extend(newest.map(|partial| (shard, partial.clone())));
            resident.load_if(evictions, hash, id, loaded, exists);
        }
        Ok(found)
    }
}
