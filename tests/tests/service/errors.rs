//! Requests that are wrong: each has a clear answer, nothing is changed, and the server goes on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use quipu_tests::{Client, Server, encode};
use serde_json::json;

/// A client has 15 s for its head and its body; the sweep that looks comes once a second.
const SLOW: Duration = Duration::from_secs(25);

fn no_counters(server: &Server) {
    assert_eq!(server.get("/v1/counters").expect(200).json()["counters"], json!([]));
}

#[test]
fn malformed_json_is_a_bad_request() {
    let server = Server::start();
    for (target, member) in
        [("/v1/counters/c/add", "amount"), ("/v1/counters", "name"), ("/v1/batch", "ops"), ("/v1/read", "ids")]
    {
        let started = format!("{{\"{member}\":");
        for body in ["{", "nonsense", "\u{1}", "[1,", &started, &format!("{started}}}"), "{member:1}", "{'a':1}"] {
            let problem = server.call("POST", target, &[], body.as_bytes()).problem(400, "malformed_json");
            assert_eq!(problem["outcome"], "not_applied", "{target} {body}");
        }
        let invalid_utf8 = server.call("POST", target, &[], b"{\"id\":\"\xff\xfe\",\"ops\":[]}");
        assert!(invalid_utf8.status == 400 || invalid_utf8.status == 422, "{}", invalid_utf8.text());
    }
    no_counters(&server);
}

#[test]
fn deeply_nested_json_is_refused() {
    let server = Server::start();
    for target in ["/v1/counters/c/add", "/v1/batch", "/v1/read", "/v1/counters"] {
        for body in ["[".repeat(200_000), "{\"amount\":".repeat(50_000)] {
            let answer = server.call("POST", target, &[], body.as_bytes());
            assert!(answer.status == 400 || answer.status == 422, "{target}: {}", answer.text());
        }
    }
    server.add("c", 1).expect(200);
}

#[test]
fn wrong_types_are_unprocessable() {
    let server = Server::start();
    for body in [
        r#"{"amount":"1"}"#,
        r#"{"amount":1.5}"#,
        r#"{"amount":1e3}"#,
        r#"{"amount":null}"#,
        r#"{"amount":true}"#,
        r#"{"amount":[1]}"#,
        r#"{"amount":{}}"#,
        r#"{"amounts":1}"#,
        r#"{"amount":1,"amount":2}"#,
        "[]",
        "[5]",
        "5",
        "null",
        "\"x\"",
    ] {
        let answer = server.call("POST", "/v1/counters/c/add", &[], body.as_bytes());
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
        answer.problem(422, "invalid_argument");
    }
    for body in [r#"{"id":5}"#, r#"{"id":["c"]}"#, r#"{"name":5}"#, r#"{"ids":"c"}"#, "[]"] {
        for target in ["/v1/counters", "/v1/read"] {
            let answer = server.call("POST", target, &[], body.as_bytes());
            assert_eq!(answer.status, 422, "{target} {body}: {}", answer.text());
        }
    }
    no_counters(&server);
}

#[test]
fn amounts_beyond_64_bits_are_out_of_range() {
    let server = Server::start();
    for amount in ["9223372036854775808", "-9223372036854775809", "1e400", &"9".repeat(1_000), "0.1"] {
        let body = format!("{{\"amount\":{amount}}}");
        let answer = server.call("POST", "/v1/counters/c/add", &[], body.as_bytes());
        assert_eq!(answer.status, 422, "{amount}: {}", answer.text());
        assert_eq!(answer.problem(422, "invalid_argument")["outcome"], "not_applied");
    }
    no_counters(&server);
}

#[test]
fn a_partial_never_leaves_64_bits() {
    let server = Server::start();
    server.set_rule(json!({ "match": "", "spread": 1 }));
    for (id, edge, step) in [("high", i64::MAX, 1), ("low", i64::MIN, -1)] {
        server.add(id, edge).expect(200);
        for amount in [step, edge] {
            assert_eq!(server.add(id, amount).problem(409, "overflow")["outcome"], "not_applied");
        }
        server.add_with_key(id, step, "k").problem(409, "overflow");
        assert_eq!(server.total(id), edge.into());
        server.add(id, -step).expect(200);
        server.add(id, step).expect(200);
        assert_eq!(server.total(id), edge.into());
    }
    let server = server.crash_and_restart();
    assert_eq!((server.total("high"), server.total("low")), (i64::MAX.into(), i64::MIN.into()));
}

#[test]
fn ids_have_1_to_512_bytes() {
    let server = Server::start();
    let longest = "é".repeat(256);
    server.add(&longest, 1).expect(200);
    assert_eq!(server.total(&longest), 1);
    let (too_long, ten_kb) = ("é".repeat(256) + "x", "x".repeat(10_000));
    for id in [too_long.as_str(), ten_kb.as_str()] {
        let encoded = encode(id);
        server.post("/v1/counters", json!({ "id": id })).problem(422, "invalid_argument");
        server.post(&format!("/v1/counters/{encoded}/add"), json!({})).problem(422, "invalid_argument");
        server.get(&format!("/v1/counters/{encoded}")).problem(422, "invalid_argument");
        server.get(&format!("/v1/counter?id={encoded}")).problem(422, "invalid_argument");
        server.delete(&format!("/v1/counters/{encoded}")).problem(422, "invalid_argument");
        let details = server.call("PUT", "/counter/increment", &[], json!({ "counter_id": id }).to_string().as_bytes());
        assert_eq!(details.expect(400).json()["success"], false);
    }
    server.post("/v1/counters", json!({ "id": "" })).problem(422, "invalid_argument");
    server.get("/v1/counter?id=").problem(422, "invalid_argument");
    for target in ["/v1/counter", "/v1/counter/shards", "/v1/counter/watch"] {
        server.get(target).problem(400, "missing_parameter");
    }
    server.post("/v1/counter/add", json!({})).problem(400, "missing_parameter");
    for method in ["GET", "DELETE"] {
        let answer = server.call(method, "/v1/counters/", &[], b"");
        assert!(matches!(answer.status, 404 | 422), "{method}: {}", answer.text());
    }
    let problem = server.get(&format!("/v1/counters/{}", encode(&ten_kb))).json();
    assert!(problem["detail"].as_str().expect("a sentence").len() < 1_000, "long ids are not echoed");
}

#[test]
fn names_are_bounded() {
    let server = Server::start();
    server.post("/v1/counters", json!({ "id": "c", "name": "n".repeat(512) })).expect(201);
    server.post("/v1/counters", json!({ "id": "d", "name": "n".repeat(513) })).problem(422, "invalid_argument");
    server.get("/v1/counters/d").problem(404, "counter_not_found");
}

#[test]
fn percent_encoding_must_be_utf_8() {
    let server = Server::start();
    for encoded in ["%FF", "a%C3", "%80%80", "%ED%A0%80"] {
        server.get(&format!("/v1/counters/{encoded}")).problem(422, "invalid_argument");
        server.get(&format!("/v1/counter?id={encoded}")).problem(422, "invalid_argument");
        server.post(&format!("/v1/counters/{encoded}/add"), json!({})).problem(422, "invalid_argument");
        server.get(&format!("/v1/counters?prefix={encoded}")).problem(422, "invalid_argument");
        server.get(&format!("/v1/operations/{encoded}?counter_id=c")).problem(422, "invalid_argument");
    }
    no_counters(&server);
}

#[test]
fn unknown_routes_and_wrong_methods_are_told_apart() {
    let server = Server::start();
    for target in
        ["/v2/counters", "/v1", "/v1/counters/c/fly", "/v1/counters/c/add/more", "/counters", "/health/", "//"]
    {
        server.get(target).problem(404, "unknown_route");
    }
    for (method, target, allow) in [
        ("PUT", "/v1/counters/c", &["GET", "DELETE"][..]),
        ("GET", "/v1/counters/c/add", &["POST"]),
        ("PATCH", "/v1/counters", &["GET", "POST"]),
        ("GET", "/v1/batch", &["POST"]),
        ("POST", "/v1/rules", &["GET", "PUT", "DELETE"]),
        ("POST", "/healthz", &["GET"]),
        ("POST", "/counter/increment", &["PUT"]),
        ("DELETE", "/counter", &["GET", "POST"]),
        ("BREW", "/v1/counters/c", &["GET", "DELETE"]),
    ] {
        let answer = server.call(method, target, &[], b"");
        answer.problem(405, "method_not_allowed");
        let allowed: Vec<&str> = answer.header("allow").expect("an Allow header").split(',').map(str::trim).collect();
        assert!(allow.iter().all(|method| allowed.contains(method)), "{method} {target}: {allowed:?}");
        assert!(!allowed.contains(&method), "{method} {target}: {allowed:?}");
    }
}

#[test]
fn bodies_that_are_too_large_are_refused_at_once() {
    const BYTES: usize = 100 * 1024 * 1024;
    let server = Server::start();
    server.add("c", 1).expect(200);
    let before = server.resident_bytes();
    for target in ["/v1/counters/c/add", "/v1/batch", "/v1/read", "/counter/increment", "/v1/rules"] {
        let method = if target.contains("increment") || target.contains("rules") { "PUT" } else { "POST" };
        let mut client = server.client();
        let began = Instant::now();
        let length = BYTES.to_string();
        client.send(method, target, &[("content-length", &length)], &[b' '; 1024]).expect("the connection is open");
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status, 413, "{target}: {}", answer.text());
        assert!(began.elapsed() < Duration::from_secs(5), "{target}: {:?}", began.elapsed());
        assert!(client.closed(), "{target}: the rest of the body is not read as a request");
    }
    server.call("POST", "/v1/batch", &[("content-length", &BYTES.to_string())], b"").problem(413, "body_too_large");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB more", grown >> 20);
    assert_eq!(server.total("c"), 1);
}

#[test]
fn a_large_body_is_refused_before_it_is_sent() {
    let server = Server::start();
    let mut client = server.client();
    // As curl does with large bodies: it waits for the word before it sends them.
    let waiting = [("expect", "100-continue"), ("content-length", "104857600")];
    client.send("POST", "/v1/batch", &waiting, b"").expect("the connection is open");
    client.receive().expect("an answer").problem(413, "body_too_large");
    let mut client = server.client();
    let body = br#"{"amount":7}"#;
    let waiting = [("expect", "100-continue"), ("content-length", "12")];
    client.send("POST", "/v1/counters/c/add", &waiting, b"").expect("the connection is open");
    client.socket().write_all(body).expect("the connection is open");
    client.receive().expect("an answer").expect(200);
    assert_eq!(server.total("c"), 7);
}

#[test]
fn a_body_of_unknown_length_is_read_up_to_the_limit() {
    let server = Server::start();
    server.add("c", 1).expect(200);
    let before = server.resident_bytes();
    let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
    for target in ["/v1/counters/c/add", "/v1/batch"] {
        let mut client = server.client();
        client.send("POST", target, &[("transfer-encoding", "chunked")], b"").expect("the connection is open");
        // 100 MB, unless the server has had enough before.
        let pushed = (0..1_600).take_while(|_| client.socket().write_all(&chunk).is_ok()).count();
        assert!(pushed < 1_600, "{target}: the server took it all");
        // The answer may be lost with the reset that ends such a connection, but it is no other than this.
        if let Ok(answer) = client.receive() {
            answer.problem(413, "body_too_large");
        }
    }
    let mut client = server.client();
    let body = b"6\r\n{\"amou\r\n8\r\nnt\": 41}\r\n0\r\n\r\n";
    let answer =
        client.call("POST", "/v1/counters/c/add", &[("transfer-encoding", "chunked")], body).expect("an answer");
    assert_eq!(answer.expect(200).json()["amount"], 41);
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
    assert_eq!(server.total("c"), 42);
}

#[test]
fn heads_are_bounded() {
    let server = Server::start();
    let long = "x".repeat(100_000);
    let mut client = server.client();
    client.send("GET", "/healthz", &[("x-long", &long)], b"").ok();
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 431, "{}", answer.text());
    assert!(client.closed());
    let mut client = server.client();
    client.send("GET", &format!("/v1/counters/{long}"), &[], b"").ok();
    let answer = client.receive().expect("an answer");
    assert!(matches!(answer.status, 414 | 431), "{}", answer.status);
    let many: Vec<(&str, &str)> = (0..1_000).map(|_| ("x-many", "y")).collect();
    let mut client = server.client();
    client.send("GET", "/healthz", &many, b"").ok();
    assert_eq!(client.receive().expect("an answer").status, 431);
    server.add("c", 1).expect(200);
}

#[test]
fn a_body_that_is_too_slow_is_answered() {
    let server = Server::start();
    for target in ["/v1/counters/c/add", "/counter/increment"] {
        let method = if target.starts_with("/v1") { "POST" } else { "PUT" };
        let mut client = server.client();
        client.send(method, target, &[("content-length", "100")], b"{\"amount\":").expect("the connection is open");
        let began = Instant::now();
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status, 408, "{}", answer.text());
        assert!(began.elapsed() < SLOW, "{:?}", began.elapsed());
        assert!(client.closed());
    }
    no_counters(&server);
}

#[test]
fn a_thousand_half_open_connections_are_closed() {
    let server = Server::start();
    let mut half_open: Vec<Client> = (0..1_000).map(|_| server.client()).collect();
    for (n, client) in half_open.iter_mut().enumerate() {
        let head = "POST /v1/counters/c/add HTTP/1.1\r\nhost: x\r\ncontent-le";
        client.socket().write_all(&head.as_bytes()[..1 + n % head.len()]).expect("the connection is open");
    }
    quipu_tests::until("all are served", || server.metrics().value("quipu_connections") > 1_000.0);
    let began = Instant::now();
    let mut added = 0i128;
    // The service goes on while they hang, and is there when they are gone.
    quipu_tests::within(SLOW, "the half-open connections are closed", || {
        server.add("c", 1).expect(200);
        added += 1;
        (server.metrics().value("quipu_connections") < 10.0).then_some(())
    });
    assert!(began.elapsed() > Duration::from_secs(5), "a head has some time to arrive: {:?}", began.elapsed());
    for client in &mut half_open {
        client.socket().set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut rest = Vec::new();
        // Closed without an answer, or with one that says why.
        let ended = client.socket().read_to_end(&mut rest);
        assert!(ended.is_ok() && (rest.is_empty() || rest.starts_with(b"HTTP/1.1 408")), "{ended:?} {rest:?}");
    }
    assert_eq!(server.total("c"), added);
}

#[test]
fn a_head_that_drips_is_ended_too() {
    let server = Server::start();
    let mut client = server.client();
    client.socket().write_all(b"GET /healthz HTTP/1.1\r\nx-drip: ").expect("the connection is open");
    client.socket().set_read_timeout(Some(Duration::from_millis(250))).expect("a timeout");
    let mut byte = [0];
    // A byte now and then must not keep the connection for ever.
    quipu_tests::within(SLOW, "the connection is ended", || {
        let dripped = client.socket().write_all(b"x");
        match client.socket().read(&mut byte) {
            Ok(0) => Some(()),
            Ok(_) => Some(()),
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => dripped.err().map(drop),
            Err(_) => Some(()),
        }
    });
    server.add("c", 1).expect(200);
}

#[test]
fn a_client_that_leaves_in_mid_body_changes_nothing() {
    let mut server = Server::start();
    for n in 0..200 {
        let mut client = server.client();
        let body = br#"{"ops":[{"id":"a","amount":1},{"id":"#;
        client.send("POST", "/v1/batch", &[("content-length", "5000")], body).expect("the connection is open");
        if n % 2 == 0 {
            client.socket().shutdown(Shutdown::Write).expect("an open socket");
        }
    }
    assert!(server.alive());
    quipu_tests::until("the connections are gone", || server.metrics().value("quipu_connections") <= 1.0);
    no_counters(&server);
}

#[test]
fn a_client_that_leaves_before_its_answer_is_counted_or_not() {
    let server = Server::start();
    for _ in 0..200 {
        server.client().send("POST", "/v1/counters/c/add", &[], b"").expect("the connection is open");
    }
    server.add("c", 1_000).expect(200);
    let seen = std::cell::Cell::new(0);
    quipu_tests::until("the total settles", || {
        let total = server.total("c");
        seen.replace(total) == total && server.metrics().value("quipu_connections") <= 1.0
    });
    assert!((1_000..=1_200).contains(&seen.get()), "{}", seen.get());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut client = server.client();
    for amount in 1..=50 {
        client.send("POST", "/v1/counters/c/add", &[], format!("{{\"amount\":{amount}}}").as_bytes()).expect("open");
    }
    for amount in 1..=50 {
        assert_eq!(client.receive().expect("an answer").expect(200).json()["amount"], amount);
    }
    assert_eq!(server.total("c"), 50 * 51 / 2);
}

#[test]
fn a_connection_serves_on_after_a_refused_request() {
    let server = Server::start();
    let mut client = server.client();
    for _ in 0..3 {
        client.call("POST", "/v1/counters/c/add", &[], b"{").expect("an answer").problem(400, "malformed_json");
        client.call("GET", "/nowhere", &[], b"").expect("an answer").problem(404, "unknown_route");
        client.call("PUT", "/v1/batch", &[], b"ignored").expect("an answer").problem(405, "method_not_allowed");
        client.call("POST", "/v1/counters/c/add", &[], b"").expect("an answer").expect(200);
    }
    assert_eq!(server.total("c"), 3);
}

#[test]
fn what_is_no_http_is_refused() {
    let mut server = Server::start();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"POST /v1/counters/c/add HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"POST /v1/counters/c/add HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/counters/c/add HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut client = server.client();
        client.socket().write_all(bytes).expect("the connection is open");
        client.socket().shutdown(Shutdown::Write).expect("an open socket");
        client.socket().set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut answer = Vec::new();
        // A reset is an answer, too.
        if client.socket().read_to_end(&mut answer).is_ok() && !answer.is_empty() {
            assert!(answer.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&answer));
        }
    }
    assert!(server.alive());
    no_counters(&server);
}
