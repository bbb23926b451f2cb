//! Nodes of a real cluster that are cut off from etcd, from Cassandra or from each other, on three Cassandra nodes, under
//! load: packets are dropped both ways or one way, and after healing nothing is lost and nothing is doubled.
//!
//! Readers on every node run all the while, so that a node that is cut off cannot answer with an old total unseen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu_tests::cluster::LEASE;
use quipu_tests::network::{self, Beyond, Entry, Way};
use quipu_tests::services::{Service, Services};
use quipu_tests::{Cluster, PATIENCE, Plan, Traffic, within};

const LOAD: Plan = Plan::singles(12, 8);
/// Additions of each node between two faults.
const STRETCH: u64 = 200;
const NODES: [&str; 3] = ["n1", "n2", "n3"];

#[test]
fn partitions_lose_nothing() {
    let network = match network::enter("partitions::partitions_lose_nothing", 3) {
        Entry::Inside(network) => network,
        Entry::Done => return,
        Entry::Refused(why) => return println!("skipped: partitions: {why}"),
    };
    let Some(services) = Services::replicated(Some(network), 0) else { return };
    let cluster = Cluster::on(Arc::new(services), NODES.len());
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    let cassandra = cluster.services.beyond_cassandra();
    // `make torture` has every node and all ways.
    others_take_over_from_a_node_without_etcd(&cluster, &traffic, "n1");
    node_is_cut_off(&cluster, &traffic, "n2", cassandra, Way::Both);
    node_is_cut_off(&cluster, &traffic, "n3", Beyond::Peers, Way::Both);
    // Requests are executed, and their answers are lost.
    node_is_cut_off(&cluster, &traffic, "n1", cassandra, Way::In);
    node_is_cut_off(&cluster, &traffic, "n2", Beyond::Peers, Way::In);
    counting_goes_on_without_a_cassandra_node(&cluster, &traffic);
    settle(traffic, &cluster);
}

fn others(node: &str) -> Vec<String> {
    NODES.iter().filter(|other| **other != node).map(ToString::to_string).collect()
}

/// Cuts a node off while `during` lasts, and fails if no packet was dropped.
fn while_cut_off(cluster: &Cluster, node: &str, beyond: Beyond, way: Way, during: impl FnOnce()) {
    let network = cluster.services.network().expect("these services are in one");
    network.cut(node, beyond, way);
    during();
    let dropped = network.heal(node);
    println!("{node} without {beyond:?}, {way:?}: {dropped} packets were dropped");
    assert!(dropped > 0, "nothing was cut: {node}, {beyond:?}, {way:?}");
}

/// Lets time pass: what is tested is a duration.
fn let_pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

fn others_take_over_from_a_node_without_etcd(cluster: &Cluster, traffic: &Traffic, node: &str) {
    while_cut_off(cluster, node, cluster.services.beyond_etcd(), Way::Both, || {
        let others = others(node);
        let took = cluster.await_served(&others[0], node);
        println!("{node} without etcd: its shards are served by others after {took:?}");
        // The others own its shards and count on them while it may believe that it does.
        traffic.await_each(&others, 2 * STRETCH);
    });
    println!("{node} without etcd: it has its share {:?} after healing", cluster.await_balance());
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.expect_no_contradiction();
}

/// For longer than a lease; the others go on meanwhile.
fn node_is_cut_off(cluster: &Cluster, traffic: &Traffic, node: &str, beyond: Beyond, way: Way) {
    while_cut_off(cluster, node, beyond, way, || {
        traffic.await_each(&others(node), STRETCH);
        let_pass(LEASE);
    });
    let healed = Instant::now();
    traffic.await_each(&cluster.running(), STRETCH);
    println!("{node} without {beyond:?}, {way:?}: counting goes on everywhere {:?} after healing", healed.elapsed());
    cluster.await_balance();
    traffic.expect_no_contradiction();
}

/// Two of three replicas are a majority.
fn counting_goes_on_without_a_cassandra_node(cluster: &Cluster, traffic: &Traffic) {
    let services = &cluster.services;
    let replica = Service::Cassandra(services.cassandra_nodes());
    services.kill(replica);
    traffic.await_each(&cluster.running(), 2 * STRETCH);
    services.start(replica);
    traffic.await_each(&cluster.running(), STRETCH);
    cluster.await_balance();
    traffic.expect_no_contradiction();
}

/// Ends the load, compares every total with what was applied, and counts everything a second time from the store.
fn settle(traffic: Traffic, cluster: &Cluster) {
    traffic.finish(cluster);
    within(PATIENCE, "every node is ready", || {
        cluster.servers().iter().all(|server| server.get("/readyz").status == 200).then_some(())
    });
    cluster.verify();
}
