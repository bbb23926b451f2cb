//! A policy with I/O that misbehaves in the way its `config` names; see the table in the README beside it.
//!
//! Whatever is not its misbehaviour it does well: it answers the first candidate. What the host answers to a call that
//! breaks a limit goes to the log, so that a test can read it.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{format, string::String, vec};

use quipu_selection::{Request, Selection, log, registry, selection, storage};

const KNOWN: [&str; 11] = [
    "",
    "empty-key",
    "fill-registry",
    "fill-storage",
    "huge-argument",
    "huge-key",
    "huge-value",
    "list-everything",
    "registry-without-end",
    "storage-without-end",
    "trap-after-put",
];

pub struct Misbehaves {
    how: String,
    calls: u64,
}

selection!(Misbehaves);

impl Selection for Misbehaves {
    fn configure(config: &str) -> Result<Self, String> {
        match config {
            _ if KNOWN.contains(&config) => Ok(Self { how: config.into(), calls: 0 }),
            _ => Err(format!("unknown misbehaviour {config:?}")),
        }
    }

    fn select(&mut self, request: &Request) -> u32 {
        self.calls += 1;
        let (new_key, block) = (format!("{}/{}", request.counter, self.calls), vec![7; 64 << 10]);
        match self.how.as_str() {
            "registry-without-end" => loop {
                let _ = registry::get("key");
            },
            "storage-without-end" => loop {
                let _ = storage::partial(&request.counter, request.first());
            },
            "fill-registry" => say("registry.put", &registry::put(&new_key, &block)),
            "fill-storage" => say("storage.put", &storage::put(&new_key, &block)),
            "empty-key" => say("storage.get", &storage::get("")),
            "huge-key" => say("storage.get", &storage::get(&"k".repeat(513))),
            "huge-value" => say("storage.put", &storage::put("key", &vec![7; (64 << 10) + 1])),
            "huge-argument" => say("storage.put", &storage::put("key", &vec![7; 1 << 20])),
            "list-everything" => say("registry.list", &registry::list("", u32::MAX).map(|entries| entries.len())),
            "trap-after-put" => {
                say("storage.put", &storage::put("key", b"written"));
                panic!()
            }
            _ => {}
        }
        request.first()
    }
}

fn say(what: &str, answer: &impl core::fmt::Debug) {
    log::write(log::Level::Warn, &format!("{what}: {answer:?}"));
}
