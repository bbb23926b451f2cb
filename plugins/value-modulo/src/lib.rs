//! The amount decides: shard = amount modulo the number of shards of the cluster.
//!
//! The remainder is Euclid's, never negative: with 3 shards the amounts 7 and -2 both go to shard 1. The answer depends
//! on nothing else, neither on load nor on the candidates.
//!
//! `config`: none; leave it empty.
//!
//! Use it where the value must name the shard, as clients of the compatible `POST /increment` expect. The rule needs a
//! spread of all shards: with a smaller one most answers are no candidates, and the host chooses instead. Do not use it
//! to balance load: equal amounts all meet on one shard.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_selection::{Request, Selection, View, no_config, selection};

#[derive(Default)]
pub struct ValueModulo {
    shards: u32,
}

selection!(ValueModulo);

impl Selection for ValueModulo {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self::default())
    }

    fn refresh(&mut self, view: &View) {
        self.shards = view.shards.len() as u32;
    }

    fn select(&mut self, request: &Request) -> u32 {
        match self.shards {
            0 => request.first(),
            shards => request.amount.rem_euclid(i64::from(shards)) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::{request, view};

    fn select(shards: usize, amount: i64) -> u32 {
        let mut policy = ValueModulo::configure("").expect("no config");
        policy.refresh(&view(&vec![0; shards]));
        policy.select(&Request { amount, ..request(1, &[2, 0, 1]) })
    }

    #[test]
    fn the_remainder_is_never_negative() {
        assert_eq!([0, 1, 2, 3, 7].map(|amount| select(3, amount)), [0, 1, 2, 0, 1]);
        assert_eq!([-1, -2, -3].map(|amount| select(3, amount)), [2, 1, 0]);
        assert_eq!([i64::MIN, i64::MAX].map(|amount| select(3, amount)), [1, 1]);
        assert_eq!(select(1, i64::MIN), 0);
    }

    #[test]
    fn a_cluster_without_shards_leaves_the_first_candidate() {
        assert_eq!(select(0, 7), 2);
    }
}
