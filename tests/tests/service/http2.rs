//! HTTP/2 without TLS, spoken from the first byte ("prior knowledge"): many requests share a connection.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use quipu_tests::{Launch, PATIENCE, Server, within};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

/// One connection. Clones share it.
#[derive(Clone)]
struct Client {
    requests: SendRequest<Bytes>,
    authority: String,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

impl Client {
    async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let (requests, connection) = h2::client::handshake(stream).await.expect("a server of HTTP/2");
        tokio::task::spawn_local(async move { drop(connection.await) });
        Self { requests, authority: addr.to_string() }
    }

    fn asking_for(&self, authority: &str) -> Self {
        Self { authority: authority.into(), ..self.clone() }
    }

    /// Waits for the head of the answer; its body is left to read.
    async fn head(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<http::Response<h2::RecvStream>, h2::Error> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{target}", self.authority));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut requests = self.requests.clone().ready().await?;
        let (answer, mut sender) = requests.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            sender.send_data(Bytes::copy_from_slice(body), true)?;
        }
        answer.await
    }

    async fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, h2::Error> {
        let (head, mut stream) = self.head(method, target, headers, body).await?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    async fn add(&self, id: &str) -> Result<Answer, h2::Error> {
        self.call("POST", &format!("/v1/counters/{id}/add"), &[], b"").await
    }
}

/// Runs a client, and fails when it hangs.
fn run(client: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let timed = async { tokio::time::timeout(PATIENCE, client).await.expect("no request hangs") };
    runtime.block_on(LocalSet::new().run_until(timed));
}

#[test]
fn many_additions_share_a_connection() {
    const CLIENTS: i64 = 300;
    const EACH: i64 = 20;
    let server = Server::start();
    run(async {
        let client = Client::connect(server.addr).await;
        // With its first answer a client knows how many requests the server takes at once: the rest wait their turn.
        assert_eq!(client.add("c0").await.expect("an answer").status, 200);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = client.clone();
            clients.spawn_local(async move {
                for _ in 0..EACH {
                    let answer = client.add(&format!("c{}", number % 3)).await.expect("an answer");
                    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("applied")));
                }
            });
        }
        clients.join_all().await;
    });
    let total: i128 = (0..3).map(|number| server.total(&format!("c{number}"))).sum();
    assert_eq!(total, i128::from(1 + CLIENTS * EACH));
}

#[test]
fn it_answers_what_http_1_answers() {
    let server = Server::start();
    server.add("c", 5).expect(200);
    let requests: [(&str, &str, &[u8]); 9] = [
        ("GET", "/v1/counters/c?read=exact", b""),
        ("GET", "/v1/counter?id=c", b""),
        ("POST", "/v1/batch", br#"{"ops":[{"id":"b","amount":0}]}"#),
        ("POST", "/counter", br#"{"name":"likes""#),
        ("GET", "/v1/counters/none", b""),
        ("GET", "/nowhere", b""),
        ("PUT", "/v1/counters", b""),
        ("POST", "/v1/counters/c/add", br#"{"amount":"1"}"#),
        ("GET", "/healthz", b""),
    ];
    run(async {
        let client = Client::connect(server.addr).await;
        for (method, target, body) in requests {
            let one = server.call(method, target, &[], body);
            let two = client.call(method, target, &[], body).await.expect("an answer");
            assert_eq!(two.status, one.status, "{method} {target}");
            for name in ["content-type", "allow", "content-length"] {
                let header = two.headers.get(name).map(|value| value.to_str().expect("text"));
                assert_eq!(header, one.header(name), "{name} of {method} {target}");
            }
            let differs = |answer: Value| match answer {
                Value::Object(mut fields) => {
                    fields.retain(|name, _| !["request_id", "as_of", "age_ms"].contains(&name.as_str()));
                    Value::Object(fields)
                }
                other => other,
            };
            assert_eq!(differs(two.json()), differs(one.json()), "{method} {target}");
        }
        let head = client.call("HEAD", "/healthz", &[], b"").await.expect("an answer");
        let whole = client.call("GET", "/healthz", &[], b"").await.expect("an answer");
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.headers["content-length"], whole.body.len().to_string().as_str());
        let keyed = [("idempotency-key", "k"), ("x-request-id", "trace-17")];
        for replayed in [None, Some("true")] {
            let answer = client.call("POST", "/v1/counters/c/add", &keyed, b"").await.expect("an answer");
            let header = answer.headers.get("idempotency-replayed").map(|value| value.to_str().expect("text"));
            assert_eq!((answer.status, header), (200, replayed));
            assert_eq!(answer.headers["x-request-id"], "trace-17");
        }
    });
    assert_eq!(server.total("c"), 6);
}

#[test]
fn what_is_too_large_ends_no_other_request() {
    let server = Server::start();
    run(async {
        let client = Client::connect(server.addr).await;
        let large = vec![b' '; 1024 * 1024 + 1];
        let answer = client.call("POST", "/v1/counters/c/add", &[], &large).await.expect("an answer");
        assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("body_too_large")));
        let large = "x".repeat(64 * 1024);
        let answer = client.call("POST", "/v1/counters/c/add", &[("x-large", &large)], b"").await.expect("an answer");
        assert_eq!(answer.status, 431);
        assert_eq!(client.add("c").await.expect("an answer").status, 200);
    });
    assert_eq!(server.total("c"), 1);
}

#[test]
fn what_is_no_frame_ends_its_connection() {
    let mut server = Server::start();
    let frame_of_no_stream = b"\0\0\x04\0\0\0\0\0\0abcd";
    for bytes in [&b""[..], b"POST /v1/counters/c/add HTTP/1.1\r\n\r\n", &[0xff; 64], frame_of_no_stream] {
        let mut stream = std::net::TcpStream::connect(server.addr).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the connection is open");
        stream.write_all(bytes).expect("the connection is open");
        stream.shutdown(std::net::Shutdown::Write).expect("half of it is closed");
        // It ends; by a reset or after its last frame.
        if let Err(why) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(why.kind(), std::io::ErrorKind::ConnectionReset, "{bytes:?}");
        }
    }
    assert!(server.alive());
    server.get("/v1/counters/c").problem(404, "counter_not_found");
}

#[test]
fn requests_that_are_given_up_harm_no_other() {
    let server = Server::start();
    run(async {
        let client = Client::connect(server.addr).await;
        for _ in 0..20 {
            let mut kept = JoinSet::new();
            for _ in 0..20 {
                let given_up = client.clone();
                let waiting = tokio::task::spawn_local(async move { drop(given_up.add("gone").await) });
                let other = client.clone();
                kept.spawn_local(async move { other.add("kept").await.expect("an answer").status });
                tokio::task::yield_now().await;
                waiting.abort();
            }
            assert!(kept.join_all().await.iter().all(|&status| status == 200));
        }
    });
    assert_eq!(server.total("kept"), 400);
    // Whether one that was given up counted is open, but it did so once at most.
    let answer = server.get("/v1/counters/gone");
    assert!(answer.status == 404 || (0..=400).contains(&server.total("gone")), "{}", answer.text());
}

#[test]
fn events_and_additions_share_a_connection() {
    let server = Server::start();
    server.add("c", 5).expect(200);
    run(async {
        let client = Client::connect(server.addr).await;
        let answer = client.head("GET", "/v1/counters/c/watch", &[], b"").await.expect("an answer");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut events = answer.into_body();
        let mut last = 0;
        while last < 25 {
            let event = events.data().await.expect("the stream goes on").expect("an event");
            events.flow_control().release_capacity(event.len()).expect("received");
            let text = String::from_utf8(event.to_vec()).expect("UTF-8");
            let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("no comment comes so soon");
            let total: Value = serde_json::from_str(data).expect("JSON");
            let total = total["value"].as_i64().expect("a total");
            assert!(total > last, "{last}, {total}");
            last = total;
            for _ in last..25.min(last + 10) {
                assert_eq!(client.add("c").await.expect("an answer").status, 200);
            }
        }
    });
    let (ended, _) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
}

#[test]
fn operators_are_known_by_the_name_they_ask_for() {
    let server = Server::start();
    run(async {
        let client = Client::connect(server.addr).await;
        assert_eq!(client.call("GET", "/v1/rules", &[], b"").await.expect("an answer").status, 200);
        let rebound = client.asking_for("quipu.example");
        let refused = rebound.call("GET", "/v1/rules", &[], b"").await.expect("an answer");
        assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("forbidden")));
    });
    let server = Launch::new().admin_token("secret").start();
    run(async {
        let client = Client::connect(server.addr).await;
        assert_eq!(client.call("GET", "/v1/rules", &[], b"").await.expect("an answer").status, 401);
        let token = [("authorization", "Bearer secret")];
        assert_eq!(client.call("GET", "/v1/rules", &token, b"").await.expect("an answer").status, 200);
    });
}

#[test]
fn sigterm_under_load_answers_every_request_that_was_taken() {
    let server = Server::start();
    let (acknowledged, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            within(PATIENCE, "the load is under way", || (acknowledged.load(Ordering::Relaxed) > 5_000).then_some(()));
            stopped.store(true, Ordering::Relaxed);
            server.terminate();
        });
        run(async {
            let client = Client::connect(server.addr).await;
            let add_on = async || loop {
                match client.add("c").await {
                    Ok(answer) => {
                        assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(why) => {
                        assert!(stopped.load(Ordering::Relaxed), "{why}");
                        // The server said which requests it takes no more; none that it took is without an answer.
                        let reason = why.reason();
                        assert!(why.is_go_away() && reason == Some(h2::Reason::NO_ERROR), "{why:?}");
                        return;
                    }
                }
            };
            let clients: Vec<_> = (0..64).map(|_| Box::pin(add_on())).collect();
            futures_util::future::join_all(clients).await;
        });
    });
    let (ended, launch) = server.ended();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    let acknowledged = acknowledged.into_inner();
    println!("{acknowledged} acknowledged before the end");
    assert_eq!(launch.start().total("c"), i128::from(acknowledged));
}
