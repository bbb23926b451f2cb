//! What admission says to every guest of `tests/guests`: refused with the exact reason, or admitted and contained later.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{CANDIDATES, addition, ask, engine, engine_with, faults, guest, partials, patient, read, sum};
use quipu::policy::admission::{self, Check, Refusal};
use quipu::policy::imports::backend::Space;
use quipu::policy::{
    Backend, Binding, Engine, Grants, Limits, Placement, Rejected, Report, Revision, Settings, StoreBackend, World,
    builtin, combine_pooled, plan_pooled, select_pooled,
};
use quipu::store::Store;
use quipu::store::memory::MemoryStore;

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(what)
}

fn admit(engine: &Arc<Engine>, name: &str) -> Result<(Arc<Revision>, Report), Refusal> {
    admission::admit(engine, name, &guest(name))
}

/// What the world must see of a refusal.
struct Refused {
    check: Check,
    /// A part of the vector; empty where nothing was asked.
    vector: &'static str,
    /// One of these is a part of the reason: a slow machine meets the deadline before the memory's limit.
    reasons: &'static [&'static str],
}

const fn refused(check: Check, vector: &'static str, reasons: &'static [&'static str]) -> Option<Refused> {
    Some(Refused { check, vector, reasons })
}

/// Says what is wrong with an outcome.
fn compare<T>(outcome: &Result<T, Refusal>, expected: &Option<Refused>) -> Option<String> {
    match (outcome, expected) {
        (Ok(_), None) => None,
        (Ok(_), Some(_)) => Some("was not refused".into()),
        (Err(refusal), None) => Some(format!("was refused: {refusal}")),
        (Err(refusal), Some(expected)) => {
            let vector = refusal.vector.as_deref().unwrap_or_default();
            let good = refusal.check == expected.check
                && vector.contains(expected.vector)
                && vector.is_empty() == expected.vector.is_empty()
                && expected.reasons.iter().any(|reason| refusal.reason.contains(reason));
            let text = refusal.to_string();
            let whole = text.contains(&refusal.reason) && text.len() < 2_000 && !text.contains('\n');
            (!good || !whole).then(|| format!("check {}, vector {vector:?}: {text}", refusal.check))
        }
    }
}

/// Uploads. None: admitted.
fn uploads() -> Vec<(&'static str, Option<Refused>)> {
    use Check::*;
    let empty = "an empty config";
    vec![
        ("another-world", refused(World, "", &[r#"but ["run"]"#])),
        ("both-worlds", refused(World, "", &["exports both quipu:policy/selector and quipu:policy/aggregator"])),
        ("core-module", refused(Component, "", &["it is a core module"])),
        ("data-out-of-bounds", refused(Configure, empty, &["trap: wasm trap: out of bounds memory access"])),
        ("empty", refused(World, "", &["exports neither quipu:policy/selector nor quipu:policy/aggregator, but []"])),
        ("first-candidate", None),
        ("future-version", refused(World, "", &["exports quipu:policy/selector@2.0.0; this host knows version 1.0"])),
        ("grow-table", refused(Select, "an addition", &["memory: it was refused memory or table elements"])),
        ("huge-data", refused(Component, "", &["the component has 68159490 bytes; the limit is 67108864"])),
        ("huge-table", refused(Configure, empty, &["memory: it was refused memory or table elements"])),
        ("keeps-table", None),
        ("loop-in-post-return", refused(Configure, empty, &["deadline: it was not configured within 500ms"])),
        ("loop-in-realloc", refused(Configure, empty, &["deadline: it was not configured within 500ms"])),
        ("loop-in-start", refused(Configure, empty, &["deadline: it was not configured within 500ms"])),
        ("memory-of-4-gib", refused(Configure, empty, &["memory: it was refused memory"])),
        ("memory-until-refused", None),
        ("misbehaves-aggregation", None),
        ("misbehaves-io", None),
        ("misbehaves-selection", None),
        ("needs-config", None),
        ("nested-components", refused(Component, "", &["makes more than 256 instances"])),
        ("nosy", None),
        ("prints", None),
        ("reads-registry", None),
        ("realloc-out-of-bounds", refused(Configure, empty, &["trap: realloc return: beyond end of memory"])),
        ("realloc-unaligned", refused(Refresh, "a view of 0 shards", &["trap: realloc return: result not aligned"])),
        ("slow-to-compile", refused(Compile, "", &["did not compile within 5ms"])),
        ("string-not-utf8", refused(Configure, empty, &["trap: "])),
        ("string-of-memory-size", refused(Configure, empty, &["host_calls: "])),
        ("string-out-of-bounds", refused(Configure, empty, &["trap: "])),
        ("thousands-of-imports", refused(Imports, "", &["imports"])),
        ("trap-in-start", refused(Configure, empty, &["trap: wasm trap: wasm `unreachable` instruction executed"])),
        ("truncated", refused(Component, "", &["unexpected end"])),
        ("unknown-import", refused(Imports, "", &["imports \"guests:hostile/exfiltrate\", which no policy is given"])),
        ("wrong-discriminant", refused(Configure, empty, &["trap: "])),
        ("wrong-types", refused(Interface, "", &["does not export the function \"refresh\""])),
    ]
}

/// Rules with a config for guests that are admitted. None: bound.
fn rules() -> Vec<(&'static str, &'static str, Option<Refused>)> {
    use Check::*;
    let config = "the rule's config";
    let first = "an addition of 1 to \"example-counter\" with 1 candidate, in a view of 0 shards";
    let first_read = "a read of \"example-counter\" on 1 shard, at most 0 ms old, in a view of 0 shards";
    let selection = |how, expected| ("misbehaves-selection", how, expected);
    let aggregation = |how, expected| ("misbehaves-aggregation", how, expected);
    let io = |how, expected| ("misbehaves-io", how, expected);
    let nosy = |how| ("nosy", how, refused(Configure, "", &["the policy refuses this config: denied: "]));
    let full = &["memory: it was refused memory", "deadline: "];
    vec![
        selection("busy-3-ms", None),
        selection("error-in-configure", refused(Configure, "", &["this policy refuses every rule"])),
        selection("flood-log", None),
        selection(
            "grow-a-little-each-call",
            refused(Select, "an addition", &["while it answers it may grow by 4096 KiB"]),
        ),
        selection("grow-without-end", refused(Select, first, full)),
        selection("huge-error-in-configure", refused(Configure, config, &["host_calls: "])),
        selection("huge-log-line", refused(Select, first, &["host_calls: "])),
        selection("keep-every-request", None),
        selection("long-log-lines", None),
        selection("loop-in-configure", refused(Configure, config, &["deadline: it was not configured within 500ms"])),
        selection("loop-in-refresh", refused(Refresh, "a view of 0 shards", &["deadline: "])),
        selection("loop-in-select", refused(Select, first, &["deadline: it did not answer within 100ms"])),
        selection("metrics-without-end", refused(Select, first, &["host_calls: it made more than 16384 host calls"])),
        selection("no-candidate", refused(Select, first, &["not_a_candidate: select answered"])),
        selection("no-shard", refused(Select, first, &["not_a_candidate: select answered 4294967295"])),
        selection("recurse", refused(Select, first, &["call stack exhausted", "out of bounds memory access"])),
        selection("trap-in-configure", refused(Configure, config, &["trap: "])),
        selection("trap-in-refresh", refused(Refresh, "a view of 0 shards", &["trap: "])),
        selection("trap-in-second-refresh", refused(Refresh, "a view of 1 shard", &["trap: "])),
        selection("trap-in-select", refused(Select, first, &["trap: "])),
        selection("trap-on-hundredth-call", refused(Select, "an addition", &["trap: "])),
        selection("trap-on-nan", refused(Refresh, "a view of 64 shards", &["trap: "])),
        selection("what", refused(Configure, "", &["unknown misbehaviour \"what\""])),
        aggregation("error-in-combine", refused(Combine, "no partials", &["refused: this policy has no total"])),
        aggregation("grow-in-combine", refused(Combine, "no partials", full)),
        aggregation("huge-error-in-combine", refused(Combine, "no partials", &["host_calls: "])),
        aggregation("largest-total", None),
        aggregation("loop-in-combine", refused(Combine, "no partials", &["deadline: "])),
        aggregation("loop-in-plan", refused(Plan, first_read, &["deadline: "])),
        aggregation("only-a-million", refused(Plan, first_read, &["host_calls: "])),
        aggregation("only-foreign-shards", refused(Plan, first_read, &["not_a_candidate: plan named 2 shards of 1"])),
        aggregation("only-nothing", None),
        aggregation("only-one", None),
        aggregation("only-one-thrice", refused(Plan, first_read, &["not_a_candidate: plan named 3 shards of 1"])),
        aggregation("smallest-total", None),
        aggregation("trap-in-combine", refused(Combine, "no partials", &["trap: "])),
        aggregation("trap-in-configure", refused(Configure, config, &["trap: "])),
        aggregation("trap-in-plan", refused(Plan, first_read, &["trap: "])),
        aggregation("trap-in-refresh", refused(Refresh, "a view of 0 shards", &["trap: "])),
        aggregation("wrong-total", None),
        io("empty-key", None),
        io("fill-registry", None),
        io("fill-storage", None),
        io("huge-argument", refused(Select, first, &["host_calls: "])),
        io("huge-key", None),
        io("huge-value", None),
        io("list-everything", None),
        io("registry-without-end", refused(Select, first, &["asked the registry or the storage more than 64 times"])),
        io("storage-without-end", refused(Select, first, &["asked the registry or the storage more than 64 times"])),
        io("trap-after-put", refused(Select, first, &["trap: "])),
        nosy("read-file"),
        nosy("write-file"),
        nosy("list-files"),
        nosy("network"),
        nosy("listen"),
        nosy("resolve"),
        nosy("environment"),
        nosy("arguments"),
        nosy("stdin"),
        ("nosy", "clocks-and-random", None),
        ("nosy", "exit-in-configure", refused(Configure, config, &["it exited with code 0"])),
        ("nosy", "exit-in-select", refused(Select, first, &["it exited with code 0"])),
        ("nosy", "panic-in-select", refused(Select, first, &["trap: "])),
        ("nosy", "sleep", refused(Select, first, &["deadline: it did not answer within 100ms"])),
        ("nosy", "stdout", None),
        ("nosy", "stderr", None),
        ("prints", "clocks-and-random", None),
        ("prints", "exit", refused(Select, first, &["it exited with code 0"])),
        ("prints", "panic", refused(Select, first, &["trap: "])),
        ("prints", "sleep", refused(Select, first, &["deadline: it did not answer within 100ms"])),
        ("prints", "stdout", None),
        ("prints", "stderr", None),
        ("needs-config", "any", None),
        ("needs-config", "x", refused(Select, first, &["not_a_candidate: select answered 4294967295"])),
    ]
}

/// Whatever it does, additions have a candidate and reads a total. Answers who answered last.
fn contained(engine: &Arc<Engine>, binding: &Arc<Binding>, calls: u32) {
    let mut local = engine.local();
    for _ in 0..calls {
        if binding.revision.world == World::Selection {
            let chosen = match local.select_now(binding, &addition()) {
                Some(chosen) => chosen,
                None => run(select_pooled(engine, binding, &addition())),
            };
            assert!(CANDIDATES.contains(&chosen.shard), "{chosen:?}");
            continue;
        }
        let planned = local.plan_now(binding, &read()).unwrap_or_else(|| run(plan_pooled(engine, binding, &read())));
        let combined = match local.combine_now(binding, &partials()) {
            Some(combined) => combined,
            None => run(combine_pooled(engine, binding, &partials())),
        };
        assert!(!combined.fallback || combined.total == sum(), "{planned:?} {combined:?}");
    }
}

fn strict() -> Arc<Engine> {
    let limits = Limits { deadline_configure_pooled: Duration::from_millis(500), ..Limits::default() };
    engine_with(Settings { limits, breaker: patient(), ..Settings::default() })
}

/// Runs beside everything that `hostile` does: the service must not notice.
fn while_serving(engine: &Arc<Engine>, hostile: impl FnOnce()) {
    let healthy = crate::support::bind(engine, "first-candidate", "");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let (mut local, mut asked) = (engine.local(), 0u64);
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(ask(&mut local, &healthy, 1), 1, "call {asked}: {:?}", faults(&healthy.revision));
                asked += 1;
                // The machine is for what is tried out here, not for this loop.
                std::thread::yield_now();
            }
            asked
        });
        // Stops the loop also when an assertion fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stops = Stop(&stop);
        hostile();
        drop(stops);
        assert!(serving.join().expect("it was served") > 0);
    });
    assert_eq!(faults(&healthy.revision), []);
}

#[test]
fn every_upload_has_its_named_outcome() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/target/guests");
    let mut built: Vec<String> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}; run `make guests` first", folder.display()))
        .map(|file| file.expect("it is listed").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    built.sort();
    let uploads = uploads();
    let named: Vec<&str> = uploads.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, built, "the table names every guest, and no other");

    let (engine, hasty) = (strict(), {
        let limits = Limits { compile_time: Duration::from_millis(5), ..Limits::default() };
        engine_with(Settings { limits, ..Settings::default() })
    });
    let mut wrong = Vec::new();
    while_serving(&engine, || {
        for (name, expected) in &uploads {
            let began = Instant::now();
            let outcome = admit(if *name == "slow-to-compile" { &hasty } else { &engine }, name);
            wrong.extend(compare(&outcome, expected).map(|what| format!("{name} {what}")));
            if let Ok((revision, report)) = outcome {
                assert_eq!((revision.world, &revision.placement), (report.world, &report.placement), "{name}");
                assert_eq!(faults(&revision), [], "{name}: what the dry run did is not counted");
                if report.needs_config.is_none() {
                    contained(&engine, &engine.bind(&revision, "").expect("it binds"), 20);
                }
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{name} took {:?}", began.elapsed());
        }
    });
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_rule_has_its_named_outcome() {
    let engine = strict();
    let mut wrong = Vec::new();
    while_serving(&engine, || {
        for (name, config, expected) in rules() {
            let revision = engine.load(name, &guest(name)).expect("it loads");
            let outcome = admission::bind(&engine, &revision, config, Grants::ALL, false);
            wrong.extend(compare(&outcome, &expected).map(|what| format!("{name} {config} {what}")));
            if let Ok(binding) = outcome {
                contained(&engine, &binding, 300);
            }
        }
    });
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_built_in_is_admitted_inline() {
    let engine = engine();
    for builtin in builtin::ALL {
        let (_, report) = admission::admit(&engine, builtin.name, builtin.bytes).unwrap_or_else(|no| panic!("{no}"));
        let cost = report.cost.expect("it takes an empty config");
        println!("{}: {cost:?}, {:?}, deterministic: {}", builtin.name, report.exact_sum, report.deterministic);
        assert_eq!(report.placement, Placement::Inline, "{report:?}");
        assert!(cost.median_ns > 0 && cost.median_ns <= cost.p99_ns, "{report:?}");
        assert!(report.memory_peak_bytes > 0, "{report:?}");
        let exact = match builtin.name {
            "sum" | "cached-sum" | "available-sum" => Some(true),
            "max" => Some(false),
            _ => None,
        };
        assert_eq!(report.exact_sum, exact, "{}", builtin.name);
        assert_eq!(report.all_shards_only, builtin.name == "value-modulo", "{}", builtin.name);
        let draws = ["random", "round-robin", "least-cpu", "two-choices"];
        if !draws.contains(&builtin.name) {
            assert!(report.deterministic, "{report:?}");
        } else if builtin.name == "round-robin" || builtin.name == "random" {
            assert!(!report.deterministic, "{report:?}");
        }
    }
}

#[test]
fn a_policy_for_all_shards_is_refused_where_the_spread_is_smaller() {
    let engine = engine();
    let modulo = builtin::find("value-modulo").expect("it is built in");
    let revision = engine.load(modulo.name, modulo.bytes).expect("it loads");
    let bind = |all_shards| admission::bind(&engine, &revision, "", Grants::default(), all_shards).map(|_| ());
    assert_eq!(bind(true), Ok(()));
    let refused = bind(false).unwrap_err();
    assert_eq!(refused.check, Check::Select);
    assert!(refused.reason.starts_with("not_a_candidate: select answered"), "{refused}");
}

#[test]
fn a_report_says_what_was_checked() {
    let (_, report) = admit(&engine(), "first-candidate").expect("it is a good one");
    let count = |check| report.checks.iter().find(|passed| passed.check == check).map_or(0, |passed| passed.count);
    assert_eq!(
        (count(Check::Configure), count(Check::Refresh)),
        (2, 11),
        "two instances, five views, one for the cost"
    );
    assert!(count(Check::Select) >= 200 && count(Check::Cost) >= 32 && count(Check::Plan) == 0, "{report:?}");
    assert!(report.deterministic && report.exact_sum.is_none());
    let json = serde_json::to_value(&report).expect("it is plain data");
    assert_eq!((&json["world"], &json["placement"]["runs"]), (&"selection".into(), &"inline".into()));
    assert_eq!(json["checks"][0], serde_json::json!({"check": "name", "count": 1}));
}

#[test]
fn a_policy_that_needs_a_config_is_checked_when_a_rule_gives_it_one() {
    let engine = engine();
    let (revision, report) = admit(&engine, "needs-config").expect("it is no fault to need one");
    assert_eq!(report.needs_config.as_deref(), Some("say which shard you like"));
    assert_eq!((report.cost, report.deterministic, report.exact_sum), (None, false, None));
    let bind = |config| admission::bind(&engine, &revision, config, Grants::default(), false).map(|_| ());
    assert_eq!(bind("good"), Ok(()));
    assert_eq!(bind("").unwrap_err().reason, "the policy refuses this config: say which shard you like");
    assert_eq!(bind("x").unwrap_err().check, Check::Select);
    let long = "x".repeat(64 * 1024 + 1);
    assert_eq!(bind(&long).unwrap_err(), Rejected::ConfigTooLong { bytes: 65_537 }.into());
}

#[test]
fn a_slow_policy_runs_on_the_pool_and_does_so_again_after_a_start() {
    // A busy machine must not make it fail by the pool's usual deadline.
    let limits = Limits { deadline_pooled: Duration::from_secs(10), ..Limits::default() };
    let engine = engine_with(Settings { limits, breaker: patient(), ..Settings::default() });
    let revision = engine.load("m", &guest("misbehaves-selection")).expect("it loads");
    assert!(revision.is_inline());
    let binding = admission::bind(&engine, &revision, "busy-3-ms", Grants::default(), false).expect("it is only slow");
    let Placement::Pooled(because) = &binding.revision.placement else { panic!("it runs inline") };
    assert!(because.contains("on the serving thread"), "{because}");
    assert!(engine.local().select_now(&binding, &addition()).is_none());
    contained(&engine, &binding, 3);
    assert_eq!(binding.revision.stats().calls(), revision.stats().calls(), "it is one revision in two places");

    // What the report says is enough to load it so again.
    let report =
        Report { placement: binding.revision.placement.clone(), ..admit(&engine, "first-candidate").expect("good").1 };
    let again = engine.load_with("m", &guest("misbehaves-selection"), report.options()).expect("it loads");
    assert_eq!(again.placement, binding.revision.placement);
}

#[test]
fn a_dry_run_leaves_nothing_in_the_store_and_sees_what_is_there() {
    let store = Arc::new(MemoryStore::new(12));
    let backend = Arc::new(StoreBackend::new(store.clone(), Box::new(|_, _| Box::pin(async { Ok(None) }))));
    // 64 host calls and their answers take time on a busy machine.
    let limits = Limits { deadline_pooled: Duration::from_secs(10), ..Limits::default() };
    let settings = Settings { limits, breaker: patient(), backend: Some(backend.clone()), ..Settings::default() };
    let engine = engine_with(settings);
    run(backend.put(Space::Registry, "reads-registry", "preferred", b"9")).expect("there is room");
    let (_, report) = admit(&engine, "reads-registry").expect("it is a good one");
    assert_eq!(report.placement, Placement::Inline, "it only reads, and that from memory");
    assert!(report.deterministic, "the key does not change");
    let (_, report) = admit(&engine, "keeps-table").expect("it is a good one");
    assert!(!report.deterministic, "it read what it wrote");
    let revision = engine.load("misbehaves-io", &guest("misbehaves-io")).expect("it loads");
    let refused = admission::bind(&engine, &revision, "trap-after-put", Grants::ALL, false).map(|_| ()).unwrap_err();
    assert_eq!(refused.check, Check::Select, "{refused}");
    for space in ["plugin/keeps-table", "plugin/misbehaves-io"] {
        assert_eq!(run(store.scan(space, "", 10)).expect("it is in memory"), [], "{space}");
    }
}

#[test]
fn without_grants_a_dry_run_is_denied_and_that_is_no_fault() {
    let engine = engine();
    let revision = engine.load("reads-registry", &guest("reads-registry")).expect("it loads");
    let binding = admission::bind(&engine, &revision, "", Grants::default(), false).expect("a denial is an answer");
    assert_eq!(binding.grants, Grants::default());
}

#[test]
fn admission_runs_also_on_a_thread_with_a_runtime() {
    let engine = engine();
    run(async {
        for name in ["first-candidate", "reads-registry", "prints"] {
            admit(&engine, name).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        }
    });
}

#[test]
fn a_small_component_is_admitted_within_a_second() {
    let engine = engine();
    let bytes = guest("misbehaves-selection");
    let best = (0..5)
        .map(|_| {
            let began = Instant::now();
            admission::admit(&engine, "m", &bytes).expect("it behaves without a config");
            began.elapsed()
        })
        .min()
        .expect("five times");
    println!("{} bytes are admitted in {best:?}", bytes.len());
    assert!(best < Duration::from_secs(1), "{best:?}");
}
