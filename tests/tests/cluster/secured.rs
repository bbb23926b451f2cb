//! A cluster whose etcd, Cassandra and nodes speak TLS, and ask everybody who they are.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use quipu_tests::services::Services;
use quipu_tests::{Cluster, Plan, Traffic};

const LOAD: Plan = Plan::singles(6, 8);
const STRETCH: u64 = 200;
/// After a node's start.
const LATER: Duration = Duration::from_secs(3);

/// One pair of secured services for all of it.
#[test]
fn a_secured_cluster_counts_and_lets_no_stranger_in() {
    let Some(services) = Services::secured() else { return };
    let services = Arc::new(services);
    nodes_count_and_take_over(&services);
    strangers_are_told_why(&services);
    a_node_that_the_others_do_not_know_changes_nothing(&services);
}

fn nodes_count_and_take_over(services: &Arc<Services>) {
    let mut cluster = Cluster::on(services.clone(), 3);
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    cluster.kill("n2");
    cluster.await_served("n1", "n2");
    cluster.start_again("n2");
    cluster.await_balance();
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.finish(&cluster);
    cluster.verify();
}

/// Each lacks one thing, or has a wrong one.
fn strangers_are_told_why(services: &Arc<Services>) {
    let secrets = services.secrets().expect("they are secured");
    let cluster = Cluster::empty(services.clone());
    let usual = || cluster.launch("stranger");
    let with = |name: &str, file: &str| usual().env(name, secrets.join(file));
    let without = |names: [&str; 2]| names.iter().fold(usual(), |launch, name| launch.without_env(name));
    let passwords = "Check --etcd-user, --etcd-password-file";
    for (launch, told) in [
        (with("QUIPU_ETCD_CA", "other-ca.pem"), "cannot join the cluster"),
        (without(["QUIPU_ETCD_CERT", "QUIPU_ETCD_KEY"]), "cannot join the cluster"),
        (with("QUIPU_ETCD_PASSWORD_FILE", "cassandra-password"), passwords),
        (without(["QUIPU_ETCD_USER", "QUIPU_ETCD_PASSWORD_FILE"]), passwords),
        (with("QUIPU_CASSANDRA_CA", "other-ca.pem"), "Cassandra does not answer"),
        (without(["QUIPU_CASSANDRA_CERT", "QUIPU_CASSANDRA_KEY"]), "Cassandra does not answer"),
        (with("QUIPU_CASSANDRA_PASSWORD_FILE", "etcd-password"), "Cassandra does not answer"),
        (without(["QUIPU_CASSANDRA_USER", "QUIPU_CASSANDRA_PASSWORD_FILE"]), "Cassandra does not answer"),
        (with("QUIPU_PEER_KEY", "other-key.pem"), "other-key.pem are no certificate with its key"),
    ] {
        let Err(ended) = launch.try_start() else { panic!("a stranger is let in that should read: {told}") };
        assert_eq!(ended.code(), 1, "{told}: {}", ended.output);
        assert!(ended.output.contains(told), "{told}: {}", ended.output);
    }
}

/// etcd and Cassandra let it in, so it has shards of its own; the other nodes do not take its word, nor it theirs.
fn a_node_that_the_others_do_not_know_changes_nothing(services: &Arc<Services>) {
    let secrets = services.secrets().expect("they are secured");
    let cluster = Cluster::on(services.clone(), 2);
    // Counters of one shard each; those of n1's and n2's are out of reach.
    cluster.node("n1").put("/v1/rules", serde_json::json!({ "match": "of-", "spread": 1 })).expect(200);
    let stranger =
        [("QUIPU_PEER_CA", "other-ca.pem"), ("QUIPU_PEER_CERT", "other.pem"), ("QUIPU_PEER_KEY", "other-key.pem")]
            .iter()
            .fold(cluster.launch("stranger"), |launch, (name, file)| launch.env(name, secrets.join(file)))
            .start();
    let mut taken: Vec<bool> = Vec::new();
    while taken.iter().filter(|&&taken| !taken).count() < 2 {
        let answer = stranger.add(&format!("of-{}", taken.len()), 1);
        if answer.status != 200 {
            assert_eq!(answer.json()["outcome"], "not_applied", "{}", answer.json());
        }
        taken.push(answer.status == 200);
        assert!(taken.len() < 40, "the stranger reaches every shard");
    }
    let (ended, _) = stranger.stop();
    assert!(ended.output.contains("no connection to https://"), "{}", ended.output);
    cluster.await_balance();
    for (n, taken) in taken.into_iter().enumerate() {
        let id = format!("of-{n}");
        cluster.node("n2").add(&id, 1).expect(200);
        assert_eq!(cluster.node("n1").total(&id), 1 + i128::from(taken), "{id}");
    }
    cluster.verify();
}

/// A node that is started together with its Cassandra waits for it.
#[test]
fn a_node_waits_for_a_cassandra_that_comes_later() {
    let Some(services) = Services::shared() else { return };
    let (cassandra, services) = (services.cassandra.clone(), Arc::new(services));
    let cluster = Cluster::empty(services.clone());
    // Nothing listens there until a moment after the node's start.
    let place = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    std::thread::spawn(move || {
        std::thread::park_timeout(LATER);
        let listener = TcpListener::bind(place).expect("the port is free still");
        let cassandra = cassandra.split(',').next().expect("a node");
        // As long as the process runs: there is no end to wait for.
        for from in listener.incoming() {
            let (Ok(from), Ok(to)) = (from, TcpStream::connect(cassandra)) else { continue };
            forward(from.try_clone().expect("twice"), to.try_clone().expect("twice"));
            forward(to, from);
        }
    });
    let server = cluster.launch_at("n1", &place.to_string()).start();
    assert!(server.ready_after >= LATER, "{:?}", server.ready_after);
    server.add("late", 1).expect(200);
    let (ended, _) = server.stop();
    assert_eq!(ended.output.matches("Cassandra is not there yet").count(), 1, "{}", ended.output);
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        // An error ends a connection like its other end does.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
