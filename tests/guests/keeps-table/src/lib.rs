//! A well-behaved policy with I/O: it counts in `storage` how often it chose each candidate, and chooses the rarest.
//!
//! The table of a counter is the value of the key `table/` and the counter: one little-endian u32 per candidate. Equal
//! counts: the first one. While the storage does not answer, or the value is not such a table, it starts from zeros.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::{format, string::String, vec, vec::Vec};

use quipu_selection::{Request, Selection, no_config, selection, storage};

pub struct KeepsTable;

selection!(KeepsTable);

impl Selection for KeepsTable {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn select(&mut self, request: &Request) -> u32 {
        // `table/` is six bytes, and a key has at most 512: the longest counters share one table.
        let key = if request.counter.len() > 500 { "long".into() } else { format!("table/{}", request.counter) };
        let mut table = match storage::get(&key) {
            Ok(Some(value)) if value.len() == 4 * request.candidates.len() => decode(&value),
            _ => vec![0; request.candidates.len()],
        };
        let Some(at) = (0..table.len()).min_by_key(|&at| table[at]) else { return request.first() };
        table[at] = table[at].saturating_add(1);
        let value: Vec<u8> = table.iter().flat_map(|count| count.to_le_bytes()).collect();
        // A count that is lost only makes the next choice a little less even.
        let _ = storage::put(&key, &value);
        request.candidates[at]
    }
}

fn decode(value: &[u8]) -> Vec<u32> {
    value.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}
