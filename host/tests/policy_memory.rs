//! The host's memory under ten thousand faults, a thousand swaps and a hundred uploads. Alone in its process, so that nothing else moves the figure.

#[path = "policy/support/mod.rs"]
mod support;

use std::sync::Arc;

use quipu::policy::{Grants, admission};
use support::{ask, bind, engine, faults, guest, resident_bytes, view};

/// One test, so that nothing runs beside it.
#[test]
fn memory_stays_flat_over_faults_swaps_and_uploads() {
    ten_thousand_faults();
    a_thousand_swaps();
    a_hundred_uploads();
}

fn ten_thousand_faults() {
    let engine = engine();
    let mut local = engine.local();
    let traps = bind(&engine, "misbehaves-selection", "trap-in-select");
    let grows = bind(&engine, "grow-table", "");
    let strays = bind(&engine, "misbehaves-selection", "no-shard");
    let floods = bind(&engine, "misbehaves-selection", "grow-without-end");
    let mut round = |calls: u32| {
        ask(&mut local, &traps, calls * 4);
        ask(&mut local, &strays, calls * 4);
        ask(&mut local, &grows, calls);
        ask(&mut local, &floods, calls / 10);
    };
    round(200);
    let before = resident_bytes();
    round(1_250);
    let after = resident_bytes();
    let count = |binding: &Arc<quipu::policy::Binding>| faults(&binding.revision).iter().map(|(_, n)| n).sum::<u64>();
    assert!(count(&traps) + count(&strays) >= 10_000);
    let grown = after.saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "resident memory grew by {} kB", grown / 1024);
}

/// Two revisions take turns, each time loaded and bound anew, and asked on this thread.
fn a_thousand_swaps() {
    let engine = engine();
    let mut local = engine.local();
    let cache = [guest("first-candidate"), guest("misbehaves-selection")];
    // Each revision is loaded anew, and bound twenty times.
    let mut swap = |times: u32| {
        for n in 0..times {
            let revision = engine.load("swapped", &cache[(n % 2) as usize]).expect("it loads");
            for _ in 0..20 {
                let binding = engine.bind(&revision, "").expect("it binds");
                assert_eq!(ask(&mut local, &binding, 3), 3);
                engine.publish(view(n, 12));
            }
        }
    };
    swap(5);
    let before = resident_bytes();
    swap(50);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "resident memory grew by {} kB over 1,000 swaps", grown / 1024);
}

/// Admitted, bound and forgotten: a good one, and one that is refused in the middle of its dry run.
fn a_hundred_uploads() {
    let engine = engine();
    let (good, bad) = (guest("misbehaves-selection"), guest("grow-table"));
    let upload = |times: u32| {
        for _ in 0..times {
            let (revision, _) = admission::admit(&engine, "good", &good).expect("it behaves without a config");
            let bound = admission::bind(&engine, &revision, "", Grants::default(), false).expect("it still does");
            assert_eq!(ask(&mut engine.local(), &bound, 3), 3);
            assert!(admission::admit(&engine, "bad", &bad).is_err());
        }
    };
    upload(10);
    let before = resident_bytes();
    upload(50);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "resident memory grew by {} kB over 100 uploads", grown / 1024);
}
