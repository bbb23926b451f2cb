//! The yardstick: columns of the type `counter`, driven by the driver that Quipu uses, with as many clients at once.
//!
//! Each client waits for its answer before it sends the next update. Nothing is sent twice: a counter column cannot tell
//! a repetition, so an update whose outcome is unknown stays so. Quipu's additions are exact under retries; these are not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::load::{Answers, Seen};
use crate::plan::{COUNTERS, HOT, Load, PREFIX, STRIDE};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(60);
/// Different batches, as many as `lua/batch.lua` has.
const BODIES: u32 = 10;

/// A table of counter columns.
pub struct Columns {
    runtime: Runtime,
    session: Arc<Session>,
    keyspace: String,
    update: PreparedStatement,
    ids: Arc<Vec<String>>,
}

impl std::fmt::Debug for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Columns").field("keyspace", &self.keyspace).finish_non_exhaustive()
    }
}

impl Columns {
    /// Makes the keyspace and its table.
    pub fn create(contact_points: &[String], keyspace: String, replication: u32) -> anyhow::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        let (session, update) = runtime.block_on(async {
            let session = connect(contact_points).await?;
            let replication = format!("{{'class': 'NetworkTopologyStrategy', 'replication_factor': {replication}}}");
            execute(&session, format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}")).await?;
            execute(&session, format!("CREATE TABLE {keyspace}.counters (id text PRIMARY KEY, value counter)")).await?;
            let update = format!("UPDATE {keyspace}.counters SET value = value + 1 WHERE id = ?");
            let update = session.prepare(update).await.context("cannot prepare the update of a counter column")?;
            anyhow::Ok((Arc::new(session), update))
        })?;
        let ids = (0..COUNTERS).map(|n| format!("{PREFIX}{n:06}")).collect();
        Ok(Self { runtime, session, keyspace, update, ids: Arc::new(ids) })
    }

    /// Loads with so many clients for `seconds`, counted as wrk counts.
    pub fn run(&self, load: Load, clients: u32, seconds: u32) -> anyhow::Result<Answers> {
        let began = Instant::now();
        let until = began + Duration::from_secs(seconds.into());
        let seen = self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for client in 0..clients {
                match load {
                    Load::Batch { ops } => tasks.spawn(self.batches(client, ops, until)),
                    _ => tasks.spawn(self.singles(load, client, until)),
                };
            }
            tasks.join_all().await
        });
        Seen::sum_up(seen, began.elapsed())
    }

    fn singles(&self, load: Load, client: u32, until: Instant) -> impl Future<Output = Seen> + Send + use<> {
        let (session, update, ids) = (self.session.clone(), self.update.clone(), self.ids.clone());
        async move {
            let (mut seen, mut at) = (Seen::default(), client.wrapping_mul(STRIDE * 13) % COUNTERS);
            while Instant::now() < until {
                at = (at + STRIDE) % COUNTERS;
                let id = if load == Load::Add { HOT } else { ids[at as usize].as_str() };
                let began = Instant::now();
                note(&mut seen, began, session.execute_unpaged(&update, (id,)).await.is_ok());
            }
            seen
        }
    }

    fn batches(&self, client: u32, ops: u32, until: Instant) -> impl Future<Output = Seen> + Send + use<> {
        let (session, ids) = (self.session.clone(), self.ids.clone());
        let mut batch = Batch::new(BatchType::Counter);
        (0..ops).for_each(|_| batch.append_statement(self.update.clone()));
        async move {
            let (mut seen, mut turn) = (Seen::default(), client);
            while Instant::now() < until {
                turn = (turn + 1) % BODIES;
                let id = |at: u32| (ids[((turn * ops + at) * STRIDE % COUNTERS) as usize].as_str(),);
                let values: Vec<(&str,)> = (0..ops).map(id).collect();
                let began = Instant::now();
                note(&mut seen, began, session.batch(&batch, &values).await.is_ok());
            }
            seen
        }
    }

    /// Removes a keyspace, and everything in it, if it is there.
    pub fn drop_keyspace(&self, keyspace: &str) -> anyhow::Result<()> {
        self.runtime.block_on(execute(&self.session, format!("DROP KEYSPACE IF EXISTS {keyspace}")))
    }

    pub fn keyspace(&self) -> &str {
        &self.keyspace
    }
}

fn note(seen: &mut Seen, sent: Instant, good: bool) {
    match good {
        true => seen.answered(sent),
        false => seen.refused += 1,
    }
}

async fn connect(contact_points: &[String]) -> anyhow::Result<Session> {
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .consistency(Consistency::LocalQuorum)
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .speculative_execution_policy(None)
        .build();
    SessionBuilder::new()
        .known_nodes(contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .tcp_nodelay(true)
        .build()
        .await
        .with_context(|| format!("Cassandra does not answer at {}", contact_points.join(", ")))
}

async fn execute(session: &Session, statement: String) -> anyhow::Result<()> {
    let mut unprepared = scylla::statement::Statement::new(statement.as_str());
    unprepared.set_request_timeout(Some(SCHEMA_TIMEOUT));
    session.query_unpaged(unprepared, &[]).await.with_context(|| format!("Cassandra refused: {statement}"))?;
    Ok(())
}
