//! The last sum that this node computed, if it is younger than the reader accepts; otherwise the sum of all partials.
//!
//! The reader says what it accepts (`?read=cached&max_age_ms=1000`). A read that asks for an exact total always gets a
//! new sum. The answer names its age and does not call a kept total exact.
//!
//! `config`: none; leave it empty.
//!
//! Use it for totals that are shown often and need not be of this very moment: most reads then ask no shard at all.
//! Nodes keep their totals apart, so readers behind a load balancer may see a total go back within the accepted age.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_aggregation::{Aggregation, Partial, Plan, Request, aggregation, no_config, sum};

pub struct CachedSum;

aggregation!(CachedSum);

impl Aggregation for CachedSum {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn plan(&mut self, request: &Request) -> Plan {
        match request.max_age_ms {
            0 => Plan::All,
            _ => Plan::Cached,
        }
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
    fn a_kept_total_serves_whoever_accepts_its_age() {
        assert!(matches!(CachedSum.plan(&request(1)), Plan::Cached));
        assert!(matches!(CachedSum.plan(&request(0)), Plan::All));
    }

    #[test]
    fn partials_are_summed() {
        assert_eq!(CachedSum.combine(&partials(&[2, -5, i64::MIN])), Ok(i128::from(i64::MIN) - 3));
    }
}
