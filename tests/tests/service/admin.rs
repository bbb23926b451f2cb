//! Who may use the operators' routes: with a token whoever has it, without one this machine only.

use quipu_tests::{Answer, Launch, Server};
use serde_json::{Value, json};

/// Every route of the operators that reads; those that write are checked the same way below.
const ROUTES: [&str; 3] = ["/v1/plugins", "/v1/rules", "/v1/cluster"];

fn with(server: &Server, target: &str, headers: &[(&str, &str)]) -> Answer {
    server.call("GET", target, headers, b"")
}

#[test]
fn without_a_token_loopback_may_ask() {
    let server = Server::start();
    let port = server.addr.port();
    for target in ROUTES {
        server.get(target).expect(200);
        with(&server, target, &[("host", &format!("localhost:{port}"))]).expect(200);
        with(&server, target, &[("host", &format!("[::1]:{port}"))]).expect(200);
        let origin = format!("http://{}", server.addr);
        with(&server, target, &[("origin", &origin)]).expect(200);
    }
}

#[test]
fn a_name_that_points_to_loopback_is_not_loopback() {
    let server = Server::start();
    for target in ROUTES {
        for host in ["quipu.example", "quipu.example:80", "localhost.example", "127.0.0.1.example", "10.0.0.1", ""] {
            let answer = with(&server, target, &[("host", host)]);
            assert!(answer.status == 403 || answer.status == 400, "{host:?}: {}", answer.text());
        }
        with(&server, target, &[("host", "evil.example")]).problem(403, "forbidden");
    }
}

#[test]
fn pages_of_others_may_not_ask() {
    let server = Server::start();
    let before = server.get("/v1/rules").expect(200).json();
    for origin in ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1.evil.example"] {
        for target in ROUTES {
            with(&server, target, &[("origin", origin)]).problem(403, "forbidden");
        }
        let headers = [("origin", origin), ("content-type", "text/plain")];
        server.call("PUT", "/v1/rules", &headers, br#"{"match":"x","spread":1}"#).problem(403, "forbidden");
        server.call("DELETE", "/v1/rules?match=x", &headers, b"").problem(403, "forbidden");
        server.call("POST", "/v1/rules/rollback?match=x", &headers, b"").problem(403, "forbidden");
    }
    assert_eq!(server.get("/v1/rules").expect(200).json(), before, "nothing was set");
}

#[test]
fn with_a_token_only_the_token_counts() {
    let server = Launch::new().flag("--admin-token", "s3cret-token").start();
    for target in ROUTES {
        let problem = server.get(target).problem(401, "unauthorized");
        assert!(!problem.to_string().contains("s3cret"), "{problem}");
        assert!(server.get(target).header("www-authenticate").is_some());
        for wrong in ["Bearer wrong", "Bearer s3cret-toke", "Bearer s3cret-token2"] {
            with(&server, target, &[("authorization", wrong)]).problem(403, "forbidden");
        }
        for wrong in ["Basic czNjcmV0", "s3cret-token", "Bearer"] {
            let answer = with(&server, target, &[("authorization", wrong)]);
            assert!(answer.status == 401 || answer.status == 403, "{wrong}: {}", answer.text());
        }
        with(&server, target, &[("authorization", "Bearer s3cret-token")]).expect(200);
        let anywhere = [("authorization", "Bearer s3cret-token"), ("host", "quipu.example")];
        with(&server, target, &anywhere).expect(200);
    }
    server.call("PUT", "/v1/rules", &[], br#"{"match":"x","spread":1}"#).problem(401, "unauthorized");
    server.call("POST", "/v1/rules/rollback?match=x", &[], b"").problem(401, "unauthorized");
    assert!(!server.output().contains("s3cret-token"), "the token is not logged");
}

#[test]
fn counting_needs_no_token() {
    let server = Launch::new().flag("--admin-token", "s3cret-token").start();
    server.add("c", 1).expect(200);
    let foreign = [("host", "quipu.example"), ("origin", "http://shop.example")];
    server.call("POST", "/v1/counters/c/add", &foreign, b"").expect(200);
    assert_eq!(server.total("c"), 2);
    for target in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/health"] {
        server.get(target).expect(200);
    }
}

#[test]
fn the_token_can_be_in_a_file() {
    let launch = Launch::new();
    let path = launch.scratch().join("token");
    std::fs::write(&path, "from-a-file\n").expect("a file");
    let server = launch.flag("--admin-token-file", path.to_str().expect("UTF-8")).start();
    server.get("/v1/rules").problem(401, "unauthorized");
    with(&server, "/v1/rules", &[("authorization", "Bearer from-a-file")]).expect(200);
}

#[test]
fn the_cluster_describes_itself() {
    let server = Launch::new().flag("--node-id", "node-7").flag("--shards", "5").start();
    server.add("c", 1).expect(200);
    let cluster = server.get("/v1/cluster").expect(200).json();
    let node = &cluster["nodes"][0];
    assert_eq!((&node["node"], &node["ready"]), (&json!("node-7"), &json!(true)), "{cluster}");
    assert_eq!(node["address"], server.addr.to_string());
    let shards = cluster["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), 5);
    assert!(shards.iter().all(|shard| shard["owner"] == "node-7" && shard["epoch"].as_u64() > Some(0)), "{cluster}");
    assert_eq!(shards.iter().filter_map(|shard| shard["counters"].as_u64()).sum::<u64>(), 1, "{cluster}");
    assert_eq!(shards.iter().filter_map(|shard| shard["journal_position"].as_u64()).sum::<u64>(), 1, "{cluster}");
    let finalized = server.post("/v1/cluster/finalize", Value::Null).expect(200).json();
    assert_eq!((&finalized["format"], &finalized["before"]), (&cluster["format"], &cluster["format"]), "{finalized}");
    let epoch = shards[0]["epoch"].as_u64();
    let server = server.crash_and_restart();
    let cluster = server.get("/v1/cluster").expect(200).json();
    assert!(cluster["shards"][0]["epoch"].as_u64() > epoch, "every start is a new epoch");
}
