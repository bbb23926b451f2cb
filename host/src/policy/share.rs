//! The share of a thread that a policy may take on the pool, when it was moved there because its calls kept serving threads
//! busy. Other policies' threads compete with it for the same cores, so the pool alone protects nobody on a machine that has
//! nothing to spare; while it has, nothing is held back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::limits;

/// Time spent in the window that is current. Threads that begin a window together may lose a call of it: a guard, no
/// account.
#[derive(Debug)]
pub(super) struct Share {
    began: Instant,
    cores: f64,
    window: AtomicU64,
    spent_nanos: AtomicU64,
}

impl Share {
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        Self::on(cores)
    }

    fn on(cores: f64) -> Self {
        Self { began: Instant::now(), cores, window: AtomicU64::new(0), spent_nanos: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64 / limits::POOL_SHARE_WINDOW.as_nanos() as u64
    }

    pub fn spend(&self, took: Duration) {
        let (now, took) = (self.now(), took.as_nanos() as u64);
        if self.window.swap(now, Ordering::Relaxed) == now {
            self.spent_nanos.fetch_add(took, Ordering::Relaxed);
        } else {
            self.spent_nanos.store(took, Ordering::Relaxed);
        }
    }

    /// Whether nothing is left of this window's share on a machine of which so much is in use, 0.0 to 1.0.
    pub fn is_used_up(&self, cpu: f64) -> bool {
        (1.0 - cpu) * self.cores < limits::POOL_SHARE_IDLE_CORES
            && self.window.load(Ordering::Relaxed) == self.now()
            && self.spent_nanos.load(Ordering::Relaxed) >= limits::POOL_SHARE.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_used_up_on_a_busy_machine_until_the_next_window() {
        let share = Share::on(4.0);
        assert!(!share.is_used_up(1.0));
        // Until both fall in one window.
        while {
            share.spend(limits::POOL_SHARE);
            !share.is_used_up(1.0)
        } {}
        assert!(!share.is_used_up(0.75), "one core of four is idle");
        std::thread::sleep(limits::POOL_SHARE_WINDOW);
        assert!(!share.is_used_up(1.0));
    }
}
