//! The commit thread of a node whose store is behind a network: every shard that it serves goes its own way, so that
//! the slow write of one does not hold the others up.
//!
//! A *lane* is one shard's writer and what waits for it. Its loop takes what came, asks the store for what the writer
//! must know, and appends one entry; what arrives meanwhile becomes the next. Lanes take turns in appending: their queues
//! fill while they wait, and each write carries more. A lane at work looks for itself at what was submitted, so nobody
//! wakes this thread for it. Shards come and go by [`Commits::take_over`] and [`Commits::hand_over`]; one that another
//! node took ends by itself.
//!
//! Everything is on one thread: cells are borrowed between two waits, never across one.

mod fetch;
mod lane;
mod pace;
#[cfg(test)]
mod tests;
mod turns;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tracing::{error, warn};

use self::lane::Lane;
use self::turns::Turns;
use super::answers::Collected;
use super::takeover::take_over;
use super::{Commits, Control, Settings};
use crate::panics;
use crate::shard::{Op, Origin, Outcome, Partials, Writer};
use crate::store::{self, Store};

/// Waits before something is tried again: the first time, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

enum Place {
    Free,
    /// Being taken over; a hand-over meanwhile sets the flag.
    Coming(Rc<Cell<bool>>),
    Serving(Rc<Lane>),
}

/// What all lanes use.
struct Shared {
    commits: Arc<Commits>,
    store: Arc<dyn Store>,
    settings: Settings,
    turns: Rc<Turns>,
    /// By shard.
    places: RefCell<Vec<Place>>,
    /// Emptied after each use.
    submitted: RefCell<Vec<Vec<Op>>>,
    /// By shard, the highest sequence that this process knows to be durable.
    durable: RefCell<Vec<u64>>,
    answers: RefCell<Collected>,
}

impl Shared {
    /// Deals what was submitted since that was done last.
    fn deal_submitted(&self) {
        let mut batches = self.submitted.take();
        std::mem::swap(&mut self.commits.queue.lock().batches, &mut batches);
        self.deal(batches.drain(..).flatten());
        self.submitted.replace(batches);
    }

    /// Gives operations to their lanes. Those of shards that are not served here are not applied; relaxed ones, whose
    /// callers have their answer, go to whoever serves the shard.
    fn deal(&self, ops: impl Iterator<Item = Op>) {
        let places = self.places.borrow();
        let mut refused = Vec::new();
        for op in ops {
            match &places[op.shard as usize] {
                Place::Serving(lane) => refused.extend(lane.take(op)),
                Place::Free | Place::Coming(_) => refused.push(op),
            }
        }
        drop(places);
        if refused.is_empty() {
            return;
        }
        self.commits.release(&refused);
        let mut strays = Vec::new();
        let mut answers = self.answers.borrow_mut();
        for op in refused {
            match op.origin {
                Origin::Relaxed => strays.push(op),
                origin => answers.take(&self.commits, op.shard, vec![(origin, Outcome::NotApplied)]),
            }
        }
        answers.deliver(&self.commits);
        self.commits.strays.put(&mut strays);
    }
}

/// Owns the lanes; lives on the commit thread.
pub struct Lanes {
    shared: Rc<Shared>,
}

impl Lanes {
    pub fn new(commits: Arc<Commits>, store: Arc<dyn Store>, settings: Settings, appends_max: usize) -> Rc<Self> {
        let shards = commits.tables.len();
        let shared = Shared {
            answers: RefCell::new(Collected::new(&commits)),
            commits,
            store,
            settings,
            turns: Turns::new(appends_max),
            places: RefCell::new((0..shards).map(|_| Place::Free).collect()),
            submitted: RefCell::default(),
            durable: RefCell::new(vec![0; shards]),
        };
        Rc::new(Self { shared: Rc::new(shared) })
    }

    /// Runs until [`Commits::stop`]; every lane is handed over then.
    pub async fn run(self: Rc<Self>) {
        let commits = self.shared.commits.clone();
        let (mut batches, mut controls) = (Vec::new(), Vec::new());
        let store = self.shared.store.clone();
        spawn_local(async move {
            if let Err(why) = store.attend().await {
                warn!("appends share the connections of everything else: {why}");
            }
        });
        loop {
            let woken = commits.wake.notified();
            {
                let mut queue = commits.queue.lock();
                std::mem::swap(&mut queue.batches, &mut batches);
                std::mem::swap(&mut queue.control, &mut controls);
                if batches.is_empty() && controls.is_empty() && self.may_end() {
                    queue.closed = true;
                    break;
                }
            }
            if batches.is_empty() && controls.is_empty() {
                woken.await;
                continue;
            }
            self.shared.deal(batches.drain(..).flatten());
            controls.drain(..).for_each(|control| self.control(control));
            if commits.stopped() {
                self.close_all();
            }
        }
        commits.ended.send_replace(true);
        commits.checkpoint_due.notify_one();
    }

    fn may_end(&self) -> bool {
        let free = || self.shared.places.borrow().iter().all(|place| matches!(place, Place::Free));
        self.shared.commits.stopped() && self.shared.commits.checkpointers.load(Ordering::Acquire) == 0 && free()
    }

    /// The last checkpoint needs the lanes; they end when it is taken.
    fn close_all(&self) {
        if self.shared.commits.checkpointers.load(Ordering::Acquire) > 0 {
            return;
        }
        for place in &*self.shared.places.borrow() {
            match place {
                Place::Free => {}
                Place::Coming(cancelled) => cancelled.set(true),
                Place::Serving(lane) => lane.close(),
            }
        }
    }

    /// What is asked of a shard that is not served is not answered: whoever waits learns that by the dropped sender.
    fn control(self: &Rc<Self>, control: Control) {
        match control {
            Control::Wake => {}
            // A store behind a network drops them by itself.
            Control::KeyHorizon { .. } => {}
            Control::StoreBroken(why) => warn!("the store failed a checkpoint: {why}"),
            Control::TakeOver { shard, answer } => self.take_over(shard, answer),
            Control::HandOver { shard, answer } => self.hand_over(shard, answer),
            Control::Confirm { shard, answer } => self.with_lane(shard, |lane| lane.confirm(answer)),
            Control::Snapshot { shard, .. }
            | Control::Checkpointed { shard, .. }
            | Control::RecentKey { shard, .. } => {
                self.with_lane(shard, |lane| lane.control(control));
            }
        }
    }

    fn with_lane(&self, shard: u32, work: impl FnOnce(&Lane)) {
        if let Place::Serving(lane) = &self.shared.places.borrow()[shard as usize] {
            work(lane);
        }
    }

    fn hand_over(&self, shard: u32, answer: oneshot::Sender<()>) {
        match &self.shared.places.borrow()[shard as usize] {
            Place::Free => {}
            Place::Coming(cancelled) => cancelled.set(true),
            Place::Serving(lane) => {
                lane.tell_end(answer);
                lane.close();
            }
        }
    }

    fn take_over(self: &Rc<Self>, shard: u32, answer: oneshot::Sender<Result<u64, store::Error>>) {
        let mut places = self.shared.places.borrow_mut();
        let place = &mut places[shard as usize];
        match place {
            Place::Coming(_) => {}
            Place::Serving(lane) => {
                let _ = answer.send(Ok(lane.epoch()));
            }
            Place::Free => {
                let cancelled = Rc::new(Cell::new(false));
                *place = Place::Coming(cancelled.clone());
                spawn_local(panics::owned("a shard's lane", self.clone().serve(shard, cancelled, answer)));
            }
        }
    }

    /// Takes a shard over and serves it until it is handed over or lost.
    async fn serve(
        self: Rc<Self>,
        shard: u32,
        cancelled: Rc<Cell<bool>>,
        answer: oneshot::Sender<Result<u64, store::Error>>,
    ) {
        let taken = self.try_to_take_over(shard, &cancelled).await;
        let (writer, read) = match taken {
            Ok(taken) => taken,
            Err(why) => {
                self.shared.places.borrow_mut()[shard as usize] = Place::Free;
                let _ = answer.send(Err(why));
                self.shared.commits.control(Control::Wake);
                return;
            }
        };
        let epoch = writer.epoch();
        let lane = Rc::new(Lane::new(self.shared.clone(), shard, *writer));
        self.publish(shard, epoch, *read);
        self.shared.places.borrow_mut()[shard as usize] = Place::Serving(lane.clone());
        if cancelled.get() {
            lane.close();
        }
        let _ = answer.send(Ok(epoch));
        let end = lane.drive().await;
        self.shared.places.borrow_mut()[shard as usize] = Place::Free;
        lane.retire(end);
        self.shared.commits.control(Control::Wake);
    }

    fn publish(&self, shard: u32, epoch: u64, read: Partials) {
        let table = &self.shared.commits.tables[shard as usize];
        {
            let mut partials = table.partials.write();
            partials.replace(read);
            partials.limit_readers(self.shared.settings.resident_max);
        }
        table.epoch.store(epoch, Ordering::Release);
        table.changed.send_replace(());
    }

    /// Tries until it succeeds: the store may be away, or another node may take the shard over at the same time.
    async fn try_to_take_over(
        &self,
        shard: u32,
        cancelled: &Cell<bool>,
    ) -> Result<(Box<Writer>, Box<Partials>), store::Error> {
        let durable_seq = self.shared.durable.borrow()[shard as usize];
        let mut standby = self.shared.commits.standbys.take(shard);
        let mut wait = RETRY.0;
        loop {
            let stood_by = standby.is_some();
            let taken = take_over(&*self.shared.store, self.shared.settings, shard, durable_seq, standby.take());
            // What is read belongs to nobody yet: an entry that cannot be replayed must not end one node after the other.
            let taken = panics::caught(taken).await;
            match taken.unwrap_or_else(|why| Err(store::Error::Damaged(format!("its replay has panicked: {why}")))) {
                Ok(taken) => return Ok(taken),
                // The journal itself decides whether it is damaged, not what was read of it before.
                Err(store::Error::Damaged(why)) if stood_by => {
                    warn!("shard {shard} is read from its checkpoint: {why}")
                }
                Err(why @ store::Error::Damaged(_)) => {
                    error!("shard {shard} cannot be served: {why}");
                    return Err(why);
                }
                Err(why) if cancelled.get() || self.shared.commits.stopped() => return Err(why),
                Err(why) => warn!("shard {shard} is not taken over yet: {why}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}
