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
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        check_pair(&certificate, &key).map_err(|why| {
            let (certificate, key) = (self.certificate.display(), self.key.display());
            std::io::Error::other(format!("{certificate} and {key} are no certificate with its key: {why}"))
        })?;
        Ok(Identity { ca, own: tonic::transport::Identity::from_pem(certificate, key) })
    }
}

/// Tonic names no file when it meets them.
fn check_pair(certificate: &[u8], key: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    config.with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?;
    Ok(())
}
