//! Every setting of a node: what it is called, its unit, default and range, and how its value is found.
//!
//! Built-in defaults are overridden by the file of `--config`, that by `QUIPU_*` in the environment, and that by flags.
//! All of it is read and checked once, and everything that is wrong is named in one [`Invalid`]; afterwards nobody
//! looks at the environment again. Nothing is opened or bound here: `app` does that with the result.

pub mod cluster;
mod layer;
mod value;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::cli::ServeArgs;
use crate::limits;
pub use cluster::{Cluster, Role};
pub use layer::Environment;
use layer::{Layers, Source};
pub use value::{Secret, Text};

/// The exit code of a process that was called or set up wrongly (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// All settings as one source gives them: the flags of `quipu serve`, the keys of the file and, as `QUIPU_<NAME>`, the
/// environment. Values are texts until [`Settings::resolve`] reads them, so that all wrong ones can be told at once.
#[derive(Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Knobs {
    /// Address and port of the HTTP API; port 0 takes a free one [default: 0.0.0.0:8080]
    ///
    /// The port of PORT in the environment is used unless --listen or QUIPU_LISTEN gives another.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Network")]
    listen: Option<Text>,

    /// Also serve each shard of `POST /increment` on a port of its own: shard i on this port + i
    ///
    /// For clients of services that ran one process per shard. With port 0 each shard takes a free port.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Network")]
    compat_shard_listen: Option<Text>,

    /// Also serve clients of Redis here: INCRBY, GET and others (docs/redis.md); port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", help_heading = "Network")]
    resp_listen: Option<Text>,

    /// Token that /v1/plugins, /v1/rules and /v1/cluster ask for (1-512 visible ASCII characters)
    ///
    /// Without one they answer on loopback only. Others on this machine can see flags: prefer --admin-token-file.
    #[arg(long, value_name = "TOKEN", help_heading = "Network")]
    admin_token: Option<Text>,

    /// File that holds the admin token; white space around it is ignored
    #[arg(long, value_name = "PATH", help_heading = "Network")]
    admin_token_file: Option<Text>,

    /// Directory of the counters, made if missing [default: ./quipu-data]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data_dir: Option<Text>,

    /// Number of shards, 1-4096; fixed when the data directory is made [default: 12]
    #[arg(long, value_name = "N", help_heading = "Data")]
    shards: Option<Text>,

    /// How long an Idempotency-Key is remembered, 1s-30d [default: 24h]
    #[arg(long, value_name = "TIME", help_heading = "Data")]
    idempotency_window: Option<Text>,

    /// Partial values kept in memory, 1000-1000000000; the others are read from disk on use [default: 4000000]
    #[arg(long, value_name = "N", help_heading = "Data")]
    resident_counters: Option<Text>,

    /// Name of this node, 1-63 of A-Z a-z 0-9 . _ - [default: the host name]
    #[arg(long, value_name = "NAME", help_heading = "Process")]
    node_id: Option<Text>,

    /// Threads that serve requests, 1-256 [default: the number of cores]
    #[arg(long, value_name = "N", help_heading = "Process")]
    workers: Option<Text>,

    /// How long open requests may take to finish after SIGTERM, 0s-10m [default: 20s]
    #[arg(long, value_name = "TIME", help_heading = "Process")]
    drain_timeout: Option<Text>,

    /// What is logged to stderr: a level, or levels by module such as `info,quipu::policy=debug` [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Process")]
    log: Option<Text>,

    /// on, or off to choose shards and sum partials natively instead of in WebAssembly [default: on]
    #[arg(long, value_name = "on|off", help_heading = "Policies")]
    policies: Option<Text>,

    /// Ed25519 public keys, with commas between them: only components signed by one of them are taken [default: none, all are]
    ///
    /// 32 bytes each, in hexadecimal or base64. An upload brings its signature in the header Quipu-Signature.
    #[arg(long, value_name = "KEY[,KEY]", help_heading = "Policies")]
    plugin_keys: Option<Text>,

    /// etcd of the cluster, where its members and rules are (also ETCD_ENDPOINTS) [default: none, a single process]
    #[arg(long, value_name = "URL[,URL]", help_heading = "Cluster")]
    etcd: Option<Text>,

    /// Cassandra or ScyllaDB of the cluster, where its counters are
    #[arg(long, value_name = "HOST:PORT[,…]", help_heading = "Cluster")]
    cassandra: Option<Text>,

    /// Name of the cluster: prefix of its keys in etcd, and its keyspace in Cassandra [default: quipu]
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    cluster: Option<Text>,

    /// all, gateway to serve no shards, or shard (also SERVICE_TYPE=app|shard) [default: all]
    #[arg(long, value_name = "ROLE", help_heading = "Cluster")]
    role: Option<Text>,

    /// Address and port for the other nodes [default: 0.0.0.0:7070]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    peer_listen: Option<Text>,

    /// How the other nodes reach --peer-listen [default: POD_IP or the address of this host]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    advertise: Option<Text>,

    /// A node that etcd does not hear from for this long has lost its shards, 2000-60000 [default: 5000]
    #[arg(long, value_name = "MS", help_heading = "Cluster")]
    lease_ttl_ms: Option<Text>,

    /// on to make keyspace and tables when they are missing; `quipu store init` does it too [default: off]
    #[arg(long, value_name = "on|off", help_heading = "Cluster")]
    create_schema: Option<Text>,

    /// Copies of everything in a keyspace that is made, 1-9 [default: 3]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    replication: Option<Text>,

    /// Journal writes under way at once at most, 1-256; a third of the busy shards write together [default: 4]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    appends: Option<Text>,

    /// User of etcd
    #[arg(long, value_name = "NAME", help_heading = "Cluster security")]
    etcd_user: Option<Text>,

    /// File with the password of the user of etcd
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    etcd_password_file: Option<Text>,

    /// Authority of etcd's certificates (PEM); with --etcd-cert and --etcd-key this node shows its own
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    etcd_ca: Option<Text>,

    /// Certificate that this node shows to etcd (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    etcd_cert: Option<Text>,

    /// Key of --etcd-cert (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    etcd_key: Option<Text>,

    /// User of Cassandra
    #[arg(long, value_name = "NAME", help_heading = "Cluster security")]
    cassandra_user: Option<Text>,

    /// File with the password of the user of Cassandra
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    cassandra_password_file: Option<Text>,

    /// Authority of Cassandra's certificates (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    cassandra_ca: Option<Text>,

    /// Certificate that this node shows to Cassandra (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    cassandra_cert: Option<Text>,

    /// Key of --cassandra-cert (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    cassandra_key: Option<Text>,

    /// Authority of the nodes' certificates (PEM); with it, --peer-cert and --peer-key nodes prove who they are
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    peer_ca: Option<Text>,

    /// Certificate of this node for the others (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    peer_cert: Option<Text>,

    /// Key of --peer-cert (PEM)
    #[arg(long, value_name = "PATH", help_heading = "Cluster security")]
    peer_key: Option<Text>,

    /// Largest component that can be uploaded, in MiB, 1-256 [default: 64]
    #[arg(long, value_name = "N", help_heading = "Policies")]
    plugin_size_mib: Option<Text>,

    /// Directory of compiled policies, made if missing [default: $XDG_CACHE_HOME/quipu or ~/.cache/quipu]
    #[arg(long, value_name = "DIR", help_heading = "Policies")]
    cache_dir: Option<Text>,
}

/// The settings that a node runs with, all within their ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Shard i also listens on this port + i; port 0 means a free port for each.
    pub compat_shard_listen: Option<SocketAddr>,
    /// Where RESP is spoken, the protocol of Redis.
    pub resp_listen: Option<SocketAddr>,
    pub admin_token: Option<Secret>,
    pub data_dir: PathBuf,
    /// 1 to [`limits::SHARDS_MAX`].
    pub shards: u32,
    pub idempotency_window: Duration,
    /// Partials of all shards of this node together.
    pub resident_counters: usize,
    pub node_id: String,
    /// Serving threads, at least 1.
    pub workers: usize,
    pub drain_timeout: Duration,
    /// A filter that `tracing_subscriber::EnvFilter` accepts.
    pub log: String,
    /// Policies run as WebAssembly; otherwise the native choices answer.
    pub policies: bool,
    /// Whose components are taken; without keys everybody's.
    pub plugin_keys: Vec<String>,
    /// Largest component that is taken, in bytes.
    pub plugin_bytes_max: usize,
    pub cache_dir: PathBuf,
    /// None: a single process with the embedded store.
    pub cluster: Option<Cluster>,
}

/// Everything that is wrong with the settings of one start, each with where it was set, why, and what would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(Vec<String>);

impl Invalid {
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "a setting is wrong: {only}"),
            all => {
                write!(f, "{} settings are wrong:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for Invalid {}

impl Settings {
    /// Reads the file of `--config`, merges it with the environment and the flags, and checks every value. Files are
    /// read (the settings, the token), nothing is written.
    pub fn resolve(args: &ServeArgs, environment: &Environment) -> Result<Self, Invalid> {
        Self::resolve_with(args, environment, cluster::Purpose::Serve)
    }

    /// The same for a command that only needs the store of a cluster: etcd may be left out.
    pub fn resolve_for_store(args: &ServeArgs, environment: &Environment) -> Result<Self, Invalid> {
        Self::resolve_with(args, environment, cluster::Purpose::Store)
    }

    fn resolve_with(args: &ServeArgs, environment: &Environment, purpose: cluster::Purpose) -> Result<Self, Invalid> {
        let mut layers = Layers::gather(args, environment);
        let data_dir = layers.read("data-dir", |k| &k.data_dir, value::path).unwrap_or_else(|| "./quipu-data".into());
        let shards = layers
            .read("shards", |k| &k.shards, |t| value::integer(t, 1..=u64::from(limits::SHARDS_MAX)))
            .map_or(limits::SHARDS_DEFAULT, |n| u32::try_from(n).expect("within the range"));
        let settings = Self {
            listen: listen(&mut layers, environment),
            compat_shard_listen: layers.read(
                "compat-shard-listen",
                |k| &k.compat_shard_listen,
                |t| value::address(t).and_then(|first| ports_for_shards(first, shards)),
            ),
            resp_listen: layers.read("resp-listen", |k| &k.resp_listen, value::address),
            admin_token: admin_token(&mut layers),
            shards,
            idempotency_window: layers
                .read("idempotency-window", |k| &k.idempotency_window, |t| value::duration(t, limits::WINDOW_RANGE))
                .unwrap_or(limits::IDEMPOTENCY_WINDOW),
            resident_counters: layers
                .read("resident-counters", |k| &k.resident_counters, |t| value::integer(t, limits::RESIDENT_RANGE))
                .map_or(limits::RESIDENT_COUNTERS, |n| usize::try_from(n).expect("within the range")),
            node_id: layers
                .read("node-id", |k| &k.node_id, value::node_id)
                .or_else(|| value::node_id(&sysinfo::System::host_name().ok()?).ok())
                .unwrap_or_else(|| "node".into()),
            workers: layers
                .read("workers", |k| &k.workers, |t| value::integer(t, 1..=limits::WORKERS_MAX))
                .map_or_else(default_workers, |n| usize::try_from(n).expect("within the range")),
            drain_timeout: layers
                .read("drain-timeout", |k| &k.drain_timeout, |t| value::duration(t, limits::DRAIN_RANGE))
                .unwrap_or(limits::DRAIN_TIMEOUT),
            log: layers.read("log", |k| &k.log, value::log_filter).unwrap_or_else(|| "info".into()),
            policies: layers.read("policies", |k| &k.policies, value::switch).unwrap_or(true),
            plugin_keys: layers.read("plugin-keys", |k| &k.plugin_keys, value::public_keys).unwrap_or_default(),
            plugin_bytes_max: layers
                .read("plugin-size-mib", |k| &k.plugin_size_mib, |t| value::integer(t, limits::PLUGIN_MIB_RANGE))
                .map(|mib| usize::try_from(mib).expect("within the range"))
                .unwrap_or(limits::PLUGIN_MIB_MAX)
                << 20,
            cache_dir: layers
                .read("cache-dir", |k| &k.cache_dir, value::path)
                .unwrap_or_else(|| default_cache_dir(environment).unwrap_or_else(|| data_dir.join("cache"))),
            data_dir,
            cluster: Cluster::read(&mut layers, environment, purpose),
        };
        if let Some(first) = settings.compat_shard_listen
            && overlap(first, settings.shards, settings.listen)
        {
            layers.problems.push(format!(
                "compat-shard-listen: its ports {}-{} include that of listen, {}; choose other ports for one of them",
                first.port(),
                u32::from(first.port()) + settings.shards - 1,
                settings.listen,
            ));
        }
        match layers.problems.is_empty() {
            true => Ok(settings),
            false => Err(Invalid(layers.problems)),
        }
    }
}

/// `PORT` is an environment variable, so it beats the file and the default, but it says less than `QUIPU_LISTEN` or
/// `--listen`, which win.
fn listen(layers: &mut Layers, environment: &Environment) -> SocketAddr {
    let source = layers.source(|k| &k.listen).cloned();
    let mut listen =
        layers.read("listen", |k| &k.listen, value::address).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 8080)));
    if matches!(source, None | Some(Source::File(_)))
        && let Some(text) = environment.get("PORT")
    {
        match value::integer(text, 0..=u64::from(u16::MAX)) {
            Ok(port) => listen.set_port(u16::try_from(port).expect("within the range")),
            Err(reason) => layers.problems.push(format!("PORT={text}: {reason}")),
        }
    }
    listen
}

/// The token, or the content of its file: whichever the higher layer gives.
fn admin_token(layers: &mut Layers) -> Option<Secret> {
    let given = layers.source(|k| &k.admin_token).map(Source::rank);
    let in_file = layers.source(|k| &k.admin_token_file).map(Source::rank);
    if given.is_some() && given == in_file {
        layers.problems.push("admin-token and admin-token-file: give one of them, not both".into());
        return None;
    }
    if given > in_file {
        layers.read_secret("admin-token", |k| &k.admin_token, value::token)
    } else {
        layers.read("admin-token-file", |k| &k.admin_token_file, value::token_file)
    }
}

fn ports_for_shards(first: SocketAddr, shards: u32) -> Result<SocketAddr, String> {
    match u32::from(first.port()) + shards - 1 {
        last if last > u32::from(u16::MAX) => {
            Err(format!("{shards} shards from port {} on would need port {last}; the last is 65535", first.port()))
        }
        _ => Ok(first),
    }
}

fn overlap(first: SocketAddr, shards: u32, listen: SocketAddr) -> bool {
    let ports = u32::from(first.port())..u32::from(first.port()) + shards;
    let same_host = first.ip() == listen.ip() || first.ip().is_unspecified() || listen.ip().is_unspecified();
    first.port() != 0 && same_host && ports.contains(&u32::from(listen.port()))
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(limits::WORKERS_MAX as usize)
}

/// As the XDG base directory specification says: relative paths are ignored.
fn default_cache_dir(environment: &Environment) -> Option<PathBuf> {
    let absolute = |name| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("quipu"))
}

#[cfg(test)]
mod tests;
