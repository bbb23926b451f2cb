//! An aggregation policy that misbehaves in the way its `config` names; see the table in the README beside it.
//!
//! Whatever is not its misbehaviour it does well: it plans `all` and sums.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{format, string::String, vec, vec::Vec};
use core::hint::black_box;

use quipu_aggregation::{Aggregation, Partial, Plan, Request, View, aggregation, sum};

const KNOWN: [&str; 18] = [
    "",
    "error-in-combine",
    "grow-in-combine",
    "huge-error-in-combine",
    "largest-total",
    "loop-in-combine",
    "loop-in-plan",
    "only-a-million",
    "only-foreign-shards",
    "only-nothing",
    "only-one",
    "only-one-thrice",
    "smallest-total",
    "trap-in-combine",
    "trap-in-configure",
    "trap-in-plan",
    "trap-in-refresh",
    "wrong-total",
];

pub struct Misbehaves {
    how: String,
    kept: Vec<Vec<u8>>,
}

aggregation!(Misbehaves);

impl Aggregation for Misbehaves {
    fn configure(config: &str) -> Result<Self, String> {
        match config {
            "trap-in-configure" => panic!(),
            _ if KNOWN.contains(&config) => Ok(Self { how: config.into(), kept: vec![] }),
            _ => Err(format!("unknown misbehaviour {config:?}")),
        }
    }

    fn refresh(&mut self, _view: &View) {
        assert!(self.how != "trap-in-refresh");
    }

    fn plan(&mut self, request: &Request) -> Plan {
        let first = request.shards.first().copied().unwrap_or(0);
        match self.how.as_str() {
            "trap-in-plan" => panic!(),
            "loop-in-plan" => endless(),
            "only-foreign-shards" => Plan::Only(vec![u32::MAX, 1 << 20]),
            "only-nothing" => Plan::Only(vec![]),
            "only-a-million" => Plan::Only(vec![first; 1_000_000]),
            "only-one" => Plan::Only(vec![first]),
            "only-one-thrice" => Plan::Only(vec![first; 3]),
            _ => Plan::All,
        }
    }

    fn combine(&mut self, partials: &[Partial]) -> Result<i128, String> {
        match self.how.as_str() {
            "trap-in-combine" => panic!(),
            "loop-in-combine" => endless(),
            "grow-in-combine" => loop {
                self.kept.push(vec![1; 1 << 20]);
            },
            "error-in-combine" => Err("this policy has no total".into()),
            "huge-error-in-combine" => Err("no ".repeat(1 << 20)),
            "wrong-total" => Ok(sum(partials) + 1),
            "largest-total" => Ok(i128::MAX),
            "smallest-total" => Ok(i128::MIN),
            _ => Ok(sum(partials)),
        }
    }
}

fn endless() -> ! {
    loop {
        black_box(());
    }
}
