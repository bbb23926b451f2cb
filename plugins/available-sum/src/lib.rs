//! The sum of the shards that are served now. Shards that nobody serves are left out instead of waited for.
//!
//! While a shard is away the total lacks its partial, so it can be lower or higher than the true one; the answer does
//! not call it exact. When every shard is served it is the same sum as `sum` makes.
//!
//! `config`: none; leave it empty.
//!
//! Use it where some answer now is better than the right one in a few seconds, such as a number on a page. Do not use
//! it for stock, quotas or money.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_aggregation::{Aggregation, Partial, Plan, Request, aggregation, no_config, sum};

pub struct AvailableSum;

aggregation!(AvailableSum);

impl Aggregation for AvailableSum {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn plan(&mut self, _request: &Request) -> Plan {
        Plan::Available
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
    fn shards_that_are_served_are_summed() {
        assert!(matches!(AvailableSum.plan(&request(0)), Plan::Available));
        assert_eq!(AvailableSum.combine(&partials(&[40, 2])), Ok(42));
        assert_eq!(AvailableSum.combine(&[]), Ok(0));
    }
}
