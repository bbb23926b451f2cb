//! Faults of every kind in an order that nobody chose, under load, for as long as one likes: `make torture`.
//!
//! Three nodes on three Cassandra nodes and etcd. Where network namespaces are allowed, nodes are cut off, too.
//! `QUIPU_TORTURE_MINUTES` sets how long the load goes on (10), `QUIPU_TORTURE_SEED` repeats an order of faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu_tests::cluster::LEASE;
use quipu_tests::network::{self, Beyond, Entry, Way};
use quipu_tests::services::{self, Service, Services};
use quipu_tests::{Cluster, Plan, Traffic};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::json;

const LOAD: Plan = Plan { connections: 22, counters: 16, batchers: 4, batch: 1_000 };
/// Of the Cassandra node that has a small one: enough for an hour.
const DISK_MEBIBYTES: u32 = 3 * 1024;
/// Additions of each node between two faults.
const STRETCH: u64 = 200;
/// Longer than a lease; and shorter.
const PAUSES_MS: std::ops::Range<u64> = 100..6_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    KillTwo,
    KillAll,
    Pause,
    Stop,
    PauseEtcd,
    KillEtcd,
    PauseCassandra,
    PauseAllCassandra,
    KillCassandra,
    ChangeSpread,
    CutOffEtcd,
    CutOffCassandra,
    CutOffPeers,
    FillDisk,
}

const FAULTS: [Fault; 11] = [
    Fault::Kill,
    Fault::KillTwo,
    Fault::KillAll,
    Fault::Pause,
    Fault::Stop,
    Fault::PauseEtcd,
    Fault::KillEtcd,
    Fault::PauseCassandra,
    Fault::PauseAllCassandra,
    Fault::KillCassandra,
    Fault::ChangeSpread,
];

/// Those that need a network whose links can be cut.
const PARTITIONS: [Fault; 3] = [Fault::CutOffEtcd, Fault::CutOffCassandra, Fault::CutOffPeers];

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

/// How long a node's shards were served by nobody else after it was killed or lost etcd.
type Takeovers = Vec<Duration>;

fn cut_off(
    cluster: &Cluster,
    node: &str,
    fault: Fault,
    lasts: Duration,
    random: &mut StdRng,
    takeovers: &mut Takeovers,
) {
    let beyond = match fault {
        Fault::CutOffEtcd => cluster.services.beyond_etcd(),
        Fault::CutOffCassandra => cluster.services.beyond_cassandra(),
        _ => Beyond::Peers,
    };
    let way = *[Way::Both, Way::Out, Way::In].choose(random).expect("there are ways");
    let network = cluster.services.network().expect("partitions are chosen only in one");
    let began = Instant::now();
    network.cut(node, beyond, way);
    if fault == Fault::CutOffEtcd && lasts > LEASE {
        let others = cluster.running().into_iter().find(|other| other != node);
        takeovers.push(cluster.await_served(&others.expect("three nodes run"), node));
    }
    let_pass(lasts.saturating_sub(began.elapsed()));
    println!("{node} was cut off, {way:?}, for {:?}: {} packets dropped", began.elapsed(), network.heal(node));
}

fn strike(cluster: &mut Cluster, fault: Fault, random: &mut StdRng, takeovers: &mut Takeovers) {
    let nodes = cluster.running();
    let node = nodes.choose(random).expect("a node runs").clone();
    let pause = Duration::from_millis(random.random_range(PAUSES_MS));
    let replica = random.random_range(1..=cluster.services.cassandra_nodes());
    match fault {
        Fault::Kill => {
            cluster.kill(&node);
            if random.random() {
                let other = cluster.running().into_iter().next().expect("two nodes run");
                takeovers.push(cluster.await_served(&other, &node));
            }
        }
        Fault::KillTwo => nodes.iter().filter(|other| **other != node).for_each(|other| cluster.kill(other)),
        Fault::KillAll => nodes.iter().for_each(|node| cluster.kill(node)),
        Fault::Stop => drop(cluster.stop(&node)),
        Fault::Pause => {
            cluster.node(&node).pause();
            let_pass(pause);
            cluster.node(&node).resume();
        }
        Fault::PauseEtcd | Fault::PauseCassandra | Fault::PauseAllCassandra => {
            let struck = match fault {
                Fault::PauseEtcd => vec![Service::Etcd],
                Fault::PauseCassandra => vec![Service::Cassandra(replica)],
                _ => (1..=cluster.services.cassandra_nodes()).map(Service::Cassandra).collect(),
            };
            struck.iter().for_each(|service| cluster.services.pause(*service));
            let_pass(pause);
            struck.iter().for_each(|service| cluster.services.resume(*service));
        }
        Fault::KillEtcd | Fault::KillCassandra => {
            let service = if fault == Fault::KillEtcd { Service::Etcd } else { Service::Cassandra(replica) };
            cluster.services.kill(service);
            let_pass(pause);
            cluster.services.start(service);
        }
        Fault::CutOffEtcd | Fault::CutOffCassandra | Fault::CutOffPeers => {
            cut_off(cluster, &node, fault, pause, random, takeovers);
        }
        Fault::FillDisk => {
            let replica = Service::Cassandra(services::SMALL_DISK);
            let full = cluster.services.disk().expect("chosen only with one").fill(0);
            // Until its commit log needs another file, and then for as long as it lives without one.
            let_pass(2 * pause);
            drop(full);
            cluster.services.kill(replica);
            cluster.services.start(replica);
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
    let network = match network::enter("torture::nothing_is_lost_or_doubled_by_faults_in_any_order", 3) {
        Entry::Inside(network) => Some(network),
        Entry::Done => return,
        Entry::Refused(why) => {
            println!("skipped: partitions: {why}; the other faults go on");
            None
        }
    };
    let services = Services::replicated(network, DISK_MEBIBYTES).expect("etcd and Cassandra start");
    let partitions: &[Fault] = if services.network().is_some() { &PARTITIONS } else { &[] };
    let disk: &[Fault] = if services.disk().is_some() { &[Fault::FillDisk] } else { &[] };
    let faults = [&FAULTS[..], partitions, disk].concat();
    let minutes = number("QUIPU_TORTURE_MINUTES").unwrap_or(10);
    let seed = number("QUIPU_TORTURE_SEED").unwrap_or_else(rand::random);
    println!("QUIPU_TORTURE_SEED={seed} repeats this order of faults");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::on(Arc::new(services), 3);
    let traffic = Traffic::start(&cluster, LOAD);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    // Each kind comes once before one comes again.
    let mut deck = Vec::new();
    let mut struck: BTreeMap<Fault, u32> = BTreeMap::new();
    let mut takeovers = Takeovers::new();
    while Instant::now() < end {
        traffic.await_each(&cluster.running(), STRETCH);
        if deck.is_empty() {
            deck.clone_from(&faults);
            deck.shuffle(&mut random);
        }
        let fault = deck.pop().expect("there are faults");
        println!("{:?} left: {fault:?}", end.saturating_duration_since(Instant::now()));
        strike(&mut cluster, fault, &mut random, &mut takeovers);
        *struck.entry(fault).or_default() += 1;
        cluster.await_balance();
        traffic.expect_no_contradiction();
    }
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.finish(&cluster);
    cluster.verify();
    takeovers.sort_unstable();
    println!(
        "takeovers: {}, p50 {:?}, max {:?}",
        takeovers.len(),
        takeovers.get(takeovers.len() / 2),
        takeovers.last()
    );
    println!("{} faults in {minutes} minutes: {struck:?}", struck.values().sum::<u32>());
}
