//! Tables, their versions, and what is checked before they are used.
//!
//! Migrations only go forward, and each may be carried out twice. Next: `statements` for how the tables are used.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use scylla::statement::Statement;
use tracing::warn;

use super::super::Error;
use super::connect::{Settings, connect};
use super::cql::{Cql, Unanswered, unreadable};
use crate::limits;

/// A migration's statements lead from one version to the next; the first from an empty keyspace to version 1.
const MIGRATIONS: &[&[&str]] = &[V1, V2];

const V1: &[&str] = &[
    // Facts of the whole cluster: `schema` (version), `shards`.
    "CREATE TABLE IF NOT EXISTS meta (key text PRIMARY KEY, value bigint)",
    // Ownership and checkpoint of a shard. Written by conditional writes alone. `segment` is where a takeover begins to
    // look for the journal's end; `marks` names the rows of `marks` that belong to the position.
    "CREATE TABLE IF NOT EXISTS shards (shard int PRIMARY KEY, epoch bigint, segment text, position bigint, \
     marks bigint, mark_chunks int)",
    // `base` is the sequence before the segment's first entry; `prev` and `next` chain the segments.
    "CREATE TABLE IF NOT EXISTS journal (shard int, segment text, seq bigint, epoch bigint static, tail bigint static, \
     next text static, prev text static, base bigint static, bytes bigint static, entry_epoch bigint, entry_id bigint, \
     entry blob, PRIMARY KEY ((shard, segment), seq))",
    // The id's bytes and 0xFF as the clustering key: the order of lists.
    "CREATE TABLE IF NOT EXISTS partials (shard int, bucket int, counter_id blob, value bigint, seq bigint, \
     created_at bigint, generation bigint, flags tinyint, name text, checksum bigint, \
     PRIMARY KEY ((shard, bucket), counter_id))",
    "CREATE TABLE IF NOT EXISTS keys (shard int, counter_id text, key text, record blob, checksum bigint, \
     PRIMARY KEY ((shard, counter_id, key)))",
    "CREATE TABLE IF NOT EXISTS marks (shard int, id bigint, chunk int, data blob, PRIMARY KEY ((shard, id, chunk)))",
    "CREATE TABLE IF NOT EXISTS small_values (space text, key blob, version bigint, chunks int, checksum bigint, \
     data blob, PRIMARY KEY (space, key))",
    "CREATE TABLE IF NOT EXISTS value_chunks (id bigint, chunk int, data blob, PRIMARY KEY ((id, chunk)))",
];

const V2: &[&str] = &[
    // What was last seen of a counter on each shard, for totals that may be old.
    "CREATE TABLE IF NOT EXISTS rollups (counter_id text, shard int, seq bigint, value bigint, present boolean, \
     confirmed_at bigint, PRIMARY KEY (counter_id, shard))",
];

/// What `init` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialised {
    /// The keyspace has been made.
    Created,
    /// Its schema was older, of this version.
    Migrated { from: u64 },
    /// There was nothing to do.
    AlreadyThere,
}

/// Creates the keyspace, or brings its schema to this program's version. May be called again after a failure, and by
/// several at once.
pub async fn init(settings: &Settings) -> Result<Initialised, Error> {
    settings.checked()?;
    let cql = connect(settings).await?;
    let keyspace = &settings.cluster;
    let create = format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
         {{'class': 'NetworkTopologyStrategy', 'replication_factor': {}}}",
        settings.replication_factor
    );
    define(&cql, &create).await?;
    use_keyspace(&cql, keyspace).await?;
    let before = version(&cql, keyspace).await?;
    if let Some(newer) = before.filter(|&version| version > MIGRATIONS.len() as u64) {
        return Err(too_new(keyspace, newer));
    }
    let done = before.unwrap_or(0) as usize;
    for statement in MIGRATIONS.iter().skip(done).copied().flatten() {
        define(&cql, statement).await?;
    }
    if meta(&cql, "schema").await?.is_none() {
        first_rows(&cql, settings.shards).await?;
    }
    put_meta(&cql, "shards", u64::from(settings.shards)).await?;
    check_shards(&cql, settings).await?;
    let now = MIGRATIONS.len() as u64;
    put_meta(&cql, "schema", now).await?;
    if let Some(from) = before.filter(|&from| from < now) {
        let raise = "UPDATE meta SET value = ? WHERE key = 'schema' IF value = ?";
        let raise = cql.session.prepare(raise).await.map_err(unreachable)?;
        cql.settle(&raise, (now as i64, from as i64)).await?;
    }
    Ok(match before {
        None => Initialised::Created,
        Some(from) if from < now => Initialised::Migrated { from },
        Some(_) => Initialised::AlreadyThere,
    })
}

/// An empty journal and a row of each shard. The segment comes before the row that points to it.
async fn first_rows(cql: &Cql, shards: u32) -> Result<(), Error> {
    let segment = "INSERT INTO journal (shard, segment, epoch, tail, base, prev, bytes) VALUES (?, ?, 0, 0, 0, '', 0) \
                   IF NOT EXISTS";
    let shard = "INSERT INTO shards (shard, epoch, segment, position, marks, mark_chunks) VALUES (?, 0, ?, 0, 0, 0) \
                 IF NOT EXISTS";
    let segment = cql.session.prepare(segment).await.map_err(unreachable)?;
    let shard = cql.session.prepare(shard).await.map_err(unreachable)?;
    let (segment, shard) = (&segment, &shard);
    let rows = (0..shards as i32).map(|number| async move {
        cql.settle(segment, (number, FIRST_SEGMENT)).await?;
        cql.settle(shard, (number, FIRST_SEGMENT)).await?;
        Ok(())
    });
    stream::iter(rows).buffer_unordered(limits::CASSANDRA_WRITES_IN_FLIGHT).try_collect().await
}

/// Name of every shard's first segment; later ones are `epoch.number`, and epochs begin at 1.
const FIRST_SEGMENT: &str = "0.0";

/// Everything that must hold before a node serves. Each failure is one sentence for the operator.
pub async fn check(cql: &Cql, settings: &Settings) -> Result<(), Error> {
    let keyspace = &settings.cluster;
    let select = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let select = cql.session.prepare(select).await.map_err(unreachable)?;
    let Some((replication,)) = cql.row::<(HashMap<String, String>,)>(&select, (keyspace,)).await? else {
        return Err(not_there(keyspace));
    };
    use_keyspace(cql, keyspace).await?;
    match version(cql, keyspace).await? {
        None => return Err(not_there(keyspace)),
        Some(newer) if newer > MIGRATIONS.len() as u64 => return Err(too_new(keyspace, newer)),
        Some(older) if older < MIGRATIONS.len() as u64 => {
            let known = MIGRATIONS.len();
            let why = format!("has schema version {older}, and this program needs {known}: run `quipu store init`");
            return Err(Error::Refused(format!("the keyspace {keyspace} {why}")));
        }
        Some(_) => {}
    }
    check_shards(cql, settings).await?;
    let copies = replication.iter().filter(|(name, _)| *name != "class").filter_map(|(_, count)| copies(count)).min();
    if copies.is_none_or(|copies| copies < 3) {
        let copies = copies.unwrap_or(1);
        warn!("the keyspace {keyspace} keeps {copies} of everything: below 3, one server that stops stops the cluster");
    }
    put_meta(cql, "conditional_writes", 1).await.map_err(|why| {
        Error::Refused(format!("Cassandra does not carry out conditional writes, on which everything rests: {why}"))
    })?;
    warn_of_server(cql).await;
    Ok(())
}

/// `3`, or `3/1` where one is transient.
fn copies(text: &str) -> Option<u32> {
    text.split('/').next()?.parse().ok()
}

/// What the server that answers says of itself. Other databases have no such table, and nothing is said.
async fn warn_of_server(cql: &Cql) {
    let setting = async |name: &str| -> Option<String> {
        let select = cql.session.prepare("SELECT value FROM system_views.settings WHERE name = ?").await.ok()?;
        cql.row::<(Option<String>,)>(&select, (name,)).await.ok()??.0
    };
    if setting("commitlog_sync").await.is_some_and(|sync| sync == "periodic") {
        warn!(
            "commitlog_sync is periodic: what is acknowledged may be lost when all copies lose power at once; use batch or group"
        );
    }
    if setting("paxos_variant").await.is_some_and(|variant| variant != "v2") {
        warn!("paxos_variant is not v2: every append takes more round trips than it must");
    }
}

async fn check_shards(cql: &Cql, settings: &Settings) -> Result<(), Error> {
    let (keyspace, wanted) = (&settings.cluster, u64::from(settings.shards));
    match meta(cql, "shards").await? {
        Some(stored) if stored == wanted => Ok(()),
        Some(stored) => {
            let why = format!("was made with {stored} shards, which is fixed: set `shards` to {stored}, not {wanted}");
            Err(Error::Refused(format!("the keyspace {keyspace} {why}")))
        }
        None => Err(not_there(keyspace)),
    }
}

/// None when `init` has not finished once.
async fn version(cql: &Cql, keyspace: &str) -> Result<Option<u64>, Error> {
    let select = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'meta'";
    let select = cql.session.prepare(select).await.map_err(unreachable)?;
    let exists = cql.row::<(String,)>(&select, (keyspace,)).await?.is_some();
    if exists { meta(cql, "schema").await } else { Ok(None) }
}

async fn meta(cql: &Cql, key: &str) -> Result<Option<u64>, Error> {
    let select = cql.session.prepare("SELECT value FROM meta WHERE key = ?").await.map_err(unreachable)?;
    Ok(cql.row::<(i64,)>(&select, (key,)).await?.map(|(value,)| value as u64))
}

/// The first to write it wins.
async fn put_meta(cql: &Cql, key: &str, value: u64) -> Result<(), Error> {
    let insert = "INSERT INTO meta (key, value) VALUES (?, ?) IF NOT EXISTS";
    let insert = cql.session.prepare(insert).await.map_err(unreachable)?;
    cql.settle(&insert, (key, value as i64)).await?;
    Ok(())
}

pub async fn use_keyspace(cql: &Cql, keyspace: &str) -> Result<(), Error> {
    cql.session.use_keyspace(keyspace, false).await.map_err(unreachable)
}

/// Changes of the schema take longer than anything else.
async fn define(cql: &Cql, statement: &str) -> Result<(), Error> {
    let mut statement = Statement::new(statement);
    statement.set_request_timeout(Some(limits::CASSANDRA_SCHEMA_TIMEOUT));
    let done = cql.session.query_unpaged(statement, ()).await;
    done.map_err(|why| Error::Refused(format!("the schema cannot be changed: {why}")))?;
    Ok(())
}

fn unreachable(why: impl std::fmt::Display) -> Error {
    Unanswered::NotSent(why.to_string()).into()
}

fn not_there(keyspace: &str) -> Error {
    Error::Refused(format!("Cassandra has no keyspace {keyspace} that is ready for use: run `quipu store init`"))
}

fn too_new(keyspace: &str, found: u64) -> Error {
    let known = MIGRATIONS.len();
    let why = format!("has schema version {found}, and this program knows {known} at most: run a newer one");
    Error::Refused(format!("the keyspace {keyspace} {why}"))
}

/// A row that `init` wrote is missing.
pub fn missing(what: &str) -> Error {
    unreadable(format!("{what} is missing"))
}
