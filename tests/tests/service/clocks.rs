//! No wall clock decides whether an operation counts, whatever it says, and whoever set it finds that said.

use quipu_tests::clock::WallClock;
use quipu_tests::{Launch, Server, until};
use serde_json::json;

const KEYS: usize = 5;

/// Sends every operation of the test again, each with its key; all of them were answered once.
#[track_caller]
fn send_again(server: &Server) {
    for n in 0..KEYS {
        server.add_with_key("c", 1, &format!("k{n}")).expect(200);
    }
    let ops =
        json!({ "ops": [{ "id": "batch", "amount": 1, "key": "k" }, { "id": "batch", "amount": 2, "key": "k2" }] });
    server.post("/v1/batch", ops).expect(200);
    server.call("POST", "/v1/counters", &[("idempotency-key", "made")], br#"{"id":"made"}"#).expect(201);
}

#[track_caller]
fn counted_once(server: &Server, when: &str) {
    assert_eq!(server.total("c"), KEYS as i128, "{when}");
    assert_eq!(server.total("batch"), 3, "{when}");
    assert_eq!(server.total("made"), 0, "{when}");
}

#[test]
fn a_retry_counts_once_whatever_the_clock_says() {
    let Some((launch, clock)) = WallClock::of(Launch::new()) else { return };
    let server = launch.start();
    send_again(&server);
    for (to, when) in
        [("+25h", "a day ahead"), ("-3d", "three days back"), ("+0", "right again"), ("+10y", "years ahead")]
    {
        clock.set(to);
        send_again(&server);
        counted_once(&server, when);
    }
    // A checkpoint while the clock is ahead keeps the records.
    let (_, launch) = server.stop();
    clock.set("+0");
    let server = launch.start();
    send_again(&server);
    counted_once(&server, "stopped while the clock was ahead");
    clock.set("-3d");
    let launch = server.kill();
    clock.set("+400d");
    let server = launch.start();
    send_again(&server);
    counted_once(&server, "started with a clock that is ahead");
    server.add_with_key("late", 1, "k").expect(200);
    let (_, launch) = server.stop();
    clock.set("2001-02-03 04:05:06");
    let server = launch.start();
    send_again(&server);
    server.add_with_key("late", 1, "k").expect(200);
    counted_once(&server, "started with a clock that stands still, years back");
    assert_eq!(server.total("late"), 1);
    server.add_with_key("later", 1, "k").expect(200);
    let (_, launch) = server.stop();
    clock.set("+0");
    let server = launch.start();
    send_again(&server);
    counted_once(&server, "right in the end");
    server.add_with_key("later", 1, "k").expect(200);
    assert_eq!(server.total("later"), 1);
}

#[test]
fn a_clock_that_begins_in_1970_is_survived() {
    let Some((launch, clock)) = WallClock::of(Launch::new()) else { return };
    // As a machine without a battery starts.
    clock.set("1970-01-01 00:00:00");
    let server = launch.start();
    send_again(&server);
    clock.set("+0");
    send_again(&server);
    counted_once(&server, "right again");
    let (_, launch) = server.stop();
    let server = launch.start();
    send_again(&server);
    counted_once(&server, "after a restart");
    server.get("/v1/counters").expect(200);
}

#[test]
fn a_step_of_the_clock_is_said_everywhere() {
    let Some((launch, clock)) = WallClock::of(Launch::new()) else { return };
    let server = launch.start();
    let offset_hours = || (server.metrics().value("quipu_clock_offset_seconds") / 3600.0).round();
    let clock_seen = || server.get("/v1/cluster").expect(200).json()["nodes"][0]["clock"].clone();
    assert_eq!((server.metrics().value("quipu_clock_steps_total"), offset_hours()), (0.0, 0.0));
    assert_eq!(clock_seen()["steps"], 0, "{}", clock_seen());
    assert!(!server.quipu(&["cluster"]).stdout.contains("wall clock"));
    clock.set("+25h");
    until("the step is seen", || server.metrics().value("quipu_clock_steps_total") >= 1.0);
    assert_eq!(offset_hours(), 25.0);
    let seen = clock_seen();
    let hours = |name: &str| (seen[name].as_f64().expect("a number") / 3_600_000.0).round();
    assert_eq!((hours("last_step_ms"), hours("offset_ms")), (25.0, 25.0), "{seen}");
    let shown = server.quipu(&["cluster"]).stdout;
    assert!(shown.contains("The wall clock of") && shown.contains("ahead now"), "{shown}");
    until("the log says it", || server.output().contains("the wall clock was set ahead by 1day"));
    let before = server.metrics().value("quipu_clock_steps_total");
    clock.set("+0");
    until("the step back is seen", || server.metrics().value("quipu_clock_steps_total") > before);
    assert_eq!(offset_hours(), 0.0);
}
