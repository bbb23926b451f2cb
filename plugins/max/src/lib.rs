//! The largest partial instead of a sum. A counter without partials is 0.
//!
//! Every shard is read, as for an exact sum. A shard without a partial of the counter does not take part: the largest
//! of -5 and nothing is -5.
//!
//! `config`: none; leave it empty.
//!
//! Use it where each shard counts for itself and the total asks how far the furthest came, for example with
//! `value-modulo`, where every shard stands for a class of amounts. Do not use it for a total of additions: with a
//! spread above 1 it is too low.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_aggregation::{Aggregation, Partial, Plan, Request, aggregation, no_config};

pub struct Max;

aggregation!(Max);

impl Aggregation for Max {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn plan(&mut self, _request: &Request) -> Plan {
        Plan::All
    }

    fn combine(&mut self, partials: &[Partial]) -> Result<i128, String> {
        Ok(partials.iter().map(|partial| partial.value).max().map_or(0, i128::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_aggregation::testing::{partials, request};

    #[test]
    fn the_largest_partial_is_the_total() {
        let mut policy = Max::configure("").expect("no config");
        assert!(matches!(policy.plan(&request(0)), Plan::All));
        assert_eq!(policy.combine(&partials(&[3, 9, -1])), Ok(9));
        assert_eq!(policy.combine(&partials(&[-5, i64::MIN])), Ok(-5));
        assert_eq!(policy.combine(&[]), Ok(0));
    }
}
