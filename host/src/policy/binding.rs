//! A binding: a revision with the config and the grants of one rule. Instances belong to bindings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::breaker::Breaker;
use super::imports::Grants;
use super::imports::mirror::Mirror;
use super::limits;
use super::recording::tape::Taping;
use super::revision::{Code, Rejected, Revision};
use super::share::Share;
use super::state::Node;

/// Dropping the last `Arc` frees its instances: on the pool at once, on each serving thread at its next view change.
pub struct Binding {
    pub revision: Arc<Revision>,
    pub(super) code: Arc<Code>,
    pub config: String,
    pub grants: Grants,
    /// Never reused in this process.
    pub id: u64,
    /// Its place in each thread's table; reused after it is gone.
    pub(super) seat: usize,
    /// Faults under one rule, with its config, say nothing about the revision under another.
    pub(super) breaker: Arc<Breaker>,
    pub(super) taping: Taping,
    /// Of a policy that reads the registry inline.
    pub(super) mirror: Option<Arc<Mirror>>,
    pub(super) node: Arc<Node>,
    seats: Arc<Mutex<Seats>>,
    busy: AtomicBool,
    /// Of a policy that was moved to the pool for keeping threads busy.
    pub(super) share: Option<Share>,
}

impl Binding {
    pub(super) fn new(
        revision: &Arc<Revision>,
        config: &str,
        grants: Grants,
        node: &Arc<Node>,
        mirror: Option<Arc<Mirror>>,
        seats: &Arc<Mutex<Seats>>,
    ) -> Result<Self, Rejected> {
        let code = revision.code()?;
        let (id, seat) = seats.lock().take().ok_or(Rejected::TooManyBindings)?;
        let (revision, config) = (revision.clone(), config.to_owned());
        let breaker = revision.shared.breakers.another();
        let (node, seats) = (node.clone(), seats.clone());
        let (taping, busy) = (Taping::default(), AtomicBool::new(false));
        let share = revision.kept_busy().then(Share::new);
        Ok(Self { revision, code, config, grants, id, seat, breaker, taping, mirror, node, seats, busy, share })
    }

    pub(super) fn keeps_threads_busy(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Its slow calls took much of a serving thread's time: it should run on the pool.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.revision.pooled.forget(self.id);
        self.seats.lock().free.push(self.seat);
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding").field("id", &self.id).field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// Hands out small numbers, so that a thread finds its instance by an index.
#[derive(Debug, Default)]
pub(super) struct Seats {
    free: Vec<usize>,
    made: usize,
    last_id: u64,
}

impl Seats {
    fn take(&mut self) -> Option<(u64, usize)> {
        let seat = self.free.pop().or_else(|| {
            self.made += 1;
            (self.made <= limits::BINDINGS_MAX).then_some(self.made - 1)
        })?;
        self.last_id += 1;
        Some((self.last_id, seat))
    }
}
