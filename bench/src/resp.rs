//! The load generator of RESP: a client library of Redis, whose clients share connections as those of a Cassandra driver do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use redis::IntoConnectionInfo;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::load::{Answers, Seen};
use crate::plan::{COUNTERS, HOT, Load, PREFIX, STRIDE};
use crate::shared::CONNECTIONS;

#[derive(Debug)]
pub struct Resp {
    runtime: Runtime,
    ids: Arc<Vec<String>>,
}

impl Resp {
    pub fn new() -> anyhow::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        let ids = (0..COUNTERS).map(|n| format!("{PREFIX}{n:06}")).collect();
        Ok(Self { runtime, ids: Arc::new(ids) })
    }

    /// Loads all servers at once for `seconds`, the clients divided between them.
    pub fn run_over(&self, load: Load, addrs: &[SocketAddr], clients: u32, seconds: u32) -> anyhow::Result<Answers> {
        if !matches!(load, Load::Add | Load::AddMany) {
            bail!("{} are not measured over RESP", load.name());
        }
        self.runtime.block_on(async {
            let mut connections = Vec::new();
            for addr in addrs.iter().cycle().take(addrs.len() * CONNECTIONS as usize) {
                let info = format!("redis://{addr}/").into_connection_info()?;
                // As the driver of Cassandra has it.
                let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
                let client = redis::Client::open(info)?;
                let connected = client.get_multiplexed_async_connection().await;
                connections.push(connected.with_context(|| format!("no connection to {addr}"))?);
            }
            let began = Instant::now();
            let until = began + Duration::from_secs(seconds.into());
            let mut tasks = JoinSet::new();
            for (client, connection) in (0..clients).zip(connections.iter().cycle()) {
                tasks.spawn(add(connection.clone(), load, self.ids.clone(), client, until));
            }
            Seen::sum_up(tasks.join_all().await, began.elapsed())
        })
    }
}

/// Adds 1 again and again, each time when the one before is answered.
async fn add(
    mut connection: MultiplexedConnection,
    load: Load,
    ids: Arc<Vec<String>>,
    client: u32,
    until: Instant,
) -> Seen {
    let (mut seen, mut at) = (Seen::default(), client.wrapping_mul(STRIDE * 13) % COUNTERS);
    while Instant::now() < until {
        at = (at + STRIDE) % COUNTERS;
        let id = if load == Load::Add { HOT } else { ids[at as usize].as_str() };
        let began = Instant::now();
        match redis::cmd("QUIPU.ADD").arg(id).query_async::<i64>(&mut connection).await {
            Ok(_) => seen.answered(began),
            Err(why) if why.code().is_some() => seen.refused += 1,
            Err(_) => seen.broken += 1,
        }
    }
    seen
}
