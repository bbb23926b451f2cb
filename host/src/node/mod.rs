//! The node: how one request goes its way through rules, policies, shard writers and tables.
//!
//! `worker` is what each serving thread owns; `write` and `read` are the two ways; `rules` changes what governs them. No
//! protocol lives here: `http` parses and answers.

pub mod activation;
mod bounds;
pub mod cluster;
pub mod list;
pub mod operations;
mod placements;
pub mod plugins;
pub mod read;
pub mod recordings;
pub mod rollout;
pub mod rollups;
pub mod rules;
pub mod slots;
pub mod totals;
pub mod verify;
pub mod watch;
pub mod worker;
pub mod write;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::commit::Commits;
use crate::counter::{self, Candidates, Id};
use crate::error::Error;
use crate::limits;
use crate::peer::{Links, Questions};
use crate::policy;
use crate::registry::{self, History, Picture};
use crate::store::Store;
pub use rules::{ActiveRule, RuleTable};
pub use worker::Worker;

/// What all serving threads share.
pub struct Node {
    pub id: String,
    pub shards: u32,
    pub began: Instant,
    pub store: Arc<dyn Store>,
    pub commits: Arc<Commits>,
    pub policies: Arc<policy::Engine>,
    pub catalog: Arc<policy::Catalog>,
    /// The other nodes; None in a single process.
    pub peers: Option<Peers>,
    pub stats: Stats,
    rules: ArcSwap<RuleTable>,
    /// Rises after each change of `rules`, so that a serving thread sees by one load whether its own are still right.
    rules_generation: AtomicU64,
    /// Of each of the tables that some request may still go by, whether one does.
    tables_in_use: parking_lot::Mutex<Vec<Weak<()>>>,
    /// Held while this node changes a rule, so that its changes are one after the other.
    changing: tokio::sync::Mutex<()>,
    /// What is known of rules; never held while other nodes are waited for.
    registry: tokio::sync::Mutex<Registry>,
    /// The revision of the shared registry up to which everything is in force here.
    followed: tokio::sync::watch::Sender<i64>,
    /// Held while a plugin is uploaded or removed.
    uploading: tokio::sync::Mutex<()>,
    /// Places for uploads whose bytes are in memory.
    uploads: Arc<tokio::sync::Semaphore>,
    /// Places for recordings that are under way.
    recordings: Arc<tokio::sync::Semaphore>,
    placements: placements::Placements,
    totals: totals::Totals,
    rollups: rollups::Rollups,
    leaving: AtomicBool,
}

/// How a node of a cluster reaches the others.
#[derive(Clone)]
pub struct Peers {
    pub links: Arc<Links>,
    pub questions: Questions,
    /// What all nodes say of themselves.
    pub pictures: tokio::sync::watch::Receiver<Arc<Picture>>,
    /// Whether this node has heard of every change that all must have in force.
    pub standing: Arc<registry::Standing>,
}

struct Registry {
    keeper: Keeper,
    histories: BTreeMap<String, History>,
    /// The newest version there ever was, so that none is used again for another rule.
    newest: u64,
    /// In a shared registry: by prefix, the revision of the last change that is known here.
    revisions: BTreeMap<String, i64>,
    /// In a shared registry: digests of the plugins that were announced last, with their names.
    plugins: BTreeMap<String, String>,
}

/// Where rules are kept.
enum Keeper {
    Local(registry::local::Local),
    Shared(Arc<dyn registry::Shared>),
}

/// What makes a node one of a cluster.
pub struct Cluster {
    pub peers: Peers,
    pub registry: Arc<dyn registry::Shared>,
    /// What the registry holds at the start.
    pub snapshot: registry::Snapshot,
}

/// For `/metrics`.
#[derive(Debug, Default)]
pub struct Stats {
    /// CPU use of this node in millionths, as last sampled.
    pub cpu_micros: AtomicU64,
    pub clock_steps: crate::clock::steps::Steps,
    pub connections: AtomicUsize,
    pub watches: AtomicUsize,
    /// Additions that found all usual shards saturated and could go to more.
    pub widened: AtomicU64,
    /// Relaxed operations that were answered and then not taken, because the node stopped serving in between.
    pub relaxed_lost: AtomicU64,
}

pub struct Settings {
    pub id: String,
}

impl Node {
    /// Reads the rules and binds their policies. A rule whose policy cannot be bound any more stops the start, since
    /// counting under another rule than the one that was set would be worse.
    pub async fn new(
        settings: Settings,
        store: Arc<dyn Store>,
        commits: Arc<Commits>,
        policies: Arc<policy::Engine>,
        catalog: Arc<policy::Catalog>,
        cluster: Option<Cluster>,
    ) -> Result<Self, Error> {
        let (peers, registry, revision) = match cluster {
            None => {
                let local = registry::local::Local::new(store.clone());
                let histories = local.load().await?;
                (
                    None,
                    Registry {
                        keeper: Keeper::Local(local),
                        histories,
                        newest: 0,
                        revisions: BTreeMap::new(),
                        plugins: BTreeMap::new(),
                    },
                    0,
                )
            }
            Some(Cluster { peers, registry, snapshot }) => {
                let revisions = snapshot.rules.iter().map(|(prefix, (_, revision))| (prefix.clone(), *revision));
                let revisions = revisions.collect();
                let histories = snapshot.rules.into_iter().map(|(prefix, (history, _))| (prefix, history)).collect();
                let (keeper, plugins) = (Keeper::Shared(registry), snapshot.plugins);
                let registry = Registry { keeper, histories, newest: 0, revisions, plugins };
                (Some(peers), registry, snapshot.revision)
            }
        };
        let placements = placements::Placements::load(&*store).await?;
        let node = Self {
            id: settings.id,
            shards: u32::try_from(commits.tables.len()).map_err(Error::internal)?,
            began: Instant::now(),
            store,
            commits,
            policies,
            catalog,
            peers,
            stats: Stats::default(),
            rules: ArcSwap::default(),
            rules_generation: AtomicU64::new(0),
            tables_in_use: parking_lot::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            registry: tokio::sync::Mutex::new(registry),
            followed: tokio::sync::watch::Sender::new(revision),
            uploading: tokio::sync::Mutex::default(),
            uploads: Arc::new(tokio::sync::Semaphore::new(limits::UPLOADS_MAX)),
            recordings: Arc::new(tokio::sync::Semaphore::new(limits::RECORDINGS_MAX)),
            placements,
            totals: totals::Totals::default(),
            rollups: rollups::Rollups::default(),
            leaving: AtomicBool::new(false),
        };
        node.load_rules().await?;
        Ok(node)
    }

    pub fn rules(&self) -> arc_swap::Guard<Arc<RuleTable>> {
        self.rules.load()
    }

    /// Takes operations, has finished its start, and does not leave the cluster.
    pub fn ready(&self) -> bool {
        self.commits.serving() && !self.leaving.load(Ordering::Relaxed)
    }

    /// From now on load balancers should send requests elsewhere; those that come are still served.
    pub fn leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Every shard that may hold a partial of the counter, the home shard first.
    fn read_set(&self, id: &Id, hash: u64) -> Candidates {
        let certain = self.is_certain_of_rules();
        counter::candidates(
            hash,
            self.shards,
            self.spread_of_reads(certain, self.rules.load().spread_of_reads(id.as_str())),
        )
    }

    /// Whether the rules that are looked at from now on are those that others count on.
    fn is_certain_of_rules(&self) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.standing.holds(self.followed()))
    }

    /// Over how many shards to read: over all while counters may be spread wider than is known here.
    fn spread_of_reads(&self, certain: bool, known: u32) -> u32 {
        if certain { known } else { self.shards }
    }

    /// Runs store work that may touch the disk away from the serving thread.
    pub(crate) async fn off_thread<T, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let work = work(self.clone());
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(work)).await.map_err(Error::internal)?
    }
}

/// Milliseconds since 1970; 0 on a clock set before that. Kept as creation and key times, never trusted for safety.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
