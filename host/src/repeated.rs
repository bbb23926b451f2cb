//! Messages that may repeat: told at once, then once within an interval, with how often they were left out.
//!
//! What goes wrong goes wrong at every attempt, and a log that is one line a thousand times hides the others.

use std::fmt;
use std::time::Instant;

use parking_lot::Mutex;

use crate::limits;

/// One message; where it names something, as a shard, one for each of those.
#[derive(Debug)]
pub struct Repeated(Mutex<State>);

#[derive(Debug)]
struct State {
    told: Option<Instant>,
    left_out: u64,
}

/// How often a message was left out since it was told; to be put at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => write!(f, " (once more since the last such line)"),
            count => write!(f, " ({count} times more since the last such line)"),
        }
    }
}

impl Default for Repeated {
    fn default() -> Self {
        Self::new()
    }
}

impl Repeated {
    pub const fn new() -> Self {
        Self(Mutex::new(State { told: None, left_out: 0 }))
    }

    /// Calls `tell`, unless it was called within [`limits::REPEATED_MESSAGE_INTERVAL`].
    pub fn tell(&self, tell: impl FnOnce(LeftOut)) {
        if let Some(left_out) = self.due(Instant::now()) {
            tell(left_out);
        }
    }

    fn due(&self, now: Instant) -> Option<LeftOut> {
        let mut state = self.0.lock();
        let recent =
            state.told.is_some_and(|told| now.saturating_duration_since(told) < limits::REPEATED_MESSAGE_INTERVAL);
        if recent {
            state.left_out += 1;
            return None;
        }
        state.told = Some(now);
        Some(LeftOut(std::mem::take(&mut state.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_once_and_then_with_a_count() {
        let (message, began) = (Repeated::new(), Instant::now());
        let due = |intervals: u32| {
            let due = message.due(began + intervals * limits::REPEATED_MESSAGE_INTERVAL / 10);
            due.map(|left_out| left_out.to_string())
        };
        assert_eq!(due(0).as_deref(), Some(""));
        assert_eq!((due(1), due(9)), (None, None));
        assert_eq!(due(10).as_deref(), Some(" (2 times more since the last such line)"));
        assert_eq!(due(15), None);
        assert_eq!(due(20).as_deref(), Some(" (once more since the last such line)"));
        assert_eq!(due(40).as_deref(), Some(""));
    }
}
