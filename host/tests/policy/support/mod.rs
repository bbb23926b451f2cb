//! What the tests of policies share: guests, views and questions.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::sync::Arc;

use quipu::policy::{
    Binding, Engine, Kind, Local, Partial, Read, Revision, Select, Settings, ShardInfo, View, breaker,
};

/// A component of `tests/guests`.
pub fn guest(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/guests/target/guests/{name}.wasm"));
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; run `make guests` first", file.display()))
}

/// Views of different numbers differ.
pub fn view(number: u32, shards: u32) -> View {
    let info = |shard| ShardInfo { shard, available: true, local: shard % 2 == 0, owner_cpu: 0.25, queued: number };
    View { version: 0, shards: (0..shards).map(info).collect() }
}

/// A breaker that never opens, to count every fault.
pub fn patient() -> breaker::Settings {
    breaker::Settings {
        consecutive_failures_max: u32::MAX,
        window_failures_max: u32::MAX,
        memory_failures_max: u32::MAX,
        ..breaker::Settings::default()
    }
}

pub fn engine_with(settings: Settings) -> Arc<Engine> {
    let engine = Engine::new(settings).expect("an engine");
    engine.publish(view(1, 12));
    engine
}

pub fn engine() -> Arc<Engine> {
    engine_with(Settings { breaker: patient(), ..Settings::default() })
}

pub fn bind(engine: &Arc<Engine>, guest_name: &str, config: &str) -> Arc<Binding> {
    let revision = engine.load(guest_name, &guest(guest_name)).unwrap_or_else(|error| panic!("{guest_name}: {error}"));
    engine.bind(&revision, config).unwrap_or_else(|error| panic!("{guest_name} {config:?}: {error}"))
}

pub const CANDIDATES: &[u32] = &[4, 9, 1];

pub fn addition() -> Select<'static> {
    Select { counter: "example-counter", amount: 1, key_hash: 7, candidates: CANDIDATES }
}

pub fn read() -> Read<'static> {
    Read { counter: "example-counter", key_hash: 7, shards: CANDIDATES, max_age_ms: 0 }
}

pub fn partials() -> [Partial; 3] {
    [Partial { shard: 4, value: i64::MAX }, Partial { shard: 9, value: i64::MAX }, Partial { shard: 1, value: -5 }]
}

pub fn sum() -> i128 {
    2 * i128::from(i64::MAX) - 5
}

/// Asks `calls` times; answers how many of the answers were the policy's.
pub fn ask(local: &mut Local, binding: &Arc<Binding>, calls: u32) -> u32 {
    (0..calls).filter(|_| !local.select_now(binding, &addition()).expect("it runs inline").fallback).count() as u32
}

pub fn faults(revision: &Revision) -> Vec<(&'static str, u64)> {
    Kind::ALL.iter().map(|&kind| (kind.name(), revision.stats().faults(kind))).filter(|(_, count)| *count > 0).collect()
}

/// Resident memory of this process.
pub fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is there");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
}
