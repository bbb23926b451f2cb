//! The sending side: operations for shards that this node does not serve, each by its shard's producer.
//!
//! One task owns all producers and streams. What became runnable together goes to a node in one message. A shard that
//! nobody serves keeps its operations here until somebody does or their time is over; relaxed ones, for which nobody
//! waits, are kept for as long as it takes. A shard that this node itself comes to serve gets them by the same way, so
//! that what was sent before is recognised.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::receiver::{Receiver, Session};
use super::stream::{self, Event, Tag};
use super::wire::message::{Operation, OperationOutcome, Operations};
use super::{Identity, Map, Member, Owner};
use crate::commit::{Collected, Commits};
use crate::limits;
use crate::shard::marks::RESERVED;
use crate::shard::producer::{self, Producer};
use crate::shard::{Op, Origin};

/// How often deadlines, retries and silent nodes are looked at.
const TICK: Duration = Duration::from_millis(20);

/// What the serving threads hold.
#[derive(Debug)]
pub struct Links {
    queue: Mutex<Vec<Op>>,
    wake: Notify,
    /// By shard: whether it is served by somebody who answers.
    reachable: Vec<AtomicBool>,
    /// Operations that are not answered yet, together and by shard.
    waiting: AtomicUsize,
    waiting_by_shard: Vec<AtomicUsize>,
}

impl Links {
    pub fn new(shards: u32) -> Arc<Self> {
        let reachable = (0..shards).map(|_| AtomicBool::new(false)).collect();
        let waiting_by_shard = (0..shards).map(|_| AtomicUsize::new(0)).collect();
        let (queue, wake, waiting) = (Mutex::default(), Notify::new(), AtomicUsize::new(0));
        Arc::new(Self { queue, wake, reachable, waiting, waiting_by_shard })
    }

    /// Sends operations to whoever serves their shards. Their answers come to the inbox that their tickets name.
    pub fn submit(&self, ops: impl IntoIterator<Item = Op>) {
        let mut queue = self.queue.lock();
        for op in ops {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.waiting_by_shard[op.shard as usize].fetch_add(1, Ordering::Relaxed);
            queue.push(op);
        }
        drop(queue);
        self.wake.notify_one();
    }

    pub fn reachable(&self, shard: u32) -> bool {
        self.reachable[shard as usize].load(Ordering::Relaxed)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn waiting_for(&self, shard: u32) -> usize {
        self.waiting_by_shard[shard as usize].load(Ordering::Relaxed)
    }
}

/// Where a shard's operations go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    None,
    This,
    Stream(Tag),
}

struct Peer {
    name: String,
    member: Member,
    task: AbortHandle,
    /// None: the stream is down.
    sender: Option<UnboundedSender<Operations>>,
    outgoing: BTreeMap<u128, Vec<Operation>>,
    unanswered: usize,
    /// When it last answered, or when the oldest unanswered operation was sent.
    heard: Instant,
}

impl Peer {
    fn suspect(&self) -> bool {
        self.unanswered > 0 && self.heard.elapsed() > limits::PEER_SUSPECT_AFTER
    }
}

/// Owns producers and streams.
pub struct Driver {
    links: Arc<Links>,
    commits: Arc<Commits>,
    receiver: Arc<Receiver>,
    map: watch::Receiver<Arc<Map>>,
    identity: Option<Identity>,
    /// Of this node's own producers, for shards that it serves itself.
    session: Session,
    own_outcomes: UnboundedReceiver<Vec<OperationOutcome>>,
    producers: Vec<Producer>,
    routes: Vec<Route>,
    peers: HashMap<Tag, Peer>,
    last_tag: Tag,
    events: (UnboundedSender<Event>, UnboundedReceiver<Event>),
    callers: HashMap<u64, Origin>,
    last_token: u64,
    /// Of callers that wait. All wait equally long, so the first in is the first to expire.
    deadlines: VecDeque<(Instant, u32, u64)>,
    /// Shards that refused something, and are to be tried again at the next tick.
    retries: Vec<u32>,
    /// By shard: operations for which its producer has no room yet. The serving threads limit how many there are.
    held: Vec<VecDeque<(u64, Op)>>,
    /// Operations of this turn for shards that this node serves.
    own: Vec<(Op, u64)>,
    answers: Collected,
}

impl Driver {
    pub fn new(
        links: Arc<Links>,
        commits: Arc<Commits>,
        receiver: Arc<Receiver>,
        map: watch::Receiver<Arc<Map>>,
        identity: Option<Identity>,
    ) -> Self {
        let id = draw_id();
        let shards = links.reachable.len();
        let (sender, own_outcomes) = unbounded_channel();
        Self {
            session: receiver.open(sender),
            answers: Collected::new(&commits),
            links,
            commits,
            receiver,
            map,
            identity,
            own_outcomes,
            producers: (0..shards).map(|_| Producer::new(id)).collect(),
            routes: vec![Route::None; shards],
            peers: HashMap::new(),
            last_tag: 0,
            events: unbounded_channel(),
            callers: HashMap::new(),
            last_token: 0,
            deadlines: VecDeque::new(),
            retries: Vec::new(),
            held: (0..shards).map(|_| VecDeque::new()).collect(),
            own: Vec::new(),
        }
    }

    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.follow_map();
        loop {
            tokio::select! {
                () = self.links.wake.notified() => {}
                Some(event) = self.events.1.recv() => self.event(event),
                Some(outcomes) = self.own_outcomes.recv() => self.outcomes(outcomes),
                changed = self.map.changed() => match changed {
                    Ok(()) => self.follow_map(),
                    Err(_) => return,
                },
                _ = ticks.tick() => self.tick(),
            }
            self.take_submitted();
            self.flush();
        }
    }

    fn take_submitted(&mut self) {
        let ops = std::mem::take(&mut *self.links.queue.lock());
        if !ops.is_empty() {
            crate::panics::point("links");
        }
        let deadline = Instant::now() + limits::OPERATION_DEADLINE;
        for op in ops {
            self.last_token += 1;
            let (token, shard) = (self.last_token, op.shard);
            self.callers.insert(token, op.origin);
            // Nobody waits for a relaxed operation, and its caller was told that it will count.
            if op.origin != Origin::Relaxed {
                self.deadlines.push_back((deadline, shard, token));
            }
            self.held[shard as usize].push_back((token, op));
        }
        for shard in 0..self.held.len() as u32 {
            self.take_held(shard);
        }
    }

    /// Hands operations to the shard's producer while it has room.
    fn take_held(&mut self, shard: u32) {
        while !self.producers[shard as usize].is_full()
            && let Some((token, op)) = self.held[shard as usize].pop_front()
        {
            self.step(shard, producer::Event::Submit { token, op });
        }
    }

    fn step(&mut self, shard: u32, event: producer::Event) {
        let mut effects = Vec::new();
        self.producers[shard as usize].step(event, &mut effects);
        for effect in effects {
            match effect {
                producer::Effect::Send(op) => self.send(shard, op),
                producer::Effect::Answer { token, outcome } => {
                    if let Some(origin) = self.callers.remove(&token) {
                        self.links.waiting.fetch_sub(1, Ordering::Relaxed);
                        self.links.waiting_by_shard[shard as usize].fetch_sub(1, Ordering::Relaxed);
                        self.answers.take(&self.commits, shard, vec![(origin, outcome)]);
                    }
                }
                producer::Effect::RetryLater => self.retries.push(shard),
                producer::Effect::DrawId => {
                    self.step(shard, producer::Event::Renamed { producer: draw_id() });
                }
            }
        }
    }

    fn send(&mut self, shard: u32, op: Op) {
        let round = self.producers[shard as usize].round();
        match self.routes[shard as usize] {
            Route::This => self.own.push((op, round)),
            Route::Stream(tag) => {
                let (Some(peer), Origin::Peer { producer, .. }) = (self.peers.get_mut(&tag), op.origin) else { return };
                peer.outgoing.entry(producer).or_default().push(Operation::new(op, round));
            }
            // Sent again when somebody serves the shard.
            Route::None => {}
        }
    }

    /// Everything of this turn goes out: one message to each node, one submission to the own commit thread.
    fn flush(&mut self) {
        for peer in self.peers.values_mut() {
            for (producer, operations) in std::mem::take(&mut peer.outgoing) {
                let Some(sender) = &peer.sender else { continue };
                if peer.unanswered == 0 {
                    peer.heard = Instant::now();
                }
                peer.unanswered += operations.len();
                let producer = producer.to_be_bytes().to_vec();
                let mut operations = operations.into_iter().peekable();
                while operations.peek().is_some() {
                    let operations = operations.by_ref().take(limits::PEER_MESSAGE_OPS_MAX).collect();
                    // A stream that just ended says so by its own event.
                    let _ = sender.send(Operations { producer: producer.clone(), operations });
                }
            }
        }
        if !self.own.is_empty() {
            self.receiver.accept(self.session, std::mem::take(&mut self.own));
        }
        self.answers.deliver(&self.commits);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Up(tag, sender) => {
                let Some(peer) = self.peers.get_mut(&tag) else { return };
                info!("connected to node {} at {}", peer.name, peer.member.address);
                (peer.sender, peer.unanswered) = (Some(sender), 0);
                self.each_shard_of(tag, || producer::Event::Connected);
                self.show_reachable();
            }
            Event::Down(tag) => {
                let Some(peer) = self.peers.get_mut(&tag) else { return };
                if peer.sender.take().is_some() {
                    warn!("the connection to node {} at {} is lost", peer.name, peer.member.address);
                }
                peer.outgoing.clear();
                self.each_shard_of(tag, || producer::Event::Disconnected);
                self.show_reachable();
            }
            Event::Outcomes(tag, outcomes) => {
                let Some(peer) = self.peers.get_mut(&tag) else { return };
                peer.unanswered = peer.unanswered.saturating_sub(outcomes.len());
                peer.heard = Instant::now();
                self.outcomes(outcomes);
            }
        }
    }

    fn each_shard_of(&mut self, tag: Tag, event: impl Fn() -> producer::Event) {
        for shard in 0..self.routes.len() {
            if self.routes[shard] == Route::Stream(tag) {
                self.step(shard as u32, event());
            }
        }
    }

    fn outcomes(&mut self, outcomes: Vec<OperationOutcome>) {
        for answer in outcomes {
            if (answer.shard as usize) < self.producers.len() {
                let (round, seq, outcome) = (answer.round, answer.seq, answer.outcome());
                self.step(answer.shard, producer::Event::Answered { round, seq, outcome });
            }
        }
    }

    /// Takes over who is there and who serves what.
    fn follow_map(&mut self) {
        let map = self.map.borrow_and_update().clone();
        let gone: Vec<Tag> = self
            .peers
            .iter()
            .filter(|(_, peer)| map.nodes.get(&peer.name) != Some(&peer.member))
            .map(|(&tag, _)| tag)
            .collect();
        for (name, member) in &map.nodes {
            if !self.peers.values().any(|peer| peer.name == *name && peer.member == *member) {
                self.connect(name, member);
            }
        }
        let tags: HashMap<&str, Tag> = self
            .peers
            .iter()
            .filter(|(tag, _)| !gone.contains(tag))
            .map(|(&tag, peer)| (peer.name.as_str(), tag))
            .collect();
        let routes: Vec<Route> = map
            .owners
            .iter()
            .map(|owner| match owner {
                Owner::None => Route::None,
                Owner::This => Route::This,
                Owner::Other(name) => tags.get(name.as_str()).map_or(Route::None, |&tag| Route::Stream(tag)),
            })
            .collect();
        for (shard, route) in (0u32..).zip(routes) {
            self.reroute(shard, route);
        }
        for tag in gone {
            if let Some(peer) = self.peers.remove(&tag) {
                peer.task.abort();
            }
        }
        self.show_reachable();
    }

    fn reroute(&mut self, shard: u32, route: Route) {
        if std::mem::replace(&mut self.routes[shard as usize], route) == route {
            return;
        }
        self.step(shard, producer::Event::Disconnected);
        let open = match route {
            Route::None => false,
            Route::This => true,
            Route::Stream(tag) => self.peers.get(&tag).is_some_and(|peer| peer.sender.is_some()),
        };
        if open {
            self.step(shard, producer::Event::Connected);
        }
    }

    fn connect(&mut self, name: &str, member: &Member) {
        let endpoint = match stream::endpoint(member, self.identity.as_ref()) {
            Ok(endpoint) => endpoint,
            Err(why) => {
                warn!("node {name} cannot be called at {:?}: {why}", member.address);
                return;
            }
        };
        self.last_tag += 1;
        let tag = self.last_tag;
        let task = tokio::spawn(stream::keep(tag, endpoint, self.events.0.clone())).abort_handle();
        let (name, member) = (name.to_owned(), member.clone());
        let outgoing = BTreeMap::new();
        let peer = Peer { name, member, task, sender: None, outgoing, unanswered: 0, heard: Instant::now() };
        self.peers.insert(tag, peer);
    }

    fn show_reachable(&self) {
        for (route, reachable) in self.routes.iter().zip(&self.links.reachable) {
            let now = match route {
                Route::None => false,
                Route::This => true,
                Route::Stream(tag) => self.peers.get(tag).is_some_and(|peer| peer.sender.is_some() && !peer.suspect()),
            };
            reachable.store(now, Ordering::Relaxed);
        }
    }

    fn expire(&mut self, shard: u32, token: u64) {
        let held = &mut self.held[shard as usize];
        match held.iter().position(|&(held, _)| held == token) {
            // The producer answers for it, and has room for that or says so.
            Some(at) => {
                if let Some((token, op)) = held.remove(at) {
                    self.step(shard, producer::Event::Submit { token, op });
                    self.step(shard, producer::Event::Expired { token });
                }
            }
            None => self.step(shard, producer::Event::Expired { token }),
        }
    }

    fn tick(&mut self) {
        for shard in std::mem::take(&mut self.retries) {
            self.step(shard, producer::Event::Retry);
        }
        let now = Instant::now();
        while let Some(&(deadline, shard, token)) = self.deadlines.front()
            && (deadline <= now || !self.callers.contains_key(&token))
        {
            self.deadlines.pop_front();
            if self.callers.contains_key(&token) {
                self.expire(shard, token);
            }
        }
        self.show_reachable();
    }
}

/// A producer's id, which nobody else has.
fn draw_id() -> u128 {
    rand::random::<u128>().max(RESERVED + 1)
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.receiver.close(self.session);
        self.peers.values().for_each(|peer| peer.task.abort());
    }
}
