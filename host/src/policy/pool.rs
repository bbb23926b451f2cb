//! Policies that wait for something, or are too large for every serving thread: a few instances per revision on a few
//! threads of their own, behind a bounded queue.
//!
//! The caller waits for its deadline and no longer; then the native choice answers. The work goes on under its own
//! deadlines, so that an instance which takes longer to make than a call may last is made once and then kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::binding::Binding;
use super::breaker::Admission;
use super::engine::Engine;
use super::fault::{Fault, Kind};
use super::instance::{Instance, Unready};
use super::limits::{self, Limits};
use super::view::{self, Chosen, Combined, Partial, Plan, Planned, Read, Select};

/// The lane of the statistics for pooled calls.
const LANE: usize = 0;

/// This thread runs when others have no work for its core: what it does may take its time, and what serving threads do
/// may not. Every system allows a thread to lower its own priority.
pub(super) fn give_way(niceness: i32) {
    if rustix::process::setpriority_process(None, niceness).is_err() {
        tracing::debug!("a thread keeps the usual priority");
    }
}

/// The policy threads.
pub(super) struct Pool {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Pool {
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("quipu-policy")
            .on_thread_start(|| give_way(limits::POOL_NICENESS))
            .enable_time()
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Runs something on the pool and blocks until it answers; None when it does not in time.
    pub fn wait<T: Send + 'static>(
        &self,
        what: impl Future<Output = T> + Send + 'static,
        limit: std::time::Duration,
    ) -> Option<T> {
        let (tell, told) = mpsc::sync_channel(1);
        self.handle.spawn(async move { drop(tell.send(what.await)) });
        told.recv_timeout(limit).ok()
    }

    /// Makes an instance of a new binding, and keeps it. Blocks.
    pub fn try_out(&self, binding: &Arc<Binding>) -> Result<(), Unready> {
        let (tell, told) = mpsc::sync_channel(1);
        let task_binding = binding.clone();
        self.handle.spawn(async move {
            let made =
                make(&task_binding).await.map(|instance| task_binding.revision.pooled.keep(task_binding.id, instance));
            drop(task_binding);
            let _ = tell.send(made);
        });
        // The task has a deadline of its own; this one is for a pool that does not get to run.
        let limit = 2 * binding.revision.shared.limits.deadline_configure_pooled;
        let late = |_| Unready::Fault(Fault::new(Kind::Deadline, "the pool did not come to it in time"));
        told.recv_timeout(limit).map_err(late)?
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed on a runtime's thread, and nothing here has to be finished.
            runtime.shutdown_background();
        }
    }
}

/// The pooled instances of one revision.
pub(super) struct Pooled {
    permits: Arc<Semaphore>,
    instances_max: usize,
    queue_max: u32,
    /// Calls that wait or run.
    queued: AtomicU32,
    /// Instances that nobody uses now, oldest first, each with its binding's id.
    idle: Mutex<Vec<(u64, Instance)>>,
}

impl Pooled {
    pub fn new(limits: &Limits) -> Self {
        let instances_max = limits.pooled_instances.max(1) as usize;
        Self {
            permits: Arc::new(Semaphore::new(instances_max)),
            instances_max,
            queue_max: limits.pooled_queue,
            queued: AtomicU32::new(0),
            idle: Mutex::default(),
        }
    }

    /// An idle instance of this binding. If there is none, makes room for one.
    fn take(&self, id: u64) -> Option<Instance> {
        let mut idle = self.idle.lock();
        if let Some(at) = idle.iter().rposition(|(of, _)| *of == id) {
            return Some(idle.remove(at).1);
        }
        let in_use = self.instances_max - self.permits.available_permits();
        while !idle.is_empty() && idle.len() + in_use > self.instances_max {
            idle.remove(0);
        }
        None
    }

    fn keep(&self, id: u64, instance: Instance) {
        let mut idle = self.idle.lock();
        if idle.len() >= self.instances_max {
            idle.remove(0);
        }
        idle.push((id, instance));
    }

    /// Drops the idle instances of a binding that is gone.
    pub fn forget(&self, id: u64) {
        self.idle.lock().retain(|(of, _)| *of != id);
    }
}

enum Question {
    Select { counter: String, amount: i64, key_hash: u64, candidates: Vec<u32> },
    Plan { counter: String, key_hash: u64, shards: Vec<u32>, max_age_ms: u32 },
    Combine(Vec<Partial>),
}

enum Answer {
    Shard(u32),
    Plan(Plan),
    Total(i128),
}

/// As [`super::Local::select_now`], on the pool.
pub async fn select_pooled(engine: &Engine, binding: &Arc<Binding>, request: &Select<'_>) -> Chosen {
    let question = Question::Select {
        counter: request.counter.to_owned(),
        amount: request.amount,
        key_hash: request.key_hash,
        candidates: request.candidates.to_vec(),
    };
    match ask(engine, binding, question).await {
        Some(Answer::Shard(shard)) => Chosen { shard, fallback: false },
        _ => view::select_natively(request.candidates),
    }
}

/// As [`super::Local::plan_now`], on the pool.
pub async fn plan_pooled(engine: &Engine, binding: &Arc<Binding>, request: &Read<'_>) -> Planned {
    let question = Question::Plan {
        counter: request.counter.to_owned(),
        key_hash: request.key_hash,
        shards: request.shards.to_vec(),
        max_age_ms: request.max_age_ms,
    };
    match ask(engine, binding, question).await {
        Some(Answer::Plan(plan)) => Planned { plan, fallback: false },
        _ => Planned { plan: Plan::All, fallback: true },
    }
}

/// As [`super::Local::combine_now`], on the pool.
pub async fn combine_pooled(engine: &Engine, binding: &Arc<Binding>, partials: &[Partial]) -> Combined {
    match ask(engine, binding, Question::Combine(partials.to_vec())).await {
        Some(Answer::Total(total)) => Combined { total, fallback: false },
        _ => view::combine_natively(partials),
    }
}

/// None: no answer; it is counted why.
async fn ask(engine: &Engine, binding: &Arc<Binding>, question: Question) -> Option<Answer> {
    let shared = &binding.revision.shared;
    if !engine.enabled() {
        shared.stats.count(LANE, Kind::Unavailable);
        return None;
    }
    if binding.share.as_ref().is_some_and(|share| share.is_used_up(binding.node.cpu())) {
        shared.stats.count(LANE, Kind::ShareUsed);
        return None;
    }
    let Some(queued) = Queued::enter(binding) else {
        shared.stats.count(LANE, Kind::QueueFull);
        return None;
    };
    let admission = binding.breaker.admit();
    if admission == Admission::Refused {
        shared.stats.count(LANE, Kind::BreakerOpen);
        return None;
    }
    shared.stats.call(LANE);
    let began = Instant::now();
    let (tell, told) = oneshot::channel();
    engine.pool.handle.spawn(work(queued, question, admission, tell));
    let limit = shared.limits.deadline_pooled;
    let late = || Fault::new(Kind::Deadline, format!("no answer within {limit:?}, the wait for an instance included"));
    match timeout(limit, told).await {
        Ok(Ok(Ok(answer))) => {
            shared.stats.timed(LANE, began.elapsed());
            return Some(answer);
        }
        Ok(Ok(Err(fault))) => shared.stats.fault(LANE, fault),
        Ok(Err(_)) => shared.stats.fault(LANE, Fault::new(Kind::Unavailable, "the pool ends")),
        Err(_) => shared.stats.fault(LANE, late()),
    }
    None
}

/// A place in the revision's queue, until dropped.
struct Queued(Arc<Binding>);

impl Queued {
    fn enter(binding: &Arc<Binding>) -> Option<Self> {
        let pooled = &binding.revision.pooled;
        let more = |queued: u32| (queued < pooled.queue_max).then_some(queued + 1);
        pooled.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(binding.clone()))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.revision.pooled.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn work(queued: Queued, question: Question, admission: Admission, tell: oneshot::Sender<Result<Answer, Fault>>) {
    let binding = &queued.0;
    let (pooled, shared) = (&binding.revision.pooled, &binding.revision.shared);
    let Ok(_permit) = pooled.permits.clone().acquire_owned().await else { return };
    if tell.is_closed() {
        return;
    }
    let recording = binding.taping.recording();
    let instance = match pooled.take(binding.id) {
        // A recording begins with new instances.
        Some(instance) if recording == 0 || instance.recording() == recording => Ok(instance),
        _ => make(binding).await.map_err(Fault::from),
    };
    let mut instance = match instance {
        Ok(instance) => instance,
        Err(fault) => {
            binding.breaker.failed(fault.kind);
            let _ = tell.send(Err(fault));
            return;
        }
    };
    let limit = shared.limits.deadline_pooled;
    let late = |_| Err(Fault::new(Kind::Deadline, format!("it did not answer within {limit:?}")));
    let began = binding.share.as_ref().map(|share| (share, Instant::now()));
    let answer = timeout(limit, answer(&mut instance, binding, &question)).await.unwrap_or_else(late);
    if let Some((share, began)) = began {
        share.spend(began.elapsed());
    }
    match &answer {
        Err(fault) if fault.kind.is_the_guests() => {
            drop(instance);
            binding.breaker.failed(fault.kind);
        }
        _ => {
            pooled.keep(binding.id, instance);
            binding.breaker.succeeded(admission);
        }
    }
    let _ = tell.send(answer);
}

async fn make(binding: &Binding) -> Result<Instance, Unready> {
    let limit = binding.revision.shared.limits.deadline_configure_pooled;
    let late = |_| Unready::Fault(Fault::new(Kind::Deadline, format!("it was not configured within {limit:?}")));
    timeout(limit, Instance::new_async(binding)).await.map_err(late)?
}

async fn answer(instance: &mut Instance, binding: &Binding, question: &Question) -> Result<Answer, Fault> {
    let generation = binding.node.published.generation();
    if instance.generation != generation {
        instance.refresh_async(&binding.node.published.load(), generation).await?;
    }
    match question {
        Question::Select { counter, amount, key_hash, candidates } => {
            let request = Select { counter, amount: *amount, key_hash: *key_hash, candidates };
            instance.select_async(&request).await.map(Answer::Shard)
        }
        Question::Plan { counter, key_hash, shards, max_age_ms } => {
            let request = Read { counter, key_hash: *key_hash, shards, max_age_ms: *max_age_ms };
            instance.plan_async(&request).await.map(Answer::Plan)
        }
        Question::Combine(partials) => instance.combine_async(partials).await.map(Answer::Total),
    }
}
