//! Conformance vectors: what an admitted policy must be able to answer. Plain data, the same for every policy.
//!
//! Nothing here runs a policy; `trial` does. Questions keep the contract of `wit/` (candidates are distinct, in
//! rendezvous order and shards of the view) but for two: the view of no shards, which an instance sees before the node
//! published its first, has candidates nevertheless, and an empty id is asked, which no caller can send.

use std::fmt;

use super::view::{Partial, Read, Select, ShardInfo, View};
use crate::counter::candidates::{Candidates, candidates, key_hash};

/// Sizes of the views.
pub(super) const VIEWS: [u32; 5] = [0, 1, 3, 64, 1_000];
/// How many candidates, or shards of a counter, a question has: those that the view has room for.
const SPREADS: [u32; 4] = [1, 3, 64, 1_000];
const AMOUNTS: [i64; 5] = [0, 1, -1, i64::MIN, i64::MAX];
const AGES_MS: [u32; 3] = [0, 1_000, u32::MAX];
/// The question that stands for all others where only one thing is varied, and whose cost is measured.
const USUAL_ID: &str = "example-counter";
const USUAL_SPREAD: u32 = 3;
/// The view that the cost is measured with.
pub(super) const USUAL_VIEW: u32 = 64;

/// A view of so many shards: owners known and unknown, served and not, idle and busy.
pub(super) fn view(shards: u32) -> View {
    let info = |shard: u32| {
        let available = shard % 7 != 3;
        ShardInfo {
            shard,
            available,
            local: shard.is_multiple_of(2),
            owner_cpu: if !available || shard % 13 == 5 { f64::NAN } else { f64::from(shard % 11) / 10.0 },
            queued: if shard % 17 == 2 { u32::MAX } else { shard % 5 * 1_000 },
        }
    };
    View { version: u64::from(shards) + 1, shards: (0..shards).map(info).collect() }
}

fn ids() -> [String; 5] {
    [String::new(), "c".into(), "likes/é/計數器".into(), "x".repeat(512), "🧶".repeat(128)]
}

/// The shards of a counter in a cluster of the view's size; before there is a view, in one that is large enough.
fn shards_of(id: &str, view: u32, spread: u32) -> Candidates {
    let shards = if view == 0 { spread } else { view };
    candidates(key_hash(id), shards, spread)
}

/// Which candidates additions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A few, and all.
    Any,
    /// Every shard of the view, as under a rule whose spread is all shards.
    AllShards,
}

impl Reach {
    fn spreads(self, view: u32) -> Vec<u32> {
        match self {
            Self::AllShards if view > 0 => vec![view],
            _ => SPREADS.into_iter().filter(|&spread| view == 0 || spread <= view).collect(),
        }
    }

    fn usual(self, view: u32) -> u32 {
        if self == Self::AllShards && view > 0 { view } else { USUAL_SPREAD }
    }
}

/// The view of this size that it is refreshed with, in a refusal.
pub(super) struct Refreshing(pub u32);

impl fmt::Display for Refreshing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a view of {}", Count(self.0 as usize, "shard"))
    }
}

/// One addition; it knows which view it belongs to, to be named in a refusal.
#[derive(Debug, Clone)]
pub(super) struct Addition {
    view: u32,
    counter: String,
    amount: i64,
    candidates: Candidates,
}

impl Addition {
    fn new(view: u32, counter: &str, amount: i64, spread: u32) -> Self {
        Self { view, counter: counter.to_owned(), amount, candidates: shards_of(counter, view, spread) }
    }

    pub fn usual(reach: Reach) -> Self {
        Self::new(USUAL_VIEW, USUAL_ID, 1, reach.usual(USUAL_VIEW))
    }

    pub fn request(&self) -> Select<'_> {
        Select {
            counter: &self.counter,
            amount: self.amount,
            key_hash: key_hash(&self.counter),
            candidates: &self.candidates,
        }
    }
}

impl fmt::Display for Addition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, of) = (Id(&self.counter), Count(self.candidates.len(), "candidate"));
        write!(
            f,
            "an addition of {} to {id} with {of}, in a view of {}",
            self.amount,
            Count(self.view as usize, "shard")
        )
    }
}

/// The additions that are asked in a view of this size.
pub(super) fn additions(view: u32, reach: Reach) -> Vec<Addition> {
    let (spreads, usual) = (reach.spreads(view), reach.usual(view));
    let mut all: Vec<_> = spreads.iter().map(|&spread| Addition::new(view, USUAL_ID, 1, spread)).collect();
    all.extend(AMOUNTS.map(|amount| Addition::new(view, USUAL_ID, amount, usual)));
    all.extend(ids().iter().map(|id| Addition::new(view, id, 1, usual)));
    let widest = spreads.last().copied().unwrap_or(1);
    all.push(Addition::new(view, &ids()[4], i64::MIN, widest));
    all
}

/// One read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    view: u32,
    counter: String,
    max_age_ms: u32,
    shards: Candidates,
}

impl Reading {
    fn new(view: u32, counter: &str, max_age_ms: u32, spread: u32) -> Self {
        Self { view, counter: counter.to_owned(), max_age_ms, shards: shards_of(counter, view, spread) }
    }

    pub fn usual() -> Self {
        Self::new(USUAL_VIEW, USUAL_ID, 0, USUAL_SPREAD)
    }

    pub fn request(&self) -> Read<'_> {
        Read {
            counter: &self.counter,
            key_hash: key_hash(&self.counter),
            shards: &self.shards,
            max_age_ms: self.max_age_ms,
        }
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, on) = (Id(&self.counter), Count(self.shards.len(), "shard"));
        let view = Count(self.view as usize, "shard");
        write!(f, "a read of {id} on {on}, at most {} ms old, in a view of {view}", self.max_age_ms)
    }
}

/// The reads that are planned in a view of this size.
pub(super) fn readings(view: u32) -> Vec<Reading> {
    let spreads = Reach::Any.spreads(view).into_iter();
    let mut all: Vec<_> = spreads.map(|spread| Reading::new(view, USUAL_ID, 0, spread)).collect();
    all.extend(AGES_MS.map(|age| Reading::new(view, USUAL_ID, age, USUAL_SPREAD)));
    all.extend(ids().iter().map(|id| Reading::new(view, id, 0, USUAL_SPREAD)));
    all
}

/// What one `combine` is given.
#[derive(Debug, Clone)]
pub(super) struct Partials {
    what: &'static str,
    pub list: Vec<Partial>,
}

impl Partials {
    fn new(what: &'static str, values: impl IntoIterator<Item = i64>) -> Self {
        Self { what, list: (0..).zip(values).map(|(shard, value)| Partial { shard, value }).collect() }
    }

    pub fn usual() -> Self {
        Self::new("three partials", [41, -7, 8])
    }

    /// The total of a policy that claims to be exact.
    pub fn sum(&self) -> i128 {
        self.list.iter().map(|partial| i128::from(partial.value)).sum()
    }
}

impl fmt::Display for Partials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// The partials that are combined, whatever the view.
pub(super) fn partials() -> Vec<Partials> {
    let cycle = |values: [i64; 2]| values.into_iter().cycle().take(1_000);
    vec![
        Partials::new("no partials", []),
        Partials::new("one partial of 0", [0]),
        Partials::new("one partial of 1", [1]),
        Partials::new("one partial of -1", [-1]),
        Partials::new("one partial of 2^63 - 1", [i64::MAX]),
        Partials::new("one partial of -2^63", [i64::MIN]),
        Partials::usual(),
        Partials::new("two partials of 2^63 - 1", [i64::MAX; 2]),
        Partials::new("two partials of -2^63", [i64::MIN; 2]),
        Partials::new("the two extreme partials", [i64::MIN, i64::MAX]),
        Partials::new("64 partials", -20..44),
        Partials::new("1000 partials", 0..1_000),
        Partials::new("1000 partials of 2^63 - 1", [i64::MAX; 1_000]),
        Partials::new("1000 partials of -2^63", [i64::MIN; 1_000]),
        Partials::new("1000 partials of -2^63 and 2^63 - 1 in turns", cycle([i64::MIN, i64::MAX])),
    ]
}

/// An id in a refusal: short ones as they are.
struct Id<'a>(&'a str);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => f.write_str("an empty id"),
            1..=64 => write!(f, "{:?}", self.0),
            bytes if self.0.is_ascii() => write!(f, "an id of {bytes} bytes"),
            bytes => write!(f, "an id of {bytes} bytes that are not ASCII"),
        }
    }
}

struct Count(usize, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_keep_the_contract() {
        for size in VIEWS {
            assert_eq!(view(size).shards.len(), size as usize);
            let distinct = |shards: &[u32]| {
                let mut sorted = shards.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                sorted.len() == shards.len() && !shards.is_empty()
            };
            let inside = |shards: &[u32]| size == 0 || shards.iter().all(|&shard| shard < size);
            for addition in [Reach::Any, Reach::AllShards].into_iter().flat_map(|reach| additions(size, reach)) {
                let candidates = addition.request().candidates;
                assert!(distinct(candidates) && inside(candidates) && addition.counter.len() <= 512, "{addition}");
            }
            for reading in readings(size) {
                let shards = reading.request().shards;
                assert!(distinct(shards) && inside(shards), "{reading}");
            }
        }
    }

    #[test]
    fn what_was_promised_is_asked() {
        let all: Vec<_> = VIEWS.into_iter().flat_map(|view| additions(view, Reach::Any)).collect();
        let some = |what: &dyn Fn(&Addition) -> bool| all.iter().any(what);
        for spread in SPREADS {
            assert!(some(&|addition| addition.candidates.len() == spread as usize), "{spread} candidates");
        }
        for amount in AMOUNTS {
            assert!(some(&|addition| addition.amount == amount), "{amount}");
        }
        for bytes in [0, 1, 512] {
            assert!(some(&|addition| addition.counter.len() == bytes), "an id of {bytes} bytes");
        }
        assert!(some(&|addition| !addition.counter.is_ascii()));
        assert!(view(64).shards.iter().any(|info| info.owner_cpu.is_nan() && info.available));
        let totals: Vec<i128> = partials().iter().map(Partials::sum).collect();
        assert!(totals.contains(&(1_000 * i128::from(i64::MAX))) && totals.contains(&(1_000 * i128::from(i64::MIN))));
    }

    #[test]
    fn a_rule_of_all_shards_is_asked_with_all_shards() {
        for size in VIEWS.into_iter().filter(|&size| size > 0) {
            let all = |addition: &Addition| addition.candidates.len() == size as usize;
            assert!(additions(size, Reach::AllShards).iter().all(all));
            assert!(size <= 3 || !additions(size, Reach::Any).iter().all(all));
        }
    }

    #[test]
    fn a_vector_is_named_in_words() {
        assert_eq!(
            Addition::new(3, &"x".repeat(512), -1, 1).to_string(),
            "an addition of -1 to an id of 512 bytes with 1 candidate, in a view of 3 shards"
        );
        assert_eq!(
            Reading::new(0, "", 5, 3).to_string(),
            "a read of an empty id on 3 shards, at most 5 ms old, in a view of 0 shards"
        );
    }
}
