//! The candidates in turn: each gets as many additions of a counter as the others, give or take one.
//!
//! A counter's turn starts at its home shard. Turns are kept in 1,024 places by the counter's hash; counters that meet
//! in one place take turns together. Every instance (one per thread and node) has turns of its own.
//!
//! `config`: none; leave it empty.
//!
//! Use it for an even spread without chance, when owners are alike. It does not see load: a slow owner gets its full
//! share (`least-cpu` and `two-choices` give it less).

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{string::String, vec, vec::Vec};

use quipu_selection::{Request, Selection, no_config, selection};

const PLACES: usize = 1_024;

pub struct RoundRobin {
    /// How many additions came to each place; wraps.
    turns: Vec<u32>,
}

selection!(RoundRobin);

impl Selection for RoundRobin {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self { turns: vec![0; PLACES] })
    }

    fn select(&mut self, request: &Request) -> u32 {
        let turn = &mut self.turns[(request.key_hash % PLACES as u64) as usize];
        let at = turn.checked_rem(request.candidates.len() as u32).unwrap_or(0);
        *turn = turn.wrapping_add(1);
        request.candidates.get(at as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::request;

    #[test]
    fn candidates_take_turns_from_the_home_shard_on() {
        let mut policy = RoundRobin::configure("").expect("no config");
        let seen = [(); 5].map(|()| policy.select(&request(9, &[4, 0, 2])));
        assert_eq!(seen, [4, 0, 2, 4, 0]);
    }

    #[test]
    fn counters_that_alternate_do_not_share_turns() {
        let mut policy = RoundRobin::configure("").expect("no config");
        let seen = [1, 2, 1, 2].map(|key_hash| policy.select(&request(key_hash, &[5, 6])));
        assert_eq!(seen, [5, 5, 6, 6]);
    }

    #[test]
    fn turns_go_on_after_the_last_number_and_without_candidates() {
        let mut policy = RoundRobin { turns: vec![u32::MAX; PLACES] };
        assert_eq!([(); 2].map(|()| policy.select(&request(1, &[5, 6]))), [6, 5]);
        assert_eq!(policy.select(&request(1, &[])), 0);
    }
}
