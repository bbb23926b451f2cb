//! Policies on the pool: those that use the registry and the storage, and those that are told to run there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{addition, engine_with, faults, guest, partials, patient, read, sum};
use async_trait::async_trait;
use quipu::policy::imports::backend::{Error, Partials, Space, Unavailable};
use quipu::policy::{
    Backend, Binding, Engine, Grants, Kind, Limits, Options, Placement, Rejected, Settings, StoreBackend,
    combine_pooled, plan_pooled, select_pooled,
};
use quipu::store::Store;
use quipu::store::memory::MemoryStore;

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(what)
}

/// Slow machines must not make these tests fail by the usual deadlines.
fn relaxed() -> Limits {
    Limits {
        deadline_pooled: Duration::from_secs(30),
        deadline_host_call: Duration::from_secs(30),
        deadline_configure_pooled: Duration::from_secs(30),
        ..Limits::default()
    }
}

fn with_backend(backend: Arc<dyn Backend>, limits: Limits) -> Arc<Engine> {
    engine_with(Settings { limits, breaker: patient(), backend: Some(backend), ..Settings::default() })
}

fn with_store(store: &Arc<MemoryStore>) -> Arc<Engine> {
    let partials: Partials = Box::new(|counter, shard| {
        let partial = match counter {
            "example-counter" => Ok((shard == 4).then_some(17)),
            _ => Err(Unavailable),
        };
        Box::pin(async move { partial })
    });
    with_backend(Arc::new(StoreBackend::new(store.clone(), partials)), relaxed())
}

const ALL: Grants = Grants::ALL;

fn bind(engine: &Arc<Engine>, name: &str, config: &str, grants: Grants) -> Arc<Binding> {
    let revision = engine.load(name, &guest(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    engine.bind_with(&revision, config, grants).unwrap_or_else(|error| panic!("{name} {config:?}: {error}"))
}

#[test]
fn a_registry_key_steers_the_choice() {
    let store = Arc::new(MemoryStore::new(12));
    let backend = Arc::new(StoreBackend::new(store.clone(), Box::new(|_, _| Box::pin(async { Err(Unavailable) }))));
    let engine = with_backend(backend.clone(), relaxed());
    let put = |value: &[u8]| run(backend.put(Space::Registry, "reads-registry", "preferred", value)).expect("room");
    let denied = bind(&engine, "reads-registry", "", Grants::default());
    // On the pool, and inline, where the key is read from memory.
    let options = Options { pooled_because: Some("the test says so".into()), ..Options::default() };
    for options in [options, Options::default()] {
        let pooled = options.pooled_because.is_some();
        run(store.delete("registry/reads-registry", "preferred")).expect("it is in memory");
        let revision = engine.load_with("reads-registry", &guest("reads-registry"), options).expect("it loads");
        assert_eq!(revision.is_inline(), !pooled, "{:?}", revision.placement);
        let binding = engine.bind_with(&revision, "", ALL).expect("it binds");
        let mut local = engine.local();
        let mut choose = |binding: &Arc<Binding>| {
            let inline = local.select_now(binding, &addition());
            let chosen = inline.unwrap_or_else(|| run(select_pooled(&engine, binding, &addition())));
            (chosen.shard, chosen.fallback)
        };
        assert_eq!(choose(&binding), (4, false), "a missing key leaves the first candidate");
        put(b"9");
        assert_eq!(choose(&binding), (9, false));
        put(b"1");
        assert_eq!(choose(&binding), (1, false), "a changed value is seen by the next call");
        assert_eq!(choose(&denied), (4, false), "without the grant it sees nothing");
        assert_eq!(faults(&revision), []);
    }
}

#[test]
fn a_policy_that_writes_the_registry_runs_on_the_pool() {
    let engine = with_store(&Arc::new(MemoryStore::new(12)));
    let revision = engine.load("misbehaves-io", &guest("misbehaves-io")).expect("it loads");
    assert_eq!(revision.placement, Placement::Pooled("it imports quipu:policy/registry".into()));
    // A backend that cannot be read without waiting puts readers there, too.
    let engine = with_backend(Arc::new(Stuck { asked: AtomicU32::new(0) }), relaxed());
    let revision = engine.load("reads-registry", &guest("reads-registry")).expect("it loads");
    assert_eq!(revision.placement, Placement::Pooled("it imports quipu:policy/registry".into()));
}

#[test]
fn a_table_in_the_storage_survives_the_engine() {
    let store = Arc::new(MemoryStore::new(12));
    let mut counts = [0; 12];
    for _ in 0..2 {
        let engine = with_store(&store);
        let binding = bind(&engine, "keeps-table", "", ALL);
        run(async {
            // Not a multiple of three: the second engine goes on where the first stopped.
            for _ in 0..10 {
                let chosen = select_pooled(&engine, &binding, &addition()).await;
                assert!(!chosen.fallback);
                counts[chosen.shard as usize] += 1;
            }
        });
        assert_eq!(faults(&binding.revision), []);
    }
    assert_eq!((counts[4], counts[9], counts[1]), (7, 7, 6));
}

#[test]
fn the_contracts_limits_are_answers_not_faults() {
    let store = Arc::new(MemoryStore::new(12));
    let engine = with_store(&store);
    for (config, expected) in [
        ("empty-key", "storage.get: Err(Error::Limit(\"a key has 1 to 512 bytes; this one has 0\"))"),
        ("huge-key", "storage.get: Err(Error::Limit(\"a key has 1 to 512 bytes; this one has 513\"))"),
        ("huge-value", "storage.put: Err(Error::Limit(\"a value has at most 65536 bytes; this one has 65537\"))"),
        ("list-everything", "registry.list: Ok(0)"),
    ] {
        let binding = bind(&engine, "misbehaves-io", config, ALL);
        let chosen = run(select_pooled(&engine, &binding, &addition()));
        assert!(!chosen.fallback, "{config}: {:?}", faults(&binding.revision));
        let lines: Vec<String> = binding.revision.log_lines(0).into_iter().map(|line| line.text).collect();
        assert_eq!(lines, [expected], "{config}");
        let denied = bind(&engine, "misbehaves-io", config, Grants::default());
        assert!(!run(select_pooled(&engine, &denied, &addition())).fallback);
        let line = denied.revision.log_lines(0).pop().expect("it says what it was answered");
        assert!(line.text.ends_with("Err(Error::Denied)"), "{config}: {}", line.text);
    }
}

#[test]
fn quotas_hold_and_survive_a_restart() {
    let store = Arc::new(MemoryStore::new(12));
    let fill = |config: &str, calls: u32| {
        let engine = with_store(&store);
        let binding = bind(&engine, "misbehaves-io", config, ALL);
        run(async {
            for _ in 0..calls {
                assert!(!select_pooled(&engine, &binding, &addition()).await.fallback);
            }
        });
        assert_eq!(faults(&binding.revision), []);
    };
    let kept =
        |space: &'static str| run(async { store.scan(space, "", usize::MAX).await.expect("it is in memory").len() });
    // 4 MiB of 64 KiB each, keys included.
    fill("fill-registry", 100);
    assert_eq!(kept("registry/misbehaves-io"), 63);
    // Keys are numbered anew, so these replace what is there; then the quota is used up as before.
    fill("fill-registry", 100);
    assert_eq!(kept("registry/misbehaves-io"), 63);
    fill("fill-storage", 300);
    assert_eq!(kept("plugin/misbehaves-io"), 255);
}

#[test]
fn host_calls_without_end_are_ended() {
    let store = Arc::new(MemoryStore::new(12));
    let engine = with_store(&store);
    for config in ["registry-without-end", "storage-without-end"] {
        let binding = bind(&engine, "misbehaves-io", config, ALL);
        assert!(run(select_pooled(&engine, &binding, &addition())).fallback);
        assert_eq!(faults(&binding.revision), [("host_calls", 1)], "{config}");
    }
    let binding = bind(&engine, "misbehaves-io", "trap-after-put", ALL);
    assert!(run(select_pooled(&engine, &binding, &addition())).fallback);
    assert_eq!(faults(&binding.revision), [("trap", 1)]);
    let written = run(store.get("plugin/misbehaves-io", "key")).expect("it is in memory");
    assert_eq!(written.as_deref(), Some(&b"written"[..]), "what it did before stands");
}

/// Answers after the test lets it, or never.
struct Stuck {
    asked: AtomicU32,
}

#[async_trait]
impl Backend for Stuck {
    async fn get(&self, _: Space, _: &str, _: &str) -> Result<Option<Vec<u8>>, Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
    async fn list(&self, _: Space, _: &str, _: &str, _: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        Err(Error::Unavailable)
    }
    async fn put(&self, _: Space, _: &str, _: &str, _: &[u8]) -> Result<(), Error> {
        Err(Error::Unavailable)
    }
    async fn delete(&self, _: Space, _: &str, _: &str) -> Result<(), Error> {
        Err(Error::Unavailable)
    }
    async fn partial(&self, _: &str, _: u32) -> Result<Option<i64>, Error> {
        Err(Error::Unavailable)
    }
}

#[test]
fn a_host_call_that_never_answers_is_unavailable_in_time() {
    let limits = Limits { deadline_host_call: Duration::from_millis(20), ..relaxed() };
    let stuck = Arc::new(Stuck { asked: AtomicU32::new(0) });
    let engine = with_backend(stuck.clone(), limits);
    let binding = bind(&engine, "reads-registry", "", ALL);
    let chosen = run(select_pooled(&engine, &binding, &addition()));
    assert_eq!((chosen.shard, chosen.fallback, stuck.asked.load(Ordering::SeqCst)), (4, false, 1));
}

#[test]
fn a_wait_for_the_host_counts_against_the_deadline() {
    let limits = Limits { deadline_pooled: Duration::from_millis(50), ..relaxed() };
    let engine = with_backend(Arc::new(Stuck { asked: AtomicU32::new(0) }), limits);
    let binding = bind(&engine, "reads-registry", "", ALL);
    let began = Instant::now();
    assert!(run(select_pooled(&engine, &binding, &addition())).fallback);
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(faults(&binding.revision), [("deadline", 1)]);
}

#[test]
fn a_full_queue_is_answered_at_once() {
    let limits = Limits { pooled_queue: 3, pooled_instances: 1, ..relaxed() };
    let stuck = Arc::new(Stuck { asked: AtomicU32::new(0) });
    let engine = with_backend(stuck.clone(), limits);
    let binding = bind(&engine, "reads-registry", "", ALL);
    run(async {
        let three: Vec<_> = (0..3)
            .map(|_| {
                let (engine, binding) = (engine.clone(), binding.clone());
                tokio::spawn(async move { select_pooled(&engine, &binding, &addition()).await })
            })
            .collect();
        while stuck.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(select_pooled(&engine, &binding, &addition()).await.fallback);
        assert_eq!(binding.revision.stats().faults(Kind::QueueFull), 1);
        three.iter().for_each(tokio::task::JoinHandle::abort);
    });
    assert_eq!(faults(&binding.revision), [("queue_full", 1)]);
}

#[test]
fn hostile_guests_on_the_pool_leave_room_for_others() {
    let limits = Limits { deadline_pooled: Duration::from_millis(200), ..relaxed() };
    let engine = engine_with(Settings { limits, breaker: patient(), pool_threads: 1, ..Settings::default() });
    let pooled = |name: &str, config: &str| {
        let options = Options { limits: None, pooled_because: Some("the test says so".into()) };
        let revision = engine.load_with(name, &guest(name), options).expect("it loads");
        assert_eq!(revision.placement, Placement::Pooled("the test says so".into()));
        engine.bind(&revision, config).map_err(|error| (error, revision))
    };
    let hostile = pooled("misbehaves-selection", "loop-in-select").expect("it binds");
    let healthy = pooled("first-candidate", "").expect("it binds");
    let request = addition();
    run(async {
        for _ in 0..3 {
            // One thread: the loop yields at each tick, so the healthy one is answered beside it.
            let (bad, good) =
                tokio::join!(select_pooled(&engine, &hostile, &request), select_pooled(&engine, &healthy, &request));
            assert!(bad.fallback && bad.shard == 4);
            assert!(!good.fallback || healthy.revision.stats().faults(Kind::Deadline) > 0);
        }
    });
    assert_eq!(faults(&hostile.revision), [("deadline", 3)]);
    let (refused, _) = pooled("misbehaves-selection", "error-in-configure").expect_err("its configure refuses");
    assert_eq!(refused, Rejected::Config("this policy refuses every rule".into()));
    for (config, kind) in [("trap-in-select", "trap"), ("no-shard", "not_a_candidate"), ("recurse", "trap")] {
        let binding = pooled("misbehaves-selection", config).expect("it binds");
        assert!(run(select_pooled(&engine, &binding, &addition())).fallback);
        assert_eq!(faults(&binding.revision), [(kind, 1)], "{config}");
    }
}

#[test]
fn reads_run_on_the_pool_too() {
    let engine = engine_with(Settings { limits: relaxed(), breaker: patient(), ..Settings::default() });
    let pooled = |config: &str| {
        let options = Options { limits: None, pooled_because: Some("the test says so".into()) };
        let revision = engine.load_with("m", &guest("misbehaves-aggregation"), options).expect("it loads");
        engine.bind(&revision, config).expect("it binds")
    };
    run(async {
        let good = pooled("");
        assert!(!plan_pooled(&engine, &good, &read()).await.fallback);
        let combined = combine_pooled(&engine, &good, &partials()).await;
        assert_eq!((combined.total, combined.fallback), (sum(), false));
        let bad = pooled("error-in-combine");
        let combined = combine_pooled(&engine, &bad, &partials()).await;
        assert_eq!((combined.total, combined.fallback), (sum(), true));
        assert_eq!(faults(&bad.revision), [("refused", 1)]);
    });
}

#[test]
fn nothing_is_granted_by_wasi() {
    let engine = engine_with(Settings { limits: relaxed(), breaker: patient(), ..Settings::default() });
    let revision = engine.load("nosy", &guest("nosy")).expect("it loads");
    assert!(matches!(&revision.placement, Placement::Pooled(because) if because.contains("wasi:sockets/")));
    for config in
        ["read-file", "write-file", "list-files", "network", "listen", "resolve", "environment", "arguments", "stdin"]
    {
        match engine.bind(&revision, config).map(|_| ()) {
            Err(Rejected::Config(text)) => assert!(text.starts_with("denied: "), "{config}: {text}"),
            other => panic!("{config}: {other:?}"),
        }
    }
    assert!(!std::path::Path::new("/tmp/quipu-nosy").exists());
    let exited = engine.bind(&revision, "exit-in-configure").map(|_| ()).unwrap_err().to_string();
    assert!(exited.contains("it exited with code 0"), "{exited}");
    let ask = |config: &str| {
        let revision = engine.load("nosy", &guest("nosy")).expect("it loads");
        let binding = engine.bind(&revision, config).expect("it binds");
        let chosen = run(select_pooled(&engine, &binding, &addition()));
        (chosen.fallback, faults(&revision))
    };
    for config in ["", "clocks-and-random", "stdout", "stderr"] {
        assert_eq!(ask(config), (false, vec![]), "{config}");
    }
    for config in ["exit-in-select", "panic-in-select"] {
        assert_eq!(ask(config), (true, vec![("trap", 1)]), "{config}");
    }
}

#[test]
fn a_sleep_on_the_pool_ends_at_the_deadline() {
    let limits = Limits { deadline_pooled: Duration::from_millis(50), ..relaxed() };
    let engine = engine_with(Settings { limits, breaker: patient(), ..Settings::default() });
    let binding = bind(&engine, "nosy", "sleep", Grants::default());
    assert!(run(select_pooled(&engine, &binding, &addition())).fallback);
    assert_eq!(faults(&binding.revision), [("deadline", 1)]);
}
