//! The registry of a cluster, in etcd: who is there, who owns which shard, which rules and plugins there are.
//!
//! One task (`session`) holds a lease and one watch, and makes a new [`Picture`] of everything whenever something changed.
//! Reads are looks at the picture; writes go to etcd, and a write that was answered is in this node's picture, while the
//! session is healthy. An outage of etcd makes the session unhealthy and the picture old; nothing ends because of it.
//!
//! It does not decide who should own what (`cluster`), nor who may write (`store`). Next: `session`, then `owners`.

mod apply;
mod connect;
mod error;
mod formats;
mod keys;
mod owners;
mod presence;
mod session;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, KvClient};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use connect::{Settings, Tls};
pub use error::Error;
use keys::Keys;
pub use values::Quota;

use super::Standing;
use super::picture::{NodeInfo, Owner, Picture};
use crate::limits;

/// The handle to the registry. Dropping it stops the session but leaves the lease to run out, as a crash would.
pub struct Etcd {
    shared: Arc<Shared>,
    session: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    client: Client,
    keys: Keys,
    node_id: String,
    incarnation: u64,
    lease_ttl: Duration,
    /// 0 while there is none.
    lease: AtomicI64,
    standing: Arc<Standing>,
    /// What this process holds, as its keys should say.
    held: Mutex<BTreeMap<u32, Owner>>,
    node: watch::Sender<NodeInfo>,
    picture: watch::Sender<Arc<Picture>>,
    closing: watch::Sender<bool>,
}

impl Etcd {
    /// Reaches etcd, checks that the cluster fits and starts the session. The node is registered when the picture's
    /// session is healthy, which may be after this returns: a predecessor's key is waited for.
    ///
    /// `Refused`: a setting is wrong, or the cluster has another number of shards or a newer format.
    /// `Unavailable`: etcd was not reached within `limits::REGISTRY_CONNECT_TIMEOUT`.
    pub async fn connect(settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        let client = connect::client(&settings).await?;
        let keys = Keys::new(&settings.cluster);
        connect::config(&client, &keys, &settings).await?;
        let node = settings.node;
        let shared = Arc::new(Shared {
            client,
            keys,
            node_id: node.id.clone(),
            incarnation: node.incarnation,
            lease_ttl: settings.lease_ttl,
            lease: AtomicI64::new(0),
            standing: Arc::default(),
            held: Mutex::default(),
            node: watch::Sender::new(node),
            picture: watch::Sender::new(Arc::new(Picture::empty(Instant::now()))),
            closing: watch::Sender::new(false),
        });
        let session = tokio::spawn(crate::panics::owned("the session with etcd", session::run(shared.clone())));
        Ok(Self { shared, session: Mutex::new(Some(session)) })
    }

    /// Follows the picture. The first one is empty and its session not healthy.
    pub fn pictures(&self) -> watch::Receiver<Arc<Picture>> {
        self.shared.picture.subscribe()
    }

    pub fn picture(&self) -> Arc<Picture> {
        self.shared.picture.borrow().clone()
    }

    /// Whether others wait for this node with what all must have in force.
    pub fn standing(&self) -> Arc<Standing> {
        self.shared.standing.clone()
    }

    pub fn node_id(&self) -> &str {
        &self.shared.node_id
    }

    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    pub fn lease_ttl(&self) -> Duration {
        self.shared.lease_ttl
    }

    /// Changes what the node says of itself. `ready`, `draining` and `role` are written at once; load at most every
    /// `limits::NODE_REFRESH_INTERVAL` and when it changed noticeably. Id and incarnation stay what they were.
    pub fn update_node(&self, change: impl FnOnce(&mut NodeInfo)) {
        let shared = &self.shared;
        shared.node.send_modify(|node| {
            change(node);
            (node.id, node.incarnation) = (shared.node_id.clone(), shared.incarnation);
            // What is not a number cannot be written as JSON.
            node.cpu = if node.cpu.is_finite() { node.cpu.clamp(0.0, 1.0) } else { 0.0 };
        });
    }

    /// Gives back the lease, and with it every key of this node that is bound to it. Hand shards over first.
    pub async fn close(&self) {
        self.shared.closing.send_replace(true);
        let session = self.session.lock().take();
        if let Some(session) = session
            && let Err(why) = session.await
        {
            tracing::warn!(%why, "the registry's session ended badly");
        }
        let lease = self.shared.lease.swap(0, Ordering::SeqCst);
        if lease != 0 {
            let revoked = error::bounded(self.shared.client.lease_client().revoke(lease)).await;
            if let Err(why) = revoked {
                tracing::warn!(%why, "the lease was not given back and runs out by itself");
            }
        }
    }

    fn kv(&self) -> KvClient {
        self.shared.kv()
    }

    fn lease(&self) -> Result<i64, Error> {
        match self.shared.lease.load(Ordering::SeqCst) {
            0 => Err(Error::Unavailable("this node has no lease now".into())),
            lease => Ok(lease),
        }
    }

    /// Waits until the picture holds what was written at `revision`; not for long when the watch does not follow.
    async fn caught_up(&self, revision: i64) {
        let mut pictures = self.pictures();
        let there = pictures.wait_for(|picture| picture.revision >= revision || !picture.session.healthy);
        let _ = tokio::time::timeout(limits::REGISTRY_CALL_TIMEOUT, there).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}

impl Shared {
    fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(limits::REGISTRY_MESSAGE_BYTES_MAX)
    }

    fn is_ours(&self, owner: &Owner) -> bool {
        owner.node == self.node_id && owner.incarnation == self.incarnation
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the registry's values are maps with text keys and finite numbers")
}
