//! Server-sent events of a counter's total.

use std::time::{Duration, Instant};

use quipu_tests::{Launch, Server};
use serde_json::json;

#[test]
fn the_present_total_comes_first() {
    let server = Server::start();
    server.add("c", 5).expect(200);
    let mut events = server.client().events("/v1/counters/c/watch").expect("a stream");
    let first = events.read().expect("an event").expect("the stream goes on");
    assert_eq!((&first["id"], &first["value"], &first["value_str"]), (&json!("c"), &json!(5), &json!("5")));
    server.add("c", -2).expect(200);
    assert_eq!(events.read().expect("an event").expect("the stream goes on")["value"], 3);
}

#[test]
fn an_unknown_counter_cannot_be_watched() {
    let server = Server::start();
    server.get("/v1/counters/nobody/watch").problem(404, "counter_not_found");
}

#[test]
fn totals_come_at_most_ten_times_a_second_and_end_at_the_last() {
    let server = Server::start();
    server.add("c", 1).expect(200);
    let mut events = server.client().events("/v1/counters/c/watch").expect("a stream");
    let began = Instant::now();
    let (mut seen, mut last) = (0u32, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = server.client();
            let mut added = 1;
            while began.elapsed() < Duration::from_secs(1) || added < 50 {
                client.call("POST", "/v1/counters/c/add", &[], b"").expect("an answer").expect(200);
                added += 1;
            }
            client.call("POST", "/v1/counters/c/add", &[], b"{\"amount\":1000000}").expect("an answer").expect(200);
        });
        while last < 1_000_000 {
            let total =
                events.read().expect("an event").expect("the stream goes on")["value"].as_i64().expect("a total");
            assert!(total > last, "totals of a growing counter grow: {last}, {total}");
            last = total;
            seen += 1;
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    // One more at the start, and one for the tenth that is not full.
    assert!(f64::from(seen) <= seconds * 10.0 + 2.0, "{seen} events in {seconds} s");
    assert!(seen >= 4, "{seen} events in {seconds} s");
    assert_eq!(server.total("c"), last.into());
}

#[test]
fn a_watch_ends_with_its_counter() {
    let server = Server::start();
    server.add("c", 5).expect(200);
    let mut events = server.client().events("/v1/counters/c/watch").expect("a stream");
    events.read().expect("an event").expect("the stream goes on");
    server.delete("/v1/counters/c").expect(204);
    assert!(events.read().expect("a proper end").is_none());
}

#[test]
fn a_watch_ends_with_the_server() {
    let server = Server::start();
    server.add("c", 5).expect(200);
    let mut events = server.client().events("/v1/counters/c/watch").expect("a stream");
    events.read().expect("an event").expect("the stream goes on");
    let began = Instant::now();
    let (ended, _) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    assert!(began.elapsed() < Duration::from_secs(5), "a watch must not hold up the end: {:?}", began.elapsed());
    assert!(events.read().expect("a proper end").is_none());
}

#[test]
fn watches_that_were_left_are_forgotten() {
    let server = Launch::new().start();
    server.add("c", 1).expect(200);
    let mut streams: Vec<_> =
        (0..50).map(|_| server.client().events("/v1/counters/c/watch").expect("a stream")).collect();
    assert_eq!(server.metrics().value("quipu_watches"), 50.0);
    for stream in &mut streams {
        assert_eq!(stream.read().expect("an event").expect("the stream goes on")["value"], 1);
    }
    drop(streams);
    quipu_tests::until("the watches are closed", || {
        server.add("c", 1).expect(200);
        server.metrics().value("quipu_watches") == 0.0
    });
}

#[test]
fn watches_are_limited() {
    const WATCHES_MAX: usize = 1_000;
    let server = Server::start();
    server.add("c", 1).expect(200);
    let open = || server.client().events("/v1/counters/c/watch").expect("a stream");
    let mut streams: Vec<_> = (0..WATCHES_MAX).map(|_| open()).collect();
    let refused = server.get("/v1/counters/c/watch");
    refused.problem(429, "queue_full");
    assert!(refused.header("retry-after").is_some());
    server.add("c", 1).expect(200);
    streams.pop();
    quipu_tests::until("there is room again", || {
        server.add("c", 1).expect(200);
        server.metrics().value("quipu_watches") < WATCHES_MAX as f64
    });
    drop(open());
}
