//! Starting, serving, stopping: settings, the ready line, the drain, what is served beside counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quipu_tests::load::{self, Load};
use quipu_tests::server::quipu;
use quipu_tests::{Launch, Server};
use serde_json::{Value, json};

#[test]
fn the_ready_line_names_the_address() {
    let server = Server::start();
    assert_eq!(server.ready, format!("quipu ready http={}", server.addr));
    server.get("/readyz").expect(200);
    let shards = Launch::new().flag("--shards", "2").flag("--compat-shard-listen", "127.0.0.1:0").start();
    assert_ne!(shards.shard_addr(0), shards.shard_addr(1));
}

#[test]
fn a_node_is_ready_soon() {
    // The first start compiles the policies, the others find them compiled.
    drop(Server::start());
    let fastest = (0..5).map(|_| Server::start().ready_after).min().expect("five starts");
    println!("ready after {fastest:?} with an empty directory and compiled policies");
    assert!(fastest < Duration::from_millis(1_500), "{fastest:?}");
}

#[test]
fn all_wrong_settings_are_named_at_once() {
    let launch = Launch::new()
        .flag("--shards", "0")
        .flag("--idempotency-window", "soon")
        .flag("--workers", "many")
        .env("QUIPU_POLICIES", "perhaps")
        .listen("nowhere");
    let ended = launch.try_start().err().expect("it must not start");
    assert_eq!(ended.code(), 64, "{}", ended.output);
    for setting in ["shards", "idempotency-window", "workers", "policies", "listen"] {
        assert!(ended.output.to_lowercase().contains(setting), "{setting}: {}", ended.output);
    }
    assert!(!launch.data().exists(), "nothing is made by a start that is refused");
}

#[test]
fn unknown_flags_and_keys_are_refused() {
    let ended = Launch::new().flag("--shard", "3").try_start().err().expect("it must not start");
    assert_eq!(ended.code(), 64, "{}", ended.output);
    let launch = Launch::new();
    let path = launch.scratch().join("quipu.toml");
    std::fs::write(&path, "shards = 3\nshrads = 4\n").expect("a file");
    let ended = launch.flag("--config", path.to_str().expect("UTF-8")).try_start().err().expect("it must not start");
    assert_eq!(ended.code(), 64, "{}", ended.output);
    assert!(ended.output.contains("shrads"), "{}", ended.output);
    assert_eq!(quipu(&["serve", "extra"]).code, 64);
    assert_eq!(quipu(&[]).code, 64);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let shards = |launch: Launch| {
        let cluster = launch.start().get("/v1/cluster").expect(200).json();
        cluster["shards"].as_array().expect("a list").len()
    };
    let with_file = || {
        let launch = Launch::new();
        let path = launch.scratch().join("quipu.toml");
        std::fs::write(&path, "shards = 3\n").expect("a file");
        launch.env("QUIPU_CONFIG", path.as_os_str())
    };
    assert_eq!(shards(with_file()), 3);
    assert_eq!(shards(with_file().env("QUIPU_SHARDS", "4")), 4);
    assert_eq!(shards(with_file().env("QUIPU_SHARDS", "4").flag("--shards", "5")), 5);
}

#[test]
fn variables_of_a_cluster_do_not_disturb() {
    let launch =
        Launch::new().env("ETCD_ENDPOINTS", "http://etcd:2379").env("SERVICE_TYPE", "shard").env("POD_IP", "10.0.0.7");
    launch.start().add("c", 1).expect(200);
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["serve", "--help"], &["counter", "--help"], &["--version"]] {
        let ran = quipu(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!ran.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_port_in_use_is_told_in_a_sentence() {
    let server = Server::start();
    let ended = Launch::new().listen(server.addr.to_string()).try_start().err().expect("it must not start");
    assert!(ended.code() > 0, "{}: {}", ended.status, ended.output);
    let said: Vec<&str> = ended.output.lines().filter(|line| line.contains(&server.addr.to_string())).collect();
    assert_eq!(said.len(), 1, "{}", ended.output);
    assert!(!ended.output.contains("panicked"), "{}", ended.output);
}

#[test]
fn sigterm_under_load_answers_every_request() {
    let server = Server::start();
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let tally = std::thread::scope(|scope| {
        let load =
            Load { clients: 32, additions: u64::MAX, prefix: "c", counters: 8, answered: &answered, stop: &stop };
        let addr = server.addr;
        let running = scope.spawn(move || load.run(addr));
        quipu_tests::until("the load is under way", || answered.load(Ordering::Relaxed) > 2_000);
        server.terminate();
        running.join().expect("the load does not panic")
    });
    let (ended, launch) = server.ended();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    let server = launch.start();
    let total = load::sum(&server, "c", 8);
    println!("{tally:?}, total {total}");
    assert_eq!(total, i128::from(tally.acknowledged), "{tally:?}");
    assert_eq!((tally.unknown, tally.refused), (0, 0), "every request that was sent has its answer");
}

#[test]
fn sigterm_lets_a_request_finish_whose_body_is_under_way() {
    use std::io::Write;
    let server = Server::start();
    let mut client = server.client();
    let head =
        format!("POST /v1/counters/c/add HTTP/1.1\r\nhost: {}\r\ncontent-length: 12\r\n\r\n{{\"amou", server.addr);
    client.socket().write_all(head.as_bytes()).expect("the connection is open");
    quipu_tests::until("the connection is served", || server.metrics().value("quipu_connections") >= 2.0);
    server.terminate();
    quipu_tests::until("nothing new is accepted", || std::net::TcpStream::connect(server.addr).is_err());
    client.socket().write_all(b"nt\":7}").expect("the connection is still open");
    client.receive().expect("an answer").expect(200);
    assert!(client.closed(), "after its answer the connection is closed");
    let (ended, launch) = server.ended();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    assert_eq!(launch.start().total("c"), 7);
}

#[test]
fn sigterm_does_not_wait_for_those_who_never_finish() {
    use std::io::Write;
    let server = Launch::new().flag("--drain-timeout", "1s").start();
    let mut stuck = server.client();
    stuck
        .socket()
        .write_all(b"POST /v1/counters/c/add HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{")
        .expect("open");
    let _idle: Vec<_> = (0..20).map(|_| server.client()).collect();
    quipu_tests::until("the connections are served", || server.metrics().value("quipu_connections") >= 22.0);
    let began = std::time::Instant::now();
    let (ended, _) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn totals_survive_many_restarts() {
    let mut server = Server::start();
    for round in 1..=6 {
        for id in ["a", "b/c", "é"] {
            server.add(id, round).expect(200);
        }
        server = if round % 2 == 0 {
            server.crash_and_restart()
        } else {
            let (ended, launch) = server.stop();
            assert_eq!(ended.code(), 0, "{}", ended.output);
            launch.start()
        };
        let expected: i64 = (1..=round).sum();
        assert!(["a", "b/c", "é"].iter().all(|id| server.total(id) == expected.into()), "round {round}");
    }
}

#[test]
fn health_and_readiness_answer() {
    let server = Server::start();
    assert_eq!(server.get("/healthz").expect(200).header("content-type"), Some("application/json"));
    server.get("/readyz").expect(200);
    let head = server.call("HEAD", "/healthz", &[], b"").expect(200);
    assert!(head.header("content-length").is_some());
}

#[test]
fn metrics_count() {
    let server = Server::start();
    let before = server.metrics();
    assert_eq!((before.value("quipu_ready"), before.value("quipu_operations_total")), (1.0, 0.0));
    (0..10).for_each(|_| drop(server.add("c", 1).expect(200)));
    let after = server.metrics();
    assert_eq!(after.value("quipu_operations_total"), 10.0);
    assert!(after.value("quipu_journal_groups_total") >= 1.0);
    assert!(after.value("quipu_journal_write_seconds_total") > 0.0);
    assert!((0.0..=1.0).contains(&after.value("quipu_cpu_ratio")));
    quipu_tests::until("nothing is queued", || server.metrics().value("quipu_queued_operations") == 0.0);
    let text = server.get("/metrics").text();
    assert!(text.lines().any(|line| line.starts_with("# HELP quipu_")) && text.contains("# TYPE quipu_"), "{text}");
}

#[test]
fn the_api_document_describes_every_route() {
    let server = Server::start();
    let document = server.get("/openapi.json").expect(200).json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", document["openapi"]);
    let paths = document["paths"].as_object().expect("paths");
    for path in [
        "/v1/counters",
        "/v1/counters/{id}",
        "/v1/counters/{id}/add",
        "/v1/counters/{id}/shards",
        "/v1/counters/{id}/watch",
        "/v1/batch",
        "/v1/read",
        "/v1/operations/{key}",
        "/v1/plugins",
        "/v1/plugins/{name}",
        "/v1/rules",
        "/v1/rules/rollback",
        "/v1/cluster",
        "/v1/cluster/finalize",
        "/healthz",
        "/readyz",
        "/metrics",
        "/health",
        "/counter",
        "/counter/value",
        "/counter/increment",
        "/counter/decrement",
        "/counter/shard",
        "/increment",
        "/total",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let text = document.to_string();
    for code in ["overflow", "bound", "key_reused", "counter_not_found", "unknown_outcome", "precondition_failed"] {
        assert!(text.contains(&format!("\"{code}\"")), "{code}");
    }
}

#[test]
fn the_dashboard_is_one_page() {
    let server = Server::start();
    let page = server.get("/").expect(200);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{:?}", page.headers);
    assert!(page.text().to_ascii_lowercase().contains("<!doctype html>"));
}

#[test]
fn request_ids_are_echoed() {
    let server = Server::start();
    let answer = server.call("GET", "/v1/counters/none", &[("x-request-id", "trace-17")], b"");
    assert_eq!(answer.header("x-request-id"), Some("trace-17"));
    assert_eq!(answer.problem(404, "counter_not_found")["request_id"], "trace-17");
    let drawn = [server.get("/v1/counters/none"), server.get("/v1/counters/none")];
    let ids: Vec<Value> = drawn.iter().map(|answer| answer.json()["request_id"].clone()).collect();
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn an_idle_node_is_small_and_still() {
    let server = Server::start();
    server.add("c", 1).expect(200);
    let resident = server.resident_bytes();
    println!("resident memory of an idle node: {} MiB", resident >> 20);
    assert!(resident < 200 << 20, "{resident}");
    assert_eq!(server.get("/v1/cluster").expect(200).json()["health"], json!("ok"));
}
