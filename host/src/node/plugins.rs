//! Plugins that were uploaded: kept in the store, loaded at the start, removed when no rule uses them.
//!
//! A revision is its bytes; its name is their digest. The bytes are written in chunks before the record that makes them a
//! revision, so one that is listed is whole. What a component may be is decided in `policy`.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{Keeper, Node, now_ms};
use crate::counter::Rule;
use crate::error::{Error, Kind};
use crate::limits;
use crate::policy::{Awake, Engine, Revision, admission, builtin, catalog, revision};
use crate::registry::{self, Versioned};
use crate::store::Store;

/// Records by `name/digest`.
const RECORDS: &str = "plugins";
/// Chunks by `digest/number`.
const CHUNKS: &str = "plugin-bytes";
/// What an operator has switched.
const SWITCHES: &str = "switches";

/// What the store keeps of a revision besides its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    size_bytes: usize,
    uploaded_at_ms: u64,
    admission: admission::Report,
    /// Detached Ed25519 signature of the bytes, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// What an upload led to.
pub struct Uploaded {
    pub revision: Arc<Revision>,
    pub admission: admission::Report,
    /// False: these bytes were there already.
    pub new: bool,
}

fn record_key(name: &str, digest: &str) -> String {
    format!("{name}/{digest}")
}

fn chunk_key(digest: &str, number: usize) -> String {
    format!("{digest}/{number:08}")
}

fn rejected(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::PluginRejected, format!("Nothing was stored: {why}."))
}

impl Node {
    /// Admits a component, stores it and makes it the newest revision of its name. Durable when it answers; rules go on
    /// with the revisions that they name.
    pub async fn upload(&self, name: &str, bytes: &[u8], signature: Option<&str>) -> Result<Uploaded, Error> {
        if builtin::find(name).is_some() {
            let why = format!("The name {name:?} belongs to a policy that comes with Quipu; choose another.");
            return Err(Error::new(Kind::PluginNameTaken, why));
        }
        self.policies.trust().check(bytes, signature).map_err(rejected)?;
        let digest = revision::digest(bytes);
        // One after the other: compiling is the work of a core, and two uploads of one name must not cross.
        let _one = self.uploading.lock().await;
        if let Some(record) = self.record(name, &digest).await? {
            self.load_plugin(name, &digest).await?;
            let known = self.catalog.get(name, Some(&digest)).map_err(Error::internal)?;
            return Ok(Uploaded { revision: known, admission: record.admission, new: false });
        }
        let (revision, admission) = admission::admit(&self.policies, name, bytes).map_err(rejected)?;
        let record = Record {
            size_bytes: bytes.len(),
            uploaded_at_ms: now_ms(),
            admission,
            signature: signature.map(Into::into),
        };
        for (number, chunk) in bytes.chunks(limits::PLUGIN_CHUNK_BYTES).enumerate() {
            self.store.put(CHUNKS, &chunk_key(&digest, number), chunk).await?;
        }
        let text = serde_json::to_vec(&record).map_err(Error::internal)?;
        self.store.put(RECORDS, &record_key(name, &digest), &text).await?;
        let revision = self.catalog.register(revision).map_err(rejected)?;
        self.policies.rest(&revision);
        if let Some(shared) = self.shared_registry().await {
            shared.announce_plugin(name, &digest).await?;
        }
        Ok(Uploaded { revision, admission: record.admission, new: true })
    }

    /// Removes a revision that no rule uses.
    pub async fn remove_plugin(&self, name: &str, digest: &str) -> Result<(), Error> {
        let _one = self.uploading.lock().await;
        if builtin::find(name).is_some() {
            let why = format!("{name:?} comes with Quipu and cannot be deleted.");
            return Err(Error::new(Kind::PluginInUse, why));
        }
        self.catalog.get(name, Some(digest)).map_err(missing)?;
        let used: Vec<String> = self
            .rules()
            .list()
            .iter()
            .filter(|active| active.uses(digest))
            .map(|active| format!("{:?}", active.rule.prefix))
            .collect();
        if !used.is_empty() {
            let why = format!("The rules {} use this revision; change them first.", used.join(", "));
            return Err(Error::new(Kind::PluginInUse, why));
        }
        let record = self.record(name, digest).await?;
        if let Some(shared) = self.shared_registry().await {
            shared.withdraw_plugin(digest).await?;
        }
        self.store.delete(RECORDS, &record_key(name, digest)).await?;
        self.catalog.remove(name, digest).map_err(missing)?;
        // The same bytes may live on under another name.
        let elsewhere = self.catalog.list().iter().any(|revision| revision.digest() == digest);
        if let Some(record) = record.filter(|_| !elsewhere) {
            for number in 0..record.size_bytes.div_ceil(limits::PLUGIN_CHUNK_BYTES) {
                self.store.delete(CHUNKS, &chunk_key(digest, number)).await?;
            }
        }
        Ok(())
    }

    /// The operator trusts a revision again: it is asked with the next request, under every rule of this node.
    pub fn release_plugin(&self, name: &str, digest: &str) -> Result<Arc<Revision>, Error> {
        let revision = self.catalog.get(name, Some(digest)).map_err(missing)?;
        revision.release();
        tracing::warn!("the plugin {name} {digest} is released: it is asked again");
        Ok(revision)
    }

    /// What admission found, for revisions that were uploaded.
    pub async fn admission(&self, name: &str, digest: &str) -> Result<Option<admission::Report>, Error> {
        Ok(self.record(name, digest).await?.map(|record| record.admission))
    }

    /// A place among the few uploads whose bytes may be in memory at once.
    pub fn place_for_upload(self: &Arc<Self>) -> Result<OwnedSemaphorePermit, Error> {
        self.uploads.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Kind::QueueFull,
                "Several plugins are being uploaded already; nothing was stored. Try again in a moment.",
            )
        })
    }

    /// Turns all policies off or on, on this node, until it is done again. Durable when it answers.
    pub async fn switch_policies(&self, enabled: bool) -> Result<(), Error> {
        self.policies.set_enabled(enabled);
        tracing::warn!("policies are switched {}", if enabled { "on" } else { "off: native choices answer" });
        Ok(self.store.put(SWITCHES, "policies", if enabled { b"on" } else { b"off" }).await?)
    }

    async fn shared_registry(&self) -> Option<Arc<dyn registry::Shared>> {
        match &self.registry.lock().await.keeper {
            Keeper::Local(_) => None,
            Keeper::Shared(shared) => Some(shared.clone()),
        }
    }

    /// Loads a revision that another node took, if it is not here yet.
    async fn load_plugin(&self, name: &str, digest: &str) -> Result<(), Error> {
        if self.catalog.get(name, Some(digest)).is_ok() || builtin::find(name).is_some() {
            return Ok(());
        }
        let Some(record) = self.record(name, digest).await? else {
            let why = format!("There is no revision {digest} of the plugin {name:?}; GET /v1/plugins lists them.");
            return Err(Error::new(Kind::PluginNotFound, why));
        };
        let key = record_key(name, digest);
        let loaded = load_one(&*self.store, &self.policies, &self.catalog, &key, &record).await;
        loaded.map_err(|why| rejected(format!("the plugin {key} does not load: {why}")))
    }

    /// Brings the compiled code of a rule's plugins back to memory, and keeps it there until the answer is dropped: bind the
    /// rule before that. A plugin that is not here is left out; binding says which.
    pub(super) async fn wake_plugins_of(&self, rule: &Rule) -> Result<Vec<Awake>, Error> {
        let beside = rule.canary.as_ref().map(|canary| &canary.revision).into_iter().chain(&rule.shadow);
        let digests: Vec<&String> = beside.collect();
        let mut awake = Vec::new();
        for policy in [&rule.selection, &rule.aggregation] {
            for digest in policy.revision.iter().chain(digests.iter().copied()) {
                // A canary is of one of the two plugins.
                let Ok(revision) = self.catalog.get(&policy.plugin, Some(digest)) else { continue };
                awake.push(match self.policies.wake(&revision) {
                    Some(awake) => awake,
                    None => self.wake_from_store(&revision).await?,
                });
            }
        }
        Ok(awake)
    }

    /// The cache of compiled code has lost it, or never had it.
    async fn wake_from_store(&self, revision: &Revision) -> Result<Awake, Error> {
        let (name, digest) = (revision.name(), revision.digest());
        let bytes = bytes_of(&*self.store, digest, revision.size_bytes).await;
        let bytes = bytes.map_err(|why| Error::internal(format!("the plugin {name} {digest} does not load: {why}")))?;
        self.policies
            .wake_from(revision, &bytes)
            .map_err(|why| rejected(format!("the plugin {name} does not load: {why}")))
    }

    /// Loads the plugins that a rule names.
    pub(super) async fn load_plugins_of(&self, versioned: &Versioned) -> Result<(), Error> {
        let rule = &versioned.rule;
        for policy in [&rule.selection, &rule.aggregation] {
            let beside = rule.canary.as_ref().map(|canary| &canary.revision).into_iter().chain(&rule.shadow);
            for digest in policy.revision.iter().chain(beside) {
                // A canary is of one of the two plugins, and the record says of which.
                if policy.revision.as_ref() == Some(digest) || self.record(&policy.plugin, digest).await?.is_some() {
                    self.load_plugin(&policy.plugin, digest).await?;
                }
            }
        }
        Ok(())
    }

    /// Loads the plugins that other nodes took, and drops those that are gone and that nothing here uses.
    pub(super) async fn follow_plugins(&self, snapshot: &registry::Snapshot) {
        for (digest, name) in &snapshot.plugins {
            if let Err(why) = self.load_plugin(name, digest).await {
                tracing::error!("the plugin {name} {digest} is not loaded: {why}");
            }
        }
        let announced = std::mem::replace(&mut self.registry.lock().await.plugins, snapshot.plugins.clone());
        for (digest, name) in announced {
            let gone = !snapshot.plugins.contains_key(&digest);
            if gone && !self.rules().list().iter().any(|active| active.uses(&digest)) {
                let _ = self.catalog.remove(&name, &digest);
            }
        }
    }

    async fn record(&self, name: &str, digest: &str) -> Result<Option<Record>, Error> {
        let stored = self.store.get(RECORDS, &record_key(name, digest)).await?;
        stored.map(|text| serde_json::from_slice(&text).map_err(Error::internal)).transpose()
    }
}

/// Whether an operator has switched policies off.
pub async fn switched_off(store: &dyn Store) -> Result<bool, Error> {
    Ok(store.get(SWITCHES, "policies").await?.is_some_and(|value| value == b"off"))
}

/// Loads every stored revision into the catalog, in the order of their uploads. One that cannot be loaded is left out with an
/// error in the log; rules that name it count under the default policy until it is back.
pub async fn load_stored(store: &dyn Store, engine: &Arc<Engine>, catalog: &catalog::Catalog) -> Result<(), Error> {
    let rows = store.scan(RECORDS, "", crate::policy::limits::REVISIONS_MAX).await?;
    let mut records = Vec::new();
    for (key, text) in rows {
        let record: Record = serde_json::from_slice(&text)
            .map_err(|why| Error::internal(format!("the record of the plugin {key:?} is not readable: {why}")))?;
        records.push((key, record));
    }
    records.sort_by_key(|(_, record)| record.uploaded_at_ms);
    for (key, record) in records {
        let began = Instant::now();
        match load_one(store, engine, catalog, &key, &record).await {
            Ok(()) => tracing::info!("the plugin {key} is ready after {:.1} ms", began.elapsed().as_secs_f64() * 1e3),
            Err(why) => tracing::error!("the plugin {key} is not loaded: {why}"),
        }
    }
    Ok(())
}

async fn load_one(
    store: &dyn Store,
    engine: &Arc<Engine>,
    catalog: &catalog::Catalog,
    key: &str,
    record: &Record,
) -> anyhow::Result<()> {
    let (name, digest) = key.split_once('/').ok_or_else(|| anyhow::anyhow!("the record has no revision"))?;
    let bytes = bytes_of(store, digest, record.size_bytes).await?;
    engine.trust().check(&bytes, record.signature.as_deref())?;
    let options = record.admission.options();
    let revision = catalog.register(engine.load_with(name, &bytes, options)?)?;
    engine.rest(&revision);
    Ok(())
}

/// A component as it was uploaded.
async fn bytes_of(store: &dyn Store, digest: &str, size_bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size_bytes);
    for number in 0..size_bytes.div_ceil(limits::PLUGIN_CHUNK_BYTES) {
        let chunk = store.get(CHUNKS, &chunk_key(digest, number)).await?;
        bytes.extend(chunk.ok_or_else(|| anyhow::anyhow!("a part of its bytes is missing"))?);
    }
    anyhow::ensure!(revision::digest(&bytes) == digest, "its bytes are not those that were uploaded");
    Ok(bytes)
}

pub(super) fn missing(why: catalog::Error) -> Error {
    Error::new(Kind::PluginNotFound, format!("There is no such plugin: {why}; GET /v1/plugins lists them."))
}
