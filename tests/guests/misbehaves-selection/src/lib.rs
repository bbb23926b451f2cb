//! A selection policy that misbehaves in the way its `config` names; see the table in the README beside it.
//!
//! Whatever is not its misbehaviour it does well: it answers the first candidate. It imports `metrics` and `log`, so it
//! runs inline.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{format, string::String, vec, vec::Vec};
use core::hint::black_box;

use quipu_selection::{Request, Selection, View, log, metrics, selection};

const KNOWN: [&str; 25] = [
    "",
    AS_THE_COUNTER_SAYS,
    "busy-3-ms",
    "busy-40-us",
    "error-in-configure",
    "flood-log",
    "grow-a-little-each-call",
    "grow-without-end",
    "huge-error-in-configure",
    "keep-every-request",
    "huge-log-line",
    "long-log-lines",
    "loop-in-configure",
    "loop-in-refresh",
    "loop-in-select",
    "metrics-without-end",
    "no-candidate",
    "no-shard",
    "recurse",
    "trap-in-configure",
    "trap-in-refresh",
    "trap-in-select",
    "trap-in-second-refresh",
    "trap-on-hundredth-call",
    "trap-on-nan",
];

/// The misbehaviour is what follows the last `/` of the counter's id: none of it shows in a dry run.
const AS_THE_COUNTER_SAYS: &str = "as-the-counter-says";

pub struct Misbehaves {
    how: String,
    calls: u32,
    refreshes: u32,
    kept: Vec<Vec<u8>>,
}

selection!(Misbehaves);

impl Selection for Misbehaves {
    fn configure(config: &str) -> Result<Self, String> {
        match config {
            "trap-in-configure" => panic!(),
            "loop-in-configure" => endless(),
            "error-in-configure" => Err("this policy refuses every rule".into()),
            "huge-error-in-configure" => Err("no ".repeat(1 << 20)),
            _ if KNOWN.contains(&config) => Ok(Self { how: config.into(), calls: 0, refreshes: 0, kept: vec![] }),
            _ => Err(format!("unknown misbehaviour {config:?}")),
        }
    }

    fn refresh(&mut self, view: &View) {
        self.refreshes += 1;
        match self.how.as_str() {
            "trap-in-refresh" => panic!(),
            "trap-in-second-refresh" if self.refreshes == 2 => panic!(),
            "loop-in-refresh" => endless(),
            "trap-on-nan" => {
                let seen = view.shards.iter().map(|shard| shard.owner_cpu);
                let asked = view.shards.iter().filter_map(|shard| metrics::shard_cpu(shard.shard));
                assert!(!seen.chain(asked).chain([metrics::node_cpu()]).any(f64::is_nan));
            }
            _ => {}
        }
    }

    fn select(&mut self, request: &Request) -> u32 {
        self.calls += 1;
        let how = match self.how.as_str() {
            AS_THE_COUNTER_SAYS => request.counter.rsplit('/').next().unwrap_or_default(),
            how => how,
        };
        match how {
            "trap-in-select" => panic!(),
            "trap-on-hundredth-call" if self.calls == 100 => panic!(),
            "loop-in-select" => endless(),
            "busy-3-ms" => busy(3_000_000),
            "busy-40-us" => busy(40_000),
            "recurse" => return recurse(request, 0),
            "no-candidate" => return (0..).find(|shard| !request.candidates.contains(shard)).unwrap_or(u32::MAX),
            "no-shard" => return u32::MAX,
            "grow-without-end" => loop {
                self.kept.push(vec![1; 1 << 20]);
            },
            "grow-a-little-each-call" => self.kept.push(vec![1; 64 << 10]),
            "keep-every-request" => self.kept.push(request.counter.clone().into_bytes()),
            "flood-log" => (0..1_000).for_each(|n| log::write(log::Level::Error, &format!("line {n}"))),
            "long-log-lines" => log::write(log::Level::Info, &"é".repeat(50_000)),
            "huge-log-line" => log::write(log::Level::Info, &"x".repeat(1 << 20)),
            "metrics-without-end" => loop {
                black_box(metrics::shard_queued(request.first()));
            },
            _ => {}
        }
        request.first()
    }
}

fn endless() -> ! {
    loop {
        black_box(());
    }
}

/// About a nanosecond a step: each one waits for the product of the last.
fn busy(steps: u64) {
    (0..steps).fold(1, |x: u64, step| black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step)));
}

/// Two thousand million levels deep. It uses its frame after the inner call, so that no optimiser makes a loop of it.
fn recurse(request: &Request, depth: u32) -> u32 {
    let frame = black_box([depth; 16]);
    if depth == 1 << 31 {
        return request.first();
    }
    recurse(request, depth.wrapping_add(1)).wrapping_add(black_box(frame)[3])
}
