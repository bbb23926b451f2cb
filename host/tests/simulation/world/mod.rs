//! Everything that happens, one small event at a time, chosen by the seed.

mod callers;
mod clocks;
mod owners;
mod producers;
mod readers;
mod store;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::Arc;

use quipu::counter::key_hash;
use quipu::shard::Entry;
use quipu::shard::partials::Resident;

use super::Mutation;
use super::clients::{Life, SUMS, Sums, Told, sum_id};
use super::disk::Disk;
use super::node::{Node, Owner};
use super::rng::Rng;
use super::streams::{Peer, Stream};

/// Longer than a run.
pub const KEY_WINDOW_MS: u64 = 1_000_000;
/// Deadline of an operation of a producer.
const DEADLINE_MS: u64 = 500;
/// How long a silent producer is remembered.
const MARK_LIFETIME_MS: u64 = 1_000;
const NODES: usize = 2;
/// Processes whose callers use shards of other nodes.
const PEERS: usize = 2;
/// Months after 1970, so that a clock may be days behind.
const BEGIN_MS: u64 = 10_000_000_000;
const LIVES: usize = 3;
/// An event loop that needs more than this does not come to an end.
const HEALING_STEPS: usize = 200_000;

/// How often the interesting things happened, so that a simulation in which nothing does cannot pass.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    trace: u64,
    acknowledged: u64,
    refused: u64,
    unknown: u64,
    replayed: u64,
    takeovers: u64,
    crashes: u64,
    fenced: u64,
    resent: u64,
    checkpoints: u64,
    evictions: u64,
    skips: u64,
    renamed: u64,
    reads: u64,
    stood_by: u64,
    relaxed: u64,
    returned: u64,
    forgotten: u64,
    ended: u64,
    clock_steps: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.trace = self.trace.wrapping_mul(31).wrapping_add(other.trace);
        let counts = [
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.refused, other.refused),
            (&mut self.unknown, other.unknown),
            (&mut self.replayed, other.replayed),
            (&mut self.takeovers, other.takeovers),
            (&mut self.crashes, other.crashes),
            (&mut self.fenced, other.fenced),
            (&mut self.resent, other.resent),
            (&mut self.checkpoints, other.checkpoints),
            (&mut self.evictions, other.evictions),
            (&mut self.skips, other.skips),
            (&mut self.renamed, other.renamed),
            (&mut self.reads, other.reads),
            (&mut self.stood_by, other.stood_by),
            (&mut self.relaxed, other.relaxed),
            (&mut self.returned, other.returned),
            (&mut self.forgotten, other.forgotten),
            (&mut self.ended, other.ended),
            (&mut self.clock_steps, other.clock_steps),
        ];
        counts.into_iter().for_each(|(sum, count)| *sum += count);
    }
}

impl Summary {
    pub fn assert_eventful(&self) {
        let Self { trace: _, acknowledged, refused, unknown, replayed, takeovers, crashes, .. } = *self;
        let Self {
            fenced,
            resent,
            checkpoints,
            evictions,
            skips,
            renamed,
            reads,
            stood_by,
            relaxed,
            returned,
            forgotten,
            ended,
            clock_steps,
            ..
        } = *self;
        let counts = [acknowledged, refused, unknown, replayed, takeovers, crashes, fenced, resent];
        assert!(counts.iter().all(|&count| count > 0), "{self:?}");
        let counts = [checkpoints, evictions, skips, renamed, reads, stood_by, relaxed, returned, forgotten, ended];
        assert!(clock_steps > 0, "{self:?}");
        assert!(counts.iter().all(|&count| count > 0), "{self:?}");
    }
}

/// Who waits for a local answer.
#[derive(Clone, Copy)]
enum Caller {
    Sum(usize),
    Life(usize),
}

/// An append on its way to the store.
struct Flight {
    node: usize,
    serial: u64,
    entry: Arc<Entry>,
    /// The writer has no answer yet.
    waits: bool,
}

pub struct World {
    rng: Rng,
    mutation: Option<Mutation>,
    verbose: bool,
    calm: bool,
    /// Real time, which nobody knows.
    now_ms: u64,
    /// By how much the wall clock of each machine is wrong: the nodes', then the producers'.
    wrong_ms: [i64; NODES + PEERS],
    /// Wall clocks that stand still, and at what.
    frozen_ms: [Option<u64>; NODES + PEERS],
    serial: u64,
    disk: Disk,
    nodes: Vec<Node>,
    /// Where callers look for the owner; it may be wrong.
    hint: usize,
    flights: Vec<Flight>,
    peers: Vec<Peer>,
    streams: Vec<Stream>,
    sums: Sums,
    lives: Vec<Life>,
    tickets: BTreeMap<u64, (usize, Caller)>,
    next_ticket: u64,
    last_read: [i64; SUMS],
    summary: Summary,
}

impl World {
    pub fn new(seed: u64, mutation: Option<Mutation>, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let peers = (0..PEERS).map(|_| Peer::new(u128::from(rng.next() | 2))).collect();
        Self {
            rng,
            mutation,
            verbose,
            calm: false,
            now_ms: BEGIN_MS,
            wrong_ms: [0; NODES + PEERS],
            frozen_ms: [None; NODES + PEERS],
            serial: 0,
            disk: Disk::default(),
            nodes: (0..NODES).map(|_| Node::default()).collect(),
            hint: 0,
            flights: Vec::new(),
            peers,
            streams: Vec::new(),
            sums: Sums::default(),
            lives: (0..LIVES).map(Life::new).collect(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            last_read: [0; SUMS],
            summary: Summary::default(),
        }
    }

    pub fn summary(self) -> Summary {
        self.summary
    }

    pub fn storm(&mut self, steps: usize) {
        self.take_over(0);
        for _ in 0..steps {
            self.event();
        }
    }

    /// No more faults; everything that is under way or unanswered comes to its end.
    pub fn heal(&mut self) {
        if !std::mem::replace(&mut self.calm, true) {
            self.take_over(0);
        }
        for _ in 0..HEALING_STEPS {
            if self.settled() {
                return;
            }
            self.event();
        }
        panic!("does not heal: {}", self.describe());
    }

    /// Now that nothing fails, each producer has an addition counted: no clock that was wrong keeps it out.
    pub fn forward(&mut self) {
        for peer in 0..PEERS {
            let Some(nth) = self.sums.draw(&mut self.rng, self.now_ms, false) else { continue };
            self.send_sum(peer, nth, u64::MAX);
            self.heal();
            assert_eq!(self.sums.ops[nth].told, Told::Applied, "an addition that nothing is in the way of");
        }
    }

    fn describe(&self) -> String {
        let unanswered: Vec<usize> = self.peers.iter().map(|peer| peer.producer.unanswered()).collect();
        let on_streams: usize = self.streams.iter().map(|stream| stream.to_node.len()).sum();
        let retries = self.sums.ops.iter().filter(|op| op.retry).count();
        let (flights, tickets) = (self.flights.len(), self.tickets.len());
        format!(
            "{flights} flights, {tickets} tickets, {retries} retries, {unanswered:?} with producers, {on_streams} on streams"
        )
    }

    fn settled(&self) -> bool {
        self.nodes[self.hint].epoch() == Some(self.disk.epoch)
            && self.flights.is_empty()
            && self.tickets.is_empty()
            && self.peers.iter().all(|peer| peer.producer.unanswered() == 0)
            && self.streams.iter().all(|stream| stream.to_node.is_empty())
            && self.sums.ops.iter().all(|op| !op.retry)
            && self.lives.iter().all(|life| life.current.is_none())
    }

    /// A new owner reads what is durable; nothing else remains.
    pub fn check(&mut self) {
        self.nodes[1] = Node::default();
        self.nodes[1].owner = Some(Owner::new(self.serial + 1, 0, None));
        while !self.nodes[1].serves() {
            self.progress_takeover(1);
        }
        let durable =
            |id: &str| match self.nodes[1].partials.get(key_hash(id), &quipu::counter::Id::new(id).expect("valid")) {
                Resident::Present(partial) => Some(partial.clone()),
                Resident::Missing | Resident::Unloaded => self.disk.partials.get(id).cloned(),
            };
        for counter in 0..SUMS {
            let id = sum_id(counter);
            let found = durable(id.as_str());
            assert_eq!(found.as_ref(), self.disk.newest(id.as_str()), "{id} was not read back as it was journaled");
            self.sums.check(counter, found.map_or(0, |partial| partial.value));
        }
        for life in &self.lives {
            let found = durable(life.id.as_str()).filter(|partial| !partial.removed);
            assert_eq!(found.map(|partial| partial.value), life.value, "{}", life.id);
        }
    }

    fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        let text = what(self);
        if self.verbose {
            println!("{:>7} {text}", self.now_ms);
        }
        for byte in text.bytes() {
            self.summary.trace = (self.summary.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    /// One event. Faults and new work are left out once everything shall heal.
    fn event(&mut self) {
        self.now_ms += self.rng.below(3) as u64;
        let node = self.rng.below(NODES);
        match self.rng.below(100) {
            0..14 => self.seal(node),
            14..26 => self.flight(),
            26..35 => self.deliver_to_node(),
            35..44 => self.deliver_to_peer(),
            44..50 => self.progress_takeover(self.taking_over().unwrap_or(node)),
            50..63 => self.answer_ask(node),
            63..67 => self.peer_acts(),
            67..71 => self.retry_sum(),
            71..75 => self.live(),
            75..81 => self.checkpoint(node),
            81..84 => self.finish_read(node),
            84..88 => self.confirm(node),
            _ if self.calm => self.find_owner(),
            88..92 => self.new_sum(),
            92 => self.begin_read(node),
            93 => self.follow(node),
            94 if self.rng.percent(50) => self.evict(node),
            95 => self.cut_a_stream(),
            96 if self.rng.percent(50) => self.time_out(),
            97 => self.expire(node),
            98 if self.rng.percent(30) => self.step_a_clock(),
            98 => self.give_up_waiting(),
            99 => match self.rng.below(100) {
                0..22 => self.take_over(node),
                22..34 => self.crash(node),
                _ => {}
            },
            _ => {}
        }
    }
}
