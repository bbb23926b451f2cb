//! The circuit breaker of one revision under one rule on this node: when calls keep failing, the native choice answers for a while
//! without asking.
//!
//! [`Machine`] decides. [`Breaker`] puts it behind one atomic word, so that a healthy policy costs one relaxed load and takes no
//! lock.

mod machine;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::fault::Kind;

pub use machine::{Machine, Settings, Slow, State};

/// What [`Breaker::admit`] answers, to be handed back with the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Closed and quiet: a success need not be told.
    Quiet,
    /// A success must be told, and the call is timed.
    Watched,
    Refused,
}

#[derive(Debug)]
pub struct Breaker {
    /// 0 while the machine is quiet.
    busy: AtomicU32,
    machine: Mutex<Machine>,
    start: std::time::Instant,
}

impl Breaker {
    pub fn new(settings: Settings) -> Self {
        Self { busy: AtomicU32::new(0), machine: Mutex::new(Machine::new(settings)), start: std::time::Instant::now() }
    }

    pub fn admit(&self) -> Admission {
        if self.busy.load(Ordering::Relaxed) == 0 {
            return Admission::Quiet;
        }
        match self.machine.lock().admit(self.start.elapsed()) {
            true => Admission::Watched,
            false => Admission::Refused,
        }
    }

    pub fn succeeded(&self, admission: Admission) {
        if admission == Admission::Watched {
            self.tell(|machine, now| machine.succeeded(now));
        }
    }

    /// A fault of this kind, which is the guest's.
    pub fn failed(&self, kind: Kind) {
        self.tell(|machine, now| match kind {
            Kind::Memory => machine.exhausted(now),
            _ => machine.failed(now),
        });
    }

    /// As [`Machine::slow`].
    pub fn slow(&self, took: Duration) -> Slow {
        self.tell(|machine, now| machine.slow(now, took))
    }

    /// Ends a quarantine, or the pause of an open breaker.
    pub fn release(&self) {
        self.tell(|machine, _| machine.release());
    }

    fn tell<T>(&self, what: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        let mut machine = self.machine.lock();
        let answer = what(&mut machine, self.start.elapsed());
        self.busy.store(u32::from(!machine.quiet()), Ordering::Relaxed);
        answer
    }

    pub fn state(&self) -> State {
        self.machine.lock().state()
    }
}

/// The breakers of one revision, one for each rule that uses it.
#[derive(Debug)]
pub struct Breakers {
    settings: Settings,
    all: Mutex<Vec<Weak<Breaker>>>,
}

impl Breakers {
    pub fn new(settings: Settings) -> Self {
        Self { settings, all: Mutex::default() }
    }

    pub fn another(&self) -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::new(self.settings.clone()));
        let mut all = self.all.lock();
        all.retain(|breaker| breaker.strong_count() > 0);
        all.push(Arc::downgrade(&breaker));
        breaker
    }

    /// The worst of them; closed when there is none.
    pub fn state(&self) -> State {
        self.all().iter().map(|breaker| breaker.state()).max().unwrap_or(State::Closed)
    }

    pub fn release(&self) {
        self.all().iter().for_each(|breaker| breaker.release());
    }

    fn all(&self) -> Vec<Arc<Breaker>> {
        self.all.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_after_a_slow_one_are_watched_until_one_is_good() {
        let breaker = Breaker::new(Settings::default());
        assert_eq!(breaker.slow(Duration::from_micros(50)), Slow::Harmless);
        assert_eq!(breaker.admit(), Admission::Watched);
        breaker.succeeded(Admission::Watched);
        assert_eq!(breaker.admit(), Admission::Quiet);
    }

    #[test]
    fn the_fast_path_sees_quarantine_and_release() {
        let settings = Settings { openings_max: 1, backoff_min: Duration::ZERO, ..Settings::default() };
        let breaker = Breaker::new(settings);
        (0..5).for_each(|_| breaker.failed(Kind::Trap));
        assert_eq!((breaker.state(), breaker.admit()), (State::Quarantined, Admission::Refused));
        breaker.release();
        assert_eq!((breaker.state(), breaker.admit()), (State::Closed, Admission::Quiet));
    }

    #[test]
    fn a_rule_that_fails_opens_no_other_rules_breaker() {
        let breakers = Breakers::new(Settings { openings_max: 1, ..Settings::default() });
        let (good, bad) = (breakers.another(), breakers.another());
        (0..5).for_each(|_| bad.failed(Kind::Trap));
        assert_eq!((good.admit(), bad.admit()), (Admission::Quiet, Admission::Refused));
        assert_eq!(breakers.state(), State::Quarantined);
        breakers.release();
        assert_eq!((bad.admit(), breakers.state()), (Admission::Quiet, State::Closed));
        (0..5).for_each(|_| bad.failed(Kind::Trap));
        drop(bad);
        assert_eq!(breakers.state(), State::Closed, "it went with its rule");
    }

    #[test]
    fn the_fast_path_opens_and_closes_with_the_machine() {
        let breaker = Breaker::new(Settings { backoff_min: Duration::ZERO, probes: 1, ..Settings::default() });
        assert_eq!(breaker.admit(), Admission::Quiet);
        breaker.failed(Kind::Trap);
        assert_eq!(breaker.admit(), Admission::Watched);
        breaker.succeeded(Admission::Watched);
        assert_eq!(breaker.admit(), Admission::Quiet);
        (0..5).for_each(|_| breaker.failed(Kind::Trap));
        assert_eq!(breaker.state(), State::Open);
        let probe = breaker.admit();
        assert_eq!(probe, Admission::Watched, "no pause: it probes at once");
        breaker.succeeded(probe);
        assert_eq!((breaker.admit(), breaker.state()), (Admission::Quiet, State::Closed));
    }
}
