//! What one call of a policy costs, against the native choice.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use quipu::counter::{candidates, key_hash};
use quipu::policy::imports::backend::Space;
use quipu::policy::{
    Backend, Binding, Catalog, Engine, Grants, Partial, Read, Select, Settings, ShardInfo, StoreBackend, View,
    admission, select_pooled,
};
use quipu::store::memory::MemoryStore;

fn view(version: u64, shards: u32) -> View {
    let info = |shard| ShardInfo { shard, available: true, local: true, owner_cpu: 0.3, queued: 2 };
    View { version, shards: (0..shards).map(info).collect() }
}

fn bind(engine: &Arc<Engine>, catalog: &Catalog, name: &str) -> Arc<Binding> {
    let revision = catalog.get(name, None).expect("a built-in policy");
    engine.bind(&revision, "").expect("it needs no config")
}

fn select(criterion: &mut Criterion) {
    let engine = Engine::new(Settings::default()).expect("an engine");
    let catalog = Catalog::with_builtins(&engine).expect("the built-in policies load");
    let mut local = engine.local();
    let id = "likes/example-counter-24";
    let hash = key_hash(id);
    let mut group = criterion.benchmark_group("select");
    for (version, shards) in [(1, 3), (2, 64)] {
        engine.publish(view(version, shards));
        let chosen = candidates(hash, shards, 3);
        for name in ["least-cpu", "rendezvous", "two-choices"] {
            let binding = bind(&engine, &catalog, name);
            let request = Select { counter: id, amount: 1, key_hash: hash, candidates: &chosen };
            let answer = local.select_now(&binding, &request).expect("inline");
            assert!(!answer.fallback, "{name} does not answer");
            group.bench_function(format!("{name}, 3 candidates of {shards} shards"), |bencher| {
                bencher.iter(|| local.select_now(&binding, black_box(&request)));
            });
        }
    }
    // It wants the shard of the amount, which is none of the candidates.
    let failing = bind(&engine, &catalog, "value-modulo");
    let request = Select { counter: id, amount: 60, key_hash: hash, candidates: &[1, 2, 3] };
    group.bench_function("a policy whose breaker is open", |bencher| {
        bencher.iter(|| local.select_now(&failing, black_box(&request)));
    });
    group.bench_function("native, 3 candidates of 64 shards", |bencher| {
        bencher.iter(|| candidates(black_box(hash), 64, 3)[0]);
    });
    group.finish();
}

fn read(criterion: &mut Criterion) {
    let engine = Engine::new(Settings::default()).expect("an engine");
    let catalog = Catalog::with_builtins(&engine).expect("the built-in policies load");
    engine.publish(view(1, 64));
    let mut local = engine.local();
    let binding = bind(&engine, &catalog, "sum");
    let mut group = criterion.benchmark_group("read");
    for count in [3u32, 64] {
        let shards: Vec<u32> = (0..count).collect();
        let partials: Vec<Partial> = shards.iter().map(|&shard| Partial { shard, value: 1 << 40 }).collect();
        let request = Read { counter: "likes/example-counter-24", key_hash: 7, shards: &shards, max_age_ms: 0 };
        group.bench_function(format!("plan and combine, {count} partials"), |bencher| {
            bencher.iter(|| {
                let planned = local.plan_now(&binding, black_box(&request));
                (planned, local.combine_now(&binding, black_box(&partials)))
            });
        });
        group.bench_function(format!("native sum, {count} partials"), |bencher| {
            bencher.iter(|| black_box(&partials).iter().map(|partial| i128::from(partial.value)).sum::<i128>());
        });
    }
    group.finish();
}

/// What a fault costs: dropping an instance and making the next.
fn instantiate(criterion: &mut Criterion) {
    let engine = Engine::new(Settings::default()).expect("an engine");
    let catalog = Catalog::with_builtins(&engine).expect("the built-in policies load");
    let revision = catalog.get("least-cpu", None).expect("a built-in policy");
    criterion.bench_function("bind, which makes an instance", |bencher| bencher.iter(|| engine.bind(&revision, "")));
}

/// What a start costs: with an empty cache everything is compiled.
fn start(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = |cache_dir| Engine::new(Settings { cache_dir, ..Settings::default() }).expect("an engine");
    let mut group = criterion.benchmark_group("load the built-in policies");
    group.sample_size(10);
    group.bench_function("compiled", |bencher| {
        bencher.iter(|| Catalog::with_builtins(&engine(None)).expect("the built-in policies load"));
    });
    let cache = Some(directory.path().join("cache"));
    group.bench_function("from the cache", |bencher| {
        bencher.iter(|| Catalog::with_builtins(&engine(cache.clone())).expect("the built-in policies load"));
    });
    group.finish();
}

/// One component in another language, or one that reads the registry on each call. What is not built is left out in
/// plain sight; `make plugin-python plugin-js guests` builds them.
fn languages(criterion: &mut Criterion) {
    let store = Arc::new(MemoryStore::new(64));
    let backend = Arc::new(StoreBackend::new(store, Box::new(|_, _| Box::pin(async { Ok(None) }))));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let put = backend.put(Space::Registry, "reads-registry", "preferred", b"2");
    runtime.block_on(put).expect("it is in memory");
    let engine = Engine::new(Settings { backend: Some(backend), ..Settings::default() }).expect("an engine");
    engine.publish(view(1, 64));
    let mut local = engine.local();
    let request = Select { counter: "likes/example-counter-24", amount: 1, key_hash: 7, candidates: &[1, 2, 3] };
    let mut group = criterion.benchmark_group("select, by language");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for (label, file, config) in [
        ("Rust", "plugins/target/wasm32-wasip2/release/round_robin.wasm", ""),
        ("Rust that reads the registry", "tests/guests/target/guests/reads-registry.wasm", ""),
        ("Rust that reads and writes the storage", "tests/guests/target/guests/keeps-table.wasm", ""),
        ("JavaScript", "plugins/target/examples/queues-js.wasm", ""),
        ("JavaScript on SpiderMonkey", "plugins/target/examples/queues-js-spidermonkey.wasm", ""),
        ("Python with a clock", "plugins/target/examples/weekday-python.wasm", r#"{"default": 2}"#),
    ] {
        let Ok(bytes) = std::fs::read(format!("{root}/{file}")) else {
            println!("skipped: {file} is not built");
            continue;
        };
        let name = if label.contains("registry") { "reads-registry" } else { "measured" };
        let (revision, _) = admission::admit(&engine, name, &bytes).expect("it is admitted");
        let binding = admission::bind(&engine, &revision, config, Grants::ALL, false).expect("it is bound");
        let place = if binding.revision.is_inline() { "inline" } else { "on the pool" };
        group.bench_function(format!("{label}, {place}"), |bencher| {
            bencher.iter(|| match local.select_now(&binding, black_box(&request)) {
                Some(chosen) => chosen,
                None => runtime.block_on(select_pooled(&engine, &binding, black_box(&request))),
            });
        });
        let faults = binding.revision.snapshot().faults;
        assert!(faults.is_empty(), "{label}: {faults:?}");
    }
    group.finish();
}

criterion_group!(benches, select, languages, read, instantiate, start);
criterion_main!(benches);
