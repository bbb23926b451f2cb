//! Faults of every kind in an order that nobody chose, under load, for as long as one likes: `make torture`.
//!
//! `QUIPU_TORTURE_MINUTES` sets how long the load goes on (10), `QUIPU_TORTURE_SEED` repeats an order of faults.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu_tests::services::{Service, Services};
use quipu_tests::{Cluster, Plan, Traffic};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

const LOAD: Plan = Plan { connections: 22, counters: 16 };
/// Additions of each node between two faults.
const STRETCH: u64 = 500;
/// Longer than a lease; and shorter.
const PAUSES_MS: std::ops::Range<u64> = 100..6_000;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    KillTwo,
    KillAll,
    Pause,
    Stop,
    PauseEtcd,
    KillEtcd,
    PauseCassandra,
    KillCassandra,
    ChangeSpread,
}

const FAULTS: [Fault; 10] = [
    Fault::Kill,
    Fault::KillTwo,
    Fault::KillAll,
    Fault::Pause,
    Fault::Stop,
    Fault::PauseEtcd,
    Fault::KillEtcd,
    Fault::PauseCassandra,
    Fault::KillCassandra,
    Fault::ChangeSpread,
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Lets time pass: how long a fault lasts is a part of it.
fn let_pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

fn strike(cluster: &mut Cluster, fault: Fault, random: &mut StdRng) {
    let nodes = cluster.running();
    let node = nodes.choose(random).expect("a node runs").clone();
    let pause = Duration::from_millis(random.random_range(PAUSES_MS));
    match fault {
        Fault::Kill => cluster.kill(&node),
        Fault::KillTwo => nodes.iter().filter(|other| **other != node).for_each(|other| cluster.kill(other)),
        Fault::KillAll => nodes.iter().for_each(|node| cluster.kill(node)),
        Fault::Stop => drop(cluster.stop(&node)),
        Fault::Pause => {
            cluster.node(&node).pause();
            let_pass(pause);
            cluster.node(&node).resume();
        }
        Fault::PauseEtcd | Fault::PauseCassandra => {
            let service = if matches!(fault, Fault::PauseEtcd) { Service::Etcd } else { Service::Cassandra };
            cluster.services.pause(service);
            let_pass(pause);
            cluster.services.resume(service);
        }
        Fault::KillEtcd | Fault::KillCassandra => {
            let service = if matches!(fault, Fault::KillEtcd) { Service::Etcd } else { Service::Cassandra };
            cluster.services.kill(service);
            let_pass(pause);
            cluster.services.start(service);
        }
        Fault::ChangeSpread => {
            let rule = json!({ "match": "unkeyed-", "spread": random.random_range(1..=12) });
            // Refused while a node is not ready: then the old spread stays.
            cluster.node(&node).put("/v1/rules", rule);
        }
    }
    // Dead nodes stay dead for a while, or come back before their leases end.
    if random.random() {
        let_pass(pause);
    }
    for node in nodes {
        if !cluster.running().contains(&node) {
            cluster.start_again(&node);
        }
    }
}

#[test]
#[ignore = "takes ten minutes; `make torture` runs it"]
fn nothing_is_lost_or_doubled_by_faults_in_any_order() {
    let services = Services::own().expect("etcd and Cassandra start");
    let minutes = number("QUIPU_TORTURE_MINUTES").unwrap_or(10);
    let seed = number("QUIPU_TORTURE_SEED").unwrap_or_else(rand::random);
    println!("QUIPU_TORTURE_SEED={seed} repeats this order of faults");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::on(Arc::new(services), 3);
    let traffic = Traffic::start(&cluster, LOAD);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut faults = 0;
    while Instant::now() < end {
        traffic.await_each(&cluster.running(), STRETCH);
        let fault = *FAULTS.choose(&mut random).expect("there are faults");
        println!("{:?} left: {fault:?}", end.saturating_duration_since(Instant::now()));
        strike(&mut cluster, fault, &mut random);
        faults += 1;
        cluster.await_balance();
        traffic.expect_no_contradiction();
    }
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.finish(&cluster);
    cluster.verify();
    println!("{faults} faults in {minutes} minutes");
}
