//! How many operations a lane waits for before it writes the next entry.
//!
//! A store behind a network pays by the write, and so does everyone who shares its processors. Where many clients wait for
//! their answers before they send again, a lane that writes as soon as its last write is done carries only what came
//! meanwhile; those who were just answered come right after it closed. So a lane with a crowd waits until as many are there
//! as will come within [`limits::GATHER_WRITES`] times the duration of a write, and never for more than the crowd has. A lane with few
//! clients never waits. Pure: time is passed in.

use std::time::Duration;

use crate::limits;

/// What the last writes of a lane say about who waits for it. Means are moving ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    write: Duration,
    /// Operations in a second.
    rate: f64,
    /// Who was answered by the last write, and who waited then.
    crowd: usize,
    last: Option<Duration>,
}

/// The share of the last write in a mean.
const NEWEST: f64 = 0.25;

impl Pace {
    /// A write of so many operations took so long and ends now; so many others wait.
    pub fn wrote(&mut self, now: Duration, took: Duration, answered: usize, waiting: usize) {
        self.write = if self.write.is_zero() { took } else { mean(self.write, took) };
        let since = self.last.map_or(Duration::MAX, |last| now.saturating_sub(last));
        let rate = answered as f64 / since.as_secs_f64().max(f64::EPSILON);
        self.rate += (rate - self.rate) * NEWEST;
        self.crowd = answered + waiting;
        self.last = Some(now);
    }

    /// So many operations are worth waiting for; 0: write at once.
    pub fn target(&self) -> usize {
        if self.crowd < limits::GATHER_CROWD_MIN {
            return 0;
        }
        let come = self.rate * self.write.as_secs_f64() * limits::GATHER_WRITES;
        self.crowd.min(come.round() as usize)
    }
}

fn mean(old: Duration, new: Duration) -> Duration {
    old.mul_f64(1.0 - NEWEST) + new.mul_f64(NEWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Duration = Duration::from_millis(1);

    /// The target after many writes of so many operations, one after the other, while so many wait.
    fn target(answered: usize, waiting: usize) -> usize {
        let mut pace = Pace::default();
        (1..100).for_each(|n| pace.wrote(n * WRITE, WRITE, answered, waiting));
        pace.target()
    }

    #[test]
    fn few_clients_never_wait() {
        assert_eq!(Pace::default().target(), 0);
        assert_eq!([target(1, 0), target(1, 1), target(8, limits::GATHER_CROWD_MIN - 9)], [0; 3]);
    }

    #[test]
    fn a_crowd_is_gathered_for_some_writes_and_never_more_than_it_has() {
        assert_eq!(target(32, 32), 32, "as many as came during the last write");
        let mut pace = Pace::default();
        (1..100).for_each(|n| pace.wrote(n * WRITE, 3 * WRITE, 32, 8));
        assert_eq!(pace.target(), 40, "more would come than there are");
    }

    #[test]
    fn after_a_rest_nobody_is_waited_for_long() {
        let mut pace = Pace::default();
        (1..100).for_each(|n| pace.wrote(n * WRITE, WRITE, 32, 32));
        (1..20).for_each(|n| pace.wrote((100 + 1_000 * n) * WRITE, WRITE, 20, 0));
        assert!(pace.target() <= 1, "{}", pace.target());
    }
}
