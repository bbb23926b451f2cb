//! A dry run: a revision is asked every conformance vector under its real limits, on a thread of its own, and its calls
//! are timed. What its answers mean for its admission is decided in `admission`.
//!
//! It runs on an instance beside the service: with views of its own, with writes that are forgotten, and with statistics
//! that nobody sees.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::admission::{Check, Cost};
use super::binding::Binding;
use super::engine::Engine;
use super::fault::{Fault, Kind};
use super::imports::Grants;
use super::instance::{Instance, Unready};
use super::revision::{Placement, Rejected, Revision, World};
use super::state::thread_cpu;
use super::vectors::{self, Addition, Partials, Reach, Reading, Refreshing};
use super::view::{Partial, Plan, Read, Select, View};

/// How much is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Instances that answer all vectors, one after the other; a deterministic policy needs two to be found so.
    instances: usize,
    /// Timed calls: at least, and at most.
    calls: (usize, usize),
    /// After the least number of calls the timing ends when it took this long.
    timing: Duration,
}

impl Effort {
    pub const ADMISSION: Self = Self { instances: 2, calls: (32, 4_096), timing: Duration::from_millis(50) };
    /// A rule is bound at each start and whenever it changes.
    pub const BINDING: Self = Self { instances: 1, calls: (16, 128), timing: Duration::from_millis(5) };
}

/// What is tried, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    pub config: &'a str,
    pub grants: Grants,
    pub reach: Reach,
    pub effort: Effort,
    /// The dry run ends at the first answer after this.
    pub until: Instant,
}

/// It answered everything.
#[derive(Debug)]
pub(super) struct Found {
    /// How often each check passed.
    pub passed: BTreeMap<Check, u64>,
    /// Each question asked twice, of each instance, had one answer.
    pub deterministic: bool,
    /// Every total was the sum; of an aggregation only.
    pub exact_sum: Option<bool>,
    pub cost: Cost,
    pub memory_peak_bytes: usize,
    /// An instance was refused memory or table elements, and went on.
    pub memory_refused: bool,
}

/// It did not.
#[derive(Debug)]
pub(super) enum Failed {
    /// `configure` answered with this error.
    Config(String),
    Vector {
        check: Check,
        vector: String,
        fault: Fault,
        /// It missed a deadline of wall time, of which this thread had the CPU for less than half: it may have waited for
        /// the machine, and may pass another time.
        starved: bool,
    },
    /// The time was over when it was to be asked this.
    Time {
        vector: String,
    },
    Rejected(Rejected),
}

impl From<Rejected> for Failed {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

/// Runs all of it. Blocks until it is over: the time of `setup` and one call more, at most.
pub(super) fn run(engine: &Engine, revision: &Arc<Revision>, setup: Setup<'_>) -> Result<Found, Failed> {
    // A thread of its own: the caller's may run a runtime, in which no other can be entered.
    thread::scope(|scope| {
        let work = || Trial::new(engine, revision, setup)?.run();
        let spawned = thread::Builder::new().name("quipu-dry-run".into()).spawn_scoped(scope, work);
        let thread = spawned.map_err(|_| Rejected::Busy)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Trial<'a> {
    setup: Setup<'a>,
    binding: Arc<Binding>,
    /// For policies of the pool. Shared with the instances: a mere handle would not drive the timers of the deadlines.
    runtime: Option<Rc<Runtime>>,
    passed: BTreeMap<Check, u64>,
    deterministic: bool,
    exact_sum: bool,
    memory_refused: bool,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Shard(u32),
    Plan(Plan),
    Total(i128),
}

impl<'a> Trial<'a> {
    fn new(engine: &Engine, revision: &Arc<Revision>, setup: Setup<'a>) -> Result<Self, Failed> {
        let runtime = match revision.placement {
            Placement::Inline => None,
            Placement::Pooled(_) => {
                Some(Rc::new(Builder::new_current_thread().enable_time().build().map_err(|_| Rejected::Busy)?))
            }
        };
        let binding = engine.bind_aside(revision, setup.config, setup.grants)?;
        Ok(Self {
            setup,
            binding,
            runtime,
            passed: BTreeMap::new(),
            deterministic: true,
            exact_sum: true,
            memory_refused: false,
        })
    }

    fn run(mut self) -> Result<Found, Failed> {
        let mut subject = self.subject()?;
        let first = self.vectors(&mut subject)?;
        self.memory_refused |= subject.instance.memory_refused();
        for _ in 1..self.setup.effort.instances {
            subject = self.subject()?;
            let again = self.vectors(&mut subject)?;
            self.memory_refused |= subject.instance.memory_refused();
            self.deterministic &= again == first;
        }
        let cost = self.cost(&mut subject)?;
        self.memory_refused |= subject.instance.memory_refused();
        let revision = &self.binding.revision;
        Ok(Found {
            exact_sum: (revision.world == World::Aggregation).then_some(self.exact_sum),
            deterministic: self.deterministic,
            cost,
            memory_peak_bytes: revision.snapshot().memory_peak_bytes,
            memory_refused: self.memory_refused,
            passed: self.passed,
        })
    }

    /// A new instance, configured.
    fn subject(&mut self) -> Result<Subject, Failed> {
        let what = if self.setup.config.is_empty() { "an empty config" } else { "the rule's config" };
        self.in_time(&what)?;
        let watch = self.watch(self.binding.revision.shared.limits.deadline_configure_pooled);
        match Subject::new(&self.binding, self.runtime.clone()) {
            Ok(subject) => {
                self.pass(Check::Configure);
                Ok(subject)
            }
            Err(Unready::Config(text)) => Err(Failed::Config(text)),
            Err(Unready::Fault(fault)) => Err(watch.failed(Check::Configure, what.into(), fault)),
        }
    }

    /// Asks everything, each question twice; the answers in their order.
    fn vectors(&mut self, subject: &mut Subject) -> Result<Vec<Answer>, Failed> {
        let mut answers = Vec::new();
        for size in vectors::VIEWS {
            self.refresh(subject, size)?;
            match self.binding.revision.world {
                World::Selection => {
                    for addition in vectors::additions(size, self.setup.reach) {
                        let select = |subject: &mut Subject| subject.select(&addition.request()).map(Answer::Shard);
                        answers.push(self.twice(subject, Check::Select, &addition, select)?);
                    }
                }
                World::Aggregation => {
                    for reading in vectors::readings(size) {
                        let plan = |subject: &mut Subject| subject.plan(&reading.request()).map(Answer::Plan);
                        answers.push(self.twice(subject, Check::Plan, &reading, plan)?);
                    }
                    for partials in vectors::partials() {
                        let combine = |subject: &mut Subject| subject.combine(&partials.list).map(Answer::Total);
                        let total = self.twice(subject, Check::Combine, &partials, combine)?;
                        self.exact_sum &= total == Answer::Total(partials.sum());
                        answers.push(total);
                    }
                }
            }
        }
        Ok(answers)
    }

    fn refresh(&mut self, subject: &mut Subject, shards: u32) -> Result<(), Failed> {
        let (view, vector) = (Arc::new(vectors::view(shards)), Refreshing(shards));
        self.asked(Check::Refresh, &vector, || subject.refresh(&view))
    }

    fn twice(
        &mut self,
        subject: &mut Subject,
        check: Check,
        vector: &dyn fmt::Display,
        mut question: impl FnMut(&mut Subject) -> Result<Answer, Fault>,
    ) -> Result<Answer, Failed> {
        let first = self.asked(check, vector, || question(subject))?;
        let second = self.asked(check, vector, || question(subject))?;
        self.deterministic &= first == second;
        // A total that is exact only sometimes is not exact.
        self.exact_sum &= first == second || check != Check::Combine;
        Ok(first)
    }

    /// Times one question again and again: a selection, or a plan and the total that follows it.
    fn cost(&mut self, subject: &mut Subject) -> Result<Cost, Failed> {
        self.refresh(subject, vectors::USUAL_VIEW)?;
        let (addition, reading, partials) = (Addition::usual(self.setup.reach), Reading::usual(), Partials::usual());
        let world = self.binding.revision.world;
        let (effort, began) = (self.setup.effort, Instant::now());
        let mut took = Vec::with_capacity(effort.calls.1);
        while took.len() < effort.calls.0 || (took.len() < effort.calls.1 && began.elapsed() < effort.timing) {
            let call = took.len() + 1;
            let vector = Lazy(|f: &mut fmt::Formatter<'_>| match world {
                World::Selection => write!(f, "timed call {call}, {addition}"),
                World::Aggregation => write!(f, "timed call {call}, {reading} and {partials}"),
            });
            took.push(self.asked(Check::Cost, &vector, || {
                let began = Instant::now();
                match world {
                    World::Selection => subject.select(&addition.request()).map(|_| ())?,
                    World::Aggregation => {
                        subject.plan(&reading.request())?;
                        subject.combine(&partials.list).map(|_| ())?;
                    }
                }
                Ok(began.elapsed())
            })?);
        }
        Ok(Cost::of(took))
    }

    fn asked<T>(
        &mut self,
        check: Check,
        vector: &dyn fmt::Display,
        question: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, Failed> {
        self.in_time(vector)?;
        let watch = self.watch(self.binding.revision.shared.limits.deadline_pooled);
        let answer = question().map_err(|fault| watch.failed(check, vector.to_string(), fault))?;
        self.pass(check);
        Ok(answer)
    }

    /// Begins to watch one call with this limit of wall time. Inline calls have limits of CPU time.
    fn watch(&self, limit: Duration) -> Watch {
        Watch(self.runtime.is_some().then(|| (thread_cpu(), limit)))
    }

    fn in_time(&self, vector: &dyn fmt::Display) -> Result<(), Failed> {
        if Instant::now() < self.setup.until { Ok(()) } else { Err(Failed::Time { vector: vector.to_string() }) }
    }

    fn pass(&mut self, check: Check) {
        *self.passed.entry(check).or_default() += 1;
    }
}

/// The CPU time of this thread when a call on the pool's terms began, and the wall time that the call has.
struct Watch(Option<(Duration, Duration)>);

impl Watch {
    fn failed(self, check: Check, vector: String, fault: Fault) -> Failed {
        let starved = |(began, limit): (Duration, Duration)| thread_cpu().saturating_sub(began) < limit / 2;
        let starved = fault.kind == Kind::Deadline && self.0.is_some_and(starved);
        Failed::Vector { check, vector, fault, starved }
    }
}

/// A text that is made only when it is shown.
struct Lazy<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Lazy<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0(f)
    }
}

/// An instance that is asked on this thread, inline or as the pool does. After a fault it must be dropped.
pub(super) struct Subject {
    instance: Instance,
    /// For policies of the pool.
    runtime: Option<Rc<Runtime>>,
    /// Wall time of one call of them.
    call_limit: Duration,
}

impl Subject {
    /// A new instance, configured. The runtime is for policies of the pool.
    pub fn new(binding: &Binding, runtime: Option<Rc<Runtime>>) -> Result<Self, Unready> {
        let limits = &binding.revision.shared.limits;
        let (limit, call_limit) = (limits.deadline_configure_pooled, limits.deadline_pooled);
        let late = |_| Err(Fault::new(Kind::Deadline, format!("it was not configured within {limit:?}")).into());
        let instance = match &runtime {
            None => Instance::new(binding)?,
            Some(runtime) => {
                runtime.block_on(async { timeout(limit, Instance::new_async(binding)).await.unwrap_or_else(late) })?
            }
        };
        Ok(Self { instance, runtime, call_limit })
    }

    pub fn refresh(&mut self, view: &Arc<View>) -> Result<(), Fault> {
        match &self.runtime {
            None => self.instance.refresh(view, view.version),
            Some(runtime) => runtime.block_on(within(self.call_limit, self.instance.refresh_async(view, view.version))),
        }
    }

    pub fn select(&mut self, request: &Select<'_>) -> Result<u32, Fault> {
        match &self.runtime {
            None => self.instance.select(request),
            Some(runtime) => runtime.block_on(within(self.call_limit, self.instance.select_async(request))),
        }
    }

    pub fn plan(&mut self, request: &Read<'_>) -> Result<Plan, Fault> {
        match &self.runtime {
            None => self.instance.plan(request),
            Some(runtime) => runtime.block_on(within(self.call_limit, self.instance.plan_async(request))),
        }
    }

    pub fn combine(&mut self, partials: &[Partial]) -> Result<i128, Fault> {
        match &self.runtime {
            None => self.instance.combine(partials),
            Some(runtime) => runtime.block_on(within(self.call_limit, self.instance.combine_async(partials))),
        }
    }
}

async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Fault::new(Kind::Deadline, format!("it did not answer within {limit:?}"));
    timeout(limit, answer).await.map_err(late)?
}
