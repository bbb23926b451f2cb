//! Steps of the wall clock, seen beside the boot clock. They are reported, and decide nothing: ages are journal time's.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::limits;
use crate::repeated::Repeated;
use crate::shard::time::Clocks;

/// What a node has seen since its process began, for `/metrics` and `GET /v1/cluster`.
#[derive(Debug, Default)]
pub struct Steps {
    count: AtomicU64,
    last_ms: AtomicI64,
    offset_ms: AtomicI64,
}

/// A [`Steps`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub count: u64,
    /// By how much the wall clock was set ahead (or back, below 0) the last time; 0 when it never was.
    pub last_ms: i64,
    /// How far the wall clock is ahead of what it would say had it gone on as the boot clock since the process began.
    pub offset_ms: i64,
}

impl Steps {
    pub fn seen(&self) -> Seen {
        Seen {
            count: self.count.load(Ordering::Relaxed),
            last_ms: self.last_ms.load(Ordering::Relaxed),
            offset_ms: self.offset_ms.load(Ordering::Relaxed),
        }
    }
}

/// Looks at both clocks from time to time.
#[derive(Debug)]
pub struct Watch {
    first: Clocks,
    last: Clocks,
    told: Repeated,
}

impl Watch {
    pub fn new(now: Clocks) -> Self {
        Self { first: now, last: now, told: Repeated::new() }
    }

    /// Notes what happened since the last look, and says so in the log when it was a step.
    pub fn look(&mut self, now: Clocks, steps: &Steps) {
        steps.offset_ms.store(gained_ms(self.first, now), Ordering::Relaxed);
        let gained = gained_ms(self.last, now);
        let passed = now.boot.saturating_sub(self.last.boot);
        self.last = now;
        if Duration::from_millis(gained.unsigned_abs()) < limits::CLOCK_STEP_MIN + passed / 2_000 {
            return;
        }
        steps.last_ms.store(gained, Ordering::Relaxed);
        steps.count.fetch_add(1, Ordering::Relaxed);
        let direction = if gained > 0 { "ahead" } else { "back" };
        let by = humantime::format_duration(Duration::from_millis(gained.unsigned_abs()));
        self.told.tell(|left_out| {
            tracing::warn!(
                "the wall clock was set {direction} by {by}; no idempotency key expires by that. Look at this machine's \
                 time service{left_out}"
            );
        });
    }
}

/// By how much the wall clock went on more than the boot clock.
fn gained_ms(from: Clocks, to: Clocks) -> i64 {
    let passed_ms = |from: Duration, to: Duration| to.as_millis() as i128 - from.as_millis() as i128;
    let gained = passed_ms(from.wall, to.wall) - passed_ms(from.boot, to.boot);
    i64::try_from(gained).unwrap_or(if gained < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn clocks(wall_ms: i64, boot_ms: i64) -> Clocks {
        let since = |ms: i64| Duration::from_millis(ms.unsigned_abs());
        Clocks { wall: since(1_000_000 * HOUR_MS + wall_ms), boot: since(boot_ms) }
    }

    #[test]
    fn steps_are_told_from_time_that_passes() {
        let (steps, mut watch) = (Steps::default(), Watch::new(clocks(0, 0)));
        let seen = |count, last_ms, offset_ms| Seen { count, last_ms, offset_ms };
        watch.look(clocks(1_000, 1_000), &steps);
        assert_eq!(steps.seen(), seen(0, 0, 0));
        watch.look(clocks(2_000 + 25 * HOUR_MS, 2_000), &steps);
        assert_eq!(steps.seen(), seen(1, 25 * HOUR_MS, 25 * HOUR_MS));
        watch.look(clocks(3_000 + 25 * HOUR_MS, 3_000), &steps);
        assert_eq!(steps.seen(), seen(1, 25 * HOUR_MS, 25 * HOUR_MS));
        watch.look(clocks(4_000 - HOUR_MS, 4_000), &steps);
        assert_eq!(steps.seen(), seen(2, -26 * HOUR_MS, -HOUR_MS));
        watch.look(clocks(5_000, 5_000), &steps);
        assert_eq!(steps.seen(), seen(3, HOUR_MS, 0), "right again");
    }

    #[test]
    fn a_clock_that_is_slewed_or_a_process_that_was_stopped_makes_no_step() {
        let (steps, mut watch) = (Steps::default(), Watch::new(clocks(0, 0)));
        for second in 1..1_000 {
            watch.look(clocks(second * 1_080, second * 1_000), &steps);
        }
        watch.look(clocks(1_000 * 1_080 + 24 * HOUR_MS, 1_000_000 + 24 * HOUR_MS), &steps);
        assert_eq!(steps.seen().count, 0);
        assert_eq!(steps.seen().offset_ms, 80_000, "but it is seen that it went away");
    }

    #[test]
    fn any_two_clocks_can_be_compared() {
        let (none, most, steps) = (Duration::ZERO, Duration::MAX, Steps::default());
        let mut watch = Watch::new(Clocks { wall: none, boot: most });
        watch.look(Clocks { wall: most, boot: none }, &steps);
        assert_eq!(steps.seen().last_ms, i64::MAX);
        watch.look(Clocks { wall: none, boot: none }, &steps);
        assert_eq!(steps.seen().last_ms, i64::MIN);
        watch.look(Clocks { wall: none, boot: most }, &steps);
    }
}
