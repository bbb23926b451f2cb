//! Several nodes of one cluster: started, killed, paused, stopped, and started again at the same addresses.
//!
//! What harms the services is in `services`, what drives load in `traffic`. One cluster at a time runs in a test program,
//! since its tests share two cores and measure times.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::{Ended, Launch, Server};
use crate::services::Services;
use crate::{PATIENCE, within};

/// The lease of the tests' nodes: a dead node's shards are claimed after it.
pub const LEASE: Duration = Duration::from_secs(2);
/// Shards of a cluster, as nodes have by default.
pub const SHARDS: u32 = 12;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub struct Cluster {
    pub name: String,
    pub services: Arc<Services>,
    nodes: BTreeMap<String, Place>,
    _turn: MutexGuard<'static, ()>,
}

/// A node that runs, or that ran and can be started again.
struct Place {
    launch: Launch,
    server: Option<Server>,
}

impl Cluster {
    /// Nodes `n1`, `n2`, … on the services that run already, once each shard is served; None if there are no services.
    pub fn start(nodes: usize) -> Option<Self> {
        Some(Self::on(Arc::new(Services::shared()?), nodes))
    }

    pub fn on(services: Arc<Services>, nodes: usize) -> Self {
        let mut cluster = Self::empty(services);
        (1..=nodes).for_each(|n| cluster.add_node(&format!("n{n}")));
        cluster.await_balance();
        cluster
    }

    /// A fresh cluster without a node.
    pub fn empty(services: Arc<Services>) -> Self {
        // A test that failed while it had its turn has nothing to do with the next one.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("test_{}_{:08x}", std::process::id(), rand::random::<u32>());
        Self { name, services, nodes: BTreeMap::new(), _turn: turn }
    }

    /// How its nodes are started.
    pub fn launch(&self, node: &str) -> Launch {
        self.launch_at(node, &self.services.cassandra)
    }

    /// As [`Cluster::launch`], with Cassandra at another place.
    pub fn launch_at(&self, node: &str, cassandra: &str) -> Launch {
        let cassandra_nodes = self.services.cassandra_nodes();
        let launch = match self.services.network() {
            Some(network) => Launch::new()
                .wrapped(network.wrapper(node))
                .listen(format!("{}:0", network.address(node)))
                .flag("--peer-listen", format!("{}:0", network.address(node)))
                .admin_token("of-the-tests"),
            None => Launch::new().flag("--peer-listen", "127.0.0.1:0"),
        };
        let launch = match self.services.secrets() {
            Some(secrets) => secured(launch, &secrets),
            None => launch,
        };
        launch
            .flag("--node-id", node)
            .flag("--etcd", &self.services.etcd)
            .flag("--cassandra", cassandra)
            .flag("--cluster", &self.name)
            .flag("--create-schema", "on")
            .flag("--replication", cassandra_nodes.to_string())
            .flag("--lease-ttl-ms", LEASE.as_millis().to_string())
    }

    /// Starts a node with the usual settings.
    pub fn add_node(&mut self, node: &str) {
        let launch = self.launch(node);
        self.add_launched(node, launch);
    }

    pub fn add_launched(&mut self, node: &str, launch: Launch) {
        let server = launch.start();
        // It comes back at the same address, as behind a service of fixed names.
        let launch = launch.listen(server.addr.to_string());
        let before = self.nodes.insert(node.to_owned(), Place { launch, server: Some(server) });
        assert!(before.is_none(), "{node} is there already");
    }

    /// A running node.
    pub fn node(&self, node: &str) -> &Server {
        let place = self.nodes.get(node).unwrap_or_else(|| panic!("there is no {node}"));
        place.server.as_ref().unwrap_or_else(|| panic!("{node} does not run"))
    }

    /// The names of the nodes that run.
    pub fn running(&self) -> Vec<String> {
        self.nodes.iter().filter(|(_, place)| place.server.is_some()).map(|(name, _)| name.clone()).collect()
    }

    pub fn servers(&self) -> Vec<&Server> {
        self.nodes.values().filter_map(|place| place.server.as_ref()).collect()
    }

    /// Where all nodes listen, also those that do not run now.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let address = |place: &Place| place.launch.address();
        self.nodes.iter().map(|(name, place)| (name.clone(), address(place))).collect()
    }

    fn take(&mut self, node: &str) -> Server {
        let place = self.nodes.get_mut(node).unwrap_or_else(|| panic!("there is no {node}"));
        place.server.take().unwrap_or_else(|| panic!("{node} does not run"))
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: &str) {
        self.take(node).kill();
    }

    /// SIGTERM and the end that follows, which must be orderly.
    pub fn stop(&mut self, node: &str) -> Ended {
        let (ended, _) = self.take(node).stop();
        assert_eq!(ended.code(), 0, "{node}: {}", ended.output);
        ended
    }

    /// Starts a node again that was killed or stopped.
    pub fn start_again(&mut self, node: &str) {
        let place = self.nodes.get_mut(node).unwrap_or_else(|| panic!("there is no {node}"));
        assert!(place.server.is_none(), "{node} runs");
        place.server = Some(place.launch.start());
    }

    /// The state of the cluster as a node tells it.
    pub fn seen_by(&self, node: &str) -> Value {
        self.node(node).get("/v1/cluster").expect(200).json()
    }

    /// Who serves each shard, as a node tells it; None for shards that nobody serves.
    pub fn owners(&self, node: &str) -> Vec<Option<String>> {
        let seen = self.seen_by(node);
        let shards = seen["shards"].as_array().expect("a list");
        assert_eq!(shards.len(), SHARDS as usize, "{seen}");
        shards.iter().map(|shard| shard["owner"].as_str().map(str::to_owned)).collect()
    }

    pub fn shards_of(&self, node: &str) -> BTreeSet<u32> {
        let asked = self.running();
        let owners = self.owners(asked.first().expect("a node runs"));
        (0u32..).zip(owners).filter(|(_, owner)| owner.as_deref() == Some(node)).map(|(shard, _)| shard).collect()
    }

    /// Whether every running node sees every shard served by a running node, and each node that may has its share.
    fn balanced(&self) -> bool {
        let running = self.running();
        let share = SHARDS as usize / running.len();
        running.iter().all(|asked| {
            let owners = self.owners(asked);
            let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
            for owner in &owners {
                let Some(owner) = owner else { return false };
                *shares.entry(owner).or_default() += 1;
            }
            let expected = |node: &String| shares.get(node.as_str()).is_some_and(|&shards| shards >= share);
            shares.len() == running.len() && running.iter().all(expected)
        })
    }

    /// Waits until the running nodes share all shards evenly. Returns how long that took.
    pub fn await_balance(&self) -> Duration {
        let began = Instant::now();
        let what = format!("{:?} share the shards", self.running());
        within(2 * PATIENCE, &what, || self.balanced().then_some(()));
        began.elapsed()
    }

    /// Waits until a node sees every shard served, by others than `gone`. Returns how long that took.
    pub fn await_served(&self, asked: &str, gone: &str) -> Duration {
        let began = Instant::now();
        let served = |owner: &Option<String>| owner.as_deref().is_some_and(|owner| owner != gone);
        within(2 * PATIENCE, "every shard is served", || self.owners(asked).iter().all(served).then_some(()));
        began.elapsed()
    }

    /// Counts everything again from the store, and fails on a difference from what is served.
    pub fn verify(&self) {
        let running = self.running();
        let node = self.node(running.first().expect("a node runs"));
        // A node that is too busy to answer in time is asked again, as the refusal says.
        let audit = within(PATIENCE, "the audit is made", || {
            let answer = node.post("/v1/cluster/verify", Value::Null);
            (answer.status != 503).then_some(answer)
        });
        let audit = audit.expect(200).json();
        assert_eq!(audit["differences"], serde_json::json!([]), "{audit}");
    }
}

/// With what a node needs to be let in by secured services and by the other nodes: see `tests/services/secure.sh`.
fn secured(launch: Launch, secrets: &Path) -> Launch {
    [
        ("QUIPU_ETCD_PASSWORD_FILE", "etcd-password"),
        ("QUIPU_ETCD_CA", "ca.pem"),
        ("QUIPU_ETCD_CERT", "own.pem"),
        ("QUIPU_ETCD_KEY", "own-key.pem"),
        ("QUIPU_CASSANDRA_PASSWORD_FILE", "cassandra-password"),
        ("QUIPU_CASSANDRA_CA", "ca.pem"),
        ("QUIPU_CASSANDRA_CERT", "own.pem"),
        ("QUIPU_CASSANDRA_KEY", "own-key.pem"),
        ("QUIPU_PEER_CA", "ca.pem"),
        ("QUIPU_PEER_CERT", "own.pem"),
        ("QUIPU_PEER_KEY", "own-key.pem"),
    ]
    .into_iter()
    .fold(launch, |launch, (name, file)| launch.env(name, secrets.join(file)))
    .env("QUIPU_ETCD_USER", "root")
    .env("QUIPU_CASSANDRA_USER", "cassandra")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        if let Err(why) = self.services.drop_keyspace(&self.name) {
            eprintln!("the keyspace {} stays: {why}", self.name);
        }
    }
}
