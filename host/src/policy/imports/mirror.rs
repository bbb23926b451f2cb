//! A plugin's registry in memory: a policy that only reads it need not wait for anything, so it can run inline.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// All entries of one plugin, as of the last change that this node has seen. Whoever follows the registry replaces them.
#[derive(Debug, Default)]
pub struct Mirror {
    entries: ArcSwap<BTreeMap<String, Arc<[u8]>>>,
}

impl Mirror {
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.entries.load().get(key).map(|value| value.to_vec())
    }

    /// As `registry.list`.
    pub fn list(&self, prefix: &str, limit: usize) -> Vec<(String, Vec<u8>)> {
        let entries = self.entries.load();
        let from = entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        from.take(limit).map(|(key, value)| (key.clone(), value.to_vec())).collect()
    }

    pub fn replace(&self, entries: impl IntoIterator<Item = (String, Vec<u8>)>) {
        self.entries.store(Arc::new(entries.into_iter().map(|(key, value)| (key, value.into())).collect()));
    }

    /// Changes must not cross; readers see all of one or nothing.
    pub fn put(&self, key: &str, value: &[u8]) {
        let mut entries = BTreeMap::clone(&self.entries.load());
        entries.insert(key.to_owned(), value.into());
        self.entries.store(Arc::new(entries));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_as_the_registry_does() {
        let mirror = Mirror::default();
        assert_eq!((mirror.get("a"), mirror.list("", 9)), (None, vec![]));
        mirror.replace([("b".into(), vec![1]), ("ba".into(), vec![2]), ("c".into(), vec![])]);
        mirror.put("bb", &[3]);
        assert_eq!(mirror.get("c"), Some(vec![]));
        assert_eq!(mirror.list("b", 2), [("b".to_owned(), vec![1]), ("ba".to_owned(), vec![2])]);
        assert_eq!(mirror.list("", 9).len(), 4);
    }
}
