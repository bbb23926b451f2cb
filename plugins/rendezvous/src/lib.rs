//! Always the same shard for a counter: its home shard, or the next in rendezvous order while nobody serves that one.
//!
//! Every node and every instance answers alike, without state. Counters spread evenly over shards, but the additions of
//! one counter stay together.
//!
//! `config`: none; leave it empty.
//!
//! Use it for many counters of which none is hot: each has one partial, so reads and memory cost least. A hot counter
//! is then as fast as one shard; for more, take `round-robin`, `two-choices` or `least-cpu`.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_selection::{Request, Selection, no_config, selection};

pub struct Rendezvous;

selection!(Rendezvous);

impl Selection for Rendezvous {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn select(&mut self, request: &Request) -> u32 {
        request.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::request;

    #[test]
    fn the_first_candidate_answers() {
        let mut policy = Rendezvous::configure("").expect("no config");
        assert_eq!([&[9, 1, 11][..], &[1, 11], &[]].map(|list| policy.select(&request(3, list))), [9, 1, 0]);
    }

    #[test]
    fn a_config_is_refused() {
        assert!(Rendezvous::configure("home").is_err());
    }
}
