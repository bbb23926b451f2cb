//! What a million idle counters cost in memory, with 24-byte ids: the readable state alone, without a store.
//!
//! `cargo run --release -p quipu --example counter_memory [SPREAD]`. Counters are written in groups as the commit thread would,
//! and half of the way a checkpoint makes them clean, as in a node that runs for long.

use std::sync::Arc;

use parking_lot::RwLock;
use quipu::counter::{Id, candidates, key_hash};
use quipu::shard::entry::{Change, Entry};
use quipu::shard::{Partial, Partials};

const SHARDS: u32 = 12;
const COUNTERS: usize = 1_000_000;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Resident bytes of this process, now and at most so far.
fn resident() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("Linux says");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number")
    };
    (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
}

fn fill(tables: &[Arc<RwLock<Partials>>], spread: u32) {
    for (seq, first) in (1..).zip((0..COUNTERS).step_by(10_000)) {
        let mut changes: Vec<Vec<Change>> = (0..SHARDS).map(|_| Vec::new()).collect();
        for nth in first..first + 10_000 {
            let counter = Id::new(&format!("counter-{nth:016}")).expect("valid");
            let hash = key_hash(counter.as_str());
            for shard in candidates(hash, SHARDS, spread) {
                let partial = Partial { value: nth as i64, seq, created_at_ms: 1, ..Partial::default() };
                changes[shard as usize].push(Change { counter: counter.clone(), hash, partial });
            }
        }
        for ((table, changes), shard) in tables.iter().zip(changes).zip(0..) {
            let entry = Entry {
                shard,
                epoch: 1,
                seq,
                id: seq,
                time_ms: Some(seq),
                changes,
                keys: Vec::new(),
                marks: Vec::new(),
            };
            let mut partials = table.write();
            partials.apply(&entry);
            if seq % 10 == 0 {
                partials.checkpointed(seq);
            }
        }
    }
}

fn main() {
    let spread = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let tables: Vec<Arc<RwLock<Partials>>> = (0..SHARDS).map(|_| Arc::default()).collect();
    let (before, _) = resident();
    fill(&tables, spread);
    let (after, most) = resident();
    let partials: usize = tables.iter().map(|table| table.read().len()).sum();
    let each = (after - before) * 1024.0 * 1024.0 / partials as f64;
    println!("spread {spread}: {partials} partials, {after:.0} MiB resident ({before:.0} before, {most:.0} at most)");
    println!("{each:.0} bytes a partial");
}
