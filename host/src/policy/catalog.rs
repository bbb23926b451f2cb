//! The revisions that this node has loaded, by name and digest: the built-in ones and those that were uploaded.
//!
//! It does not persist anything and does not know which rule uses what; a revision that was removed lives on while a
//! binding holds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::builtin;
use super::engine::Engine;
use super::limits;
use super::revision::{Rejected, Revision};

#[derive(Debug, Default)]
pub struct Catalog {
    /// By name; the revisions of a name in the order of registration, the newest last.
    by_name: RwLock<BTreeMap<String, Vec<Arc<Revision>>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there is no policy {0:?}")]
    UnknownName(String),
    #[error("the policy {name:?} has no revision {revision:?}")]
    UnknownRevision { name: String, revision: String },
    #[error("{} revisions are registered; remove some that no rule uses", limits::REVISIONS_MAX)]
    Full,
    #[error("the built-in policy {name:?} does not load: {source}")]
    Builtin { name: &'static str, source: Rejected },
}

impl Catalog {
    /// With the built-in policies. They are compiled side by side when the cache does not have them.
    pub fn with_builtins(engine: &Arc<Engine>) -> Result<Self, Error> {
        let catalog = Self::default();
        let loaded: Vec<_> = std::thread::scope(|scope| {
            let load = |builtin: &'static builtin::Builtin| {
                let engine = engine.clone();
                (builtin.name, scope.spawn(move || engine.load(builtin.name, builtin.bytes)))
            };
            let threads: Vec<_> = builtin::ALL.iter().map(load).collect();
            threads.into_iter().map(|(name, thread)| (name, thread.join().expect("loading does not panic"))).collect()
        });
        for (name, revision) in loaded {
            catalog.register(revision.map_err(|source| Error::Builtin { name, source })?)?;
        }
        Ok(catalog)
    }

    /// Adds a revision, which becomes its name's newest. One that is registered already stays where it is; the answer
    /// is the one that is registered.
    pub fn register(&self, revision: Arc<Revision>) -> Result<Arc<Revision>, Error> {
        let mut by_name = self.by_name.write();
        let count: usize = by_name.values().map(Vec::len).sum();
        let revisions = by_name.entry(revision.name().to_owned()).or_default();
        if let Some(known) = revisions.iter().find(|known| known.digest() == revision.digest()) {
            return Ok(known.clone());
        }
        if count >= limits::REVISIONS_MAX {
            return Err(Error::Full);
        }
        revisions.push(revision.clone());
        Ok(revision)
    }

    /// The revision with this digest, or the newest of the name.
    pub fn get(&self, name: &str, digest: Option<&str>) -> Result<Arc<Revision>, Error> {
        let by_name = self.by_name.read();
        let revisions = by_name.get(name).filter(|revisions| !revisions.is_empty());
        let revisions = revisions.ok_or_else(|| Error::UnknownName(name.to_owned()))?;
        let found = match digest {
            Some(digest) => revisions.iter().find(|revision| revision.digest() == digest),
            None => revisions.last(),
        };
        found.cloned().ok_or_else(|| Error::UnknownRevision {
            name: name.to_owned(),
            revision: digest.unwrap_or_default().to_owned(),
        })
    }

    /// Takes a revision out; bindings that have it keep it.
    pub fn remove(&self, name: &str, digest: &str) -> Result<Arc<Revision>, Error> {
        let mut by_name = self.by_name.write();
        let revisions = by_name.get_mut(name).ok_or_else(|| Error::UnknownName(name.to_owned()))?;
        let at = revisions.iter().position(|revision| revision.digest() == digest);
        let at = at.ok_or_else(|| Error::UnknownRevision { name: name.to_owned(), revision: digest.to_owned() })?;
        let removed = revisions.remove(at);
        if revisions.is_empty() {
            by_name.remove(name);
        }
        Ok(removed)
    }

    /// All revisions, by name, the newest of a name last.
    pub fn list(&self) -> Vec<Arc<Revision>> {
        self.by_name.read().values().flatten().cloned().collect()
    }
}
