//! The commit thread of a node whose store is behind a network: every shard that it serves goes its own way, so that
//! the slow write of one does not hold the others up.
//!
//! A *lane* is one shard's writer and what waits for it. Its loop takes what came, asks the store for what the writer
//! must know, and appends one entry; what arrives meanwhile becomes the next. Appends of all lanes share a number of
//! places: with few of them the queues fill while their lanes wait, and each write carries more. Shards come and go by
//! [`Commits::take_over`] and [`Commits::hand_over`]; one that another node took ends by itself.
//!
//! Everything is on one thread: cells are borrowed between two waits, never across one.

mod fetch;
mod lane;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_local;
use tracing::{error, warn};

use self::lane::Lane;
use super::answers::Collected;
use super::takeover::take_over;
use super::{Commits, Control, Settings};
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
    /// Appends under way at once.
    appends: Semaphore,
    /// By shard, the highest sequence that this process knows to be durable.
    durable: RefCell<Vec<u64>>,
    answers: RefCell<Collected>,
}

/// Owns the lanes; lives on the commit thread.
pub struct Lanes {
    shared: Rc<Shared>,
    places: RefCell<Vec<Place>>,
}

impl Lanes {
    pub fn new(commits: Arc<Commits>, store: Arc<dyn Store>, settings: Settings, appends_max: usize) -> Rc<Self> {
        let shards = commits.tables.len();
        let shared = Shared {
            answers: RefCell::new(Collected::new(&commits)),
            commits,
            store,
            settings,
            appends: Semaphore::new(appends_max.max(1)),
            durable: RefCell::new(vec![0; shards]),
        };
        let places = RefCell::new((0..shards).map(|_| Place::Free).collect());
        Rc::new(Self { shared: Rc::new(shared), places })
    }

    /// Runs until [`Commits::stop`]; every lane is handed over then.
    pub async fn run(self: Rc<Self>) {
        let commits = self.shared.commits.clone();
        let (mut batches, mut controls) = (Vec::new(), Vec::new());
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
            self.deal(batches.drain(..).flatten());
            controls.drain(..).for_each(|control| self.control(control));
            if commits.stopped() {
                self.close_all();
            }
        }
        commits.ended.send_replace(true);
        commits.checkpoint_due.notify_one();
    }

    fn may_end(&self) -> bool {
        let free = || self.places.borrow().iter().all(|place| matches!(place, Place::Free));
        self.shared.commits.stopped() && self.shared.commits.checkpointers.load(Ordering::Acquire) == 0 && free()
    }

    /// The last checkpoint needs the lanes; they end when it is taken.
    fn close_all(&self) {
        if self.shared.commits.checkpointers.load(Ordering::Acquire) > 0 {
            return;
        }
        for place in &*self.places.borrow() {
            match place {
                Place::Free => {}
                Place::Coming(cancelled) => cancelled.set(true),
                Place::Serving(lane) => lane.close(),
            }
        }
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
        self.shared.commits.release(&refused);
        let mut strays = Vec::new();
        let mut answers = self.shared.answers.borrow_mut();
        for op in refused {
            match op.origin {
                Origin::Relaxed => strays.push(op),
                origin => answers.take(&self.shared.commits, op.shard, vec![(origin, Outcome::NotApplied)]),
            }
        }
        answers.deliver(&self.shared.commits);
        self.shared.commits.strays.put(&mut strays);
    }

    /// What is asked of a shard that is not served is not answered: whoever waits learns that by the dropped sender.
    fn control(self: &Rc<Self>, control: Control) {
        match control {
            Control::Wake => {}
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
        if let Place::Serving(lane) = &self.places.borrow()[shard as usize] {
            work(lane);
        }
    }

    fn hand_over(&self, shard: u32, answer: oneshot::Sender<()>) {
        match &self.places.borrow()[shard as usize] {
            Place::Free => {}
            Place::Coming(cancelled) => cancelled.set(true),
            Place::Serving(lane) => {
                lane.tell_end(answer);
                lane.close();
            }
        }
    }

    fn take_over(self: &Rc<Self>, shard: u32, answer: oneshot::Sender<Result<u64, store::Error>>) {
        let mut places = self.places.borrow_mut();
        let place = &mut places[shard as usize];
        match place {
            Place::Coming(_) => {}
            Place::Serving(lane) => {
                let _ = answer.send(Ok(lane.epoch()));
            }
            Place::Free => {
                let cancelled = Rc::new(Cell::new(false));
                *place = Place::Coming(cancelled.clone());
                spawn_local(self.clone().serve(shard, cancelled, answer));
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
                self.places.borrow_mut()[shard as usize] = Place::Free;
                let _ = answer.send(Err(why));
                self.shared.commits.control(Control::Wake);
                return;
            }
        };
        let epoch = writer.epoch();
        let lane = Rc::new(Lane::new(self.shared.clone(), shard, *writer));
        self.publish(shard, epoch, *read);
        self.places.borrow_mut()[shard as usize] = Place::Serving(lane.clone());
        if cancelled.get() {
            lane.close();
        }
        let _ = answer.send(Ok(epoch));
        let end = lane.drive().await;
        self.places.borrow_mut()[shard as usize] = Place::Free;
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
            match take_over(&*self.shared.store, self.shared.settings, shard, durable_seq, standby.take()).await {
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
