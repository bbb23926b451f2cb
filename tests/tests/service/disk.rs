//! A disk that is full or cannot be written, and directories that cannot be used.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quipu_tests::volume::Volume;
use quipu_tests::{Answer, Launch, Server, until, within};
use serde_json::json;

/// How long one failing addition may take: the deadline of an operation, and some.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// Adds and remembers what the caller knows of it.
#[derive(Default)]
struct Ledger {
    acknowledged: i128,
    unknown: i128,
    codes: BTreeMap<String, u32>,
}

impl Ledger {
    fn note(&mut self, answer: &Answer) {
        if answer.status == 200 {
            self.acknowledged += 1;
            return;
        }
        assert!(matches!(answer.status, 503 | 429), "{}: {}", answer.status, answer.text());
        let code = answer.json()["code"].as_str().expect("a code").to_owned();
        let problem = answer.problem(answer.status, &code);
        assert!(answer.header("retry-after").is_some(), "{problem}");
        self.unknown += i128::from(problem["outcome"] == "unknown");
        *self.codes.entry(code).or_default() += 1;
    }

    fn add(&mut self, server: &Server, id: &str) -> u16 {
        let began = Instant::now();
        let answer = server.add(id, 1);
        assert!(began.elapsed() < ANSWERED_WITHIN, "answered after {:?}", began.elapsed());
        self.note(&answer);
        answer.status
    }

    #[track_caller]
    fn check(&self, server: &Server, id: &str) {
        let total = server.total(id);
        let most = self.acknowledged + self.unknown;
        assert!(
            (self.acknowledged..=most).contains(&total),
            "{total}, {} to {most}; {:?}",
            self.acknowledged,
            self.codes
        );
    }
}

/// Many counters with long ids: the journal and its checkpoints grow by megabytes.
fn big_batch(round: u64) -> serde_json::Value {
    let ops: Vec<_> = (0..5_000).map(|n| json!({ "id": format!("fill/{round}/{n}/{}", "x".repeat(400)) })).collect();
    json!({ "ops": ops })
}

#[test]
fn a_full_disk_loses_nothing_and_heals_without_a_restart() {
    let Some(volume) = Volume::mount(128) else { return };
    let server = Launch::new().data_dir(volume.path().join("data")).start();
    let mut ledger = Ledger::default();
    for _ in 0..50 {
        assert_eq!(ledger.add(&server, "c"), 200);
    }
    let filler = volume.fill(0);
    // What was prepared before the disk was full may still be used; then no more is acknowledged.
    let mut batches: Vec<(u64, Answer)> = Vec::new();
    for round in 0..60 {
        let answer = server.post("/v1/batch", big_batch(round));
        let failed = answer.status != 200
            || answer.json()["results"].as_array().expect("a list").iter().any(|r| r.get("error").is_some());
        batches.push((round, answer));
        if failed {
            break;
        }
    }
    let (_, last) = batches.last().expect("at least one");
    let refused = last.status != 200 || last.json()["results"][0]["error"].is_object();
    assert!(refused, "{} batches of 2 MB fit on a full disk", batches.len());
    let error = if last.status == 200 { last.json()["results"][0].clone() } else { last.json() };
    assert!(matches!(error["outcome"].as_str(), Some("not_applied" | "unknown")), "{error}");
    println!("full after {} batches: {} {}", batches.len(), error["outcome"], error["error"]);
    for _ in 0..20 {
        ledger.add(&server, "c");
    }
    // Reads go on.
    ledger.check(&server, "c");
    server.get("/healthz").expect(200);
    server.get("/metrics").expect(200);
    drop(filler);
    within(Duration::from_secs(90), "service resumes when there is space", || {
        (ledger.add(&server, "c") == 200).then_some(())
    });
    until("it is ready", || server.get("/readyz").status == 200);
    for _ in 0..50 {
        assert_eq!(ledger.add(&server, "c"), 200, "{:?}", ledger.codes);
    }
    ledger.check(&server, "c");
    // What each batch's answer said is so, now and after a crash.
    let check_batches = |server: &Server| {
        for (round, answer) in &batches {
            let id = format!("fill/{round}/7/{}", "x".repeat(400));
            let read = server.post("/v1/read", json!({ "ids": [id] })).expect(200).json();
            let result = &read["results"][0];
            let (applied, unknown) = match answer.status {
                200 => {
                    let result = &answer.json()["results"][7];
                    (result["outcome"] == "applied", result["outcome"] == "unknown")
                }
                _ => (false, answer.json()["outcome"] == "unknown"),
            };
            match result["value"].as_i64() {
                Some(value) => assert!(value == 1 && (applied || unknown), "{round}: {value}"),
                None => assert!(!applied, "{round}: lost"),
            }
        }
    };
    check_batches(&server);
    let server = server.crash_and_restart();
    ledger.check(&server, "c");
    check_batches(&server);
    println!("answers while the disk was full: {:?}", ledger.codes);
}

/// Limits how large files may grow that this process writes: with 0, every write to a file fails. Reads are not touched.
fn limit_file_size(server: &Server, limit: Option<u64>) {
    let limit = rustix::process::Rlimit { current: limit, maximum: None };
    let pid = rustix::process::Pid::from_raw(server.pid() as i32);
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).expect("our own child's soft limit");
}

/// The signal that comes with a too large file must not kill: programs inherit that it is ignored.
fn start_ignoring_the_file_size_signal(launch: Launch) -> Server {
    launch.wrapped(["/bin/sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).start()
}

#[test]
fn failing_writes_are_unknown_and_heal_without_a_restart() {
    let server = start_ignoring_the_file_size_signal(Launch::new());
    let mut ledger = Ledger::default();
    for _ in 0..20 {
        assert_eq!(ledger.add(&server, "c"), 200);
    }
    // On which shards it has no partial is known from the first read on.
    ledger.check(&server, "c");
    for round in 0..3 {
        limit_file_size(&server, Some(0));
        for _ in 0..10 {
            assert_ne!(ledger.add(&server, "c"), 200, "no write can succeed");
        }
        assert_eq!(server.total("c"), server.total("c"), "reads go on");
        ledger.check(&server, "c");
        assert_eq!(server.get("/healthz").status, 200);
        limit_file_size(&server, None);
        within(Duration::from_secs(90), "service resumes", || (ledger.add(&server, "c") == 200).then_some(()));
        until("it is ready", || server.get("/readyz").status == 200);
        for _ in 0..20 {
            assert_eq!(ledger.add(&server, "c"), 200, "round {round}: {:?}", ledger.codes);
        }
        ledger.check(&server, "c");
    }
    assert!(ledger.unknown > 0, "the first failing write of each round is unknown: {:?}", ledger.codes);
    assert!(server.metrics().value("quipu_store_recoveries_total") >= 3.0);
    println!("answers while writes failed: {:?}", ledger.codes);
    let server = server.crash_and_restart();
    ledger.check(&server, "c");
}

#[test]
fn keys_settle_what_was_unknown() {
    let server = start_ignoring_the_file_size_signal(Launch::new());
    server.add_with_key("c", 1, "before").expect(200);
    for round in 0..5 {
        let key = format!("k{round}");
        limit_file_size(&server, Some(0));
        let answer = server.add_with_key("c", 1, &key);
        assert_eq!(answer.status, 503, "{}", answer.text());
        limit_file_size(&server, None);
        within(Duration::from_secs(90), "the same key is answered", || {
            (server.add_with_key("c", 1, &key).status == 200).then_some(())
        });
        server.add_with_key("c", 1, &key).expect(200);
        let asked = server.get(&format!("/v1/operations/{key}?counter_id=c")).expect(200).json();
        assert_eq!(asked["outcome"], "applied");
    }
    assert_eq!(server.total("c"), 6);
    let server = server.crash_and_restart();
    assert_eq!(server.total("c"), 6);
}

#[test]
fn failing_writes_under_load_lose_nothing() {
    let server = start_ignoring_the_file_size_signal(Launch::new());
    let done = AtomicU64::new(0);
    let ledger = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let (server, done) = (&server, &done);
                scope.spawn(move || {
                    let mut ledger = Ledger::default();
                    let mut client = server.client();
                    while done.load(Ordering::Relaxed) == 0 {
                        let answer = client.call("POST", "/v1/counters/c/add", &[], b"").expect("an answer");
                        ledger.note(&answer);
                    }
                    ledger
                })
            })
            .collect();
        for _ in 0..4 {
            let applied = server.metrics().value("quipu_operations_total");
            until("the load counts", || server.metrics().value("quipu_operations_total") > applied + 200.0);
            limit_file_size(&server, Some(0));
            until("the store fails", || server.get("/readyz").status == 503);
            limit_file_size(&server, None);
            within(Duration::from_secs(90), "it is ready again", || {
                (server.get("/readyz").status == 200).then_some(())
            });
        }
        done.store(1, Ordering::Relaxed);
        let ledgers = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        ledgers.fold(Ledger::default(), |mut all, one| {
            all.acknowledged += one.acknowledged;
            all.unknown += one.unknown;
            one.codes.into_iter().for_each(|(code, count)| *all.codes.entry(code).or_default() += count);
            all
        })
    });
    println!("{} acknowledged, {} unknown, {:?}", ledger.acknowledged, ledger.unknown, ledger.codes);
    ledger.check(&server, "c");
    let server = server.crash_and_restart();
    ledger.check(&server, "c");
}

/// A start that is refused: non-zero, without a panic, and said in one line that holds `text`.
#[track_caller]
fn refused(launch: Launch, text: &str) {
    let ended = launch.try_start().err().expect("it must not start");
    assert!(ended.code() > 0, "{}: {}", ended.status, ended.output);
    assert!(!ended.output.contains("panicked"), "{}", ended.output);
    let said: Vec<&str> = ended.output.lines().filter(|line| line.starts_with("quipu: ")).collect();
    assert_eq!(said.len(), 1, "one sentence: {}", ended.output);
    assert!(said[0].contains(text), "{text:?}: {}", said[0]);
}

#[test]
fn a_directory_serves_one_process() {
    let server = Server::start();
    server.add("c", 1).expect(200);
    refused(server.launch.clone(), "in use");
    assert_eq!(server.total("c"), 1);
    let launch = server.kill();
    assert_eq!(launch.start().total("c"), 1, "the lock ends with its process");
}

#[test]
fn the_number_of_shards_is_fixed() {
    let server = Launch::new().flag("--shards", "5").start();
    server.add("c", 1).expect(200);
    let launch = server.kill();
    let other = Launch::new().flag("--shards", "7").data_dir(launch.data());
    let ended = other.try_start().err().expect("it must not start");
    assert!(ended.code() > 0 && ended.output.contains('5') && ended.output.contains('7'), "{}", ended.output);
    refused(other, "shards");
    assert_eq!(launch.start().total("c"), 1);
}

#[test]
fn a_newer_format_is_refused() {
    let launch = Server::start().kill();
    let format = std::fs::read_dir(launch.data()).expect("a directory").filter_map(Result::ok);
    let format = format
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.eq_ignore_ascii_case("format")));
    let format = format.expect("a file that tells the format");
    let text = std::fs::read_to_string(&format).expect("text");
    let newer: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_ne!(newer, text, "{text:?}");
    std::fs::write(&format, newer).expect("a writable file");
    refused(launch.clone(), "format");
    std::fs::write(&format, text).expect("a writable file");
    launch.start().add("c", 1).expect(200);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let launch = Launch::new();
    let file = launch.scratch().join("a-file");
    std::fs::write(&file, "x").expect("a file");
    refused(launch.clone().data_dir(&file), "a-file");
    refused(launch.data_dir(file.join("below")), "a-file");
}

#[test]
fn a_read_only_disk_is_refused_and_usable_when_it_is_writable() {
    let Some(volume) = Volume::mount(128) else { return };
    let server = Launch::new().data_dir(volume.path().join("data")).start();
    server.add("c", 7).expect(200);
    let launch = server.kill();
    if let Err(why) = volume.make_read_only() {
        println!("skipped: the volume cannot be made read-only ({why})");
        return;
    }
    refused(launch.clone(), "data");
    volume.make_writable().expect("as it was before");
    let server = launch.start();
    assert_eq!(server.total("c"), 7);
    server.add("c", 1).expect(200);
}

#[test]
fn damage_is_told_and_not_served() {
    let server = Server::start();
    for n in 0..2_000 {
        server.add(&format!("c{}", n % 50), 1).expect(200);
    }
    let launch = server.kill();
    // A byte of a journal entry in the middle: entries before and behind it are whole.
    let found = Command::new("grep").args(["-rlaF", "c17"]).arg(launch.data()).output().expect("grep");
    let found = String::from_utf8_lossy(&found.stdout).lines().next().expect("a file with the journal").to_owned();
    let mut bytes = std::fs::read(&found).expect("a file");
    let at: Vec<usize> =
        bytes.windows(3).enumerate().filter(|(_, window)| *window == b"c17").map(|(at, _)| at).collect();
    bytes[at[at.len() / 2] + 1] ^= 0x20;
    std::fs::write(&found, bytes).expect("a writable file");
    let ended = launch.try_start().err().expect("it must not serve from a damaged journal");
    assert!(ended.code() > 0, "{}: {}", ended.status, ended.output);
    assert!(!ended.output.contains("panicked"), "{}", ended.output);
    assert!(ended.output.lines().any(|line| line.starts_with("quipu: ")), "{}", ended.output);
}
