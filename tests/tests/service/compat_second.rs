//! The routes of the second system: one counter, whose shard is the value modulo the number of shards.

use std::net::SocketAddr;

use quipu_tests::{Answer, Client, Launch, Server};
use serde_json::{Value, json};

const SHARDS: u32 = 3;

fn start() -> Server {
    Launch::new().flag("--shards", SHARDS.to_string()).flag("--compat-shard-listen", "127.0.0.1:0").start()
}

fn call(addr: SocketAddr, method: &str, target: &str, body: Option<&str>) -> Answer {
    let headers: &[_] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
    let mut client = Client::connect(addr).expect("the port is open");
    client.call(method, target, headers, body.unwrap_or_default().as_bytes()).expect("an answer")
}

fn increment(addr: SocketAddr, value: i64) -> Value {
    call(addr, "POST", "/increment", Some(&json!({ "value": value }).to_string())).expect(200).json()
}

fn total(server: &Server) -> Value {
    call(server.addr, "GET", "/total", None).expect(200).json()
}

fn count(server: &Server, shard: u32) -> Value {
    call(server.shard_addr(shard), "GET", "/count", None).expect(200).json()
}

#[test]
fn an_increment_goes_to_the_shard_of_its_value() {
    let server = start();
    assert_eq!(total(&server), json!({ "total": 0 }));
    assert_eq!(increment(server.addr, 4), json!({ "success": true, "shardId": 1, "count": 4 }));
    assert_eq!(increment(server.addr, 7), json!({ "success": true, "shardId": 1, "count": 11 }));
    assert_eq!(increment(server.addr, 3), json!({ "success": true, "shardId": 0, "count": 3 }));
    assert_eq!(increment(server.addr, 5), json!({ "success": true, "shardId": 2, "count": 5 }));
    assert_eq!(total(&server), json!({ "total": 19 }));
}

#[test]
fn negative_values_use_the_euclidean_modulo() {
    let server = start();
    for (value, shard) in [(-1, 2), (-3, 0), (-5, 1), (0, 0)] {
        assert_eq!(increment(server.addr, value)["shardId"], shard, "{value}");
    }
    assert_eq!(total(&server), json!({ "total": -9 }));
}

#[test]
fn no_body_or_no_type_counts_as_one() {
    let server = start();
    assert_eq!(call(server.addr, "POST", "/increment", None).expect(200).json()["count"], 1);
    assert_eq!(call(server.addr, "POST", "/increment", Some("{}")).expect(200).json()["count"], 2);
    let untyped = server.call("POST", "/increment", &[], br#"{"value":40}"#).expect(200).json();
    assert_eq!(untyped, json!({ "success": true, "shardId": 1, "count": 3 }));
    assert_eq!(total(&server), json!({ "total": 3 }));
}

#[test]
fn what_is_no_integer_is_an_error_of_the_original() {
    let server = start();
    for body in [r#"{"value":"x"}"#, r#"{"value":1.5}"#, r#"{"value":99999999999999999999}"#, "{", "[]x"] {
        let answer = call(server.addr, "POST", "/increment", Some(body)).expect(500);
        assert_eq!(answer.json(), json!({ "error": "Failed to increment counter" }), "{body}");
        let answer = call(server.shard_addr(0), "POST", "/increment", Some(body)).expect(500);
        assert_eq!(answer.json(), json!({ "error": "Failed to increment counter" }), "{body}");
    }
    assert_eq!(total(&server), json!({ "total": 0 }));
}

#[test]
fn each_shard_has_a_port_of_its_own() {
    let server = start();
    for shard in 0..SHARDS {
        assert_eq!(count(&server, shard), json!({ "shardId": shard, "count": 0 }));
    }
    for value in 0..9i64 {
        for shard in 0..SHARDS {
            let answer = increment(server.shard_addr(shard), value);
            if value.rem_euclid(i64::from(SHARDS)) == i64::from(shard) {
                assert_eq!((&answer["success"], &answer["shardId"]), (&json!(true), &json!(shard)), "{answer}");
            } else {
                assert_eq!(answer, json!({ "success": false, "message": "Value not handled by this shard" }));
            }
        }
    }
    // 0 + 3 + 6, 1 + 4 + 7 and 2 + 5 + 8.
    for (shard, expected) in [(0, 9), (1, 12), (2, 15)] {
        assert_eq!(count(&server, shard), json!({ "shardId": shard, "count": expected }));
    }
    assert_eq!(total(&server), json!({ "total": 36 }));
}

#[test]
fn the_ports_of_the_shards_follow_the_first_in_order() {
    // Three ports in a row that were free a moment ago.
    let first = (20_000u16..60_000).step_by(7).find(|&port| {
        (port..port + SHARDS as u16).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
    });
    let first = first.expect("free ports");
    let address = format!("127.0.0.1:{first}");
    let server = Launch::new().flag("--shards", SHARDS.to_string()).flag("--compat-shard-listen", address).start();
    for shard in 0..SHARDS {
        let addr = SocketAddr::from(([127, 0, 0, 1], first + shard as u16));
        assert_eq!(call(addr, "GET", "/count", None).expect(200).json(), json!({ "shardId": shard, "count": 0 }));
    }
    assert_eq!(total(&server), json!({ "total": 0 }));
}

#[test]
fn all_ways_lead_to_the_counter_named_default() {
    let server = start();
    increment(server.addr, 5);
    increment(server.shard_addr(0), 6);
    assert_eq!(server.total("default"), 11);
    server.add("default", 1).expect(200);
    assert_eq!(total(&server), json!({ "total": 12 }));
}

#[test]
fn counts_of_the_second_system_survive_a_crash() {
    let server = start();
    for value in 0..6 {
        increment(server.addr, value);
    }
    let server = server.crash_and_restart();
    assert_eq!(total(&server), json!({ "total": 15 }));
    assert_eq!(count(&server, 2), json!({ "shardId": 2, "count": 7 }));
}

#[test]
fn overflow_of_a_shard_is_an_error_and_changes_nothing() {
    let server = start();
    let all = i64::MAX - i64::MAX.rem_euclid(i64::from(SHARDS));
    assert_eq!(increment(server.addr, all)["shardId"], 0);
    let answer = call(server.addr, "POST", "/increment", Some(r#"{"value":3000}"#));
    assert!(answer.status == 500 || answer.status == 409, "{}", answer.text());
    assert!(answer.json()["error"].is_string(), "{}", answer.text());
    assert_eq!(count(&server, 0), json!({ "shardId": 0, "count": all }));
}

#[test]
fn twelve_shards_are_the_default() {
    let server = Server::start();
    assert_eq!(increment(server.addr, 23), json!({ "success": true, "shardId": 11, "count": 23 }));
    assert_eq!(increment(server.addr, -1)["shardId"], 11);
    assert_eq!(total(&server), json!({ "total": 22 }));
}
