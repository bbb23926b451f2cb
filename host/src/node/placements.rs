//! Where a policy runs with a rule's config, when its dry run put it elsewhere than its admission did: kept in the store,
//! so that the next start puts it there without another dry run.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::policy::{Binding, Grants, Placement, Revision};
use crate::store::Store;

const PLACEMENTS: &str = "placements";

#[derive(Default)]
pub struct Placements {
    /// By key; true: in the store, too.
    known: Mutex<HashMap<String, (Placement, bool)>>,
}

/// Which policy, config and grants a placement is of.
fn key(digest: &str, config: &str, grants: Grants) -> String {
    let mut hash = Sha256::new();
    for part in [digest, &grants.names().join(","), config] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Placements {
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let mut known = HashMap::new();
        for (key, text) in store.scan(PLACEMENTS, "", usize::MAX).await? {
            let placement = serde_json::from_slice(&text).map_err(Error::internal)?;
            known.insert(key, (placement, true));
        }
        Ok(Self { known: Mutex::new(known) })
    }

    pub fn get(&self, revision: &Revision, config: &str, grants: Grants) -> Option<Placement> {
        let known = self.known.lock();
        if known.is_empty() {
            return None;
        }
        known.get(&key(revision.digest(), config, grants)).map(|(placement, _)| placement.clone())
    }

    /// Remembers where a dry run put a binding, if not where its revision is.
    pub fn note(&self, revision: &Revision, binding: &Binding) {
        let placement = &binding.revision.placement;
        let key = key(revision.digest(), &binding.config, binding.grants);
        let mut known = self.known.lock();
        if *placement == revision.placement {
            return;
        }
        if known.get(&key).is_none_or(|(old, _)| old != placement) {
            known.insert(key, (placement.clone(), false));
        }
    }

    /// From now on what this binding is of runs on the pool, when it is bound again.
    pub fn move_to_pool(&self, binding: &Binding, because: &str) {
        let key = key(binding.revision.digest(), &binding.config, binding.grants);
        self.known.lock().insert(key, (Placement::Pooled(because.to_owned()), false));
    }

    /// Writes what is new. Durable when it answers.
    pub async fn save(&self, store: &dyn Store) -> Result<(), Error> {
        let unsaved = |(key, (placement, saved)): (&String, &(Placement, bool))| {
            (!saved).then(|| (key.clone(), placement.clone()))
        };
        let new: Vec<_> = self.known.lock().iter().filter_map(unsaved).collect();
        for (key, placement) in new {
            let text = serde_json::to_vec(&placement).map_err(Error::internal)?;
            store.put(PLACEMENTS, &key, &text).await?;
            self.known.lock().insert(key, (placement, true));
        }
        Ok(())
    }

    /// Forgets those that none of these bindings has any more.
    pub async fn keep<'b>(
        &self,
        store: &dyn Store,
        bindings: impl Iterator<Item = &'b std::sync::Arc<Binding>>,
    ) -> Result<(), Error> {
        if self.known.lock().is_empty() {
            return Ok(());
        }
        let pooled = bindings.filter(|binding| !binding.revision.is_inline());
        let used: HashSet<String> =
            pooled.map(|binding| key(binding.revision.digest(), &binding.config, binding.grants)).collect();
        let unused: Vec<String> = self.known.lock().keys().filter(|key| !used.contains(*key)).cloned().collect();
        for key in unused {
            store.delete(PLACEMENTS, &key).await?;
            self.known.lock().remove(&key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let all = Grants::ALL;
        let keys = [key("a", "bc", all), key("ab", "c", all), key("a", "bc", Grants::default()), key("a", "bd", all)];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(keys[0], key("a", "bc", all));
    }
}
