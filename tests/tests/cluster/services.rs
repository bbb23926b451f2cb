//! etcd and Cassandra that stand still, die and come back while a cluster counts on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu_tests::cluster::LEASE;
use quipu_tests::services::{Service, Services};
use quipu_tests::{Cluster, PATIENCE, Plan, Server, Traffic, within};

const LOAD: Plan = Plan::singles(12, 8);
const STRETCH: u64 = 300;
/// The deadline of an operation, and what its answer may take on its way on a crowded machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10 + 3);
/// Longer than a lease, and than the registry's own calls.
const OUTAGE: Duration = Duration::from_secs(3 * LEASE.as_secs());

/// The tests of this file share one pair of services and take turns.
fn three_nodes(services: &Arc<Services>) -> Cluster {
    Cluster::on(services.clone(), 3)
}

/// Lets time pass: what is tested is a duration.
fn let_pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

#[test]
fn outages_of_services_lose_nothing() {
    let Some(services) = Services::own() else { return };
    let services = Arc::new(services);
    counting_goes_on_without_etcd(&services);
    counting_goes_on_over_a_restart_of_etcd(&services);
    a_node_that_dies_without_etcd_is_replaced_when_it_is_back(&services);
    writes_fail_within_their_deadline_while_cassandra_stands_still(&services);
    writes_go_on_by_themselves_after_cassandra_was_killed(&services);
}

fn counting_goes_on_without_etcd(services: &Arc<Services>) {
    let cluster = three_nodes(services);
    let before = cluster.owners("n1");
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.reset_gaps();
    services.pause(Service::Etcd);
    let_pass(OUTAGE);
    traffic.await_each(&cluster.running(), STRETCH);
    services.resume(Service::Etcd);
    traffic.await_each(&cluster.running(), STRETCH);
    cluster.await_balance();
    traffic.await_each(&cluster.running(), STRETCH);
    for node in cluster.running() {
        let outcomes = traffic.outcomes(&node);
        println!("etcd paused: clients of {node} were without a success for {:?} at most", outcomes.node_gap);
    }
    let moved = before.iter().zip(cluster.owners("n1")).filter(|(before, after)| *before != after).count();
    println!("etcd paused for {OUTAGE:?}: {moved} shards have another owner than before");
    for (node, outcomes) in traffic.finish(&cluster) {
        outcomes.expect_no_failure(&node);
    }
    cluster.verify();
}

fn counting_goes_on_over_a_restart_of_etcd(services: &Arc<Services>) {
    let cluster = three_nodes(services);
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    services.kill(Service::Etcd);
    traffic.await_each(&cluster.running(), STRETCH);
    services.start(Service::Etcd);
    traffic.await_each(&cluster.running(), STRETCH);
    services.kill(Service::Etcd);
    let_pass(OUTAGE);
    traffic.await_each(&cluster.running(), STRETCH);
    services.start(Service::Etcd);
    cluster.await_balance();
    // The watch works again: a rule that is set on one node governs on another.
    let rule = serde_json::json!({ "match": "bounded/", "spread": 1, "max": 3 });
    within(PATIENCE, "rules can be set again", || {
        (cluster.node("n1").put("/v1/rules", rule.clone()).status == 200).then_some(())
    });
    cluster.node("n3").add("bounded/c", 4).problem(409, "bound");
    traffic.await_each(&cluster.running(), STRETCH);
    for (node, outcomes) in traffic.finish(&cluster) {
        outcomes.expect_no_failure(&node);
    }
    cluster.verify();
}

fn a_node_that_dies_without_etcd_is_replaced_when_it_is_back(services: &Arc<Services>) {
    let mut cluster = three_nodes(services);
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    services.kill(Service::Etcd);
    cluster.kill("n2");
    // Spread over three shards, most counters have one that is served still.
    traffic.await_each(&cluster.running(), STRETCH);
    services.start(Service::Etcd);
    println!("etcd is back: the dead node's shards are served after {:?}", cluster.await_served("n1", "n2"));
    cluster.start_again("n2");
    cluster.await_balance();
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.finish(&cluster);
    cluster.verify();
}

/// Adds on every node while Cassandra is away: each is refused, or unknown, in time and with its outcome.
fn expect_writes_to_fail(cluster: &Cluster) {
    let expect_failure = |server: &Server| {
        let began = Instant::now();
        let answer = server.add("away", 1);
        assert!(began.elapsed() < ANSWERED_WITHIN, "{:?}: {}", began.elapsed(), answer.text());
        assert_eq!(answer.status, 503, "{}", answer.text());
        let outcome = answer.json()["outcome"].clone();
        assert!(outcome == "unknown" || outcome == "not_applied", "{}", answer.text());
        println!("Cassandra away: an addition is answered {outcome} after {:?}", began.elapsed());
    };
    std::thread::scope(|scope| {
        for server in cluster.servers() {
            scope.spawn(move || expect_failure(server));
        }
    });
}

fn writes_fail_within_their_deadline_while_cassandra_stands_still(services: &Arc<Services>) {
    let cluster = three_nodes(services);
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    services.pause(Service::Cassandra(1));
    expect_writes_to_fail(&cluster);
    services.resume(Service::Cassandra(1));
    let began = Instant::now();
    traffic.await_each(&cluster.running(), STRETCH);
    println!("Cassandra paused: counting goes on {:?} after it is back", began.elapsed());
    cluster.await_balance();
    traffic.finish(&cluster);
    cluster.verify();
}

fn writes_go_on_by_themselves_after_cassandra_was_killed(services: &Arc<Services>) {
    let mut cluster = three_nodes(services);
    let traffic = Traffic::start(&cluster, LOAD);
    traffic.await_each(&cluster.running(), STRETCH);
    services.kill(Service::Cassandra(1));
    expect_writes_to_fail(&cluster);
    services.start(Service::Cassandra(1));
    let began = Instant::now();
    traffic.await_each(&cluster.running(), STRETCH);
    println!("Cassandra killed: counting goes on {:?} after it is back", began.elapsed());
    // A node dies with Cassandra, too.
    services.kill(Service::Cassandra(1));
    cluster.kill("n3");
    services.start(Service::Cassandra(1));
    cluster.await_served("n1", "n3");
    traffic.await_each(&cluster.running(), STRETCH);
    cluster.start_again("n3");
    cluster.await_balance();
    traffic.await_each(&cluster.running(), STRETCH);
    traffic.finish(&cluster);
    cluster.verify();
}
