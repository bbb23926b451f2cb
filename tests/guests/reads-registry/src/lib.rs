//! A well-behaved policy with I/O: the registry's key `preferred` names the shard that takes additions.
//!
//! The value is a decimal number. While the key is missing, is no number or names no candidate, and while the registry
//! does not answer, the first candidate takes them. It reads the key on every call.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use alloc::string::String;

use quipu_selection::{Request, Selection, no_config, registry, selection};

pub struct ReadsRegistry;

selection!(ReadsRegistry);

impl Selection for ReadsRegistry {
    fn configure(config: &str) -> Result<Self, String> {
        no_config(config).map(|()| Self)
    }

    fn select(&mut self, request: &Request) -> u32 {
        let preferred = match registry::get("preferred") {
            Ok(Some(value)) => core::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        preferred.filter(|shard| request.candidates.contains(shard)).unwrap_or_else(|| request.first())
    }
}
