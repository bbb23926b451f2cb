//! What became of a keyed operation.

use std::sync::Arc;

use super::{Node, now_ms};
use crate::commit::Recent;
use crate::counter::{Id, candidates, key_hash};
use crate::error::Error;
use crate::shard::entry::KeyRecord;

impl Node {
    /// The record of an operation that was applied within the window. None is no proof that one still under way will
    /// not be applied.
    pub async fn operation(self: &Arc<Self>, id: &Id, key: &str) -> Result<Option<KeyRecord>, Error> {
        let hash = key_hash(id.as_str());
        let shard = candidates(hash, self.shards, 1)[0];
        if let Some(peers) = &self.peers {
            return self.find_key(peers, shard, id, key).await;
        }
        let Recent { record, window } = self.commits.recent_key(shard, hash, id.clone(), key).await?;
        let record = match record {
            Some(record) => Some(record),
            None => {
                let (id, key) = (id.clone(), key.to_owned());
                self.off_thread(move |node| async move { Ok(node.store.load_key(shard, &id, &key).await?) }).await?
            }
        };
        Ok(record.filter(|record| window.holds(record, now_ms())))
    }
}
