//! A node of a cluster: its registry, its store, its peers, and the shards that come to it.
//!
//! Who tells whom: the registry's picture becomes the [`Map`] that operations and questions follow, the [`Snapshot`] of
//! rules that the node puts in force, and what the agent decides shards by. The agent tells the commit thread to take
//! shards over and to hand them over; the store alone decides who writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::ServerTlsConfig;
use tracing::{info, warn};

use super::backend::ClusterBackend;
use crate::cluster::{Agent, Config, Shards};
use crate::commit::{self, Commits, Followers};
use crate::error::{Error, Kind};
use crate::limits;
use crate::node::{self, Node};
use crate::panics;
use crate::peer::links::Driver;
use crate::peer::service::Service;
use crate::peer::{self, Identity, Links, Map, Member, Owner, Questions, Receiver};
use crate::policy::{self, ShardInfo, View};
use crate::registry::etcd::{self, Etcd};
use crate::registry::formats::Finalized;
use crate::registry::picture::{self, NodeInfo, Picture, State};
use crate::registry::{History, Shared, Snapshot};
use crate::settings::cluster::{Cluster as Chosen, Credentials, Role, TlsFiles};
use crate::settings::{Secret, Settings};
use crate::store::{self, Store, cassandra};

/// Opens the store that the cluster shares, after making it if that is allowed.
pub async fn open_store(settings: &Settings, chosen: &Chosen) -> Result<Arc<dyn Store>> {
    let settings = store_settings(settings, chosen);
    let until = Instant::now() + limits::STORE_START_PATIENCE;
    loop {
        match try_to_open(&settings, chosen.create_schema).await {
            Ok(store) => return Ok(store),
            // It is there, and too busy to answer. One that nobody can connect to is a mistake, or started again with us.
            Err(why @ store::Error::NotApplied(_)) if Instant::now() < until => {
                warn!("Cassandra is asked again: {why}")
            }
            Err(why) => return Err(why.into()),
        }
        tokio::time::sleep(limits::OWNER_RETRY).await;
    }
}

async fn try_to_open(settings: &cassandra::Settings, create_schema: bool) -> Result<Arc<dyn Store>, store::Error> {
    if create_schema {
        cassandra::init(settings).await?;
    }
    Ok(cassandra::open(settings.clone()).await?)
}

pub async fn init_store(settings: &Settings, chosen: &Chosen) -> Result<String> {
    let done = cassandra::init(&store_settings(settings, chosen)).await?;
    let (name, shards, copies) = (&chosen.name, settings.shards, chosen.replication);
    Ok(match done {
        cassandra::Initialised::Created => {
            format!("The keyspace {name} is made: {shards} shards, {copies} copies of everything.")
        }
        cassandra::Initialised::Migrated { from } => {
            format!("The keyspace {name} is brought from schema version {from} to this program's.")
        }
        cassandra::Initialised::AlreadyThere => format!("The keyspace {name} is there already; nothing was changed."),
    })
}

/// How Cassandra is reached, for a node and for `quipu store init`.
pub fn store_settings(settings: &Settings, chosen: &Chosen) -> cassandra::Settings {
    let Credentials { user, password, tls } = &chosen.cassandra_credentials;
    let user = user.clone().zip(password.as_ref().map(|password| password.expose().to_owned()));
    let tls = tls.as_ref().map(|TlsFiles { ca, own }| cassandra::Tls { ca: ca.clone(), client: own.clone() });
    cassandra::Settings {
        replication_factor: chosen.replication,
        user,
        tls,
        key_window: settings.idempotency_window,
        ..cassandra::Settings::new(chosen.cassandra.clone(), chosen.name.clone(), settings.shards)
    }
}

/// This node's place in the cluster, from its first registration to its leave.
pub struct Membership {
    pub etcd: Arc<Etcd>,
    map: watch::Sender<Arc<Map>>,
    links: Arc<Links>,
    receiver: Arc<Receiver>,
    questions: Questions,
    identity: Option<Identity>,
    sockets: Option<tokio::net::TcpListener>,
    agent: Option<Agent>,
}

impl Membership {
    /// Binds the address for peers and registers with etcd; not ready for shards yet. A node that died and starts again
    /// waits until the lease of its predecessor has ended.
    pub async fn join(settings: &Settings, chosen: &Chosen, commits: &Arc<Commits>) -> Result<Self> {
        let identity = chosen.peer_tls.as_ref().map(identity).transpose()?;
        let socket = crate::front::server::bind(chosen.peer_listen)
            .with_context(|| format!("cannot listen on {} for other nodes", chosen.peer_listen))?;
        let bound = socket.local_addr()?;
        let peer_address = match &chosen.advertise {
            // Port 0 is only known now.
            Some(address) => {
                address.strip_suffix(":0").map_or_else(|| address.clone(), |host| format!("{host}:{}", bound.port()))
            }
            None => address_towards(bound, &chosen.etcd),
        };
        let Credentials { user, password, tls } = chosen.etcd_credentials.clone();
        let etcd = Etcd::connect(etcd::Settings {
            endpoints: chosen.etcd.clone(),
            cluster: chosen.name.clone(),
            shards: settings.shards,
            user,
            password: password.as_ref().map(Secret::expose).map(ToOwned::to_owned),
            tls: tls.map(|TlsFiles { ca, own }| {
                let (certificate, key) = own.unzip();
                etcd::Tls { ca: Some(ca), certificate, key, domain: None }
            }),
            lease_ttl: chosen.lease_ttl,
            node: NodeInfo {
                id: settings.node_id.clone(),
                incarnation: rand::random(),
                http_address: String::new(),
                peer_address,
                version: env!("CARGO_PKG_VERSION").into(),
                role: match chosen.role {
                    Role::All => picture::Role::All,
                    Role::Gateway => picture::Role::Gateway,
                    Role::Shard => picture::Role::Shard,
                },
                cpu: 0.0,
                queued: 0,
                ready: false,
                draining: false,
                formats: (1, limits::FORMAT),
            },
        });
        let etcd = Arc::new(etcd.await.map_err(|why| anyhow!("{why}")).context("cannot join the cluster")?);
        // Nothing is counted before this node has the rules, and before others wait for it when they change them.
        let mut pictures = etcd.pictures();
        let registered = pictures.wait_for(|picture| picture.session.healthy);
        let patience = chosen.lease_ttl + limits::REGISTRY_CONNECT_TIMEOUT;
        if !matches!(tokio::time::timeout(patience, registered).await, Ok(Ok(_))) {
            bail!(
                "cannot join the cluster: not registered in etcd as node {} within {patience:?}; the log says why, such as \
                 another process of that name",
                settings.node_id
            );
        }
        let map = watch::Sender::new(Arc::new(map_of(&etcd.picture(), etcd.node_id(), etcd.incarnation(), commits)));
        Ok(Self {
            links: Links::new(settings.shards),
            receiver: Receiver::new(commits.clone()),
            questions: Questions::new(map.subscribe(), identity.clone()),
            map,
            identity,
            sockets: Some(tokio::net::TcpListener::from_std(socket)?),
            agent: None,
            etcd,
        })
    }

    /// What the node needs of it.
    pub fn cluster(&self) -> node::Cluster {
        node::Cluster {
            peers: node::Peers {
                links: self.links.clone(),
                questions: self.questions.clone(),
                pictures: self.etcd.pictures(),
                standing: self.etcd.standing(),
            },
            registry: Arc::new(SharedEtcd(self.etcd.clone())),
            snapshot: snapshot_of(&self.etcd.picture()),
        }
    }

    /// What policies read and write; `own` is what they read and write on this node.
    pub fn backend(&self, own: policy::StoreBackend) -> ClusterBackend {
        ClusterBackend {
            etcd: self.etcd.clone(),
            values: own,
            questions: self.questions.clone(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Serves peers, follows the registry, and takes part in the distribution of shards.
    pub fn start(&mut self, node: &Arc<Node>, settings: commit::Settings, http_address: String) -> Result<()> {
        let Some(socket) = self.sockets.take() else { bail!("a node joins once") };
        let commits = &node.commits;
        let of_rules = node.clone();
        self.receiver.hold_to(move |op| of_rules.hold_to_bounds(op));
        tokio::spawn(panics::owned("what answers other nodes", self.receiver.clone().run()));
        let driver = Driver::new(
            self.links.clone(),
            commits.clone(),
            self.receiver.clone(),
            self.map.subscribe(),
            self.identity.clone(),
        );
        tokio::spawn(panics::owned("the links to other nodes", driver.run()));
        let mut server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(limits::PEER_KEEP_ALIVE.0))
            .http2_keepalive_timeout(Some(limits::PEER_KEEP_ALIVE.1))
            .initial_stream_window_size(8 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .tcp_nodelay(true);
        if let Some(identity) = &self.identity {
            server = server.tls_config(
                ServerTlsConfig::new().identity(identity.own.clone()).client_ca_root(identity.ca.clone()),
            )?;
        }
        let service = Service::new(node.clone(), self.receiver.clone());
        let serving = server.add_service(service).serve_with_incoming(TcpListenerStream::new(socket));
        tokio::spawn(async move {
            if let Err(why) = serving.await {
                tracing::error!("other nodes are not served any more: {why}");
            }
        });
        let (links, of_strays) = (self.links.clone(), commits.clone());
        tokio::spawn(async move {
            let mut strays = Vec::new();
            loop {
                of_strays.strays.take(&mut strays).await;
                links.submit(strays.drain(..));
            }
        });
        tokio::spawn(node.clone().write_rollups_regularly());
        tokio::spawn(panics::owned("what follows the rules", follow_rules(self.etcd.pictures(), node.clone())));
        let map = follow_map(self.etcd.clone(), commits.clone(), self.map.clone());
        tokio::spawn(panics::owned("what follows the owners of shards", map));
        self.etcd.update_node(|info| (info.http_address, info.ready) = (http_address, true));
        let config = Config {
            node: self.etcd.node_id().into(),
            incarnation: self.etcd.incarnation(),
            shards: node.shards,
            lease_ttl: self.etcd.lease_ttl(),
        };
        let shards = CommitShards {
            commits: commits.clone(),
            receiver: self.receiver.clone(),
            followers: Followers::new(commits.clone(), node.store.clone(), settings),
            lost: Mutex::default(),
        };
        write_format(&self.etcd.pictures().borrow(), commits);
        self.agent = Some(Agent::start(config, self.etcd.clone(), Arc::new(shards)));
        Ok(())
    }

    /// Hands every shard to the other nodes. Requests are served all the while.
    pub async fn leave(&self, within: Duration) {
        self.etcd.update_node(|info| info.draining = true);
        let Some(agent) = &self.agent else { return };
        if !agent.drain(within).await {
            warn!("not every shard could be handed over in time; the others take them when the lease ends");
        }
    }

    /// Waits until everything that was taken here is with the shards' owners: relaxed operations have nobody else who would
    /// send them again.
    pub async fn flush(&self, commits: &Commits, within: Duration) {
        let empty = async {
            // What was refused at the commit thread comes to the links a moment later.
            let mut seen_empty = 0;
            while seen_empty < 3 {
                let waiting = self.links.waiting() + commits.queued();
                seen_empty = if waiting == 0 { seen_empty + 1 } else { 0 };
                tokio::time::sleep(limits::MOVED_RETRY).await;
            }
        };
        if tokio::time::timeout(within, empty).await.is_err() {
            let left = self.links.waiting() + commits.queued();
            warn!("{left} operations could not be passed on in time; relaxed ones among them are lost with this node");
        }
    }

    /// Takes this node out of the registry.
    pub async fn end(self) {
        self.etcd.close().await;
    }
}

fn identity(files: &TlsFiles) -> Result<Identity> {
    let TlsFiles { ca, own: Some((certificate, key)) } = files.clone() else { bail!("nodes need a certificate") };
    Ok(peer::Tls { ca, certificate, key }.read()?)
}

/// The address of this host on the way to etcd: the others are most likely there too.
fn address_towards(bound: SocketAddr, etcd: &[String]) -> String {
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    let towards = etcd.iter().filter_map(|url| {
        let uri: http::Uri = url.parse().ok()?;
        let address = (uri.host()?, uri.port_u16().unwrap_or(2379)).to_socket_addrs().ok()?.next()?;
        // Connecting a datagram socket sends nothing.
        let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
        socket.connect(address).ok()?;
        Some(SocketAddr::new(socket.local_addr().ok()?.ip(), bound.port()).to_string())
    });
    let mut towards = towards;
    towards.next().unwrap_or_else(|| bound.to_string())
}

async fn follow_rules(mut pictures: watch::Receiver<Arc<Picture>>, node: Arc<Node>) {
    loop {
        let snapshot = snapshot_of(&pictures.borrow_and_update().clone());
        if snapshot.revision > node.followed() {
            while let Err(why) = node.follow(snapshot.clone()).await {
                warn!("a change of the registry is not in force here yet: {why}");
                tokio::time::sleep(limits::OWNER_RETRY).await;
            }
        }
        if pictures.changed().await.is_err() {
            return;
        }
    }
}

/// How often the map is compared with what this node serves, between two changes of the registry.
const MAP_INTERVAL: Duration = Duration::from_millis(50);

async fn follow_map(etcd: Arc<Etcd>, commits: Arc<Commits>, map: watch::Sender<Arc<Map>>) {
    let mut pictures = etcd.pictures();
    loop {
        let picture = pictures.borrow_and_update().clone();
        write_format(&picture, &commits);
        let now = Arc::new(map_of(&picture, etcd.node_id(), etcd.incarnation(), &commits));
        map.send_if_modified(|known| {
            let changed = **known != *now;
            *known = now;
            changed
        });
        if let Ok(Err(_)) = tokio::time::timeout(MAP_INTERVAL, pictures.changed()).await {
            return;
        }
    }
}

/// Entries are written as the cluster has agreed.
fn write_format(picture: &Picture, commits: &Commits) {
    // Nothing is known before the first list: then what every node reads is written.
    commits.write_format(picture.config.as_ref().map_or(1, |config| config.value.format));
}

/// Operations go to whoever serves: this node by its own knowledge, others by what they announced.
fn map_of(picture: &Picture, own: &str, incarnation: u64, commits: &Commits) -> Map {
    let nodes: BTreeMap<String, Member> = picture
        .nodes
        .iter()
        .filter(|(name, _)| *name != own)
        .map(|(name, info)| {
            let (address, incarnation) = (info.peer_address.clone(), format!("{:016x}", info.incarnation));
            (name.clone(), Member { address, incarnation })
        })
        .collect();
    let owner = |shard: u32| match picture.owners.get(&shard) {
        _ if commits.serves(shard) => Owner::This,
        Some(owner) if owner.state != State::Serving || (owner.node == own && owner.incarnation == incarnation) => {
            Owner::None
        }
        Some(owner) if nodes.contains_key(&owner.node) => Owner::Other(owner.node.clone()),
        Some(_) | None => Owner::None,
    };
    Map { owners: (0..commits.tables.len() as u32).map(owner).collect(), nodes }
}

/// What policies see: who serves each shard, and how busy that node is.
pub fn view(picture: &Picture, node: &Node) -> View {
    let Some(peers) = &node.peers else { return View::default() };
    let map = peers.questions.map();
    let own_cpu = node.stats.cpu_micros.load(std::sync::atomic::Ordering::Relaxed) as f64 / 1e6;
    let shards = (0u32..).zip(&map.owners).map(|(shard, owner)| {
        let local = *owner == Owner::This;
        let info = match owner {
            Owner::Other(name) => picture.nodes.get(name),
            Owner::This | Owner::None => None,
        };
        let queued = &node.commits.tables[shard as usize].queued;
        ShardInfo {
            shard,
            local,
            available: local || (info.is_some() && peers.links.reachable(shard)),
            owner_cpu: if local { own_cpu } else { info.map_or(0.0, |info| info.cpu) },
            queued: match info {
                None => queued.load(std::sync::atomic::Ordering::Relaxed),
                Some(info) => u32::try_from(info.queued).unwrap_or(u32::MAX),
            },
        }
    });
    View { version: 0, shards: shards.collect() }
}

fn snapshot_of(picture: &Picture) -> Snapshot {
    let rules =
        picture.rules.iter().map(|(prefix, revised)| (prefix.clone(), (revised.value.clone(), revised.mod_revision)));
    let plugins = picture.plugins.iter().map(|(digest, plugin)| (digest.clone(), plugin.name.clone()));
    Snapshot { revision: picture.revision, rules: rules.collect(), plugins: plugins.collect() }
}

struct SharedEtcd(Arc<Etcd>);

#[async_trait]
impl Shared for SharedEtcd {
    async fn save_rule(&self, prefix: &str, history: &History, expected: Option<i64>) -> Result<i64, Error> {
        Ok(self.0.save_rule(prefix, history, expected).await?)
    }

    async fn announce_plugin(&self, name: &str, digest: &str) -> Result<(), Error> {
        Ok(self.0.announce_plugin(digest, name).await?)
    }

    async fn withdraw_plugin(&self, digest: &str) -> Result<(), Error> {
        Ok(self.0.withdraw_plugin(digest).await?)
    }

    async fn finalize(&self) -> Result<Finalized, Error> {
        Ok(self.0.finalize().await?)
    }
}

/// The commit thread, as the agent sees it.
struct CommitShards {
    commits: Arc<Commits>,
    receiver: Arc<Receiver>,
    followers: Followers,
    /// Taken from the commit thread and not told to the agent yet.
    lost: Mutex<VecDeque<u32>>,
}

#[async_trait]
impl Shards for CommitShards {
    async fn take_over(&self, shard: u32) -> Result<u64, Error> {
        let epoch = self.commits.take_over(shard).await;
        epoch
            .inspect(|epoch| info!("shard {shard} is served here under epoch {epoch}"))
            .map_err(|why| Error::new(Kind::Unavailable, format!("Shard {shard} could not be taken over: {why}.")))
    }

    async fn hand_over(&self, shard: u32) {
        self.commits.hand_over(shard).await;
        self.receiver.forget(shard);
    }

    fn stand_by(&self, shards: &BTreeSet<u32>) {
        self.followers.follow(shards);
    }

    async fn lost(&self) -> u32 {
        loop {
            if let Some(shard) = self.lost.lock().pop_front() {
                self.receiver.forget(shard);
                return shard;
            }
            let mut lost = Vec::new();
            self.commits.lost.take(&mut lost).await;
            self.lost.lock().extend(lost);
        }
    }
}
