//! A shard of the node that got the request, if it owns a candidate; otherwise the counter's home shard.
//!
//! Among several local candidates the first in rendezvous order wins, so a node keeps to one shard per counter. Which
//! shards are local comes with the view, and is up to a second old after a shard moved.
//!
//! `config`: none; leave it empty.
//!
//! Use it where a hop to another node costs more than an uneven load, and where the load balancer in front spreads
//! requests evenly. With one node everything is local, and it behaves as `rendezvous`. Do not use it where few gateways
//! get all the traffic: their own shards would take all of it.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{string::String, vec::Vec};

use quipu_selection::{Request, Selection, View, no_config, selection};

#[derive(Default)]
pub struct LocalFirst {
    /// By shard number.
    local: Vec<bool>,
}

selection!(LocalFirst);

impl Selection for LocalFirst {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self::default())
    }

    fn refresh(&mut self, view: &View) {
        self.local.clear();
        self.local.extend(view.shards.iter().map(|shard| shard.local && shard.available));
    }

    fn select(&mut self, request: &Request) -> u32 {
        let local = |shard: &&u32| self.local.get(**shard as usize) == Some(&true);
        request.candidates.iter().find(local).copied().unwrap_or_else(|| request.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::{request, view};

    fn select(local: &[usize], candidates: &[u32]) -> u32 {
        let (mut policy, mut view) = (LocalFirst::default(), view(&[0; 6]));
        local.iter().for_each(|&shard| view.shards[shard].local = true);
        view.shards[5].available = false;
        policy.refresh(&view);
        policy.select(&request(3, candidates))
    }

    #[test]
    fn the_first_local_candidate_wins() {
        assert_eq!(select(&[0, 4], &[2, 4, 0]), 4);
    }

    #[test]
    fn without_a_local_candidate_the_first_one_wins() {
        assert_eq!(select(&[1], &[2, 4, 0]), 2);
        assert_eq!(select(&[5], &[2, 5]), 2, "a local shard that is not served yet");
        assert_eq!(LocalFirst::default().select(&request(3, &[8])), 8);
        assert_eq!(select(&[0], &[]), 0);
    }
}
