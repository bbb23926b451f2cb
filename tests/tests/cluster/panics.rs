//! A panic in what owns state ends its node, whole and at once; the others take its shards and every addition counts once.

use quipu_tests::{Cluster, PATIENCE, encode, within};

const POINT: &str = "QUIPU_TEST_PANIC_AT";
/// Of a process that a panic has ended.
const EXIT_PANIC: i32 = 70;
/// Enough for every shard to be met.
const COUNTERS: usize = 60;

#[test]
fn a_panic_in_an_owner_of_state_ends_its_node_and_loses_nothing() {
    let Some(cluster) = Cluster::start(2) else { return };
    // A session that panics keeps its node from ever being ready.
    let ended = cluster.launch("n3").env(POINT, "session").try_start().err().expect("it has ended");
    assert_eq!(ended.code(), EXIT_PANIC, "{}", ended.output);
    for (point, who) in [("lane", "a shard's lane"), ("links", "the links to other nodes")] {
        let third = cluster.launch("n3").env(POINT, point).start();
        within(PATIENCE, "the third node serves a shard", || {
            cluster.owners("n1").iter().any(|owner| owner.as_deref() == Some("n3")).then_some(())
        });
        let ids: Vec<String> = (0..COUNTERS).map(|n| format!("panics/{point}/{n}")).collect();
        // The links panic at what its own clients send, a lane at what comes from anywhere.
        let mut direct = third.client();
        for id in &ids {
            let target = format!("/v1/counters/{}/add", encode(id));
            let _ = direct.call("POST", &target, &[("idempotency-key", "k")], b"");
        }
        let (ended, _) = third.ended();
        assert_eq!(ended.code(), EXIT_PANIC, "{point}: {}", ended.output);
        assert!(ended.output.contains(&format!("{who} has panicked")), "{point}: {}", ended.output);
        for id in &ids {
            within(PATIENCE, "an addition is answered", || {
                (cluster.node("n1").add_with_key(id, 1, "k").status == 200).then_some(())
            });
        }
        for id in &ids {
            assert_eq!(cluster.node("n2").total(id), 1, "{point}: {id} counts once");
        }
    }
    cluster.verify();
}
