//! Every limit of a policy, in one struct. What holds is the smaller of the server's and the revision's own.
//!
//! These are the walls around foreign code; limits of the service itself are in `crate::limits`.

use std::time::Duration;

/// One tick of the epoch clock: the grain of every deadline, and how often a busy pooled call yields.
pub const TICK: Duration = Duration::from_millis(1);
/// While nothing is asked the clock ticks this slowly.
pub const TICK_IDLE: Duration = Duration::from_millis(25);
/// So long after the last call it becomes slow.
pub const TICK_IDLE_AFTER: Duration = Duration::from_millis(500);
/// How far policy threads, and those that compile, give way to serving threads; 0 is as important, 19 the least.
pub const POOL_NICENESS: i32 = 5;
pub const COMPILE_NICENESS: i32 = 10;
/// Guest frames may use this much of the thread's stack; host calls run on top of it.
pub const STACK_BYTES_MAX: usize = 512 * 1024;
/// Of each window of time, a policy that was moved to the pool because its calls kept serving threads busy has so much while
/// fewer cores than this are idle; the native choice answers what comes after. A twentieth of a thread, as on the serving threads.
pub const POOL_SHARE: Duration = Duration::from_millis(5);
pub const POOL_SHARE_WINDOW: Duration = Duration::from_millis(100);
pub const POOL_SHARE_IDLE_CORES: f64 = 1.0;
/// Why such a policy is on the pool. The store keeps this text with the placement.
pub const KEPT_BUSY: &str = "its slow calls took more than a twentieth of a serving thread's time";
/// Stack of a pooled call: the guest's frames and those of the host calls.
pub const POOLED_STACK_BYTES: usize = 2 * 1024 * 1024;
/// Resources (streams, pollables, errors) that one instance may hold open at the host.
pub const RESOURCES_MAX: usize = 256;
/// Random bytes that a policy gets in one call.
pub const RANDOM_BYTES_MAX: u64 = 64 * 1024;
/// Imported instances and functions of one component.
pub const IMPORTS_MAX: usize = 256;
/// Instances of components and core modules that one component makes, nested ones counted as often as they are made.
pub const INSTANCES_MAX: u64 = 256;
/// Nested components, one in another.
pub const NESTING_MAX: usize = 16;
/// Code of one function: what the compiler needs grows faster than this.
pub const FUNCTION_BYTES_MAX: usize = 512 * 1024;
/// Characters of a policy's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Answers of the host during one call that a recording keeps; a call that hears more ends it.
pub const HEARD_MAX: usize = 4_096;
/// A rule's `config` for a policy.
pub const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// Log lines kept per revision for the operator.
pub const LOG_LINES_KEPT: usize = 200;
/// Files in the cache of compiled code; the oldest go first.
pub const CACHE_ENTRIES_MAX: usize = 256;
/// Compilations at one time; further ones wait.
pub const COMPILATIONS_MAX: usize = 2;
/// Dry runs at one time; further ones wait.
pub const DRY_RUNS_MAX: usize = 2;
/// Wall time of one dry run, all calls and instances together. It ends at the first answer after that.
pub const DRY_RUN_TIME: Duration = Duration::from_secs(10);
/// Dry runs of one revision, where one missed a wall-time deadline because this machine was busy with something else.
pub const DRY_RUN_ATTEMPTS: usize = 3;
/// What an instance may grow by while it answers: so much at any time, and so much more for each call it has answered. Each
/// growth changes the address space of the process, and all its threads wait for that. A table with an entry for each
/// counter grows by far less; a policy that takes more memory in call after call leaks it. In `configure` and `refresh` only
/// the limits of memory hold.
pub const GROWTH_FREE_BYTES: usize = 4 * 1024 * 1024;
pub const GROWTH_PER_CALL_BYTES: usize = 4 * 1024;
/// A policy whose calls take longer than this in the median does not run on the serving thread.
pub const INLINE_MEDIAN_MAX: Duration = Duration::from_micros(5);
/// A call on the serving thread is slow when it takes longer than this, and so much more for each shard it is told of. Far
/// above the median that admission allows; the breaker's settings say when slow calls open it.
pub const INLINE_SLOW: (Duration, Duration) = (Duration::from_micros(20), Duration::from_nanos(200));
/// Public keys that a node trusts.
pub const TRUSTED_KEYS_MAX: usize = 64;
/// Bindings alive at one time: two policies of each rule, old and new while rules change, and canaries.
pub const BINDINGS_MAX: usize = 8 * crate::limits::RULES_MAX;
/// Revisions that a catalog holds.
pub const REVISIONS_MAX: usize = 1_024;

/// Keys of one plugin in the registry, and all its keys and values in bytes.
pub const REGISTRY_KEYS_MAX: usize = 1_000;
pub const REGISTRY_BYTES_MAX: usize = 4 * 1024 * 1024;
pub const REGISTRY_KEY_BYTES_MAX: usize = 256;
/// The same for a plugin's space of the store.
pub const STORAGE_KEYS_MAX: usize = 10_000;
pub const STORAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
pub const STORAGE_KEY_BYTES_MAX: usize = 512;
/// One value of either.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Entries of one `registry.list`.
pub const LIST_ENTRIES_MAX: u32 = 1_000;

/// The limits that a server sets and a revision may lower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance that runs inline, all its memories together.
    pub memory_inline_bytes: usize,
    /// The same of one that runs on the pool: interpreted languages need more.
    pub memory_pooled_bytes: usize,
    /// Linear memory of all instances of the node together.
    pub memory_node_bytes: usize,
    /// Elements of all tables of an instance.
    pub table_elements: usize,
    /// Core instances, memories and tables, each, of one component.
    pub core_instances: usize,
    /// CPU time of one inline call.
    pub deadline_inline: Duration,
    /// Wall time of one pooled call, from the queue to the answer, host calls included.
    pub deadline_pooled: Duration,
    /// CPU time of instantiation and `configure` together of an inline instance: it is made on a serving thread.
    pub deadline_configure_inline: Duration,
    /// The wall time of the same on the pool, where interpreted languages begin.
    pub deadline_configure_pooled: Duration,
    /// CPU time of one inline `refresh`. On the pool it is a part of the call.
    pub deadline_refresh: Duration,
    /// Wall time of one call of `registry` or `storage`.
    pub deadline_host_call: Duration,
    /// Host calls of one call of the policy.
    pub host_calls: u32,
    /// Those of them that ask `registry` or `storage`.
    pub io_calls: u32,
    /// Bytes that one host call takes from the policy or gives to it, and that the policy returns: strings and lists.
    pub host_call_bytes: usize,
    /// Log lines a second of a revision on a node; the rest is counted and dropped.
    pub log_lines_per_second: u32,
    /// A log line is cut here.
    pub log_line_bytes: usize,
    /// A guest's error text is cut here before it is shown.
    pub error_text_bytes: usize,
    /// A component as uploaded.
    pub component_bytes: usize,
    /// Wall time of one compilation.
    pub compile_time: Duration,
    /// Instances of one revision on the pool.
    pub pooled_instances: u32,
    /// Calls of one revision that wait for the pool or run on it.
    pub pooled_queue: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_inline_bytes: 16 * 1024 * 1024,
            memory_pooled_bytes: 64 * 1024 * 1024,
            memory_node_bytes: 1024 * 1024 * 1024,
            table_elements: 64 * 1024,
            core_instances: 64,
            deadline_inline: Duration::from_millis(1),
            deadline_pooled: Duration::from_millis(100),
            deadline_configure_inline: Duration::from_millis(20),
            deadline_configure_pooled: Duration::from_secs(2),
            deadline_refresh: Duration::from_millis(20),
            deadline_host_call: Duration::from_millis(50),
            host_calls: 16_384,
            io_calls: 64,
            host_call_bytes: 256 * 1024,
            log_lines_per_second: 10,
            log_line_bytes: 1024,
            error_text_bytes: 1024,
            component_bytes: 64 * 1024 * 1024,
            compile_time: Duration::from_secs(60),
            pooled_instances: 2,
            pooled_queue: 256,
        }
    }
}

impl Limits {
    /// The smaller of each.
    pub fn min(&self, other: &Self) -> Self {
        Self {
            memory_inline_bytes: self.memory_inline_bytes.min(other.memory_inline_bytes),
            memory_pooled_bytes: self.memory_pooled_bytes.min(other.memory_pooled_bytes),
            memory_node_bytes: self.memory_node_bytes.min(other.memory_node_bytes),
            table_elements: self.table_elements.min(other.table_elements),
            core_instances: self.core_instances.min(other.core_instances),
            deadline_inline: self.deadline_inline.min(other.deadline_inline),
            deadline_pooled: self.deadline_pooled.min(other.deadline_pooled),
            deadline_configure_inline: self.deadline_configure_inline.min(other.deadline_configure_inline),
            deadline_configure_pooled: self.deadline_configure_pooled.min(other.deadline_configure_pooled),
            deadline_refresh: self.deadline_refresh.min(other.deadline_refresh),
            deadline_host_call: self.deadline_host_call.min(other.deadline_host_call),
            host_calls: self.host_calls.min(other.host_calls),
            io_calls: self.io_calls.min(other.io_calls),
            host_call_bytes: self.host_call_bytes.min(other.host_call_bytes),
            log_lines_per_second: self.log_lines_per_second.min(other.log_lines_per_second),
            log_line_bytes: self.log_line_bytes.min(other.log_line_bytes),
            error_text_bytes: self.error_text_bytes.min(other.error_text_bytes),
            component_bytes: self.component_bytes.min(other.component_bytes),
            compile_time: self.compile_time.min(other.compile_time),
            pooled_instances: self.pooled_instances.min(other.pooled_instances),
            pooled_queue: self.pooled_queue.min(other.pooled_queue),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_holds_on_either_side() {
        let server = Limits { io_calls: 3, log_line_bytes: 100, ..Limits::default() };
        let plugin = Limits { io_calls: 5, memory_inline_bytes: 7, ..Limits::default() };
        let both = Limits { io_calls: 3, log_line_bytes: 100, memory_inline_bytes: 7, ..Limits::default() };
        assert_eq!(server.min(&plugin), both);
        assert_eq!(plugin.min(&server), both);
    }
}
