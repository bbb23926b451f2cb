//! Ownership keys: claimed by whoever creates them first, and changed or deleted only by who holds them.
//!
//! They decide who tries to own a shard; the store decides who may write it.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::error::{Error, bounded};
use super::keys::Key;
use super::{Etcd, json};
use crate::limits;
use crate::registry::picture::{Owner, State};

/// A key as a transaction found it.
pub(super) struct Found {
    pub value: Vec<u8>,
    pub mod_revision: i64,
}

impl Etcd {
    /// Whether this process holds `shard` now: it made the key under its lease, or had it already.
    pub async fn claim(&self, shard: u32) -> Result<bool, Error> {
        let owner = self.owner(State::Acquiring, 0);
        let key = self.shared.keys.of(Key::Owner(shard));
        let lease = self.lease()?;
        let put = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.clone(), json(&owner), Some(put))])
            .or_else([TxnOp::get(key, None)]);
        let answer = bounded(self.kv().txn(txn)).await?;
        let (ours, revision) = match found(answer.op_responses()) {
            None => (true, answer.header().map_or(0, |header| header.revision())),
            Some(found) => (self.is_ours(&found), found.mod_revision),
        };
        if ours {
            self.shared.held.lock().entry(shard).or_insert(owner);
        }
        self.caught_up(revision).await;
        Ok(ours)
    }

    /// Announces that `shard` is served under `epoch`. False, and nothing changed, when the key is not this process's.
    pub async fn serving(&self, shard: u32, epoch: u64) -> Result<bool, Error> {
        let owner = self.owner(State::Serving, epoch);
        // Before it is written: a session that is made anew meanwhile puts this one back.
        match self.shared.held.lock().get_mut(&shard) {
            Some(held) => held.clone_from(&owner),
            None => return Ok(false),
        }
        let lease = self.lease()?;
        let put = || PutOptions::new().with_lease(lease);
        self.change_ours(shard, |key| TxnOp::put(key, json(&owner), Some(put()))).await
    }

    /// Deletes the key if it is this process's. Nothing of the shard must be written by this process any more.
    pub async fn release(&self, shard: u32) -> Result<(), Error> {
        self.shared.held.lock().remove(&shard);
        self.change_ours(shard, |key| TxnOp::delete(key, None)).await.map(|_| ())
    }

    fn owner(&self, state: State, epoch: u64) -> Owner {
        let shared = &self.shared;
        Owner { node: shared.node_id.clone(), incarnation: shared.incarnation, state, epoch }
    }

    fn is_ours(&self, found: &Found) -> bool {
        serde_json::from_slice::<Owner>(&found.value).is_ok_and(|owner| self.shared.is_ours(&owner))
    }

    /// Compares and writes until nobody came between.
    async fn change_ours(&self, shard: u32, change: impl Fn(String) -> TxnOp) -> Result<bool, Error> {
        let key = self.shared.keys.of(Key::Owner(shard));
        for _ in 0..limits::REGISTRY_ATTEMPTS_MAX {
            let read = bounded(self.kv().get(key.clone(), None)).await?;
            let Some(kv) = read.kvs().first() else { return Ok(false) };
            let found = Found { value: kv.value().to_vec(), mod_revision: kv.mod_revision() };
            if !self.is_ours(&found) {
                return Ok(false);
            }
            let txn = Txn::new()
                .when([Compare::mod_revision(key.clone(), CompareOp::Equal, found.mod_revision)])
                .and_then([change(key.clone())]);
            let answer = bounded(self.kv().txn(txn)).await?;
            if answer.succeeded() {
                self.caught_up(answer.header().map_or(0, |header| header.revision())).await;
                return Ok(true);
            }
        }
        Err(Error::Unavailable(format!("the key of shard {shard} does not stop changing")))
    }
}

/// The key that the `or_else` part of a transaction read.
pub(super) fn found(answers: Vec<TxnOpResponse>) -> Option<Found> {
    answers.into_iter().find_map(|answer| match answer {
        TxnOpResponse::Get(read) => {
            read.kvs().first().map(|kv| Found { value: kv.value().to_vec(), mod_revision: kv.mod_revision() })
        }
        _ => None,
    })
}
