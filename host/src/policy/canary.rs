//! Canaries: which counters a new revision governs first, and when it has misbehaved enough to be rolled back. Pure:
//! looking at the revisions now and then, and rolling back, is the node's.

use std::time::Duration;

use super::fault::Kind;
use super::stats::Counts;

/// Mixed into a counter's hash, so that the canary's counters are not those of some shards.
const SALT: u64 = 0x71C8_A3D4_95B2_E60F;

/// Whether the counter with this hash goes to the canary. The same for ever, on every node; a counter that a canary has at
/// some percentage it has at every higher one. Nothing at 0, everything from 100 on.
pub fn takes(key_hash: u64, percent: u8) -> bool {
    // SplitMix64's finaliser, as shards are chosen; other constants would do as well, another input is what matters.
    let mut x = key_hash ^ SALT;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    (u128::from(x) * 100) >> 64 < u128::from(percent)
}

/// What a canary may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Faults of the guest that are forgiven.
    pub faults_max: u64,
    /// Its latency at the 99th percentile may be so many times the stable revision's.
    pub latency_factor: u64,
    /// Below this no latency is too high, whatever the stable revision's.
    pub latency_floor: Duration,
    /// Timed calls of either that the comparison needs. One call in 16 is timed on the serving threads.
    pub samples_min: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { faults_max: 3, latency_factor: 3, latency_floor: Duration::from_micros(10), samples_min: 200 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// For this reason, a sentence that is kept with the rule.
    RollBack(String),
}

/// Judges a canary by what happened since it began: to it, and meanwhile to the stable revision (see [`Counts::since`]).
pub fn judge(settings: &Settings, canary: &Counts, stable: &Counts) -> Verdict {
    // What the guest is to blame for, and refusals: an error of `combine`, or of a `configure` that took this config before.
    let blamed = |kind: &Kind| kind.is_the_guests() || *kind == Kind::Refused;
    let faults: Vec<(Kind, u64)> =
        Kind::ALL.into_iter().filter(blamed).map(|kind| (kind, canary.faults(kind))).filter(|(_, n)| *n > 0).collect();
    let total: u64 = faults.iter().map(|(_, count)| count).sum();
    if total > settings.faults_max {
        let kinds: Vec<String> = faults.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        let (calls, max) = (canary.calls, settings.faults_max);
        let reason = format!("It failed {total} of {calls} calls ({}); {max} are forgiven.", kinds.join(", "));
        return Verdict::RollBack(reason);
    }
    let (ours, theirs) = (canary.latency(), stable.latency());
    let floor = u64::try_from(settings.latency_floor.as_nanos()).unwrap_or(u64::MAX);
    let max = theirs.p99_ns.saturating_mul(settings.latency_factor).max(floor);
    if ours.samples.min(theirs.samples) >= settings.samples_min && ours.p99_ns > max {
        let time = Duration::from_nanos;
        return Verdict::RollBack(format!(
            "Its calls take {:?} at the 99th percentile, those of the stable revision {:?}; up to {:?} would do.",
            time(ours.p99_ns),
            time(theirs.p99_ns),
            time(max)
        ));
    }
    Verdict::Keep
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::candidates::{home, key_hash};
    use crate::policy::stats::Stats;
    use proptest::prelude::*;

    fn counts(faults: &[(Kind, u64)], latencies: &[(u64, u64)]) -> Counts {
        let stats = Stats::default();
        for &(kind, count) in faults {
            (0..count).for_each(|_| {
                stats.call(0);
                stats.count(0, kind);
            });
        }
        for &(nanos, count) in latencies {
            (0..count).for_each(|n| stats.timed(n as usize, Duration::from_nanos(nanos)));
        }
        stats.counts()
    }

    proptest! {
        #[test]
        fn a_higher_percentage_only_adds_counters(hash: u64, low in 0u8..=100, more in 0u8..=100) {
            let high = low.saturating_add(more).min(100);
            prop_assert!(!takes(hash, low) || takes(hash, high));
            prop_assert!(!takes(hash, 0) && takes(hash, 100) && takes(hash, u8::MAX));
        }

        #[test]
        fn faults_within_the_budget_are_forgiven_and_no_more(
            faults in prop::collection::vec((0usize..Kind::ALL.len(), 0u64..4), 0..6),
            budget in 0u64..12,
        ) {
            let settings = Settings { faults_max: budget, ..Settings::default() };
            let faults: Vec<(Kind, u64)> = faults.into_iter().map(|(n, count)| (Kind::ALL[n], count)).collect();
            let hosts = [Kind::QueueFull, Kind::ShareUsed, Kind::BreakerOpen, Kind::Unavailable];
            let guests: u64 = faults.iter().filter(|(kind, _)| !hosts.contains(kind)).map(|(_, count)| count).sum();
            match judge(&settings, &counts(&faults, &[]), &Counts::default()) {
                Verdict::Keep => prop_assert!(guests <= budget),
                Verdict::RollBack(reason) => {
                    prop_assert!(guests > budget);
                    prop_assert!(reason.contains(&format!("failed {guests} of")), "{}", reason);
                }
            }
        }

        #[test]
        fn latency_decides_only_with_enough_samples_and_beyond_the_factor(
            ours in 100u64..10_000_000, our_samples in 0u64..400,
            theirs in 100u64..10_000_000, their_samples in 0u64..400,
        ) {
            let settings = Settings::default();
            let (canary, stable) = (counts(&[], &[(ours, our_samples)]), counts(&[], &[(theirs, their_samples)]));
            let verdict = judge(&settings, &canary, &stable);
            if our_samples.min(their_samples) < settings.samples_min || ours < 2 * theirs || ours < 8_000 {
                prop_assert_eq!(verdict, Verdict::Keep);
            } else if ours > 4 * theirs && ours > 12_500 {
                prop_assert!(matches!(verdict, Verdict::RollBack(reason) if reason.contains("99th percentile")));
            }
        }
    }

    #[test]
    fn a_canary_takes_its_share_of_every_shard() {
        let ids: Vec<u64> = (0..120_000).map(|n| key_hash(&format!("counter-{n}"))).collect();
        for percent in [1u8, 10, 50] {
            for shard in 0..12 {
                let here = ids.iter().filter(|&&hash| home(hash, 12) == shard);
                let (all, taken) =
                    here.fold((0u32, 0u32), |(all, taken), &hash| (all + 1, taken + u32::from(takes(hash, percent))));
                let (share, expected) = (f64::from(taken) / f64::from(all), f64::from(percent) / 100.0);
                // Five standard deviations of a fair draw.
                let slack = 5.0 * (expected * (1.0 - expected) / f64::from(all)).sqrt();
                assert!((share - expected).abs() < slack, "{percent} % of shard {shard}: {share}");
            }
        }
    }

    /// Nodes of different versions must agree.
    #[test]
    fn the_choice_is_frozen() {
        let taken: Vec<u32> = (0..40).filter(|n| takes(key_hash(&format!("counter-{n}")), 10)).collect();
        assert_eq!(taken, FROZEN);
    }
    const FROZEN: [u32; 3] = [10, 14, 23];

    #[test]
    fn the_reason_names_the_kinds() {
        let canary = counts(&[(Kind::Trap, 3), (Kind::Deadline, 2), (Kind::BreakerOpen, 9)], &[]);
        let Verdict::RollBack(reason) = judge(&Settings::default(), &canary, &Counts::default()) else {
            panic!("five faults are over the budget");
        };
        assert_eq!(reason, "It failed 5 of 14 calls (trap 3, deadline 2); 3 are forgiven.");
    }

    #[test]
    fn only_what_came_after_the_beginning_counts() {
        let before = counts(&[(Kind::Trap, 100)], &[(1_000_000, 500)]);
        assert_eq!(judge(&Settings::default(), &before.since(&before), &Counts::default()), Verdict::Keep);
    }
}
