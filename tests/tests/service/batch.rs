//! `POST /v1/batch`: many additions in one request, each applied or failed by itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use quipu_tests::{Answer, Server, load, until};
use serde_json::{Value, json};

fn results(answer: Answer) -> Vec<Value> {
    answer.expect(200).json()["results"].as_array().expect("a list").clone()
}

#[test]
fn every_operation_has_its_result_in_order() {
    let server = Server::start();
    let ops = json!({ "ops": [{ "id": "a", "amount": 5 }, { "id": "b" }, { "id": "a", "amount": -2 }] });
    let results = results(server.post("/v1/batch", ops));
    let seen: Vec<_> =
        results.iter().map(|r| (r["id"].as_str(), r["amount"].as_i64(), r["outcome"].as_str())).collect();
    assert_eq!(
        seen,
        [
            (Some("a"), Some(5), Some("applied")),
            (Some("b"), Some(1), Some("applied")),
            (Some("a"), Some(-2), Some("applied"))
        ]
    );
    assert_eq!((server.total("a"), server.total("b")), (3, 1));
}

#[test]
fn ten_thousand_operations_are_one_batch() {
    let server = Server::start();
    let ops: Vec<Value> = (0..10_000).map(|n| json!({ "id": format!("c{}", n % 100), "amount": n })).collect();
    let results = results(server.post("/v1/batch", json!({ "ops": ops })));
    assert_eq!(results.len(), 10_000);
    assert!(results.iter().zip(&ops).all(|(result, op)| result["id"] == op["id"] && result["amount"] == op["amount"]));
    assert!(results.iter().all(|result| result["outcome"] == "applied"));
    assert_eq!(quipu_tests::load::sum(&server, "c", 100), 9_999 * 10_000 / 2);
    let server = server.crash_and_restart();
    assert_eq!(quipu_tests::load::sum(&server, "c", 100), 9_999 * 10_000 / 2);
}

#[test]
fn one_operation_more_is_too_many() {
    let server = Server::start();
    let ops: Vec<Value> = (0..10_001).map(|_| json!({ "id": "c" })).collect();
    let problem = server.post("/v1/batch", json!({ "ops": ops })).problem(422, "invalid_argument");
    assert!(problem["detail"].as_str().expect("a sentence").contains("10000"), "{problem}");
    server.get("/v1/counters/c").problem(404, "counter_not_found");
}

#[test]
fn lines_of_json_are_answered_in_lines() {
    let server = Server::start();
    let body = "{\"id\":\"a\",\"amount\":5}\n\n{\"id\":\"b/é\"}\r\n{\"id\":\"a\",\"amount\":1}";
    let answer =
        server.call("POST", "/v1/batch", &[("content-type", "application/x-ndjson")], body.as_bytes()).expect(200);
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let text = answer.text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let ids: Vec<_> = lines.iter().map(|line| line["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["a", "b/é", "a"]);
    assert_eq!((server.total("a"), server.total("b/é")), (6, 1));
}

#[test]
fn a_bad_line_is_named_and_nothing_is_counted() {
    let server = Server::start();
    let lines =
        |body: &str| server.call("POST", "/v1/batch", &[("content-type", "application/x-ndjson")], body.as_bytes());
    let problem = lines("{\"id\":\"a\"}\n{\"id\":").problem(400, "malformed_json");
    assert!(problem["detail"].as_str().expect("a sentence").contains("line 2"), "{problem}");
    let problem = lines("{\"id\":\"a\"}\n\n{\"id\":\"b\",\"amount\":\"x\"}").problem(422, "invalid_argument");
    assert!(problem["detail"].as_str().expect("a sentence").contains("line 3"), "{problem}");
    server.get("/v1/counters/a").problem(404, "counter_not_found");
}

#[test]
fn operations_fail_one_by_one() {
    let server = Server::start();
    server.set_rule(json!({ "match": "stock/", "spread": 1, "min": 0 }));
    server.set_rule(json!({ "match": "full/", "spread": 1 }));
    let long = "x".repeat(513);
    let ops = json!([
        { "id": "ok", "amount": 1 },
        { "id": "", "amount": 1 },
        { "id": "stock/1", "amount": -1 },
        { "id": "full/1", "amount": i64::MAX },
        { "id": "full/1", "amount": 1 },
        { "id": long, "amount": 1 },
        { "id": "keyed", "amount": 1, "key": "" },
        { "id": "ok", "amount": 10 },
    ]);
    let results = results(server.post("/v1/batch", json!({ "ops": ops })));
    let code = |at: usize| results[at]["error"]["code"].as_str();
    let expected = [
        None,
        Some("invalid_argument"),
        Some("bound"),
        None,
        Some("overflow"),
        Some("invalid_argument"),
        Some("invalid_argument"),
        None,
    ];
    assert_eq!((0..8).map(code).collect::<Vec<_>>(), expected);
    for result in results.iter().filter(|result| result.get("error").is_some()) {
        assert_eq!(result["outcome"], "not_applied", "{result}");
        assert!(result["error"]["status"].is_u64() && result["error"]["detail"].is_string(), "{result}");
    }
    assert_eq!((server.total("ok"), server.total("full/1")), (11, i64::MAX.into()));
    server.get("/v1/counters/stock%2F1").problem(404, "counter_not_found");
    server.get("/v1/counters/keyed").problem(404, "counter_not_found");
}

#[test]
fn a_batch_that_is_no_batch_counts_nothing() {
    let server = Server::start();
    for body in ["", "{", "[", "{\"ops\":["] {
        server.call("POST", "/v1/batch", &[], body.as_bytes()).problem(400, "malformed_json");
    }
    let wrong = [
        json!({}),
        json!([]),
        json!({ "ops": 5 }),
        json!({ "ops": [{ "amount": 1 }] }),
        json!({ "ops": [{ "id": "a" }, { "id": "a", "amount": 1.5 }] }),
        json!({ "ops": [{ "id": "a", "amounts": 1 }] }),
    ];
    for body in wrong {
        server.post("/v1/batch", body).problem(422, "invalid_argument");
    }
    let huge = br#"{"ops":[{"id":"a","amount":9223372036854775808}]}"#;
    server.call("POST", "/v1/batch", &[], huge).problem(422, "invalid_argument");
    assert_eq!(results(server.post("/v1/batch", json!({ "ops": [] }))), Vec::<Value>::new());
    server.get("/v1/counters/a").problem(404, "counter_not_found");
}

/// Whoever is told `queue_full` sends everything again: nothing of it may have been taken.
#[test]
fn batches_that_find_no_room_for_relaxed_additions_are_refused_whole() {
    const EACH: u64 = 5_000;
    let server = Server::start();
    server.set_rule(json!({ "match": "relaxed", "durability": "relaxed" }));
    let op = |n: u64| json!({ "id": format!("{}{}", ["relaxed", "durable"][n as usize % 2], n / 2 % 8), "amount": 1 });
    let body = json!({ "ops": (0..2 * EACH).map(op).collect::<Vec<_>>() }).to_string();
    let (taken, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(30);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut client = server.client();
                while refused.load(Relaxed) < 10 && Instant::now() < end {
                    let answer = client.call("POST", "/v1/batch", &[], body.as_bytes()).expect("an answer");
                    if answer.status == 429 {
                        answer.problem(429, "queue_full");
                        refused.fetch_add(1, Relaxed);
                        continue;
                    }
                    let results = results(answer);
                    let count =
                        |outcome: &str| results.iter().filter(|result| result["outcome"] == outcome).count() as u64;
                    assert_eq!((count("accepted"), count("applied")), (EACH, EACH));
                    taken.fetch_add(1, Relaxed);
                }
            });
        }
    });
    let (taken, refused) = (taken.into_inner(), refused.into_inner());
    println!("{taken} batches taken, {refused} refused");
    assert!(refused > 0, "never full, with {taken} batches taken");
    let expected = i128::from(taken * EACH);
    until("all that was accepted is readable", || load::sum(&server, "relaxed", 8) >= expected);
    assert_eq!((load::sum(&server, "relaxed", 8), load::sum(&server, "durable", 8)), (expected, expected));
}
