//! The state of the cluster, for operators, the dashboard and `quipu cluster`.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use http::{Response, StatusCode};
use serde::Serialize;

use super::rules::RuleAnswer;
use crate::http::Http;
use crate::http::body::{Body, json};
use crate::node::Worker;

#[derive(Serialize)]
struct Cluster<'a> {
    health: &'static str,
    nodes: [NodeAnswer<'a>; 1],
    shards: Vec<Shard<'a>>,
    rules: Vec<RuleAnswer<'a>>,
}

#[derive(Serialize)]
struct NodeAnswer<'a> {
    node: &'a str,
    address: &'a str,
    version: &'static str,
    ready: bool,
    /// 0.0 to 1.0 of what the node may use.
    cpu: f64,
    /// Operations waiting to be journaled.
    queued: usize,
    connections: usize,
    uptime_seconds: u64,
    shards: usize,
}

#[derive(Serialize)]
struct Shard<'a> {
    shard: u32,
    owner: &'a str,
    epoch: u64,
    /// Counters of this shard in memory.
    counters: usize,
    /// Sequence of the last journal entry.
    journal_position: u64,
}

pub fn cluster(http: &Http, worker: &Rc<Worker>) -> Response<Body> {
    let node = &worker.node;
    let tables = &node.commits.tables;
    let shards = (0u32..).zip(tables).map(|(shard, table)| {
        let partials = table.partials.read();
        Shard {
            shard,
            owner: &node.id,
            epoch: table.epoch.load(Ordering::Relaxed),
            counters: partials.len(),
            journal_position: partials.applied(),
        }
    });
    let ready = node.ready();
    let answer = NodeAnswer {
        node: &node.id,
        address: &http.advertise,
        version: env!("CARGO_PKG_VERSION"),
        ready,
        cpu: node.stats.cpu_micros.load(Ordering::Relaxed) as f64 / 1e6,
        queued: node.commits.queued(),
        connections: node.stats.connections.load(Ordering::Relaxed),
        uptime_seconds: node.began.elapsed().as_secs(),
        shards: tables.len(),
    };
    let health = if ready { "ok" } else { "unavailable" };
    let active = node.rules().list();
    let rules = active.iter().map(RuleAnswer::from).collect();
    json(StatusCode::OK, &Cluster { health, nodes: [answer], shards: shards.collect(), rules })
}
