//! Asking other nodes: a channel to each, made on first use and kept while the node is there.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::wire::message::peer_client::PeerClient;
use super::{Identity, Map, Member, Owner, stream};
use crate::limits;

#[derive(Clone)]
pub struct Questions(Arc<Inner>);

struct Inner {
    map: watch::Receiver<Arc<Map>>,
    identity: Option<Identity>,
    /// Where the channels do their work.
    runtime: Handle,
    channels: Mutex<HashMap<(String, Patience), (Member, Channel)>>,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Patience {
    /// [`limits::PEER_ANSWER_TIMEOUT`].
    Short,
    Callers,
}

impl Questions {
    /// Must be called on the runtime that lives as long as the node.
    pub fn new(map: watch::Receiver<Arc<Map>>, identity: Option<Identity>) -> Self {
        Self(Arc::new(Inner { map, identity, runtime: Handle::current(), channels: Mutex::default() }))
    }

    /// Who is there and who serves what, now.
    pub fn map(&self) -> Arc<Map> {
        self.0.map.borrow().clone()
    }

    /// For waiting until it changes.
    pub fn watch_map(&self) -> watch::Receiver<Arc<Map>> {
        self.0.map.clone()
    }

    pub fn owner(&self, shard: u32) -> Owner {
        self.0.map.borrow().owners.get(shard as usize).cloned().unwrap_or_default()
    }

    /// For questions that are answered at once, or not at all. None: there is no such node now.
    pub fn client(&self, node: &str) -> Option<PeerClient<Channel>> {
        self.find(node, Patience::Short)
    }

    /// For questions whose deadline the caller sets.
    pub fn patient_client(&self, node: &str) -> Option<PeerClient<Channel>> {
        self.find(node, Patience::Callers)
    }

    fn find(&self, node: &str, patience: Patience) -> Option<PeerClient<Channel>> {
        let map = self.0.map.borrow().clone();
        let member = map.nodes.get(node)?;
        let mut channels = self.0.channels.lock();
        channels.retain(|(name, _), (member, _)| map.nodes.get(name) == Some(member));
        if let Some((_, channel)) = channels.get(&(node.to_owned(), patience)) {
            return Some(stream::client(channel.clone()));
        }
        let _entered = self.0.runtime.enter();
        let endpoint = stream::endpoint(member, self.0.identity.as_ref()).ok()?;
        let endpoint = match patience {
            Patience::Short => endpoint.timeout(limits::PEER_ANSWER_TIMEOUT),
            Patience::Callers => endpoint,
        };
        let channel = endpoint.connect_lazy();
        channels.insert((node.to_owned(), patience), (member.clone(), channel.clone()));
        Some(stream::client(channel))
    }
}
