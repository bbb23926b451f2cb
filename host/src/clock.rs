//! The boot clock, alone and beside the wall clock: what passed since the machine started, the time included for which it
//! was suspended.
//!
//! `Instant` stands still while a machine is suspended, so it says nothing about what others may have done meanwhile.
//! Whatever decides whether others still wait for this node, or how old a record is, is measured here; timeouts of sockets
//! are not.

pub mod steps;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::shard::time::Clocks;

#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A moment by the boot clock of this machine. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot(Duration);

impl Boot {
    pub fn now() -> Self {
        let now = clock_gettime(CLOCK);
        // Neither is negative: the clock begins with the machine.
        Self(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// Zero where `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// What both clocks say, for [`crate::shard::JournalTime`]. A wall clock from before 1970 counts as 1970.
pub fn now() -> Clocks {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clocks { wall, boot: Boot::now().0 }
}

impl std::ops::Add<Duration> for Boot {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let (one, other) = (Boot::now(), Boot::now());
        assert!(one <= other && one > Boot(Duration::ZERO));
        assert_eq!((one + Duration::from_secs(3)).saturating_since(one), Duration::from_secs(3));
        assert_eq!(one.saturating_since(one + Duration::from_secs(3)), Duration::ZERO);
    }
}
