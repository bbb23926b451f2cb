//! The exact sum of all partials. The default.
//!
//! Every shard that may hold a part of the counter is read; the answer waits for shards that nobody serves, and fails
//! when they are not back by the read's deadline. What it answers is the sum of what each shard has journaled, computed
//! in 128 bits.
//!
//! `config`: none; leave it empty.
//!
//! Use it whenever the total must be right. Where an old total is good enough, `cached-sum` reads less; where an answer
//! must come while shards are away, `available-sum` gives one.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_aggregation::{Aggregation, Partial, Plan, Request, aggregation, no_config, sum};

pub struct Sum;

aggregation!(Sum);

impl Aggregation for Sum {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn plan(&mut self, _request: &Request) -> Plan {
        Plan::All
    }

    fn combine(&mut self, partials: &[Partial]) -> Result<i128, String> {
        Ok(sum(partials))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_aggregation::testing::{partials, request};

    #[test]
    fn all_shards_are_read_and_summed() {
        let mut policy = Sum::configure("").expect("no config");
        assert!(matches!(policy.plan(&request(60_000)), Plan::All));
        assert_eq!(policy.combine(&partials(&[i64::MAX, i64::MAX, -3])), Ok(2 * i128::from(i64::MAX) - 3));
        assert_eq!(policy.combine(&[]), Ok(0));
    }
}
