//! What stands behind `registry` and `storage` in a dry run: reads see what is really there, writes stay here and are
//! forgotten. Quotas hold for what the dry run writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::backend::{self, Backend, Error, Space, Usage};
use super::mirror::Mirror;

pub(in crate::policy) struct Scratch {
    behind: Option<Arc<dyn Backend>>,
    /// Of the one plugin that is tried out.
    spaces: Mutex<HashMap<Space, Written>>,
}

#[derive(Debug, Default)]
struct Written {
    usage: Usage,
    /// None: removed.
    entries: BTreeMap<String, Option<Vec<u8>>>,
}

impl Scratch {
    /// Without anything behind it every space is empty.
    pub fn new(behind: Option<Arc<dyn Backend>>) -> Self {
        Self { behind, spaces: Mutex::default() }
    }
}

#[async_trait]
impl Backend for Scratch {
    async fn get(&self, space: Space, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let written = self.spaces.lock().get(&space).and_then(|written| written.entries.get(key).cloned());
        match (written, &self.behind) {
            (Some(value), _) => Ok(value),
            (None, Some(behind)) => behind.get(space, plugin, key).await,
            (None, None) => Ok(None),
        }
    }

    async fn list(
        &self,
        space: Space,
        plugin: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let written: Vec<_> = self.spaces.lock().get(&space).map_or(Vec::new(), |written| {
            let from = written.entries.range(prefix.to_owned()..);
            from.take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        });
        let mut entries: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
        if let Some(behind) = &self.behind {
            // Each entry here may hide one behind.
            let found = behind.list(space, plugin, prefix, limit + written.len()).await?;
            entries.extend(found.into_iter().map(|(key, value)| (key, Some(value))));
        }
        entries.extend(written);
        Ok(entries.into_iter().filter_map(|(key, value)| Some((key, value?))).take(limit).collect())
    }

    async fn put(&self, space: Space, _plugin: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        backend::check_value(value)?;
        let mut spaces = self.spaces.lock();
        let written = spaces.entry(space).or_default();
        let bytes = key.len() + value.len();
        written.usage.check(space, key, bytes)?;
        written.usage.set(key, bytes);
        written.entries.insert(key.to_owned(), Some(value.to_vec()));
        Ok(())
    }

    async fn delete(&self, space: Space, _plugin: &str, key: &str) -> Result<(), Error> {
        let mut spaces = self.spaces.lock();
        let written = spaces.entry(space).or_default();
        // A removal is remembered, so it counts as an entry of its key.
        written.usage.check(space, key, key.len())?;
        written.usage.set(key, key.len());
        written.entries.insert(key.to_owned(), None);
        Ok(())
    }

    async fn partial(&self, counter: &str, shard: u32) -> Result<Option<i64>, Error> {
        match &self.behind {
            Some(behind) => behind.partial(counter, shard).await,
            None => Ok(None),
        }
    }

    /// Policies that write have no mirror, so what is behind is all there is.
    async fn follow(&self, plugin: &str) -> Result<Option<Arc<Mirror>>, Error> {
        match &self.behind {
            Some(behind) => behind.follow(plugin).await,
            None => Ok(Some(Arc::default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::StoreBackend;
    use crate::store::memory::MemoryStore;
    use futures_util::FutureExt;

    fn now<T>(what: impl Future<Output = T>) -> T {
        what.now_or_never().expect("memory answers at once")
    }

    #[test]
    fn reads_see_what_is_behind_and_writes_stay_here() {
        let store = StoreBackend::new(Arc::new(MemoryStore::new(1)), Box::new(|_, _| Box::pin(async { Ok(Some(5)) })));
        let behind: Arc<dyn Backend> = Arc::new(store);
        for key in ["a", "b", "d"] {
            now(behind.put(Space::Storage, "p", key, b"old")).expect("there is room");
        }
        let scratch = Scratch::new(Some(behind.clone()));
        now(scratch.put(Space::Storage, "p", "b", b"new")).expect("there is room");
        now(scratch.put(Space::Storage, "p", "c", b"new")).expect("there is room");
        now(scratch.delete(Space::Storage, "p", "a")).expect("there is room");
        let get = |of: &dyn Backend, key: &str| now(of.get(Space::Storage, "p", key)).expect("it answers");
        assert_eq!(get(&scratch, "a"), None);
        assert_eq!(get(&scratch, "b").as_deref(), Some(&b"new"[..]));
        assert_eq!(get(&scratch, "d").as_deref(), Some(&b"old"[..]));
        let keys = |of: &dyn Backend, limit| -> Vec<String> {
            let listed = now(of.list(Space::Storage, "p", "", limit)).expect("it answers");
            listed.into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(&scratch, 10), ["b", "c", "d"]);
        assert_eq!(keys(&scratch, 2), ["b", "c"]);
        assert_eq!(keys(&*behind, 10), ["a", "b", "d"], "nothing changed behind");
        assert_eq!(get(&*behind, "b").as_deref(), Some(&b"old"[..]));
        assert_eq!(now(scratch.partial("c", 0)), Ok(Some(5)));
    }

    #[test]
    fn what_is_written_here_has_a_quota() {
        let scratch = Scratch::new(None);
        let put = |n: usize| now(scratch.put(Space::Registry, "p", &format!("key {n}"), &[0; 64 * 1024]));
        let full = (0..100).find(|&n| put(n).is_err());
        assert_eq!(full, Some(63), "4 MiB of 64 KiB and a key each");
        assert!(matches!(now(scratch.put(Space::Registry, "p", "k", &[0; 64 * 1024 + 1])), Err(Error::Limit(_))));
    }
}
