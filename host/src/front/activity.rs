//! What a connection is doing, for the sweep that ends slow and silent ones and for the drain.
//!
//! No timer is armed per request: a sweep once a second looks at what each connection is doing and since when.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::limits;

/// How often connections are looked at.
pub const SWEEP: Duration = Duration::from_secs(1);

/// One connection's state, as its requests and its socket report it.
#[derive(Default)]
pub struct Activity {
    /// Requests being answered and streams of events going out: their own limits apply. HTTP/2 has many at once.
    open: Cell<u32>,
    /// Part of a request's head has come.
    head: Cell<bool>,
    /// It speaks HTTP/2.
    multiplexed: Cell<bool>,
    /// Sweeps since the last change.
    sweeps: Cell<u32>,
    draining: Cell<bool>,
    closing: Cell<bool>,
    expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A request or a stream of events under way. While there is one, its connection is left alone.
pub struct Open(Rc<Activity>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.sweeps.set(0);
    }
}

impl Activity {
    /// A request has come.
    pub fn open(self: &Rc<Self>, multiplexed: bool) -> Open {
        self.open.set(self.open.get() + 1);
        self.multiplexed.set(multiplexed);
        self.head.set(false);
        Open(self.clone())
    }

    /// Bytes have come. Between requests of HTTP/1 that is part of a head; HTTP/2 sends more than heads.
    pub fn received(&self) {
        if self.open.get() == 0 && !self.multiplexed.get() && !self.head.replace(true) {
            self.sweeps.set(0);
        }
    }

    /// One sweep has passed.
    pub fn sweep(&self) {
        if self.open.get() > 0 {
            return;
        }
        let soon = self.head.get() || self.closing.get();
        let limit = if soon { limits::REQUEST_READ_TIMEOUT } else { limits::KEEP_ALIVE_TIMEOUT };
        self.sweeps.set(self.sweeps.get() + 1);
        if self.sweeps.get() <= (limit.as_millis() / SWEEP.as_millis()) as u32 {
            return;
        }
        if self.multiplexed.get() && !self.closing.get() {
            // Its client is told, and what it sends meanwhile is answered.
            self.sweeps.set(0);
            self.close();
        } else {
            self.expired.set(true);
            self.wake();
        }
    }

    /// It was slow or silent for too long.
    pub fn is_expired(&self) -> bool {
        self.expired.get()
    }

    /// Each answer from now on is the last on its connection and says so. HTTP/2 says it at once, and what was sent
    /// before its client heard of it is still answered.
    pub fn drain(&self) {
        self.draining.set(true);
        if self.multiplexed.get() {
            self.close();
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Close when the requests under way, if there are any, are answered.
    pub fn close(&self) {
        if !self.closing.replace(true) {
            self.wake();
        }
    }

    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whom to wake when it expires or is to close.
    pub fn watch(&self, context: &Context<'_>) {
        match &mut *self.waker.borrow_mut() {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is over after so many seconds more.
    fn expires_within(activity: &Activity, time: Duration) -> bool {
        (0..time.as_secs()).for_each(|_| activity.sweep());
        activity.is_expired()
    }

    #[test]
    fn slow_heads_and_silent_connections_are_ended() {
        let activity = Activity::default();
        assert!(!expires_within(&activity, limits::KEEP_ALIVE_TIMEOUT));
        assert!(expires_within(&activity, SWEEP));

        let activity = Activity::default();
        activity.received();
        assert!(!expires_within(&activity, limits::REQUEST_READ_TIMEOUT));
        activity.received();
        assert!(expires_within(&activity, SWEEP), "a byte now and then does not help");
    }

    #[test]
    fn work_and_streams_are_left_alone() {
        let activity = Rc::new(Activity::default());
        let (one, other) = (activity.open(false), activity.open(false));
        drop(one);
        assert!(!expires_within(&activity, Duration::from_secs(10_000)));
        drop(other);
        assert!(!expires_within(&activity, limits::KEEP_ALIVE_TIMEOUT), "silent since then, not since it opened");
        assert!(expires_within(&activity, SWEEP));
    }

    #[test]
    fn a_silent_client_of_http_2_is_told_first() {
        let activity = Rc::new(Activity::default());
        drop(activity.open(true));
        // Frames between requests are no heads.
        activity.received();
        assert!(!expires_within(&activity, limits::KEEP_ALIVE_TIMEOUT) && !activity.is_closing());
        assert!(!expires_within(&activity, SWEEP) && activity.is_closing());
        assert!(!expires_within(&activity, limits::REQUEST_READ_TIMEOUT));
        assert!(expires_within(&activity, SWEEP), "it does not go");
    }

    #[test]
    fn a_drain_closes_http_2_at_once_and_http_1_with_its_next_answer() {
        for multiplexed in [false, true] {
            let activity = Rc::new(Activity::default());
            drop(activity.open(multiplexed));
            activity.drain();
            assert_eq!((activity.is_draining(), activity.is_closing()), (true, multiplexed));
        }
    }
}
