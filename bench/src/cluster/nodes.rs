//! Clusters of Quipu nodes on the given etcd and Cassandra: started, filled, asked, and removed at the end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use crate::machine;
use crate::plan::HOT;
use crate::servers::{Places, Process};

/// From a node's start until every node owns its part of the shards.
const BALANCE_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What nodes do after the last answer is theirs for so long.
const QUIET_DEADLINE: Duration = Duration::from_secs(4);

/// Where the services are.
#[derive(Debug, Clone)]
pub struct Services {
    /// URLs, with commas between them.
    pub etcd: String,
    /// HOST:PORT, with commas between them.
    pub cassandra: String,
    pub replication: u32,
    /// Of each cluster; at least as many as it has nodes.
    pub shards: u32,
}

/// Passes over all counters before the first measurement.
pub const FILLS: u32 = 8;

/// Running nodes of one cluster.
#[derive(Debug)]
pub struct Cluster {
    pub name: String,
    pub nodes: Vec<Process>,
    started: usize,
}

/// What the metrics of all nodes say of their journals since they started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Carried {
    /// Operations answered after their entry.
    pub operations: f64,
    /// Journal entries: each is one conditional write to Cassandra.
    pub entries: f64,
    /// Time inside those writes, added up.
    pub append_seconds: f64,
}

impl Carried {
    pub fn since(self, before: Self) -> Self {
        Self {
            operations: self.operations - before.operations,
            entries: self.entries - before.entries,
            append_seconds: self.append_seconds - before.append_seconds,
        }
    }
}

impl Cluster {
    /// Starts `count` nodes, and waits until each owns its part.
    pub fn start(places: &Places, services: &Services, name: String, count: usize) -> anyhow::Result<Self> {
        let mut cluster = Self { name, nodes: Vec::new(), started: 0 };
        for _ in 0..count {
            cluster.add_node(places, services)?;
        }
        cluster.balanced()?;
        Ok(cluster)
    }

    /// One process on its own store: no cluster, but asked and counted like one.
    pub fn alone(places: &Places) -> anyhow::Result<Self> {
        let name = "alone".to_owned();
        let node = places.start_named(&name, true)?;
        Ok(Self { name, nodes: vec![node], started: 1 })
    }

    /// Makes the counters of the bench resident in nearly all shards that will take additions: one of each owner among their
    /// candidates, and each pass reaches one of them.
    pub fn fill(&self) -> anyhow::Result<()> {
        (0..FILLS).try_for_each(|_| self.nodes[0].fill())
    }

    /// Starts one more node, under a name that no other had.
    pub fn add_node(&mut self, places: &Places, services: &Services) -> anyhow::Result<()> {
        self.started += 1;
        let node = format!("n{}", self.started);
        let mut command = places.serve();
        command
            .args(["--node-id", &node, "--cluster", &self.name])
            .args(["--etcd", &services.etcd, "--cassandra", &services.cassandra])
            .args(["--create-schema", "on", "--replication", &services.replication.to_string()])
            .args(["--shards", &services.shards.to_string()])
            .args(["--peer-listen", "127.0.0.1:0", "--resp-listen", "127.0.0.1:0"]);
        self.nodes.push(Process::start(command, &places.logs.join(format!("{}-{node}.log", self.name)))?);
        Ok(())
    }

    /// Waits until the living nodes share all shards evenly.
    pub fn balanced(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BALANCE_DEADLINE;
        loop {
            let seen = self.nodes[0].ask_well("GET", "/v1/cluster", None)?.body;
            let seen: Value = serde_json::from_str(&seen).context("/v1/cluster is answered without JSON")?;
            if is_balanced(&seen, self.nodes.len()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{}: not every node owned its shards within {BALANCE_DEADLINE:?}", self.name);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Process::addr).collect()
    }

    pub fn resp_addrs(&self) -> anyhow::Result<Vec<SocketAddr>> {
        self.nodes.iter().map(|node| node.resp_addr().context("a node does not speak RESP")).collect()
    }

    pub fn carried(&self) -> anyhow::Result<Carried> {
        let mut sum = Carried::default();
        for node in &self.nodes {
            let [operations, entries, append_seconds] = node.metrics([
                "quipu_operations_total",
                "quipu_journal_entries_total",
                "quipu_journal_write_seconds_total",
            ])?;
            sum.operations += operations;
            sum.entries += entries;
            sum.append_seconds += append_seconds;
        }
        Ok(sum)
    }

    /// CPU time that the nodes used so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.nodes.iter().map(|node| machine::cpu_seconds(node.id())).sum()
    }

    /// Waits until nothing is left to do, a checkpoint say, and answers the CPU time so far.
    pub fn quiet(&self) -> anyhow::Result<f64> {
        machine::quiet(|| self.cpu_seconds(), QUIET_DEADLINE).map(|(used, _)| used)
    }

    /// The hot counter must hold what was acknowledged, and no more than was sent.
    pub fn check_hot(&self, acknowledged: u64, open: u64) -> anyhow::Result<()> {
        let least = i64::try_from(acknowledged)?;
        let most = least.saturating_add(i64::try_from(open)?);
        for node in &self.nodes {
            let value = node.settled_value(least)?;
            if !(least..=most).contains(&value) {
                bail!("{}: {HOT} is {value} and must be from {least} to {most}", self.name);
            }
        }
        Ok(())
    }
}

/// All nodes are there, every shard has an owner, and no node owns two more than another.
fn is_balanced(cluster: &Value, nodes: usize) -> bool {
    let list = |name: &str| cluster[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let owned: Vec<u64> = list("nodes").iter().filter_map(|node| node["shards"].as_u64()).collect();
    let (least, most) = (owned.iter().min().copied().unwrap_or(0), owned.iter().max().copied().unwrap_or(0));
    owned.len() == nodes
        && least > 0
        && most - least <= 1
        && owned.iter().sum::<u64>() == list("shards").len() as u64
        && list("shards").iter().all(|shard| shard["owner"].is_string())
}

/// Removes the keys of a cluster from etcd.
pub fn forget(services: &Services, name: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoints: Vec<&str> = services.etcd.split(',').collect();
        let mut client = etcd_client::Client::connect(endpoints, None).await.context("etcd does not answer")?;
        let all = etcd_client::DeleteOptions::new().with_prefix();
        client.delete(format!("/{name}/"), Some(all)).await.context("etcd does not remove the keys")?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cluster_is_balanced_when_all_shards_have_owners() {
        let seen = |owned: [u64; 2], owner: Value| {
            json!({
                "nodes": owned.map(|shards| json!({ "shards": shards })),
                "shards": [{ "owner": "n1" }, { "owner": "n2" }, { "owner": owner }],
            })
        };
        assert!(is_balanced(&seen([2, 1], "n1".into()), 2));
        assert!(!is_balanced(&seen([2, 1], "n1".into()), 3), "one node is missing");
        assert!(!is_balanced(&seen([3, 0], "n1".into()), 2), "one node has none");
        assert!(!is_balanced(&seen([1, 1], Value::Null), 2), "one shard has none");
    }
}
