//! Random requests at every route: the answer is always well formed and never a failure of the server, which goes on
//! counting.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use quipu_tests::{Answer, Client, Server, encode};
use serde_json::{Map, Value, json};

const BYTE_CASES: u32 = 4_000;
const REQUEST_CASES: u32 = 8_000;

/// Each with a method that it takes; `{}` is replaced by an id.
const ROUTES: [(&str, &str); 42] = [
    ("GET", "/v1/counters"),
    ("GET", "/v1/counters/{}"),
    ("POST", "/v1/counters/{}/add"),
    ("GET", "/v1/counters/{}/shards"),
    ("GET", "/v1/counters/{}/watch"),
    ("GET", "/v1/counter"),
    ("POST", "/v1/counter/add"),
    ("GET", "/v1/counter/shards"),
    ("GET", "/v1/counter/watch"),
    ("POST", "/v1/batch"),
    ("POST", "/v1/read"),
    ("GET", "/v1/operations/{}"),
    ("GET", "/v1/plugins"),
    ("GET", "/v1/plugins/{}"),
    ("GET", "/v1/rules"),
    ("POST", "/v1/rules/rollback"),
    ("GET", "/v1/cluster"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/counter"),
    ("GET", "/counter/value"),
    ("PUT", "/counter/increment"),
    ("PUT", "/counter/decrement"),
    ("GET", "/counter/shard"),
    ("PUT", "/counter/shard/increment"),
    ("PUT", "/counter/shard/decrement"),
    ("POST", "/increment"),
    ("GET", "/total"),
    ("GET", "/{}"),
    ("GET", "/v1/{}"),
    ("GET", "/v1/counters/{}/{}"),
    ("POST", "/v1/counters//add"),
    ("POST", "/v1/counters"),
    ("DELETE", "/v1/counters/{}"),
    ("DELETE", "/v1/counter"),
    ("PUT", "/v1/rules"),
    ("DELETE", "/v1/rules"),
    ("POST", "/counter"),
];

/// Names that mean something to some route, so that random documents get past the first check.
const MEMBERS: [&str; 20] = [
    "amount",
    "id",
    "name",
    "ops",
    "ids",
    "key",
    "match",
    "selection",
    "aggregation",
    "plugin",
    "revision",
    "config",
    "spread",
    "durability",
    "min",
    "max",
    "counter_id",
    "value",
    "canary",
    "other",
];

#[derive(Debug, Clone)]
struct Case {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(vec!["a", "b", "a/b", "é", "random", "sum"]).prop_map(str::to_owned),
        2 => "\\PC{0,12}",
        1 => Just("x".repeat(513)),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..20).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        any::<u64>().prop_map(Value::from),
        id().prop_map(Value::from),
        select(vec!["durable", "relaxed", "least-cpu", "value-modulo", "max", "cached-sum"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let members = prop::collection::vec((select(MEMBERS.to_vec()), inner.clone()), 0..5);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::from),
            members.prop_map(|members| {
                Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
            }),
        ]
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let op = (id(), any::<i64>(), proptest::option::of(id()));
    let op = op.prop_map(|(id, amount, key)| json!({ "id": id, "amount": amount, "key": key.unwrap_or("k".into()) }));
    prop_oneof![
        2 => Just(Vec::new()),
        4 => json_value().prop_map(|value| value.to_string().into_bytes()),
        2 => any::<i64>().prop_map(|amount| json!({ "amount": amount }).to_string().into_bytes()),
        2 => prop::collection::vec(op, 0..20).prop_map(|ops| json!({ "ops": ops }).to_string().into_bytes()),
        1 => id().prop_map(|id| json!({ "counter_id": id }).to_string().into_bytes()),
        1 => (id(), -1i64..14).prop_map(|(id, spread)| json!({ "match": id, "spread": spread }).to_string().into_bytes()),
        2 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    // Now and then another method than the route's.
    let methods = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "FLY"];
    let method = proptest::option::weighted(0.2, select(methods.to_vec()));
    let parameter =
        select(vec!["id", "counter_id", "match", "prefix", "limit", "cursor", "read", "max_age_ms", "return", "x"]);
    let text = prop_oneof![
        id().prop_map(|id| encode(&id)),
        (-2i64..2_000).prop_map(|number| number.to_string()),
        select(vec!["exact", "cached", "value", "%FF", "%", "", "+", "%2"]).prop_map(str::to_owned),
    ];
    let query = prop::collection::vec((parameter, text), 0..3);
    let header = prop_oneof![
        id().prop_map(|value| ("idempotency-key", value)),
        select(vec!["application/json", "application/x-ndjson", "text/plain", ""])
            .prop_map(|v| ("content-type", v.into())),
        select(vec!["*", "\"1\"", "7", "x"]).prop_map(|value| ("if-match", value.into())),
        select(vec!["null", "http://evil.example"]).prop_map(|value| ("origin", value.into())),
        id().prop_map(|value| ("x-request-id", value)),
        id().prop_map(|value| ("authorization", format!("Bearer {value}"))),
    ];
    let headers = prop::collection::vec(header, 0..3);
    (method, select(ROUTES.to_vec()), id(), query, headers, body()).prop_map(
        |(method, (own, path), id, query, headers, body)| {
            let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mark = if query.is_empty() { "" } else { "?" };
            let target = format!("{}{mark}{}", path.replace("{}", &encode(&id)), query.join("&"));
            // Line breaks would end the header; everything else is sent as it is.
            let headers = headers.into_iter().map(|(name, value)| (name, value.replace(['\r', '\n'], ""))).collect();
            Case { method: method.unwrap_or(own), target, headers, body }
        },
    )
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() })
}

/// The server is there and counts, whatever rules were set meanwhile.
fn still_counts(mut server: Server) {
    assert!(server.alive());
    server.set_rule(json!({ "match": "after the fuzz", "spread": 3 }));
    for _ in 0..10 {
        server.add("after the fuzz", 3).expect(200);
    }
    assert_eq!(server.total("after the fuzz"), 30);
    assert!(!server.output().contains("panicked"), "{}", server.output());
    let server = server.crash_and_restart();
    assert_eq!(server.total("after the fuzz"), 30);
}

/// An answer of a healthy server: no failure of its own, and of a known form.
fn well_formed(case: &Case, answer: &Answer) -> Result<(), TestCaseError> {
    // The second system answers what is no integer with 500; that is its contract.
    let by_contract = case.target.starts_with("/increment") && answer.json()["error"].is_string();
    prop_assert!(answer.status < 500 || answer.status == 503 || by_contract, "{}: {}", answer.status, answer.text());
    match answer.header("content-type") {
        Some("application/json") => {
            prop_assert!(serde_json::from_slice::<Value>(&answer.body).is_ok(), "{}", answer.text())
        }
        Some("application/problem+json") => {
            let problem = answer.json();
            prop_assert_eq!(&problem["status"], answer.status);
            prop_assert!(problem["code"].is_string() && problem["outcome"].is_string(), "{}", problem);
        }
        Some("application/x-ndjson") => {
            let text = answer.text();
            prop_assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", text);
        }
        Some(other) => prop_assert!(other.starts_with("text/html") || other.contains("openmetrics"), "{}", other),
        None => prop_assert!(answer.body.is_empty(), "{}", answer.text()),
    }
    Ok(())
}

#[test]
fn random_requests_are_answered_well() {
    let server = Server::start();
    let outcome = runner(REQUEST_CASES).run(&case(), |case| {
        let headers: Vec<(&str, &str)> = case.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut client = server.client();
        client
            .send(case.method, &case.target, &headers, &case.body)
            .map_err(|why| TestCaseError::fail(why.to_string()))?;
        let head = |client: &mut Client| client.head().map_err(|why| TestCaseError::fail(format!("no answer: {why}")));
        if case.method == "HEAD" {
            let answer = head(&mut client)?;
            prop_assert!(answer.status < 500 || answer.status == 503, "{}", answer.status);
            return Ok(());
        }
        if case.method == "GET" && case.target.contains("/watch") {
            // The head is enough: the stream would not end.
            let answer = head(&mut client)?;
            prop_assert!(answer.status < 500 || answer.status == 503, "{}", answer.status);
            return Ok(());
        }
        let answer = client.receive().map_err(|why| TestCaseError::fail(format!("no whole answer: {why}")))?;
        well_formed(&case, &answer)
    });
    outcome.unwrap_or_else(|why| panic!("{why}"));
    // Many are refused, but not all: the fuzz gets behind the parsers.
    let operations = server.metrics().value("quipu_operations_total");
    println!("{operations} operations came of {REQUEST_CASES} random requests");
    assert!(operations > f64::from(REQUEST_CASES) / 20.0, "{operations}");
    still_counts(server);
}

#[test]
fn random_bytes_are_answered_or_refused() {
    let server = Server::start();
    let text = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        // Nearly HTTP: a request with some bytes exchanged.
        (case(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)).prop_map(|(case, edits)| {
            let length = case.body.len();
            let head = format!(
                "{} {} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n",
                case.method, case.target
            );
            let mut bytes = [head.as_bytes(), &case.body].concat();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        }),
    ];
    let outcome = runner(BYTE_CASES).run(&text, |bytes| {
        let mut client = server.client();
        // The server may close before it has it all.
        let _ = client.socket().write_all(&bytes);
        let _ = client.socket().shutdown(Shutdown::Write);
        client.socket().set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut answer = Vec::new();
        match client.socket().read_to_end(&mut answer) {
            Ok(_) => {}
            Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(why) => return Err(TestCaseError::fail(format!("neither answered nor closed: {why}"))),
        }
        let answer = String::from_utf8_lossy(&answer);
        prop_assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{}", answer);
        let failed = answer.starts_with("HTTP/1.1 5") && !answer.starts_with("HTTP/1.1 503");
        prop_assert!(!failed || answer.contains("{\"error\":"), "{}", answer);
        Ok(())
    });
    outcome.unwrap_or_else(|why| panic!("{why}"));
    still_counts(server);
}
