//! Every limit that a caller can meet, in one place: name, unit and reason.
//!
//! Those an operator may want to change are settings with these as defaults; the rest are part of the contract.

use std::time::Duration;

/// Longest counter id, in bytes of UTF-8.
pub const COUNTER_ID_BYTES_MAX: usize = 512;
/// Longest human name of a counter, in bytes.
pub const COUNTER_NAME_BYTES_MAX: usize = 512;
/// Longest `Idempotency-Key`, in bytes. Batches append `/i`, which this limit does not count.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// Request bodies of single operations, rules and reads.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Body of `POST /v1/batch`: 10,000 operations with long ids fit.
pub const BATCH_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Operations in one batch.
pub const BATCH_OPS_MAX: usize = 10_000;
/// Ids in one `POST /v1/read`.
pub const READ_IDS_MAX: usize = 1_000;
/// Counters on one page of a list.
pub const LIST_LIMIT_MAX: usize = 1_000;
pub const LIST_LIMIT_DEFAULT: usize = 100;
/// Request head: request line and all headers.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Open connections of a node, watches included.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Open watches (server-sent events) of a node.
pub const WATCHES_MAX: usize = 1_000;
/// A client has this long to send a request's head and, again, its body.
pub const REQUEST_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// An idle keep-alive connection is closed after this.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// An operation is answered within this, if only with `unknown`.
pub const OPERATION_DEADLINE: Duration = Duration::from_secs(10);
/// Operations queued for the shard writers of a node and not yet journaled.
pub const QUEUE_OPS_MAX: usize = 131_072;
/// Operations in one journal entry of one shard.
pub const ENTRY_OPS_MAX: usize = 16_384;
/// Rules of a cluster.
pub const RULES_MAX: usize = 1_000;
/// Shards of a cluster.
pub const SHARDS_MAX: u32 = 4_096;
/// Default number of shards.
pub const SHARDS_DEFAULT: u32 = 12;
/// Default spread of a counter.
pub const SPREAD_DEFAULT: u32 = 3;
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// SIGTERM to exit: open requests may finish this long.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
