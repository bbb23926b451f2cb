//! Decisions recorded on a running server and run again without one, by the commands that authors use.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use quipu_tests::server::{Ran, quipu};
use quipu_tests::{Server, encode, until};
use serde_json::{Value, json};
use tempfile::TempDir;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn guest(name: &str) -> PathBuf {
    repository().join(format!("tests/guests/target/guests/{name}.wasm"))
}

fn builtin(name: &str) -> PathBuf {
    repository().join(format!("plugins/target/wasm32-wasip2/release/{name}.wasm"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn push(server: &Server, name: &str, file: &Path) {
    let ran = server.quipu(&["plugin", "push", name, text(file)]);
    assert_eq!(ran.code, 0, "{ran:?}; run `make plugins guests` first");
}

/// Records into a file while additions to `counter` and reads of it go on.
fn record(server: &Server, file: &Path, counter: &str, args: &[&str]) -> Ran {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                server.add(counter, 1).expect(200);
                server.get(&format!("/v1/counters/{}", encode(counter))).expect(200);
            }
        });
        let ran = server.quipu(&[&["plugin", "record"], args, &["-o", text(file)]].concat());
        done.store(true, Ordering::Relaxed);
        ran
    })
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
}

/// The shards that were chosen, each once.
fn chosen(file: &Path) -> Vec<u64> {
    let lines = lines(file);
    let mut shards: Vec<u64> = lines.iter().filter_map(|line| line["answer"]["ok"].as_u64()).collect();
    shards.sort_unstable();
    shards.dedup();
    shards
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("decisions.ndjson")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn random_numbers_and_clocks_are_replayed_exactly() {
    let (server, dir) = (Server::start(), directory());
    push(&server, "draws", &guest("nosy"));
    server.set_rule(json!({ "match": "r/", "spread": 6, "selection": { "plugin": "draws", "config": "draws" } }));
    let ran = record(&server, &file(&dir), "r/c", &["draws", "--rule", "r/", "--count", "60"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("60 decisions"), "{ran:?}");
    assert!(chosen(&file(&dir)).len() > 3, "{:?} is no random choice", chosen(&file(&dir)));
    let ran = quipu(&["plugin", "replay", text(&file(&dir)), text(&guest("nosy"))]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("All answers are equal") && ran.stdout.contains("recorded revision"), "{ran:?}");
    // Another seed would decide otherwise: what is compared is not the same for every seed.
    let other = std::fs::read_to_string(file(&dir)).expect("it is there");
    let seed = lines(&file(&dir)).iter().find_map(|line| line["seed"].as_str().map(str::to_owned)).expect("a seed");
    let changed = dir.path().join("changed.ndjson");
    std::fs::write(&changed, other.replace(&seed, &format!("{}=", "A".repeat(43)))).expect("writable");
    let ran = quipu(&["plugin", "replay", text(&changed), text(&guest("nosy")), "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[test]
fn state_and_what_the_storage_answered_are_replayed_exactly() {
    let (server, dir) = (Server::start(), directory());
    push(&server, "table", &guest("keeps-table"));
    push(&server, "turns", &builtin("round_robin"));
    server.set_rule(json!({ "match": "t/", "spread": 4, "selection": { "plugin": "table", "grants": ["storage"] } }));
    server.set_rule(json!({ "match": "u/", "spread": 5, "selection": { "plugin": "turns" } }));
    for (plugin, counter, component) in
        [("table", "t/c", guest("keeps-table")), ("turns", "u/c", builtin("round_robin"))]
    {
        // The instances have a history by now that no recording holds.
        (0..7).for_each(|_| drop(server.add(counter, 1).expect(200)));
        let ran = record(&server, &file(&dir), counter, &[plugin, "--count", "40"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(chosen(&file(&dir)).len() >= 4, "{plugin}: {:?}", chosen(&file(&dir)));
        let ran = quipu(&["plugin", "replay", text(&file(&dir)), text(&component), "--json"]);
        assert_eq!(ran.code, 0, "{plugin}: {ran:?}");
        let told: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        assert_eq!((&told["decisions"], &told["differences"]), (&json!(40), &json!([])), "{told}");
        assert_eq!(told["components"][0]["recorded"], true, "{told}");
        assert_eq!(told["components"][0]["unanswered"], 0, "{told}");
    }
    // The service goes on as before.
    assert_eq!(server.add("t/c", 1).expect(200).json()["policy"]["fallback"], false);
}

#[test]
fn another_component_shows_where_it_differs() {
    let (server, dir) = (Server::start(), directory());
    push(&server, "mine", &builtin("round_robin"));
    server.set_rule(json!({ "match": "m/", "spread": 4, "selection": { "plugin": "mine" } }));
    let ran = record(&server, &file(&dir), "m/c", &["mine", "--count", "40", "--json"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|why| panic!("{why}: {ran:?}"));
    assert_eq!((&told["decisions"], &told["because"]), (&json!(40), &json!("count")), "{told}");
    let (turns, first) = (builtin("round_robin"), builtin("rendezvous"));
    let recording = file(&dir);
    let replay = |more: &[&str]| quipu(&[&["plugin", "replay", text(&recording)], more].concat());
    let ran = replay(&[text(&first)]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("another revision") && ran.stdout.contains("recorded: "), "{ran:?}");
    assert!(ran.stdout.contains("select for \"m/c\"") && ran.stderr.contains("answers differ"), "{ran:?}");
    let ran = replay(&[text(&turns), text(&first), "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let told: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let differences = told["differences"].as_array().expect("a list");
    assert!((20..40).contains(&differences.len()), "three of four: {}", differences.len());
    let home = differences[0]["second"]["ok"].clone();
    assert!(differences.iter().all(|one| one["second"]["ok"] == home && one["first"]["ok"] != home), "{told}");
    assert_eq!(replay(&[text(&first), text(&first)]).code, 0, "the same component twice");
    let ran = replay(&[text(&builtin("sum"))]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("it is of the world aggregation; selection was recorded"), "{ran:?}");
    let ran = replay(&[]);
    assert_eq!(ran.code, 64, "{ran:?}");
    assert!(ran.stderr.contains("decisions of mine sha256:"), "{ran:?}");
}

#[test]
fn totals_of_a_built_in_policy_need_no_component() {
    let (server, dir) = (Server::start(), directory());
    server.set_rule(json!({ "match": "", "selection": { "plugin": "round-robin" } }));
    let ran = record(&server, &file(&dir), "c", &["sum", "--rule", "", "--count", "20"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let kinds: Vec<_> = lines(&file(&dir)).iter().map(|line| line["line"].as_str().unwrap_or("").to_owned()).collect();
    assert!(kinds.contains(&"planned".into()) && kinds.contains(&"combined".into()), "{kinds:?}");
    let ran = quipu(&["plugin", "replay", text(&file(&dir))]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = quipu(&["plugin", "replay", text(&file(&dir)), text(&builtin("max"))]);
    assert_eq!(ran.code, 1, "the highest partial is not the sum: {ran:?}");
}

#[test]
fn a_recording_has_bounds_and_a_rule_only_one() {
    let (server, dir) = (Server::start(), directory());
    let ran = server.quipu(&["plugin", "record", "least-cpu", "--seconds", "1", "-o", text(&file(&dir))]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(lines(&file(&dir)).last().expect("an end")["because"], "seconds");
    for (target, status, code) in [
        ("/v1/plugins/nobody/record", 404, "plugin_not_found"),
        ("/v1/plugins/random/record", 404, "rule_not_found"),
        ("/v1/plugins/least-cpu/record?match=nowhere", 404, "rule_not_found"),
        ("/v1/plugins/least-cpu/record?count=0", 422, "invalid_argument"),
        ("/v1/plugins/least-cpu/record?count=100001", 422, "invalid_argument"),
        ("/v1/plugins/least-cpu/record?seconds=601", 422, "invalid_argument"),
        ("/v1/plugins/least-cpu/record?seconds=soon", 422, "invalid_argument"),
    ] {
        server.post(target, json!({})).problem(status, code);
    }
    let path = dir.path().join("long.ndjson");
    let args = ["plugin", "record", "sum", "--seconds", "600", "-o", text(&path)];
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.quipu(&args));
        until("the first recording has begun", || path.exists());
        server.post("/v1/plugins/sum/record?seconds=1", json!({})).problem(409, "plugin_in_use");
        assert!(!first.is_finished());
        // It ends with the server, and says so.
        server.terminate();
        let ran = first.join().expect("it ran");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains("the server"), "{ran:?}");
    });
}

#[test]
fn what_is_no_recording_is_refused_by_name() {
    let dir = directory();
    let head = r#"{"line":"recording","format":1,"version":"0","plugin":"sum","world":"aggregation"}"#;
    for (content, expected) in [
        ("", "it is empty"),
        ("hello\n", "`quipu plugin record` writes them"),
        (&format!("{head}\n{{}}\n"), "line 2: "),
        (
            &format!("{head}\n{{\"line\":\"combined\",\"instance\":1,\"partials\":[],\"answer\":{{\"ok\":\"0\"}}}}\n"),
            "instance 1",
        ),
    ] {
        std::fs::write(file(&dir), content).expect("writable");
        let ran = quipu(&["plugin", "replay", text(&file(&dir))]);
        assert_eq!(ran.code, 64, "{ran:?}");
        assert!(ran.stderr.contains("decisions.ndjson") && ran.stderr.contains(expected), "{content:?}: {ran:?}");
    }
    std::fs::write(file(&dir), [0xff, 0xfe]).expect("writable");
    assert!(quipu(&["plugin", "replay", text(&file(&dir))]).stderr.contains("not UTF-8"));
    assert_eq!(quipu(&["plugin", "replay", "/nowhere/file"]).code, 64);
    // Cut in the middle of a line, as by a full disk: what is there is good.
    std::fs::write(file(&dir), format!("{head}\n{{\"line\":\"comb")).expect("writable");
    let ran = quipu(&["plugin", "replay", text(&file(&dir))]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("cut off"), "{ran:?}");
}
