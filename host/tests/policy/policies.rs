//! Policies that behave: the built-in ones, config, views, bindings that come and go, the switch, the cache.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use crate::support::{addition, ask, bind, engine, engine_with, faults, guest, partials, read, sum, view};
use quipu::policy::{
    Binding, Catalog, Engine, Kind, Limits, Placement, Read, Rejected, Select, Settings, ShardInfo, View, World,
    builtin, catalog,
};

#[test]
fn every_built_in_answers_inline() {
    let engine = engine();
    let catalog = Catalog::with_builtins(&engine).expect("all load");
    let mut local = engine.local();
    assert_eq!(catalog.list().len(), builtin::ALL.len());
    for revision in catalog.list() {
        assert_eq!(revision.placement, Placement::Inline, "{revision:?}");
        let binding = engine.bind(&revision, "").expect("no config is needed");
        match revision.world {
            World::Selection => assert_eq!(ask(&mut local, &binding, 100), 100, "{revision:?}"),
            World::Aggregation => {
                assert!(!local.plan_now(&binding, &read()).expect("inline").fallback, "{revision:?}");
                let combined = local.combine_now(&binding, &partials()).expect("inline");
                assert!(!combined.fallback, "{revision:?}");
                if revision.name() == "sum" {
                    assert_eq!(combined.total, sum());
                }
            }
        }
        assert_eq!(faults(&revision), []);
        assert!(revision.snapshot().latency.samples > 0 || revision.world == World::Aggregation);
    }
}

#[test]
fn the_cpu_in_the_view_reaches_the_policy() {
    let engine = engine();
    let binding = {
        let revision =
            engine.load("least-cpu", builtin::find("least-cpu").expect("it is built in").bytes).expect("it loads");
        engine.bind(&revision, "").expect("no config is needed")
    };
    let mut local = engine.local();
    let shares = |local: &mut quipu::policy::Local, idle: u32, version: u64| {
        let info = |shard| ShardInfo {
            shard,
            available: true,
            local: false,
            owner_cpu: if shard == idle { 0.01 } else { 0.99 },
            queued: 0,
        };
        engine.publish(View { version, shards: (0..12).map(info).collect() });
        let chosen = |n: u64| {
            let request = Select { key_hash: n.wrapping_mul(0x9E37_79B9_7F4A_7C15), ..addition() };
            local.select_now(&binding, &request).expect("inline").shard
        };
        (0..1_000).map(chosen).filter(|&shard| shard == idle).count()
    };
    assert!(shares(&mut local, 9, 2) > 800);
    assert!(shares(&mut local, 1, 3) > 800, "a new view changes the choice");
}

#[test]
fn a_refused_config_shows_the_guests_words() {
    let engine = engine();
    let revision = engine.load("m", &guest("misbehaves-selection")).expect("it loads");
    let refused = |config: &str| engine.bind(&revision, config).map(|_| ()).unwrap_err();
    assert_eq!(refused("error-in-configure"), Rejected::Config("this policy refuses every rule".into()));
    assert_eq!(refused("what"), Rejected::Config("unknown misbehaviour \"what\"".into()));
    let long = "x".repeat(64 * 1024 + 1);
    assert_eq!(refused(&long), Rejected::ConfigTooLong { bytes: 65_537 });
}

#[test]
fn instances_of_bindings_that_are_gone_are_freed() {
    // Room for a few instances of one page or two; a hundred would not fit.
    let limits = Limits { memory_node_bytes: 1024 * 1024, ..Limits::default() };
    let engine = engine_with(Settings { limits, ..Settings::default() });
    let revision = engine.load("first", &guest("first-candidate")).expect("it loads");
    let mut local = engine.local();
    for round in 0..100 {
        let binding = engine.bind(&revision, "").unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(ask(&mut local, &binding, 1), 1, "round {round}");
    }
    let kept: Vec<_> = (0..4).map(|_| engine.bind(&revision, "").expect("there is room")).collect();
    for binding in &kept {
        assert_eq!(ask(&mut local, binding, 1), 1);
    }
    drop(kept);
    engine.publish(view(2, 12));
    let others: Vec<_> = (0..4).map(|_| engine.bind(&revision, "").expect("there is room")).collect();
    assert!(others.iter().all(|binding| ask(&mut local, binding, 1) == 1));
    assert_eq!(faults(&revision), []);
}

#[test]
fn two_bindings_of_one_revision_keep_their_configs_apart() {
    let engine = engine();
    let revision = engine.load("m", &guest("misbehaves-selection")).expect("it loads");
    let good = engine.bind(&revision, "").expect("it binds");
    let bad = engine.bind(&revision, "no-candidate").expect("it binds");
    let mut local = engine.local();
    for _ in 0..10 {
        assert_eq!((ask(&mut local, &good, 1), ask(&mut local, &bad, 1)), (1, 0));
    }
}

#[test]
fn the_switch_turns_every_question_to_the_native_choice() {
    let engine = engine();
    let binding = bind(&engine, "first-candidate", "");
    let mut local = engine.local();
    engine.set_enabled(false);
    let chosen = local.select_now(&binding, &Select { candidates: &[7, 1], ..addition() }).expect("inline");
    assert_eq!((chosen.shard, chosen.fallback), (7, true));
    assert_eq!(binding.revision.stats().faults(Kind::Unavailable), 1);
    engine.set_enabled(true);
    assert_eq!(ask(&mut local, &binding, 1), 1);
}

#[test]
fn a_question_of_the_other_world_is_answered_natively() {
    let engine = engine();
    let binding = bind(&engine, "first-candidate", "");
    let mut local = engine.local();
    let planned = local.plan_now(&binding, &Read { max_age_ms: 5, ..read() }).expect("inline");
    assert!(planned.fallback);
    assert_eq!(local.combine_now(&binding, &partials()).expect("inline").total, sum());
    assert_eq!(ask(&mut local, &binding, 1), 1, "and its own as before");
}

#[test]
fn the_catalog_finds_the_newest_and_keeps_what_is_held() {
    let engine = engine();
    let catalog = Catalog::default();
    let first = catalog.register(engine.load("p", &guest("first-candidate")).expect("it loads")).expect("room");
    let second = catalog.register(engine.load("p", &guest("misbehaves-selection")).expect("it loads")).expect("room");
    let again = catalog.register(engine.load("p", &guest("first-candidate")).expect("it loads")).expect("room");
    assert!(Arc::ptr_eq(&first, &again), "the same bytes are the same revision");
    let get = |digest: Option<&str>| catalog.get("p", digest).map(|revision| revision.digest().to_owned());
    assert_eq!(get(None).as_deref(), Ok(second.digest()));
    assert_eq!(get(Some(first.digest())).as_deref(), Ok(first.digest()));
    let binding = engine.bind(&first, "").expect("it binds");
    catalog.remove("p", first.digest()).expect("it is there");
    assert!(matches!(get(Some(first.digest())), Err(catalog::Error::UnknownRevision { .. })));
    assert_eq!(ask(&mut engine.local(), &binding, 1), 1, "a binding keeps its revision");
    catalog.remove("p", second.digest()).expect("it is there");
    assert_eq!(get(None), Err(catalog::Error::UnknownName("p".into())));
}

fn cached(directory: &std::path::Path) -> Result<Arc<Engine>, String> {
    let settings = Settings { cache_dir: Some(directory.to_owned()), ..Settings::default() };
    Engine::new(settings).map_err(|error| error.to_string())
}

/// The one entry of a cache.
fn entry(directory: &std::path::Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(directory).expect("a directory").map(|file| file.expect("a file").path());
    let mut entries: Vec<_> = files.filter(|file| file.extension().is_some_and(|name| name == "cwasm")).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

#[test]
fn compiled_code_comes_from_the_cache_only_when_we_wrote_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache");
    let bytes = guest("first-candidate");
    let serves = |engine: &Arc<Engine>| {
        let revision = engine.load("first", &bytes).expect("it loads");
        engine.publish(view(1, 12));
        ask(&mut engine.local(), &engine.bind(&revision, "").expect("it binds"), 1) == 1
    };
    assert!(serves(&cached(&cache).expect("opens")));
    let file = entry(&cache);
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&cache), mode(&file), mode(&cache.join("key"))), (0o700, 0o600, 0o600));

    let good = std::fs::read(&file).expect("it reads");
    let written =
        |file: &std::path::Path| std::fs::metadata(file).expect("it is there").modified().expect("it has a time");
    let before = written(&file);
    assert!(serves(&cached(&cache).expect("opens")));
    assert_eq!(written(&file), before, "it was read, not written again");

    // Every kind of change: a bit of the code, of the MAC, a cut, nothing at all.
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for changed in [flipped(good.len() / 2), flipped(3), good[..good.len() - 1].to_vec(), good[..10].to_vec(), vec![]] {
        std::fs::write(&file, &changed).expect("it writes");
        assert!(serves(&cached(&cache).expect("opens")));
        assert_eq!(std::fs::read(&file).expect("it reads").len(), good.len(), "it was compiled anew and replaced");
    }

    // Another node's entry, under another key.
    let other = directory.path().join("other");
    assert!(serves(&cached(&other).expect("opens")));
    std::fs::copy(entry(&other), &file).expect("it copies");
    let foreign = std::fs::read(&file).expect("it reads");
    assert!(serves(&cached(&cache).expect("opens")));
    assert_ne!(std::fs::read(&file).expect("it reads"), foreign, "it was replaced");
}

#[test]
fn code_of_a_revision_that_rests_is_in_memory_only_while_it_is_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache");
    let bytes = guest("first-candidate");
    let engine = cached(&cache).expect("opens");
    engine.publish(view(1, 12));
    let revision = engine.load("first", &bytes).expect("it loads");
    let mut local = engine.local();
    let mut serves = |binding: &Arc<Binding>| assert_eq!(ask(&mut local, binding, 1), 1);
    let rests = || matches!(engine.bind(&revision, ""), Err(Rejected::Rests));

    engine.rest(&revision);
    assert!(rests(), "nothing uses it");
    let awake = engine.wake(&revision).expect("the cache has it");
    let binding = engine.bind(&revision, "").expect("it is awake");
    drop(awake);
    serves(&binding);
    serves(&engine.bind(&revision, "").expect("the first binding holds it"));
    drop(binding);
    assert!(rests(), "the last binding is gone");

    std::fs::write(entry(&cache), b"damaged").expect("it writes");
    assert!(engine.wake(&revision).is_none());
    let awake = engine.wake_from(&revision, &bytes).expect("it is compiled anew");
    serves(&engine.bind(&revision, "").expect("it is awake"));
    drop(awake);
    assert!(engine.wake(&revision).is_some(), "and it is in the cache again");
    assert_eq!(revision.snapshot().calls, 3, "what is counted stays");
}

#[test]
fn without_a_cache_no_revision_rests() {
    let engine = engine();
    let revision = engine.load("first", &guest("first-candidate")).expect("it loads");
    engine.rest(&revision);
    assert_eq!(ask(&mut engine.local(), &engine.bind(&revision, "").expect("it is in memory"), 1), 1);
}

#[test]
fn nodes_that_open_a_cache_at_once_share_one_key() {
    let bytes = guest("first-candidate");
    for _ in 0..10 {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = directory.path().join("cache");
        let together = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        together.wait();
                        cached(&cache).expect("opens")
                    })
                })
                .collect();
            let nodes: Vec<_> = nodes.into_iter().map(|node| node.join().expect("does not panic")).collect();
            nodes[0].load("first", &bytes).expect("it loads");
            let written = std::fs::read(entry(&cache)).expect("it reads");
            for node in &nodes[1..] {
                node.load("first", &bytes).expect("it loads");
                assert_eq!(std::fs::read(entry(&cache)).expect("it reads"), written, "taken as it is");
            }
        });
    }
}

#[test]
fn a_cache_that_others_can_use_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache");
    drop(cached(&cache).expect("opens"));
    let set =
        |path: &std::path::Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
    set(&cache.join("key"), 0o640);
    assert!(cached(&cache).map(|_| ()).is_err_and(|error| error.contains("key file can be used by other users")));
    set(&cache.join("key"), 0o600);
    std::fs::write(cache.join("key"), b"short").expect("it writes");
    assert!(cached(&cache).map(|_| ()).is_err_and(|error| error.contains("damaged")));
    set(&cache, 0o777);
    assert!(cached(&cache).map(|_| ()).is_err_and(|error| error.contains("directory can be used by other users")));
}

#[test]
fn wasi_runs_inline_on_a_thread_with_a_runtime() {
    let engine = engine();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut local = engine.local();
        for config in ["", "clocks-and-random", "stdout", "stderr"] {
            let binding = bind(&engine, "prints", config);
            assert_eq!(binding.revision.placement, Placement::Inline);
            assert_eq!(ask(&mut local, &binding, 20), 20, "{config}");
            let lines = binding.revision.log_lines(0);
            let expected = if config.starts_with("std") { 10..=20 } else { 0..=0 };
            assert!(expected.contains(&lines.len()), "{config}: {} lines", lines.len());
            assert!(lines.iter().all(|line| line.text == "a line of example-counter"), "{config}: {lines:?}");
        }
        for config in ["exit", "panic", "sleep"] {
            let binding = bind(&engine, "prints", config);
            let began = std::time::Instant::now();
            assert_eq!(ask(&mut local, &binding, 3), 0, "{config}");
            assert_eq!(faults(&binding.revision), [("trap", 3)], "{config}");
            assert!(began.elapsed().as_secs() < 30, "a sleep of a minute is not slept");
        }
    });
}
