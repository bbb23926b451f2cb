//! How the parts are put together: build, listen, serve, drain. Each part knows only what it is handed here.
//!
//! What a node of a cluster has besides is put together in `cluster`.

mod backend;
pub mod cluster;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use self::cluster::Membership;
use crate::commit::{self, Commits, Inbox};
use crate::counter::{Id, key_hash};
use crate::front::server::{self, Server, Speaks};
use crate::http::connection::Listener;
use crate::limits;
use crate::node::{self, Node};
use crate::policy::{self, ShardInfo, View};
use crate::registry::etcd::Etcd;
use crate::settings::Settings;
use crate::shard::partials::Resident;
use crate::store::Store;
use crate::store::embedded::{self, EmbeddedStore};
use crate::{clock, cpu};

/// Runs a node until SIGTERM or SIGINT, drains it, and returns.
pub async fn run(settings: Settings) -> Result<()> {
    // The libraries of etcd, Cassandra and the peers bring two providers of cryptography, and take neither by themselves.
    // It fails only where one is chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store: Arc<dyn Store> = match &settings.cluster {
        None => Arc::new(open(&settings.data_dir, settings.shards)?),
        Some(chosen) => cluster::open_store(&settings, chosen).await?,
    };
    let inboxes: Vec<Arc<Inbox>> = (0..settings.workers).map(|_| Arc::default()).collect();
    let commits = Arc::new(Commits::new(settings.shards, inboxes.clone()));

    let mut membership = match &settings.cluster {
        None => None,
        Some(chosen) => Some(Membership::join(&settings, chosen, &commits).await?),
    };

    let own = policy::StoreBackend::new(store.clone(), partials(&commits, &store));
    let backend: Arc<dyn policy::Backend> = match &membership {
        None => Arc::new(own),
        Some(membership) => Arc::new(membership.backend(own)),
    };
    let policies = policy::Engine::new(policy::Settings {
        cache_dir: Some(settings.cache_dir.clone()),
        enabled: settings.policies && !node::plugins::switched_off(&*store).await?,
        backend: Some(backend),
        limits: policy::Limits { component_bytes: settings.plugin_bytes_max, ..policy::Limits::default() },
        trust: policy::Trust::new(&settings.plugin_keys)?,
        ..policy::Settings::default()
    })?;
    let catalog = Arc::new(policy::Catalog::with_builtins(&policies)?);
    node::plugins::load_stored(&*store, &policies, &catalog).await?;

    let commit_settings = commit::Settings {
        key_window: settings.idempotency_window,
        replay_bytes: match &settings.cluster {
            None => limits::REPLAY_BYTES,
            Some(_) => limits::CLUSTER_REPLAY_BYTES,
        },
        resident_max: settings.resident_counters.div_ceil(settings.shards as usize),
    };
    let threads = match &settings.cluster {
        None => commit::spawn(&commits, &store, commit_settings).context("the journal cannot be replayed")?,
        Some(chosen) => commit::spawn_lanes(&commits, &store, commit_settings, chosen.appends_max)?,
    };

    let node_settings = node::Settings { id: settings.node_id.clone() };
    let place = membership.as_ref().map(Membership::cluster);
    let node = Node::new(node_settings, store, commits.clone(), policies, catalog, place).await;
    let node = Arc::new(node.context("the rules that are stored cannot be put in force")?);
    publish_view(&node);

    let main = server::bind(settings.listen).with_context(|| format!("cannot listen on {}", settings.listen))?;
    let address = main.local_addr()?;
    let compat = bind_compat(&settings)?;
    let resp = settings.resp_listen.map(|address| {
        server::bind(address).with_context(|| format!("cannot listen on {address} for clients of Redis"))
    });
    let resp = resp.transpose()?;
    let server = Server::start(
        node.clone(),
        &inboxes,
        server::Settings {
            admin_token: settings.admin_token.as_ref().map(|token| token.expose().to_owned()),
            advertise: advertised(address).to_string(),
            drain_timeout: settings.drain_timeout,
        },
    )?;
    if let Some(membership) = &mut membership {
        membership.start(&node, commit_settings, advertised(address).to_string())?;
    }
    let sampling = tokio::spawn(sample(node.clone(), membership.as_ref().map(|membership| membership.etcd.clone())));
    announce(address, &compat, resp.as_ref())?;

    let accepting = async {
        let main = [(Speaks::Http(Listener::Main), main)].into_iter();
        let shards = compat.into_iter().map(|(shard, socket)| (Speaks::Http(Listener::CompatShard(shard)), socket));
        let resp = resp.into_iter().map(|socket| (Speaks::Resp, socket));
        let all = main.chain(shards).chain(resp).map(|(speaks, socket)| server.accept(socket, speaks));
        futures_util::future::try_join_all(all).await
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let until_told = async {
        tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            // Only damaged data ends the commit thread; `join` below says how.
            () = commits.ended() => None,
        }
    };
    let until_left = async {
        let told: Option<anyhow::Error> = until_told.await;
        if let Some(membership) = &membership {
            info!("stopping: shards are handed over while requests go on");
            node.leaving();
            membership.leave(limits::HAND_OVER_TIMEOUT.min(settings.drain_timeout)).await;
        }
        told
    };
    let failed = tokio::select! {
        ended = accepting => Some(anyhow!("the listening sockets ended: {:?}", ended.err())),
        told = until_left => told,
    };
    info!("stopping: open requests finish, then the journal is closed");
    sampling.abort();
    // Requests under way need this thread: it carries them to other nodes.
    tokio::task::spawn_blocking(move || server.drain()).await?;
    if let Some(membership) = &membership {
        membership.flush(&commits, limits::HAND_OVER_TIMEOUT).await;
        node.write_rollups().await;
    }
    commits.stop();
    let joined = tokio::task::spawn_blocking(move || threads.join()).await?;
    joined.context("counting ended; everything that was acknowledged is in the journal")?;
    if let Some(membership) = membership {
        membership.end().await;
    }
    failed.map_or(Ok(()), Err)
}

/// Makes the store of a cluster, or brings it to this version. Returns what was done, in one sentence.
pub async fn init_store(settings: &Settings) -> Result<String> {
    let chosen = settings.cluster.as_ref().context("--cassandra is missing: it says where the store is to be made")?;
    cluster::init_store(settings, chosen).await
}

fn open(data_dir: &Path, shards: u32) -> Result<EmbeddedStore> {
    EmbeddedStore::open(embedded::Settings::new(data_dir, shards))
        .with_context(|| format!("cannot use the data directory {}", data_dir.display()))
}

fn bind_compat(settings: &Settings) -> Result<Vec<(u32, std::net::TcpListener)>> {
    let Some(first) = settings.compat_shard_listen else { return Ok(Vec::new()) };
    let bound = (0..settings.shards).map(|shard| {
        let mut address = first;
        if first.port() != 0 {
            let port = u32::from(first.port()) + shard;
            address.set_port(
                u16::try_from(port).context("--compat-shard-listen: the ports of the last shards are above 65535")?,
            );
        }
        let socket = server::bind(address).with_context(|| format!("cannot listen on {address} for shard {shard}"))?;
        Ok((shard, socket))
    });
    bound.collect()
}

/// A wildcard address is no address that a client can use.
fn advertised(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The first line on stdout, for people and for scripts that wait for it.
fn announce(
    address: std::net::SocketAddr,
    compat: &[(u32, std::net::TcpListener)],
    resp: Option<&std::net::TcpListener>,
) -> Result<()> {
    use std::io::Write;
    let mut line = format!("quipu ready http={}", advertised(address));
    for (shard, socket) in compat {
        line.push_str(&format!(" shard{shard}={}", socket.local_addr()?));
    }
    if let Some(socket) = resp {
        line.push_str(&format!(" resp={}", advertised(socket.local_addr()?)));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// How policies read partials of the shards that this node serves through their `storage` import.
fn partials(commits: &Arc<Commits>, store: &Arc<dyn Store>) -> policy::imports::backend::Partials {
    let (commits, store) = (commits.clone(), store.clone());
    Box::new(move |counter, shard| {
        let (commits, store, id) = (commits.clone(), store.clone(), Id::new(counter));
        Box::pin(async move {
            let unavailable = policy::imports::Unavailable;
            let id = id.map_err(|_| unavailable)?;
            let Some(table) = commits.tables.get(shard as usize) else { return Ok(None) };
            let resident = match table.partials.read().get(key_hash(id.as_str()), &id) {
                Resident::Present(partial) => Some(Some(partial.clone())),
                Resident::Missing => Some(None),
                Resident::Unloaded => None,
            };
            let partial = match resident {
                Some(partial) => partial,
                None => store.load(shard, &id).await.map_err(|_| unavailable)?,
            };
            Ok(partial.filter(|partial| !partial.removed).map(|partial| partial.value))
        })
    })
}

/// Once a second: CPU use, steps of the wall clock, and the picture of the shards that policies see.
async fn sample(node: Arc<Node>, etcd: Option<Arc<Etcd>>) {
    let mut sampler = cpu::Sampler::new();
    let mut watch = clock::steps::Watch::new(clock::now());
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let cpu = sampler.sample().clamp(0.0, 1.0);
        node.stats.cpu_micros.store((cpu * 1e6) as u64, Ordering::Relaxed);
        node.policies.set_node_cpu(cpu);
        watch.look(clock::now(), &node.stats.clock_steps);
        match &etcd {
            None => publish_view(&node),
            Some(etcd) => {
                etcd.update_node(|info| (info.cpu, info.queued) = (cpu, node.commits.queued() as u64));
                node.policies.publish(cluster::view(&etcd.picture(), &node));
            }
        }
        node.judge_canaries().await;
        node.move_busy_policies().await;
    }
}

fn publish_view(node: &Node) {
    let cpu = node.stats.cpu_micros.load(Ordering::Relaxed) as f64 / 1e6;
    let shards = (0u32..).zip(&node.commits.tables).map(|(shard, table)| ShardInfo {
        shard,
        available: node.ready(),
        local: true,
        owner_cpu: cpu,
        queued: table.queued.load(Ordering::Relaxed),
    });
    node.policies.publish(View { version: 0, shards: shards.collect() });
}
