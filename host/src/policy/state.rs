//! What the host keeps for one instance: its memory account, its clock, what is left of its call's budget, and what its
//! imports need. It is the data of the instance's store; `imports` implements the interfaces on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use wasi_rand::SeedableRng;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Trap};
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};

use super::breaker::Breakers;
use super::fault::{Fault, Kind};
use super::imports::log::{self, Lines};
use super::imports::mirror::Mirror;
use super::imports::{Backend, Grants};
use super::limits::{self, Limits};
use super::recording::format::Seed;
use super::recording::tape::{Clocks, Tape};
use super::stats::Stats;
use super::view::{Published, View};

/// What all instances of the node share.
pub(super) struct Node {
    pub enabled: AtomicBool,
    /// Something was asked since the clock last looked.
    pub asked: Arc<AtomicBool>,
    pub published: Published,
    /// Bits of an f64, 0.0 to 1.0.
    cpu: AtomicU64,
    pub budget: Arc<Budget>,
    pub backend: Option<Arc<dyn Backend>>,
}

impl Node {
    pub fn new(enabled: bool, memory_bytes: usize, backend: Option<Arc<dyn Backend>>) -> Self {
        Self {
            enabled: AtomicBool::new(enabled),
            asked: Arc::new(AtomicBool::new(true)),
            published: Published::new(),
            cpu: AtomicU64::new(0f64.to_bits()),
            budget: Arc::new(Budget { left_bytes: AtomicUsize::new(memory_bytes) }),
            backend,
        }
    }

    /// Another node for a dry run: with this one's memory and clock, and nothing else of it.
    pub fn aside(&self, backend: Arc<dyn Backend>) -> Self {
        Self {
            enabled: AtomicBool::new(true),
            asked: self.asked.clone(),
            published: Published::new(),
            cpu: AtomicU64::new(self.cpu().to_bits()),
            budget: self.budget.clone(),
            backend: Some(backend),
        }
    }

    pub fn cpu(&self) -> f64 {
        f64::from_bits(self.cpu.load(Ordering::Relaxed))
    }

    pub fn set_cpu(&self, cpu: f64) {
        self.cpu.store(cpu.to_bits(), Ordering::Relaxed);
    }
}

/// Linear memory that all instances of the node may still take.
#[derive(Debug)]
pub(super) struct Budget {
    left_bytes: AtomicUsize,
}

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What all instances of one revision share. Instances hold it, never the revision itself, which holds instances.
#[derive(Debug)]
pub(super) struct Shared {
    pub name: String,
    pub digest: String,
    pub limits: Limits,
    pub stats: Stats,
    pub breakers: Breakers,
    pub lines: Lines,
}

/// Why the host ends a call. The error that the guest's call then returns carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    #[error("it used up its {0:?} of CPU time")]
    Deadline(Duration),
    #[error("it made more than {0} host calls in one call")]
    HostCalls(u32),
    #[error("it asked the registry or the storage more than {0} times in one call")]
    IoCalls(u32),
    #[error("it waits for something, which a policy that runs inline may not")]
    Waits,
}

/// What a call of the host asks of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To begin, or to look at a view: rare.
    Prepare,
    /// For an answer: often.
    Answer,
}

/// Why an instance got no more memory or table elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denied {
    /// It, or the node, has all it may have.
    Full,
    /// It takes more in call after call.
    Leaks,
}

/// Counts the memory and tables of one instance against its limits.
pub(super) struct Account {
    memory_bytes_max: usize,
    table_elements_max: usize,
    core_instances_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    /// Taken by the growth that is under way.
    growing_bytes: usize,
    asked: Asked,
    /// What it may still grow by while it answers.
    growth_left_bytes: usize,
    /// Refused something during this call.
    denied: Option<Denied>,
    /// Refused something ever.
    pub denied_once: bool,
    budget: Arc<Budget>,
    shared: Arc<Shared>,
}

impl Account {
    fn begin(&mut self, asked: Asked) {
        self.denied = None;
        self.asked = asked;
        if asked == Asked::Answer {
            self.growth_left_bytes = self.growth_left_bytes.saturating_add(limits::GROWTH_PER_CALL_BYTES);
        }
    }

    fn deny(&mut self, why: Denied) {
        self.denied = Some(why);
        self.denied_once = true;
    }

    /// Whether it may take so many bytes more; they are taken then.
    fn grow(&mut self, bytes: usize) -> Result<(), Denied> {
        if self.memory_bytes.saturating_add(bytes) > self.memory_bytes_max {
            return Err(Denied::Full);
        }
        let growth_left = match self.asked {
            Asked::Prepare => self.growth_left_bytes,
            Asked::Answer => self.growth_left_bytes.checked_sub(bytes).ok_or(Denied::Leaks)?,
        };
        if !self.budget.take(bytes) {
            return Err(Denied::Full);
        }
        self.growth_left_bytes = growth_left;
        self.growing_bytes = bytes;
        self.memory_bytes += bytes;
        Ok(())
    }
}

impl ResourceLimiter for Account {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.growing_bytes = 0;
        match self.grow(desired.saturating_sub(current)) {
            Ok(()) => {
                self.shared.stats.memory(self.memory_bytes);
                Ok(true)
            }
            Err(why) => {
                self.deny(why);
                Ok(false)
            }
        }
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= self.growing_bytes;
        self.budget.give_back(std::mem::take(&mut self.growing_bytes));
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let elements = desired.saturating_sub(current);
        if self.table_elements.saturating_add(elements) > self.table_elements_max {
            self.deny(Denied::Full);
            return Ok(false);
        }
        self.table_elements += elements;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.core_instances_max
    }

    fn tables(&self) -> usize {
        self.core_instances_max
    }

    fn memories(&self) -> usize {
        self.core_instances_max
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.give_back(self.memory_bytes);
    }
}

/// The deadline of an inline call, in CPU time of its thread. Nothing is read while the call stays within one tick.
#[derive(Debug, Default)]
struct Clock {
    limit: Duration,
    /// The thread's CPU time at the first tick that this call saw.
    since: Option<Duration>,
}

impl Clock {
    /// A tick came while the guest ran. Wall time proves nothing: the thread may not have run at all meanwhile.
    fn tick(&mut self, now: Duration) -> Result<(), Stop> {
        match self.since {
            None => self.since = Some(now),
            Some(since) if now.saturating_sub(since) + limits::TICK / 4 >= self.limit => {
                return Err(Stop::Deadline(self.limit));
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// CPU time that the calling thread has used since it began.
pub(super) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

pub(super) struct State {
    wasi: WasiCtx,
    pub table: ResourceTable,
    pub account: Account,
    clock: Clock,
    pub host_calls_left: u32,
    pub io_calls_left: u32,
    pub view: Arc<View>,
    pub node: Arc<Node>,
    /// The node's, or what a recording puts in its place.
    pub backend: Option<Arc<dyn Backend>>,
    /// Of a policy that reads the registry inline.
    pub mirror: Option<Arc<Mirror>>,
    /// Of an instance that is recorded, or run again.
    pub tape: Option<Arc<Tape>>,
    pub shared: Arc<Shared>,
    pub grants: Grants,
}

impl State {
    pub fn new(
        node: &Arc<Node>,
        shared: &Arc<Shared>,
        grants: Grants,
        memory_bytes_max: usize,
        mirror: Option<Arc<Mirror>>,
        tape: Option<Arc<Tape>>,
    ) -> Self {
        let limits = &shared.limits;
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::RESOURCES_MAX);
        Self {
            wasi: nothing_granted(shared, tape.as_ref()),
            table,
            account: Account {
                memory_bytes_max,
                table_elements_max: limits.table_elements,
                core_instances_max: limits.core_instances,
                memory_bytes: 0,
                table_elements: 0,
                growing_bytes: 0,
                asked: Asked::Prepare,
                growth_left_bytes: limits::GROWTH_FREE_BYTES,
                denied: None,
                denied_once: false,
                budget: node.budget.clone(),
                shared: shared.clone(),
            },
            clock: Clock::default(),
            host_calls_left: limits.host_calls,
            io_calls_left: limits.io_calls,
            // A recording holds the views that came by `refresh`, so its instances begin with none.
            view: if tape.is_none() { node.published.load() } else { Arc::default() },
            backend: match &tape {
                None => node.backend.clone(),
                Some(tape) => tape.backend(node.backend.clone()),
            },
            mirror,
            tape,
            node: node.clone(),
            shared: shared.clone(),
            grants,
        }
    }

    /// A call begins: its budget is whole again.
    pub fn begin(&mut self, asked: Asked, limit: Duration) {
        // Read first: the line is written once per tick, not once per call.
        if !self.node.asked.load(Ordering::Relaxed) {
            self.node.asked.store(true, Ordering::Relaxed);
        }
        self.clock = Clock { limit, since: None };
        self.host_calls_left = self.shared.limits.host_calls;
        self.io_calls_left = self.shared.limits.io_calls;
        self.account.begin(asked);
    }

    /// The epoch clock ticked during an inline call.
    pub fn tick(&mut self) -> Result<(), Stop> {
        self.node.asked.store(true, Ordering::Relaxed);
        self.clock.tick(thread_cpu())
    }

    /// One host call of any interface.
    pub fn host_call(&mut self) -> Result<(), Stop> {
        let left = self.host_calls_left.checked_sub(1).ok_or(Stop::HostCalls(self.shared.limits.host_calls))?;
        self.host_calls_left = left;
        Ok(())
    }

    /// One call of `registry` or `storage`.
    pub fn io_call(&mut self) -> Result<(), Stop> {
        self.host_call()?;
        let left = self.io_calls_left.checked_sub(1).ok_or(Stop::IoCalls(self.shared.limits.io_calls))?;
        self.io_calls_left = left;
        Ok(())
    }

    /// Names the fault that ended a call with this error.
    pub fn classify(&self, error: &wasmtime::Error) -> Fault {
        let cause = error.root_cause().to_string();
        let kind = match (error.downcast_ref::<Stop>(), error.downcast_ref::<Trap>()) {
            (Some(Stop::Deadline(_)), _) | (_, Some(Trap::Interrupt)) => Kind::Deadline,
            (Some(Stop::HostCalls(_) | Stop::IoCalls(_)), _) => Kind::HostCalls,
            // The runtime does not export the type of this error.
            _ if cause.contains("fuel allocated for hostcalls") => Kind::HostCalls,
            _ if self.account.denied.is_some() => Kind::Memory,
            _ => Kind::Trap,
        };
        let detail = match (error.downcast_ref::<I32Exit>(), self.account.denied) {
            (Some(I32Exit(code)), _) => format!("it exited with code {code}"),
            (None, Some(Denied::Full)) if kind == Kind::Memory => {
                format!("it was refused memory or table elements; then: {cause}")
            }
            (None, Some(Denied::Leaks)) if kind == Kind::Memory => format!(
                "it was refused memory: while it answers it may grow by {} KiB, and {} KiB more for each call; then: {cause}",
                limits::GROWTH_FREE_BYTES / 1024,
                limits::GROWTH_PER_CALL_BYTES / 1024
            ),
            _ => cause,
        };
        Fault::new(kind, log::cut(&detail, self.shared.limits.error_text_bytes))
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// WASI with clocks and random numbers, and nothing else: no files, network, environment or arguments. What the guest
/// prints goes where its log lines go. Random numbers come from a seed of this instance.
fn nothing_granted(shared: &Arc<Shared>, tape: Option<&Arc<Tape>>) -> WasiCtx {
    let Seed(seed) = tape.map_or_else(Seed::draw, |tape| tape.seed());
    let generator = |stream: u8| {
        let mut seed = seed;
        seed[0] ^= stream;
        wasi_rand::rngs::StdRng::from_seed(seed)
    };
    let (low, _) = seed.split_at(16);
    let mut wasi = WasiCtx::builder();
    if let Some(tape) = tape {
        wasi.wall_clock(Clocks::new(tape)).monotonic_clock(Clocks::new(tape));
    }
    wasi.secure_random(generator(1))
        .insecure_random(generator(2))
        .insecure_random_seed(u128::from_le_bytes(low.try_into().expect("16 bytes")))
        .max_random_size(limits::RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .stdout(log::Output::new(shared.clone(), log::Level::Info))
        .stderr(log::Output::new(shared.clone(), log::Level::Error))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_run_does_not_use_its_deadline() {
        let ms = Duration::from_millis;
        let mut clock = Clock { limit: ms(1), since: None };
        assert_eq!(clock.tick(ms(500)), Ok(()), "the first tick only looks at the clock");
        for _ in 0..100 {
            assert_eq!(clock.tick(ms(500)), Ok(()), "ticks pass, the thread does not run");
        }
        assert_eq!(clock.tick(ms(501)), Err(Stop::Deadline(ms(1))));
    }

    #[test]
    fn the_thread_clock_advances_with_work() {
        let start = thread_cpu();
        let mut x = 1u64;
        while thread_cpu() <= start {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(thread_cpu() - start < Duration::from_secs(5));
    }

    #[test]
    fn the_budget_of_the_node_is_given_back() {
        let budget = Budget { left_bytes: AtomicUsize::new(10) };
        assert!(budget.take(7) && !budget.take(4) && budget.take(3));
        budget.give_back(10);
        assert!(budget.take(10));
    }
}
