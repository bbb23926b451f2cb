//! The settings that make a node one of a cluster: all of them are without meaning in a single process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::layer::Layers;
use super::value::{self, Secret};
use super::{Environment, Knobs, Text};
use crate::limits;

/// What the settings are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Serve,
    /// Only the store is used.
    Store,
}

/// What a node of a cluster is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves requests and shards.
    All,
    /// Serves requests only.
    Gateway,
    /// Serves shards, and requests as well to whoever calls it.
    Shard,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Gateway => "gateway",
            Self::Shard => "shard",
        }
    }
}

/// How a client proves who it is and that the connection is what it seems.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub tls: Option<TlsFiles>,
}

/// PEM files. With `own` the client shows a certificate too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    /// Certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Name, key prefix in etcd and keyspace in Cassandra.
    pub name: String,
    /// URLs.
    pub etcd: Vec<String>,
    pub etcd_credentials: Credentials,
    /// `HOST:PORT` each.
    pub cassandra: Vec<String>,
    pub cassandra_credentials: Credentials,
    pub role: Role,
    pub peer_listen: SocketAddr,
    /// `HOST:PORT` by which other nodes reach `peer_listen`; None: its own address.
    pub advertise: Option<String>,
    pub lease_ttl: Duration,
    /// Mutual TLS between nodes.
    pub peer_tls: Option<TlsFiles>,
    /// Makes the keyspace and its tables when they are missing.
    pub create_schema: bool,
    /// Of a keyspace that is made.
    pub replication: u8,
    /// Appends under way at once.
    pub appends_max: usize,
}

impl Cluster {
    /// None without `--etcd` and `--cassandra`: the node is a single process then.
    pub(super) fn read(layers: &mut Layers, environment: &Environment, purpose: Purpose) -> Option<Self> {
        let cassandra = layers.read("cassandra", |k| &k.cassandra, hosts);
        // The variable may be meant for somebody else: alone it makes no cluster.
        let of_variable = environment.get("ETCD_ENDPOINTS").filter(|_| cassandra.is_some());
        let etcd = layers.read("etcd", |k| &k.etcd, urls).or_else(|| of_variable.and_then(|text| urls(text).ok()));
        let (etcd, cassandra) = match (etcd, cassandra) {
            (Some(etcd), Some(cassandra)) => (etcd, cassandra),
            (None, Some(cassandra)) if purpose == Purpose::Store => (Vec::new(), cassandra),
            (None, None) => return Self::refuse_strays(layers),
            (Some(_), None) => {
                layers.problems.push("cassandra: a cluster keeps its counters there; give it beside etcd".into());
                return None;
            }
            (None, Some(_)) => {
                layers.problems.push("etcd: a cluster keeps its members there; give it beside cassandra".into());
                return None;
            }
        };
        let name = layers.read("cluster", |k| &k.cluster, cluster_name).unwrap_or_else(|| "quipu".into());
        let peer_listen = layers
            .read("peer-listen", |k| &k.peer_listen, value::address)
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 7070)));
        let pod_ip = environment.get("POD_IP").map(|ip| match ip.contains(':') {
            true => format!("[{ip}]:{}", peer_listen.port()),
            false => format!("{ip}:{}", peer_listen.port()),
        });
        let of_service = environment.get("SERVICE_TYPE").and_then(|text| role(text).ok());
        Some(Self {
            name,
            etcd,
            etcd_credentials: Credentials {
                user: layers.read("etcd-user", |k| &k.etcd_user, user),
                password: layers.read("etcd-password-file", |k| &k.etcd_password_file, value::token_file),
                tls: tls(layers, "etcd", |k| &k.etcd_ca, |k| &k.etcd_cert, |k| &k.etcd_key),
            },
            cassandra,
            cassandra_credentials: Credentials {
                user: layers.read("cassandra-user", |k| &k.cassandra_user, user),
                password: layers.read("cassandra-password-file", |k| &k.cassandra_password_file, value::token_file),
                tls: tls(layers, "cassandra", |k| &k.cassandra_ca, |k| &k.cassandra_cert, |k| &k.cassandra_key),
            },
            role: layers.read("role", |k| &k.role, role).or(of_service).unwrap_or(Role::All),
            peer_listen,
            advertise: layers.read("advertise", |k| &k.advertise, advertised).or(pod_ip),
            lease_ttl: layers
                .read("lease-ttl-ms", |k| &k.lease_ttl_ms, |t| value::integer(t, limits::LEASE_TTL_MS_RANGE))
                .map_or(limits::LEASE_TTL, Duration::from_millis),
            peer_tls: tls(layers, "peer", |k| &k.peer_ca, |k| &k.peer_cert, |k| &k.peer_key),
            create_schema: layers.read("create-schema", |k| &k.create_schema, value::switch).unwrap_or(false),
            replication: layers
                .read("replication", |k| &k.replication, |t| value::integer(t, limits::REPLICATION_RANGE))
                .map_or(limits::REPLICATION, |n| u8::try_from(n).expect("within the range")),
            appends_max: layers
                .read("appends", |k| &k.appends, |t| value::integer(t, limits::APPENDS_RANGE))
                .map_or(limits::APPENDS, |n| usize::try_from(n).expect("within the range")),
        })
    }

    /// A setting of a cluster where there is none is a mistake that would otherwise go unnoticed.
    fn refuse_strays(layers: &mut Layers) -> Option<Self> {
        type Field = fn(&Knobs) -> &Option<Text>;
        let strays: [(&str, Field); 4] = [
            ("role", |k| &k.role),
            ("peer-listen", |k| &k.peer_listen),
            ("advertise", |k| &k.advertise),
            ("create-schema", |k| &k.create_schema),
        ];
        for (name, field) in strays {
            if layers.source(field).is_some() {
                layers.problems.push(format!("{name}: only for a node of a cluster; give etcd and cassandra too"));
            }
        }
        None
    }
}

fn tls(
    layers: &mut Layers,
    of: &str,
    ca: fn(&Knobs) -> &Option<Text>,
    certificate: fn(&Knobs) -> &Option<Text>,
    key: fn(&Knobs) -> &Option<Text>,
) -> Option<TlsFiles> {
    let ca = layers.read(&format!("{of}-ca"), ca, readable);
    let certificate = layers.read(&format!("{of}-cert"), certificate, readable);
    let key = layers.read(&format!("{of}-key"), key, readable);
    match (ca, certificate, key) {
        (None, None, None) => None,
        (Some(ca), Some(certificate), Some(key)) => Some(TlsFiles { ca, own: Some((certificate, key)) }),
        (Some(ca), None, None) if of != "peer" => Some(TlsFiles { ca, own: None }),
        _ => {
            let which = if of == "peer" { "all three" } else { "the authority, or all three" };
            layers.problems.push(format!("{of}-ca, {of}-cert, {of}-key: give {which}"));
            None
        }
    }
}

fn readable(text: &str) -> Result<PathBuf, String> {
    let path = value::path(text)?;
    std::fs::File::open(&path).map_err(|why| why.to_string())?;
    Ok(path)
}

fn pieces(text: &str) -> Vec<String> {
    text.split(',').map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

fn urls(text: &str) -> Result<Vec<String>, String> {
    let urls: Vec<String> = pieces(text)
        .into_iter()
        .map(|piece| if piece.contains("://") { piece } else { format!("http://{piece}") })
        .collect();
    let good = |url: &String| {
        url.parse::<http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        })
    };
    match !urls.is_empty() && urls.iter().all(good) {
        true => Ok(urls),
        false => Err("must be http or https URLs with commas between them, as in http://10.0.0.5:2379".into()),
    }
}

fn host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

fn hosts(text: &str) -> Result<Vec<String>, String> {
    let hosts: Vec<String> = pieces(text)
        .into_iter()
        .map(|piece| if piece.contains(':') { piece } else { format!("{piece}:9042") })
        .collect();
    match !hosts.is_empty() && hosts.iter().all(|host| host_and_port(host)) {
        true => Ok(hosts),
        false => Err("must be HOST:PORT with commas between them, as in 10.0.0.6:9042".into()),
    }
}

fn advertised(text: &str) -> Result<String, String> {
    match host_and_port(text) {
        true => Ok(text.into()),
        false => Err("must be the HOST:PORT by which the other nodes reach this one".into()),
    }
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "all" => Ok(Role::All),
        "gateway" | "app" => Ok(Role::Gateway),
        "shard" => Ok(Role::Shard),
        _ => Err("must be all, gateway or shard".into()),
    }
}

/// Also a keyspace and a part of keys, so no more than both allow.
fn cluster_name(text: &str) -> Result<String, String> {
    let mut chars = text.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_lowercase());
    let rest = chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match first && rest && text.len() <= limits::CLUSTER_NAME_BYTES_MAX {
        true => Ok(text.into()),
        false => Err(format!(
            "must be a lower-case letter and up to {} of a-z 0-9 _ after it",
            limits::CLUSTER_NAME_BYTES_MAX - 1
        )),
    }
}

fn user(text: &str) -> Result<String, String> {
    match text.len() {
        1..=limits::TOKEN_BYTES_MAX => Ok(text.into()),
        _ => Err(format!("must have 1 to {} bytes", limits::TOKEN_BYTES_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ServeArgs;
    use crate::settings::Settings;

    fn resolve(variables: &[(&str, &str)]) -> Result<Option<Cluster>, Vec<String>> {
        let environment: Environment = variables.iter().copied().collect();
        Settings::resolve(&ServeArgs::default(), &environment)
            .map(|settings| settings.cluster)
            .map_err(|invalid| invalid.problems().to_vec())
    }

    #[test]
    fn a_node_without_services_is_a_single_process() {
        assert_eq!(resolve(&[]), Ok(None));
    }

    #[test]
    fn short_forms_are_completed() {
        let cluster =
            resolve(&[("QUIPU_ETCD", "a:1, https://b:2"), ("QUIPU_CASSANDRA", "c,d:3"), ("POD_IP", "10.0.0.1")]);
        let cluster = cluster.expect("valid").expect("a cluster");
        assert_eq!(cluster.etcd, ["http://a:1", "https://b:2"]);
        assert_eq!(cluster.cassandra, ["c:9042", "d:3"]);
        assert_eq!(cluster.advertise.as_deref(), Some("10.0.0.1:7070"));
    }

    #[test]
    fn the_first_systems_variables_are_understood() {
        let cluster = resolve(&[("ETCD_ENDPOINTS", "e:2379"), ("QUIPU_CASSANDRA", "c"), ("SERVICE_TYPE", "app")]);
        assert_eq!(cluster.expect("valid").map(|cluster| cluster.role), Some(Role::Gateway));
    }

    #[test]
    fn half_a_cluster_is_refused() {
        assert!(resolve(&[("QUIPU_ETCD", "a:1")]).expect_err("no cassandra")[0].starts_with("cassandra:"));
        assert!(resolve(&[("QUIPU_ROLE", "shard")]).expect_err("no cluster")[0].starts_with("role:"));
        let services = [("QUIPU_ETCD", "a:1"), ("QUIPU_CASSANDRA", "b:2")];
        for (name, value) in [("QUIPU_CLUSTER", "Bad-Name"), ("QUIPU_ROLE", "boss"), ("QUIPU_LEASE_TTL_MS", "5")] {
            let all: Vec<_> = services.into_iter().chain([(name, value)]).collect();
            assert_eq!(resolve(&all).expect_err("refused").len(), 1, "{name}");
        }
    }
}
