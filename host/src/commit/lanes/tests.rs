//! Several nodes on one memory store: shards that move, and the faults of a store behind a network.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::commit::tests::{Node, SHARDS, add, applied, counter, keyed, shard};
use crate::counter::key_hash;
use crate::shard::{Op, Origin, Outcome};
use crate::store::memory::{Fault, MemoryStore};

fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(SHARDS))
}

/// A node that serves every shard.
fn owner(store: &Arc<MemoryStore>) -> Node {
    let node = Node::on(store);
    for shard in 0..SHARDS {
        node.wait(node.commits.take_over(shard)).expect("taken over");
    }
    node
}

#[test]
fn only_shards_that_were_taken_over_are_served() {
    let store = store();
    let node = Node::on(&store);
    assert_eq!(node.add("a", 1), Outcome::NotApplied);
    let epoch = node.wait(node.commits.take_over(shard("a"))).expect("taken over");
    assert!(node.commits.serves(shard("a")));
    assert_eq!(node.add("a", 1), applied(1));
    assert_eq!(node.wait(node.commits.take_over(shard("a"))).expect("it has it already"), epoch);
}

#[test]
fn a_shard_that_is_handed_over_goes_on_elsewhere() {
    let store = store();
    let (first, second) = (owner(&store), Node::on(&store));
    assert_eq!(first.ask(vec![add("a", 5, 0), keyed("a", 1, "k", 1)]), [applied(5), applied(6)]);
    first.wait(first.commits.hand_over(shard("a")));
    assert!(!first.commits.serves(shard("a")));
    assert_eq!(first.add("a", 1), Outcome::NotApplied);
    second.wait(second.commits.take_over(shard("a"))).expect("taken over");
    assert_eq!(second.value("a"), Some(6));
    assert_eq!(second.ask(vec![keyed("a", 1, "k", 0)]), [Outcome::Applied { value: 6, replayed: true }]);
}

#[test]
fn an_owner_that_was_replaced_acknowledges_nothing_and_says_that_it_lost_the_shard() {
    let store = store();
    let (first, second) = (owner(&store), Node::on(&store));
    assert_eq!(first.add("a", 1), applied(1));
    assert!(first.wait(first.commits.confirm(shard("a"))));
    second.wait(second.commits.take_over(shard("a"))).expect("taken over");
    assert_eq!(second.add("a", 1), applied(2));
    assert_eq!(first.add("a", 1), Outcome::NotApplied);
    let mut lost = Vec::new();
    first.wait(first.commits.lost.take(&mut lost));
    assert_eq!(lost, [shard("a")]);
    assert_eq!(first.value("a"), None, "its old table is not read any more");
    assert_eq!(second.value("a"), Some(2));
}

#[test]
fn relaxed_operations_that_an_owner_could_not_write_are_left_for_the_next() {
    const COUNT: u64 = 40;
    let store = store();
    let (first, second) = (owner(&store), Node::on(&store));
    store.delay_appends(Duration::from_millis(5));
    for _ in 0..COUNT {
        let op = Op { origin: Origin::Relaxed, ..add("a", 1, 0) };
        first.commits.submit(std::iter::once(op)).expect("there is room");
        first.wait(async { tokio::time::sleep(Duration::from_micros(500)).await });
    }
    second.wait(second.commits.take_over(shard("a"))).expect("taken over");
    let counted = second.value("a").unwrap_or(0);
    first.wait(first.commits.lost.take(&mut Vec::new()));
    let mut left = Vec::new();
    first.wait(first.commits.strays.take(&mut left));
    assert!(left.iter().all(|op| op.origin == Origin::Relaxed && op.counter == counter("a")));
    assert_eq!(u64::try_from(counted).expect("it was added to") + left.len() as u64, COUNT);
    assert_eq!(first.commits.stats.relaxed_lost.load(Ordering::Relaxed), 0);
    assert_eq!(first.commits.queued(), 0);
}

#[test]
fn those_who_were_just_answered_are_gathered_and_nobody_is_waited_for_without_end() {
    let (store, mut sent) = (store(), 0);
    let node = owner(&store);
    store.delay_appends(Duration::from_millis(4));
    let pause = || node.wait(async { tokio::time::sleep(Duration::from_micros(500)).await });
    let mut submit = |count: u32| {
        let op = |_| Op { origin: Origin::Relaxed, ..add("a", 1, 0) };
        node.commits.submit((0..count).map(op)).expect("there is room");
        sent += i64::from(count);
    };
    let settled = || {
        while node.commits.queued() > 0 {
            pause();
        }
        node.commits.stats.entries.load(Ordering::Relaxed)
    };
    // A machine that has other things to do may be late with the second half.
    let gathered = (0..50).any(|_| {
        for _ in 0..3 {
            submit(40);
            settled();
        }
        let before = settled();
        submit(20);
        pause();
        submit(20);
        settled() == before + 1
    });
    assert!(gathered, "the second half never shared the first one's entry");
    submit(1);
    settled();
    assert!(node.wait(node.commits.confirm(shard("a"))));
    assert_eq!(node.value("a"), Some(sent));
}

#[test]
fn an_idle_owner_that_was_replaced_does_not_confirm() {
    let store = store();
    let (first, second) = (owner(&store), Node::on(&store));
    second.wait(second.commits.take_over(0)).expect("taken over");
    assert!(!first.wait(first.commits.confirm(0)));
    assert!(first.wait(first.commits.confirm(1)));
    assert!(!second.wait(second.commits.confirm(1)), "never its own");
}

#[test]
fn an_append_without_an_answer_is_settled_by_sending_it_again() {
    for fault in [Fault::UnknownApplied, Fault::UnknownNotApplied, Fault::NotApplied] {
        let store = store();
        let node = owner(&store);
        assert_eq!(node.add("a", 1), applied(1));
        store.inject(fault);
        let outcome = node.add("a", 1);
        let counted = if fault == Fault::NotApplied { 1 } else { 2 };
        let expected = if counted == 2 { applied(2) } else { Outcome::NotApplied };
        assert_eq!(outcome, expected, "{fault:?}");
        assert_eq!(node.add("a", 1), applied(counted + 1));
    }
}

#[test]
fn keys_are_found_while_they_are_recent_and_after_a_checkpoint() {
    let store = store();
    let node = owner(&store);
    assert_eq!(node.ask(vec![keyed("a", 3, "k", 0)]), [applied(3)]);
    let id = counter("a");
    let found = node.wait(node.commits.recent_key(shard("a"), key_hash("a"), id, "k")).expect("it is served");
    assert_eq!(found.record.map(|record| record.value), Some(3));
    node.stop();
    let node = owner(&store);
    assert_eq!(node.ask(vec![keyed("a", 3, "k", 0)]), [Outcome::Applied { value: 3, replayed: true }]);
}

#[test]
fn a_stop_writes_what_waits_and_ends() {
    let store = store();
    let node = owner(&store);
    node.ask((0..200).map(|i| add(&format!("c{i}"), i64::from(i), i)).collect());
    node.stop();
    let node = owner(&store);
    assert_eq!(node.add("c150", 1), applied(151));
    assert_eq!(node.commits.queued(), 0);
}

#[test]
fn what_is_asked_of_a_busy_lane_is_answered() {
    let store = store();
    let node = owner(&store);
    assert_eq!(node.ask(vec![keyed("a", 3, "k", 0)]), [applied(3)]);
    store.delay_appends(Duration::from_millis(2));
    let load = async {
        loop {
            node.commits.submit(std::iter::once(add("a", 1, 0))).expect("there is room");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    let asked = async {
        let key = node.commits.recent_key(shard("a"), key_hash("a"), counter("a"), "k").await;
        node.commits.checkpoint_due.notify_one();
        while node.commits.stats.checkpoints.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        key
    };
    let found = node.wait(async {
        tokio::select! {
            found = asked => found,
            () = load => unreachable!("it never ends"),
        }
    });
    assert_eq!(found.expect("it is served").record.map(|record| record.value), Some(3));
}
