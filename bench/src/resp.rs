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

use crate::load::{Answers, answers};
use crate::plan::{COUNTERS, HOT, Load, PREFIX};
use crate::shared::CONNECTIONS;

/// Coprime to the number of counters: clients go through all of them in a scattered order.
const STRIDE: u32 = 7_919;

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
            let (mut latencies, mut refused, mut broken) = (Vec::new(), 0, 0);
            for seen in tasks.join_all().await {
                latencies.extend(seen.latencies_us);
                refused += seen.refused;
                broken += seen.broken;
            }
            answers(latencies, refused, broken, began.elapsed().as_secs_f64())
        })
    }
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    latencies_us: Vec<u32>,
    refused: u64,
    broken: u64,
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
            Ok(_) => seen.latencies_us.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX)),
            Err(why) if why.code().is_some() => seen.refused += 1,
            Err(_) => seen.broken += 1,
        }
    }
    seen
}
