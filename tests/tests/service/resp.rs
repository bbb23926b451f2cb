//! Clients of Redis: a real client library, and bytes that no library sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quipu_tests::{Launch, PATIENCE, Server, until};
use redis::{Commands, RedisResult, cmd};
use serde_json::json;

fn start() -> Server {
    launch().start()
}

fn launch() -> Launch {
    Launch::new().flag("--resp-listen", "127.0.0.1:0")
}

fn connect(addr: SocketAddr) -> redis::Connection {
    let client = redis::Client::open(format!("redis://{addr}/")).expect("an address");
    client.get_connection().expect("a connection")
}

/// Sends bytes and reads until the server has nothing more to say for a moment, or closes.
fn say(stream: &mut TcpStream, bytes: &[u8], replies: usize) -> String {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(bytes).expect("the connection is open");
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while heard.iter().filter(|&&byte| byte == b'\n').count() < replies {
        match stream.read(&mut buffer).expect("an answer") {
            0 => break,
            read => heard.extend_from_slice(&buffer[..read]),
        }
    }
    String::from_utf8(heard).expect("text")
}

fn code(result: RedisResult<i64>) -> String {
    result.expect_err("it must be refused").code().expect("a code").to_owned()
}

#[test]
fn counters_are_the_same_by_both_fronts() {
    let server = start();
    let mut client = connect(server.resp_addr());
    assert_eq!(client.incr::<_, _, i64>("likes/17", 5), Ok(5));
    assert_eq!(client.decr::<_, _, i64>("likes/17", 2), Ok(3));
    server.add("likes/17", 10).expect(200);
    assert_eq!(client.incr::<_, _, i64>("likes/17", 1), Ok(14));
    assert_eq!((client.get::<_, String>("likes/17"), server.total("likes/17")), (Ok("14".into()), 14));
    assert_eq!(client.get::<_, Option<i64>>("none"), Ok(None));
    assert_eq!(client.mget::<_, Vec<Option<i64>>>(&["none", "likes/17"]), Ok(vec![None, Some(14)]));
    assert_eq!(cmd("EXISTS").arg(&["none", "likes/17"]).query::<i64>(&mut client), Ok(1));
    assert_eq!(client.del::<_, i64>(&["none", "likes/17"]), Ok(1));
    server.get("/v1/counters/likes%2F17").problem(404, "counter_not_found");
    assert_eq!(client.incr::<_, _, i64>("likes/17", 1), Ok(1), "a removed counter begins at 0");
}

#[test]
fn an_addition_with_a_key_counts_once() {
    let server = start();
    let mut client = connect(server.resp_addr());
    let mut add = |amount: i64| cmd("QUIPU.ADD").arg("c").arg(amount).arg("KEY").arg("k1").query::<i64>(&mut client);
    assert_eq!((add(7), add(7)), (Ok(7), Ok(7)));
    assert_eq!(code(add(8)), "KEY_REUSED");
    // The key is the same one over HTTP.
    server.add_with_key("c", 7, "k1").expect(200);
    assert_eq!(server.total("c"), 7);
}

#[test]
fn refusals_have_the_codes_of_the_http_front() {
    let server = start();
    let mut client = connect(server.resp_addr());
    assert_eq!(client.incr::<_, _, i64>("c", i64::MAX), Ok(i64::MAX));
    let on_one_shard = json!({ "match": "stock/", "spread": 1, "min": 0 });
    server.set_rule(on_one_shard);
    assert_eq!(client.incr::<_, _, i64>("stock/a", 2), Ok(2));
    assert_eq!(code(client.decr("stock/a", 3)), "BOUND");
    assert_eq!(client.incr::<_, _, i64>("stock/big", i64::MAX), Ok(i64::MAX));
    assert_eq!(code(client.incr("stock/big", 1)), "OVERFLOW");
    assert_eq!(code(client.incr("x".repeat(513), 1)), "INVALID_ARGUMENT");
    assert!(cmd("SET").arg("c").arg(1).query::<()>(&mut client).expect_err("no set").to_string().contains("INCRBY"));
    assert_eq!(server.total("stock/a"), 2);
    assert_eq!(server.total("stock/big"), i64::MAX.into());
}

#[test]
fn on_one_shard_every_increment_has_its_own_answer() {
    const CLIENTS: i64 = 8;
    const EACH: i64 = 200;
    let server = start();
    server.set_rule(json!({ "match": "ids/", "spread": 1 }));
    let addr = server.resp_addr();
    let mut answers: Vec<i64> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(move || {
                    let mut client = connect(addr);
                    (0..EACH).map(|_| client.incr::<_, _, i64>("ids/a", 1).expect("a number")).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    answers.sort_unstable();
    let doubled = answers.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!((doubled, answers.len() as i64, answers.last()), (None, CLIENTS * EACH, Some(&(CLIENTS * EACH))));
}

#[test]
fn a_pipeline_is_answered_in_its_order() {
    let server = start();
    let mut client = connect(server.resp_addr());
    // Far more than are under way at once.
    let mut pipeline = redis::pipe();
    for n in 0..5_000 {
        pipeline.incr(format!("c{}", n % 7), 1);
    }
    let answers: Vec<i64> = pipeline.query(&mut client).expect("answers");
    assert_eq!(answers.len(), 5_000);
    assert_eq!((0..7).map(|n| server.total(&format!("c{n}"))).sum::<i128>(), 5_000);
    // What reads sees what was asked before it, and nothing that was asked after it.
    let mut pipeline = redis::pipe();
    pipeline.incr("x", 1).incr("x", 1).get("x").incr("x", 1).get("x").del("x").get("x").incr("x", 5);
    type Answers = (i64, i64, i64, i64, i64, i64, Option<i64>, i64);
    let answers: Answers = pipeline.query(&mut client).expect("answers");
    assert_eq!((answers.2, answers.4, answers.5, answers.6, answers.7), (2, 3, 1, None, 5));
}

#[test]
fn both_versions_of_the_protocol_are_spoken() {
    let server = start();
    let mut stream = TcpStream::connect(server.resp_addr()).expect("a connection");
    let get = b"*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n";
    assert_eq!(say(&mut stream, get, 1), "$-1\r\n");
    let hello = say(&mut stream, b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n", 18);
    assert!(hello.starts_with("%6\r\n$6\r\nserver\r\n$5\r\nquipu\r\n"), "{hello}");
    assert_eq!(say(&mut stream, get, 1), "_\r\n");
    assert_eq!(say(&mut stream, b"*1\r\n$4\r\nQUIT\r\n", 1), "+OK\r\n");
    assert_eq!(stream.read(&mut [0; 16]).expect("an end"), 0);
}

#[test]
fn what_is_no_command_ends_its_connection_and_counts_nothing() {
    let server = start();
    for bytes in ["GET / HTTP/1.1\r\nhost: x\r\n\r\n", "INCR c\r\n", "*1\r\n:5\r\n", "*2\r\n$4\r\nINCR\r\n$99999\r\n"] {
        let mut stream = TcpStream::connect(server.resp_addr()).expect("a connection");
        // What is whole before it is done and answered first.
        let mut sent = b"*2\r\n$9\r\nQUIPU.ADD\r\n$1\r\na\r\n".to_vec();
        sent.extend_from_slice(bytes.as_bytes());
        sent.extend_from_slice(b"*2\r\n$4\r\nINCR\r\n$1\r\nc\r\n");
        let heard = say(&mut stream, &sent, 3);
        let (first, rest) = heard.split_once("\r\n").expect("two replies");
        assert!(first.starts_with(':') && rest.starts_with("-ERR Protocol error: "), "{bytes:?}: {heard}");
        assert_eq!(rest.matches("\r\n").count(), 1, "nothing after it: {heard}");
    }
    assert_eq!(server.total("a"), 4);
    server.get("/v1/counters/c").problem(404, "counter_not_found");
}

#[test]
fn a_command_may_come_in_pieces() {
    let server = start();
    let mut stream = TcpStream::connect(server.resp_addr()).expect("a connection");
    for byte in b"*3\r\n$6\r\nINCRBY\r\n$1\r\nc\r\n$1\r\n" {
        stream.write_all(&[*byte]).expect("the connection is open");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(say(&mut stream, b"7\r\n", 1), ":7\r\n");
}

#[test]
fn a_sum_beyond_64_bits_is_counted_and_said_so() {
    let server = start();
    let mut client = connect(server.resp_addr());
    // Keyed additions go to the home shard: a counter whose others go to another one can hold more than 64 bits.
    let wide = (0..100).map(|n| format!("c{n}")).find(|id| {
        server.add_with_key(id, i64::MAX, "k").expect(200);
        server.add(id, 1).status == 200
    });
    let wide = wide.expect("one of a hundred");
    assert_eq!(code(client.incr(&wide, 1)), "COUNTED");
    let sum = i128::from(i64::MAX) + 2;
    assert_eq!((client.get::<_, String>(&wide), server.total(&wide)), (Ok(sum.to_string()), sum));
}

#[test]
fn a_client_that_stops_within_a_command_is_left_and_an_idle_one_stays() {
    let server = start();
    let mut idle = connect(server.resp_addr());
    let mut stuck = TcpStream::connect(server.resp_addr()).expect("a connection");
    stuck.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stuck.write_all(b"*2\r\n$4\r\nIN").expect("the connection is open");
    assert_eq!(stuck.read(&mut [0; 16]).expect("an end, and soon"), 0);
    assert_eq!(idle.incr::<_, _, i64>("c", 1), Ok(1));
}

#[test]
fn who_has_said_all_is_still_answered() {
    let server = start();
    let mut stream = TcpStream::connect(server.resp_addr()).expect("a connection");
    let command = b"*2\r\n$9\r\nQUIPU.ADD\r\n$1\r\nc\r\n";
    stream.write_all(&command.repeat(100)).expect("the connection is open");
    stream.shutdown(std::net::Shutdown::Write).expect("half of it is closed");
    let heard = say(&mut stream, b"", 101);
    assert_eq!((heard.matches("\r\n").count(), server.total("c")), (100, 100), "{heard}");
}

#[test]
fn sigterm_under_load_loses_nothing_that_was_answered() {
    let server = start();
    let (acknowledged, sent) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (addr, acknowledged, sent) = (server.resp_addr(), &acknowledged, &sent);
        for _ in 0..8 {
            scope.spawn(move || {
                let mut client = connect(addr);
                loop {
                    sent.fetch_add(1, Ordering::Relaxed);
                    if cmd("QUIPU.ADD").arg("c").query::<i64>(&mut client).is_err() {
                        return;
                    }
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        until("the load is under way", || acknowledged.load(Ordering::Relaxed) > 2_000);
        server.terminate();
    });
    let (ended, launch) = server.ended();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    let (acknowledged, sent) = (i128::from(acknowledged.into_inner()), i128::from(sent.into_inner()));
    let total = launch.start().total("c");
    assert!((acknowledged..=sent).contains(&total), "{acknowledged} {total} {sent}");
}

#[test]
fn idle_clients_do_not_hold_up_the_end() {
    let server = launch().flag("--drain-timeout", "10s").start();
    let mut idle = connect(server.resp_addr());
    assert_eq!(idle.incr::<_, _, i64>("c", 1), Ok(1));
    let mut stuck = TcpStream::connect(server.resp_addr()).expect("a connection");
    stuck.write_all(b"*2\r\n$4\r\nIN").expect("the connection is open");
    let began = std::time::Instant::now();
    let (ended, launch) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(launch.start().total("c"), 1);
}
