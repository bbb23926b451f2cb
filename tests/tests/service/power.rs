//! What was acknowledged is there after the power failed: of what the server wrote, only what it synced is left.

use std::path::PathBuf;
use std::time::Instant;

use quipu_tests::load::{self, COUNTERS, Tally};
use quipu_tests::{Launch, until};
use rand::Rng;
use tempfile::TempDir;

const ADDITIONS: u64 = 30_000;

/// A server under the library that remembers what is durable.
struct Powered {
    launch: Launch,
    /// Watched: the data directory is in it, so that its own name must be made durable, too.
    watched: PathBuf,
    shadow: TempDir,
}

impl Powered {
    fn new() -> Self {
        let launch = Launch::new();
        let watched = launch.scratch().join("watched");
        std::fs::create_dir(&watched).expect("a directory");
        // In memory where there is some: the image is written at every sync.
        let shadow =
            TempDir::with_prefix_in("quipu-shadow-", "/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
        let launch = launch
            .data_dir(watched.join("data"))
            .env("LD_PRELOAD", powerloss::shim())
            .env("POWERLOSS_DIR", &watched)
            .env("POWERLOSS_SHADOW", shadow.path());
        Self { launch, watched, shadow }
    }

    /// Leaves what was durable, and, with a seed, some of what was not.
    fn fail(&self, torn: Option<u64>) {
        let restored = match torn {
            None => powerloss::restore(self.shadow.path(), &self.watched),
            Some(seed) => powerloss::restore_torn(self.shadow.path(), &self.watched, seed),
        };
        restored.unwrap_or_else(|why| panic!("the image cannot be restored: {why:#}"));
    }
}

#[test]
fn acknowledged_additions_survive_a_power_failure() {
    const ROUNDS: u64 = 8;
    let powered = Powered::new();
    let mut server = powered.launch.start();
    let (mut all, mut before) = (Tally::default(), 0i128);
    let began = Instant::now();
    for round in 0..ROUNDS {
        let strike = rand::rng().random_range(1..ADDITIONS);
        let (tally, launch) = load::until_killed(server, ADDITIONS, strike);
        let torn = (round % 2 == 1).then(|| rand::rng().random());
        powered.fail(torn);
        server = launch.start();
        let counted = load::sum(&server, "c", COUNTERS) - before;
        assert!(tally.allows(counted), "round {round}, torn {torn:?}: counted {counted}, {tally:?}, after {strike}");
        before += counted;
        all = all + tally;
    }
    println!("{ROUNDS} power failures in loads of {ADDITIONS}: {all:?}, counted {before}, in {:?}", began.elapsed());
}

#[test]
fn additions_with_keys_are_exact_over_power_failures() {
    const KILLS: u64 = 4;
    let powered = Powered::new();
    let server = load::keyed_over_kills(powered.launch.clone(), ADDITIONS, KILLS, |_| powered.fail(None));
    assert_eq!(load::sum(&server, "k", COUNTERS), i128::from(ADDITIONS));
    drop(server.kill());
    powered.fail(None);
    assert_eq!(load::sum(&powered.launch.start(), "k", COUNTERS), i128::from(ADDITIONS));
}

#[test]
fn a_stop_makes_everything_durable() {
    let powered = Powered::new();
    let server = powered.launch.start();
    server.set_rule(serde_json::json!({ "match": "relaxed/", "durability": "relaxed" }));
    (0..100).for_each(|n| drop(server.add(["relaxed/c", "durable"][n % 2], 1).expect(200)));
    let (ended, launch) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    powered.fail(None);
    let server = launch.start();
    assert_eq!((server.total("relaxed/c"), server.total("durable")), (50, 50));
}

#[test]
fn rules_and_creations_are_durable_when_they_are_answered() {
    let powered = Powered::new();
    let server = powered.launch.start();
    server.set_rule(serde_json::json!({ "match": "stock/", "spread": 1, "min": 0 }));
    server.post("/v1/counters", serde_json::json!({ "id": "created", "name": "n" })).expect(201);
    server.add("gone", 1).expect(200);
    server.delete("/v1/counters/gone").expect(204);
    let launch = server.kill();
    powered.fail(None);
    let server = launch.start();
    server.add("stock/1", -1).problem(409, "bound");
    assert_eq!(server.total("created"), 0);
    server.get("/v1/counters/gone").problem(404, "counter_not_found");
}

/// The check of the checks above: with syncs that do nothing they must see a loss.
#[test]
fn without_syncs_acknowledged_additions_are_lost() {
    let powered = Powered::new();
    let lying = powered.launch.clone().env("POWERLOSS_IGNORE_SYNC", "1");
    let (tally, _) = load::until_killed(lying.start(), ADDITIONS, ADDITIONS / 2);
    assert!(tally.acknowledged >= ADDITIONS / 4, "{tally:?}");
    powered.fail(None);
    match powered.launch.try_start() {
        Ok(server) => {
            until("it serves", || server.get("/readyz").status == 200);
            let counted = load::sum(&server, "c", COUNTERS);
            println!("without syncs: {tally:?}, counted {counted}");
            assert!(counted < i128::from(tally.acknowledged), "nothing was lost: {counted}, {tally:?}");
        }
        Err(ended) => println!("without syncs the directory is not usable: {}", ended.output),
    }
}
