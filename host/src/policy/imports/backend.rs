//! What stands behind `registry` and `storage`: a trait, and its implementation over the store.
//!
//! Keys are scoped to the plugin here, so no key that a plugin names can reach another's. A node of a cluster has another
//! implementation, for which `registry` is etcd.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::mirror::Mirror;
use crate::policy::limits;
use crate::policy::state::{Shared, State};
use crate::store::Store;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    Registry,
    Storage,
}

impl Space {
    /// The name of the plugin's space in the store. A plugin's name has no `/`.
    pub fn named(self, plugin: &str) -> String {
        match self {
            Self::Registry => format!("registry/{plugin}"),
            Self::Storage => format!("plugin/{plugin}"),
        }
    }

    fn keys_max(self) -> usize {
        match self {
            Self::Registry => limits::REGISTRY_KEYS_MAX,
            Self::Storage => limits::STORAGE_KEYS_MAX,
        }
    }

    fn bytes_max(self) -> usize {
        match self {
            Self::Registry => limits::REGISTRY_BYTES_MAX,
            Self::Storage => limits::STORAGE_BYTES_MAX,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Error {
    #[error("{0}")]
    Limit(String),
    #[error("not available now")]
    Unavailable,
}

/// A partial could not be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// Key-values of plugins, and partials. Keys come checked; quotas are the implementation's.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    async fn get(&self, space: Space, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Entries whose key starts with `prefix`, in key order.
    async fn list(
        &self,
        space: Space,
        plugin: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// Durable when it answers. After `Unavailable` it may or may not have happened.
    async fn put(&self, space: Space, plugin: &str, key: &str, value: &[u8]) -> Result<(), Error>;

    async fn delete(&self, space: Space, plugin: &str, key: &str) -> Result<(), Error>;

    /// What `shard` has journaled of a counter.
    async fn partial(&self, counter: &str, shard: u32) -> Result<Option<i64>, Error>;

    /// Whether [`Backend::follow`] has mirrors. Without them every policy that imports `registry` runs on the pool.
    fn mirrors(&self) -> bool {
        false
    }

    /// A plugin's registry in memory, filled when this answers and kept up to date for as long as somebody holds it.
    /// None: this backend has no mirrors.
    async fn follow(&self, _plugin: &str) -> Result<Option<Arc<Mirror>>, Error> {
        Ok(None)
    }
}

/// The way to the backend for one call of a plugin that may use it.
pub(super) struct Opened {
    backend: Arc<dyn Backend>,
    shared: Arc<Shared>,
}

impl State {
    pub(super) fn open(&self) -> Result<Opened, Error> {
        let backend = self.backend.clone().ok_or(Error::Unavailable)?;
        Ok(Opened { backend, shared: self.shared.clone() })
    }
}

pub(super) fn check_key(key: &str, bytes: RangeInclusive<usize>) -> Result<(), Error> {
    if bytes.contains(&key.len()) {
        return Ok(());
    }
    let (min, max) = (bytes.start(), bytes.end());
    Err(Error::Limit(format!("a key has {min} to {max} bytes; this one has {}", key.len())))
}

impl Opened {
    /// Waits for the backend no longer than one host call may.
    pub async fn within<'a, T, F>(&'a self, call: impl FnOnce(&'a dyn Backend, &'a str) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'a,
    {
        let limit = self.shared.limits.deadline_host_call;
        let answer = tokio::time::timeout(limit, call(&*self.backend, &self.shared.name)).await;
        answer.unwrap_or(Err(Error::Unavailable))
    }
}

/// Reads a partial; the node supplies it.
pub type Partials = Box<dyn Fn(&str, u32) -> BoxFuture<'static, Result<Option<i64>, Unavailable>> + Send + Sync>;

/// The embedded backend: both spaces live in the store.
pub struct StoreBackend {
    store: Arc<dyn Store>,
    partials: Partials,
    /// Sizes of the entries of each space that was written to, so that a quota costs no scan per write.
    usage: Mutex<HashMap<String, Arc<Mutex<Usage>>>>,
}

#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Filled from the store before the first write.
    loaded: bool,
    entry_bytes: HashMap<String, usize>,
    bytes: usize,
    /// Of a registry that somebody follows.
    mirror: Weak<Mirror>,
}

impl Usage {
    /// Whether an entry of this size fits, in the place of the one that has its key.
    pub fn check(&self, space: Space, key: &str, bytes: usize) -> Result<(), Error> {
        let old = self.entry_bytes.get(key);
        let (keys_max, bytes_max) = (space.keys_max(), space.bytes_max());
        if old.is_none() && self.entry_bytes.len() >= keys_max {
            return Err(Error::Limit(format!("the plugin's quota of {keys_max} keys is used up")));
        }
        if self.bytes - old.copied().unwrap_or(0) + bytes > bytes_max {
            return Err(Error::Limit(format!("the plugin's quota of {bytes_max} bytes is used up")));
        }
        Ok(())
    }

    pub fn set(&mut self, key: &str, bytes: usize) {
        self.bytes += bytes;
        self.bytes -= self.entry_bytes.insert(key.to_owned(), bytes).unwrap_or(0);
    }

    pub fn remove(&mut self, key: &str) {
        self.bytes -= self.entry_bytes.remove(key).unwrap_or(0);
    }
}

impl StoreBackend {
    pub fn new(store: Arc<dyn Store>, partials: Partials) -> Self {
        Self { store, partials, usage: Mutex::default() }
    }

    async fn usage(&self, name: &str) -> Arc<Mutex<Usage>> {
        self.usage.lock().await.entry(name.to_owned()).or_default().clone()
    }

    async fn reflect(&self, name: &str, mirror: &Mirror) -> Result<(), Error> {
        let entries = self.store.scan(name, "", Space::Registry.keys_max() + 1).await.map_err(unavailable)?;
        mirror.replace(entries);
        Ok(())
    }

    async fn fill(&self, space: Space, name: &str, usage: &mut Usage) -> Result<(), Error> {
        if !usage.loaded {
            let entries = self.store.scan(name, "", space.keys_max() + 1).await.map_err(unavailable)?;
            for (key, value) in entries {
                usage.set(&key, key.len() + value.len());
            }
            usage.loaded = true;
        }
        Ok(())
    }
}

pub(super) fn check_value(value: &[u8]) -> Result<(), Error> {
    let (max, bytes) = (limits::VALUE_BYTES_MAX, value.len());
    let long = || Error::Limit(format!("a value has at most {max} bytes; this one has {bytes}"));
    if bytes > max { Err(long()) } else { Ok(()) }
}

fn unavailable(error: crate::store::Error) -> Error {
    tracing::warn!(%error, "a plugin's key-values are not available");
    Error::Unavailable
}

#[async_trait]
impl Backend for StoreBackend {
    async fn get(&self, space: Space, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.store.get(&space.named(plugin), key).await.map_err(unavailable)
    }

    async fn list(
        &self,
        space: Space,
        plugin: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.store.scan(&space.named(plugin), prefix, limit).await.map_err(unavailable)
    }

    async fn put(&self, space: Space, plugin: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        check_value(value)?;
        let name = space.named(plugin);
        let usage = self.usage(&name).await;
        // Held over the write, so writes of one plugin are ordered and cannot pass the quota together.
        let mut usage = usage.lock().await;
        self.fill(space, &name, &mut usage).await?;
        let bytes = key.len() + value.len();
        usage.check(space, key, bytes)?;
        // Counted first: when the write's outcome is unknown, the quota errs on the safe side.
        usage.set(key, bytes);
        let written = self.store.put(&name, key, value).await.map_err(unavailable);
        if let Some(mirror) = usage.mirror.upgrade() {
            match written {
                Ok(()) => mirror.put(key, value),
                // It may have happened. If it cannot be seen now either, the next write shows it.
                Err(_) => drop(self.reflect(&name, &mirror).await),
            }
        }
        written
    }

    async fn delete(&self, space: Space, plugin: &str, key: &str) -> Result<(), Error> {
        let name = space.named(plugin);
        let usage = self.usage(&name).await;
        let mut usage = usage.lock().await;
        self.store.delete(&name, key).await.map_err(unavailable)?;
        usage.remove(key);
        Ok(())
    }

    async fn partial(&self, counter: &str, shard: u32) -> Result<Option<i64>, Error> {
        (self.partials)(counter, shard).await.map_err(|Unavailable| Error::Unavailable)
    }

    fn mirrors(&self) -> bool {
        true
    }

    async fn follow(&self, plugin: &str) -> Result<Option<Arc<Mirror>>, Error> {
        let name = Space::Registry.named(plugin);
        let usage = self.usage(&name).await;
        // Held over the scan, so that no write falls between it and the mirror.
        let mut usage = usage.lock().await;
        if let Some(mirror) = usage.mirror.upgrade() {
            return Ok(Some(mirror));
        }
        let mirror = Arc::new(Mirror::default());
        self.reflect(&name, &mirror).await?;
        usage.mirror = Arc::downgrade(&mirror);
        Ok(Some(mirror))
    }
}
