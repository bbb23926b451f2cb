//! The client commands of the binary against a real server: output and exit codes.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use quipu_tests::server::{client_command, quipu};
use quipu_tests::{Launch, Server};
use serde_json::{Value, json};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
}

#[test]
fn add_and_get_count() {
    let server = Server::start();
    for args in
        [&["counter", "add", "likes"][..], &["counter", "add", "likes", "5"], &["counter", "add", "likes", "-2"]]
    {
        let ran = server.quipu(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains("likes"), "{ran:?}");
    }
    let ran = server.quipu(&["counter", "get", "likes"]);
    assert_eq!((ran.code, ran.stdout.trim()), (0, "4"), "{ran:?}");
    assert_eq!(server.total("likes"), 4);
}

#[test]
fn hard_ids_are_encoded() {
    let server = Server::start();
    for id in ["a/b", "two words", "ünïcødé?&#%", "..", "+"] {
        assert_eq!(server.quipu(&["counter", "add", id, "--", "-3"]).code, 0, "{id}");
        assert_eq!(server.quipu(&["counter", "get", id]).stdout.trim(), "-3", "{id}");
        assert_eq!(server.total(id), -3, "{id}");
    }
}

#[test]
fn keys_count_once() {
    let server = Server::start();
    for _ in 0..3 {
        assert_eq!(server.quipu(&["counter", "add", "c", "7", "--key", "order-1"]).code, 0);
    }
    assert_eq!(server.total("c"), 7);
    let ran = server.quipu(&["counter", "add", "c", "8", "--key", "order-1"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("key_reused"), "{ran:?}");
}

#[test]
fn json_is_for_machines() {
    let server = Server::start();
    let ran = server.quipu(&["counter", "add", "c", "5", "--json"]);
    assert_eq!(lines(&ran.stdout)[0]["shard_value"], 5, "{ran:?}");
    let ran = server.quipu(&["counter", "get", "c", "--json"]);
    assert_eq!(lines(&ran.stdout)[0]["value"], 5, "{ran:?}");
    let ran = server.quipu(&["counter", "get", "nobody", "--json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert_eq!(lines(&ran.stderr)[0]["code"], "counter_not_found", "{ran:?}");
    let ran = server.quipu(&["cluster", "--json"]);
    assert_eq!(lines(&ran.stdout)[0]["health"], "ok", "{ran:?}");
}

#[test]
fn several_counters_are_read_at_once() {
    let server = Server::start();
    server.add("a", 1).expect(200);
    server.add("b", 2).expect(200);
    let ran = server.quipu(&["counter", "get", "a", "b"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains('a') && ran.stdout.contains('b'), "{ran:?}");
    let ran = server.quipu(&["counter", "get", "a", "nobody"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("nobody"), "{ran:?}");
}

#[test]
fn list_shows_all_pages() {
    let server = Server::start();
    let ops: Vec<Value> = (0..250).map(|n| json!({ "id": format!("p/{n:03}") })).collect();
    server.post("/v1/batch", json!({ "ops": ops })).expect(200);
    server.add("other", 1).expect(200);
    let ids = |args: &[&str]| -> Vec<String> {
        let ran = server.quipu(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        let pages = lines(&ran.stdout);
        let counters = pages.iter().flat_map(|page| page["counters"].as_array().expect("a list"));
        counters.map(|counter| counter["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(&["counter", "list", "--prefix", "p/", "--all", "--json", "--limit", "60"]).len(), 250);
    assert_eq!(ids(&["counter", "list", "--limit", "60", "--json"]).len(), 60);
    assert_eq!(ids(&["counter", "list", "--prefix", "none", "--all", "--json"]).len(), 0);
    let ran = server.quipu(&["counter", "list", "--prefix", "p/24", "--all"]);
    assert!((240..250).all(|n| ran.stdout.contains(&format!("p/{n}"))), "{ran:?}");
}

#[test]
fn watch_prints_totals_as_they_change() {
    let server = Server::start();
    server.add("c", 1).expect(200);
    let url = format!("http://{}", server.addr);
    let mut command = client_command();
    command.args(["counter", "watch", "c", "--count", "2", "--json", "--url", &url]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the client runs");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a first total");
    assert_eq!(lines(&line)[0]["value"], 1);
    server.add("c", 41).expect(200);
    line.clear();
    out.read_line(&mut line).expect("a second total");
    assert_eq!(lines(&line)[0]["value"], 42);
    assert!(child.wait().expect("it ends after two").success());
}

#[test]
fn create_shards_and_delete_work() {
    let server = Server::start();
    assert_eq!(server.quipu(&["counter", "create", "c", "--name", "a name"]).code, 0);
    assert_eq!(server.quipu(&["counter", "create", "c"]).code, 1);
    server.add("c", 9).expect(200);
    let ran = server.quipu(&["counter", "shards", "c", "--json"]);
    assert_eq!(lines(&ran.stdout)[0]["id"], "c", "{ran:?}");
    assert_eq!(server.quipu(&["counter", "delete", "c"]).code, 0);
    assert_eq!(server.quipu(&["counter", "get", "c"]).code, 1);
}

#[test]
fn rules_are_set_and_taken_back() {
    let server = Server::start();
    let ran = server.quipu(&["rule", "set", "stock/", "--spread", "1", "--min", "0"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = server.quipu(&["counter", "add", "stock/1", "-1"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("bound"), "{ran:?}");
    assert!(server.quipu(&["rule", "list"]).stdout.contains("stock/"));
    assert_eq!(server.quipu(&["rule", "delete", "stock/"]).code, 0);
    assert_eq!(server.quipu(&["rule", "rollback", "stock/"]).code, 0);
    assert_eq!(server.quipu(&["rule", "delete", ""]).code, 1);
    let ran = server.quipu(&["plugin", "list"]);
    assert!(ran.code == 0 && ran.stdout.contains("least-cpu") && ran.stdout.contains("cached-sum"), "{ran:?}");
    assert_eq!(server.quipu(&["plugin", "show", "sum"]).code, 0);
    assert_eq!(server.quipu(&["plugin", "show", "nobody"]).code, 1);
}

#[test]
fn the_token_is_sent() {
    let server = Launch::new().flag("--admin-token", "s3cret").start();
    let ran = server.quipu(&["cluster"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("unauthorized"), "{ran:?}");
    let ran = server.quipu(&["cluster", "--token", "s3cret"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains(&server.addr.to_string()), "{ran:?}");
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let server = Server::start();
    for wrong in [
        &["counter", "add"][..],
        &["counter", "add", "c", "1.5"],
        &["counter", "add", "c", "--key", ""],
        &["counter", "get", ""],
        &["counter", "list", "--limit", "0"],
        &["counter", "fly", "c"],
    ] {
        assert_eq!(server.quipu(wrong).code, 64, "{wrong:?}");
    }
    // A port that nobody listens on any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    for args in [&["counter", "get", "c"][..], &["counter", "add", "c"], &["cluster"]] {
        let ran = quipu(&[args, &["--url", &format!("http://{gone}")]].concat());
        assert_eq!(ran.code, 69, "{ran:?}");
        assert!(ran.stderr.contains(&gone.to_string()), "{ran:?}");
    }
    assert_eq!(quipu(&["counter", "get", "c", "--url", "no url"]).code, 64);
}
