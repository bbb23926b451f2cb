//! What a node knows of its cluster at one moment: an immutable picture of the registry.
//!
//! Plain data. `registry::etcd` makes pictures from its watch, `cluster` decides on them. A picture may be old; it is
//! never a mixture of two moments, except that a part which was not readable keeps what it held before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::History;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves clients and owns shards.
    #[default]
    All,
    /// Serves clients only.
    Gateway,
    /// Owns shards; clients are not sent to it.
    Shard,
}

/// One node, as it describes itself under its lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Unique in the cluster, 1 to `limits::NODE_ID_BYTES_MAX` bytes without `/`.
    pub id: String,
    /// Drawn at each start of a process, so that a process never takes keys of its predecessor for its own.
    pub incarnation: u64,
    pub http_address: String,
    pub peer_address: String,
    pub version: String,
    #[serde(default)]
    pub role: Role,
    /// The share of its processors that is busy, 0 to 1.
    #[serde(default)]
    pub cpu: f64,
    /// Operations that wait for its shard writers.
    #[serde(default)]
    pub queued: u64,
    /// It has started and may own shards. Stays true through an outage of the store, so that an outage moves nothing.
    #[serde(default)]
    pub ready: bool,
    /// It hands its shards over and takes no new ones.
    #[serde(default)]
    pub draining: bool,
    /// The formats of entries and messages that it reads, lowest and highest.
    pub formats: (u32, u32),
}

impl NodeInfo {
    /// One that is ready and has nothing to do.
    #[cfg(test)]
    pub fn idle(id: &str, incarnation: u64) -> Self {
        Self {
            id: id.into(),
            incarnation,
            http_address: String::new(),
            peer_address: String::new(),
            version: "0".into(),
            role: Role::All,
            cpu: 0.0,
            queued: 0,
            ready: true,
            draining: false,
            formats: (1, 1),
        }
    }

    /// Whether shards may be given to it.
    pub fn takes_shards(&self) -> bool {
        self.ready && !self.draining && self.role != Role::Gateway
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The node raises the epoch and replays. Operations do not go to it yet.
    Acquiring,
    Serving,
}

/// Who holds a shard. It decides only who tries: the store decides who writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub node: String,
    pub incarnation: u64,
    pub state: State,
    /// The store's epoch of this ownership; 0 while acquiring.
    pub epoch: u64,
}

/// Announces that a revision was uploaded; its bytes are in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    pub name: String,
}

/// What all nodes of a cluster share; made with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Never changes.
    pub shards: u32,
    /// What nodes write; see `registry::formats`.
    pub format: u32,
}

/// A value and the revision of the registry that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Revised<T> {
    pub value: T,
    pub mod_revision: i64,
}

/// Whether this node's own lease and watch hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub healthy: bool,
    /// How often it became healthy. Pictures may be skipped; this tells that an outage lay between two of them.
    pub recoveries: u64,
    /// When `healthy` last changed.
    pub since: Instant,
}

/// Key-values of one plugin.
pub type PluginValues = BTreeMap<String, Arc<[u8]>>;

/// Cheap to clone; parts are shared between pictures until they change.
#[derive(Debug, Clone)]
pub struct Picture {
    /// None: not known yet, or gone.
    pub config: Option<Revised<Config>>,
    pub nodes: Arc<BTreeMap<String, NodeInfo>>,
    pub owners: Arc<BTreeMap<u32, Owner>>,
    pub rules: Arc<BTreeMap<String, Revised<History>>>,
    /// By digest.
    pub plugins: Arc<BTreeMap<String, Plugin>>,
    /// By plugin.
    pub values: Arc<BTreeMap<String, Arc<PluginValues>>>,
    /// Everything up to this revision of the registry is in it.
    pub revision: i64,
    pub session: Session,
}

impl Picture {
    /// Nothing known, and no session.
    pub fn empty(now: Instant) -> Self {
        Self {
            config: None,
            nodes: Arc::default(),
            owners: Arc::default(),
            rules: Arc::default(),
            plugins: Arc::default(),
            values: Arc::default(),
            revision: 0,
            session: Session { healthy: false, recoveries: 0, since: now },
        }
    }

    pub fn with_session(mut self, healthy: bool, now: Instant) -> Self {
        if healthy != self.session.healthy {
            self.session.recoveries += u64::from(healthy);
            (self.session.healthy, self.session.since) = (healthy, now);
        }
        self
    }
}
