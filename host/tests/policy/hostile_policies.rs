//! Hostile and broken policies: each is refused with its reason or contained, and the service answers throughout.
//! `tests/guests/README.md` says what each guest does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{CANDIDATES, addition, ask, bind, engine_with, faults, guest, partials, patient, read, sum, view};
use quipu::policy::{Engine, Kind, Limits, Plan, Rejected, Settings, View, World, breaker};

/// Calls may take long here: how fast this machine is must not decide which limit a guest meets first.
fn slow_machine() -> Limits {
    Limits {
        deadline_inline: Duration::from_millis(200),
        deadline_refresh: Duration::from_millis(200),
        deadline_configure_inline: Duration::from_secs(1),
        ..Limits::default()
    }
}

fn engine() -> Arc<Engine> {
    engine_with(Settings { limits: slow_machine(), breaker: patient(), ..Settings::default() })
}

/// What `load` and then `bind` with no config say.
fn refusal(engine: &Arc<Engine>, name: &str) -> Rejected {
    refusal_with(engine, name, "")
}

fn refusal_with(engine: &Arc<Engine>, name: &str, config: &str) -> Rejected {
    let loaded = engine.load("guest", &guest(name));
    match loaded.and_then(|revision| engine.bind(&revision, config)) {
        Ok(_) => panic!("{name} was accepted"),
        Err(rejected) => rejected,
    }
}

#[test]
fn what_cannot_be_a_policy_is_refused_with_the_reason() {
    let engine = engine_with(Settings::default());
    let expected = [
        ("core-module", "core module"),
        ("truncated", "unexpected end"),
        ("empty", "exports neither quipu:policy/selector nor quipu:policy/aggregator, but []"),
        ("another-world", r#"but ["run"]"#),
        ("both-worlds", "exports both quipu:policy/selector and quipu:policy/aggregator"),
        ("future-version", "exports quipu:policy/selector@2.0.0; this host knows version 1.0"),
        ("wrong-types", "does not export the function \"refresh\""),
        ("unknown-import", "imports \"guests:hostile/exfiltrate\""),
        ("thousands-of-imports", "imports"),
        ("huge-data", "the component has 68159490 bytes; the limit is 67108864"),
        ("nested-components", "makes more than 256 instances"),
        ("memory-of-4-gib", "memory: it was refused memory"),
        ("huge-table", "memory: it was refused memory or table"),
        ("loop-in-start", "deadline: "),
        ("trap-in-start", "trap: wasm trap: wasm `unreachable` instruction executed"),
        ("data-out-of-bounds", "trap: wasm trap: out of bounds memory access"),
        ("string-out-of-bounds", "trap: "),
        ("string-not-utf8", "trap: "),
        ("wrong-discriminant", "trap: "),
    ];
    for (name, text) in expected {
        let began = Instant::now();
        let refused = refusal(&engine, name).to_string();
        assert!(refused.contains(text), "{name}: {refused}");
        assert!(refused.len() < 2_000, "{name}: {} bytes of text", refused.len());
        assert!(began.elapsed() < Duration::from_secs(60), "{name} took {:?}", began.elapsed());
    }
    let binding = bind(&engine, "first-candidate", "");
    assert_eq!(ask(&mut engine.local(), &binding, 1), 1, "a healthy one is served after all that");
}

#[test]
fn a_name_that_leaves_its_place_is_refused() {
    let engine = engine();
    let bytes = guest("first-candidate");
    for name in ["../../etc/passwd", "", "A", &"x".repeat(65)] {
        assert!(matches!(engine.load(name, &bytes), Err(Rejected::Name(_))), "{name}");
    }
}

#[test]
fn a_failing_configure_refuses_the_binding() {
    let engine = engine();
    for (name, config, expected) in [
        ("misbehaves-selection", "trap-in-configure", Some(Kind::Trap)),
        ("misbehaves-selection", "loop-in-configure", Some(Kind::Deadline)),
        ("misbehaves-selection", "huge-error-in-configure", Some(Kind::HostCalls)),
        ("misbehaves-selection", "error-in-configure", None),
        ("misbehaves-aggregation", "trap-in-configure", Some(Kind::Trap)),
        ("string-of-memory-size", "", Some(Kind::HostCalls)),
        ("loop-in-post-return", "", Some(Kind::Deadline)),
    ] {
        let revision = engine.load("guest", &guest(name)).expect("it loads");
        match engine.bind(&revision, config).map(|_| ()).unwrap_err() {
            Rejected::Fault(fault) => assert_eq!(Some(fault.kind), expected, "{name} {config}: {fault}"),
            Rejected::Config(text) => assert!(expected.is_none() && text.len() <= 1024, "{name} {config}: {text}"),
            other => panic!("{name} {config}: {other}"),
        }
    }
}

#[test]
fn every_fault_of_a_selection_is_counted_and_answered() {
    let (engine, usual) = (engine(), engine_with(Settings { breaker: patient(), ..Settings::default() }));
    for (config, kind) in [
        ("trap-in-refresh", Kind::Trap),
        ("trap-in-select", Kind::Trap),
        ("loop-in-select", Kind::Deadline),
        ("loop-in-refresh", Kind::Deadline),
        ("busy-3-ms", Kind::Deadline),
        ("metrics-without-end", Kind::HostCalls),
        ("recurse", Kind::Trap),
        ("no-candidate", Kind::NotACandidate),
        ("no-shard", Kind::NotACandidate),
    ] {
        let engine = if kind == Kind::Deadline { &usual } else { &engine };
        let (binding, mut local) = (bind(engine, "misbehaves-selection", config), engine.local());
        for call in 0..5 {
            let chosen = local.select_now(&binding, &addition()).expect("inline");
            // How fast this machine is decides whether 3 ms of work are over the deadline of 1 ms.
            if config != "busy-3-ms" {
                assert!(chosen.fallback, "{config}, call {call}");
            }
            assert_eq!(chosen.shard, CANDIDATES[0]);
        }
        let counted = faults(&binding.revision);
        let expected = binding.revision.stats().faults(kind);
        assert!(counted.len() <= 1 && (expected == 5 || config == "busy-3-ms"), "{config}: {counted:?}");
        assert!(binding.revision.snapshot().memory_peak_bytes <= 16 * 1024 * 1024, "{config}");
    }
}

#[test]
fn memory_is_refused_and_texts_are_cut_at_the_limit() {
    // Touching memory for the first time takes long, and 3 MiB of text are too much to be cut.
    let (deadline_inline, host_call_bytes) = (Duration::from_secs(10), 4 * 1024 * 1024);
    let limits = Limits { deadline_inline, host_call_bytes, ..Limits::default() };
    let engine = engine_with(Settings { limits, breaker: patient(), ..Settings::default() });
    let mut local = engine.local();
    let binding = bind(&engine, "misbehaves-selection", "grow-without-end");
    assert_eq!(ask(&mut local, &binding, 5), 0);
    assert_eq!(faults(&binding.revision), [("memory", 5)]);
    let peak = binding.revision.snapshot().memory_peak_bytes;
    assert!((4 << 20..=8 << 20).contains(&peak), "what it begins with, and 4 MiB: {peak}");

    let binding = bind(&engine, "misbehaves-aggregation", "grow-in-combine");
    let combined = local.combine_now(&binding, &partials()).expect("inline");
    assert_eq!((combined.total, combined.fallback), (sum(), true));
    assert_eq!(faults(&binding.revision), [("memory", 1)]);

    let binding = bind(&engine, "misbehaves-aggregation", "huge-error-in-combine");
    assert!(local.combine_now(&binding, &partials()).expect("inline").fallback);
    assert_eq!(faults(&binding.revision), [("refused", 1)]);
    let text = binding.revision.snapshot().last_fault.expect("it is kept");
    assert!(text.len() < 1100, "{} bytes are kept of 3 MiB", text.len());
    match refusal_with(&engine, "misbehaves-selection", "huge-error-in-configure") {
        Rejected::Config(text) => assert_eq!(text.len(), 1024, "of 3 MiB"),
        other => panic!("{other}"),
    }
}

#[test]
fn what_only_looks_hostile_is_served() {
    let engine = engine();
    let mut local = engine.local();
    for (name, config) in [
        ("first-candidate", ""),
        ("memory-until-refused", ""),
        ("misbehaves-selection", ""),
        ("misbehaves-selection", "flood-log"),
        ("misbehaves-selection", "trap-on-nan"),
    ] {
        let binding = bind(&engine, name, config);
        assert_eq!(ask(&mut local, &binding, 5), 5, "{name} {config}: {:?}", binding.revision.snapshot());
        let lines = binding.revision.log_lines(0).len();
        let dropped = binding.revision.snapshot().log_lines_dropped;
        if config == "flood-log" {
            assert_eq!(lines as u64 + dropped, 5_000);
            assert!((10..=100).contains(&lines), "{lines} lines");
        }
    }
}

#[test]
fn long_lines_are_cut_or_end_the_call() {
    let engine = engine();
    let binding = bind(&engine, "misbehaves-selection", "long-log-lines");
    assert_eq!(ask(&mut engine.local(), &binding, 3), 3);
    let lines = binding.revision.log_lines(0);
    assert!(lines.len() == 3 && lines.iter().all(|line| line.text.len() == 1024));

    let binding = bind(&engine, "misbehaves-selection", "huge-log-line");
    assert_eq!(ask(&mut engine.local(), &binding, 3), 0, "a line of 1 MiB is over the bytes of one host call");
    assert_eq!(faults(&binding.revision), [("host_calls", 3)]);
}

#[test]
fn broken_memory_management_is_contained() {
    let engine = engine();
    let mut local = engine.local();
    for (name, expected) in [("grow-table", None), ("realloc-unaligned", Some("trap"))] {
        let binding = bind(&engine, name, "");
        let good = ask(&mut local, &binding, 50);
        let counted = faults(&binding.revision);
        assert!(good < 50 && counted.len() == 1, "{name}: {good} good, {counted:?}");
        assert!(expected.is_none_or(|kind| counted[0].0 == kind), "{name}: {counted:?}");
    }
    for name in ["loop-in-realloc", "realloc-out-of-bounds"] {
        // `configure` has no argument to put anywhere when the config is empty; the view has.
        let loaded = engine.load("guest", &guest(name)).expect("it loads");
        match engine.bind(&loaded, "") {
            Ok(binding) => {
                assert_eq!(ask(&mut local, &binding, 3), 0, "{name}");
                let expected = if name == "loop-in-realloc" { "deadline" } else { "trap" };
                assert_eq!(faults(&binding.revision), [(expected, 3)], "{name}");
            }
            Err(Rejected::Fault(fault)) => assert!(fault.kind.is_the_guests(), "{name}: {fault}"),
            Err(other) => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn an_instance_that_fails_now_and_then_is_made_anew() {
    let engine = engine();
    let mut local = engine.local();
    let binding = bind(&engine, "misbehaves-selection", "trap-on-hundredth-call");
    assert_eq!(ask(&mut local, &binding, 99), 99);
    assert_eq!(ask(&mut local, &binding, 1), 0);
    assert_eq!(ask(&mut local, &binding, 99), 99);

    let binding = bind(&engine, "misbehaves-selection", "trap-in-second-refresh");
    assert_eq!(ask(&mut local, &binding, 5), 5);
    engine.publish(view(2, 12));
    assert_eq!(ask(&mut local, &binding, 1), 0);
    assert_eq!(ask(&mut local, &binding, 5), 5);

    let binding = bind(&engine, "misbehaves-selection", "grow-a-little-each-call");
    let good = ask(&mut local, &binding, 1_000);
    let lost = 1_000 - good;
    // 64 calls of 64 KiB are free, and those earn room for four more.
    assert!((10..=18).contains(&lost), "{lost} of 1000 fell back");
    assert_eq!(faults(&binding.revision), [("memory", u64::from(lost))]);
    let told = binding.revision.snapshot().last_fault.expect("one is kept");
    assert!(told.contains("while it answers it may grow by 4096 KiB, and 4 KiB more for each call"), "{told}");
}

#[test]
fn an_unknown_cpu_is_not_a_number_only_in_the_view() {
    let engine = engine();
    let mut local = engine.local();
    let binding = bind(&engine, "misbehaves-selection", "trap-on-nan");
    let mut shards = view(2, 12).shards;
    shards[3].available = false;
    engine.publish(View { version: 2, shards: shards.clone() });
    assert_eq!(ask(&mut local, &binding, 1), 1, "a shard without an owner has no CPU use");
    shards[4].owner_cpu = f64::NAN;
    engine.publish(View { version: 3, shards });
    assert_eq!(ask(&mut local, &binding, 1), 0);
    engine.publish(view(4, 12));
    assert_eq!(ask(&mut local, &binding, 1), 1);
}

#[test]
fn a_total_is_never_made_by_an_aggregation_that_failed() {
    let engine = engine();
    let mut local = engine.local();
    for (config, kind) in [
        ("trap-in-refresh", Kind::Trap),
        ("trap-in-combine", Kind::Trap),
        ("loop-in-combine", Kind::Deadline),
        ("error-in-combine", Kind::Refused),
    ] {
        let binding = bind(&engine, "misbehaves-aggregation", config);
        assert_eq!(binding.revision.world, World::Aggregation);
        let combined = local.combine_now(&binding, &partials()).expect("inline");
        assert_eq!((combined.total, combined.fallback), (sum(), true), "{config}");
        assert_eq!(faults(&binding.revision), [(kind.name(), 1)], "{config}");
    }
    for (config, total) in
        [("", sum()), ("wrong-total", sum() + 1), ("largest-total", i128::MAX), ("smallest-total", i128::MIN)]
    {
        let binding = bind(&engine, "misbehaves-aggregation", config);
        let combined = local.combine_now(&binding, &partials()).expect("inline");
        assert_eq!((combined.total, combined.fallback), (total, false), "{config}");
    }
}

#[test]
fn a_plan_can_only_name_the_counters_shards() {
    let engine = engine();
    let mut local = engine.local();
    for (config, kind) in [
        ("trap-in-plan", Kind::Trap),
        ("loop-in-plan", Kind::Deadline),
        ("only-one-thrice", Kind::NotACandidate),
        ("only-foreign-shards", Kind::NotACandidate),
    ] {
        let binding = bind(&engine, "misbehaves-aggregation", config);
        let planned = local.plan_now(&binding, &read()).expect("inline");
        assert_eq!((planned.plan, planned.fallback), (Plan::All, true), "{config}");
        assert_eq!(faults(&binding.revision), [(kind.name(), 1)], "{config}");
    }
    let binding = bind(&engine, "misbehaves-aggregation", "only-a-million");
    let planned = local.plan_now(&binding, &read()).expect("inline");
    assert_eq!((planned.plan, planned.fallback), (Plan::All, true));
    assert!(faults(&binding.revision).iter().map(|(_, count)| count).sum::<u64>() == 1);
    for (config, plan) in [("only-one", Plan::Only(vec![CANDIDATES[0]])), ("only-nothing", Plan::Only(vec![]))] {
        let binding = bind(&engine, "misbehaves-aggregation", config);
        let planned = local.plan_now(&binding, &read()).expect("inline");
        assert!(!planned.fallback, "{config}");
        assert_eq!(std::mem::discriminant(&planned.plan), std::mem::discriminant(&plan), "{config}");
    }
}

#[test]
fn the_breaker_spares_the_thread_and_lets_a_cured_policy_back() {
    let breaker = breaker::Settings { backoff_min: Duration::from_millis(50), ..breaker::Settings::default() };
    let engine = engine_with(Settings { limits: slow_machine(), breaker, ..Settings::default() });
    let mut local = engine.local();
    let binding = bind(&engine, "misbehaves-selection", "trap-on-nan");
    let mut shards = view(2, 12).shards;
    shards[0].owner_cpu = f64::NAN;
    engine.publish(View { version: 2, shards });
    assert_eq!(ask(&mut local, &binding, 1_000), 0);
    let stats = binding.revision.stats();
    assert_eq!(binding.revision.breaker(), breaker::State::Open);
    let asked = stats.faults(Kind::Trap);
    assert!((5..50).contains(&asked), "{asked} of 1000 calls reached it");
    assert_eq!(stats.faults(Kind::BreakerOpen) + asked, 1_000);

    engine.publish(view(3, 12));
    let deadline = Instant::now() + Duration::from_secs(60);
    while binding.revision.breaker() != breaker::State::Closed {
        assert!(Instant::now() < deadline, "it did not close");
        ask(&mut local, &binding, 1);
        std::thread::yield_now();
    }
    assert_eq!(ask(&mut local, &binding, 100), 100);
}

#[test]
fn a_policy_that_is_slow_on_the_serving_thread_is_left_alone() {
    let engine = engine_with(Settings { limits: slow_machine(), ..Settings::default() });
    let mut local = engine.local();
    let binding = bind(&engine, "misbehaves-selection", "flood-log");
    let answered = ask(&mut local, &binding, 1_000);
    // One of sixteen calls is timed until one was slow; then each is.
    assert!((5..100).contains(&answered), "{answered} of 1,000 calls reached it");
    assert_eq!(binding.revision.breaker(), breaker::State::Open);
    let stats = binding.revision.stats();
    assert!(stats.faults(Kind::Slow) >= 1 && stats.faults(Kind::BreakerOpen) == 1_000 - u64::from(answered));
    assert!(binding.revision.snapshot().last_fault.expect("it is kept").contains("of a serving thread"));
}

#[test]
fn a_healthy_policy_beside_a_hostile_one_keeps_answering() {
    let engine = engine();
    let healthy = bind(&engine, "first-candidate", "");
    let hostile = bind(&engine, "misbehaves-selection", "loop-in-select");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut local = engine.local();
            while !stop.load(Ordering::Relaxed) {
                ask(&mut local, &hostile, 1);
            }
        });
        let mut local = engine.local();
        let good = ask(&mut local, &healthy, 200_000);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(good, 200_000);
    });
    // Also on the same thread, in turns.
    let mut local = engine.local();
    for _ in 0..20 {
        assert_eq!((ask(&mut local, &hostile, 1), ask(&mut local, &healthy, 50)), (0, 50));
    }
    assert_eq!(faults(&healthy.revision), []);
    assert_eq!(faults(&hostile.revision).len(), 1, "{:?}", faults(&hostile.revision));
}

#[test]
fn compiling_does_not_stop_the_service() {
    let engine = engine();
    let healthy = bind(&engine, "first-candidate", "");
    let limits = Limits { compile_time: Duration::from_millis(1), ..Limits::default() };
    let options = quipu::policy::Options { limits: Some(limits), pooled_because: None };
    let refused = engine.load_with("slow", &guest("slow-to-compile"), options).map(|_| ()).unwrap_err();
    assert_eq!(refused, Rejected::CompileTime(Duration::from_millis(1)));
    assert_eq!(ask(&mut engine.local(), &healthy, 1_000), 1_000, "while the compiler still runs");
}
