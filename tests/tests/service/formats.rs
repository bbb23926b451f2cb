//! Data directories that the program before format 2 left are adopted once, and nothing in them is lost.

use std::path::Path;
use std::process::Command;

use quipu_tests::clock::WallClock;
use quipu_tests::{Launch, Server};
use serde_json::{Value, json};

/// Unpacks one of the fixtures as the data of a launch.
fn left_behind(how: &str) -> Launch {
    unpacked(how, Launch::new().flag("--shards", "3"))
}

fn unpacked(how: &str, launch: Launch) -> Launch {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/service/fixtures/format-1-{how}.tar.gz"));
    std::fs::create_dir(launch.data()).expect("creates");
    let unpacked = Command::new("tar").arg("-xzf").arg(packed).arg("-C").arg(launch.data()).status().expect("tar");
    assert!(unpacked.success(), "{unpacked}");
    launch
}

const STOPPED: [(&str, i128); 8] = [
    ("a/b ü", 1),
    ("again", 4),
    ("big", i64::MAX as i128),
    ("keyed", 50),
    ("named", 6),
    ("small", i64::MIN as i128),
    ("spread/a", 45),
    ("stock/apples", 5),
];
/// After it went on and was killed.
const KILLED: [(&str, i128); 9] = [
    ("a/b ü", 1),
    ("again", 4),
    ("big", i64::MAX as i128),
    ("keyed", 80),
    ("last", 2),
    ("named", 6),
    ("small", i64::MIN as i128),
    ("spread/a", 48),
    ("stock/apples", 4),
];

#[track_caller]
fn holds(server: &Server, counters: &[(&str, i128)]) {
    let listed = server.get("/v1/counters").expect(200).json();
    let listed: Vec<(&str, i128)> = listed["counters"].as_array().expect("a list").iter().map(value_of).collect();
    assert_eq!(listed, counters);
    for (id, total) in counters {
        assert_eq!(server.total(id), *total, "{id}");
    }
}

fn value_of(listed: &Value) -> (&str, i128) {
    let digits = listed["value_str"].as_str().expect("digits");
    (listed["id"].as_str().expect("an id"), digits.parse().expect("a number"))
}

/// Repeats what was answered then; no total may change.
#[track_caller]
fn knows_its_keys(server: &Server, keyed: usize) {
    for n in 1..=keyed {
        let again = server.add_with_key("keyed", 10, &format!("k{n}")).expect(200);
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "k{n}");
    }
    server.add_with_key("keyed", 11, "k1").problem(422, "key_reused");
    let made =
        server.call("POST", "/v1/counters", &[("idempotency-key", "made")], br#"{"id":"named","name":"A name"}"#);
    made.expect(201);
    server.call("DELETE", "/v1/counters/gone", &[("idempotency-key", "d")], b"").expect(204);
}

fn adopted(server: &Server) -> usize {
    server.output().lines().filter(|line| line.contains("format 1") && line.contains("format 2")).count()
}

fn adopts(launch: &Launch, counters: &[(&str, i128)], keyed: usize) {
    let server = launch.start();
    holds(&server, counters);
    knows_its_keys(&server, keyed);
    assert_eq!(adopted(&server), 1, "one line: {}", server.output());
    let listed = server.get("/v1/counters?prefix=named").expect(200).json();
    let named = &listed["counters"][0];
    assert_eq!((&named["name"], &named["created_at"]), (&json!("A name"), &json!("2026-11-30T22:16:48.032Z")));
    server.get("/v1/counters/gone").problem(404, "counter_not_found");
    server.add("stock/apples", -6).problem(409, "bound");
    server.add("big", 1).problem(409, "overflow");
    let rolled_back = server.call("POST", "/v1/rules/rollback?match=old%2F", &[], b"").expect(200).json();
    assert_eq!(rolled_back["spread"], 2, "{rolled_back}");
    server.add_with_key("new", 1, "k").expect(200);
    let after: Vec<(&str, i128)> = {
        let mut after = counters.to_vec();
        after.push(("new", 1));
        after.sort_unstable();
        after
    };
    holds(&server, &after);
    // Again from the log, and again from a checkpoint.
    let server = server.crash_and_restart();
    assert_eq!(adopted(&server), 0, "once: {}", server.output());
    holds(&server, &after);
    let (_, launch) = server.stop();
    let server = launch.start();
    holds(&server, &after);
    knows_its_keys(&server, keyed);
    server.add_with_key("new", 1, "k").expect(200);
    holds(&server, &after);
    let rules = server.get("/v1/rules").expect(200).json();
    let spread = |prefix| {
        let rule = rules["rules"].as_array().expect("a list").iter().find(|rule| rule["match"] == prefix);
        rule.unwrap_or_else(|| panic!("no rule {prefix}: {rules}"))["spread"].clone()
    };
    assert_eq!(["stock/", "spread/", "old/"].map(spread), [1, 3, 2]);
}

#[test]
fn a_directory_that_was_left_in_order_is_adopted() {
    adopts(&left_behind("stopped"), &STOPPED, 5);
}

#[test]
fn a_directory_of_a_killed_program_is_adopted() {
    adopts(&left_behind("killed"), &KILLED, 8);
}

/// The age of what has no journal time is told from the adoption on, whatever the clock says then.
#[test]
fn a_directory_that_lay_for_years_is_adopted_with_its_keys() {
    let Some((launch, clock)) = WallClock::of(left_behind("killed")) else { return };
    clock.set("+3y");
    adopts(&launch, &KILLED, 8);
}

#[test]
fn an_adoption_that_was_interrupted_goes_on() {
    // As adoption leaves it before its last step.
    let launch = left_behind("killed");
    let server = launch.start();
    server.add("keyed", 1).expect(200);
    let launch = server.kill();
    std::fs::write(launch.data().join("format"), "version 1\nshards 3\n").expect("writes");
    let server = launch.start();
    assert_eq!(server.total("keyed"), 81);
    knows_its_keys(&server, 8);
}

#[test]
fn a_directory_with_another_number_of_shards_is_refused_before_it_is_adopted() {
    let launch = unpacked("killed", Launch::new().flag("--shards", "4"));
    let ended = launch.try_start().err().expect("3 shards");
    assert!(ended.output.contains("3 shards"), "{}", ended.output);
    let format = std::fs::read_to_string(launch.data().join("format")).expect("text");
    assert_eq!(format, "version 1\nshards 3\n");
}

/// What a request says of the format: the dashboard and scripts read it.
#[test]
fn the_format_that_is_written_is_told() {
    let server = Server::start();
    assert_eq!(server.get("/v1/cluster").expect(200).json()["format"], json!(2));
}
