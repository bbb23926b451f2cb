//! Places for work that only a few may do at once, such as compiling.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    taken: Mutex<usize>,
    left: Condvar,
}

/// One place, until dropped; on any thread.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>);

impl Places {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::new(0), left: Condvar::new() })
    }

    /// Takes a place, or waits for one. None: all were taken for so long.
    pub fn enter(self: &Arc<Self>, wait: Duration) -> Option<Place> {
        let mut taken = self.taken.lock();
        let full = |taken: &mut usize| *taken >= self.max;
        if self.left.wait_while_for(&mut taken, full, wait).timed_out() && full(&mut taken) {
            return None;
        }
        *taken += 1;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock() -= 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_left() {
        let places = Places::new(2);
        let (first, _second) =
            (places.enter(Duration::ZERO).expect("free"), places.enter(Duration::ZERO).expect("free"));
        assert!(places.enter(Duration::from_millis(1)).is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| places.enter(Duration::from_secs(60)).is_some());
            drop(first);
            assert!(waits.join().expect("it does not panic"));
        });
    }
}
