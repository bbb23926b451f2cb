//! The commit thread of a node whose store is behind a network: every shard that it serves goes its own way, so that
//! the slow write of one does not hold the others up.
//!
//! A *lane* is one shard's writer and what waits for it. Its loop takes what came, asks the store for what the writer
//! must know, and appends one entry; what arrives meanwhile becomes the next. Appends of all lanes share a number of
//! places: with few of them the queues fill while their lanes wait, and each write carries more. Shards come and go by
//! [`Commits::take_over`] and [`Commits::hand_over`]; one that another node took ends by itself.
//!
//! Everything is on one thread: cells are borrowed between two waits, never across one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::spawn_local;
use tracing::{error, info, warn};

use super::answers::Collected;
use super::{Commits, Control, Settings, WriterState, now_ms};
use crate::counter::Id;
use crate::limits;
use crate::shard::entry::{Entry, KeyRecord};
use crate::shard::partials::{Partial, Resident};
use crate::shard::writer::{Answers, Append, Effect, Event};
use crate::shard::{Op, Origin, Outcome, Partials, Writer, takeover};
use crate::store::{self, Appended, Store};

/// Waits before something is tried again: the first time, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// One shard that this node serves.
struct Lane {
    shard: u32,
    writer: RefCell<Writer>,
    incoming: RefCell<Vec<Op>>,
    /// Operations taken from the queue and not answered yet.
    taken: Cell<usize>,
    controls: RefCell<Vec<Control>>,
    /// Exact reads that wait to know that the shard is ours.
    confirms: RefCell<Vec<oneshot::Sender<bool>>>,
    wake: Notify,
    /// Takes nothing more.
    closing: Cell<bool>,
    /// Answered when the lane has ended.
    ended: RefCell<Vec<oneshot::Sender<()>>>,
}

enum Place {
    Free,
    /// Being taken over; a hand-over meanwhile sets the flag.
    Coming(Rc<Cell<bool>>),
    Serving(Rc<Lane>),
}

/// Why a lane ends.
enum End {
    /// Another node has the shard.
    Lost,
    /// What the store holds is not what was written.
    Damaged(store::Error),
    HandedOver,
}

/// Owns the lanes; lives on the commit thread.
pub struct Lanes {
    commits: Arc<Commits>,
    store: Arc<dyn Store>,
    settings: Settings,
    /// Appends under way at once.
    appends: Semaphore,
    places: RefCell<Vec<Place>>,
    /// By shard, the highest sequence that this process knows to be durable.
    durable: RefCell<Vec<u64>>,
    answers: RefCell<Collected>,
}

/// What the store answered to what a writer must know.
enum Fetched {
    Partial(u64, Id, Option<Partial>),
    Key(u64, u64, Id, Box<str>, Option<KeyRecord>),
}

impl Lanes {
    pub fn new(commits: Arc<Commits>, store: Arc<dyn Store>, settings: Settings, appends_max: usize) -> Rc<Self> {
        let shards = commits.tables.len();
        Rc::new(Self {
            answers: RefCell::new(Collected::new(&commits)),
            commits,
            store,
            settings,
            appends: Semaphore::new(appends_max.max(1)),
            places: RefCell::new((0..shards).map(|_| Place::Free).collect()),
            durable: RefCell::new(vec![0; shards]),
        })
    }

    /// Runs until [`Commits::stop`]; every lane is handed over then.
    pub async fn run(self: Rc<Self>) {
        let commits = self.commits.clone();
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
        self.commits.stopped() && self.commits.checkpointers.load(Ordering::Acquire) == 0 && free()
    }

    /// The last checkpoint needs the lanes; they end when it is taken.
    fn close_all(&self) {
        if self.commits.checkpointers.load(Ordering::Acquire) > 0 {
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
                Place::Serving(lane) if !lane.closing.get() => {
                    lane.taken.set(lane.taken.get() + 1);
                    let mut incoming = lane.incoming.borrow_mut();
                    if incoming.is_empty() {
                        lane.wake.notify_one();
                    }
                    incoming.push(op);
                }
                _ => refused.push(op),
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

    /// What is asked of a shard that is not served is not answered: whoever waits learns that by the dropped sender.
    fn control(self: &Rc<Self>, control: Control) {
        match control {
            Control::Wake => {}
            Control::StoreBroken(why) => warn!("the store failed a checkpoint: {why}"),
            Control::TakeOver { shard, answer } => self.take_over(shard, answer),
            Control::HandOver { shard, answer } => self.hand_over(shard, answer),
            Control::Confirm { shard, answer } => self.with_lane(shard, |lane| {
                lane.confirms.borrow_mut().push(answer);
                lane.wake.notify_one();
            }),
            Control::Snapshot { shard, .. }
            | Control::Checkpointed { shard, .. }
            | Control::RecentKey { shard, .. } => {
                self.with_lane(shard, |lane| {
                    lane.controls.borrow_mut().push(control);
                    lane.wake.notify_one();
                });
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
                lane.ended.borrow_mut().push(answer);
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
                let _ = answer.send(Ok(lane.writer.borrow().epoch()));
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
                self.commits.control(Control::Wake);
                return;
            }
        };
        let epoch = writer.epoch();
        let lane = Rc::new(Lane::new(shard, *writer));
        self.publish(shard, epoch, *read);
        self.places.borrow_mut()[shard as usize] = Place::Serving(lane.clone());
        if cancelled.get() {
            lane.close();
        }
        let _ = answer.send(Ok(epoch));
        let end = self.drive(&lane).await;
        self.retire(&lane, end);
    }

    fn publish(&self, shard: u32, epoch: u64, read: Partials) {
        let table = &self.commits.tables[shard as usize];
        {
            let mut partials = table.partials.write();
            partials.replace(read);
            partials.limit_readers(self.settings.resident_max);
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
        let mut wait = RETRY.0;
        loop {
            match self.take_over_once(shard).await {
                Ok(taken) => return Ok(taken),
                Err(why @ store::Error::Damaged(_)) => {
                    error!("shard {shard} cannot be served: {why}");
                    return Err(why);
                }
                Err(why) if cancelled.get() || self.commits.stopped() => return Err(why),
                Err(why) => warn!("shard {shard} is not taken over yet: {why}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    async fn take_over_once(&self, shard: u32) -> Result<(Box<Writer>, Box<Partials>), store::Error> {
        let window_ms = u64::try_from(self.settings.key_window.as_millis()).unwrap_or(u64::MAX);
        let durable_seq = self.durable.borrow()[shard as usize];
        let (mut machine, mut effect) = takeover::Takeover::begin(shard, window_ms, durable_seq);
        loop {
            let event = match effect {
                takeover::Effect::Raise => {
                    let store::Raised { epoch, checkpoint_seq, marks } = self.store.raise(shard).await?;
                    takeover::Event::Raised { epoch, checkpoint_seq, marks }
                }
                takeover::Effect::Read { after } => {
                    takeover::Event::Read(self.store.read(shard, after, self.settings.replay_bytes).await?)
                }
                takeover::Effect::Serve(writer, read) => return Ok((writer, read)),
                takeover::Effect::Damaged { expected_seq, found_seq } => {
                    let what =
                        format!("shard {shard}: the journal goes on at {found_seq} where {expected_seq} should be");
                    return Err(store::Error::Damaged(what));
                }
            };
            effect = machine.step(event);
        }
    }

    /// The lane's loop.
    async fn drive(&self, lane: &Lane) -> End {
        loop {
            if lane.is_idle() {
                if lane.closing.get() {
                    return End::HandedOver;
                }
                lane.wake.notified().await;
                continue;
            }
            if let Err(end) = self.group(lane).await {
                return end;
            }
            self.tidy(lane);
            self.controls(lane);
        }
    }

    /// Journals what waits, as one entry, and answers who asked whether the shard is ours.
    async fn group(&self, lane: &Lane) -> Result<(), End> {
        self.enqueue(lane);
        let mut confirms = std::mem::take(&mut *lane.confirms.borrow_mut());
        if lane.writer.borrow().queued() > 0 {
            self.prepare(lane).await?;
            let place = self.appends.acquire().await.expect("the places are never closed");
            self.enqueue(lane);
            self.prepare(lane).await?;
            // Begun before this append, so that its success answers them.
            confirms.append(&mut lane.confirms.borrow_mut());
            let appended = self.commit(lane).await?;
            drop(place);
            if appended {
                tell_all(confirms, true);
                return Ok(());
            }
        }
        if !confirms.is_empty() {
            self.confirm(lane, confirms).await?;
        }
        Ok(())
    }

    fn enqueue(&self, lane: &Lane) {
        let incoming = std::mem::take(&mut *lane.incoming.borrow_mut());
        let mut writer = lane.writer.borrow_mut();
        for op in incoming {
            // A writer answers at once only when it is stopped, and its lane has ended then.
            if let Some(Effect::Answer(answers)) = writer.submit(op) {
                self.answer(lane, answers);
            }
        }
    }

    fn step(&self, lane: &Lane, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let partials = self.commits.tables[lane.shard as usize].partials.read();
        lane.writer.borrow_mut().step(&partials, event, &mut effects);
        effects
    }

    async fn prepare(&self, lane: &Lane) -> Result<(), End> {
        let effects = self.step(lane, Event::Prepare);
        self.fetch(lane, effects).await
    }

    /// Asks the store for what the writer must know, many at a time, until it has answered everything.
    async fn fetch(&self, lane: &Lane, effects: Vec<Effect>) -> Result<(), End> {
        let mut wanted = effects.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            while asked.len() < limits::STORE_LOADS_MAX
                && let Some(effect) = wanted.next()
            {
                asked.push(self.ask(lane.shard, effect));
            }
            let Some(fetched) = asked.next().await else { return Ok(()) };
            match fetched? {
                Some(Fetched::Partial(hash, counter, partial)) => {
                    self.commits.tables[lane.shard as usize].partials.write().load(hash, &counter, partial);
                }
                Some(Fetched::Key(as_of, hash, counter, key, record)) => {
                    self.step(lane, Event::LookedUp { as_of, hash, counter, key, record });
                }
                None => {}
            }
        }
    }

    /// One question to the store, asked again until it is answered or the node stops.
    async fn ask(&self, shard: u32, effect: Effect) -> Result<Option<Fetched>, End> {
        let mut wait = RETRY.0;
        loop {
            let answer = match &effect {
                Effect::Load { hash, counter } => {
                    let partials = &self.commits.tables[shard as usize].partials;
                    if partials.read().get(*hash, counter) != Resident::Unloaded {
                        return Ok(None);
                    }
                    let loaded = self.store.load(shard, counter).await;
                    loaded.map(|partial| Fetched::Partial(*hash, counter.clone(), partial))
                }
                Effect::LookUp { as_of, hash, counter, key } => {
                    let found = self.store.load_key(shard, counter, key).await;
                    found.map(|record| Fetched::Key(*as_of, *hash, counter.clone(), key.clone(), record))
                }
                // Nothing else asks for anything.
                _ => return Ok(None),
            };
            match answer {
                Ok(fetched) => return Ok(Some(fetched)),
                Err(why @ store::Error::Damaged(_)) => return Err(End::Damaged(why)),
                Err(_) if self.commits.stopped() => return Err(End::Lost),
                Err(why) => warn!("shard {shard} waits for the store: {why}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Closes the next entry and sees it through. Whether an append that began here was applied.
    async fn commit(&self, lane: &Lane) -> Result<bool, End> {
        let mut effects = self.step(lane, Event::Seal { entry_id: rand::random() });
        let (mut appended, mut wait) = (false, RETRY.0);
        let mut needs = Vec::new();
        loop {
            let mut result = None;
            for effect in effects.drain(..) {
                match effect {
                    Effect::Load { .. } | Effect::LookUp { .. } => needs.push(effect),
                    Effect::Append(entry) => result = Some(self.append(entry).await),
                    Effect::Confirm => result = Some(self.confirm_epoch(lane).await),
                    Effect::Apply(entry, slots) => {
                        self.apply(lane, &entry, &slots);
                        appended = true;
                    }
                    Effect::Answer(answers) => self.answer(lane, answers),
                }
            }
            self.answers.borrow_mut().deliver(&self.commits);
            let Some(result) = result else { break };
            if result == Append::Unknown || result == Append::NotWritten {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
            // The node ends while a write has no answer: nobody can wait for it any longer.
            let result = if result == Append::Unknown && self.commits.stopped() {
                Append::Lost { applied: None }
            } else {
                result
            };
            effects = self.step(lane, Event::Appended(result));
            if let Append::Lost { .. } = result {
                self.settle_lost(lane, effects);
                return Err(End::Lost);
            }
        }
        self.fetch(lane, needs).await?;
        Ok(appended)
    }

    async fn append(&self, entry: Arc<Entry>) -> Append {
        let begun = Instant::now();
        let stats = &self.commits.stats;
        let result = self.store.append(std::slice::from_ref(&entry)).await;
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stats.append_nanos.fetch_add(nanos, Ordering::Relaxed);
        stats.groups.fetch_add(1, Ordering::Relaxed);
        stats.entries.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(results) => match results.first() {
                Some(Appended::Applied) => Append::Applied,
                Some(&Appended::Fenced { applied }) => Append::Lost { applied },
                Some(Appended::Unknown) | None => Append::Unknown,
            },
            Err(store::Error::NotApplied(why)) => {
                warn!("shard {}: an entry was not written: {why}", entry.shard);
                Append::NotWritten
            }
            Err(why) => {
                warn!("shard {}: the outcome of an entry is not known: {why}", entry.shard);
                Append::Unknown
            }
        }
    }

    async fn confirm_epoch(&self, lane: &Lane) -> Append {
        let epoch = lane.writer.borrow().epoch();
        match self.store.confirm(lane.shard, epoch).await {
            Ok(true) => Append::Applied,
            Ok(false) => Append::Lost { applied: Some(false) },
            Err(_) => Append::Unknown,
        }
    }

    /// Answers exact reads. When the store does not answer, they are told nothing, and ask again.
    async fn confirm(&self, lane: &Lane, confirms: Vec<oneshot::Sender<bool>>) -> Result<(), End> {
        let result = self.confirm_epoch(lane).await;
        if result != Append::Unknown {
            tell_all(confirms, result == Append::Applied);
        }
        match result {
            Append::Lost { .. } => {
                let effects = self.step(lane, Event::Appended(result));
                self.settle_lost(lane, effects);
                Err(End::Lost)
            }
            _ => Ok(()),
        }
    }

    fn settle_lost(&self, lane: &Lane, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Apply(entry, slots) => self.apply(lane, &entry, &slots),
                Effect::Answer(answers) => self.answer(lane, answers),
                _ => {}
            }
        }
    }

    fn apply(&self, lane: &Lane, entry: &Entry, slots: &[u32]) {
        let table = &self.commits.tables[lane.shard as usize];
        table.partials.write().apply_at(entry, slots);
        self.durable.borrow_mut()[lane.shard as usize] = entry.seq;
        if table.changed.receiver_count() > 0 {
            table.changed.send_replace(());
        }
    }

    fn answer(&self, lane: &Lane, answers: Answers) {
        self.commits.stats.operations.fetch_add(answers.len() as u64, Ordering::Relaxed);
        lane.answered(&self.commits, answers.len());
        self.answers.borrow_mut().take(&self.commits, lane.shard, answers);
    }

    /// After a group: memory stays bounded, and a long journal is noticed.
    fn tidy(&self, lane: &Lane) {
        self.settings.evict(&self.commits, &self.commits.tables[lane.shard as usize]);
        if self.store.journal_bytes() > limits::CLUSTER_JOURNAL_BYTES_MAX {
            self.commits.checkpoint_due.notify_one();
        }
    }

    /// Between two groups, when everything that came before is settled.
    fn controls(&self, lane: &Lane) {
        if !lane.incoming.borrow().is_empty() || lane.writer.borrow().queued() > 0 {
            return;
        }
        let table = &self.commits.tables[lane.shard as usize];
        for control in lane.controls.take() {
            match control {
                Control::Snapshot { answer, .. } => {
                    let lifetime_ms = u64::try_from(limits::MARK_LIFETIME.as_millis()).unwrap_or(u64::MAX);
                    self.step(lane, Event::ExpireMarks { horizon_ms: now_ms().saturating_sub(lifetime_ms) });
                    let _ = answer.send(WriterState::of(&lane.writer.borrow(), table));
                }
                Control::Checkpointed { epoch, seq, answer, .. } => {
                    if lane.writer.borrow().epoch() == epoch {
                        table.partials.write().checkpointed(seq);
                        self.settings.evict(&self.commits, table);
                        self.step(lane, Event::Checkpointed { seq });
                    }
                    let _ = answer.send(());
                }
                Control::RecentKey { hash, counter, key, answer, .. } => {
                    let _ = answer.send(lane.writer.borrow().recent_key(hash, &counter, &key).cloned());
                }
                _ => {}
            }
        }
    }

    /// The lane has ended: nothing of the shard is readable here any more, and nobody waits for it.
    fn retire(&self, lane: &Lane, end: End) {
        let shard = lane.shard;
        let table = &self.commits.tables[shard as usize];
        table.epoch.store(0, Ordering::Release);
        self.places.borrow_mut()[shard as usize] = Place::Free;
        // What the writer has not answered was never sent to the store.
        let effects = self.step(lane, Event::Appended(Append::Lost { applied: Some(false) }));
        self.settle_lost(lane, effects);
        self.enqueue(lane);
        self.answers.borrow_mut().deliver(&self.commits);
        table.partials.write().replace(Partials::default());
        table.changed.send_replace(());
        match end {
            End::HandedOver => info!("shard {shard} is handed over"),
            End::Lost => {
                warn!("shard {shard} was taken over by another node");
                self.commits.lost.put(&mut vec![shard]);
            }
            End::Damaged(why) => {
                error!("shard {shard} is served no more: {why}");
                self.commits.lost.put(&mut vec![shard]);
            }
        }
        // An entry whose outcome nobody knows leaves peers without an answer; they send it again.
        lane.answered(&self.commits, lane.taken.get());
        tell_all(lane.ended.take(), ());
        self.commits.control(Control::Wake);
    }
}

/// Whoever went away is not told.
fn tell_all<T: Copy>(waiting: Vec<oneshot::Sender<T>>, news: T) {
    for answer in waiting {
        let _ = answer.send(news);
    }
}

impl Lane {
    fn new(shard: u32, writer: Writer) -> Self {
        Self {
            shard,
            writer: RefCell::new(writer),
            incoming: RefCell::default(),
            taken: Cell::new(0),
            controls: RefCell::default(),
            confirms: RefCell::default(),
            wake: Notify::new(),
            closing: Cell::new(false),
            ended: RefCell::default(),
        }
    }

    fn is_idle(&self) -> bool {
        self.incoming.borrow().is_empty()
            && self.controls.borrow().is_empty()
            && self.confirms.borrow().is_empty()
            && self.writer.borrow().queued() == 0
    }

    fn close(&self) {
        self.closing.set(true);
        self.wake.notify_one();
    }

    /// Their places in the queue are free again.
    fn answered(&self, commits: &Commits, count: usize) {
        self.taken.set(self.taken.get().saturating_sub(count));
        let freed = u32::try_from(count).unwrap_or(u32::MAX);
        commits.tables[self.shard as usize].queued.fetch_sub(freed, Ordering::Relaxed);
        commits.queued.fetch_sub(count, Ordering::Relaxed);
    }
}
