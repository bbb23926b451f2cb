//! What is counted about one revision on this node: calls, faults by kind, latency, memory.
//!
//! Counters are spread over lanes of their own cache lines, one per serving thread, so that two threads that ask the
//! same policy do not pass a line to and fro. Latency is sampled: one call in 16 reads the clock.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::breaker;
use super::fault::{Fault, Kind};

/// One call in so many is timed.
pub const SAMPLE_EVERY: u64 = 16;
const LANES: usize = 8;
/// Four buckets per power of two of nanoseconds, up to 2^34 (17 s).
const BUCKETS: usize = 4 * 34;

#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    calls: AtomicU64,
    faults: [AtomicU64; Kind::ALL.len()],
    latency: [AtomicU64; BUCKETS],
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            calls: AtomicU64::new(0),
            faults: std::array::from_fn(|_| AtomicU64::new(0)),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

#[derive(Debug, Default)]
pub struct Stats {
    /// Made with the first call: most revisions that are kept are never asked.
    lanes: OnceLock<Box<[Lane; LANES]>>,
    /// Most linear memory that one instance ever had, in bytes.
    memory_peak_bytes: AtomicUsize,
    instances_made: AtomicU64,
    log_lines_dropped: AtomicU64,
    last_fault: Mutex<Option<Fault>>,
}

/// Everything about one revision, for JSON and metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Calls that reached the policy, faulty ones included.
    pub calls: u64,
    /// By kind; kinds that never came are left out.
    pub faults: BTreeMap<&'static str, u64>,
    pub latency: Latency,
    pub memory_peak_bytes: usize,
    pub instances_made: u64,
    pub log_lines_dropped: u64,
    pub breaker: breaker::State,
    pub last_fault: Option<String>,
}

/// Quantiles of the sampled latency, in nanoseconds; upper bounds of their buckets (19 % wide at most).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    pub samples: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
}

/// Everything that only grows, at one moment; the difference of two is what happened between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    pub calls: u64,
    faults: [u64; Kind::ALL.len()],
    latency: [u64; BUCKETS],
}

impl Default for Counts {
    fn default() -> Self {
        Self { calls: 0, faults: [0; Kind::ALL.len()], latency: [0; BUCKETS] }
    }
}

impl Counts {
    pub fn faults(&self, kind: Kind) -> u64 {
        self.faults[kind as usize]
    }

    pub fn latency(&self) -> Latency {
        let samples: u64 = self.latency.iter().sum();
        let quantile = |percent: u64| {
            let rank = (samples * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let found = self.latency.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            found.map_or(0, upper)
        };
        Latency { samples, p50_ns: quantile(50), p90_ns: quantile(90), p99_ns: quantile(99), max_ns: quantile(100) }
    }

    /// What came after `earlier`, an older look at the same revision.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(earlier.calls),
            faults: std::array::from_fn(|n| self.faults[n].saturating_sub(earlier.faults[n])),
            latency: std::array::from_fn(|n| self.latency[n].saturating_sub(earlier.latency[n])),
        }
    }
}

impl Stats {
    fn lane(&self, lane: usize) -> &Lane {
        &self.lanes.get_or_init(Box::default)[lane % LANES]
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.get().into_iter().flat_map(|lanes| lanes.iter())
    }

    /// Counts a call; answers its number on this lane, for sampling.
    pub(super) fn call(&self, lane: usize) -> u64 {
        self.lane(lane).calls.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn timed(&self, lane: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.lane(lane).latency[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fault(&self, lane: usize, fault: Fault) {
        self.count(lane, fault.kind);
        *self.last_fault.lock() = Some(fault);
    }

    /// Counts a fault that needs no text: the breaker is open, or policies are off.
    pub(super) fn count(&self, lane: usize, kind: Kind) {
        self.lane(lane).faults[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn memory(&self, bytes: usize) {
        self.memory_peak_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    pub(super) fn instance_made(&self) {
        self.instances_made.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn log_dropped(&self) {
        self.log_lines_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub fn faults(&self, kind: Kind) -> u64 {
        self.lanes().map(|lane| lane.faults[kind as usize].load(Ordering::Relaxed)).sum()
    }

    pub fn calls(&self) -> u64 {
        self.lanes().map(|lane| lane.calls.load(Ordering::Relaxed)).sum()
    }

    pub fn latency(&self) -> Latency {
        self.counts().latency()
    }

    pub fn counts(&self) -> Counts {
        let all = |of: &dyn Fn(&Lane) -> &AtomicU64| self.lanes().map(|lane| of(lane).load(Ordering::Relaxed)).sum();
        Counts {
            calls: self.calls(),
            faults: std::array::from_fn(|n| all(&|lane| &lane.faults[n])),
            latency: std::array::from_fn(|n| all(&|lane| &lane.latency[n])),
        }
    }

    pub fn snapshot(&self, breaker: breaker::State) -> Snapshot {
        let faults = Kind::ALL.iter().map(|&kind| (kind.name(), self.faults(kind))).filter(|(_, count)| *count > 0);
        Snapshot {
            calls: self.calls(),
            faults: faults.collect(),
            latency: self.latency(),
            memory_peak_bytes: self.memory_peak_bytes.load(Ordering::Relaxed),
            instances_made: self.instances_made.load(Ordering::Relaxed),
            log_lines_dropped: self.log_lines_dropped.load(Ordering::Relaxed),
            breaker,
            last_fault: self.last_fault.lock().as_ref().map(Fault::to_string),
        }
    }
}

fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(4);
    let log = nanos.ilog2() as usize;
    let quarter = (nanos >> (log - 2)) as usize & 3;
    (4 * log + quarter).min(BUCKETS - 1)
}

/// Largest value that falls into the bucket.
fn upper(bucket: usize) -> u64 {
    let (log, quarter) = ((bucket / 4) as u32, (bucket % 4) as u64);
    if log < 2 {
        return 4;
    }
    ((5 + quarter) << (log - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_falls_into_it(nanos in 4u64..(1 << 33)) {
            let bucket = bucket(nanos);
            prop_assert!(nanos <= upper(bucket));
            prop_assert!(nanos > upper(bucket - 1) || bucket == 8);
            prop_assert!(upper(bucket) - nanos <= nanos / 4 + 1);
        }
    }

    #[test]
    fn quantiles_come_from_all_lanes() {
        let stats = Stats::default();
        for n in 0..100 {
            let nanos = if n < 95 { 300 } else { 1_000_000 };
            stats.timed(n, Duration::from_nanos(nanos));
        }
        let latency = stats.latency();
        assert_eq!(latency.samples, 100);
        assert!((300..=383).contains(&latency.p50_ns), "{latency:?}");
        assert!((1_000_000..1_250_000).contains(&latency.p99_ns), "{latency:?}");
    }

    #[test]
    fn the_difference_of_two_looks_is_what_happened_between() {
        let stats = Stats::default();
        (0..10).for_each(|n| stats.timed(n, Duration::from_millis(50)));
        stats.count(3, Kind::Trap);
        let before = stats.counts();
        (0..10).for_each(|n| stats.timed(n, Duration::from_nanos(300)));
        stats.call(1);
        stats.count(2, Kind::Trap);
        let between = stats.counts().since(&before);
        assert_eq!((between.calls, between.faults(Kind::Trap), between.faults(Kind::Memory)), (1, 1, 0));
        assert_eq!(between.latency().samples, 10);
        assert!(between.latency().max_ns < 400, "{:?}", between.latency());
        assert_eq!(before.since(&before), Counts::default());
    }

    #[test]
    fn faults_are_counted_by_kind() {
        let stats = Stats::default();
        (0..3).for_each(|lane| stats.fault(lane, Fault::new(Kind::Memory, "m")));
        stats.count(0, Kind::BreakerOpen);
        let snapshot = stats.snapshot(breaker::State::Closed);
        assert_eq!(snapshot.faults, BTreeMap::from([("memory", 3), ("breaker_open", 1)]));
        assert_eq!(snapshot.last_fault.as_deref(), Some("memory: m"));
        assert!(stats.latency().p99_ns == 0);
    }
}
