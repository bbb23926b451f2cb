//! How etcd is reached, and whether the cluster found there is the one that this node was set up for.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, TlsOptions, Txn, TxnOp};

use super::error::{Error, denied, within};
use super::formats::parse;
use super::json;
use super::keys::{Key, Keys};
use super::owners::found;
use crate::limits;
use crate::registry::formats;
use crate::registry::picture::{Config, NodeInfo};

#[derive(Clone)]
pub struct Settings {
    /// `http://` or `https://` URLs; any of them may be down.
    pub endpoints: Vec<String>,
    /// Names the cluster; several may share one etcd.
    pub cluster: String,
    /// Fixed when the cluster is made.
    pub shards: u32,
    pub user: Option<String>,
    pub password: Option<String>,
    pub tls: Option<Tls>,
    /// Within `limits::LEASE_TTL_RANGE`; whole seconds, rounded up.
    pub lease_ttl: Duration,
    pub node: NodeInfo,
}

/// Files in PEM.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Who signs the server's certificate.
    pub ca: Option<PathBuf>,
    /// This client's certificate with its key.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, if it is not that of the endpoint.
    pub domain: Option<String>,
}

/// Without the password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Settings");
        text.field("endpoints", &self.endpoints).field("cluster", &self.cluster).field("user", &self.user);
        text.field("tls", &self.tls)
            .field("lease_ttl", &self.lease_ttl)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn is_name(text: &str, bytes_max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(plain)
}

impl Settings {
    /// `Refused` with one sentence when a setting cannot be.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |why: String| Err(Error::Refused(why));
        if self.endpoints.is_empty() {
            return refused("No etcd endpoint is given; name at least one, such as http://127.0.0.1:2379.".into());
        }
        for (what, name, max) in [
            ("cluster's name", &self.cluster, limits::CLUSTER_NAME_BYTES_MAX),
            ("node's id", &self.node.id, limits::NODE_ID_BYTES_MAX),
        ] {
            if !is_name(name, max) {
                return refused(format!("The {what} {name:?} must have 1 to {max} letters, digits, '-', '_' or '.'."));
            }
        }
        if !(1..=limits::SHARDS_MAX).contains(&self.shards) {
            return refused(format!(
                "A cluster has 1 to {} shards; {} is outside of it.",
                limits::SHARDS_MAX,
                self.shards
            ));
        }
        let range = limits::LEASE_TTL_RANGE;
        if !range.contains(&self.lease_ttl) {
            let (min, max) = (range.start(), range.end());
            return refused(format!("The lease must last {min:?} to {max:?}; {:?} is outside of it.", self.lease_ttl));
        }
        if self.user.is_some() != self.password.is_some() {
            return refused("User and password of etcd are given together or not at all.".into());
        }
        match &self.tls {
            Some(tls) if tls.certificate.is_some() != tls.key.is_some() => {
                refused("The client certificate for etcd and its key are given together or not at all.".into())
            }
            Some(_) if self.endpoints.iter().any(|endpoint| endpoint.starts_with("http://")) => {
                refused("TLS files for etcd are given, but an endpoint begins with http://; use https://.".into())
            }
            _ => Ok(()),
        }
    }
}

fn pem(path: &Path) -> Result<Vec<u8>, Error> {
    let refused = |why: String| Error::Refused(format!("The TLS file {} is not usable: {why}.", path.display()));
    let file = std::fs::File::open(path).map_err(|why| refused(why.to_string()))?;
    let mut bytes = Vec::new();
    let read = file.take(limits::TLS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    let read = read.map_err(|why| refused(why.to_string()))? as u64;
    match read {
        0 => Err(refused("it is empty".into())),
        1..=limits::TLS_FILE_BYTES_MAX => Ok(bytes),
        _ => Err(refused(format!("it has more than {} bytes", limits::TLS_FILE_BYTES_MAX))),
    }
}

fn tls(settings: &Tls) -> Result<TlsOptions, Error> {
    let mut tls = TlsOptions::new();
    if let Some(ca) = &settings.ca {
        tls = tls.ca_certificate(Certificate::from_pem(pem(ca)?));
    }
    if let (Some(certificate), Some(key)) = (&settings.certificate, &settings.key) {
        tls = tls.identity(Identity::from_pem(pem(certificate)?, pem(key)?));
    }
    if let Some(domain) = &settings.domain {
        tls = tls.domain_name(domain.clone());
    }
    Ok(tls)
}

pub(super) async fn client(settings: &Settings) -> Result<Client, Error> {
    // A connection that went silent is noticed well inside the lease.
    let (interval, timeout) = (settings.lease_ttl / 4, settings.lease_ttl / 4);
    let mut options = ConnectOptions::new()
        .with_connect_timeout(limits::REGISTRY_CALL_TIMEOUT)
        .with_keep_alive(interval, timeout)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options = options.with_user(user, password).with_auto_token_refresh(true);
    }
    if let Some(files) = &settings.tls {
        options = options.with_tls(tls(files)?);
    }
    answered(limits::REGISTRY_CONNECT_TIMEOUT, Client::connect(&settings.endpoints, Some(options))).await
}

/// As `within`, for a node that starts: `Refused` when etcd does not let it in.
async fn answered<T>(limit: Duration, call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
    match within(limit, async { Ok(call.await) }).await? {
        Ok(answer) => Ok(answer),
        Err(why) => Err(denied(&why).unwrap_or_else(|| why.into())),
    }
}

/// Makes the cluster if it is new, and refuses to be part of one that does not fit.
pub(super) async fn config(client: &Client, keys: &Keys, settings: &Settings) -> Result<(), Error> {
    let key = keys.of(Key::Config);
    let wanted = Config { shards: settings.shards, format: settings.node.formats.1 };
    let txn = Txn::new()
        .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key.clone(), json(&wanted), None)])
        .or_else([TxnOp::get(key.clone(), None)]);
    let answer = tokio::time::timeout(limits::REGISTRY_CONNECT_TIMEOUT, persistent(client, txn))
        .await
        .unwrap_or_else(|_| Err(Error::Unavailable(format!("etcd was not reached at {:?}", settings.endpoints))))?;
    let Some(found) = found(answer.op_responses()) else { return Ok(()) };
    let there = parse(&key, &found.value)?;
    formats::check(there.format, settings.node.formats).map_err(Error::Refused)?;
    if there.shards != settings.shards {
        return Err(Error::Refused(format!(
            "The cluster {:?} was made with {} shards, which never change, and this node is set to {}; set it to {}.",
            settings.cluster, there.shards, settings.shards, there.shards
        )));
    }
    Ok(())
}

/// A node may start a little earlier than its etcd.
async fn persistent(client: &Client, txn: Txn) -> Result<etcd_client::TxnResponse, Error> {
    let mut attempt = 0;
    loop {
        match answered(limits::REGISTRY_CALL_TIMEOUT, client.kv_client().txn(txn.clone())).await {
            Err(Error::Unavailable(why)) => {
                tracing::warn!(why, "etcd does not answer yet");
                tokio::time::sleep(super::session::pause(attempt)).await;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}
