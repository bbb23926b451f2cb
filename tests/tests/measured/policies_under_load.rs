//! Policies that are exchanged, or misbehave, while others count: the load loses nothing, fails nothing, and is hardly slowed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quipu_tests::components::{HOSTILE_WAYS, builtin, guest, push, uploaded, variant};
use quipu_tests::{Launch, PATIENCE, Server, encode, within};
use serde_json::json;

/// How much is done. `QUIPU_FULL_SIZE=1` is the size that the service has to stand; the default is for every day.
struct Size {
    connections: usize,
    swaps: u32,
    uploads: u32,
    /// Load before the first swap, for memory that grows with the journal up to its bound.
    warm_up: Duration,
    /// Of resident memory, beyond the tenth that it may grow.
    slack_bytes: u64,
}

impl Size {
    fn of_this_run() -> Self {
        if std::env::var_os("QUIPU_FULL_SIZE").is_some() {
            let warm_up = Duration::from_secs(30);
            Self { connections: 64, swaps: 1_000, uploads: 100, warm_up, slack_bytes: 0 }
        } else {
            // Without the wait, not everything is warm after fifty swaps.
            Self { connections: 16, swaps: 200, uploads: 10, warm_up: Duration::ZERO, slack_bytes: 8 << 20 }
        }
    }
}

/// Swaps between two revisions, uploads, a canary that misbehaves and rollbacks, all under constant load: three connections
/// of four add under the rule that is swapped, the others under the one that has the canary.
#[test]
fn swaps_under_load_lose_and_fail_nothing() {
    let size = Size::of_this_run();
    // With a cache of its own, so that every upload is compiled, as the built-in policies are before the first reading.
    let launch = Launch::new();
    let cache = launch.scratch().join("cache");
    let server = launch.flag("--cache-dir", cache.to_str().expect("a path of ours is text")).start();
    let base = builtin("round-robin");
    let revisions = [0, 1].map(|n| uploaded(&server, "mine", &variant(&base, n)));
    let rule = |revision: &str| json!({ "match": "load/", "spread": 4, "selection": { "plugin": "mine", "revision": revision } });
    server.set_rule(rule(&revisions[0]));
    let ids: Vec<String> = (0..size.connections)
        .map(|n| if n % 4 == 3 { format!("canary/{n}/trap-in-select") } else { format!("load/{}", n % 4) })
        .collect();
    let stop = AtomicBool::new(false);
    let (mut early, mut counted) = (0, BTreeMap::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = ids
            .iter()
            .map(|id| {
                let (server, stop) = (&server, &stop);
                scope.spawn(move || {
                    let mut client = server.client();
                    let target = format!("/v1/counters/{}/add", encode(id));
                    let mut added = 0;
                    while !stop.load(Ordering::Relaxed) {
                        client.call("POST", &target, &[], b"{}").expect("an answer").expect(200);
                        added += 1;
                    }
                    added
                })
            })
            .collect();
        std::thread::sleep(size.warm_up);
        let mut pushed = 0;
        for swap in 0..size.swaps {
            server.set_rule(rule(&revisions[(swap % 2) as usize]));
            if swap == 50 {
                early = server.resident_bytes();
            }
            while pushed * size.swaps < size.uploads * swap {
                push(&server, "mine", &variant(&base, pushed as u8 + 2)).expect(201);
                pushed += 1;
            }
            if swap % 50 == 25 {
                server.call("POST", "/v1/rules/rollback?match=load%2F", &[], b"").expect(200);
            }
            if swap == size.swaps / 2 {
                canary_comes_and_goes(&server);
            }
        }
        stop.store(true, Ordering::Relaxed);
        for (id, worker) in ids.iter().zip(workers) {
            *counted.entry(id).or_insert(0) += worker.join().expect("every addition was answered well");
        }
    });
    for (id, &counted) in &counted {
        assert_eq!(server.total(id), counted, "{id}");
    }
    let total: i128 = counted.values().sum();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{} swaps, {} uploads, {total} additions over {} connections, resident {:.1} MiB after 50 swaps, {:.1} MiB with the last",
        size.swaps,
        size.uploads,
        size.connections,
        mib(early),
        mib(server.resident_bytes())
    );
    let bound = early + early / 10 + size.slack_bytes;
    let late = within(Duration::from_secs(20), "what the swaps left behind is freed", || {
        // Each serving thread lets go of the last rule with its next request.
        (0..8).for_each(|n| drop(server.add(&format!("after/{n}"), 1).expect(200)));
        Some(server.resident_bytes()).filter(|&late| late <= bound)
    });
    println!("then {:.1} MiB", mib(late));
}

/// A canary that traps for counters under load, where the stable revision does not, is taken back by itself; then the rule
/// is rolled back.
fn canary_comes_and_goes(server: &Server) {
    let good = uploaded(server, "shaky", &guest("first-candidate"));
    let bad = uploaded(server, "shaky", &guest("misbehaves-selection"));
    let selection = json!({ "plugin": "shaky", "revision": good, "config": "as-the-counter-says" });
    server.set_rule(json!({ "match": "canary/", "spread": 3, "selection": selection }));
    server.set_rule(json!({
        "match": "canary/", "spread": 3, "selection": selection, "canary": { "revision": bad, "percent": 50 },
    }));
    let shown = || {
        let rules = server.get("/v1/rules").expect(200).json();
        rules["rules"].as_array().expect("a list").iter().find(|rule| rule["match"] == "canary/").cloned()
    };
    let ended = within(Duration::from_secs(20), "the canary is taken back", || {
        let rule = shown().expect("the rule is there");
        rule["canary_ended"].as_str().map(str::to_owned).filter(|_| rule["canary"].is_null())
    });
    assert!(ended.contains("trap"), "{ended}");
    server.call("POST", "/v1/rules/rollback?match=canary%2F", &[], b"").expect(200);
}

/// The 99th percentile of additions under another rule beside each way to misbehave, over that beside the same policy where
/// it behaves: in pairs that follow each other, since a machine has its moods, and as many of them as it takes to tell. At full
/// size the median of the pairs is held to a tenth more; always all additions are counted, and the other rule's policy chose.
/// `QUIPU_HOSTILE_WAYS`, words with commas between them, measures these alone.
#[test]
fn hostile_policies_leave_other_rules_alone() {
    let full = std::env::var_os("QUIPU_FULL_SIZE").is_some();
    let (each, pairs) = if full { (12_000, 11..=61) } else { (400, 1..=1) };
    let server = Server::start();
    let hostile = uploaded(&server, "hostile", &guest("misbehaves-selection"));
    let selection = json!({ "plugin": "hostile", "config": "as-the-counter-says" });
    let set_rule = |rule: &str| server.set_rule(json!({ "match": rule, "spread": 4, "selection": selection }));
    // Where it behaves it stays on the serving threads, whatever becomes of it under the other rule.
    set_rule("fine/");
    // Again and again: what was moved to the pool begins on the serving threads.
    set_rule("bad/");
    let release = format!("/v1/plugins/hostile/{}/release", encode(&hostile));
    let beside = |how: &str| {
        // Each time it is asked again, until its breaker opens.
        server.call("POST", &release, &[], b"").expect(200);
        let id = if how == "fine" { "fine/fine".to_owned() } else { format!("bad/{how}") };
        additions_beside(&server, &id, each).as_secs_f64()
    };
    beside("fine");
    let mut slowed = Vec::new();
    let only = std::env::var("QUIPU_HOSTILE_WAYS").ok();
    let asked = |how: &&str| only.as_ref().is_none_or(|only| only.split(',').any(|word| word == *how));
    let ways: Vec<_> = HOSTILE_WAYS.into_iter().chain(["keep-every-request"]).filter(asked).collect();
    assert!(!ways.is_empty(), "QUIPU_HOSTILE_WAYS names none of {HOSTILE_WAYS:?}");
    for how in ways {
        set_rule("bad/");
        let mut ratios = Vec::new();
        let (least, median, most) = loop {
            // Either comes first as often.
            let (first, second) = if ratios.len() % 2 == 0 { (how, "fine") } else { ("fine", how) };
            let (one, other) = (beside(first), beside(second));
            ratios.push(if first == how { one / other } else { other / one });
            ratios.sort_by(f64::total_cmp);
            let (least, median, most) = median_of(&ratios);
            let told = most <= 1.1 || least > 1.1;
            if ratios.len() >= *pairs.end() || told && ratios.len() >= *pairs.start() {
                break (least, median, most);
            }
        };
        println!(
            "99th percentile of {each} additions beside {how}, over that beside a good policy: {median:.2} \
             ({least:.2} to {most:.2}, {} pairs)",
            ratios.len()
        );
        if median > 1.1 {
            slowed.push(how);
        }
    }
    assert!(slowed.is_empty() || !full, "slowed by more than a tenth beside {slowed:?}");
}

/// A policy that answers well and takes its time is moved out of the way, and goes on choosing.
#[test]
fn a_policy_that_keeps_serving_threads_busy_goes_on_on_the_pool() {
    let server = Server::start();
    let revision = uploaded(&server, "hostile", &guest("misbehaves-selection"));
    // Its dry run, whose counters have other names, sees nothing of it.
    let selection = json!({ "plugin": "hostile", "config": "as-the-counter-says" });
    server.set_rule(json!({ "match": "slow/", "spread": 3, "selection": selection }));
    let on_pool = || {
        let listed = server.get("/v1/rules").expect(200).json();
        let rules = listed["rules"].as_array().expect("a list");
        rules.iter().find(|rule| rule["match"] == "slow/").expect("it was set")["on_pool"][0].clone()
    };
    assert!(on_pool().is_null(), "{}", on_pool());
    let mut added = 0;
    let mut add = || {
        server.add("slow/busy-40-us", 1).expect(200);
        added += 1;
    };
    within(PATIENCE, "it is moved", || {
        (0..500).for_each(|_| add());
        (!on_pool().is_null()).then_some(())
    });
    assert_eq!(on_pool()["revision"], revision);
    assert!(on_pool()["because"].as_str().is_some_and(|why| why.contains("serving thread")), "{}", on_pool());
    (0..100).for_each(|_| add());
    let server = server.crash_and_restart();
    assert_eq!(server.total("slow/busy-40-us"), added);
    let listed = server.get("/v1/rules").expect(200).text();
    assert!(listed.contains("on_pool"), "it begins there at the next start: {listed}");
}

/// The median of sorted values, and the bounds that it lies within in 19 of 20 draws: the sign test.
fn median_of(sorted: &[f64]) -> (f64, f64, f64) {
    let n = sorted.len();
    // How likely so few of n draws are below the true median.
    let (mut outside, mut exactly, mut few) = (0.0, 0.5f64.powi(n as i32), 0);
    while few < n / 2 && outside + exactly <= 0.025 {
        outside += exactly;
        exactly *= (n - few) as f64 / (few + 1) as f64;
        few += 1;
    }
    let out = few.saturating_sub(1);
    (sorted[out], sorted[n / 2], sorted[n - 1 - out])
}

#[test]
fn bounds_of_a_median_are_those_of_the_sign_test() {
    let values = |n: usize| (1..=n).map(|value| value as f64).collect::<Vec<_>>();
    assert_eq!(median_of(&values(1)), (1.0, 1.0, 1.0));
    assert_eq!(median_of(&values(11)), (2.0, 6.0, 10.0));
    assert_eq!(median_of(&values(61)), (23.0, 31.0, 39.0));
}

/// What the service says of failures of policies.
fn faults(server: &Server) -> String {
    let metrics = server.get("/metrics").expect(200).text();
    metrics
        .lines()
        .filter(|line| line.starts_with("quipu_policy_faults") && !line.contains("hostile"))
        .collect::<Vec<_>>()
        .join("; ")
}

/// Adds over four connections while two others add to this counter, whose policy does as the id's last word says. Answers
/// the 99th percentile of the four.
fn additions_beside(server: &Server, beside: &str, each: usize) -> Duration {
    let stop = AtomicBool::new(false);
    // A counter is there with its first addition.
    (0..4).for_each(|n| drop(server.add(&format!("good/{n}"), 1).expect(200)));
    let totals = || (0..4).map(|n| server.total(&format!("good/{n}"))).collect::<Vec<_>>();
    let before = totals();
    let mut took = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = server.client();
                let target = format!("/v1/counters/{}/add", encode(beside));
                while !stop.load(Ordering::Relaxed) {
                    client.call("POST", &target, &[], b"{}").expect("an answer").expect(200);
                }
            });
        }
        let measured: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn(move || {
                    let mut client = server.client();
                    let target = format!("/v1/counters/{}/add", encode(&format!("good/{n}")));
                    let one = || {
                        let began = Instant::now();
                        let added = client.call("POST", &target, &[], b"{}").expect("an answer").expect(200);
                        let took = began.elapsed();
                        let chosen = added.json()["policy"]["fallback"] == false;
                        assert!(chosen, "beside {beside}, the other rule's policy did not choose: {}", faults(server));
                        took
                    };
                    std::iter::repeat_with(one).take(each / 4).collect::<Vec<_>>()
                })
            })
            .collect();
        let ended: Vec<_> = measured.into_iter().map(|thread| thread.join()).collect();
        // Also after a failure, or the others would go on for ever.
        stop.store(true, Ordering::Relaxed);
        ended.into_iter().flat_map(|took| took.expect("it ran")).collect::<Vec<_>>()
    });
    took.sort_unstable();
    let added = totals().iter().zip(before).map(|(after, before)| after - before).collect::<Vec<_>>();
    assert_eq!(added, [(each / 4) as i128; 4], "beside {beside}");
    took[took.len() * 99 / 100]
}
