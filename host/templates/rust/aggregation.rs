//! How partials become a total. The contract is in `wit/deps/quipu-policy/aggregation.wit`.
//!
//! The exact sum: every shard is read, and 128 bits cannot overflow.

use exports::quipu::policy::aggregator::{Guest, Partial, ReadPlan, Request, Total, View};

wit_bindgen::generate!({ path: "wit", world: "policy", generate_all });

fn sum(partials: &[Partial]) -> i128 {
    partials.iter().map(|partial| i128::from(partial.value)).sum()
}

struct Component;

impl Guest for Component {
    fn configure(config: String) -> Result<(), String> {
        if config.is_empty() { Ok(()) } else { Err(format!("this policy needs no config; this one is {config:?}")) }
    }

    fn refresh(_view: View) {}

    fn plan(_request: Request) -> ReadPlan {
        ReadPlan::All
    }

    fn combine(partials: Vec<Partial>) -> Result<Total, String> {
        let total = sum(&partials);
        Ok(Total { hi: (total >> 64) as i64, lo: total as u64 })
    }
}

export!(Component);

#[cfg(test)]
mod tests {
    use super::*;

    fn total(values: &[i64]) -> (i64, u64) {
        let partials = (0..).zip(values).map(|(shard, &value)| Partial { shard, value }).collect();
        let total = Component::combine(partials).expect("a sum has no errors");
        (total.hi, total.lo)
    }

    #[test]
    fn totals_have_128_bits() {
        assert_eq!(total(&[]), (0, 0));
        assert_eq!(total(&[2, -3]), (-1, u64::MAX));
        assert_eq!(total(&[i64::MAX, i64::MAX, 2]), (1, 0));
        assert_eq!(total(&[i64::MIN, i64::MIN]), (-1, 0));
    }
}
