//! How often and how long a command tries again.

use std::time::{Duration, Instant};

use crate::limits;

/// Waiting times; a test shortens them.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub first_wait: Duration,
    pub wait_max: Duration,
    pub retry_for: Duration,
    pub reconnect_for: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(100),
            wait_max: Duration::from_secs(5),
            retry_for: limits::CLIENT_RETRY_FOR,
            reconnect_for: limits::CLIENT_RECONNECT_FOR,
        }
    }
}

/// A row of attempts with doubling waits between them.
#[derive(Debug)]
pub struct Pace {
    wait: Duration,
    wait_max: Duration,
    until: Instant,
}

impl Pace {
    pub fn new(limits: Limits, total: Duration) -> Self {
        Self { wait: limits.first_wait, wait_max: limits.wait_max, until: Instant::now() + total }
    }

    /// Waits before the next attempt, at least as long as the server asked for within the bounds; false when the time
    /// is over, without waiting.
    pub fn wait(&mut self, asked: Option<Duration>) -> bool {
        let wait = self.wait.max(asked.unwrap_or_default()).min(self.wait_max);
        if Instant::now() + wait > self.until {
            return false;
        }
        std::thread::sleep(wait);
        self.wait = (self.wait * 2).min(self.wait_max);
        true
    }
}
