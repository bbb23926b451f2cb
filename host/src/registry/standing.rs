//! Whether this node must have heard of every change of the registry that others wait for.
//!
//! A change that all nodes must have in force first, such as a wider spread, waits for every node whose lease stands. A
//! node that stood still for longer, or that etcd does not hear, is not waited for. It learns that here, by its boot clock,
//! which a suspended machine does not stop, and before it could hear of the change. Next: `etcd::session`, which renews
//! it, and `node::Node::spread_of_reads`.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Boot;

#[derive(Debug)]
pub struct Standing {
    began: Boot,
    /// Microseconds after `began` at which etcd may end the lease.
    until_us: AtomicU64,
    /// What was changed up to this revision, nobody waited for this node with; from there on everybody does.
    from: AtomicI64,
}

impl Default for Standing {
    fn default() -> Self {
        Self { began: Boot::now(), until_us: AtomicU64::new(0), from: AtomicI64::new(i64::MAX) }
    }
}

impl Standing {
    /// Nothing is certain under a new lease before [`Standing::listed`].
    pub fn granted(&self) {
        self.from.store(i64::MAX, Ordering::SeqCst);
    }

    /// etcd answered to a renewal, or a grant, that was sent then: it keeps the lease for `ttl` from there at least.
    pub fn renewed(&self, sent: Boot, ttl: Duration) {
        let until = sent.saturating_since(self.began) + ttl;
        self.until_us.fetch_max(u64::try_from(until.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// The registry was read, as of this revision, after the node was registered.
    pub fn listed(&self, revision: i64) {
        self.from.store(revision, Ordering::SeqCst);
    }

    /// Whether a node that has everything up to `followed` in force has all that others waited for until now. Ask before
    /// looking at what is in force.
    pub fn holds(&self, followed: i64) -> bool {
        self.holds_at(Boot::now(), followed)
    }

    fn holds_at(&self, now: Boot, followed: i64) -> bool {
        followed >= self.from.load(Ordering::SeqCst)
            && now.saturating_since(self.began).as_micros() < u128::from(self.until_us.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3600);

    #[test]
    fn it_holds_from_the_list_on_while_the_lease_is_renewed() {
        let standing = Standing::default();
        assert!(!standing.holds(i64::MAX - 1), "there is no lease");
        standing.granted();
        standing.renewed(Boot::now(), TTL);
        assert!(!standing.holds(7), "nothing was read yet");
        standing.listed(7);
        assert!(standing.holds(7) && standing.holds(8));
        assert!(!standing.holds(6), "what was read is not in force yet");
        standing.granted();
        assert!(!standing.holds(8), "what changed between two leases is not known");
    }

    #[test]
    fn it_ends_while_the_machine_is_suspended() {
        let standing = Standing::default();
        standing.listed(1);
        let renewed = Boot::now();
        standing.renewed(renewed, TTL);
        assert!(standing.holds_at(renewed, 1));
        assert!(!standing.holds_at(renewed + TTL, 1), "etcd's clock went on");
    }

    #[test]
    fn it_ends_with_the_lease_as_it_was_last_renewed() {
        let standing = Standing::default();
        standing.listed(1);
        standing.renewed(standing.began, Duration::ZERO);
        assert!(!standing.holds(1));
        standing.renewed(Boot::now(), TTL);
        // A late answer to an earlier renewal shortens nothing.
        standing.renewed(standing.began, Duration::ZERO);
        assert!(standing.holds(1));
    }
}
