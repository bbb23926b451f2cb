//! Random numbers without an import: SplitMix64 (Steele et al., 2014), stirred by what the instance is told.
//!
//! Good for spreading load, not for secrets. The same calls give the same numbers, so a recording replays; different
//! nodes part at their first view, because they own different shards.

use crate::View;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Debug, Default)]
pub struct Random(u64);

impl Random {
    /// Lets the view change all later numbers; call it in every `refresh`.
    pub fn stir(&mut self, view: &View) {
        let mut state = mix(self.0 ^ view.version);
        for shard in &view.shards {
            let seen = shard.owner_cpu.to_bits() ^ (u64::from(shard.queued) << 1) ^ u64::from(shard.local);
            state = mix(state ^ seen);
        }
        self.0 = state;
    }

    /// A number below `limit`, or 0 when `limit` is 0. `key_hash` makes instances that count alike differ.
    #[inline]
    pub fn below(&mut self, key_hash: u64, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let high = mix(self.0 ^ key_hash) >> 32;
        ((high * u64::from(limit)) >> 32) as u32
    }
}

#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::view;

    #[test]
    fn numbers_are_even_for_one_key_and_for_many() {
        for key in [|_| 42, |at| at * 3] {
            let (mut random, mut seen) = (Random::default(), [0; 7]);
            (0..70_000u64).for_each(|at| seen[random.below(key(at), 7) as usize] += 1);
            assert!(seen.iter().all(|&n| (9_500..10_500).contains(&n)), "{seen:?}");
        }
    }

    #[test]
    fn nodes_that_own_different_shards_part() {
        let draw = |local: usize| {
            let (mut random, mut view) = (Random::default(), view(&[0; 4]));
            view.shards[local].local = true;
            random.stir(&view);
            (0..16).map(|_| random.below(1, 1_000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn below_nothing_is_zero() {
        assert_eq!(Random::default().below(1, 0), 0);
    }
}
