//! Every statement that a running store sends, prepared once, each with the consistency that it needs.
//!
//! A journal partition and a row of `shards` are written by conditional writes alone while they live; everything else
//! by plain ones, whose timestamps say which is newer.

use scylla::client::session::Session;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;

use super::super::Error;
use super::connect::Scope;
use super::cql::Unanswered;

pub struct Statements {
    /// Epoch, segment, position, marks and their chunks; sees every conditional write.
    pub shard: PreparedStatement,
    pub raise_shard: PreparedStatement,
    pub move_pointer: PreparedStatement,
    pub move_position: PreparedStatement,

    /// The static columns of a segment; sees every conditional write.
    pub segment: PreparedStatement,
    pub create_segment: PreparedStatement,
    pub raise_segment: PreparedStatement,
    pub seal_segment: PreparedStatement,
    pub drop_segment: PreparedStatement,
    /// The entry, and the segment's end behind it.
    pub append: PreparedStatement,
    /// Epoch and id of one entry; sees every conditional write.
    pub entry_id: PreparedStatement,
    pub entries: PreparedStatement,

    pub put_partial: PreparedStatement,
    pub partial: PreparedStatement,
    pub list: PreparedStatement,
    pub put_rollup: PreparedStatement,
    pub rollup: PreparedStatement,
    pub put_key: PreparedStatement,
    pub key: PreparedStatement,
    pub put_mark: PreparedStatement,
    pub mark: PreparedStatement,
    pub delete_mark: PreparedStatement,

    pub value: PreparedStatement,
    pub create_value: PreparedStatement,
    pub replace_value: PreparedStatement,
    pub delete_value: PreparedStatement,
    pub scan: PreparedStatement,
    pub put_chunk: PreparedStatement,
    pub chunk: PreparedStatement,
    pub delete_chunk: PreparedStatement,
}

/// The statement that a session needs which does nothing but append.
pub async fn append(session: &Session, scope: Scope) -> Result<PreparedStatement, Error> {
    let text = "UPDATE journal SET tail = ?, bytes = ?, entry_epoch = ?, entry_id = ?, entry = ? \
                WHERE shard = ? AND segment = ? AND seq = ? IF epoch = ? AND tail = ? AND next = null";
    prepare(session, text, scope.plain(), scope).await
}

async fn prepare(
    session: &Session,
    text: &str,
    consistency: Consistency,
    scope: Scope,
) -> Result<PreparedStatement, Error> {
    let prepared = session.prepare(text).await;
    let mut statement = prepared.map_err(|why| Unanswered::NotSent(why.to_string()))?;
    statement.set_consistency(consistency);
    statement.set_serial_consistency(Some(scope.serial()));
    Ok(statement)
}

impl Statements {
    /// In the session's keyspace.
    pub async fn prepare(session: &Session, scope: Scope) -> Result<Self, Error> {
        let plain = async |text: &str| prepare(session, text, scope.plain(), scope).await;
        let serial = async |text: &str| prepare(session, text, scope.serial_read(), scope).await;

        Ok(Self {
            shard: serial("SELECT epoch, segment, position, marks, mark_chunks FROM shards WHERE shard = ?").await?,
            raise_shard: plain("UPDATE shards SET epoch = ? WHERE shard = ? IF epoch = ?").await?,
            move_pointer: plain("UPDATE shards SET segment = ? WHERE shard = ? IF epoch = ? AND segment = ?").await?,
            move_position: plain(
                "UPDATE shards SET position = ?, marks = ?, mark_chunks = ?, segment = ? WHERE shard = ? \
                 IF epoch = ? AND position <= ? AND segment = ?",
            )
            .await?,
            segment: serial(
                "SELECT DISTINCT shard, segment, epoch, tail, next, prev, base, bytes FROM journal \
                 WHERE shard = ? AND segment = ?",
            )
            .await?,
            create_segment: plain(
                "INSERT INTO journal (shard, segment, epoch, tail, base, prev, bytes) VALUES (?, ?, ?, ?, ?, ?, 0) \
                 IF NOT EXISTS",
            )
            .await?,
            raise_segment: plain("UPDATE journal SET epoch = ? WHERE shard = ? AND segment = ? IF epoch < ?").await?,
            seal_segment: plain(
                "UPDATE journal SET next = ? WHERE shard = ? AND segment = ? IF epoch = ? AND tail = ? AND next = null",
            )
            .await?,
            drop_segment: plain("DELETE FROM journal USING TIMESTAMP ? WHERE shard = ? AND segment = ?").await?,
            append: append(session, scope).await?,
            entry_id: serial("SELECT entry_epoch, entry_id FROM journal WHERE shard = ? AND segment = ? AND seq = ?")
                .await?,
            entries: plain(
                "SELECT seq, entry FROM journal WHERE shard = ? AND segment = ? AND seq > ? AND seq <= ? LIMIT ?",
            )
            .await?,
            put_partial: plain(
                "INSERT INTO partials (shard, bucket, counter_id, value, seq, created_at, generation, flags, name, \
                 checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            partial: plain(
                "SELECT counter_id, value, seq, created_at, generation, flags, name, checksum FROM partials \
                 WHERE shard = ? AND bucket = ? AND counter_id = ?",
            )
            .await?,
            list: plain(
                "SELECT counter_id, value, seq, created_at, generation, flags, name, checksum FROM partials \
                 WHERE shard = ? AND bucket = ? AND counter_id > ? AND counter_id <= ? LIMIT ?",
            )
            .await?,
            put_rollup: plain(
                "INSERT INTO rollups (counter_id, shard, seq, value, present, confirmed_at) VALUES (?, ?, ?, ?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            rollup: plain("SELECT shard, seq, value, present, confirmed_at FROM rollups WHERE counter_id = ?").await?,
            put_key: plain(
                "INSERT INTO keys (shard, counter_id, key, record, checksum) VALUES (?, ?, ?, ?, ?) \
                 USING TIMESTAMP ? AND TTL ?",
            )
            .await?,
            key: plain("SELECT record, checksum FROM keys WHERE shard = ? AND counter_id = ? AND key = ?").await?,
            put_mark: plain("INSERT INTO marks (shard, id, chunk, data) VALUES (?, ?, ?, ?)").await?,
            mark: plain("SELECT data FROM marks WHERE shard = ? AND id = ? AND chunk = ?").await?,
            delete_mark: plain("DELETE FROM marks WHERE shard = ? AND id = ? AND chunk = ?").await?,
            value: serial("SELECT version, chunks, checksum, data FROM small_values WHERE space = ? AND key = ?")
                .await?,
            create_value: plain(
                "INSERT INTO small_values (space, key, version, chunks, checksum, data) VALUES (?, ?, ?, ?, ?, ?) \
                 IF NOT EXISTS",
            )
            .await?,
            replace_value: plain(
                "UPDATE small_values SET version = ?, chunks = ?, checksum = ?, data = ? WHERE space = ? AND key = ? \
                 IF version = ?",
            )
            .await?,
            delete_value: plain("DELETE FROM small_values WHERE space = ? AND key = ? IF version = ?").await?,
            scan: plain(
                "SELECT key, version, chunks, checksum, data FROM small_values \
                 WHERE space = ? AND key >= ? AND key < ? LIMIT ?",
            )
            .await?,
            put_chunk: plain("INSERT INTO value_chunks (id, chunk, data) VALUES (?, ?, ?)").await?,
            chunk: plain("SELECT data FROM value_chunks WHERE id = ? AND chunk = ?").await?,
            delete_chunk: plain("DELETE FROM value_chunks WHERE id = ? AND chunk = ?").await?,
        })
    }
}
