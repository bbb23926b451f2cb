//! What is measured of a cluster, and what it must reach beside Cassandra's counter columns and the first system.

use serde::Serialize;

use crate::plan::Load;

/// Numbers of nodes, each a cluster of its own.
pub const NODES: [usize; 3] = [1, 2, 3];
/// Clients that add at once, each waiting for its answer before it adds again.
pub const CLIENTS: [u32; 2] = [64, 256];
/// Additions in one batch.
pub const BATCH: Load = Load::Batch { ops: 100 };
pub const BATCH_CLIENTS: u32 = 64;
/// Seconds of batches that lengthen a journal before its owner is killed.
pub const LOADED_SECONDS: [u32; 3] = [0, 4, 12];
/// Longest takeover after a crash beyond the time of the lease, in seconds.
pub const TAKEOVER_SLACK_SECONDS: f64 = 1.0;
/// Longest time without a successful addition for the clients of one surviving node.
pub const GAP_TARGET_MS: f64 = 100.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Columns of the type `counter` on the same Cassandra.
    Columns,
    /// The system that Quipu replaces, on the same etcd.
    First,
    /// Quipu as one process on its own store, without etcd and Cassandra.
    Alone,
    /// Quipu with so many nodes.
    Nodes(usize),
}

impl Subject {
    pub fn name(self) -> String {
        match self {
            Self::Columns => "counter columns".into(),
            Self::First => "first system".into(),
            Self::Alone => "1 process, own store".into(),
            Self::Nodes(1) => "1 node".into(),
            Self::Nodes(count) => format!("{count} nodes"),
        }
    }
}

/// How clients reach Quipu. Those of the yardsticks have their own ways, which stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Wire {
    /// Each client has a connection.
    #[serde(rename = "HTTP/1.1")]
    Http1,
    /// All clients of a node share two, as the clients of a Cassandra driver do.
    #[serde(rename = "HTTP/2")]
    Http2,
    /// The same, by the protocol of Redis.
    #[serde(rename = "RESP")]
    Resp,
}

impl Wire {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Resp => "RESP",
        }
    }
}

/// One load of so many clients, given to every subject in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cell {
    pub load: Load,
    pub clients: u32,
    pub wire: Wire,
}

impl Cell {
    /// For tables.
    pub fn clients_by_wire(self) -> String {
        format!("{}, {}", self.clients, self.wire.name())
    }

    /// What Quipu is compared with.
    pub fn yardstick(self) -> Subject {
        if self.load == Load::Increment { Subject::First } else { Subject::Columns }
    }

    /// What is measured of Quipu: the first system ran on one machine too, so there a process without a cluster counts as well.
    pub fn quipus(self) -> Vec<Subject> {
        let alone = (self.load == Load::Increment).then_some(Subject::Alone);
        alone.into_iter().chain(NODES.map(Subject::Nodes)).collect()
    }
}

/// What runs at the same time: one subject of Quipu, and what it is compared with. The load goes from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub yardstick: Subject,
    pub quipu: Subject,
}

impl Pair {
    /// In the order of one round.
    pub fn cells(self) -> Vec<Cell> {
        let mine = |cell: &Cell| cell.yardstick() == self.yardstick && cell.quipus().contains(&self.quipu);
        cells().into_iter().filter(mine).collect()
    }

    /// The nodes to kill are its.
    pub fn is_killed(self) -> bool {
        self == Self { yardstick: Subject::Columns, quipu: Subject::Nodes(NODES[NODES.len() - 1]) }
    }
}

/// One after the other; those with the first system are the last.
pub fn pairs() -> Vec<Pair> {
    let mut pairs = Vec::new();
    for cell in cells() {
        for quipu in cell.quipus() {
            let pair = Pair { yardstick: cell.yardstick(), quipu };
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
    }
    pairs
}

/// A quotient to report: operations per second of Quipu in a cell over those of its yardstick, there or with another load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    pub cell: Cell,
    pub beside: Cell,
    /// For one node, and for one process on its own store. More nodes on the same cores have none.
    pub target: Option<f64>,
}

/// Everything.
pub fn cells() -> Vec<Cell> {
    let single = |load, wire| CLIENTS.map(|clients| Cell { load, clients, wire });
    let mut all = Vec::new();
    for wire in [Wire::Http1, Wire::Http2, Wire::Resp] {
        all.extend([Load::Add, Load::AddMany].map(|load| single(load, wire)).concat());
    }
    all.push(Cell { load: BATCH, clients: BATCH_CLIENTS, wire: Wire::Http1 });
    all.extend(single(Load::Increment, Wire::Http1));
    all
}

pub fn comparisons() -> Vec<Comparison> {
    let single = |clients| if clients < 256 { 2.0 } else { 3.0 };
    let mut all = Vec::new();
    for cell in cells() {
        let compare = |load, target| Comparison { cell, beside: Cell { load, ..cell }, target };
        match cell.load {
            Load::Batch { .. } => all.extend([compare(Load::AddMany, Some(20.0)), compare(cell.load, None)]),
            Load::Increment => all.push(compare(cell.load, Some(20.0))),
            load => all.push(compare(load, Some(single(cell.clients)))),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_measured_of_each_of_its_subjects_and_nodes_of_one_pair_are_killed() {
        let measured: Vec<_> =
            pairs().into_iter().flat_map(|pair| pair.cells().into_iter().map(move |cell| (cell, pair.quipu))).collect();
        let wanted: Vec<_> =
            cells().into_iter().flat_map(|cell| cell.quipus().into_iter().map(move |quipu| (cell, quipu))).collect();
        assert_eq!(measured.len(), wanted.len());
        assert!(wanted.iter().all(|it| measured.contains(it)), "{wanted:?}");
        assert_eq!(pairs().into_iter().filter(|pair| pair.is_killed()).count(), 1);
        assert!(pairs().is_sorted_by_key(|pair| pair.yardstick == Subject::First), "its processes run from then on");
    }

    #[test]
    fn every_comparison_is_between_measured_cells() {
        for Comparison { cell, beside, .. } in comparisons() {
            assert!(cells().contains(&cell) && cells().contains(&beside), "{cell:?} {beside:?}");
        }
    }
}
