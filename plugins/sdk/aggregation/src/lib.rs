//! The world `aggregation` as a Rust trait: write a struct, implement [`Aggregation`], name it in [`aggregation!`].
//!
//! The contract is `wit/aggregation.wit`. The policy stays plain Rust, so its unit tests run on the host target.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;
// The generated bindings name their runtime by a path that other crates can follow, too.
extern crate self as quipu_aggregation;

#[allow(unsafe_code)]
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        world: "aggregation",
        pub_export_macro: true,
        default_bindings_module: "quipu_aggregation::bindings",
        runtime_path: "quipu_aggregation::wit_bindgen::rt",
    });
}

use alloc::string::String;

pub use bindings::exports::quipu::policy::aggregator::{Partial, ReadPlan as Plan, Request, Total};
pub use bindings::quipu::policy::types::{ShardInfo, View};
pub use bindings::quipu::policy::{log, metrics, registry, storage};
pub use quipu_guest::{State, no_config};
#[doc(hidden)]
pub use wit_bindgen;

/// An aggregation policy. One value serves all calls of one instance.
pub trait Aggregation: Sized {
    /// Makes the policy from the rule's `config`. The text of an error is shown to whoever sets the rule.
    fn configure(config: &str) -> Result<Self, String>;

    /// Takes a new view: before the first `plan`, then at most once a second.
    fn refresh(&mut self, _view: &View) {}

    /// Says which shards are read.
    fn plan(&mut self, request: &Request) -> Plan;

    /// Makes a total of what was read. An error is answered by the built-in sum.
    fn combine(&mut self, partials: &[Partial]) -> Result<i128, String>;
}

/// The exact sum: 2^64 partials would be needed to overflow it.
pub fn sum(partials: &[Partial]) -> i128 {
    partials.iter().map(|partial| i128::from(partial.value)).sum()
}

impl From<i128> for Total {
    fn from(total: i128) -> Self {
        Self { hi: (total >> 64) as i64, lo: total as u64 }
    }
}

/// Exports a type that implements [`Aggregation`] as this component's policy.
#[macro_export]
macro_rules! aggregation {
    ($policy:ty) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code)]
        const _: () = {
            extern crate alloc;
            use $crate::bindings::export;
            use $crate::bindings::exports::quipu::policy::aggregator::Guest;

            static POLICY: $crate::State<$policy> = $crate::State::empty();

            struct Component;

            impl Guest for Component {
                fn configure(config: alloc::string::String) -> Result<(), alloc::string::String> {
                    POLICY.set(<$policy as $crate::Aggregation>::configure(&config)?);
                    Ok(())
                }

                fn refresh(view: $crate::View) {
                    POLICY.with(|policy| $crate::Aggregation::refresh(policy, &view));
                }

                fn plan(request: $crate::Request) -> $crate::Plan {
                    POLICY.with(|policy| $crate::Aggregation::plan(policy, &request))
                }

                fn combine(partials: alloc::vec::Vec<$crate::Partial>) -> Result<$crate::Total, alloc::string::String> {
                    POLICY.with(|policy| $crate::Aggregation::combine(policy, &partials)).map(Into::into)
                }
            }

            export! { Component with_types_in $crate::bindings }
        };
    };
}

/// Requests and partials for unit tests.
#[cfg(not(target_family = "wasm"))]
pub mod testing {
    use super::*;

    pub fn request(max_age_ms: u32) -> Request {
        Request { counter: "counter".into(), key_hash: 1, shards: vec![2, 0, 1], max_age_ms }
    }

    pub fn partials(values: &[i64]) -> Vec<Partial> {
        (0..).zip(values).map(|(shard, &value)| Partial { shard, value }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::partials;

    #[test]
    fn sums_pass_the_64_bit_range_exactly() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&partials(&[i64::MAX, i64::MAX, 1])), 2 * i128::from(i64::MAX) + 1);
        assert_eq!(sum(&partials(&[i64::MIN, i64::MIN])), 2 * i128::from(i64::MIN));
    }

    #[test]
    fn both_halves_make_the_total_again() {
        for total in [0, 1, -1, i128::from(i64::MIN) * 4_096, i128::from(u64::MAX) + 1, i128::MIN, i128::MAX] {
            let Total { hi, lo } = total.into();
            assert_eq!(i128::from(hi) << 64 | i128::from(lo), total);
        }
    }
}
