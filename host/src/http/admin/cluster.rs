//! The state of the cluster, for operators, the dashboard and `quipu cluster`.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use http::{Response, StatusCode};
use serde::Serialize;

use super::rules::RuleAnswer;
use crate::http::Http;
use crate::http::body::{Body, json};
use crate::http::problem::Problem;
use crate::node::{Node, Worker};
use crate::peer::wire::message::{DescribeReply, ShardState};
use crate::registry::picture::Role;

#[derive(Serialize)]
struct Cluster<'a> {
    /// `ok`, `degraded` when shards have no owner or nodes do not answer, `unavailable` when this node takes no writes.
    health: &'static str,
    /// Of entries and messages, as every node writes them.
    format: u32,
    nodes: Vec<NodeAnswer>,
    shards: Vec<Shard>,
    rules: Vec<RuleAnswer<'a>>,
}

#[derive(Serialize)]
struct NodeAnswer {
    node: String,
    address: String,
    version: String,
    role: &'static str,
    ready: bool,
    /// 0.0 to 1.0 of what the node may use.
    cpu: f64,
    /// Operations waiting to be journaled.
    queued: u64,
    /// None: the node is registered and did not answer.
    connections: Option<u64>,
    uptime_seconds: Option<u64>,
    shards: usize,
    /// None: the node is registered and did not answer.
    clock: Option<Clock>,
}

/// What became of the node's wall clock since its process began.
#[derive(Serialize)]
struct Clock {
    /// How often it was set by a second or more.
    steps: u64,
    /// By how much it was set last; below 0: back.
    last_step_ms: i64,
    /// How far it is ahead of what it would say without steps.
    offset_ms: i64,
}

impl From<&DescribeReply> for Clock {
    fn from(reply: &DescribeReply) -> Self {
        let DescribeReply { clock_steps, clock_last_step_ms, clock_offset_ms, .. } = *reply;
        Self { steps: clock_steps, last_step_ms: clock_last_step_ms, offset_ms: clock_offset_ms }
    }
}

#[derive(Serialize)]
struct Shard {
    shard: u32,
    /// None: nobody serves it now.
    owner: Option<String>,
    epoch: u64,
    /// Counters of this shard in memory.
    counters: u64,
    /// Sequence of the last journal entry.
    journal_position: u64,
}

fn shards_of(node: &str, states: &[ShardState]) -> impl Iterator<Item = Shard> {
    states.iter().map(move |state| Shard {
        shard: state.shard,
        owner: Some(node.to_owned()),
        epoch: state.epoch,
        counters: state.counters,
        journal_position: state.journal_position,
    })
}

pub async fn cluster(http: &Http, worker: &Rc<Worker>) -> Response<Body> {
    let node = &worker.node;
    let ready = node.ready();
    let own = node.describe();
    let mut nodes = vec![NodeAnswer {
        node: node.id.clone(),
        address: http.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        role: own_role(node),
        ready,
        cpu: node.stats.cpu_micros.load(Ordering::Relaxed) as f64 / 1e6,
        queued: own.queued,
        connections: Some(own.connections),
        uptime_seconds: Some(own.uptime_seconds),
        shards: own.shards.len(),
        clock: Some(Clock::from(&own)),
    }];
    let mut shards: BTreeMap<u32, Shard> = shards_of(&node.id, &own.shards).map(|shard| (shard.shard, shard)).collect();
    let mut silent = false;
    for (info, reply) in node.describe_others().await {
        silent |= reply.is_none();
        let states = reply.as_ref().map_or(&[][..], |reply| &reply.shards);
        for shard in shards_of(&info.id, states) {
            // A shard on its way may be named twice: the higher epoch has it.
            if shards.get(&shard.shard).is_none_or(|known| known.epoch < shard.epoch) {
                shards.insert(shard.shard, shard);
            }
        }
        nodes.push(NodeAnswer {
            role: role(info.role),
            ready: reply.is_some() && info.ready && !info.draining,
            cpu: info.cpu,
            queued: reply.as_ref().map_or(info.queued, |reply| reply.queued),
            connections: reply.as_ref().map(|reply| reply.connections),
            uptime_seconds: reply.as_ref().map(|reply| reply.uptime_seconds),
            shards: states.len(),
            clock: reply.as_ref().map(Clock::from),
            node: info.id,
            address: info.http_address,
            version: info.version,
        });
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    for shard in 0..node.shards {
        let unserved = || Shard { shard, owner: None, epoch: 0, counters: 0, journal_position: 0 };
        shards.entry(shard).or_insert_with(unserved);
    }
    let whole = !silent && shards.values().all(|shard| shard.owner.is_some());
    let health = match (ready, whole) {
        (false, _) => "unavailable",
        (true, false) => "degraded",
        (true, true) => "ok",
    };
    let active = node.rules().list();
    let rules = active.iter().map(RuleAnswer::from).collect();
    let (format, shards) = (node.written_format(), shards.into_values().collect());
    json(StatusCode::OK, &Cluster { health, format, nodes, shards, rules })
}

/// Lets nodes write the newest format that all of them read.
pub async fn finalize(worker: &Rc<Worker>) -> Result<Response<Body>, Problem> {
    Ok(json(StatusCode::OK, &worker.node.finalize().await?))
}

/// Recounts everything, which may take long; nothing is paused.
pub async fn verify(worker: &Rc<Worker>) -> Result<Response<Body>, Problem> {
    Ok(json(StatusCode::OK, &worker.node.verify_all().await?))
}

fn own_role(node: &Node) -> &'static str {
    let info = node.peers.as_ref().and_then(|peers| peers.pictures.borrow().nodes.get(&node.id).map(|info| info.role));
    role(info.unwrap_or_default())
}

fn role(role: Role) -> &'static str {
    match role {
        Role::All => "all",
        Role::Gateway => "gateway",
        Role::Shard => "shard",
    }
}
