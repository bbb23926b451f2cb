//! What policies read and write in a cluster: `registry` in etcd, `storage` in the store that the nodes share, and
//! partials from whoever serves their shard.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::Handle;

use crate::peer::wire::message::ReadRequest;
use crate::peer::{Owner, Questions};
use crate::policy::imports::backend::{Error, Space};
use crate::policy::imports::mirror::Mirror;
use crate::policy::{Backend, StoreBackend, limits};
use crate::registry::Picture;
use crate::registry::etcd::{self, Etcd, Quota};

pub struct ClusterBackend {
    pub etcd: Arc<Etcd>,
    /// For `storage`, and for partials of the shards that this node serves.
    pub values: StoreBackend,
    pub questions: Questions,
    /// That lives as long as the node.
    pub runtime: Handle,
}

const QUOTA: Quota = Quota {
    keys_max: limits::REGISTRY_KEYS_MAX,
    bytes_max: limits::REGISTRY_BYTES_MAX,
    key_bytes_max: limits::REGISTRY_KEY_BYTES_MAX,
    value_bytes_max: limits::VALUE_BYTES_MAX,
};

fn refused(why: etcd::Error) -> Error {
    match why {
        etcd::Error::Limit(why) => Error::Limit(why),
        why => {
            tracing::warn!("a plugin's registry is not available: {why}");
            Error::Unavailable
        }
    }
}

#[async_trait]
impl Backend for ClusterBackend {
    async fn get(&self, space: Space, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match space {
            Space::Registry => Ok(self.etcd.value(plugin, key).map(|value| value.to_vec())),
            Space::Storage => self.values.get(space, plugin, key).await,
        }
    }

    async fn list(
        &self,
        space: Space,
        plugin: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        match space {
            Space::Registry => {
                let values = self.etcd.list_values(plugin, prefix, limit);
                Ok(values.into_iter().map(|(key, value)| (key, value.to_vec())).collect())
            }
            Space::Storage => self.values.list(space, plugin, prefix, limit).await,
        }
    }

    async fn put(&self, space: Space, plugin: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        match space {
            Space::Registry => self.etcd.put_value(plugin, key, value, &QUOTA).await.map_err(refused),
            Space::Storage => self.values.put(space, plugin, key, value).await,
        }
    }

    async fn delete(&self, space: Space, plugin: &str, key: &str) -> Result<(), Error> {
        match space {
            Space::Registry => self.etcd.delete_value(plugin, key).await.map_err(refused),
            Space::Storage => self.values.delete(space, plugin, key).await,
        }
    }

    fn mirrors(&self) -> bool {
        true
    }

    /// Follows the pictures until nobody holds the mirror.
    async fn follow(&self, plugin: &str) -> Result<Option<Arc<Mirror>>, Error> {
        let mirror = Arc::new(Mirror::default());
        let mut pictures = self.etcd.pictures();
        let reflect = |picture: &Picture, plugin: &str, mirror: &Mirror| {
            let values = picture.values.get(plugin).into_iter().flat_map(|values| values.iter());
            mirror.replace(values.map(|(key, value)| (key.clone(), value.to_vec())));
        };
        reflect(&pictures.borrow_and_update().clone(), plugin, &mirror);
        let (plugin, of_mirror) = (plugin.to_owned(), Arc::downgrade(&mirror));
        self.runtime.spawn(async move {
            let mut known = None;
            while pictures.changed().await.is_ok() {
                let Some(mirror) = of_mirror.upgrade() else { return };
                let picture = pictures.borrow_and_update().clone();
                // Most changes are of something else, and leave the part that all pictures share.
                let values = picture.values.get(&plugin).cloned();
                if known.as_ref().map(Arc::as_ptr) != values.as_ref().map(Arc::as_ptr) {
                    reflect(&picture, &plugin, &mirror);
                    known = values;
                }
            }
        });
        Ok(Some(mirror))
    }

    async fn partial(&self, counter: &str, shard: u32) -> Result<Option<i64>, Error> {
        match self.questions.owner(shard) {
            Owner::Other(owner) => self.ask(&owner, counter, shard).await,
            Owner::This => self.values.partial(counter, shard).await,
            Owner::None => Err(Error::Unavailable),
        }
    }
}

impl ClusterBackend {
    async fn ask(&self, owner: &str, counter: &str, shard: u32) -> Result<Option<i64>, Error> {
        let mut client = self.questions.client(owner).ok_or(Error::Unavailable)?;
        let request = ReadRequest { shards: vec![shard], counter: counter.to_owned() };
        let reply = client.read_partials(request).await.map_err(|_| Error::Unavailable)?.into_inner();
        if reply.unserved.contains(&shard) {
            return Err(Error::Unavailable);
        }
        Ok(reply.partials.first().map(|partial| partial.value))
    }
}
