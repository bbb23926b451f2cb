//! Commands against a server that plays canned answers: what is sent, what is printed, and the exit code.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

/// Answers one connection each, in order, then closes its port. An empty answer closes the connection instead.
struct Server {
    url: String,
    requests: mpsc::Receiver<String>,
}

impl Server {
    fn new(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                let request = read_request(&stream);
                // The test may have ended.
                let _ = sender.send(request);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { url, requests }
    }

    fn request(&self) -> String {
        self.requests.recv_timeout(Duration::from_secs(10)).expect("a request")
    }

    fn further_request(&self) -> Option<String> {
        self.requests.try_recv().ok()
    }
}

fn read_request(stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header line");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        head.push_str(&line);
        if line == "\r\n" || line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    head + &String::from_utf8(body).expect("UTF-8")
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn ok(body: &str) -> String {
    answer("200 OK", "Content-Type: application/json\r\n", body)
}

fn problem(status: u16, code: &str, outcome: &str) -> String {
    let body = format!(
        r#"{{"title":"T","status":{status},"code":"{code}","detail":"It failed.","request_id":"r1","outcome":"{outcome}"}}"#
    );
    answer(&format!("{status} X"), "Content-Type: application/problem+json\r\n", &body)
}

fn events(data: &[&str]) -> String {
    let events: String = data.iter().map(|data| format!("event: total\ndata: {data}\n\n")).collect();
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: hello\n\n{events}")
}

struct Ran {
    code: u8,
    out: String,
    err: String,
}

const FAST: pace::Limits = pace::Limits {
    first_wait: Duration::from_millis(1),
    wait_max: Duration::from_millis(5),
    retry_for: Duration::from_secs(5),
    reconnect_for: Duration::from_secs(5),
};

fn run_at(url: &str, args: &[&str], style: output::Style, limits: pace::Limits) -> Ran {
    let line: Vec<&str> = ["quipu"].iter().chain(args).chain(&["--url", url]).copied().collect();
    let cli = Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{e}"));
    let Command::Client(command) = cli.command else { panic!("not a client command") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let style = output::Style { json: command.server().json, ..style };
    let code = run_with(&command, &mut Output::new(style, Box::new(&mut out), Box::new(&mut err)), limits);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code, out: text(out), err: text(err) }
}

fn run(server: &Server, args: &[&str]) -> Ran {
    run_at(&server.url, args, output::Style::default(), FAST)
}

#[test]
fn each_command_sends_one_request_and_prints_its_answer() {
    let table: &[(&[&str], &str, &str, &str)] = &[
        (
            &["counter", "add", "stock/1", "-3"],
            r#"{"id":"stock/1","amount":-3,"shard":7,"shard_value":12345,"outcome":"applied"}"#,
            r#"POST /v1/counter/add?id=stock%2F1 {"amount":-3}"#,
            "stock/1: -3 added (shard 7 holds 12345 of it)\n",
        ),
        (
            &["counter", "add", "c"],
            r#"{"outcome":"accepted"}"#,
            r#"POST /v1/counter/add?id=c {"amount":1}"#,
            "c: 1 accepted, readable when it is on disk\n",
        ),
        (
            &["counter", "get", "é"],
            r#"{"id":"é","value":1.8e19,"value_str":"18446744073709551617","exact":true}"#,
            "GET /v1/counter?id=%C3%A9 ",
            "18446744073709551617\n",
        ),
        (
            &["counter", "get", "c", "--cached", "250"],
            r#"{"value":7}"#,
            "GET /v1/counter?id=c&read=cached&max_age_ms=250 ",
            "7\n",
        ),
        (
            &["counter", "get", "a", "b"],
            r#"{"results":[{"id":"a","value":1,"exact":true},{"id":"b","value":-20,"exact":true}]}"#,
            r#"POST /v1/read {"ids":["a","b"]}"#,
            "COUNTER  TOTAL\na            1\nb          -20\n",
        ),
        (
            &["counter", "list", "--prefix", "a/", "--limit", "2"],
            r#"{"counters":[{"id":"a/1"},{"id":"a/\u001b[1m"}],"next_cursor":null}"#,
            "GET /v1/counters?limit=2&prefix=a%2F ",
            "COUNTER\na/1\na/\\u{1b}[1m\n",
        ),
        (
            &["counter", "create", "c", "--name", "Likes"],
            r#"{"id":"c","name":"Likes"}"#,
            r#"POST /v1/counters {"id":"c","name":"Likes"}"#,
            "c\n",
        ),
        (&["counter", "create"], r#"{"id":"0f"}"#, "POST /v1/counters {}", "0f\n"),
        (
            &["counter", "shards", "c"],
            r#"{"id":"c","partials":[{"shard":3,"value":10,"owner":"n1"},{"shard":11,"value":-1,"owner":null}]}"#,
            "GET /v1/counter/shards?id=c ",
            "SHARD  VALUE  OWNER\n    3     10  n1\n   11     -1\n",
        ),
        (
            &["cluster"],
            r#"{"health":"ok","format":1,"rules":[{"match":""},{"match":"a/"}],"nodes":[{"node":"n1","address":"127.0.0.1:8080","version":"0.1.0","cpu":0.256,"queued":3,"ready":true}],
                "shards":[{"shard":0,"owner":"n1","epoch":2,"counters":5,"journal_position":99}]}"#,
            "GET /v1/cluster ",
            "health  ok\nformat  1\nrules   2\n\nNODE  ADDRESS         VERSION   CPU  QUEUED  READY\n\
             n1    127.0.0.1:8080  0.1.0    26 %       3  yes\n\n\
             SHARD  OWNER  EPOCH  COUNTERS  JOURNAL\n    0  n1         2         5       99\n",
        ),
        (
            &["plugin", "list"],
            r#"{"plugins":[{"name":"sum","world":"aggregation","revision":"sha256:0123456789abcdef","size_bytes":9,
                "used_by":["","likes/"],"status":{"calls":4,"faults":{"trap":1,"deadline":2},"breaker":"closed"}}]}"#,
            "GET /v1/plugins ",
            "PLUGIN  WORLD        REVISION      BYTES  CALLS  FAULTS  BREAKER  RULES\n\
             sum     aggregation  0123456789ab      9      4       3  closed   \"\", likes/\n",
        ),
        (
            &["plugin", "show", "a b"],
            r#"{"plugins":[{"name":"a b","world":"selection","revision":"sha256:01","size_bytes":9,"imports":["metrics"],
                "used_by":[],"status":{"calls":4,"faults":{"trap":0},"latency":{"samples":1,"p50_ns":250}}}]}"#,
            "GET /v1/plugins/a%20b ",
            "a b sha256:01\n  world        selection\n  bytes        9\n  imports      metrics\n  calls        4\n  \
             faults       none\n  latency      p50 0.25 µs\n",
        ),
        (
            &["rule", "list"],
            r#"{"rules":[{"match":"","selection":{"plugin":"least-cpu","revision":"sha256:01"},"aggregation":{"plugin":"sum"},
                "spread":3,"durability":"durable","version":1}]}"#,
            "GET /v1/rules ",
            "MATCH  SELECTION     AGGREGATION  SPREAD  DURABILITY  VERSION\n\
             \"\"     least-cpu@01  sum               3  durable           1\n",
        ),
        (
            &[
                "rule",
                "set",
                "stock/",
                "--selection",
                "random@sha256:02",
                "--selection-config",
                "x",
                "--spread",
                "1",
                "--min",
                "-5",
            ],
            r#"{"match":"stock/","version":4}"#,
            r#"PUT /v1/rules {"match":"stock/","min":-5,"selection":{"config":"x","plugin":"random","revision":"sha256:02"},"spread":1}"#,
            "rule stock/: set (version 4)\n",
        ),
        (&["rule", "delete", "a&b"], "", "DELETE /v1/rules?match=a%26b ", "rule a&b: deleted\n"),
        (
            &["rule", "rollback", ""],
            r#"{"version":5}"#,
            "POST /v1/rules/rollback?match= ",
            "rule \"\": rolled back (version 5)\n",
        ),
    ];
    for (args, body, request, expected) in table {
        let server = Server::new(&[&ok(body)]);
        let ran = run(&server, args);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, *expected, ""), "{args:?}");
        let sent = server.request();
        let (head, sent_body) = sent.split_once("\r\n\r\n").expect("a head");
        let first = head.lines().next().expect("a line").strip_suffix("HTTP/1.1").expect("HTTP/1.1");
        assert_eq!(format!("{first}{sent_body}"), *request, "{args:?}");
        assert!(server.further_request().is_none(), "{args:?}");
    }
}

#[test]
fn deletion_has_no_body() {
    let server = Server::new(&["HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"]);
    let ran = run(&server, &["counter", "delete", "c"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "c: deleted\n"));
    assert!(server.request().starts_with("DELETE /v1/counter?id=c HTTP/1.1"));
}

#[test]
fn a_finalization_says_what_is_written_and_who_holds_it_back() {
    let n3 = r#"{"node":"n3","version":"0.1.0","reads_up_to":1}"#;
    for (format, before, held_back_by, code, out) in [
        (2, 1, "", 0, "format 2 is written from now on, instead of 1\n"),
        (2, 2, "", 0, "format 2 is written already, the newest that any node reads\n"),
        (
            1,
            1,
            n3,
            1,
            "format 1 stays\nnodes that do not read a newer one:\nNODE  VERSION  READS UP TO\nn3    0.1.0              1\n",
        ),
    ] {
        let answer = format!(r#"{{"format":{format},"before":{before},"newest":2,"held_back_by":[{held_back_by}]}}"#);
        let server = Server::new(&[&ok(&answer)]);
        let ran = run(&server, &["cluster", "finalize"]);
        assert!(server.request().starts_with("POST /v1/cluster/finalize "));
        assert_eq!((ran.code, ran.out.as_str()), (code, out), "{}", ran.err);
        assert_eq!(ran.err.contains("upgrade them first"), code == 1, "{}", ran.err);
    }
}

#[test]
fn json_is_the_answer_of_the_server_on_one_line() {
    let body = "{\"id\":\"c\",\n \"value\":18446744073709551617}\n";
    let server = Server::new(&[&ok(body)]);
    let ran = run(&server, &["counter", "get", "c", "--json"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "{\"id\":\"c\",  \"value\":18446744073709551617}\n"));
}

#[test]
fn terminals_get_thousands_separators_and_colours() {
    let cluster = r#"{"health":"unavailable","shards":[{"shard":2,"journal_position":1234567}]}"#;
    let style = output::Style { terminal: true, colour: true, colour_errors: true, json: false };
    let ran = run_at(&Server::new(&[&ok(cluster)]).url, &["cluster"], style, FAST);
    assert!(ran.out.contains("\x1b[31munavailable\x1b[0m"), "{}", ran.out);
    assert!(ran.out.contains("1,234,567") && ran.out.contains("\x1b[1mSHARD"), "{}", ran.out);
    let ran = run_at(&Server::new(&[&ok(r#"{"value":1000}"#)]).url, &["counter", "get", "c"], style, FAST);
    assert_eq!(ran.out, "1,000\n");
}

#[test]
fn refusals_are_one_sentence_with_code_and_advice() {
    for (status, code, advice) in [
        (404, "counter_not_found", "quipu counter add"),
        (401, "unauthorized", "--token"),
        (409, "bound", "nothing was changed"),
        (418, "something_new", ""),
    ] {
        let ran = run(&Server::new(&[&problem(status, code, "not_applied")]), &["counter", "get", "c"]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.starts_with(&format!("error: It failed ({code}, request r1)")), "{}", ran.err);
        assert!(ran.err.contains(advice) && ran.err.lines().count() == 1, "{}", ran.err);
    }
    let ran =
        run(&Server::new(&[&problem(404, "counter_not_found", "not_applied")]), &["counter", "get", "c", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.err).expect("JSON");
    assert_eq!((error["code"].as_str(), error["status"].as_u64()), (Some("counter_not_found"), Some(404)));
}

#[test]
fn one_of_several_reads_may_fail() {
    let body = r#"{"results":[{"id":"a","value":1},{"id":"b","outcome":"not_applied","error":{"status":404,"code":"counter_not_found","detail":"There is no b."}}]}"#;
    let apart = [ok(r#"{"id":"a","value":1}"#), problem(404, "counter_not_found", "not_applied")];
    let server = Server::new(&[&apart[0], &apart[1]]);
    let ran = run(&server, &["counter", "get", "a", "b", "--cached", "9"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "COUNTER  TOTAL\na            1\n"));
    assert!(ran.err.contains("b: It failed (counter_not_found, request r1)"), "{}", ran.err);
    let ran = run(&Server::new(&[&ok(body)]), &["counter", "get", "a", "b"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "COUNTER  TOTAL\na            1\n"));
    assert!(
        ran.err.contains("b: There is no b (counter_not_found)") && ran.err.contains("1 of 2 failed"),
        "{}",
        ran.err
    );
}

#[test]
fn a_server_that_is_away_is_69() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    for args in [["counter", "get", "c"].as_slice(), &["counter", "add", "c", "--key", "k"], &["counter", "watch", "c"]]
    {
        let ran = run_at(&url, args, output::Style::default(), FAST);
        assert_eq!(ran.code, 69, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(&url) && ran.err.contains("quipu serve"), "{}", ran.err);
    }
    let ran = run_at("http://nowhere.invalid", &["counter", "get", "c"], output::Style::default(), FAST);
    assert_eq!(ran.code, 69, "{}", ran.err);
}

#[test]
fn wrong_usage_is_64_and_sends_nothing() {
    let long = "x".repeat(513);
    for (args, url) in [
        (["counter", "get", ""].as_slice(), "http://127.0.0.1:1"),
        (&["counter", "add", &long], "http://127.0.0.1:1"),
        (&["counter", "add", "c", "--key", ""], "http://127.0.0.1:1"),
        (&["counter", "add", "c", "--key", "a\nb"], "http://127.0.0.1:1"),
        (&["counter", "get", "c", "--token", "a b"], "http://127.0.0.1:1"),
        (&["counter", "get", "c"], "ftp://x"),
        (&["counter", "get", "c"], "http://a/?q"),
        (&["counter", "get", "c"], "8080"),
    ] {
        let ran = run_at(url, args, output::Style::default(), FAST);
        assert_eq!(ran.code, 64, "{args:?} {url}: {}", ran.err);
    }
}

#[test]
fn an_answer_of_somebody_else_is_told() {
    let ran = run(&Server::new(&[&answer("404 X", "", "<html>")]), &["counter", "add", "c"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("HTTP 404 without a problem document") && !ran.err.contains("may or may not"),
        "{}",
        ran.err
    );
    let ran = run(&Server::new(&[&ok("<html>")]), &["counter", "get", "c"]);
    assert!(ran.err.contains("no JSON"), "{}", ran.err);
}

#[test]
fn an_addition_without_a_key_is_never_sent_twice() {
    for answer in [problem(503, "unknown_outcome", "unknown"), String::new(), answer("502 X", "", "<html>")] {
        let server = Server::new(&[&answer, &ok("{}")]);
        let ran = run(&server, &["counter", "add", "c"]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains("may or may not have been counted, and was not sent again"), "{}", ran.err);
        server.request();
        assert!(server.further_request().is_none());
    }
}

#[test]
fn an_addition_with_a_key_is_sent_until_its_outcome_is_known() {
    let replay =
        answer("200 OK", "Idempotency-Replayed: true\r\n", r#"{"outcome":"applied","shard":1,"shard_value":5}"#);
    let busy = problem(503, "unavailable", "not_applied").replacen("\r\n", "\r\nRetry-After: 1\r\n", 1);
    let server = Server::new(&[&problem(503, "unknown_outcome", "unknown"), "", &busy, &replay]);
    let ran = run(&server, &["counter", "add", "c", "5", "--key", "ordér 7"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "c: 5 was added before under this key; nothing was added now\n"));
    assert_eq!(ran.err.matches("trying again with the same key").count(), 3, "{}", ran.err);
    for _ in 0..4 {
        let request = server.request();
        assert!(request.contains("idempotency-key: ordér 7\r\n") && request.ends_with(r#"{"amount":5}"#), "{request}");
    }
}

#[test]
fn a_refusal_ends_the_retries() {
    let server =
        Server::new(&[&problem(503, "unknown_outcome", "unknown"), &problem(422, "key_reused", "not_applied")]);
    let ran = run(&server, &["counter", "add", "c", "--key", "k"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.lines().last().expect("a line").contains("(key_reused, request r1)"), "{}", ran.err);
}

#[test]
fn retries_end_and_leave_the_outcome_open() {
    let limits = pace::Limits { retry_for: Duration::ZERO, ..FAST };
    let server = Server::new(&[&problem(503, "unknown_outcome", "unknown")]);
    let ran = run_at(&server.url, &["counter", "add", "c", "--key", "k"], output::Style::default(), limits);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("after 1 attempts") && ran.err.contains("--key k again"), "{}", ran.err);
}

#[test]
fn all_pages_are_listed() {
    let first = ok(r#"{"counters":[{"id":"a"}],"next_cursor":"x/y"}"#);
    let last = ok(r#"{"counters":[{"id":"b"}],"next_cursor":null}"#);
    let server = Server::new(&[&first, &last]);
    let ran = run(&server, &["counter", "list", "--all"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "COUNTER\na\nb\n"));
    server.request();
    assert!(server.request().starts_with("GET /v1/counters?limit=100&cursor=x%2Fy "));
    let ran = run(&Server::new(&[&first]), &["counter", "list"]);
    assert!(ran.code == 0 && ran.err.contains("--all"), "{}", ran.err);
    let ran = run(&Server::new(&[&first, &first, &first]), &["counter", "list", "--all"]);
    assert!(ran.code == 1 && ran.err.contains("does not advance"), "{}", ran.err);
}

#[test]
fn a_watch_connects_anew_and_repeats_nothing() {
    let server = Server::new(&[
        &events(&[r#"{"value":1}"#, r#"{"value":2}"#]),
        &problem(503, "unavailable", "not_applied"),
        "",
        &events(&[r#"{"value":2}"#, r#"{"value":4}"#]),
    ]);
    let ran = run(&server, &["counter", "watch", "a/b", "--count", "3"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "1\n2\n4\n"), "{}", ran.err);
    let request = server.request();
    assert!(
        request.starts_with("GET /v1/counter/watch?id=a%2Fb ") && request.contains("text/event-stream"),
        "{request}"
    );
}

#[test]
fn a_watch_ends_when_the_counter_is_gone() {
    let server = Server::new(&[&events(&[r#"{"value":1}"#]), &problem(404, "counter_not_found", "not_applied")]);
    let ran = run(&server, &["counter", "watch", "c", "--json"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "{\"value\":1}\n"));
}

#[test]
fn the_token_is_sent_as_a_bearer() {
    let server = Server::new(&[&ok("{}")]);
    run(&server, &["rule", "set", "a", "--token", "secret", "--if-version", "3"]);
    let request = server.request().to_ascii_lowercase();
    assert!(
        request.contains("authorization: bearer secret\r\n") && request.contains("if-match: \"3\"\r\n"),
        "{request}"
    );
}
