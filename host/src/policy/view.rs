//! What policies are told about the cluster: the view, the questions and the answers. Plain data; the records are laid
//! out for the component ABI here so that a call copies nothing on the host's side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

/// One shard as this node sees it. A record of `wit/types.wit`.
#[derive(Debug, Clone, Copy, PartialEq, ComponentType, Lower)]
#[component(record)]
pub struct ShardInfo {
    pub shard: u32,
    /// Somebody serves it now.
    pub available: bool,
    /// This node owns it.
    pub local: bool,
    /// 0.0 to 1.0; NaN when not known.
    #[component(name = "owner-cpu")]
    pub owner_cpu: f64,
    /// Operations waiting at the owner.
    pub queued: u32,
}

/// The whole topology, ordered by shard number. The node publishes what it sees, at most once a second.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// Rises with every change; starts anew with the process. Given when the view is published.
    pub version: u64,
    pub shards: Vec<ShardInfo>,
}

/// A view as `refresh` takes it.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(super) struct ViewRecord<'a> {
    pub version: u64,
    pub shards: &'a [ShardInfo],
}

impl View {
    pub(super) fn record(&self) -> ViewRecord<'_> {
        ViewRecord { version: self.version, shards: &self.shards }
    }

    /// Shards are ordered by number and dense, so this is an index; anything else is searched.
    pub fn shard(&self, shard: u32) -> Option<&ShardInfo> {
        match self.shards.get(shard as usize) {
            Some(info) if info.shard == shard => Some(info),
            _ => self.shards.iter().find(|info| info.shard == shard),
        }
    }
}

/// The newest view, and a number that says whether one has it already.
#[derive(Debug)]
pub(super) struct Published {
    /// The view's version.
    generation: AtomicU64,
    view: arc_swap::ArcSwap<View>,
    publishing: parking_lot::Mutex<()>,
}

impl Published {
    pub fn new() -> Self {
        let first = View { version: 1, shards: Vec::new() };
        Self {
            generation: AtomicU64::new(1),
            view: arc_swap::ArcSwap::from_pointee(first),
            publishing: Default::default(),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn load(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Numbers a view and makes it the newest, unless it says what the newest says.
    pub fn publish(&self, shards: Vec<ShardInfo>) {
        let _one_at_a_time = self.publishing.lock();
        if self.view.load().shards == shards {
            return;
        }
        let version = self.generation() + 1;
        self.view.store(Arc::new(View { version, shards }));
        self.generation.store(version, Ordering::Release);
    }
}

/// One addition that needs a shard: the request of `wit/selection.wit`.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct Select<'a> {
    pub counter: &'a str,
    pub amount: i64,
    #[component(name = "key-hash")]
    pub key_hash: u64,
    /// At least one; the first is the native choice.
    pub candidates: &'a [u32],
}

/// The shard that takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    pub shard: u32,
    /// The native choice answered in the policy's place.
    pub fallback: bool,
}

/// One read: the request of `wit/aggregation.wit`.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct Read<'a> {
    pub counter: &'a str,
    #[component(name = "key-hash")]
    pub key_hash: u64,
    /// Every shard that may hold a partial, the home shard first.
    pub shards: &'a [u32],
    /// The caller accepts a total this old; 0 asks for an exact one.
    #[component(name = "max-age-ms")]
    pub max_age_ms: u32,
}

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[serde(rename_all = "snake_case")]
#[component(variant)]
pub enum Plan {
    #[component(name = "all")]
    All,
    #[component(name = "available")]
    Available,
    /// Distinct shards of the request.
    #[component(name = "only")]
    Only(Vec<u32>),
    #[component(name = "cached")]
    Cached,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub plan: Plan,
    pub fallback: bool,
}

/// What one shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lower)]
#[component(record)]
pub struct Partial {
    pub shard: u32,
    pub value: i64,
}

/// A signed 128-bit integer as the ABI carries it.
#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(super) struct Total {
    pub hi: i64,
    pub lo: u64,
}

impl From<Total> for i128 {
    fn from(total: Total) -> Self {
        i128::from(total.hi) << 64 | i128::from(total.lo)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combined {
    pub total: i128,
    /// The built-in sum answered in the policy's place.
    pub fallback: bool,
}

/// The native choice.
pub(super) fn select_natively(candidates: &[u32]) -> Chosen {
    Chosen { shard: candidates.first().copied().unwrap_or(0), fallback: true }
}

/// The built-in sum. It cannot overflow: 2^32 shards of 2^63 need 95 bits.
pub(super) fn combine_natively(partials: &[Partial]) -> Combined {
    Combined { total: partials.iter().map(|partial| i128::from(partial.value)).sum(), fallback: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_carry_their_sign_through_both_halves() {
        for expected in [0, 1, -1, i128::from(i64::MIN), i128::from(u64::MAX) + 1, i128::MIN, i128::MAX] {
            let total = Total { hi: (expected >> 64) as i64, lo: expected as u64 };
            assert_eq!(i128::from(total), expected);
        }
    }

    #[test]
    fn the_built_in_sum_leaves_64_bits() {
        let partials = [Partial { shard: 0, value: i64::MIN }, Partial { shard: 1, value: i64::MIN }];
        assert_eq!(combine_natively(&partials).total, 2 * i128::from(i64::MIN));
    }

    #[test]
    fn only_a_changed_view_gets_a_new_number() {
        let info = |queued| ShardInfo { shard: 0, available: true, local: true, owner_cpu: 0.5, queued };
        let published = Published::new();
        published.publish(vec![info(1)]);
        published.publish(vec![info(1)]);
        assert_eq!((published.generation(), published.load().version), (2, 2));
        published.publish(vec![info(2)]);
        assert_eq!((published.generation(), published.load().version), (3, 3));
    }

    #[test]
    fn shards_are_found_by_number_even_when_not_dense() {
        let info = |shard| ShardInfo { shard, available: true, local: true, owner_cpu: 0.0, queued: shard };
        let view = View { version: 1, shards: vec![info(0), info(1), info(7)] };
        assert_eq!(view.shard(7).map(|info| info.queued), Some(7));
        assert!(view.shard(2).is_none());
    }
}
