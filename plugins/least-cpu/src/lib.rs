//! The idler a shard's owner, the more additions it gets. The default.
//!
//! At every refresh the policy asks `metrics.shard-cpu` for the CPU use of each shard's owner and keeps a weight per
//! shard: the idle share of that CPU. Until the next refresh each addition draws among its candidates with these
//! weights. An owner that is 90 % idle gets nine times as much as one that is 10 % idle, not everything: nodes that
//! see the same figures do not all turn to the same owner. Shards of one owner have the same weight.
//!
//! Where the draw falls on a shard of the node that got the request, the lowest of that node's candidates takes the
//! addition: more shards of one owner would share its CPU and its store all the same, a counter that keeps to one of them
//! has fewer partials, and where many counters meet in few journals, each entry carries more additions. Which shards are
//! this node's comes with the view, and is up to a second old after a shard moved.
//!
//! An owner whose CPU use is not known counts as half idle. A busy one still gets 1/100 of what an idle one gets.
//!
//! `config`: none; leave it empty.
//!
//! Use it when owners differ in power or in other load. It spreads a counter over the owners of its candidates: where one
//! shard suffices, `rendezvous` keeps partials fewer; where queues, not CPUs, are the bottleneck, take `two-choices`; to
//! write all candidates, also with a single node, `round-robin` or `random`.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{string::String, vec::Vec};

use quipu_selection::{Random, Request, Selection, View, metrics, no_config, selection};

/// The weight of an owner that is wholly idle.
const IDLE: f64 = 100.0;
/// The weight of an owner whose CPU use is not known.
const UNKNOWN: u32 = 50;

#[derive(Default)]
pub struct LeastCpu {
    /// By shard number.
    weights: Vec<u32>,
    /// The shards that this node serves, by shard number.
    local: Vec<bool>,
    random: Random,
}

selection!(LeastCpu);

impl Selection for LeastCpu {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self::default())
    }

    fn refresh(&mut self, view: &View) {
        self.random.stir(view);
        self.weights.clear();
        self.weights.extend(view.shards.iter().map(|shard| weight(metrics::shard_cpu(shard.shard))));
        self.see_local(view);
    }

    fn select(&mut self, request: &Request) -> u32 {
        let weight = |&shard: &u32| self.weights.get(shard as usize).copied().unwrap_or(UNKNOWN);
        let total = request.candidates.iter().map(weight).sum();
        let mut drawn = self.random.below(request.key_hash, total);
        for shard in &request.candidates {
            match drawn.checked_sub(weight(shard)) {
                Some(rest) => drawn = rest,
                None => return self.lowest_like(*shard, &request.candidates),
            }
        }
        request.first()
    }
}

impl LeastCpu {
    fn see_local(&mut self, view: &View) {
        self.local.clear();
        self.local.extend(view.shards.iter().map(|shard| shard.local && shard.available));
    }

    /// This shard, or the lowest local candidate if this one is local too.
    fn lowest_like(&self, drawn: u32, candidates: &[u32]) -> u32 {
        let local = |shard: u32| self.local.get(shard as usize) == Some(&true);
        if !local(drawn) {
            return drawn;
        }
        candidates.iter().copied().filter(|&shard| local(shard)).min().unwrap_or(drawn)
    }
}

/// From 1 (busy) to 100 (idle).
fn weight(cpu: Option<f64>) -> u32 {
    match cpu {
        Some(cpu) if !cpu.is_nan() => ((1.0 - cpu) * IDLE).clamp(1.0, IDLE) as u32,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::{request, view};

    fn shares(cpus: &[Option<f64>], candidates: &[u32]) -> Vec<u32> {
        shares_beside(&[], cpus, candidates)
    }

    /// How 10,000 additions fall where these shards are local.
    fn shares_beside(local: &[usize], cpus: &[Option<f64>], candidates: &[u32]) -> Vec<u32> {
        let mut view = view(&[0; 8]);
        local.iter().for_each(|&shard| view.shards[shard].local = true);
        let mut policy = LeastCpu { weights: cpus.iter().map(|&cpu| weight(cpu)).collect(), ..LeastCpu::default() };
        policy.see_local(&view);
        let mut shares = vec![0; 8];
        (0..10_000).for_each(|_| shares[policy.select(&request(7, candidates)) as usize] += 1);
        shares
    }

    #[test]
    fn shares_follow_idle_cpu() {
        let shares = shares(&[Some(0.1), Some(0.9), Some(0.1)], &[0, 1]);
        assert!((8_800..9_200).contains(&shares[0]) && shares[0] + shares[1] == 10_000, "{shares:?}");
    }

    #[test]
    fn one_local_shard_stands_for_all_of_them() {
        let alone = shares_beside(&[0, 1, 2, 3], &[Some(0.5); 4], &[3, 1, 2]);
        assert_eq!(alone[1], 10_000, "{alone:?}");
        let shares = shares_beside(&[1, 3], &[Some(0.5); 4], &[2, 3, 1]);
        assert!((6_400..6_900).contains(&shares[1]) && shares[3] == 0, "two of three draws: {shares:?}");
        assert_eq!(shares[1] + shares[2], 10_000);
    }

    #[test]
    fn a_local_shard_that_nobody_serves_yet_stands_for_none() {
        let mut view = view(&[0; 3]);
        view.shards.iter_mut().for_each(|shard| shard.local = true);
        view.shards[2].available = false;
        let mut policy = LeastCpu::default();
        policy.see_local(&view);
        assert!((0..1_000).all(|_| policy.select(&request(7, &[2, 1, 0])) != 1));
    }

    #[test]
    fn unknown_is_half_idle_and_busy_is_never_nothing() {
        assert_eq!([None, Some(f64::NAN), Some(0.5)].map(weight), [50; 3]);
        assert_eq!([Some(-1.0), Some(0.0), Some(1.0), Some(7.0), Some(f64::INFINITY)].map(weight), [100, 100, 1, 1, 1]);
        let shares = shares(&[], &[6, 7]);
        assert!((4_800..5_200).contains(&shares[6]), "{shares:?}");
        assert_eq!(LeastCpu::default().select(&request(7, &[])), 0);
    }
}
