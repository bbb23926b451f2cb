//! What a node puts under its lease: its own key, and the keys of the shards that it holds.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use super::error::{Error, bounded};
use super::keys::Key;
use super::owners::{Found, found};
use super::{Shared, json};
use crate::registry::picture::{Config, NodeInfo, Owner, Revised};

/// Whether others should hear of this change soon, not only with the next change of load.
pub fn is_urgent(written: &NodeInfo, now: &NodeInfo) -> bool {
    let load = |node: &NodeInfo| NodeInfo { cpu: 0.0, queued: 0, ..node.clone() };
    load(written) != load(now)
}

/// Whether a policy would see the difference: 2 points of CPU, or a queue that grew or shrank by a quarter.
pub fn is_noticeable(written: &NodeInfo, now: &NodeInfo) -> bool {
    let queue = written.queued.abs_diff(now.queued);
    is_urgent(written, now) || (written.cpu - now.cpu).abs() >= 0.02 || queue > 16 && queue > written.queued / 4
}

impl Shared {
    /// Creates `key` under `lease`, or renews it if `ours` says so, while the condition holds. False when another process
    /// has it.
    async fn put_ours(
        &self,
        key: String,
        value: Vec<u8>,
        lease: i64,
        condition: Option<Compare>,
        ours: impl Fn(&Found) -> bool,
    ) -> Result<bool, Error> {
        let put = || TxnOp::put(key.clone(), value.clone(), Some(PutOptions::new().with_lease(lease)));
        let with = |compare: Compare| -> Vec<Compare> { [compare].into_iter().chain(condition.clone()).collect() };
        let create = Txn::new()
            .when(with(Compare::version(key.clone(), CompareOp::Equal, 0)))
            .and_then([put()])
            .or_else([TxnOp::get(key.clone(), None)]);
        let answer = bounded(self.kv().txn(create)).await?;
        if answer.succeeded() {
            return Ok(true);
        }
        let changed = || Error::Unavailable(format!("{key} or what it rests on changed while it was written"));
        let found = found(answer.op_responses()).ok_or_else(changed)?;
        if !ours(&found) {
            return Ok(false);
        }
        let renew = Txn::new()
            .when(with(Compare::mod_revision(key.clone(), CompareOp::Equal, found.mod_revision)))
            .and_then([put()]);
        match bounded(self.kv().txn(renew)).await?.succeeded() {
            true => Ok(true),
            false => Err(changed()),
        }
    }

    /// While the configuration is the one given.
    pub(super) async fn register(
        &self,
        lease: i64,
        node: &NodeInfo,
        config: Option<&Revised<Config>>,
    ) -> Result<(), Error> {
        let ours = |found: &Found| {
            serde_json::from_slice::<NodeInfo>(&found.value).is_ok_and(|node| node.incarnation == self.incarnation)
        };
        match self
            .put_ours(self.keys.of(Key::Node(&node.id)), json(node), lease, Some(self.config_is(config)), ours)
            .await?
        {
            true => Ok(()),
            false => Err(Error::Unavailable(format!(
                "another process is registered as node {:?}; this one waits until that lease ends",
                node.id
            ))),
        }
    }

    /// After a lease was lost: shards that this process still serves get their keys back, unless somebody took them.
    pub(super) async fn put_back_held(&self, lease: i64) -> Result<(), Error> {
        let held = self.held.lock().clone();
        for (shard, owner) in held {
            let ours =
                |found: &Found| serde_json::from_slice::<Owner>(&found.value).is_ok_and(|owner| self.is_ours(&owner));
            if !self.put_ours(self.keys.of(Key::Owner(shard)), json(&owner), lease, None, ours).await? {
                tracing::info!(shard, "another node claimed the shard while this one had no lease");
            }
        }
        Ok(())
    }
}
