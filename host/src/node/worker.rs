//! What one serving thread owns: its policy instances, its waiting requests and the operations it is about to submit.
//!
//! Operations of all requests that became runnable together go to the commit thread in one submission, so a busy thread
//! takes its lock and wakes it once a turn, not once a request.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Node;
use super::rules::LocalRules;
use super::slots::{Outcomes, Slots};
use crate::commit::{Inbox, Rejected, ticket};
use crate::limits;
use crate::panics;
use crate::policy;
use crate::shard::{Op, Origin, Outcome};

pub struct Worker {
    pub node: Arc<Node>,
    pub policies: RefCell<policy::Local>,
    inbox: u32,
    rules: RefCell<Known>,
    slots: RefCell<Slots>,
    outgoing: RefCell<Vec<Op>>,
    flush: Notify,
    /// Set while the thread drains.
    draining: watch::Sender<bool>,
}

/// The rules that a serving thread knows, and their generation.
#[derive(Default)]
struct Known {
    generation: u64,
    rules: Rc<LocalRules>,
}

/// How often waiting requests are looked at for their deadline.
const TICK: Duration = Duration::from_millis(250);

impl Worker {
    /// Must be called on the serving thread, inside its `LocalSet`: two tasks of the worker start there.
    pub fn start(node: Arc<Node>, index: u32, inbox: Arc<Inbox>) -> Rc<Self> {
        let worker = Rc::new(Self {
            policies: RefCell::new(node.policies.local()),
            node,
            inbox: index,
            rules: RefCell::default(),
            slots: RefCell::default(),
            outgoing: RefCell::default(),
            flush: Notify::new(),
            draining: watch::Sender::new(false),
        });
        tokio::task::spawn_local(panics::owned("a serving thread", worker.clone().flush_outgoing()));
        tokio::task::spawn_local(panics::owned("a serving thread", worker.clone().deliver(inbox)));
        tokio::task::spawn_local(panics::owned("a serving thread", worker.clone().expire()));
        worker
    }

    /// The rules in force. Whoever was answered that a rule is set, or anybody later, finds it here.
    pub fn rules(&self) -> Rc<LocalRules> {
        let generation = self.node.rules_generation.load(Ordering::Acquire);
        if self.rules.borrow().generation != generation {
            *self.rules.borrow_mut() = Known { generation, rules: Rc::new(self.node.rules().local()) };
            // Instances of bindings that went with the old rules go too, however often rules change.
            self.policies.borrow_mut().purge();
        }
        self.rules.borrow().rules.clone()
    }

    /// Ends every stream of events, which would not end by itself.
    pub fn end_watches(&self) {
        self.draining.send_replace(true);
    }

    /// Resolves when [`Self::end_watches`] was called.
    pub fn draining(&self) -> impl Future<Output = ()> + use<> {
        let mut draining = self.draining.subscribe();
        async move { drop(draining.wait_for(|draining| *draining).await) }
    }

    /// Queues operations and waits for what becomes of them, in their order. `origin` of each is set here.
    pub async fn submit<I>(self: &Rc<Self>, ops: I) -> Result<Outcomes, Rejected>
    where
        I: ExactSizeIterator<Item = Op>,
    {
        let count = ops.len();
        self.admit(count)?;
        let slot = self.slots.borrow_mut().take(count);
        let ticket = ticket(self.inbox, slot);
        let numbered = ops.zip(0u32..).map(|(op, index)| Op { origin: Origin::Local { ticket, index }, ..op });
        self.enqueue(numbered);
        Ok(Waiting { worker: self, slot: Some(slot) }.await)
    }

    /// Queues operations that nobody waits for, all or none: they have no other answer.
    pub fn submit_relaxed<I>(&self, ops: I) -> Result<(), Rejected>
    where
        I: ExactSizeIterator<Item = Op>,
    {
        let count = ops.len();
        if self.node.commits.queued() + self.on_their_way() + count > limits::RELAXED_QUEUE_MAX {
            return Err(Rejected::Full);
        }
        self.admit(count)?;
        self.enqueue(ops.map(|op| Op { origin: Origin::Relaxed, ..op }));
        Ok(())
    }

    fn admit(&self, count: usize) -> Result<(), Rejected> {
        if self.on_their_way() + count > limits::QUEUE_OPS_MAX {
            return Err(Rejected::Full);
        }
        self.node.commits.reserve(count)
    }

    /// Operations that other nodes have not answered yet.
    fn on_their_way(&self) -> usize {
        self.node.peers.as_ref().map_or(0, |peers| peers.links.waiting())
    }

    fn enqueue(&self, ops: impl Iterator<Item = Op>) {
        let mut outgoing = self.outgoing.borrow_mut();
        if outgoing.is_empty() {
            self.flush.notify_one();
        }
        outgoing.extend(ops);
    }

    async fn flush_outgoing(self: Rc<Self>) {
        loop {
            self.flush.notified().await;
            self.forward();
            let refused = self.node.commits.submit_reserved(&mut self.outgoing.borrow_mut());
            for op in refused {
                match op.origin {
                    Origin::Local { ticket, index } => {
                        self.slots.borrow_mut().answer(ticket as u32, index, Outcome::NotApplied);
                    }
                    Origin::Relaxed | Origin::Peer { .. } => {
                        self.node.stats.relaxed_lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Hands what other nodes serve to the links.
    fn forward(&self) {
        let Some(peers) = &self.node.peers else { return };
        let commits = &self.node.commits;
        let elsewhere: Vec<Op> = self.outgoing.borrow_mut().extract_if(.., |op| !commits.serves(op.shard)).collect();
        if !elsewhere.is_empty() {
            commits.unreserve(elsewhere.len());
            peers.links.submit(elsewhere);
        }
    }

    async fn deliver(self: Rc<Self>, inbox: Arc<Inbox>) {
        let mut answers = Vec::new();
        loop {
            inbox.take(&mut answers).await;
            let mut slots = self.slots.borrow_mut();
            for answer in answers.drain(..) {
                slots.answer(answer.slot, answer.index, answer.outcome);
            }
        }
    }

    async fn expire(self: Rc<Self>) {
        let ticks = (limits::OPERATION_DEADLINE.as_millis() / TICK.as_millis()) as u64;
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.slots.borrow_mut().expire(ticks);
            // A thread without requests lets go of rules that were replaced, too.
            drop(self.rules());
        }
    }
}

struct Waiting<'a> {
    worker: &'a Worker,
    /// None once answered.
    slot: Option<u32>,
}

impl Future for Waiting<'_> {
    type Output = Outcomes;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcomes> {
        let slot = self.slot.expect("a future is not polled after it was ready");
        let polled = self.worker.slots.borrow_mut().poll(slot, context);
        if polled.is_ready() {
            self.slot = None;
        }
        polled
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.worker.slots.borrow_mut().abandon(slot);
        }
    }
}
