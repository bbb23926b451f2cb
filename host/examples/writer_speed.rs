//! How many operations a second the commit thread takes, the store costing nothing, or with the embedded store in the
//! folder that `QUIPU_DATA_DIR` names.
//!
//! `cargo run --release -p quipu --example writer_speed`. One thread submits groups and takes the answers; the figure is
//! that of both together, as in a node that is busy. For a profiler: `QUIPU_SECONDS=10`, and numbers of counters and of
//! operations in a group as arguments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quipu::commit::{self, Commits, Inbox, Settings, ticket};
use quipu::counter::{Bounds, Id, candidates, key_hash};
use quipu::shard::entry::{Entry, KeyRecord};
use quipu::shard::{Kind, Op, Origin, Outcome, Partial};
use quipu::store::embedded::{self, EmbeddedStore};
use quipu::store::{Appended, Checkpoint, Error, Listed, Raised, RollupPart, Store};

const SHARDS: u32 = 12;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Encodes what it is given, as every store must, and forgets it.
#[derive(Default)]
struct Nothing(parking_lot::Mutex<Vec<u8>>);

#[async_trait]
impl Store for Nothing {
    async fn raise(&self, _: u32) -> Result<Raised, Error> {
        Ok(Raised { epoch: 1, checkpoint_seq: 0, marks: Vec::new() })
    }
    async fn standing(&self, _: u32) -> Result<Raised, Error> {
        Ok(Raised { epoch: 1, checkpoint_seq: 0, marks: Vec::new() })
    }
    fn release(&self, _: u32, _: u64) {}
    async fn read(&self, _: u32, _: u64, _: usize) -> Result<Vec<Entry>, Error> {
        Ok(Vec::new())
    }
    async fn confirm(&self, _: u32, _: u64) -> Result<bool, Error> {
        Ok(true)
    }
    async fn append(&self, group: &[Arc<Entry>]) -> Result<Vec<Appended>, Error> {
        let mut bytes = self.0.lock();
        bytes.clear();
        group.iter().for_each(|entry| entry.encode(&mut bytes));
        Ok(vec![Appended::Applied; group.len()])
    }
    async fn checkpoint(&self, _: Vec<Checkpoint>) -> Result<(), Error> {
        Ok(())
    }
    async fn load(&self, _: u32, _: &Id) -> Result<Option<Partial>, Error> {
        Ok(None)
    }
    async fn load_key(&self, _: u32, _: &Id, _: &str) -> Result<Option<KeyRecord>, Error> {
        Ok(None)
    }
    async fn expire_keys(&self, _: u64, _: usize) -> Result<usize, Error> {
        Ok(0)
    }
    async fn list(&self, _: &str, _: Option<&Id>, _: usize) -> Result<Vec<Listed>, Error> {
        Ok(Vec::new())
    }
    async fn put_rollup(&self, _: &Id, _: &[RollupPart]) -> Result<(), Error> {
        Ok(())
    }
    async fn rollup(&self, _: &Id) -> Result<Vec<RollupPart>, Error> {
        Ok(Vec::new())
    }
    async fn get(&self, _: &str, _: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(None)
    }
    async fn put(&self, _: &str, _: &str, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    async fn delete(&self, _: &str, _: &str) -> Result<(), Error> {
        Ok(())
    }
    async fn scan(&self, _: &str, _: &str, _: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        Ok(Vec::new())
    }
    async fn recover(&self) -> Result<(), Error> {
        Ok(())
    }
    fn journal_bytes(&self) -> u64 {
        0
    }
}

fn adds(counters: usize) -> Vec<Op> {
    let add = |nth: usize| {
        let counter = Id::new(&format!("counter-of-24-bytes-{:04}", nth % 10_000 * 13 + nth / 10_000)).expect("valid");
        let hash = key_hash(counter.as_str());
        let shard = candidates(hash, SHARDS, 1)[0];
        let kind = Kind::Add { amount: 1, bounds: Bounds::NONE };
        Op { shard, counter, hash, kind, key: None, origin: Origin::Relaxed, at_ms: 1 }
    };
    (0..counters).map(add).collect()
}

/// Operations a second, and the part of the time that building and counting takes here.
fn measure(counters: usize, group: usize, seconds: u64) -> (f64, f64) {
    let store: Arc<dyn Store> = match std::env::var_os("QUIPU_DATA_DIR") {
        Some(dir) => {
            let dir = std::path::PathBuf::from(dir).join(format!("{counters}-{group}"));
            let segment_bytes = quipu::limits::LOG_SEGMENT_BYTES;
            let settings = embedded::Settings { dir, shards: SHARDS, segment_bytes };
            Arc::new(EmbeddedStore::open(settings).expect("the folder can be used"))
        }
        None => Arc::new(Nothing::default()),
    };
    let inbox = Arc::new(Inbox::default());
    let commits = Arc::new(Commits::new(SHARDS, vec![inbox.clone()]));
    let settings = Settings { key_window: Duration::from_secs(60), replay_bytes: 1 << 20, resident_max: 10_000_000 };
    let threads = commit::spawn(&commits, &store, settings).expect("this store opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let ops = adds(counters);
    let mut next = 0;
    let mut submit = || {
        let numbered = (0..group as u32).map(|index| {
            let op = &ops[next];
            next = if next + 1 == ops.len() { 0 } else { next + 1 };
            Op { origin: Origin::Local { ticket: ticket(0, 1), index }, ..op.clone() }
        });
        commits.submit(numbered).expect("there is room");
    };
    let mut answers = Vec::new();
    let mut round = |rounds: &mut u64, building: &mut Duration| {
        let begun = Instant::now();
        submit();
        *building += begun.elapsed();
        let mut answered = 0;
        while answered < group {
            runtime.block_on(inbox.take(&mut answers));
            answered += answers.drain(..).filter(|answer| matches!(answer.outcome, Outcome::Applied { .. })).count();
        }
        *rounds += 1;
    };
    // Makes every counter resident.
    let (mut rounds, mut building) = (0, Duration::ZERO);
    for _ in 0..counters.div_ceil(group).max(100) {
        round(&mut rounds, &mut building);
    }
    (rounds, building) = (0, Duration::ZERO);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        round(&mut rounds, &mut building);
    }
    let elapsed = begun.elapsed();
    commits.stop();
    threads.join().expect("the threads end well");
    (rounds as f64 * group as f64 / elapsed.as_secs_f64(), building.as_secs_f64() / elapsed.as_secs_f64())
}

fn main() {
    let seconds = std::env::var("QUIPU_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let wanted: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    println!("{:>9} {:>7} {:>12} {:>8} {:>9}", "counters", "group", "ops/s", "ns/op", "building");
    for counters in [1, 100_000] {
        for group in [16, 256, 10_000] {
            if wanted.is_empty() || wanted == [counters, group] {
                let (rate, building) = measure(counters, group, seconds);
                println!("{counters:>9} {group:>7} {rate:>12.0} {:>8.0} {:>8.0}%", 1e9 / rate, building * 100.0);
            }
        }
    }
}
