//! Several ownership machines against a model of the registry and the store, under joins, leaves, crashes, lost leases,
//! outages, late pictures, slow effects, failing takeovers, pauses beyond the lease, and clocks that go fast or slow.
//! Seeded: the same seed makes the same trace.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::assignment::desired;
use super::ownership::{Config, Effect, Event, Ownership};
use crate::registry::picture::{NodeInfo, Owner, Picture, State};

const SHARDS: u32 = 12;
const STEP: Duration = Duration::from_millis(50);
/// In steps.
const LEASE: u64 = 40;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

struct Node {
    machine: Ownership,
    info: NodeInfo,
    /// It reaches the registry.
    connected: bool,
    /// Its lease, as the registry knows it, ends at this step.
    lease_until: u64,
    /// Its watch is there; made anew one step after the connection.
    session: bool,
    recoveries: u64,
    /// Index of the last picture it was given.
    seen: usize,
    held: BTreeMap<u32, Owner>,
    under_way: VecDeque<(u64, Effect)>,
    draining: bool,
    /// It does nothing before this step.
    asleep_until: u64,
    /// What its clock makes of a second of the registry's.
    pace: f64,
}

struct World {
    random: StdRng,
    epoch_of_time: Instant,
    step: u64,
    chaos: bool,
    incarnations: u64,
    nodes: BTreeMap<&'static str, Node>,
    /// Keys of dead processes, until their leases end.
    orphans: Vec<(u64, NodeInfo)>,
    /// Every picture there was: nodes and owners. The last one is the registry now.
    pictures: Vec<Arc<Picture>>,
    /// The store's epochs.
    epochs: Vec<u64>,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let first = Arc::new(Picture::empty(now).with_session(true, now));
        Self {
            random: StdRng::seed_from_u64(seed),
            epoch_of_time: now,
            step: 0,
            chaos: true,
            incarnations: 0,
            nodes: BTreeMap::new(),
            orphans: Vec::new(),
            pictures: vec![first],
            epochs: vec![0; SHARDS as usize],
            trace: Vec::new(),
        }
    }

    fn registry(&self) -> &Arc<Picture> {
        self.pictures.last().unwrap()
    }

    fn change(&mut self, change: impl FnOnce(&mut Picture)) {
        let mut next = Picture::clone(self.registry());
        change(&mut next);
        next.revision += 1;
        self.pictures.push(Arc::new(next));
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    fn join(&mut self, name: &'static str) {
        self.incarnations += 1;
        let info = NodeInfo::idle(name, self.incarnations);
        let config = Config {
            node: name.into(),
            incarnation: self.incarnations,
            shards: SHARDS,
            lease_ttl: STEP * LEASE as u32,
        };
        let node = Node {
            machine: Ownership::new(config),
            info,
            connected: true,
            lease_until: 0,
            session: false,
            recoveries: 0,
            seen: 0,
            held: BTreeMap::new(),
            under_way: VecDeque::new(),
            draining: false,
            asleep_until: 0,
            pace: if self.chaos { self.random.random_range(0.6..1.6) } else { 1.0 },
        };
        self.nodes.insert(name, node);
    }

    fn crash(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            self.orphans.push((node.lease_until, node.info));
        }
    }

    fn delete_keys(&mut self, info: &NodeInfo) {
        let ours = |node: &str, incarnation| node == info.id && incarnation == info.incarnation;
        let now = self.registry();
        if !now.nodes.values().any(|node| ours(&node.id, node.incarnation))
            && !now.owners.values().any(|owner| ours(&owner.node, owner.incarnation))
        {
            return;
        }
        self.change(|picture| {
            Arc::make_mut(&mut picture.nodes).retain(|_, node| !ours(&node.id, node.incarnation));
            Arc::make_mut(&mut picture.owners).retain(|_, owner| !ours(&owner.node, owner.incarnation));
        });
    }

    fn end_leases(&mut self) {
        let step = self.step;
        let ended: Vec<NodeInfo> =
            self.orphans.extract_if(.., |(until, _)| *until <= step).map(|(_, info)| info).collect();
        let live = self.nodes.values_mut().filter_map(|node| {
            if node.connected && node.asleep_until <= step {
                node.lease_until = node.lease_until.max(if node.session { step + LEASE } else { 0 });
            }
            (node.lease_until <= step).then(|| {
                node.session = false;
                node.info.clone()
            })
        });
        let live: Vec<NodeInfo> = live.collect();
        for info in ended.iter().chain(&live) {
            self.delete_keys(info);
        }
    }

    /// What the session task does: registers, puts back, lists.
    fn reconnect(&mut self, name: &'static str) {
        let node = &self.nodes[name];
        let (info, held) = (node.info.clone(), node.held.clone());
        let registered = self.registry().nodes.get(name);
        if registered.is_some_and(|other| other.incarnation != info.incarnation) {
            return;
        }
        self.change(|picture| {
            Arc::make_mut(&mut picture.nodes).insert(name.into(), info.clone());
            let owners = Arc::make_mut(&mut picture.owners);
            for (shard, owner) in held {
                let there = owners.entry(shard).or_insert_with(|| owner.clone());
                if there.node == owner.node && there.incarnation == owner.incarnation {
                    *there = owner;
                }
            }
        });
        let (step, last) = (self.step, self.pictures.len() - 1);
        let node = self.nodes.get_mut(name).unwrap();
        (node.session, node.lease_until, node.seen) = (true, step + LEASE, last);
        node.recoveries += 1;
        self.deliver(name);
    }

    fn deliver(&mut self, name: &'static str) {
        let node = &self.nodes[name];
        let mut picture = Picture::clone(&self.pictures[node.seen]);
        picture.session.healthy = node.session;
        picture.session.recoveries = node.recoveries;
        picture.session.since = self.epoch_of_time;
        self.feed(name, Event::Picture(Arc::new(picture)));
    }

    fn feed(&mut self, name: &'static str, event: Event) {
        let delay = if self.chaos { 8 } else { 2 };
        let node = self.nodes.get_mut(name).unwrap();
        for effect in node.machine.step(event) {
            let due = self.step + self.random.random_range(0..delay);
            // One shard's effects keep their order, as the agent sees to.
            let behind = node.under_way.iter().filter(|(_, other)| other.shard() == effect.shard());
            let due = behind.map(|(due, _)| *due + 1).max().unwrap_or(0).max(due);
            node.under_way.push_back((due, effect));
            self.trace.push(format!("{} {name} {effect:?}", self.step));
        }
    }

    fn carry_out(&mut self, name: &'static str, effect: Effect) {
        let node = &self.nodes[name];
        let (reached, id, incarnation) = (node.session && node.connected, node.info.id.clone(), node.info.incarnation);
        let ours = |owner: &Owner| owner.node == id && owner.incarnation == incarnation;
        let there = self.registry().owners.get(&effect.shard()).cloned();
        let event = match effect {
            Effect::Claim { shard } => {
                let claimed = reached && there.as_ref().is_none_or(ours);
                if claimed {
                    let owner = Owner { node: id.clone(), incarnation, state: State::Acquiring, epoch: 0 };
                    let node = self.nodes.get_mut(name).unwrap();
                    node.held.entry(shard).or_insert(owner.clone());
                    if there.is_none() {
                        self.change(|picture| drop(Arc::make_mut(&mut picture.owners).insert(shard, owner)));
                    }
                }
                // Sometimes the answer is lost.
                let lost = self.chaos && self.one_in(20);
                Event::Claimed { shard, ours: claimed && !lost }
            }
            Effect::TakeOver { shard } => match self.chaos && self.one_in(8) {
                true => Event::AcquireFailed { shard },
                false => {
                    self.epochs[shard as usize] += 1;
                    Event::Acquired { shard, epoch: self.epochs[shard as usize] }
                }
            },
            Effect::Announce { shard, epoch } => {
                let owner = Owner { node: id.clone(), incarnation, state: State::Serving, epoch };
                let reached = reached && !(self.chaos && self.one_in(8));
                let node = self.nodes.get_mut(name).unwrap();
                if let Some(held) = node.held.get_mut(&shard) {
                    held.clone_from(&owner);
                    if reached && there.as_ref().is_some_and(ours) {
                        self.change(|picture| drop(Arc::make_mut(&mut picture.owners).insert(shard, owner)));
                    }
                }
                Event::Announced { shard }
            }
            Effect::Release { shard } => {
                self.nodes.get_mut(name).unwrap().held.remove(&shard);
                if reached && there.as_ref().is_some_and(ours) {
                    self.change(|picture| drop(Arc::make_mut(&mut picture.owners).remove(&shard)));
                }
                Event::Released { shard }
            }
        };
        self.feed(name, event);
    }

    fn disturb(&mut self) {
        let name = NAMES[self.random.random_range(0..NAMES.len())];
        let Some(node) = self.nodes.get_mut(name) else {
            return if self.one_in(2) {
                self.join(name)
            };
        };
        match self.random.random_range(0..7) {
            0 => self.crash(name),
            6 => {
                let steps = self.random.random_range(1..3 * LEASE);
                node.asleep_until = self.step + steps;
                self.trace.push(format!("{} {name} stands still for {steps}", self.step));
            }
            1 => (node.connected, node.session) = (false, false),
            2 => node.connected = true,
            3 => {
                // The registry takes the lease away.
                (node.lease_until, node.session) = (0, false);
                let info = node.info.clone();
                self.delete_keys(&info);
            }
            4 => self.drain(name),
            _ => {
                // An outage for everybody, for some time or until healed.
                let down = self.random.random_bool(0.5);
                self.nodes.values_mut().for_each(|node| {
                    (node.connected, node.session) = (!down, node.session && !down);
                });
            }
        }
    }

    fn drain(&mut self, name: &'static str) {
        let node = self.nodes.get_mut(name).unwrap();
        (node.draining, node.info.draining) = (true, true);
        if node.session && self.registry().nodes.contains_key(name) {
            let info = self.nodes[name].info.clone();
            self.change(|picture| drop(Arc::make_mut(&mut picture.nodes).insert(name.into(), info)));
        }
        self.feed(name, Event::Drain);
    }

    fn node_step(&mut self, name: &'static str) {
        let node = &self.nodes[name];
        if node.asleep_until > self.step {
            return;
        }
        self.feed(name, Event::Tick { now: (STEP * self.step as u32).mul_f64(node.pace) });
        let node = &self.nodes[name];
        match (node.connected, node.session) {
            (true, false) => self.reconnect(name),
            (false, _) => self.deliver(name),
            (true, true) => {
                let last = self.pictures.len() - 1;
                if self.nodes[name].seen < last && (!self.chaos || !self.one_in(3)) {
                    let from = self.nodes[name].seen;
                    let to = if self.chaos { self.random.random_range(from..=last) } else { last };
                    self.nodes.get_mut(name).unwrap().seen = to;
                    self.deliver(name);
                }
            }
        }
        let due: Vec<Effect> = {
            let (step, node) = (self.step, self.nodes.get_mut(name).unwrap());
            let (due, later): (Vec<_>, Vec<_>) = node.under_way.drain(..).partition(|(due, _)| *due <= step);
            node.under_way = later.into();
            due.into_iter().map(|(_, effect)| effect).collect()
        };
        for effect in due {
            self.carry_out(name, effect);
        }
        // A fenced owner learns it with its next append.
        for shard in 0..SHARDS {
            let fenced =
                self.nodes[name].machine.serves(shard).is_some_and(|epoch| epoch < self.epochs[shard as usize]);
            if fenced && self.one_in(5) {
                self.feed(name, Event::Lost { shard });
            }
        }
        if self.nodes[name].machine.is_drained() {
            let node = self.nodes.remove(name).unwrap();
            self.delete_keys(&node.info);
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step += 1;
            if self.chaos && self.one_in(15) {
                self.disturb();
            }
            let names: Vec<&'static str> = self.nodes.keys().copied().collect();
            for name in names {
                self.node_step(name);
            }
            self.end_leases();
        }
    }

    fn heal(&mut self) {
        self.chaos = false;
        self.nodes.values_mut().for_each(|node| (node.connected, node.asleep_until) = (true, 0));
        if self.nodes.values().all(|node| node.draining) {
            self.join(NAMES.into_iter().find(|name| !self.nodes.contains_key(name)).unwrap_or("f"));
        }
    }

    fn check(&self, seed: u64) {
        let registry = self.registry();
        let live = self.nodes.keys().copied().collect();
        let owners: Vec<_> = (0..SHARDS).map(|shard| registry.owners.get(&shard).map(|o| o.node.as_str())).collect();
        let map = desired(&live, &owners);
        for shard in 0..SHARDS {
            let what = format!("seed {seed}, shard {shard}: {:?}", registry.owners.get(&shard));
            let serving: Vec<_> =
                self.nodes.iter().filter_map(|(name, node)| Some((*name, node.machine.serves(shard)?))).collect();
            let epoch = self.epochs[shard as usize];
            assert_eq!(serving, [(map[shard as usize].unwrap(), epoch)], "{what}");
            let owner = &registry.owners[&shard];
            assert_eq!((owner.node.as_str(), owner.epoch), serving[0], "{what}");
            assert_eq!(owner.state, State::Serving, "{what}");
        }
    }
}

fn converge(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    NAMES[..3].iter().for_each(|name| world.join(name));
    world.run(700);
    world.heal();
    world.run(600);
    world.check(seed);
    let settled = world.trace.len();
    world.run(200);
    assert_eq!(&world.trace[settled..], [""; 0], "seed {seed}: a healed cluster stands still");
    world.trace
}

#[test]
fn after_healing_every_shard_is_served_by_exactly_the_desired_node() {
    let traces: Vec<String> = (0..120).flat_map(converge).collect();
    let longer = |line: &str| {
        line.rsplit_once("stands still for ").is_some_and(|(_, n)| n.parse().is_ok_and(|n: u64| n > LEASE))
    };
    assert!(traces.iter().any(|line| longer(line)), "somebody stood still beyond the lease");
}

#[test]
fn the_same_seed_makes_the_same_trace() {
    let trace = converge(7);
    assert!(trace.len() > 100);
    assert_eq!(trace, converge(7));
}

#[test]
fn a_start_waits_one_lease_and_a_dead_owner_is_replaced_at_once() {
    let mut world = World::new(1);
    world.chaos = false;
    world.join("a");
    world.join("b");
    world.run(LEASE - 2);
    assert!(world.registry().owners.is_empty());
    world.run(20);
    world.check(1);
    world.crash("a");
    world.run(LEASE + 10);
    world.check(1);
    assert!(world.registry().owners.values().all(|owner| owner.node == "b"));
}

#[test]
fn a_key_that_was_seen_and_let_go_is_claimed_without_waiting() {
    let mut world = World::new(4);
    world.chaos = false;
    world.join("a");
    world.run(2 * LEASE);
    world.join("b");
    world.run(LEASE - 2);
    assert!((0..SHARDS).any(|shard| world.nodes["b"].machine.serves(shard).is_some()), "{:?}", world.registry().owners);
}

#[test]
fn a_lost_lease_moves_nothing() {
    let mut world = World::new(2);
    world.chaos = false;
    world.join("a");
    world.join("b");
    world.run(2 * LEASE);
    let (owners, epochs) = (world.registry().owners.clone(), world.epochs.clone());
    for name in ["a", "b"] {
        let node = world.nodes.get_mut(name).unwrap();
        (node.connected, node.session) = (false, false);
    }
    // Nobody reaches the registry; the leases end; everybody goes on serving.
    world.run(2 * LEASE);
    assert!(world.registry().owners.is_empty());
    assert!((0..SHARDS).all(|shard| world.nodes.values().any(|node| node.machine.serves(shard).is_some())));
    world.heal();
    world.run(2 * LEASE);
    assert_eq!((world.registry().owners.clone(), world.epochs.clone()), (owners, epochs));
}

#[test]
fn a_drain_hands_over_a_few_shards_at_a_time() {
    let mut world = World::new(3);
    world.chaos = false;
    world.join("a");
    world.join("b");
    world.run(2 * LEASE);
    world.drain("a");
    let mut fewest = SHARDS as usize;
    while world.nodes.contains_key("a") {
        world.run(1);
        let served = (0..SHARDS).filter(|shard| world.nodes.values().any(|n| n.machine.serves(*shard).is_some()));
        fewest = fewest.min(served.count());
        assert!(world.step < 10 * LEASE, "the drain ends");
    }
    assert!(fewest >= SHARDS as usize - crate::limits::RELEASES_MAX, "{fewest}");
    world.run(LEASE);
    world.check(3);
}
