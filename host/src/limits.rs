//! Every limit that a caller can meet, in one place: name, unit and reason.
//!
//! Those an operator may want to change are settings with these as defaults; the rest are part of the contract.

use std::ops::RangeInclusive;
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
/// What a batch appends to its header key: `/` and an index.
pub const BATCH_KEY_SUFFIX_BYTES_MAX: usize = 6;
/// Age that a cached read accepts when it names none, in milliseconds.
pub const MAX_AGE_MS_DEFAULT: u64 = 1_000;
/// Operations in one batch.
pub const BATCH_OPS_MAX: usize = 10_000;
/// Ids in one `POST /v1/read`.
pub const READ_IDS_MAX: usize = 1_000;
/// Counters on one page of a list.
pub const LIST_LIMIT_MAX: usize = 1_000;
pub const LIST_LIMIT_DEFAULT: usize = 100;
/// Request head: request line and all headers.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Longest `X-Request-Id` that is echoed, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Open connections of a node, watches included.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Requests under way on one connection of HTTP/2.
pub const STREAMS_MAX: u32 = 256;
/// What the client of an HTTP/2 connection may send before it is read: for one request, and for all of the connection.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of one answer over HTTP/2 that wait for their client at once.
pub const STREAM_SEND_BYTES_MAX: usize = 256 * 1024;
/// Commands of one connection that speaks RESP which are under way at once; more wait in its socket.
pub const RESP_COMMANDS_MAX: usize = 1_024;
/// Words of one command, and bytes of a word: the longest id and the most ids fit.
pub const RESP_WORDS_MAX: usize = 1_024;
pub const RESP_WORD_BYTES_MAX: usize = 1_024;
/// Connections that the kernel keeps until they are accepted.
pub const ACCEPT_BACKLOG: i32 = 4_096;
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
/// While so many wait on a node, it takes no relaxed ones: nobody else knows those, so a node that stops must be able to
/// pass them on, and one that dies loses no more.
pub const RELAXED_QUEUE_MAX: usize = 16_384;
/// Journal bytes read at once while a shard is taken over.
pub const REPLAY_BYTES: usize = 8 * 1024 * 1024;
/// Questions of one shard to a store behind a network that are under way at once.
pub const STORE_LOADS_MAX: usize = 64;
/// The same in a cluster, where the thread that replays serves other shards in between.
pub const CLUSTER_REPLAY_BYTES: usize = 256 * 1024;
/// Operations in one journal entry of one shard.
pub const ENTRY_OPS_MAX: usize = 16_384;
/// An uploaded component, in MiB: by default, and what it may be set to.
pub const PLUGIN_MIB_MAX: usize = 64;
pub const PLUGIN_MIB_RANGE: RangeInclusive<u64> = 1..=256;
/// Recordings of decisions that are under way on a node.
pub const RECORDINGS_MAX: usize = 2;
/// One recording, in bytes; it waits in memory for its reader.
pub const RECORDING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Decisions of one recording, and how long it takes at most.
pub const RECORDING_COUNT_DEFAULT: u64 = 1_000;
pub const RECORDING_COUNT_MAX: u64 = 100_000;
pub const RECORDING_SECONDS_DEFAULT: u64 = 30;
pub const RECORDING_SECONDS_MAX: u64 = 600;
/// Uploads whose bytes may be in memory at once.
pub const UPLOADS_MAX: usize = 2;
/// The store keeps components in chunks of this size.
pub const PLUGIN_CHUNK_BYTES: usize = 1024 * 1024;
/// Calls of pooled policies that one batch has under way at once.
pub const BATCH_POLICY_CALLS_MAX: usize = 64;
/// Totals a node keeps for reads that accept an older one.
pub const CACHED_TOTALS_MAX: usize = 65_536;
/// What was read for such totals is written to the store of a cluster this often, of so many counters at most, with so
/// many writes at a time.
pub const ROLLUP_INTERVAL: Duration = Duration::from_secs(1);
pub const ROLLUPS_WAITING_MAX: usize = 10_000;
pub const ROLLUP_WRITES_IN_FLIGHT: usize = 16;
/// Prefixes that have or had a rule.
pub const RULE_HISTORIES_MAX: usize = 10_000;
/// Approximate bytes of one journal entry; the operation that reaches it is the entry's last.
pub const ENTRY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Operations that one producer may have unanswered on one shard; older outcomes are forgotten.
pub const PRODUCER_UNANSWERED_MAX: usize = 16_384;
/// A producer that sent a shard nothing for this long is forgotten there. Far above every deadline of an operation.
pub const MARK_LIFETIME: Duration = Duration::from_secs(3600);
/// A wall clock that differs by this from what passed by the boot clock, within a second or so, was set.
pub const CLOCK_STEP_MIN: Duration = Duration::from_secs(1);
/// A message that repeats is in the log once within this.
pub const REPEATED_MESSAGE_INTERVAL: Duration = Duration::from_secs(60);
/// Journal bytes that no checkpoint covers; beyond, a checkpoint begins.
pub const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The same for a node of a cluster: whoever takes its shards over without having followed their journals reads that much, some
/// 0.7 s; and whenever it is full, each counter that changed costs a row.
pub const CLUSTER_JOURNAL_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// A checkpoint begins at least this often while something is changed.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// Partials that a checkpoint copies and writes at once.
pub const CHECKPOINT_PIECE: usize = 20_000;
/// Wait before a failed checkpoint is tried again: the first time, and at most.
pub const CHECKPOINT_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Idempotency records are kept this much longer than their window: an operation that arrived within it may still wait.
pub const KEY_EXPIRY_SLACK: Duration = Duration::from_secs(600);
/// Idempotency records dropped from the store at once.
pub const KEY_EXPIRY_PIECE: usize = 10_000;
/// Slots looked at for eviction after one group commit.
pub const EVICTION_PIECE: usize = 16_384;
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
/// What it may be set to. Records cost disk for as long as they live.
pub const WINDOW_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);
/// After SIGTERM, idle connections stay open this long, for requests that are on their way.
pub const DRAIN_IDLE: Duration = Duration::from_millis(200);
/// SIGTERM to exit: open requests may finish this long.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// What it may be set to.
pub const DRAIN_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// Partials of all shards of a node that stay in memory by default, and what it may be set to.
pub const RESIDENT_COUNTERS: usize = 4_000_000;
pub const RESIDENT_RANGE: RangeInclusive<u64> = 1_000..=1_000_000_000;
/// Serving threads of a node.
pub const WORKERS_MAX: u64 = 256;
/// Name of a node, in bytes: it is part of host names and keys.
pub const NODE_ID_BYTES_MAX: usize = 63;
/// Admin token, in bytes, and the file that holds it with the white space around it.
pub const TOKEN_BYTES_MAX: usize = 512;
pub const TOKEN_FILE_BYTES_MAX: u64 = 4096;
/// File of settings.
pub const CONFIG_BYTES_MAX: u64 = 64 * 1024;
/// The client commands: to connect, and from there to the end of an answer (the server's own deadline and its travel).
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub const CLIENT_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Sending a component, and its admission.
pub const CLIENT_UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// A watch that hears nothing for this long, not even a comment, connects anew.
pub const CLIENT_WATCH_SILENCE: Duration = Duration::from_secs(60);
/// An addition with a key is sent again for this long while its outcome is not known.
pub const CLIENT_RETRY_FOR: Duration = Duration::from_secs(30);
/// A watch tries to connect anew for this long.
pub const CLIENT_RECONNECT_FOR: Duration = Duration::from_secs(600);
/// Answers of a server, and one line of its event stream, in bytes.
pub const CLIENT_ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
pub const CLIENT_EVENT_BYTES_MAX: u64 = 64 * 1024;
/// One segment file of the embedded log. All are written with zeros before use, and used again when trimmed.
pub const LOG_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Trimmed segments of the embedded log that are kept for further use.
pub const LOG_SPARE_SEGMENTS_MAX: usize = 4;
/// The embedded log takes no new segment that would leave less than this on the disk: checkpoints, which give segments
/// back, need it.
pub const LOG_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Largest group commit in the embedded log. `QUEUE_OPS_MAX` operations with the longest ids, names and keys fit.
pub const LOG_FRAME_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest key of a small value, its space included, in bytes.
pub const VALUE_KEY_BYTES_MAX: usize = 1024;
/// Largest small value, such as the bytes of a policy, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Connecting to another node, and one question to it.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
pub const PEER_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection to another node is asked for a sign of life this often, and given up without one after this long.
pub const PEER_KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// Waits before a node that went away is called again: the first time, and at most.
pub const PEER_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A node that has left operations without an answer for this long is sent no more of those that may go elsewhere.
pub const PEER_SUSPECT_AFTER: Duration = Duration::from_millis(500);
/// One message between nodes.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Operations in one message between nodes.
pub const PEER_MESSAGE_OPS_MAX: usize = 8_192;
/// Wait before an operation is submitted again whose shard was on its way to another node.
pub const MOVED_RETRY: Duration = Duration::from_millis(10);
/// Wait before a question is asked again whose shard nobody serves, unless somebody does earlier.
pub const OWNER_RETRY: Duration = Duration::from_millis(100);
/// Another node may take this long to load, compile and try a rule's policies.
pub const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Every live node has a stored rule in force within this, or the change is answered with who has not.
pub const ACTIVATION_TIMEOUT: Duration = Duration::from_secs(15);
/// Beyond the deadline of its last request, a serving thread holds rules that were replaced for less than this.
pub const RULES_LET_GO: Duration = Duration::from_secs(2);
/// Name of a cluster, in bytes: a keyspace has at most 48.
pub const CLUSTER_NAME_BYTES_MAX: usize = 48;
/// Copies of everything in a keyspace that is made, and what it may be set to.
pub const REPLICATION: u8 = 3;
pub const REPLICATION_RANGE: RangeInclusive<u64> = 1..=9;
/// Appends to a journal behind a network that a node has under way at once, and what it may be set to.
pub const APPENDS: usize = 4;
pub const APPENDS_RANGE: RangeInclusive<u64> = 1..=256;
/// Shards with something to write for each append under way, up to those: the others gather meanwhile.
pub const LANES_PER_APPEND: usize = 3;
/// A shard behind a network gathers operations for so many times the duration of a write, from so many clients on, and never
/// longer than this.
pub const GATHER_WRITES: f64 = 1.0;
pub const GATHER_CROWD_MIN: usize = 16;
pub const GATHER_TIME_MAX: Duration = Duration::from_millis(5);
/// The lease of a node in the registry, and what it may be set to. A dead node's shards wait this long.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
pub const LEASE_TTL_RANGE: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);
pub const LEASE_TTL_MS_RANGE: RangeInclusive<u64> = 2_000..=60_000;
/// One call of the registry, and to reach it at the start.
pub const REGISTRY_CALL_TIMEOUT: Duration = Duration::from_secs(2);
pub const REGISTRY_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before a lost session with the registry is made anew: the first time, and at most. Up to as much again is drawn.
pub const REGISTRY_RETRY: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(800));
/// A node writes its load into the registry at most this often.
pub const NODE_REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// Keys read from the registry at once, and bytes of one of its messages: so many values of 64 KiB fit.
pub const REGISTRY_PAGE_KEYS: i64 = 500;
pub const REGISTRY_MESSAGE_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Read, compare and write again in the registry before a write is given up.
pub const REGISTRY_ATTEMPTS_MAX: usize = 8;
/// TLS files of the registry, in bytes.
pub const TLS_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Shards that one node hands over, and takes over, at the same time.
pub const RELEASES_MAX: usize = 4;
pub const TAKEOVERS_MAX: usize = 16;
/// A shard that could not be claimed or taken over is tried again after this: the first time, and at most.
pub const TAKEOVER_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A journal that this node stands by for is read again after this: while it grows, and at most. Each time takes a few
/// serial reads, which cost Cassandra more than the entries do.
pub const STANDBY_INTERVAL: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(30));
/// When so many counters and idempotency records of one such journal are in memory, those that the checkpoint holds are
/// forgotten, and again whenever they have doubled since.
pub const STANDBY_RECORDS: usize = 20_000;
/// How often the owner of shards looks at the clock.
pub const OWNERSHIP_TICK: Duration = Duration::from_millis(50);
/// Cassandra: copies of everything, when a keyspace is made.
pub const CASSANDRA_REPLICATION_FACTOR: u8 = 3;
/// To connect to one server.
pub const CASSANDRA_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that starts waits this long for a server that can be connected to, and tries this often.
pub const CASSANDRA_START_TIMEOUT: Duration = Duration::from_secs(60);
pub const CASSANDRA_START_RETRY: Duration = Duration::from_secs(1);
/// A connection to Cassandra is asked for a sign of life this often, and given up without one after this long: a broken
/// one is otherwise kept for as long as TCP tries.
pub const CASSANDRA_KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// A node that starts asks a Cassandra that answers too slowly again for so long.
pub const STORE_START_PATIENCE: Duration = Duration::from_secs(30);
/// To wait for the answer to one statement, and to one that changes the schema.
pub const CASSANDRA_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
pub const CASSANDRA_SCHEMA_TIMEOUT: Duration = Duration::from_secs(60);
/// A conditional write of unknown outcome is sent again for this long; within `OPERATION_DEADLINE`.
pub const CASSANDRA_SETTLE_TIMEOUT: Duration = Duration::from_secs(8);
/// Wait before it is: the first time, and at most.
pub const CASSANDRA_RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A takeover begins anew this often when another owner comes in between.
pub const CASSANDRA_TAKEOVER_TRIES: usize = 8;
/// A small value is read or written anew this often when others write it.
pub const CASSANDRA_VALUE_TRIES: usize = 8;
/// A journal segment is one partition; those should stay well below 100 MB.
pub const CASSANDRA_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Journal entries asked for at once, at least and at most, and about how many bytes an answer should have.
pub const CASSANDRA_ENTRIES_PAGE: (i32, i32) = (4, 1_000);
pub const CASSANDRA_ANSWER_BYTES: usize = 2 * 1024 * 1024;
/// Rows of a checkpoint in one batch: below the size that servers warn of (5 KiB) would cost twice the time.
pub const CASSANDRA_BATCH_BYTES: usize = 16 * 1024;
/// Batches and rows of a checkpoint under way at once.
pub const CASSANDRA_WRITES_IN_FLIGHT: usize = 16;
/// Partitions of a list read at once.
pub const CASSANDRA_LIST_READS_IN_FLIGHT: usize = 32;
/// Larger values and marks are stored in chunks of this size.
pub const CASSANDRA_CHUNK_BYTES: usize = 512 * 1024;
/// Small values read at once by a scan.
pub const CASSANDRA_SCAN_PAGE: usize = 64;
/// Format of journal entries and of messages between nodes, as nodes tell each other.
pub const FORMAT: u32 = 2;
/// A stopping node hands its shards over within this, or the others take them when its lease ends.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);
/// Differences that an audit names; it counts all.
pub const AUDIT_DIFFERENCES_MAX: usize = 100;
/// How often the audit looks at a partial that seems different, before it says so.
pub const AUDIT_LOOKS: usize = 20;
/// A node recounts its shards within this.
pub const AUDIT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Operations of one node that wait for a shard; a counter is spread wider, where its rule allows it, when all of its usual
/// shards have so many.
pub const SATURATED_OPS: usize = 512;
