//! Journal time: the time by which a shard tells how old its idempotency records and marks are.
//!
//! It rides in the entries, in milliseconds, and never goes back. It follows the wall clock, but passes no faster than the
//! boot clock of the owner (which a suspended machine does not stop) and a drift of 500 ppm, whatever the wall clock says: a
//! clock that jumps ahead expires nothing. Where nobody serves a shard, or the wall clock was set back, it stands still, and
//! what is remembered expires late. It serves ages only; a time that people read is the wall clock's.
//!
//! A shard whose journal began with a program that knew no journal time has it from its first entry of format 2 on; what
//! was recorded before counts as recorded then.

use std::time::Duration;

use super::entry::KeyRecord;

/// Drift that is allowed to a wall clock, as a part of the time that passed: 500 ppm.
const DRIFT: u32 = 2_000;

/// What the clocks of a machine say.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// Since 1970.
    pub wall: Duration,
    /// Since the machine started, the time included for which it was suspended.
    pub boot: Duration,
}

/// The journal time of an owner, between entries. Pure: whoever drives it reads the clocks.
#[derive(Debug, Clone, Copy)]
pub struct JournalTime {
    /// Since 1970, as the wall clock's; fractions of milliseconds are kept, for every entry would lose one otherwise.
    at: Duration,
    /// The boot clock then.
    boot: Duration,
}

impl JournalTime {
    /// Goes on from the last entry, or begins with the wall clock where there is none.
    pub fn resume(last_ms: Option<u64>, clocks: Clocks) -> Self {
        Self { at: last_ms.map_or(clocks.wall, Duration::from_millis), boot: clocks.boot }
    }

    /// The time now, in milliseconds.
    pub fn advance(&mut self, clocks: Clocks) -> u64 {
        let Clocks { wall, boot } = clocks;
        let passed = boot.saturating_sub(self.boot);
        let latest = self.at.saturating_add(passed).saturating_add(passed / DRIFT);
        self.boot = self.boot.max(boot);
        self.at = self.at.max(wall.min(latest));
        u64::try_from(self.at.as_millis()).unwrap_or(u64::MAX)
    }
}

/// What a shard's journal says of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub now_ms: u64,
    /// The first journal time of the shard. What has none was recorded before.
    pub since_ms: u64,
}

/// For how long idempotency records are in force, and how their age is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub length_ms: u64,
    /// None: the journal knows no time yet, and wall clocks are compared.
    pub times: Option<Times>,
}

impl Window {
    /// Whether the record still answers for an operation that was received at `asked_ms` by the wall clock.
    pub fn holds(&self, record: &KeyRecord, asked_ms: u64) -> bool {
        let age_ms = match self.times {
            Some(times) => times.now_ms.saturating_sub(record.time_ms.unwrap_or(times.since_ms)),
            None => asked_ms.saturating_sub(record.at_ms),
        };
        age_ms <= self.length_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::Id;
    use crate::shard::entry::Action;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn clocks(wall: Duration, boot: Duration) -> Clocks {
        Clocks { wall, boot }
    }

    fn ms(time: Duration) -> u64 {
        u64::try_from(time.as_millis()).expect("small")
    }

    #[test]
    fn it_follows_a_wall_clock_that_is_right() {
        let (wall, boot) = (1000 * HOUR, 5 * HOUR);
        let mut time = JournalTime::resume(None, clocks(wall, boot));
        for hours in 1..50 {
            assert_eq!(time.advance(clocks(wall + hours * HOUR, boot + hours * HOUR)), ms(wall + hours * HOUR));
        }
    }

    #[test]
    fn a_jump_ahead_moves_it_by_the_drift_at_most() {
        let (wall, boot) = (1000 * HOUR, 5 * HOUR);
        let mut time = JournalTime::resume(None, clocks(wall, boot));
        assert_eq!(time.advance(clocks(wall + 25 * HOUR, boot)), ms(wall));
        let later = time.advance(clocks(wall + 26 * HOUR, boot + HOUR));
        assert_eq!(later, ms(wall + HOUR) + 1_800);
        assert_eq!(
            time.advance(clocks(wall + 2 * HOUR, boot + 2 * HOUR)),
            ms(wall + 2 * HOUR),
            "the wall clock is right again"
        );
    }

    #[test]
    fn the_drift_is_a_rate_and_no_amount_for_each_entry() {
        let wall = 1000 * HOUR;
        let mut time = JournalTime::resume(None, clocks(wall, Duration::ZERO));
        let mut last = 0;
        for micros in (0..1_000_000).step_by(20) {
            last = time.advance(clocks(wall + HOUR, Duration::from_micros(micros)));
        }
        assert_eq!(last, ms(wall) + 1_000, "a second passed, 50,000 entries or not");
    }

    #[test]
    fn it_stands_still_while_the_wall_clock_is_behind() {
        let wall = 1000 * HOUR;
        let mut time = JournalTime::resume(Some(ms(wall)), clocks(wall - 2 * HOUR, Duration::ZERO));
        assert_eq!(time.advance(clocks(wall - HOUR, HOUR)), ms(wall));
        assert_eq!(time.advance(clocks(wall + HOUR, 3 * HOUR)), ms(wall + HOUR));
    }

    #[test]
    fn a_suspended_machine_lets_it_go_on() {
        let wall = 1000 * HOUR;
        let mut time = JournalTime::resume(None, clocks(wall, HOUR));
        assert_eq!(time.advance(clocks(wall + 8 * HOUR, 9 * HOUR)), ms(wall + 8 * HOUR));
    }

    proptest! {
        #[test]
        fn it_never_goes_back_nor_faster_than_the_boot_clock(
            steps in prop::collection::vec((0u64..200_000_000, 0u64..100_000), 1..200),
        ) {
            let begin = Duration::from_millis(100_000_000);
            let mut time = JournalTime::resume(None, clocks(begin, Duration::ZERO));
            let (mut boot, mut last) = (Duration::ZERO, ms(begin));
            for (wall_ms, passed_ms) in steps {
                boot += Duration::from_millis(passed_ms);
                let now = time.advance(clocks(Duration::from_millis(wall_ms), boot));
                prop_assert!(now >= last);
                prop_assert!(now <= ms(begin + boot + boot / DRIFT));
                last = now;
            }
        }
    }

    #[test]
    fn a_record_without_a_time_is_as_old_as_journal_time() {
        let record = |time_ms| KeyRecord {
            counter: Id::new("c").expect("valid"),
            key: "k".into(),
            action: Action::Create,
            value: 0,
            at_ms: 9_000,
            time_ms,
        };
        let window = |now_ms| Window { length_ms: 100, times: Some(Times { now_ms, since_ms: 1_000 }) };
        assert!(window(1_100).holds(&record(None), u64::MAX));
        assert!(!window(1_101).holds(&record(None), 0));
        assert!(window(1_150).holds(&record(Some(1_050)), u64::MAX));
        assert!(!window(1_151).holds(&record(Some(1_050)), 0));
        let untimed = Window { length_ms: 100, times: None };
        assert!(untimed.holds(&record(None), 9_100) && !untimed.holds(&record(None), 9_101));
    }
}
