//! A panic ends what it must and nothing else, and what is counted is told whatever fails behind it.
//!
//! `QUIPU_TEST_PANIC_AT` names the point at which the program panics: see `host/src/panics.rs`.

use std::io::Read;
use std::net::TcpStream;

use quipu_tests::{Launch, PATIENCE, Server, until};
use redis::{RedisResult, cmd};
use serde_json::{Value, json};

const POINT: &str = "QUIPU_TEST_PANIC_AT";
/// Of a process that a panic has ended.
const EXIT_PANIC: i32 = 70;

fn panicking_at(point: &str) -> Launch {
    Launch::new().flag("--resp-listen", "127.0.0.1:0").env(POINT, point)
}

fn connections(server: &Server) -> f64 {
    server.metrics().value("quipu_connections")
}

#[test]
fn a_total_beyond_64_bits_is_told_by_every_route() {
    let server = Launch::new().flag("--shards", "3").start();
    // Three values that go to the shards 1, 0 and 2.
    for value in [i64::MAX, i64::MAX - 1, i64::MAX - 2] {
        server.post("/increment", json!({ "value": value })).expect(200);
    }
    let total = 3 * i128::from(i64::MAX) - 3;
    assert_eq!(server.get("/total").expect(200).text(), format!("{{\"total\":{total}}}"));
    assert!(server.get("/counter?counter_id=default").expect(200).text().contains(&format!("\"value\":{total}")));
    assert_eq!(server.get("/v1/counters/default").expect(200).json()["value_str"], total.to_string());
    server.delete("/v1/counters/default").expect(204);
    for value in [-i64::MAX, 1 - i64::MAX, 2 - i64::MAX] {
        server.post("/increment", json!({ "value": value })).expect(200);
    }
    assert_eq!(server.get("/total").expect(200).text(), format!("{{\"total\":-{total}}}"));
    assert_eq!(connections(&server), 1.0, "the one that asks");
}

#[test]
fn a_panic_in_a_request_is_its_answer_and_costs_nothing_else() {
    let server = panicking_at("read").start();
    server.add("c", 5).expect(200);
    for _ in 0..20 {
        let problem = server.get("/v1/counters/c").problem(500, "internal");
        assert_eq!(problem["outcome"], "not_applied", "a read changes nothing: {problem}");
        let problem = server.post("/v1/read", json!({ "ids": ["c"] })).problem(500, "internal");
        assert_eq!(problem["outcome"], "not_applied");
        let envelope = server.get("/counter?counter_id=c").expect(500).json();
        assert_eq!((&envelope["success"], &envelope["error"]["code"]), (&json!(false), &json!(500)));
        assert!(server.get("/total").expect(500).json()["error"].is_string());
    }
    let client = redis::Client::open(format!("redis://{}/", server.resp_addr())).expect("an address");
    let mut redis = client.get_connection().expect("a connection");
    let got: RedisResult<i64> = cmd("GET").arg("c").query(&mut redis);
    assert!(got.expect_err("it panics").to_string().contains("INTERNAL"));
    let pong: String = cmd("PING").query(&mut redis).expect("the connection goes on");
    assert_eq!(pong, "PONG");
    drop(redis);
    until("no connection is left but the one that asks", || connections(&server) == 1.0);
    server.get("/readyz").expect(200);
    let (ended, _) = server.stop();
    assert_eq!(ended.code(), 0, "it drains as ever");
}

#[test]
fn a_panic_in_a_connection_gives_its_place_back() {
    let server = panicking_at("resp connection").start();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(server.resp_addr()).expect("it is taken");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // It is closed, or reset where that is seen first.
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    until("no connection is left but the one that asks", || connections(&server) == 1.0);
    assert_eq!(server.stop().0.code(), 0);
}

/// The thread that owns what is counted ends the process; the next start has all that was acknowledged.
#[test]
fn a_panic_in_an_owner_of_state_ends_the_process() {
    for (point, who) in [("commit", "the commit thread"), ("checkpoint", "the checkpoint thread")] {
        let server = Server::start();
        server.add("c", 5).expect(200);
        let launch = server.kill();
        let server = launch.clone().env(POINT, point).start();
        if point == "commit" {
            let lost = server.client().call("POST", "/v1/counters/c/add", &[], b"{\"amount\":7}");
            if let Ok(answer) = lost {
                // It may be told before the process is gone, and it was not written yet.
                assert_eq!(answer.problem(503, "unavailable")["outcome"], "not_applied");
            }
        } else {
            // The last checkpoint is taken at the end.
            server.terminate();
        }
        let (ended, _) = server.ended();
        assert_eq!(ended.code(), EXIT_PANIC, "{point}");
        assert!(ended.output.contains(&format!("{who} has panicked")), "{}", ended.output);
        assert_eq!(launch.start().total("c"), 5, "{point}");
    }
}

#[test]
fn an_addition_is_applied_whatever_becomes_of_the_read_behind_it() {
    let server = panicking_at("read").start();
    let added = server.post("/v1/counters/c/add?return=value", json!({ "amount": 5 })).expect(200).json();
    assert_eq!((&added["outcome"], &added["value"]), (&json!("applied"), &Value::Null), "{added}");
    assert_eq!(added["value_error"]["code"], "internal");
    assert!(added["value_error"]["detail"].is_string());
    assert_eq!(server.add("c", 1).expect(200).json()["shard_value"].as_i64().map(|value| value <= 6), Some(true));
}

#[test]
fn a_repeated_addition_is_applied_though_its_counter_is_gone() {
    let server = Server::start();
    let add = |target: &str| {
        server.call(
            "POST",
            target,
            &[("Idempotency-Key", "k"), ("Content-Type", "application/json")],
            b"{\"amount\":5}",
        )
    };
    let first = add("/v1/counters/c/add?return=value").expect(200).json();
    assert_eq!((&first["value"], first.get("value_error")), (&json!(5), None));
    server.delete("/v1/counters/c").expect(204);
    let again = add("/v1/counters/c/add?return=value").expect(200);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let again = again.json();
    assert_eq!((&again["outcome"], &again["value"]), (&json!("applied"), &Value::Null), "{again}");
    assert_eq!(again["value_error"]["code"], "counter_not_found");
    add("/v1/counters/c/add").expect(200);
}
