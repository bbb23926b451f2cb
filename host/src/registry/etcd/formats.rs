//! The cluster's configuration in etcd, and the one change that it knows: the written format rises.
//!
//! Nodes register only if the configuration is still the one that they checked, and it changes only if no node has
//! registered since the nodes were read. So there is never a registered node that does not read what is written.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::error::{Error, bounded};
use super::keys::Key;
use super::{Etcd, Shared, json};
use crate::limits;
use crate::registry::formats::{self, Finalized};
use crate::registry::picture::{Config, Revised};

impl Etcd {
    /// Raises the written format to the newest that every registered node reads. Durable when it answers.
    pub async fn finalize(&self) -> Result<Finalized, Error> {
        let shared = &self.shared;
        let key = shared.keys.of(Key::Config);
        for _ in 0..limits::REGISTRY_ATTEMPTS_MAX {
            // Not the picture at hand, which may be old.
            let now = shared.list().await?;
            let Some(Revised { value: config, mod_revision }) = now.config else {
                return Err(Error::Unavailable(format!("the cluster's configuration, {key}, is gone")));
            };
            let done = formats::finalized(config.format, now.nodes.values());
            if done.format == config.format {
                return Ok(done);
            }
            let raised = Config { format: done.format, ..config };
            let nobody_came =
                Compare::create_revision(shared.keys.of(Key::Node("")), CompareOp::Less, now.revision + 1);
            let txn = Txn::new()
                .when([Compare::mod_revision(key.clone(), CompareOp::Equal, mod_revision), nobody_came.with_prefix()])
                .and_then([TxnOp::put(key.clone(), json(&raised), None)]);
            let answer = bounded(shared.kv().txn(txn)).await?;
            if answer.succeeded() {
                self.caught_up(answer.header().map_or(0, |header| header.revision())).await;
                return Ok(done);
            }
        }
        Err(Error::Unavailable("nodes do not stop registering".into()))
    }
}

impl Shared {
    /// What is configured now, if this node can be part of it. None: the key is gone, which ends nothing.
    pub(super) async fn fitting_config(&self) -> Result<Option<Revised<Config>>, Error> {
        let key = self.keys.of(Key::Config);
        let read = bounded(self.kv().get(key.clone(), None)).await?;
        let Some(kv) = read.kvs().first() else { return Ok(None) };
        let config = parse(&key, kv.value())?;
        let reads = self.node.borrow().formats;
        formats::check(config.format, reads).map_err(Error::Refused)?;
        Ok(Some(Revised { value: config, mod_revision: kv.mod_revision() }))
    }

    /// Holds while the configuration is this one.
    pub(super) fn config_is(&self, config: Option<&Revised<Config>>) -> Compare {
        let revision = config.map_or(0, |config| config.mod_revision);
        Compare::mod_revision(self.keys.of(Key::Config), CompareOp::Equal, revision)
    }
}

pub(super) fn parse(key: &str, value: &[u8]) -> Result<Config, Error> {
    serde_json::from_slice(value).map_err(|why| {
        Error::Refused(format!("The cluster's configuration in etcd under {key} is not readable: {why}."))
    })
}
