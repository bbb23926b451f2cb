//! Rules, announcements of plugins, and the key-values that policies see through their `registry` import.
//!
//! None of them is bound to a lease. Reads are looks at the picture.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::error::{Error, bounded};
use super::keys::Key;
use super::{Etcd, json};
use crate::limits;
use crate::registry::History;
use crate::registry::picture::{Plugin, PluginValues};

/// What a plugin may keep in the registry (wit/registry.wit). The quotas are checked against the picture, so two nodes
/// that write at the same moment can pass them by a little.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    pub keys_max: usize,
    /// Keys and values together.
    pub bytes_max: usize,
    pub key_bytes_max: usize,
    pub value_bytes_max: usize,
}

impl Etcd {
    /// Writes the history of a prefix if its key still is as of `expected_mod_revision` (None: there is none), and returns
    /// the new revision. `Conflict` when it is not. Durable when it answers.
    pub async fn save_rule(
        &self,
        prefix: &str,
        history: &History,
        expected_mod_revision: Option<i64>,
    ) -> Result<i64, Error> {
        let picture = self.picture();
        let max = limits::RULE_HISTORIES_MAX;
        if !picture.rules.contains_key(prefix) && picture.rules.len() >= max {
            return Err(Error::Limit(format!("At most {max} prefixes can have or have had a rule.")));
        }
        let key = self.shared.keys.of(Key::Rule(prefix));
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, expected_mod_revision.unwrap_or(0));
        self.write(Txn::new().when([unchanged]).and_then([TxnOp::put(key, json(history), None)])).await
    }

    /// Tells every node that a revision was uploaded. Its bytes must be in the store before.
    pub async fn announce_plugin(&self, digest: &str, name: &str) -> Result<(), Error> {
        let key = self.shared.keys.of(Key::Plugin(digest));
        let plugin = Plugin { name: name.to_owned() };
        self.write(Txn::new().and_then([TxnOp::put(key, json(&plugin), None)])).await.map(|_| ())
    }

    /// Withdrawing what was not announced is no error.
    pub async fn withdraw_plugin(&self, digest: &str) -> Result<(), Error> {
        let key = self.shared.keys.of(Key::Plugin(digest));
        self.write(Txn::new().and_then([TxnOp::delete(key, None)])).await.map(|_| ())
    }

    pub fn value(&self, plugin: &str, key: &str) -> Option<Arc<[u8]>> {
        self.picture().values.get(plugin)?.get(key).cloned()
    }

    /// The first `limit` entries whose key starts with `prefix`, in key order.
    pub fn list_values(&self, plugin: &str, prefix: &str, limit: usize) -> Vec<(String, Arc<[u8]>)> {
        let picture = self.picture();
        let Some(values) = picture.values.get(plugin) else { return Vec::new() };
        let from = values.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        let matching = from.take_while(|(key, _)| key.starts_with(prefix));
        matching.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The last writer wins. Durable when it answers.
    pub async fn put_value(&self, plugin: &str, key: &str, value: &[u8], quota: &Quota) -> Result<(), Error> {
        check_scope(plugin)?;
        quota.check(self.picture().values.get(plugin).map(|values| &**values), key, value)?;
        let key = self.shared.keys.of(Key::Value { plugin, key });
        self.write(Txn::new().and_then([TxnOp::put(key, value, None)])).await.map(|_| ())
    }

    /// Removing what is not there is no error. Durable when it answers.
    pub async fn delete_value(&self, plugin: &str, key: &str) -> Result<(), Error> {
        check_scope(plugin)?;
        let key = self.shared.keys.of(Key::Value { plugin, key });
        self.write(Txn::new().and_then([TxnOp::delete(key, None)])).await.map(|_| ())
    }

    async fn write(&self, txn: Txn) -> Result<i64, Error> {
        let answer = bounded(self.kv().txn(txn)).await?;
        if !answer.succeeded() {
            return Err(Error::Conflict);
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        // A deletion of nothing writes no event that the picture could wait for.
        let wrote = answer.op_responses().iter().any(|answer| match answer {
            etcd_client::TxnOpResponse::Delete(deleted) => deleted.deleted() > 0,
            _ => true,
        });
        if wrote {
            self.caught_up(revision).await;
        }
        Ok(revision)
    }
}

fn check_scope(plugin: &str) -> Result<(), Error> {
    match plugin.is_empty() || plugin.contains('/') {
        true => Err(Error::Limit(format!("a plugin's name is not empty and has no '/'; this one is {plugin:?}"))),
        false => Ok(()),
    }
}

impl Quota {
    fn check(&self, values: Option<&PluginValues>, key: &str, value: &[u8]) -> Result<(), Error> {
        let limit = |why: String| Err(Error::Limit(why));
        if !(1..=self.key_bytes_max).contains(&key.len()) {
            return limit(format!("a key has 1 to {} bytes; this one has {}", self.key_bytes_max, key.len()));
        }
        if value.len() > self.value_bytes_max {
            return limit(format!("a value has at most {} bytes; this one has {}", self.value_bytes_max, value.len()));
        }
        let others = || values.into_iter().flatten().filter(|(other, _)| *other != key);
        if others().count() >= self.keys_max {
            return limit(format!("the plugin's quota of {} keys is used up", self.keys_max));
        }
        let bytes: usize = others().map(|(key, value)| key.len() + value.len()).sum();
        if bytes + key.len() + value.len() > self.bytes_max {
            return limit(format!("the plugin's quota of {} bytes is used up", self.bytes_max));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { keys_max: 2, bytes_max: 10, key_bytes_max: 4, value_bytes_max: 6 };

    fn refused(values: &PluginValues, key: &str, value: &[u8]) -> bool {
        QUOTA.check(Some(values), key, value).is_err()
    }

    #[test]
    fn a_quota_counts_keys_and_bytes_and_a_replaced_value_once() {
        let one: PluginValues = [("a".to_owned(), Arc::from(*b"12345"))].into();
        assert!(!refused(&one, "b", b"123"));
        assert!(refused(&one, "b", b"1234"));
        assert!(!refused(&one, "a", b"123456"));
        assert!(refused(&one, "a", b"1234567"));
        assert!(refused(&one, "", b""));
        assert!(refused(&one, "abcde", b""));
        let two: PluginValues = [("a".to_owned(), Arc::from(*b"")), ("b".to_owned(), Arc::from(*b""))].into();
        assert!(refused(&two, "c", b""));
        assert!(!refused(&two, "b", b"1"));
    }
}
