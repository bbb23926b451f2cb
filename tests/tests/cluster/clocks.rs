//! Nodes whose wall clocks differ by hours and days: what was answered counts once, and nothing is refused for that.

use quipu_tests::clock::WallClock;
use quipu_tests::cluster::Cluster;
use quipu_tests::services::Services;
use std::sync::Arc;

const COUNTERS: usize = 12;
const KEYS: usize = 24;

/// The same keyed additions on both nodes, so that each is forwarded by one of them; every one is answered.
#[track_caller]
fn send(cluster: &Cluster, keys: &str) {
    for n in 0..KEYS {
        for node in ["n1", "n2"] {
            cluster.node(node).add_with_key(&format!("c{}", n % COUNTERS), 1, &format!("{keys}{n}")).expect(200);
        }
    }
}

fn total(cluster: &Cluster, node: &str) -> i128 {
    (0..COUNTERS).map(|n| cluster.node(node).total(&format!("c{n}"))).sum()
}

#[test]
fn a_node_with_a_wrong_clock_doubles_and_refuses_nothing() {
    let Some(services) = Services::shared() else { return };
    let mut cluster = Cluster::empty(Arc::new(services));
    let Some((first, clock1)) = WallClock::of(cluster.launch("n1")) else { return };
    let Some((second, clock2)) = WallClock::of(cluster.launch("n2")) else { return };
    cluster.add_launched("n1", first);
    cluster.add_launched("n2", second);
    cluster.await_balance();
    let counted = |cluster: &Cluster, rounds: usize, when: &str| {
        for node in ["n1", "n2"] {
            assert_eq!(total(cluster, node), (rounds * KEYS) as i128, "{when}, by {node}");
        }
    };
    send(&cluster, "a");
    counted(&cluster, 1, "right clocks");
    clock2.set("+26h");
    send(&cluster, "a");
    send(&cluster, "b");
    counted(&cluster, 2, "one of them ahead");
    // It leaves by checkpoints of its shards, whose horizons must not be its clock's; and it comes back, still ahead.
    cluster.stop("n2");
    cluster.await_served("n1", "n2");
    for keys in ["a", "b"] {
        for n in 0..KEYS {
            cluster.node("n1").add_with_key(&format!("c{}", n % COUNTERS), 1, &format!("{keys}{n}")).expect(200);
        }
    }
    cluster.start_again("n2");
    cluster.await_balance();
    send(&cluster, "a");
    send(&cluster, "c");
    counted(&cluster, 3, "a checkpoint while it was ahead");
    clock2.set("+0");
    clock1.set("-2h");
    ["a", "b", "c", "d"].iter().for_each(|keys| send(&cluster, keys));
    counted(&cluster, 4, "right again, and the other hours behind");
    cluster.kill("n1");
    cluster.await_served("n2", "n1");
    clock1.set("+3d");
    cluster.start_again("n1");
    cluster.await_balance();
    ["a", "b", "c", "d", "e"].iter().for_each(|keys| send(&cluster, keys));
    counted(&cluster, 5, "another takeover, and days ahead");
    cluster.verify();
}
