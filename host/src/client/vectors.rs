//! The author's own vectors for `quipu plugin test --vectors FILE`: questions and the answers that are right, as TOML.
//!
//! ```toml
//! config = ""
//! [[select]]
//! counter = "likes/1"
//! candidates = [3, 1, 7]
//! expect = [3, 1]          # any of these
//! [[combine]]
//! partials = [[0, 5], [3, -2]]
//! expect = "3"             # up to 128 bits, hence a text
//! ```

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::error::Error;
use crate::counter::key_hash;
use crate::policy::{Binding, Engine, Grants, Local, Partial, Revision, Select, ShardInfo, View, admission};
use crate::policy::{combine_pooled, select_pooled};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    /// Handed to the policy's `configure`.
    #[serde(default)]
    config: String,
    /// Shards of the view; all of them idle and served here.
    #[serde(default = "shards")]
    shards: u32,
    #[serde(default)]
    select: Vec<SelectVector>,
    #[serde(default)]
    combine: Vec<CombineVector>,
}

fn shards() -> u32 {
    crate::limits::SHARDS_DEFAULT
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectVector {
    counter: String,
    #[serde(default = "one")]
    amount: i64,
    candidates: Vec<u32>,
    expect: Vec<u32>,
}

fn one() -> i64 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CombineVector {
    partials: Vec<(u32, i64)>,
    expect: String,
}

/// Runs every vector; the number of those that passed, or the first that did not.
pub fn run(engine: &Arc<Engine>, revision: &Arc<Revision>, path: &Path) -> Result<usize, Error> {
    let text = std::fs::read_to_string(path).map_err(|why| Error::Usage(format!("{}: {why}", path.display())))?;
    let vectors: Vectors = toml::from_str(&text).map_err(|why| Error::Usage(format!("{}: {why}", path.display())))?;
    let shards =
        (0..vectors.shards).map(|shard| ShardInfo { shard, available: true, local: true, owner_cpu: 0.0, queued: 0 });
    engine.publish(View { version: 0, shards: shards.collect() });
    let bound = admission::bind(engine, revision, &vectors.config, Grants::ALL, false);
    let binding = bound.map_err(|why| Error::Failed(format!("{}: config: {why}", path.display())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_all(engine, &binding, &vectors))
}

async fn run_all(engine: &Arc<Engine>, binding: &Arc<Binding>, vectors: &Vectors) -> Result<usize, Error> {
    let mut local = engine.local();
    for (at, vector) in vectors.select.iter().enumerate() {
        let (chosen, fallback) = select(engine, &mut local, binding, vector).await;
        if fallback || !vector.expect.contains(&chosen) {
            let why = if fallback {
                failure(binding)
            } else {
                format!("it chose {chosen}, expected one of {:?}", vector.expect)
            };
            return Err(Error::Failed(format!("select vector {} (counter {:?}): {why}", at + 1, vector.counter)));
        }
    }
    for (at, vector) in vectors.combine.iter().enumerate() {
        let partials: Vec<Partial> = vector.partials.iter().map(|&(shard, value)| Partial { shard, value }).collect();
        let combined = match local.combine_now(binding, &partials) {
            Some(combined) => combined,
            None => combine_pooled(engine, binding, &partials).await,
        };
        if combined.fallback || combined.total.to_string() != vector.expect {
            let made = format!("it made {}, expected {}", combined.total, vector.expect);
            let why = if combined.fallback { failure(binding) } else { made };
            return Err(Error::Failed(format!("combine vector {}: {why}", at + 1)));
        }
    }
    Ok(vectors.select.len() + vectors.combine.len())
}

async fn select(engine: &Arc<Engine>, local: &mut Local, binding: &Arc<Binding>, vector: &SelectVector) -> (u32, bool) {
    let request = Select {
        counter: &vector.counter,
        amount: vector.amount,
        key_hash: key_hash(&vector.counter),
        candidates: &vector.candidates,
    };
    let chosen = match local.select_now(binding, &request) {
        Some(chosen) => chosen,
        None => select_pooled(engine, binding, &request).await,
    };
    (chosen.shard, chosen.fallback)
}

/// The guest's own fault.
fn failure(binding: &Binding) -> String {
    let fault = binding.revision.snapshot().last_fault;
    format!("the policy failed: {}", fault.unwrap_or_else(|| "it did not answer".into()))
}
