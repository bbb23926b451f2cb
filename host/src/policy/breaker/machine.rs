//! When a breaker opens, for how long, and what closes it again. Pure: time is passed in.

use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Opens after this many failures, or long calls, without another one between them.
    pub consecutive_failures_max: u32,
    /// A slow call is long when it took more than this: whoever comes meanwhile waits that long.
    pub long_call: Duration,
    /// Slow calls that are not all long may take so much time within `slow_window`: 5 % of one thread. A policy that is asked now and then
    /// finds its memory out of the processor's caches each time, is slow, and hurts nobody.
    pub slow_budget: Duration,
    pub slow_window: Duration,
    /// Opens after this many failures within `window`, successes or not: a policy that fails now and then costs a new
    /// instance each time.
    pub window_failures_max: u32,
    pub window: Duration,
    /// Opens after this many failures within `window` for want of memory, as if they were in a row: the next instance would take
    /// as much, and all threads of the process wait while memory comes and goes.
    pub memory_failures_max: u32,
    /// The first pause; each failed probe doubles it up to `backoff_max`, and so does each opening that follows a pause
    /// within `window`: a policy that answers its probes well and fails with the next load may not fail most of the time.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// So many successes in a row after a pause close it.
    pub probes: u32,
    /// The opening of this number puts the policy in quarantine: it stays open until an operator releases it. With the
    /// default pauses a policy that never answers well is there after about four minutes of calls.
    pub openings_max: u32,
    /// An opening is forgotten with all before it when no other followed for this long. Longer than `backoff_max`, or
    /// none would count.
    pub openings_window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_failures_max: 5,
            long_call: Duration::from_micros(100),
            slow_budget: Duration::from_millis(5),
            slow_window: Duration::from_millis(100),
            window_failures_max: 20,
            window: Duration::from_secs(10),
            memory_failures_max: 1,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            probes: 3,
            openings_max: 16,
            openings_window: Duration::from_secs(600),
        }
    }
}

/// In the order of their severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Closed,
    HalfOpen,
    Open,
    /// Open until an operator releases it.
    Quarantined,
}

/// What a slow call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    /// Nothing yet.
    Harmless,
    /// It opened the breaker.
    Opened,
    /// Slow calls keep a thread busy. The policy answers well, and elsewhere it would be in nobody's way.
    Busy,
}

/// The state machine. Times are since any fixed moment and must not go back.
#[derive(Debug, Clone)]
pub struct Machine {
    settings: Settings,
    state: State,
    consecutive_failures: u32,
    /// The last call was slow.
    slow: bool,
    slow_window_start: Duration,
    slow_spent: Duration,
    window_start: Duration,
    window_failures: u32,
    memory_failures: u32,
    open_until: Duration,
    backoff: Duration,
    /// Openings that count towards quarantine, and when the last was.
    openings: u32,
    last_opening: Duration,
    /// Successes of this half-open phase, and whether a probe is under way.
    probes_passed: u32,
    probe_since: Option<Duration>,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        let backoff = settings.backoff_min;
        Self {
            settings,
            state: State::Closed,
            consecutive_failures: 0,
            slow: false,
            slow_window_start: Duration::ZERO,
            slow_spent: Duration::ZERO,
            window_start: Duration::ZERO,
            window_failures: 0,
            memory_failures: 0,
            open_until: Duration::ZERO,
            backoff,
            openings: 0,
            last_opening: Duration::ZERO,
            probes_passed: 0,
            probe_since: None,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Whether a call may go through now. While half open, one at a time.
    pub fn admit(&mut self, now: Duration) -> bool {
        if self.state == State::Open && now >= self.open_until {
            self.state = State::HalfOpen;
            self.probes_passed = 0;
            self.probe_since = None;
        }
        match self.state {
            State::Closed => true,
            State::Open | State::Quarantined => false,
            State::HalfOpen => {
                // A probe whose result never came (its caller went away) does not block the next for ever.
                let free = self.probe_since.is_none_or(|since| now >= since + self.backoff);
                if free {
                    self.probe_since = Some(now);
                }
                free
            }
        }
    }

    pub fn succeeded(&mut self, _now: Duration) {
        self.consecutive_failures = 0;
        self.slow = false;
        if self.state == State::HalfOpen {
            self.probe_since = None;
            self.probes_passed += 1;
            if self.probes_passed >= self.settings.probes {
                self.state = State::Closed;
                self.forget_failures();
            }
        }
    }

    fn forget_failures(&mut self) {
        (self.window_failures, self.memory_failures) = (0, 0);
    }

    pub fn failed(&mut self, now: Duration) {
        self.failure(now, 0);
    }

    /// It failed because it was refused memory.
    pub fn exhausted(&mut self, now: Duration) {
        self.failure(now, 1);
    }

    fn failure(&mut self, now: Duration, memory_failures: u32) {
        if self.state == State::Closed {
            if now >= self.window_start + self.settings.window {
                self.window_start = now;
                self.forget_failures();
            }
            self.window_failures += 1;
            self.memory_failures += memory_failures;
        }
        self.bad(now);
    }

    /// An answer that took too long. One means nothing: a thread may be interrupted at any time.
    pub fn slow(&mut self, now: Duration, took: Duration) -> Slow {
        self.slow = true;
        if now >= self.slow_window_start + self.settings.slow_window {
            (self.slow_window_start, self.slow_spent) = (now, Duration::ZERO);
        }
        self.slow_spent += took;
        if took > self.settings.long_call {
            return if self.bad(now) { Slow::Opened } else { Slow::Harmless };
        }
        self.consecutive_failures = 0;
        if self.state == State::HalfOpen {
            self.succeeded(now);
        }
        if self.slow_spent > self.settings.slow_budget { Slow::Busy } else { Slow::Harmless }
    }

    fn bad(&mut self, now: Duration) -> bool {
        match self.state {
            // A call that began before it opened.
            State::Open | State::Quarantined => return false,
            State::HalfOpen => {
                self.lengthen_pause();
                self.openings += 1;
            }
            State::Closed => {
                self.consecutive_failures += 1;
                let again_and_again = self.consecutive_failures >= self.settings.consecutive_failures_max
                    || self.window_failures >= self.settings.window_failures_max;
                if !again_and_again && self.memory_failures < self.settings.memory_failures_max {
                    return false;
                }
                let soon = self.openings > 0 && now < self.open_until + self.settings.window;
                if soon {
                    self.lengthen_pause();
                } else {
                    self.backoff = self.settings.backoff_min;
                }
                // One that leaks slowly fails once in a while, and is nobody's trouble.
                self.openings = if again_and_again || soon { self.openings + 1 } else { self.openings.max(1) };
            }
        }
        self.open(now);
        true
    }

    fn lengthen_pause(&mut self) {
        self.backoff = (self.backoff * 2).min(self.settings.backoff_max);
    }

    fn open(&mut self, now: Duration) {
        if now >= self.last_opening + self.settings.openings_window {
            self.openings = 1;
        }
        self.last_opening = now;
        self.state = if self.openings >= self.settings.openings_max { State::Quarantined } else { State::Open };
        self.open_until = now + self.backoff;
        self.consecutive_failures = 0;
        self.probe_since = None;
    }

    /// An operator trusts it again: closed, and nothing is remembered.
    pub fn release(&mut self) {
        *self = Self::new(self.settings.clone());
    }

    /// Nothing to remember: neither a failure nor a slow call since the last success, and closed.
    pub(super) fn quiet(&self) -> bool {
        self.state == State::Closed && self.consecutive_failures == 0 && !self.slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn fail_until_open(machine: &mut Machine, now: Duration) {
        for _ in 0..Settings::default().consecutive_failures_max {
            assert!(machine.admit(now));
            machine.failed(now);
        }
        assert_eq!(machine.state(), State::Open);
    }

    #[test]
    fn opens_after_consecutive_failures_and_probes_one_at_a_time() {
        let mut machine = Machine::new(Settings::default());
        fail_until_open(&mut machine, ms(0));
        assert!(!machine.admit(ms(99)));
        assert!(machine.admit(ms(100)), "the first probe");
        assert!(!machine.admit(ms(100)), "one at a time");
        for n in 1..=3 {
            machine.succeeded(ms(100 + n));
            assert_eq!(machine.state() == State::Closed, n == 3);
            assert!(machine.admit(ms(100 + n)));
        }
    }

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn long_answers_in_a_row_open_it_and_scattered_ones_do_not() {
        let (mut machine, took) = (Machine::new(Settings::default()), us(101));
        for n in 0..1_000 {
            assert!((0..4).all(|_| machine.slow(ms(n), took) == Slow::Harmless), "after {n}");
            machine.succeeded(ms(n));
        }
        assert!((0..4).all(|n| machine.slow(ms(1_000 + n), took) == Slow::Harmless));
        assert_eq!(machine.slow(ms(1_010), took), Slow::Opened);
        assert_eq!(machine.state(), State::Open);
        assert!(machine.admit(ms(1_110)));
        assert_eq!(machine.slow(ms(1_110), took), Slow::Opened, "one probe is enough");
        assert!(!machine.admit(ms(1_309)));
        assert!(machine.admit(ms(1_310)), "after twice the pause");
    }

    /// Slow calls of 50 us, one each so many microseconds, until they are too many.
    fn calls_until_busy(every_us: u64) -> Option<u64> {
        let mut machine = Machine::new(Settings::default());
        let found = (1..10_000).find(|n| match machine.slow(ms(7) + us(n * every_us), us(50)) {
            Slow::Busy => true,
            Slow::Harmless => false,
            Slow::Opened => panic!("short calls open nothing"),
        });
        assert_eq!(machine.state(), State::Closed);
        found
    }

    #[test]
    fn short_slow_calls_may_take_a_twentieth_of_a_thread() {
        assert_eq!(calls_until_busy(51), Some(101));
        assert!(calls_until_busy(900).is_some_and(|n| n < 400));
        assert_eq!(calls_until_busy(1_001), None);
    }

    #[test]
    fn good_calls_between_slow_ones_give_no_time_back() {
        let mut machine = Machine::new(Settings::default());
        let busy = (1..1_000).any(|n| {
            machine.succeeded(us(400 * n));
            machine.slow(us(400 * n + 200), us(50)) == Slow::Busy
        });
        assert!(busy);
    }

    #[test]
    fn a_probe_may_be_slow_while_little_is_asked() {
        let mut machine = Machine::new(Settings::default());
        fail_until_open(&mut machine, ms(0));
        for n in 0..3 {
            assert!(machine.admit(ms(100 + n)));
            assert_eq!(machine.slow(ms(100 + n), us(50)), Slow::Harmless);
        }
        assert_eq!(machine.state(), State::Closed);
    }

    #[test]
    fn long_answers_between_short_ones_keep_a_thread_busy_too() {
        let mut machine = Machine::new(Settings::default());
        for n in 1..=5 {
            assert_eq!(machine.slow(ms(10 * n), us(900)), Slow::Harmless);
            assert_eq!(machine.slow(ms(10 * n + 1), us(30)), Slow::Harmless, "{n}");
        }
        assert_eq!(machine.slow(ms(60), us(900)), Slow::Harmless);
        assert_eq!(machine.slow(ms(61), us(30)), Slow::Busy);
        assert_eq!(machine.state(), State::Closed);
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_up_to_the_maximum() {
        let mut machine = Machine::new(Settings::default());
        fail_until_open(&mut machine, ms(0));
        let mut now = ms(0);
        for pause in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            assert!(!machine.admit(now + ms(pause - 1)), "{pause}");
            now += ms(pause);
            assert!(machine.admit(now), "{pause}");
            machine.failed(now);
        }
    }

    #[test]
    fn one_failure_for_want_of_memory_opens_it_and_a_slow_leak_is_never_quarantined() {
        let (mut machine, settings) = (Machine::new(Settings::default()), Settings::default());
        let mut now = ms(0);
        for _ in 0..100 {
            machine.exhausted(now);
            assert!(machine.state() == State::Open && !machine.admit(now + ms(99)));
            now += ms(100);
            recover(&mut machine, now);
            now += settings.window;
        }
        let openings = (1..100)
            .take_while(|_| {
                machine.exhausted(now);
                now = machine.open_until;
                let open = machine.state() == State::Open;
                if open {
                    recover(&mut machine, now);
                }
                open
            })
            .count();
        assert_eq!(openings, 15, "one that leaks fast is, like any other that fails soon again");
    }

    #[test]
    fn a_pause_soon_after_another_is_longer_and_a_late_one_begins_anew() {
        let (mut machine, window) = (Machine::new(Settings::default()), Settings::default().window);
        let mut now = ms(0);
        for pause in [100, 200, 400, 800] {
            fail_until_open(&mut machine, now);
            assert!(!machine.admit(now + ms(pause - 1)), "{pause}");
            now += ms(pause);
            recover(&mut machine, now);
            now += window - ms(1);
        }
        now += ms(1);
        fail_until_open(&mut machine, now);
        assert!(machine.admit(now + ms(100)));
    }

    fn recover(machine: &mut Machine, now: Duration) {
        while machine.state() != State::Closed {
            assert!(machine.admit(now));
            machine.succeeded(now);
        }
    }

    #[test]
    fn a_lost_probe_does_not_block_for_ever() {
        let mut machine = Machine::new(Settings::default());
        fail_until_open(&mut machine, ms(0));
        assert!(machine.admit(ms(100)));
        assert!(!machine.admit(ms(199)));
        assert!(machine.admit(ms(200)));
    }

    #[test]
    fn failures_between_successes_use_up_the_window() {
        let mut machine = Machine::new(Settings::default());
        for n in 0..20 {
            assert_eq!(machine.state(), State::Closed, "after {n}");
            machine.succeeded(ms(n));
            machine.failed(ms(n));
        }
        assert_eq!(machine.state(), State::Open);
    }

    /// Fails every probe as soon as it is admitted, until it is quarantined; how many openings that took, and when.
    fn fail_until_quarantined(machine: &mut Machine) -> (u32, Duration) {
        let (mut openings, mut now) = (1, ms(0));
        fail_until_open(machine, now);
        while machine.state() != State::Quarantined {
            now = machine.open_until;
            assert!(machine.admit(now));
            machine.failed(now);
            openings += 1;
        }
        (openings, now)
    }

    #[test]
    fn repeated_openings_end_in_quarantine_until_it_is_released() {
        let mut machine = Machine::new(Settings::default());
        let (openings, now) = fail_until_quarantined(&mut machine);
        assert_eq!(openings, Settings::default().openings_max);
        assert!((200..300).contains(&now.as_secs()), "{now:?}");
        machine.succeeded(now);
        machine.failed(now);
        assert!(!machine.admit(now + Duration::from_secs(100_000)), "no time releases it");
        machine.release();
        assert_eq!(machine.state(), State::Closed);
        assert!(machine.admit(now + ms(1)));
        fail_until_open(&mut machine, now + ms(1));
    }

    #[test]
    fn a_policy_that_recovers_and_fails_again_soon_is_quarantined_too() {
        let settings = Settings::default();
        let openings = |pause: Duration| {
            let (mut machine, mut now) = (Machine::new(settings.clone()), ms(0));
            (0..100)
                .take_while(|_| {
                    fail_or_quarantine(&mut machine, now);
                    let open = machine.state() == State::Open;
                    now += settings.backoff_max;
                    for _ in 0..settings.probes {
                        if machine.admit(now) {
                            machine.succeeded(now);
                        }
                    }
                    now += pause;
                    open
                })
                .count()
        };
        assert_eq!(openings(Duration::from_secs(60)), 15, "the sixteenth");
        assert_eq!(openings(settings.openings_window), 100, "openings that are far apart are no repetition");
    }

    fn fail_or_quarantine(machine: &mut Machine, now: Duration) {
        while machine.state() == State::Closed {
            machine.failed(now);
        }
    }

    proptest! {
        /// Whatever happens: while open nothing passes before the pause ends, the pause keeps its bounds, and a policy
        /// that has become healthy is closed again within a bounded time, once it is released from quarantine.
        #[test]
        fn it_always_recovers_and_never_hammers(events in prop::collection::vec((0u64..5_000, 0u8..3), 0..200)) {
            let settings = Settings::default();
            let mut machine = Machine::new(settings.clone());
            let mut now = Duration::ZERO;
            for (step, what) in events {
                now += ms(step);
                let was_open = machine.state() == State::Open && now < machine.open_until;
                let admitted = machine.admit(now);
                prop_assert!(!(was_open && admitted));
                match what {
                    0 if admitted => machine.succeeded(now),
                    1 if admitted => machine.failed(now),
                    _ => {}
                }
                prop_assert!(machine.backoff >= settings.backoff_min && machine.backoff <= settings.backoff_max);
                prop_assert!(machine.open_until <= now + settings.backoff_max);
            }
            if machine.state() == State::Quarantined {
                prop_assert!(!machine.admit(now + 10 * settings.backoff_max));
                machine.release();
            }
            for _ in 0..4 {
                now += settings.backoff_max;
                if machine.admit(now) {
                    machine.succeeded(now);
                }
            }
            prop_assert_eq!(machine.state(), State::Closed);
        }
    }
}
