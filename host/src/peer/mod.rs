//! Between the nodes of a cluster: operations for shards that others own, and questions that only an owner can answer.
//!
//! [`links`] sends: one [`crate::shard::producer`] for each shard, one stream to each node. [`receiver`] takes what others
//! send, and answers it when the commit thread has. [`service`] is the gRPC service around it, [`questions`] the asking
//! side of everything that is not an operation. Who owns what is decided elsewhere and comes as a [`Map`].

pub mod links;
pub mod questions;
pub mod receiver;
pub mod service;
mod stream;
pub mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use links::Links;
pub use questions::Questions;
pub use receiver::Receiver;

/// Who is there and who serves what, as this node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Map {
    /// Live nodes by name, this one not included.
    pub nodes: BTreeMap<String, Member>,
    /// By shard: who serves it now.
    pub owners: Vec<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it listens for its peers, `HOST:PORT`.
    pub address: String,
    /// Another one with every start of the process.
    pub incarnation: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Owner {
    /// Nobody, for the time being.
    #[default]
    None,
    This,
    /// A node of [`Map::nodes`].
    Other(String),
}

/// Files of mutual TLS between nodes: every node shows a certificate of the same authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The same, read.
#[derive(Clone)]
pub struct Identity {
    pub ca: tonic::transport::Certificate,
    pub own: tonic::transport::Identity,
}

impl Tls {
    pub fn read(&self) -> std::io::Result<Identity> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|why| std::io::Error::new(why.kind(), format!("{}: {why}", path.display())))
        };
        let ca = tonic::transport::Certificate::from_pem(read(&self.ca)?);
        let own = tonic::transport::Identity::from_pem(read(&self.certificate)?, read(&self.key)?);
        Ok(Identity { ca, own })
    }
}
