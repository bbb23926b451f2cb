//! Which shard takes an addition. The contract is in `wit/deps/quipu-policy/selection.wit`.
//!
//! The candidates take additions in turn; one whose queue is longer than the rule's `config` says is passed over.

use std::cell::RefCell;

use exports::quipu::policy::selector::{Guest, Request, View};

wit_bindgen::generate!({ path: "wit", world: "policy", generate_all });

const QUEUED_MAX_DEFAULT: u32 = 100;

/// One per instance. There are many instances, and each may vanish after any call.
#[derive(Default)]
struct Policy {
    queued_max: u32,
    /// By shard number.
    queued: Vec<u32>,
    turn: u32,
}

impl Policy {
    fn configure(config: &str) -> Result<Self, String> {
        let queued_max = match config {
            "" => QUEUED_MAX_DEFAULT,
            text => text.parse().map_err(|_| {
                format!("the config is the longest queue that may still get additions, such as 100; this one is {text:?}")
            })?,
        };
        Ok(Self { queued_max, ..Self::default() })
    }

    fn refresh(&mut self, view: &View) {
        self.queued = view.shards.iter().map(|shard| shard.queued).collect();
    }

    fn select(&mut self, candidates: &[u32]) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn as usize % candidates.len();
        let (before, from) = candidates.split_at(first);
        let short = |shard: &&u32| self.queued.get(**shard as usize).is_none_or(|&queued| queued <= self.queued_max);
        *from.iter().chain(before).find(short).unwrap_or(&candidates[first])
    }
}

thread_local! {
    static POLICY: RefCell<Policy> = RefCell::default();
}

struct Component;

impl Guest for Component {
    fn configure(config: String) -> Result<(), String> {
        POLICY.set(Policy::configure(&config)?);
        Ok(())
    }

    fn refresh(view: View) {
        POLICY.with_borrow_mut(|policy| policy.refresh(&view));
    }

    fn select(request: Request) -> u32 {
        POLICY.with_borrow_mut(|policy| policy.select(&request.candidates))
    }
}

export!(Component);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidates_take_turns() {
        let mut policy = Policy::configure("").expect("no config is needed");
        let chosen: Vec<u32> = (0..6).map(|_| policy.select(&[4, 9, 1])).collect();
        assert_eq!(chosen, [9, 1, 4, 9, 1, 4]);
    }

    #[test]
    fn a_long_queue_is_passed_over() {
        let mut policy = Policy::configure("10").expect("a number");
        policy.queued = vec![0, 11, 10];
        assert!((0..10).all(|_| policy.select(&[0, 1, 2]) != 1));
        policy.queued = vec![11, 11, 11];
        assert!((0..10).all(|_| policy.select(&[0, 1, 2]) <= 2), "one of them has to take it");
    }

    #[test]
    fn a_config_that_is_no_number_is_refused() {
        assert!(Policy::configure("many").is_err_and(|text| text.contains("\"many\"")));
    }
}
