//! Lists of counters: what checkpoints hold, overlaid with what changed since.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Node;
use crate::counter::Id;
use crate::error::Error;
use crate::shard::partials::Partial;
use crate::store::list_order;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: Id,
    pub name: Option<Box<str>>,
    pub created_at_ms: u64,
    /// The sum of the partials as they were met; no snapshot.
    pub value: i128,
}

pub struct Page {
    pub counters: Vec<Listed>,
    /// Where the next page begins; None at the end.
    pub next: Option<Id>,
}

/// An id in the store's order of lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(pub(super) Id);

impl Ord for Place {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        list_order(self.0.as_str(), other.0.as_str())
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

pub(super) type Found = BTreeMap<Place, BTreeMap<u32, Partial>>;

impl Node {
    /// Up to `limit` counters whose id starts with `prefix`, after `after`. Counters that are created or removed while
    /// pages are read may or may not be on them; all others are, once.
    pub async fn list(self: &Arc<Self>, prefix: String, after: Option<Id>, limit: usize) -> Result<Page, Error> {
        self.off_thread(move |node| async move { node.list_here(&prefix, after, limit).await }).await
    }

    async fn list_here(&self, prefix: &str, mut after: Option<Id>, limit: usize) -> Result<Page, Error> {
        let mut counters = Vec::new();
        loop {
            let (found, end) = self.next_found(prefix, after.as_ref(), limit).await?;
            for (Place(id), partials) in found {
                if counters.len() == limit {
                    let next = counters.last().map(|last: &Listed| last.id.clone());
                    return Ok(Page { counters, next });
                }
                after = Some(id.clone());
                counters.extend(live(id, &partials));
            }
            if end.is_none() {
                return Ok(Page { counters, next: None });
            }
            if counters.len() == limit {
                return Ok(Page { counters, next: after });
            }
        }
    }

    /// What is known of the counters after `after`, removed ones included, and where that ends; None: nothing follows.
    pub(super) async fn next_found(
        &self,
        prefix: &str,
        after: Option<&Id>,
        limit: usize,
    ) -> Result<(Found, Option<Id>), Error> {
        // What changed first, the store second: a checkpoint in between shows a counter twice, never not at all.
        let mut found = self.changed(prefix, after, limit);
        if let Some(peers) = &self.peers {
            for (Place(id), partials) in self.changed_elsewhere(peers, prefix, after, limit).await? {
                merge(&mut found, id, partials);
            }
            while found.len() > limit {
                found.pop_last();
            }
        }
        let stored = self.store.list(prefix, after, limit).await?;
        let changed_end = (found.len() == limit).then(|| found.keys().next_back().cloned()).flatten();
        let stored_end = (stored.len() == limit).then(|| stored.last().map(|last| Place(last.id.clone()))).flatten();
        for listed in stored {
            merge(&mut found, listed.id, listed.partials);
        }
        // Beyond the earlier of both ends one side may be missing.
        let end = match (changed_end, stored_end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (end, None) | (None, end) => end,
        };
        if let Some(end) = &end {
            let mut beyond = found.split_off(end);
            found.extend(beyond.remove_entry(end));
        }
        Ok((found, end.map(|Place(id)| id)))
    }

    /// The same of this node's shards alone, for another node.
    pub fn list_changed(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Vec<(Id, Vec<(u32, Partial)>)> {
        let found = self.changed(prefix, after, limit);
        found.into_iter().map(|(Place(id), partials)| (id, partials.into_iter().collect())).collect()
    }

    /// The first `limit` counters that no checkpoint holds as they are now.
    fn changed(&self, prefix: &str, after: Option<&Id>, limit: usize) -> Found {
        let mut found = Found::new();
        for (shard, table) in self.commits.tables.iter().enumerate() {
            for (id, partial) in table.partials.read().dirty() {
                let follows = after.is_none_or(|after| list_order(id.as_str(), after.as_str()).is_gt());
                if !follows || !id.as_str().starts_with(prefix) {
                    continue;
                }
                let place = Place(id.clone());
                if found.len() >= limit && !found.contains_key(&place) {
                    match found.last_entry() {
                        Some(last) if *last.key() > place => last.remove(),
                        _ => continue,
                    };
                }
                found.entry(place).or_default().insert(shard as u32, partial.clone());
            }
        }
        found
    }
}

pub(super) fn merge(found: &mut Found, id: Id, partials: impl IntoIterator<Item = (u32, Partial)>) {
    let known = found.entry(Place(id)).or_default();
    for (shard, partial) in partials {
        let newer = known.get(&shard).is_none_or(|known| known.seq < partial.seq);
        if newer {
            known.insert(shard, partial);
        }
    }
}

fn live(id: Id, partials: &BTreeMap<u32, Partial>) -> Option<Listed> {
    let mut live = partials.values().filter(|partial| !partial.removed).peekable();
    live.peek()?;
    let mut listed = Listed { id, name: None, created_at_ms: u64::MAX, value: 0 };
    for partial in live {
        listed.name = listed.name.or_else(|| partial.name.clone());
        listed.created_at_ms = listed.created_at_ms.min(partial.created_at_ms);
        listed.value += i128::from(partial.value);
    }
    Some(listed)
}
