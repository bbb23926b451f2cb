//! Any candidate, all with the same probability.
//!
//! `config`: none; leave it empty.
//!
//! Use it as the plainest spread: it needs no view, keeps no state that matters, and no pattern of requests can line
//! up with it. It does not see load; `two-choices` costs hardly more and does. The numbers are good for spreading, not
//! for secrets.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_selection::{Request, Selection, View, no_config, selection};

#[derive(Default)]
pub struct Random(quipu_selection::Random);

selection!(Random);

impl Selection for Random {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self::default())
    }

    fn refresh(&mut self, view: &View) {
        self.0.stir(view);
    }

    fn select(&mut self, request: &Request) -> u32 {
        let at = self.0.below(request.key_hash, request.candidates.len() as u32);
        request.candidates.get(at as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_selection::testing::request;

    #[test]
    fn every_candidate_gets_its_share() {
        let (mut policy, mut shares) = (Random::default(), [0; 4]);
        (0..30_000).for_each(|_| shares[policy.select(&request(5, &[3, 0, 2])) as usize] += 1);
        assert_eq!(shares[1], 0);
        assert!([0, 2, 3].iter().all(|&shard| (9_600..10_400).contains(&shares[shard])), "{shares:?}");
    }

    #[test]
    fn no_candidate_is_no_panic() {
        assert_eq!(Random::default().select(&request(5, &[])), 0);
    }
}
