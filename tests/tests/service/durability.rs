//! What was acknowledged is there after `kill -9`, and what was sent again with its key is there once.

use std::time::Instant;

use quipu_tests::load::{self, CLIENTS, COUNTERS, Tally};
use quipu_tests::{Launch, Server};
use rand::Rng;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// `QUIPU_DURABILITY_ROUNDS` and `QUIPU_DURABILITY_ADDITIONS` make it longer or shorter.
#[test]
fn acknowledged_additions_survive_a_kill() {
    let rounds = number("QUIPU_DURABILITY_ROUNDS", 20);
    let additions = number("QUIPU_DURABILITY_ADDITIONS", 200_000);
    let mut server = Server::start();
    let (mut all, mut before) = (Tally::default(), 0i128);
    let began = Instant::now();
    for round in 0..rounds {
        let strike = rand::rng().random_range(1..additions);
        let (tally, launch) = load::until_killed(server, additions, strike);
        server = launch.start();
        let counted = load::sum(&server, "c", COUNTERS) - before;
        assert!(
            tally.acknowledged >= strike.saturating_sub(CLIENTS as u64),
            "round {round}: {tally:?}, strike {strike}"
        );
        assert!(
            tally.allows(counted),
            "round {round}: counted {counted}, {tally:?}, killed after {strike} of {additions}"
        );
        assert_eq!(tally.refused, 0, "round {round}: {tally:?}");
        before += counted;
        all = all + tally;
    }
    println!("{rounds} kills in loads of {additions}: {all:?}, counted {before}, in {:?}", began.elapsed());
}

#[test]
fn additions_with_keys_are_exact_over_kills() {
    const ADDITIONS: u64 = 40_000;
    const KILLS: u64 = 5;
    let began = Instant::now();
    let server = load::keyed_over_kills(Launch::new(), ADDITIONS, KILLS, |_| {});
    assert_eq!(load::sum(&server, "k", COUNTERS), i128::from(ADDITIONS));
    let server = server.crash_and_restart();
    assert_eq!(load::sum(&server, "k", COUNTERS), i128::from(ADDITIONS));
    println!("{ADDITIONS} keyed additions over {KILLS} kills are exact, in {:?}", began.elapsed());
}

#[test]
fn a_killed_batch_is_counted_at_most_once_per_operation() {
    const OPS: u64 = 2_000;
    let mut server = Server::start();
    let batch = format!("{{\"ops\":[{}]}}", vec![r#"{"id":"b","amount":1}"#; OPS as usize].join(","));
    let mut before = 0i128;
    for round in 0..10 {
        let mut client = server.client();
        client.call("POST", "/v1/batch", &[], batch.as_bytes()).expect("an answer").expect(200);
        before += i128::from(OPS);
        client.send("POST", "/v1/batch", &[], batch.as_bytes()).expect("the connection is open");
        // Killed with the second batch on its way, somewhere.
        let spins = rand::rng().random_range(0..2_000_000u64);
        (0..spins).for_each(|n| _ = std::hint::black_box(n));
        server = server.crash_and_restart();
        let total = server.total("b");
        assert!((before..=before + i128::from(OPS)).contains(&total), "round {round}: {total}, {before} acknowledged");
        before = total;
    }
}
