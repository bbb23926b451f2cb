//! The session: where Cassandra is, how it is spoken to, and how long it may take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{ConnectionError, ConnectionPoolError, MetadataError, NewSessionError};
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::statement::{Consistency, SerialConsistency};
use tokio::time::Instant;

use super::super::Error;
use super::cql::Cql;
use crate::limits;

/// Whether conditional writes are agreed on by all datacenters or by the nearest alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// `SERIAL` and `QUORUM`: one owner of a shard in all datacenters together.
    #[default]
    Global,
    /// `LOCAL_SERIAL` and `LOCAL_QUORUM`: faster, and right only while every node of Quipu is in the same datacenter.
    Local,
}

impl Scope {
    pub fn serial(self) -> SerialConsistency {
        match self {
            Self::Global => SerialConsistency::Serial,
            Self::Local => SerialConsistency::LocalSerial,
        }
    }

    /// Of reads that see every conditional write.
    pub fn serial_read(self) -> Consistency {
        match self {
            Self::Global => Consistency::Serial,
            Self::Local => Consistency::LocalSerial,
        }
    }

    pub fn plain(self) -> Consistency {
        match self {
            Self::Global => Consistency::Quorum,
            Self::Local => Consistency::LocalQuorum,
        }
    }
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Authorities that may sign the servers' certificates, which must name the servers' addresses.
    pub ca: PathBuf,
    /// Certificate and key of this client, when the servers ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone)]
pub struct Settings {
    /// `HOST:PORT`; one that answers is enough, the others are learned from it.
    pub contact_points: Vec<String>,
    /// Name of the keyspace: 1-48 of `a-z`, `0-9` and `_`, beginning with a letter.
    pub cluster: String,
    /// Fixed by `init`.
    pub shards: u32,
    /// Copies of everything; used by `init` alone.
    pub replication_factor: u8,
    pub user: Option<(String, String)>,
    pub tls: Option<Tls>,
    pub scope: Scope,
    pub connect_timeout: Duration,
    /// A server that is not there when we start is waited for this long.
    pub start_timeout: Duration,
    /// Each statement is waited for this long.
    pub attempt_timeout: Duration,
    /// A conditional write of unknown outcome is sent again for this long.
    pub settle_timeout: Duration,
    /// How long idempotency keys are remembered.
    pub key_window: Duration,
    /// A journal segment that has this many bytes is closed, and the next one begun.
    pub segment_bytes: u64,
}

impl Settings {
    pub fn new(contact_points: Vec<String>, cluster: impl Into<String>, shards: u32) -> Self {
        Self {
            contact_points,
            cluster: cluster.into(),
            shards,
            replication_factor: limits::CASSANDRA_REPLICATION_FACTOR,
            user: None,
            tls: None,
            scope: Scope::default(),
            connect_timeout: limits::CASSANDRA_CONNECT_TIMEOUT,
            start_timeout: limits::CASSANDRA_START_TIMEOUT,
            attempt_timeout: limits::CASSANDRA_ATTEMPT_TIMEOUT,
            settle_timeout: limits::CASSANDRA_SETTLE_TIMEOUT,
            key_window: limits::IDEMPOTENCY_WINDOW,
            segment_bytes: limits::CASSANDRA_SEGMENT_BYTES,
        }
    }

    /// The name goes into statements as it is.
    pub fn checked(&self) -> Result<(), Error> {
        let name = self.cluster.as_bytes();
        let plain = name.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !plain || !name.first().is_some_and(u8::is_ascii_lowercase) || name.len() > 48 {
            let why =
                "it names the keyspace, and must be 1-48 lower-case letters, digits and underscores, a letter first";
            return Err(Error::Refused(format!("the cluster name '{}' cannot be used: {why}", self.cluster)));
        }
        if !(1..=limits::SHARDS_MAX).contains(&self.shards) {
            let max = limits::SHARDS_MAX;
            return Err(Error::Refused(format!("{} shards: there must be 1 to {max}", self.shards)));
        }
        if self.replication_factor == 0 {
            return Err(Error::Refused("a replication factor of 0 keeps nothing: use 3".into()));
        }
        Ok(())
    }
}

/// A session without a keyspace. Nothing is sent twice behind our back. Waits for a server for a while, since all of a machine may
/// start together; one that is there and wants something else of us is not asked again.
pub async fn connect(settings: &Settings) -> Result<Cql, Error> {
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(settings.attempt_timeout))
        .consistency(settings.scope.plain())
        .serial_consistency(Some(settings.scope.serial()))
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .speculative_execution_policy(None)
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&settings.contact_points)
        .connection_timeout(settings.connect_timeout)
        .default_execution_profile_handle(profile.into_handle())
        .keyspaces_to_fetch([&settings.cluster])
        .keepalive_interval(limits::CASSANDRA_KEEP_ALIVE.0)
        .keepalive_timeout(limits::CASSANDRA_KEEP_ALIVE.1)
        .tcp_nodelay(true);
    if let Some((user, password)) = &settings.user {
        builder = builder.user(user, password);
    }
    if let Some(tls) = &settings.tls {
        builder = builder.tls_context(Some(client_config(tls)?));
    }
    let (places, deadline) = (settings.contact_points.join(", "), Instant::now() + settings.start_timeout);
    let mut told = false;
    let session: Session = loop {
        match builder.build().await {
            Ok(session) => break session,
            Err(why) if is_away(&why) && Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    let wait = settings.start_timeout;
                    tracing::warn!("Cassandra is not there yet at {places}; waiting up to {wait:?}: {why}");
                }
                tokio::time::sleep(limits::CASSANDRA_START_RETRY).await;
            }
            Err(why) => return Err(Error::Refused(format!("Cassandra does not answer at {places}: {why}"))),
        }
    };
    Ok(Cql { session, settle_timeout: settings.settle_timeout })
}

/// Nothing listens there, or its name is not known yet.
fn is_away(why: &NewSessionError) -> bool {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error,
    })) = why
    else {
        return matches!(why, NewSessionError::FailedToResolveAnyHostname(_));
    };
    match last_connection_error {
        ConnectionError::ConnectTimeout => true,
        ConnectionError::IoError(why) => matches!(
            why.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        ),
        _ => false,
    }
}

fn client_config(tls: &Tls) -> Result<Arc<rustls::ClientConfig>, Error> {
    let unusable = |path: &Path, why: &dyn std::fmt::Display| {
        Error::Refused(format!("{} cannot be used for TLS with Cassandra: {why}", path.display()))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        read.map_err(|why| unusable(path, &why))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&tls.ca)? {
        roots.add(certificate).map_err(|why| unusable(&tls.ca, &why))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| unusable(&tls.ca, &why))?
        .with_root_certificates(roots);
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|why| unusable(key, &why))?;
            let chain = certificates(certificate)?;
            builder.with_client_auth_cert(chain, private).map_err(|why| unusable(certificate, &why))?
        }
    };
    Ok(Arc::new(config))
}
