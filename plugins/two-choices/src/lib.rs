//! Two random candidates; the one with the shorter queue wins (Mitzenmacher, 2001).
//!
//! Queue lengths come with the view, so they are up to a second old. That is why the policy compares only two: if all
//! nodes went for the shortest of all queues they would meet there and make it the longest. Equal queues: the one drawn
//! first. With two candidates both are compared every time; with one it is the answer.
//!
//! `config`: none; leave it empty.
//!
//! Use it when shards differ in how fast they journal, or when few counters are very hot. When queues are short all the
//! time it behaves as `random`; when owners share their machines with other work, `least-cpu` sees that earlier.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{string::String, vec::Vec};

use quipu_selection::{Random, Request, Selection, View, no_config, selection};

#[derive(Default)]
pub struct TwoChoices {
    /// By shard number.
    queued: Vec<u32>,
    random: Random,
}

selection!(TwoChoices);

impl Selection for TwoChoices {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self::default())
    }

    fn refresh(&mut self, view: &View) {
        self.random.stir(view);
        self.queued.clear();
        self.queued.extend(view.shards.iter().map(|shard| shard.queued));
    }

    fn select(&mut self, request: &Request) -> u32 {
        let candidates = &request.candidates;
        let len = candidates.len() as u32;
        if len < 2 {
            return request.first();
        }
        let first = self.random.below(request.key_hash, len);
        // One of the others: a step of 1 to len - 1 around the circle.
        let second = (first + 1 + self.random.below(request.key_hash, len - 1)) % len;
        let (first, second) = (candidates[first as usize], candidates[second as usize]);
        if self.queued(second) < self.queued(first) { second } else { first }
    }
}

impl TwoChoices {
    fn queued(&self, shard: u32) -> u32 {
        self.queued.get(shard as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::{request, view};

    fn shares(queued: &[u32], candidates: &[u32]) -> Vec<u32> {
        let mut policy = TwoChoices::default();
        policy.refresh(&view(queued));
        let mut shares = vec![0; queued.len()];
        (0..12_000).for_each(|_| shares[policy.select(&request(5, candidates)) as usize] += 1);
        shares
    }

    #[test]
    fn the_longest_queue_is_never_chosen_and_the_shortest_most_often() {
        let shares = shares(&[9, 0, 5, 7], &[0, 1, 2]);
        assert_eq!((shares[0], shares[3]), (0, 0));
        assert!((7_700..8_300).contains(&shares[1]), "two thirds of the pairs hold shard 1: {shares:?}");
    }

    #[test]
    fn equal_queues_share_evenly() {
        let shares = shares(&[4, 4, 4, 4], &[3, 1, 0]);
        assert!([0, 1, 3].iter().all(|&shard| (3_700..4_300).contains(&shares[shard])), "{shares:?}");
    }

    #[test]
    fn few_candidates_and_no_view_are_no_panic() {
        let mut policy = TwoChoices::default();
        assert_eq!([&[][..], &[7]].map(|candidates| policy.select(&request(5, candidates))), [0, 7]);
        assert!([8, 9].contains(&policy.select(&request(5, &[8, 9]))));
    }
}
