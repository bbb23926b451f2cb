//! What a million idle counters cost in memory.

use quipu_tests::{Launch, Server};
use serde_json::json;

const COUNTERS: u64 = 1_000_000;
const BATCH: u64 = 10_000;

/// A million counters with ids of 24 bytes, each with `spread` partials.
fn fill(server: &Server, spread: u64) {
    // The amount chooses the shard, among all there are; of a spread of one there is no choice.
    let selection = if spread == 1 { "rendezvous" } else { "value-modulo" };
    server.set_rule(json!({ "match": "", "spread": spread, "selection": { "plugin": selection } }));
    let mut client = server.client();
    for first in (0..COUNTERS).step_by(BATCH as usize) {
        for amount in 0..spread {
            let op = |n: u64| format!("{{\"id\":\"counter/{n:016}\",\"amount\":{amount}}}");
            let body = format!("{{\"ops\":[{}]}}", (first..first + BATCH).map(op).collect::<Vec<_>>().join(","));
            let answer = client.call("POST", "/v1/batch", &[], body.as_bytes()).expect("an answer").expect(200);
            let text = answer.text();
            let applied = text.matches("\"outcome\":\"applied\"").count() as u64;
            assert_eq!(applied, BATCH, "{}", text.chars().take(500).collect::<String>());
        }
    }
    for n in [0, 1, COUNTERS / 2, COUNTERS - 1] {
        assert_eq!(server.total(&format!("counter/{n:016}")), i128::from((0..spread).sum::<u64>()), "counter {n}");
    }
}

fn measured(shards: u64, spread: u64) -> u64 {
    let server = Launch::new().flag("--shards", shards.to_string()).start();
    let idle = server.resident_bytes();
    fill(&server, spread);
    let partials = server.metrics().value("quipu_resident_partials");
    let resident = server.resident_bytes();
    println!(
        "{COUNTERS} counters, {partials} partials: {} MiB, {} MiB before, {:.0} bytes a counter",
        resident >> 20,
        idle >> 20,
        resident.saturating_sub(idle) as f64 / COUNTERS as f64
    );
    // Of the four that were read it is also remembered on which shards they are not.
    let (all, read) = (spread * COUNTERS, 4 * shards);
    assert!((all..=all + read).contains(&(partials as u64)), "they are all in memory: {partials}");
    resident
}

#[test]
fn a_million_counters_of_one_partial_fit_in_250_mb() {
    let resident = measured(12, 1);
    assert!(resident <= 250_000_000, "{resident}");
}

#[test]
fn a_million_counters_of_three_partials_fit_in_650_mb() {
    let resident = measured(3, 3);
    assert!(resident <= 650_000_000, "{resident}");
}
