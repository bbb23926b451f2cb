//! The engine: configuration of wasmtime, the epoch clock, loading and binding. One per process.
//!
//! One configuration serves inline and pooled policies, so a component is compiled once; what differs is the linker
//! (functions that wait are asynchronous) and how the store treats a tick of the clock.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::Config;
use wasmtime::component::{Component, Linker};

use super::binding::{Binding, Seats};
use super::breaker::{self, Breakers};
use super::cache::Cache;
use super::fault::{Fault, Kind};
use super::imports::log::Lines;
use super::imports::mirror::Mirror;
use super::imports::scratch::Scratch;
use super::imports::{self, Backend, Grants};
use super::instance::{Instance, Unready};
use super::limits::{self, Limits};
use super::local::Local;
use super::places::Places;
use super::pool::{Pool, Pooled, give_way};
use super::revision::{self, Awake, Code, Options, Placement, Rejected, Resident, Revision};
use super::state::{Node, Shared, State};
use super::stats::Stats;
use super::trust::Trust;
use super::view::View;

pub struct Settings {
    /// Where compiled code is kept between starts. Nobody else may write there. None: compiled at each start.
    pub cache_dir: Option<PathBuf>,
    pub limits: Limits,
    pub breaker: breaker::Settings,
    /// Threads of the pool.
    pub pool_threads: usize,
    /// False: the native choices answer everything, until [`Engine::set_enabled`].
    pub enabled: bool,
    /// What stands behind `registry` and `storage`. None: they answer `unavailable`.
    pub backend: Option<Arc<dyn Backend>>,
    /// Whose components may be loaded; see [`Engine::trust`].
    pub trust: Trust,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache_dir: None,
            limits: Limits::default(),
            breaker: breaker::Settings::default(),
            pool_threads: 2,
            enabled: true,
            backend: None,
            trust: Trust::default(),
        }
    }
}

/// Why the engine cannot start. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the cache of compiled policies, {path}: {reason}")]
    Cache { path: PathBuf, reason: String },
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    #[error("no thread for policies: {0}")]
    Thread(#[source] std::io::Error),
}

pub struct Engine {
    wasm: wasmtime::Engine,
    inline: Linker<State>,
    pooled: Linker<State>,
    limits: Limits,
    breaker: breaker::Settings,
    node: Arc<Node>,
    cache: Option<Cache>,
    trust: Trust,
    compiling: Arc<Places>,
    pub(super) dry_runs: Arc<Places>,
    seats: Arc<Mutex<Seats>>,
    locals: AtomicUsize,
    pub(super) pool: Pool,
    _ticker: Ticker,
}

impl Engine {
    pub fn new(settings: Settings) -> Result<Arc<Self>, Error> {
        let wasm = wasmtime::Engine::new(&configuration()).map_err(|error| Error::Engine(format!("{error:#}")))?;
        let cache = settings.cache_dir.map(|path| Cache::open(path, &wasm)).transpose()?;
        let link = |add: fn(&mut Linker<State>) -> wasmtime::Result<()>| {
            let mut linker = Linker::new(&wasm);
            add(&mut linker).map(|()| linker).map_err(|error| Error::Engine(format!("{error:#}")))
        };
        let node = Arc::new(Node::new(settings.enabled, settings.limits.memory_node_bytes, settings.backend));
        Ok(Arc::new(Self {
            inline: link(imports::link_inline)?,
            pooled: link(imports::link_pooled)?,
            limits: settings.limits,
            breaker: settings.breaker,
            cache,
            trust: settings.trust,
            compiling: Places::new(limits::COMPILATIONS_MAX),
            dry_runs: Places::new(limits::DRY_RUNS_MAX),
            seats: Arc::default(),
            locals: AtomicUsize::new(0),
            pool: Pool::new(settings.pool_threads).map_err(Error::Thread)?,
            _ticker: Ticker::new(&wasm, &node.asked).map_err(Error::Thread)?,
            node,
            wasm,
        }))
    }

    /// Checks and compiles a component, or takes its compiled code from the cache. Blocks up to the compile time.
    pub fn load(self: &Arc<Self>, name: &str, bytes: &[u8]) -> Result<Arc<Revision>, Rejected> {
        self.load_with(name, bytes, Options::default())
    }

    pub fn load_with(self: &Arc<Self>, name: &str, bytes: &[u8], options: Options) -> Result<Arc<Revision>, Rejected> {
        let limits = options.limits.map_or_else(|| self.limits.clone(), |own| own.min(&self.limits));
        revision::check_name(name)?;
        revision::check_bytes(bytes, limits.component_bytes)?;
        let digest = revision::digest(bytes);
        let component = self.component(&digest, bytes, &limits)?;
        let mirrored = self.node.backend.as_ref().is_none_or(|backend| backend.mirrors());
        let (imports, mut placement) = revision::imports_of(&component, mirrored)?;
        let (world, export) = revision::world_of(&component)?;
        if placement == Placement::Inline {
            let asked = options.pooled_because.map(Placement::Pooled);
            placement =
                asked.or_else(|| revision::placement_by_memory(&component, &limits)).unwrap_or(Placement::Inline);
        }
        let code = revision::link(self.linker(&placement), &component, world, &export)?;
        let (resident, pooled) = (Resident::new(Arc::new(code)), Pooled::new(&limits));
        let shared = self.shared(name, digest, limits);
        Ok(Arc::new(Revision { world, imports, size_bytes: bytes.len(), placement, shared, resident, pooled }))
    }

    fn linker(&self, placement: &Placement) -> &Linker<State> {
        if *placement == Placement::Inline { &self.inline } else { &self.pooled }
    }

    /// Lets go of a revision's compiled code while nothing is bound to it, if the cache has it: [`Engine::wake`] before
    /// it is bound again.
    pub fn rest(&self, revision: &Revision) {
        if self.cache.as_ref().is_some_and(|cache| cache.has(revision.digest())) {
            revision.rest();
        }
    }

    /// The code of a revision that may rest, in memory until the answer is dropped. None: only its bytes can bring it
    /// back, by [`Engine::wake_from`].
    pub fn wake(&self, revision: &Revision) -> Option<Awake> {
        revision.stay_awake().or_else(|| {
            let component = self.cache.as_ref()?.get(revision.digest(), &self.wasm)?;
            self.link_again(revision, &component).ok().map(|code| revision.woken(code))
        })
    }

    /// As [`Engine::wake`], from the bytes of this very component. Blocks up to the compile time.
    pub fn wake_from(&self, revision: &Revision, bytes: &[u8]) -> Result<Awake, Rejected> {
        let component = self.component(revision.digest(), bytes, &revision.shared.limits)?;
        Ok(revision.woken(self.link_again(revision, &component)?))
    }

    fn link_again(&self, revision: &Revision, component: &Component) -> Result<Code, Rejected> {
        let (world, export) = revision::world_of(component)?;
        revision::link(self.linker(&revision.placement), component, world, &export)
    }

    fn shared(&self, name: &str, digest: String, limits: Limits) -> Arc<Shared> {
        let (stats, breakers, lines) = (Stats::default(), Breakers::new(self.breaker.clone()), Lines::new());
        Arc::new(Shared { name: name.to_owned(), digest, limits, stats, breakers, lines })
    }

    /// A loaded revision in another place: the same compiled code, statistics, breakers and log.
    pub(super) fn placed(&self, revision: &Revision, placement: Placement) -> Result<Arc<Revision>, Rejected> {
        self.linked_anew(revision, placement, revision.shared.clone())
    }

    /// The same with statistics, breakers and log of its own, to be tried out.
    pub(super) fn on_trial(&self, revision: &Revision, placement: Placement) -> Result<Arc<Revision>, Rejected> {
        let of = &revision.shared;
        self.linked_anew(revision, placement, self.shared(&of.name, of.digest.clone(), of.limits.clone()))
    }

    fn linked_anew(
        &self,
        revision: &Revision,
        placement: Placement,
        shared: Arc<Shared>,
    ) -> Result<Arc<Revision>, Rejected> {
        let code = revision.code()?;
        let component = code.pre.component();
        let (world, export) = revision::world_of(component)?;
        let code = revision::link(self.linker(&placement), component, world, &export)?;
        let (imports, size_bytes) = (revision.imports.clone(), revision.size_bytes);
        let (resident, pooled) = (Resident::new(Arc::new(code)), Pooled::new(&shared.limits));
        Ok(Arc::new(Revision { world, imports, size_bytes, placement, shared, resident, pooled }))
    }

    /// A binding for a dry run: it sees no published view, and what it writes is forgotten with it.
    pub(super) fn bind_aside(
        &self,
        revision: &Arc<Revision>,
        config: &str,
        grants: Grants,
    ) -> Result<Arc<Binding>, Rejected> {
        let backend = Scratch::new(self.node.backend.clone());
        let node = Arc::new(self.node.aside(Arc::new(backend)));
        let mirror = self.mirror(revision, grants, &node)?;
        Binding::new(revision, config, grants, &node, mirror, &self.seats).map(Arc::new)
    }

    /// The largest component that is loaded.
    pub fn component_bytes_max(&self) -> usize {
        self.limits.component_bytes
    }

    /// What a policy reads the registry from that runs inline and may. Blocks until it is filled.
    fn mirror(&self, revision: &Revision, grants: Grants, node: &Node) -> Result<Option<Arc<Mirror>>, Rejected> {
        let reads = revision.imports.iter().any(|name| name.split('@').next() == Some(imports::REGISTRY));
        let Some(backend) = node.backend.clone().filter(|_| reads && grants.registry && revision.is_inline()) else {
            return Ok(None);
        };
        let plugin = revision.name().to_owned();
        let filled =
            self.pool.wait(async move { backend.follow(&plugin).await }, self.limits.deadline_configure_pooled);
        match filled {
            Some(Ok(mirror)) => Ok(mirror),
            _ => {
                let why = "the registry, which it reads, does not answer now";
                Err(Rejected::Fault(Fault::new(Kind::Unavailable, why)))
            }
        }
    }

    /// Whose components may be loaded. Whoever takes bytes from outside asks before `load`; built-in ones need no
    /// signature.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Binds a revision to a rule's config: the guest's `configure` must accept it. Nothing is granted. Blocks until it
    /// answered or its deadline came.
    pub fn bind(self: &Arc<Self>, revision: &Arc<Revision>, config: &str) -> Result<Arc<Binding>, Rejected> {
        self.bind_with(revision, config, Grants::default())
    }

    pub fn bind_with(
        self: &Arc<Self>,
        revision: &Arc<Revision>,
        config: &str,
        grants: Grants,
    ) -> Result<Arc<Binding>, Rejected> {
        if config.len() > limits::CONFIG_BYTES_MAX {
            return Err(Rejected::ConfigTooLong { bytes: config.len() });
        }
        let mirror = self.mirror(revision, grants, &self.node)?;
        let binding = Arc::new(Binding::new(revision, config, grants, &self.node, mirror, &self.seats)?);
        let tried = match revision.placement {
            Placement::Inline => Instance::new(&binding).map(|_| ()),
            Placement::Pooled(_) => self.pool.try_out(&binding),
        };
        match tried {
            Ok(()) => Ok(binding),
            Err(Unready::Config(text)) => Err(Rejected::Config(text)),
            Err(Unready::Fault(fault)) => Err(Rejected::Fault(fault)),
        }
    }

    /// The policies of the calling thread.
    pub fn local(self: &Arc<Self>) -> Local {
        Local::new(&self.node, self.locals.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a view the newest, if it differs, and gives it its version. Every instance is refreshed with it before its
    /// next answer.
    pub fn publish(&self, view: View) {
        self.node.published.publish(view.shards);
    }

    /// CPU use of this node, 0.0 to 1.0, for policies that ask.
    pub fn set_node_cpu(&self, cpu: f64) {
        self.node.set_cpu(cpu);
    }

    /// The emergency switch: false turns every question to the native choice, at once.
    pub fn set_enabled(&self, enabled: bool) {
        self.node.enabled.store(enabled, Ordering::Relaxed);
    }

    pub fn enabled(&self) -> bool {
        self.node.enabled.load(Ordering::Relaxed)
    }

    fn component(&self, digest: &str, bytes: &[u8], limits: &Limits) -> Result<Component, Rejected> {
        if let Some(component) = self.cache.as_ref().and_then(|cache| cache.get(digest, &self.wasm)) {
            return Ok(component);
        }
        let component = self.compile(bytes, limits)?;
        if let Some(cache) = &self.cache {
            cache.put(digest, &component);
        }
        Ok(component)
    }

    /// Compiles on threads of its own, which end with it: what the compiler allocated goes back to the system then, and
    /// does not stay with threads that live on. A compilation cannot be ended: one that takes too long goes on without anybody
    /// waiting, and keeps its place among the few that may run at once.
    fn compile(&self, bytes: &[u8], limits: &Limits) -> Result<Component, Rejected> {
        let place = self.compiling.enter(limits.compile_time).ok_or(Rejected::Busy)?;
        let (tell, told) = mpsc::sync_channel(1);
        let (wasm, bytes) = (self.wasm.clone(), bytes.to_vec());
        let run = move || {
            let compiled = match rayon::ThreadPoolBuilder::new()
                .thread_name(|_| "quipu-compile".into())
                .start_handler(|_| give_way(limits::COMPILE_NICENESS))
                .build()
            {
                Ok(pool) => pool.install(|| Component::from_binary(&wasm, &bytes)),
                Err(why) => Err(wasmtime::Error::msg(why.to_string())),
            };
            let _ = tell.send(compiled);
            drop(place);
        };
        std::thread::Builder::new().name("quipu-compile".into()).spawn(run).map_err(|_| Rejected::Busy)?;
        match told.recv_timeout(limits.compile_time) {
            Ok(Ok(component)) => Ok(component),
            Ok(Err(error)) => Err(Rejected::Invalid(format!("{error:#}"))),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Rejected::CompileTime(limits.compile_time)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(Rejected::Fault(Fault::new(Kind::Unavailable, "the compiler ended without an answer")))
            }
        }
    }
}

/// The configuration of wasmtime, for policies of both kinds.
///
/// Instances live long and are made rarely, so they are allocated on demand: a pool of slots would have to be sized for
/// the largest number of bindings, and saves time only when an instance is made.
fn configuration() -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(limits::STACK_BYTES_MAX)
        .async_stack_size(limits::POOLED_STACK_BYTES)
        .wasm_memory64(false)
        .wasm_multi_memory(true)
        .relaxed_simd_deterministic(true)
        .parallel_compilation(true);
    config
}

/// The epoch clock: one thread that ticks until it is dropped, slowly while no policy is asked anything. The first call
/// after such a rest may use that much more than its deadline.
struct Ticker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn new(wasm: &wasmtime::Engine, asked: &Arc<AtomicBool>) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (wasm, asked) = (wasm.clone(), asked.clone());
        let run = move || {
            let mut idle = Duration::ZERO;
            loop {
                let tick = if idle < limits::TICK_IDLE_AFTER { limits::TICK } else { limits::TICK_IDLE };
                if stopped.recv_timeout(tick) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
                wasm.increment_epoch();
                let busy = asked.load(Ordering::Relaxed) && asked.swap(false, Ordering::Relaxed);
                idle = if busy { Duration::ZERO } else { idle + tick };
            }
        };
        let thread = std::thread::Builder::new().name("quipu-epoch".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
