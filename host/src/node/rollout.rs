//! New revisions beside the ones in force: canaries, which answer for some counters, and shadows, which only are compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::policy::Binding;
use crate::policy::canary::{self, Verdict};
use crate::policy::stats::Counts;

/// A canary of a rule that is in force.
pub struct ActiveCanary {
    pub binding: Arc<Binding>,
    stable: Arc<Binding>,
    percent: u8,
    /// What both had counted when it began.
    before: (Counts, Counts),
    /// False once it misbehaved: all counters are with the stable revision from that moment.
    live: AtomicBool,
}

impl ActiveCanary {
    pub fn new(binding: Arc<Binding>, stable: Arc<Binding>, percent: u8) -> Self {
        let before = (binding.revision.counts(), stable.revision.counts());
        Self { binding, stable, percent, before, live: AtomicBool::new(true) }
    }

    /// Whether the counter with this hash is the canary's.
    pub fn takes(&self, hash: u64) -> bool {
        self.live.load(Ordering::Relaxed) && canary::takes(hash, self.percent)
    }

    /// Why it must be taken back, if it must. It answers nothing from then on.
    pub fn judge(&self) -> Option<String> {
        let canary = self.binding.revision.counts().since(&self.before.0);
        let stable = self.stable.revision.counts().since(&self.before.1);
        match canary::judge(&canary::Settings::default(), &canary, &stable) {
            Verdict::Keep => None,
            Verdict::RollBack(reason) => {
                self.live.store(false, Ordering::Relaxed);
                Some(reason)
            }
        }
    }
}

/// A shadow of a rule that is in force.
pub struct ActiveShadow {
    pub binding: Arc<Binding>,
    compared: AtomicU64,
    different: AtomicU64,
    /// Comparisons on the pool that were left out because many were under way.
    skipped: AtomicU64,
    under_way: AtomicU64,
}

/// Comparisons with a shadow on the pool that may be under way at once.
const UNDER_WAY_MAX: u64 = 64;

/// What a shadow has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Compared {
    pub compared: u64,
    pub different: u64,
    pub skipped: u64,
}

impl ActiveShadow {
    pub fn new(binding: Arc<Binding>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { binding, compared: zero(), different: zero(), skipped: zero(), under_way: zero() }
    }

    /// Counts one comparison. A shadow that failed differs.
    pub fn compare(&self, same: bool) {
        self.compared.fetch_add(1, Ordering::Relaxed);
        self.different.fetch_add(u64::from(!same), Ordering::Relaxed);
    }

    /// Takes a place for a comparison on the pool; [`Self::leave`] gives it back.
    pub fn enter(&self) -> bool {
        if self.under_way.fetch_add(1, Ordering::Relaxed) < UNDER_WAY_MAX {
            return true;
        }
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.skipped.fetch_add(1, Ordering::Relaxed);
        false
    }

    pub fn leave(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn compared(&self) -> Compared {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Compared { compared: load(&self.compared), different: load(&self.different), skipped: load(&self.skipped) }
    }
}
