//! Which shards may hold a counter: rendezvous hashing (Thaler and Ravishankar, 1998) of (counter id, shard).
//!
//! The order is part of the stored format: a counter's home shard is found by it for ever. It must not change, so
//! the hash is XXH3-64 (a published, frozen function) and the mix is SplitMix64's finaliser (Steele et al., 2014).

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// Shards in rendezvous order, the home shard first. Inline up to the spread that nearly every rule has.
pub type Candidates = SmallVec<[u32; 16]>;

/// The stable 64-bit hash of a counter id, computed once per request and handed along.
pub fn key_hash(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// The first `spread` of `shards` shards for the id with this hash; the first is the home shard.
///
/// A prefix property holds: a wider spread only appends. Both numbers are clamped so that there is always one.
pub fn candidates(hash: u64, shards: u32, spread: u32) -> Candidates {
    let shards = shards.max(1);
    let spread = spread.clamp(1, shards) as usize;
    if spread <= INLINE { few(hash, shards, spread) } else { many(hash, shards, spread) }
}

const INLINE: usize = 16;

/// Keeps the best in arrays on the stack: this runs for every request.
fn few(hash: u64, shards: u32, spread: usize) -> Candidates {
    let (mut weights, mut best) = ([0u64; INLINE], [0u32; INLINE]);
    let mut count = 0;
    for shard in 0..shards {
        let weight = weight(hash, shard);
        if count == spread {
            if weights[count - 1] >= weight {
                continue;
            }
            count -= 1;
        }
        // Equal weights keep the lower shard first, so the order is total.
        let mut at = count;
        while at > 0 && weights[at - 1] < weight {
            (weights[at], best[at]) = (weights[at - 1], best[at - 1]);
            at -= 1;
        }
        (weights[at], best[at]) = (weight, shard);
        count += 1;
    }
    Candidates::from_slice(&best[..count])
}

fn many(hash: u64, shards: u32, spread: usize) -> Candidates {
    let mut all: Vec<(u64, u32)> = (0..shards).map(|shard| (weight(hash, shard), shard)).collect();
    all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    all.truncate(spread);
    all.into_iter().map(|(_, shard)| shard).collect()
}

/// The shard that decides whether the counter exists and that takes its keyed operations.
pub fn home(hash: u64, shards: u32) -> u32 {
    candidates(hash, shards, 1)[0]
}

fn weight(hash: u64, shard: u32) -> u64 {
    let mut x = hash ^ (u64::from(shard) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wider_spread_only_appends(hash: u64, shards in 1u32..80, spread in 1u32..80) {
            let wide = candidates(hash, shards, spread + 1);
            let narrow = candidates(hash, shards, spread);
            prop_assert_eq!(&wide[..narrow.len()], &narrow[..]);
            prop_assert_eq!(narrow.len() as u32, spread.min(shards));
        }

        #[test]
        fn both_ways_agree(hash: u64, shards in 1u32..80, spread in 1usize..16) {
            let spread = spread.min(shards as usize);
            prop_assert_eq!(few(hash, shards, spread), many(hash, shards, spread));
        }

        #[test]
        fn candidates_are_distinct_shards(hash: u64, shards in 1u32..80, spread in 1u32..80) {
            let mut list = candidates(hash, shards, spread).to_vec();
            list.sort_unstable();
            list.dedup();
            prop_assert_eq!(list.len() as u32, spread.min(shards));
            prop_assert!(list.iter().all(|&shard| shard < shards));
        }
    }

    /// These values are on disks: a change here moves every counter away from its data.
    #[test]
    fn the_order_is_frozen() {
        assert_eq!(key_hash("example-counter"), 4_706_898_278_967_660_346);
        assert_eq!(candidates(key_hash("example-counter"), 12, 3).to_vec(), FROZEN.to_vec());
    }
    const FROZEN: [u32; 3] = [9, 1, 11];

    #[test]
    fn homes_are_even() {
        let mut load = [0u32; 12];
        for i in 0..120_000 {
            load[home(key_hash(&format!("counter-{i}")), 12) as usize] += 1;
        }
        assert!(load.iter().all(|n| (9_500..10_500).contains(n)), "{load:?}");
    }
}
