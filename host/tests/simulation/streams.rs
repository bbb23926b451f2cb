//! Producers on other nodes and the streams between. A stream that broke may still deliver what was written to it, late.

use std::collections::{BTreeMap, VecDeque};

use quipu::shard::producer::Producer;
use quipu::shard::{Op, Outcome};

pub struct Peer {
    pub producer: Producer,
    /// Index of the stream that is open.
    pub stream: Option<usize>,
    /// Operations by token, with their deadlines.
    pub tokens: BTreeMap<u64, (usize, u64)>,
    pub wants_id: bool,
    pub wants_retry: bool,
}

pub struct Stream {
    pub peer: usize,
    pub node: usize,
    /// The process it leads to.
    pub life: u64,
    pub open: bool,
    pub to_node: VecDeque<(u64, Op)>,
    /// Round, sequence, outcome.
    pub to_peer: VecDeque<(u64, u64, Outcome)>,
}

impl Peer {
    pub fn new(id: u128) -> Self {
        Self { producer: Producer::new(id), stream: None, tokens: BTreeMap::new(), wants_id: false, wants_retry: false }
    }
}
