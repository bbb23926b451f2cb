//! The routes of the first system: status, fields and messages as its clients know them.

use quipu_tests::{Answer, Launch, Server, encode};
use serde_json::{Value, json};

/// What `curl -d` sends: JSON under the type of a form.
fn curl(server: &Server, method: &str, target: &str, body: &str) -> Answer {
    server.call(method, target, &[("content-type", "application/x-www-form-urlencoded")], body.as_bytes())
}

/// Checks the envelope of a success and returns its data, null when there is none.
#[track_caller]
fn success(answer: Answer, message: &str) -> Value {
    let envelope = envelope(answer, 200);
    assert_eq!(envelope["success"], true, "{envelope}");
    assert_eq!(envelope["message"], message, "{envelope}");
    assert!(envelope.get("error").is_none(), "{envelope}");
    envelope.get("data").cloned().unwrap_or(Value::Null)
}

/// Checks the envelope of a failure and returns its details.
#[track_caller]
fn failure(answer: Answer, status: u16, message: &str) -> String {
    let envelope = envelope(answer, status);
    assert_eq!(envelope["success"], false, "{envelope}");
    assert_eq!(envelope["message"], message, "{envelope}");
    assert!(envelope.get("data").is_none(), "{envelope}");
    assert_eq!(envelope["error"]["code"], status, "{envelope}");
    envelope["error"]["details"].as_str().unwrap_or_else(|| panic!("no details: {envelope}")).to_owned()
}

#[track_caller]
fn envelope(answer: Answer, status: u16) -> Value {
    let answer = answer.expect(status);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

#[track_caller]
fn value(server: &Server, id: &str) -> Value {
    let data = success(server.get(&format!("/counter?counter_id={}", encode(id))), "Counter aggregated successfully");
    assert_eq!(data["counter_id"], id);
    data["value"].clone()
}

#[test]
fn health_answers_with_its_sentence() {
    let server = Server::start();
    assert_eq!(success(server.get("/health"), "Hey I am Healthy"), Value::Null);
}

#[test]
fn a_created_counter_has_an_id_a_name_and_shards() {
    let server = Server::start();
    let data = success(curl(&server, "POST", "/counter", r#"{"name":"likes"}"#), "Counter created successfully");
    let id = data["counter_id"].as_str().expect("an id");
    assert!(id.len() == 32 && id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{id}");
    assert_eq!(data["counter_name"], "likes");
    let shards = data["shards"].as_array().expect("a list");
    assert!(!shards.is_empty() && shards.iter().all(Value::is_string), "{data}");
    assert_eq!(value(&server, id), 0);
    assert_eq!(server.get(&format!("/v1/counters/{id}")).expect(200).total(), 0, "both contracts see the same counter");
}

#[test]
fn a_counter_needs_a_name() {
    let server = Server::start();
    for body in ["{}", r#"{"name":""}"#, r#"{"name":null}"#, r#"{"title":"likes"}"#] {
        let details = failure(curl(&server, "POST", "/counter", body), 400, "Counter name is required");
        assert_eq!(details, "Missing field: name", "{body}");
    }
    for body in ["", "{", "likes", r#"{"name":5}"#] {
        assert!(!failure(curl(&server, "POST", "/counter", body), 400, "Invalid request body").is_empty(), "{body}");
    }
}

#[test]
fn increments_create_and_count() {
    let server = Server::start();
    for _ in 0..3 {
        let data = success(
            curl(&server, "PUT", "/counter/increment", r#"{"counter_id": "example-counter"}"#),
            "Counter incremented successfully",
        );
        assert_eq!(data, Value::Null);
    }
    assert_eq!(value(&server, "example-counter"), 3);
    let data = success(
        curl(&server, "PUT", "/counter/decrement", r#"{"counter_id": "example-counter"}"#),
        "Counter decremented successfully",
    );
    assert_eq!(data, Value::Null);
    assert_eq!(value(&server, "example-counter"), 2);
}

#[test]
fn a_counter_may_go_below_zero() {
    let server = Server::start();
    success(curl(&server, "PUT", "/counter/increment", r#"{"counter_id":"c"}"#), "Counter incremented successfully");
    for _ in 0..3 {
        success(
            curl(&server, "PUT", "/counter/decrement", r#"{"counter_id":"c"}"#),
            "Counter decremented successfully",
        );
    }
    assert_eq!(value(&server, "c"), -2);
}

#[test]
fn changes_need_an_id() {
    let server = Server::start();
    for target in ["/counter/increment", "/counter/decrement", "/counter/shard/increment", "/counter/shard/decrement"] {
        for body in ["{}", r#"{"counter_id":""}"#, r#"{"id":"c"}"#] {
            let details = failure(curl(&server, "PUT", target, body), 400, "Counter ID is required");
            assert_eq!(details, "Missing field: counter_id", "{target} {body}");
        }
        for body in ["", "{", "c", "[1", r#"{"counter_id":7}"#] {
            let details = failure(curl(&server, "PUT", target, body), 400, "Invalid request body");
            assert!(!details.is_empty(), "{target} {body}");
        }
    }
}

#[test]
fn unknown_ids_cannot_be_decremented_or_read() {
    let server = Server::start();
    let unknown = [
        curl(&server, "PUT", "/counter/decrement", r#"{"counter_id":"nobody"}"#),
        server.get("/counter?counter_id=nobody"),
        server.get("/counter/value?counter_id=nobody"),
    ];
    for answer in unknown {
        assert_eq!(failure(answer, 400, "Counter ID does not exist"), "invalid value in counter_id");
    }
    server.get("/v1/counters/nobody").problem(404, "counter_not_found");
}

#[test]
fn reads_need_an_id_in_the_query() {
    let server = Server::start();
    for target in ["/counter", "/counter/value", "/counter/shard"] {
        for query in ["", "?counter_id=", "?id=c"] {
            let details = failure(server.get(&format!("{target}{query}")), 400, "Counter ID is required");
            assert_eq!(details, "Missing query parameter: counter_id", "{target}{query}");
        }
    }
}

#[test]
fn the_documented_path_of_the_value_works_too() {
    let server = Server::start();
    success(
        curl(&server, "PUT", "/counter/increment", r#"{"counter_id":"a b/ü"}"#),
        "Counter incremented successfully",
    );
    let target = format!("/counter/value?counter_id={}", encode("a b/ü"));
    let data = success(server.get(&target), "Counter aggregated successfully");
    assert_eq!(data, json!({ "counter_id": "a b/ü", "value": 1 }));
}

#[test]
fn the_shard_routes_count_on_one_shard() {
    let server = Server::start();
    let read = || success(server.get("/counter/shard?counter_id=s"), "Counter Value fetched successfully");
    assert_eq!(read(), json!({ "counter_id": "s", "value": 0 }), "0 for an unknown id");
    for expected in [1, 2] {
        let data = success(
            curl(&server, "PUT", "/counter/shard/increment", r#"{"counter_id":"s"}"#),
            "Counter incremented successfully",
        );
        assert_eq!(data, json!({ "counter_id": "s", "value": expected }));
    }
    let data = success(
        curl(&server, "PUT", "/counter/shard/decrement", r#"{"counter_id":"s"}"#),
        "Counter decremented successfully",
    );
    assert_eq!(data, json!({ "counter_id": "s", "value": 1 }));
    assert_eq!(read(), json!({ "counter_id": "s", "value": 1 }));
    assert_eq!(value(&server, "s"), 1);
    assert_eq!(server.partials("s").len(), 1, "one shard has it all");
}

#[test]
fn a_shard_decrement_creates() {
    let server = Server::start();
    let data = success(
        curl(&server, "PUT", "/counter/shard/decrement", r#"{"counter_id":"new"}"#),
        "Counter decremented successfully",
    );
    assert_eq!(data, json!({ "counter_id": "new", "value": -1 }));
    assert_eq!(value(&server, "new"), -1);
}

#[test]
fn overflow_is_refused_in_the_envelope() {
    let server = Server::start();
    server.set_rule(json!({ "match": "", "spread": 1 }));
    server.add("full", i64::MAX).expect(200);
    for target in ["/counter/increment", "/counter/shard/increment"] {
        let envelope = envelope(curl(&server, "PUT", target, r#"{"counter_id":"full"}"#), 409);
        assert_eq!(envelope["success"], false, "{envelope}");
        assert_eq!(envelope["error"]["code"], 409, "{envelope}");
    }
    assert_eq!(value(&server, "full"), i64::MAX);
}

#[test]
fn the_content_type_does_not_matter() {
    let server = Server::start();
    let body = br#"{"counter_id":"t"}"#;
    for headers in [&[("content-type", "application/json")][..], &[("content-type", "text/plain")], &[]] {
        success(server.call("PUT", "/counter/increment", headers, body), "Counter incremented successfully");
    }
    assert_eq!(value(&server, "t"), 3);
}

#[test]
fn counts_of_the_first_system_survive_a_crash() {
    let server = Server::start();
    let data = success(curl(&server, "POST", "/counter", r#"{"name":"kept"}"#), "Counter created successfully");
    let id = data["counter_id"].as_str().expect("an id").to_owned();
    success(
        curl(&server, "PUT", "/counter/increment", &json!({ "counter_id": id }).to_string()),
        "Counter incremented successfully",
    );
    let server = server.crash_and_restart();
    assert_eq!(value(&server, &id), 1);
}

#[test]
fn the_port_of_the_environment_is_used() {
    // A port that was free a moment ago.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let server = Launch::new().listen("").env("PORT", port.to_string()).start();
    assert_eq!(server.addr.port(), port);
    success(server.get("/health"), "Hey I am Healthy");
}
