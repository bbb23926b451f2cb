//! What is measured, and what it must reach: the cells of the table, the ratios made of them, and their targets.

use serde::Serialize;

use Load::{Add, AddMany, Batch, Increment, Read};
use Server::{Bare, Durable, Native, Relaxed};

/// Counters that the `many` loads go through.
pub const COUNTERS: u32 = 100_000;
/// Coprime to the number of counters: going on by so many reaches all of them, and neighbours in time are none in a store.
pub const STRIDE: u32 = 7_919;
/// Begins the id of every counter of the bench; the relaxed rule matches it.
pub const PREFIX: &str = "bench-";
/// The counter that one-counter loads hit.
pub const HOT: &str = "bench-hot";
pub const CONNECTIONS: [u32; 3] = [16, 64, 256];
pub const BATCH_OPS: [u32; 2] = [1_000, 10_000];
/// Batches are sent over few connections: eight of the largest stay below the limit of Quipu's queue.
pub const BATCH_CONNECTIONS: u32 = 8;

/// Additions per second that `/v1/batch` must reach.
pub const BATCH_TARGET_PER_SECOND: f64 = 400_000.0;
/// Longest median of one policy call, in nanoseconds.
pub const POLICY_TARGET_NS: f64 = 1_000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// Hyper alone.
    Bare,
    /// Quipu without policies: the built-in native choice.
    Native,
    /// Quipu with the default policy, answering before the entry is durable.
    Relaxed,
    /// Quipu as it comes: the default policy, durable answers.
    Durable,
}

impl Server {
    pub const QUIPU: [Self; 3] = [Native, Relaxed, Durable];

    pub fn name(self) -> &'static str {
        match self {
            Bare => "bare hyper",
            Native => "native selection",
            Relaxed => "relaxed",
            Durable => "durable",
        }
    }

    /// For file names.
    pub fn slug(self) -> &'static str {
        match self {
            Bare => "bare",
            Native => "native",
            Relaxed => "relaxed",
            Durable => "durable",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// `POST /v1/counters/{id}/add` on one counter.
    Add,
    /// The same, evenly over [`COUNTERS`] counters.
    AddMany,
    /// `PUT /counter/increment`, the first system's route, on one counter.
    Increment,
    /// `GET /v1/counters/{id}` of one counter.
    Read,
    /// `POST /v1/batch` with so many additions.
    Batch { ops: u32 },
}

impl Load {
    pub fn name(self) -> String {
        match self {
            Add => "adds, one hot counter".into(),
            AddMany => "adds, 100,000 counters".into(),
            Increment => "increments by the first system's route, one hot counter".into(),
            Read => "reads, one hot counter".into(),
            Batch { ops: 1_000 } => "batches of 1,000 adds".into(),
            Batch { ops: 10_000 } => "batches of 10,000 adds".into(),
            Batch { ops } => format!("batches of {ops} adds"),
        }
    }

    /// Additions in one request; a read counts as one operation.
    pub fn operations(self) -> u32 {
        match self {
            Add | AddMany | Increment | Read => 1,
            Batch { ops } => ops,
        }
    }
}

/// One load at one number of connections, given to each of `servers` in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cell {
    pub load: Load,
    pub connections: u32,
    pub servers: &'static [Server],
}

impl Cell {
    /// The ratios to report: (server, over which server, target).
    pub fn ratios(&self) -> Vec<(Server, Server, Option<f64>)> {
        match self.load {
            Add | AddMany => vec![
                (Durable, Bare, durable_target(self.connections)),
                (Relaxed, Bare, Some(0.9)),
                (Native, Bare, None),
                (Durable, Native, Some(0.97)),
            ],
            Read => vec![(Durable, Bare, Some(0.85))],
            Batch { .. } | Increment => vec![(Durable, Native, None)],
        }
    }
}

/// With few connections the wait for the disk shows, with many it is shared.
fn durable_target(connections: u32) -> Option<f64> {
    match connections {
        0..=16 => Some(0.5),
        256.. => Some(0.85),
        _ => None,
    }
}

/// Everything, in the order of one round.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for load in [Add, AddMany] {
        cells.extend(CONNECTIONS.map(|connections| Cell {
            load,
            connections,
            servers: &[Bare, Native, Relaxed, Durable],
        }));
    }
    cells.extend(CONNECTIONS.map(|connections| Cell { load: Read, connections, servers: &[Bare, Durable] }));
    cells.extend(BATCH_OPS.map(|ops| Cell {
        load: Batch { ops },
        connections: BATCH_CONNECTIONS,
        servers: &[Native, Durable],
    }));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ratio_is_between_servers_of_its_cell() {
        for cell in cells() {
            for (of, over, _) in cell.ratios() {
                assert!(cell.servers.contains(&of) && cell.servers.contains(&over), "{cell:?}");
            }
        }
    }

    #[test]
    fn targets_are_those_of_the_contract() {
        assert_eq!(durable_target(16), Some(0.5));
        assert_eq!(durable_target(64), None);
        assert_eq!(durable_target(256), Some(0.85));
    }
}
