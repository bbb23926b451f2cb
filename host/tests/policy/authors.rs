//! Policies in other languages: the examples of `plugins/examples`, and the projects that `quipu plugin new` writes,
//! built and asked. What is not built, or whose tools are not installed, is skipped in plain sight.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{CANDIDATES, addition, engine_with, faults, partials, patient, sum};
use quipu::policy::{
    Binding, Engine, Limits, Options, Partial, Placement, Rejected, Revision, Settings, ShardInfo, View, breaker,
    combine_pooled, limits, select_pooled,
};

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(what)
}

/// The usual walls around memory; slow machines must not make these tests fail by the usual deadlines.
fn engine() -> Arc<Engine> {
    let limits = Limits {
        deadline_inline: Duration::from_secs(30),
        deadline_pooled: Duration::from_secs(30),
        deadline_configure_inline: Duration::from_secs(30),
        deadline_configure_pooled: Duration::from_secs(30),
        deadline_refresh: Duration::from_secs(30),
        compile_time: Duration::from_secs(300),
        ..Limits::default()
    };
    engine_with(Settings { limits, breaker: patient(), ..Settings::default() })
}

/// Shard 9 has a queue; the other candidates, 4 and 1, have none.
fn uneven() -> View {
    let info = |shard| ShardInfo {
        shard,
        available: true,
        local: true,
        owner_cpu: 0.1,
        queued: if shard == 9 { 30 } else { 0 },
    };
    View { version: 0, shards: (0..12).map(info).collect() }
}

/// How many of `calls` additions each candidate got. All of them must be the policy's own choice.
fn shares(engine: &Arc<Engine>, binding: &Arc<Binding>, calls: u32) -> [u32; 3] {
    let mut local = engine.local();
    let mut shares = [0; 3];
    for _ in 0..calls {
        let inline = local.select_now(binding, &addition());
        let chosen = inline.unwrap_or_else(|| run(select_pooled(engine, binding, &addition())));
        assert!(!chosen.fallback, "{}", why(&binding.revision));
        let at = CANDIDATES.iter().position(|&shard| shard == chosen.shard).expect("a candidate");
        shares[at] += 1;
    }
    shares
}

/// Its last fault and what it said.
fn why(revision: &Revision) -> String {
    let lines: Vec<String> = revision.log_lines(0).into_iter().map(|line| line.text).collect();
    format!("{:?}\n{}", revision.snapshot().last_fault, lines.join("\n"))
}

fn print_cost(binding: &Binding) {
    let (revision, snapshot) = (&binding.revision, binding.revision.snapshot());
    println!(
        "{}: {} bytes, {:?}, {} bytes of memory; {} calls timed: p50 {} ns, p99 {} ns",
        revision.name(),
        revision.size_bytes,
        revision.placement,
        snapshot.memory_peak_bytes,
        snapshot.latency.samples,
        snapshot.latency.p50_ns,
        snapshot.latency.p99_ns
    );
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn example(name: &str, target: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(root().join(format!("plugins/target/examples/{name}.wasm")));
    match bytes {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            println!("skipped: the example {name} is not built ({error}); `make {target}` does it");
            None
        }
    }
}

fn shares_by_queue(name: &str, target: &str, options: Options) {
    let Some(bytes) = example(name, target) else { return };
    let engine = engine();
    engine.publish(uneven());
    let revision = engine.load_with(name, &bytes, options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(revision.imports, ["quipu:policy/types@1.0.0"]);
    let binding = engine.bind(&revision, "").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(shares(&engine, &binding, 9_000), [4_000, 1_000, 4_000], "a queue of 30 counts a quarter");
    let refused = engine.bind(&revision, "much").expect_err("no number");
    assert!(matches!(&refused, Rejected::Config(text) if text.contains("this one is \"much\"")), "{refused}");
    print_cost(&binding);
}

#[test]
fn a_javascript_policy_shares_by_queue_inline() {
    shares_by_queue("queues-js", "plugin-js", Options::default());
}

#[test]
fn a_javascript_policy_on_spidermonkey_shares_by_queue_on_the_pool() {
    let options = Options { pooled_because: Some("its garbage collector pauses".into()), ..Options::default() };
    shares_by_queue("queues-js-spidermonkey", "-C plugins plugin-js-spidermonkey", options);
}

#[test]
fn a_python_policy_follows_the_calendar_on_the_pool() {
    let Some(bytes) = example("weekday-python", "plugin-python") else { return };
    let engine = engine();
    let revision = engine.load("weekday-python", &bytes).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(revision.placement, Placement::Pooled(_)), "it imports the clock, and sockets with it");
    for (config, expected) in [
        (r#"{"default": 1}"#, [600, 0, 0]),
        (r#"{"default": 2}"#, [300, 300, 0]),
        (r#"{"default": 9, "mon": 3, "sun": 3}"#, [200, 200, 200]),
    ] {
        let binding = engine.bind(&revision, config).unwrap_or_else(|error| panic!("{config}: {error}"));
        // One caller at a time meets one instance.
        assert_eq!(shares(&engine, &binding, 600), expected, "{config}");
        print_cost(&binding);
    }
    for (config, named) in [("", "JSON object"), (r#"{"default": 1, "someday": 2}"#, "'someday'")] {
        let refused = engine.bind(&revision, config).expect_err(config);
        assert!(matches!(&refused, Rejected::Config(text) if text.contains(named)), "{refused}");
    }
}

/// A new project, built by `build`; None when a tool is missing.
fn project(dir: &Path, lang: &str, world: &str, build: &mut Command, component: &str) -> Option<Vec<u8>> {
    let program = build.get_program().to_owned();
    if Command::new(&program).arg("--help").output().is_err() {
        println!("skipped: {} is not installed, so no {lang} project is built", program.display());
        return None;
    }
    let new = Command::new(env!("CARGO_BIN_EXE_quipu"))
        .args(["plugin", "new", "made-here", "--lang", lang, "--world", world, "--dir"])
        .arg(dir)
        .output()
        .expect("the program starts");
    assert!(new.status.success(), "{}", String::from_utf8_lossy(&new.stderr));
    let built = build.current_dir(dir).output().expect("it started before");
    let said = || String::from_utf8_lossy(&built.stdout) + String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{lang} {world}: {}", said());
    Some(std::fs::read(dir.join(component)).unwrap_or_else(|error| panic!("{component}: {error}; {}", said())))
}

/// A new project takes additions in turn, or makes exact sums, without a fault.
fn answers(world: &str, bytes: &[u8]) {
    let engine = engine();
    let revision = engine.load("made-here", bytes).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(revision.world.name(), world);
    let binding = engine.bind(&revision, "").unwrap_or_else(|error| panic!("{error}"));
    if world == "selection" {
        assert_eq!(shares(&engine, &binding, 999), [333, 333, 333]);
        let refused = engine.bind(&revision, "many").expect_err("no number");
        assert!(matches!(&refused, Rejected::Config(text) if text.contains("many")), "{refused}");
        let strict = engine.bind(&revision, "10").unwrap_or_else(|error| panic!("{error}"));
        engine.publish(uneven());
        assert_eq!(shares(&engine, &strict, 300), [100, 0, 200], "the queue of shard 9 is too long");
    } else {
        let mut local = engine.local();
        let mut combine = |partials: &[Partial]| {
            let inline = local.combine_now(&binding, partials);
            let combined = inline.unwrap_or_else(|| run(combine_pooled(&engine, &binding, partials)));
            assert!(!combined.fallback, "{}", why(&revision));
            combined.total
        };
        assert_eq!((combine(&[]), combine(&partials())), (0, sum()));
        let least = [i64::MIN; 3].map(|value| Partial { shard: 0, value });
        assert_eq!(combine(&least), 3 * i128::from(i64::MIN));
    }
    assert_eq!(faults(&revision), []);
    print_cost(&binding);
}

/// Where `make -C plugins tools` puts a tool of a version that a template names.
fn tool(template: &str, before_version: &str, place: &str) -> PathBuf {
    let text = std::fs::read_to_string(root().join("host/templates").join(template)).expect("a template");
    let version = text.split(before_version).nth(1).expect("it names the version");
    let end = version.find(['"', '\n']).unwrap_or(version.len());
    let tools = std::env::var_os("QUIPU_TOOLS_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/quipu-tools"));
    tools.join(place.replace("VERSION", &version[..end]))
}

#[test]
fn new_rust_projects_build_and_answer() {
    // Both worlds have the same dependencies: compiled once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authors");
    for world in ["selection", "aggregation"] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut build = Command::new("cargo");
        build.args(["build", "--release", "--target", "wasm32-wasip2", "--target-dir"]).arg(&target);
        build.env_remove("RUSTFLAGS");
        let component = target.join("wasm32-wasip2/release/policy.wasm");
        let Some(bytes) = project(dir.path(), "rust", world, &mut build, &component.to_string_lossy()) else { return };
        answers(world, &bytes);
    }
}

#[test]
fn new_python_projects_build_and_answer() {
    let componentize =
        tool("python/requirements.txt", "componentize-py==", "componentize-py-VERSION/bin/componentize-py");
    for world in ["selection", "aggregation"] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut build = Command::new(&componentize);
        build.args(["-d", "wit", "-w", "policy", "componentize", "--stub-wasi", "app", "-o", "policy.wasm"]);
        let Some(bytes) = project(dir.path(), "python", world, &mut build, "policy.wasm") else { return };
        answers(world, &bytes);
    }
}

#[test]
fn new_javascript_projects_for_selection_build_and_answer() {
    let place = "componentize-qjs-VERSION/node_modules/.bin/componentize-qjs";
    let dir = tempfile::tempdir().expect("a folder");
    let mut build = Command::new(tool("js/selection.json", "\"componentize-qjs\": \"", place));
    build.args(["--sync", "--stub-wasi", "--wit", "wit", "--world", "policy", "--js", "policy.js"]);
    build.args(["--output", "policy.wasm"]);
    if let Some(bytes) = project(dir.path(), "js", "selection", &mut build, "policy.wasm") {
        answers("selection", &bytes);
    }
}

#[test]
fn new_javascript_projects_for_aggregation_build_and_answer() {
    let place = "componentize-js-VERSION/node_modules/.bin/componentize-js";
    let dir = tempfile::tempdir().expect("a folder");
    let mut build = Command::new(tool("js/aggregation.json", "/componentize-js\": \"", place));
    build.args(["policy.js", "--wit", "wit", "--world-name", "policy", "--out", "policy.wasm"]);
    build.args(["--disable", "stdio", "random", "clocks", "http", "fetch-event"]);
    if let Some(bytes) = project(dir.path(), "js", "aggregation", &mut build, "policy.wasm") {
        answers("aggregation", &bytes);
    }
}

/// The build commands that the tests above repeat are those that authors read.
#[test]
fn the_readmes_name_the_commands_that_are_tested() {
    for (template, command) in [
        ("rust/README.md", "cargo build --release --target wasm32-wasip2"),
        ("python/README.md", "componentize-py -d wit -w policy componentize --stub-wasi app -o policy.wasm"),
        (
            "js/selection.json",
            "componentize-qjs --sync --stub-wasi --wit wit --world policy --js policy.js --output policy.wasm",
        ),
        (
            "js/aggregation.json",
            "componentize-js policy.js --wit wit --world-name policy --out policy.wasm --disable stdio random clocks http fetch-event",
        ),
    ] {
        let text = std::fs::read_to_string(root().join("host/templates").join(template)).expect("a template");
        assert!(text.contains(command), "{template}");
    }
}

/// The figures of docs/authors.md are those of `policy::limits`.
#[test]
fn the_page_for_authors_has_the_limits_in_force() {
    let page = std::fs::read_to_string(root().join("docs/authors.md")).expect("it is there");
    let l = Limits::default();
    let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    for (row, figures) in [
        ("memory of an instance", vec![mib(l.memory_inline_bytes), mib(l.memory_pooled_bytes)]),
        ("a call", vec![format!("{:?} of CPU", l.deadline_inline), format!("{:?}", l.deadline_pooled)]),
        ("what its memory grows by", vec![mib(limits::GROWTH_FREE_BYTES), kib(limits::GROWTH_PER_CALL_BYTES)]),
        ("a slow call", vec![format!("{:?}", limits::INLINE_SLOW.0), format!("{:?}", limits::INLINE_SLOW.1)]),
        (
            "instantiation and `configure`",
            vec![format!("{:?}", l.deadline_configure_inline), format!("{:?}", l.deadline_configure_pooled)],
        ),
        ("`refresh`", vec![format!("{:?}", l.deadline_refresh)]),
        ("instances of a revision on a node", vec![l.pooled_instances.to_string()]),
        ("calls that wait or run", vec![l.pooled_queue.to_string()]),
        ("component", vec![mib(l.component_bytes), format!("{:?}", l.compile_time), kib(limits::FUNCTION_BYTES_MAX)]),
        ("imports;", vec![format!("{}; {}", limits::IMPORTS_MAX, limits::INSTANCES_MAX)]),
        ("memory of all instances", vec![mib(l.memory_node_bytes)]),
        ("table elements", vec![l.table_elements.to_string()]),
        ("stack", vec![kib(limits::STACK_BYTES_MAX)]),
        (
            "host calls in one call",
            vec![l.host_calls.to_string(), l.io_calls.to_string(), format!("{:?}", l.deadline_host_call)],
        ),
        ("strings and lists", vec![kib(l.host_call_bytes)]),
        ("`config`", vec![kib(limits::CONFIG_BYTES_MAX)]),
        (
            "log |",
            vec![
                format!("{} lines a second", l.log_lines_per_second),
                format!("{} bytes", l.log_line_bytes),
                format!("last {}", limits::LOG_LINES_KEPT),
            ],
        ),
        ("error text", vec![l.error_text_bytes.to_string()]),
        ("`registry`", space(limits::REGISTRY_KEYS_MAX, limits::REGISTRY_KEY_BYTES_MAX, limits::REGISTRY_BYTES_MAX)),
        ("`storage`", space(limits::STORAGE_KEYS_MAX, limits::STORAGE_KEY_BYTES_MAX, limits::STORAGE_BYTES_MAX)),
        ("one value", vec![kib(limits::VALUE_BYTES_MAX)]),
        ("name of a policy", vec![limits::NAME_BYTES_MAX.to_string()]),
    ] {
        let line = page.lines().find(|line| line.starts_with(&format!("| {row}"))).unwrap_or_else(|| panic!("{row}"));
        for figure in figures {
            let figure = figure
                .replace("ms", " ms")
                .replace("µs", " µs")
                .replace("200ns", "200 ns")
                .replace("60s", "60 s")
                .replace("2s", "2 s");
            assert!(line.contains(&figure), "{line} lacks {figure}");
        }
    }
    let settings = breaker::Settings::default();
    let opens = (settings.consecutive_failures_max, settings.window_failures_max, settings.window.as_secs());
    assert_eq!(opens, (5, 20, 10), "the page says when the breaker opens");
    assert_eq!(settings.memory_failures_max, 1, "the page says that one fault for want of memory is enough");
    let pauses = (settings.backoff_min.as_millis(), settings.backoff_max.as_secs(), settings.openings_max);
    assert_eq!(pauses, (100, 30, 16), "the page says how long its pauses are, and which is the last");
}

fn space(keys: usize, key_bytes: usize, bytes: usize) -> Vec<String> {
    vec![format!("{keys} keys"), format!("at most {key_bytes} bytes"), format!("{} MiB", bytes >> 20)]
}
