//! One shard that this node serves: its writer, what waits for it, and the loop that journals it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{Notify, oneshot};
use tracing::{error, info, warn};

use super::pace::Pace;
use super::{RETRY, Shared};
use crate::clock;
use crate::commit::{Control, Recent, Table, WriterState};
use crate::limits;
use crate::panics;
use crate::shard::entry::Entry;
use crate::shard::writer::{Answers, Append, Effect, Event};
use crate::shard::{JournalTime, Op, Partials, Writer};
use crate::store::{self, Appended};

/// One shard that this node serves.
pub struct Lane {
    pub(super) shared: Rc<Shared>,
    pub(super) shard: u32,
    writer: RefCell<Writer>,
    time: Cell<JournalTime>,
    incoming: RefCell<Vec<Op>>,
    /// Operations taken from the queue and not answered yet.
    taken: Cell<usize>,
    controls: RefCell<Vec<Control>>,
    /// Exact reads that wait to know that the shard is ours.
    confirms: RefCell<Vec<oneshot::Sender<bool>>>,
    wake: Notify,
    /// It has something to write, or looks for more.
    at_work: Cell<bool>,
    pace: Cell<Pace>,
    began: Instant,
    /// Operations answered since then.
    answers: Cell<usize>,
    /// Takes nothing more.
    closing: Cell<bool>,
    /// Answered when the lane has ended.
    ended: RefCell<Vec<oneshot::Sender<()>>>,
}

/// Why a lane ends.
pub enum End {
    /// Another node has the shard.
    Lost,
    /// What the store holds is not what was written.
    Damaged(store::Error),
    HandedOver,
}

impl Lane {
    pub fn new(shared: Rc<Shared>, shard: u32, writer: Writer) -> Self {
        Self {
            shared,
            shard,
            time: Cell::new(JournalTime::resume(writer.time_ms(), clock::now())),
            writer: RefCell::new(writer.returning()),
            incoming: RefCell::default(),
            taken: Cell::new(0),
            controls: RefCell::default(),
            confirms: RefCell::default(),
            wake: Notify::new(),
            at_work: Cell::new(false),
            pace: Cell::default(),
            began: Instant::now(),
            answers: Cell::new(0),
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

    /// Journal time now; None while the cluster writes entries without.
    fn time_ms(&self) -> Option<u64> {
        let mut time = self.time.get();
        let now_ms = time.advance(clock::now());
        self.time.set(time);
        self.shared.commits.timed().then_some(now_ms)
    }

    pub fn epoch(&self) -> u64 {
        self.writer.borrow().epoch()
    }

    /// Takes an operation in, or gives it back when the lane takes nothing more.
    pub fn take(&self, op: Op) -> Option<Op> {
        if self.closing.get() {
            return Some(op);
        }
        self.taken.set(self.taken.get() + 1);
        self.incoming.borrow_mut().push(op);
        self.wake.notify_one();
        None
    }

    /// Answered between two groups, when everything that was taken before is settled.
    pub fn control(&self, control: Control) {
        self.controls.borrow_mut().push(control);
        self.wake.notify_one();
    }

    /// Tells whether the shard is ours at a moment after this.
    pub fn confirm(&self, answer: oneshot::Sender<bool>) {
        self.confirms.borrow_mut().push(answer);
        self.wake.notify_one();
    }

    pub fn tell_end(&self, answer: oneshot::Sender<()>) {
        self.ended.borrow_mut().push(answer);
    }

    pub fn close(&self) {
        self.closing.set(true);
        self.wake.notify_one();
    }

    /// Their places in the queue are free again.
    fn answered(&self, count: usize) {
        let commits = &self.shared.commits;
        self.answers.set(self.answers.get().wrapping_add(count));
        self.taken.set(self.taken.get().saturating_sub(count));
        let freed = u32::try_from(count).unwrap_or(u32::MAX);
        commits.tables[self.shard as usize].queued.fetch_sub(freed, Ordering::Relaxed);
        commits.queued.fetch_sub(count, Ordering::Relaxed);
    }

    /// Serves until the shard is handed over or lost.
    pub async fn drive(&self) -> End {
        let mut due = Vec::new();
        loop {
            if self.is_idle() {
                self.rest();
                if !self.is_idle() {
                    continue;
                }
                if self.closing.get() {
                    return End::HandedOver;
                }
                self.wake.notified().await;
                continue;
            }
            self.work();
            // Taken together with all that was submitted before them; what comes later does not hold them up.
            due.append(&mut self.controls.borrow_mut());
            if let Err(end) = self.group().await {
                return end;
            }
            self.tidy();
            if self.writer.borrow().queued() == 0 {
                due.drain(..).for_each(|control| self.answer_control(control));
            }
        }
    }

    /// Whoever submits need not wake this thread from now on.
    fn work(&self) {
        if !self.at_work.replace(true) {
            self.table().at_work.store(true, Ordering::Relaxed);
            self.shared.turns.begin_work();
        }
    }

    /// From now on whoever submits wakes this thread; what was submitted before that was known is dealt.
    fn rest(&self) {
        if self.at_work.replace(false) {
            self.table().at_work.store(false, Ordering::Relaxed);
            self.shared.turns.end_work();
            self.shared.deal_submitted();
        }
    }

    fn table(&self) -> &Table {
        &self.shared.commits.tables[self.shard as usize]
    }

    /// Journals what waits, as one entry, and answers who asked whether the shard is ours.
    async fn group(&self) -> Result<(), End> {
        self.shared.deal_submitted();
        self.enqueue();
        let mut confirms = std::mem::take(&mut *self.confirms.borrow_mut());
        if self.writer.borrow().queued() > 0 {
            panics::point("lane");
            self.prepare().await?;
            self.gather().await;
            let turn = self.shared.turns.next().await;
            self.shared.deal_submitted();
            self.enqueue();
            self.prepare().await?;
            // Begun before this append, so that its success answers them.
            confirms.append(&mut self.confirms.borrow_mut());
            let (begun, before) = (Instant::now(), self.answers.get());
            let appended = self.commit().await?;
            drop(turn);
            self.wrote(begun, before);
            if appended {
                tell_all(confirms, true);
                return Ok(());
            }
        }
        if !confirms.is_empty() {
            self.answer_confirms(confirms).await?;
        }
        Ok(())
    }

    /// Waits for others, where a crowd writes: see [`Pace`]. Nobody who only asks something is kept waiting.
    async fn gather(&self) {
        let target = self.pace.get().target();
        let enough = || {
            self.taken.get() >= target
                || self.closing.get()
                || !self.controls.borrow().is_empty()
                || !self.confirms.borrow().is_empty()
        };
        if enough() {
            return;
        }
        // Known before the queue is looked at, so that whoever comes later sees it.
        self.table().gather.store(u32::try_from(target).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.shared.deal_submitted();
        let all_there = async {
            while !enough() {
                self.wake.notified().await;
            }
        };
        let _ = tokio::time::timeout(limits::GATHER_TIME_MAX, all_there).await;
        self.table().gather.store(0, Ordering::Relaxed);
    }

    /// An entry was written; so many operations had been answered when that began.
    fn wrote(&self, begun: Instant, before: usize) {
        let waiting = self.table().queued.load(Ordering::Relaxed) as usize;
        let mut pace = self.pace.get();
        let answered = self.answers.get().wrapping_sub(before);
        pace.wrote(self.began.elapsed(), begun.elapsed(), answered, waiting);
        self.pace.set(pace);
    }

    fn enqueue(&self) {
        let incoming = std::mem::take(&mut *self.incoming.borrow_mut());
        let mut writer = self.writer.borrow_mut();
        for op in incoming {
            // A writer answers at once only when it is stopped, and its lane has ended then.
            if let Some(effect) = writer.submit(op) {
                self.settle(effect);
            }
        }
    }

    pub(super) fn step(&self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let partials = self.shared.commits.tables[self.shard as usize].partials.read();
        self.writer.borrow_mut().step(&partials, event, &mut effects);
        effects
    }

    async fn prepare(&self) -> Result<(), End> {
        let effects = self.step(Event::Prepare);
        self.fetch(effects).await
    }

    /// Closes the next entry and sees it through. Whether an append that began here was applied.
    async fn commit(&self) -> Result<bool, End> {
        let mut effects = self.step(Event::Seal { entry_id: rand::random(), time_ms: self.time_ms() });
        let (mut appended, mut wait) = (false, RETRY.0);
        let mut needs = Vec::new();
        loop {
            let mut result = None;
            for effect in effects.drain(..) {
                match effect {
                    Effect::Load { .. } | Effect::LookUp { .. } => needs.push(effect),
                    Effect::Append(entry) => result = Some(self.append(entry).await),
                    Effect::Confirm => result = Some(self.confirm_epoch().await),
                    Effect::Apply(entry, slots) => {
                        self.apply(&entry, &slots);
                        appended = true;
                    }
                    Effect::Answer(_) | Effect::Return(_) => self.settle(effect),
                }
            }
            self.shared.answers.borrow_mut().deliver(&self.shared.commits);
            let Some(result) = result else { break };
            if result == Append::Unknown || result == Append::NotWritten {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
            // The node ends while a write has no answer: nobody can wait for it any longer.
            let result = if result == Append::Unknown && self.shared.commits.stopped() {
                Append::Lost { applied: None }
            } else {
                result
            };
            effects = self.step(Event::Appended(result));
            if let Append::Lost { .. } = result {
                effects.into_iter().for_each(|effect| self.settle(effect));
                return Err(End::Lost);
            }
        }
        self.fetch(needs).await?;
        Ok(appended)
    }

    async fn append(&self, entry: Arc<Entry>) -> Append {
        let begun = Instant::now();
        let stats = &self.shared.commits.stats;
        let result = self.shared.store.append(std::slice::from_ref(&entry)).await;
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

    async fn confirm_epoch(&self) -> Append {
        let epoch = self.writer.borrow().epoch();
        match self.shared.store.confirm(self.shard, epoch).await {
            Ok(true) => Append::Applied,
            Ok(false) => Append::Lost { applied: Some(false) },
            Err(_) => Append::Unknown,
        }
    }

    /// Answers exact reads. When the store does not answer, they are told nothing, and ask again.
    async fn answer_confirms(&self, confirms: Vec<oneshot::Sender<bool>>) -> Result<(), End> {
        let result = self.confirm_epoch().await;
        if result != Append::Unknown {
            tell_all(confirms, result == Append::Applied);
        }
        match result {
            Append::Lost { .. } => {
                let effects = self.step(Event::Appended(result));
                effects.into_iter().for_each(|effect| self.settle(effect));
                Err(End::Lost)
            }
            _ => Ok(()),
        }
    }

    /// Carries out what a writer wants when nothing more is asked of the store.
    fn settle(&self, effect: Effect) {
        match effect {
            Effect::Apply(entry, slots) => self.apply(&entry, &slots),
            Effect::Answer(answers) => self.answer(answers),
            Effect::Return(mut ops) => {
                self.answered(ops.len());
                self.shared.commits.strays.put(&mut ops);
            }
            Effect::Load { .. } | Effect::LookUp { .. } | Effect::Append(_) | Effect::Confirm => {}
        }
    }

    fn apply(&self, entry: &Entry, slots: &[u32]) {
        let table = &self.shared.commits.tables[self.shard as usize];
        table.partials.write().apply_at(entry, slots);
        self.shared.durable.borrow_mut()[self.shard as usize] = entry.seq;
        if table.changed.receiver_count() > 0 {
            table.changed.send_replace(());
        }
    }

    fn answer(&self, answers: Answers) {
        self.shared.commits.stats.operations.fetch_add(answers.len() as u64, Ordering::Relaxed);
        self.answered(answers.len());
        self.shared.answers.borrow_mut().take(&self.shared.commits, self.shard, answers);
    }

    /// After a group: memory stays bounded, and a long journal is noticed.
    fn tidy(&self) {
        self.shared.settings.evict(&self.shared.commits, &self.shared.commits.tables[self.shard as usize]);
        if self.shared.store.journal_bytes() > limits::CLUSTER_JOURNAL_BYTES_MAX {
            self.shared.commits.checkpoint_due.notify_one();
        }
    }

    fn answer_control(&self, control: Control) {
        let table = &self.shared.commits.tables[self.shard as usize];
        match control {
            Control::Snapshot { answer, .. } => {
                self.step(Event::ExpireMarks { lifetime_ms: limits::MARK_LIFETIME.as_millis() as u64 });
                let _ = answer.send(WriterState::of(&self.writer.borrow(), table));
            }
            Control::Checkpointed { epoch, seq, answer, .. } => {
                if self.epoch() == epoch {
                    table.partials.write().checkpointed(seq);
                    self.shared.settings.evict(&self.shared.commits, table);
                    self.step(Event::Checkpointed { seq });
                }
                let _ = answer.send(());
            }
            Control::RecentKey { hash, counter, key, answer, .. } => {
                let (writer, time_ms) = (self.writer.borrow(), self.time_ms());
                let record = writer.recent_key(hash, &counter, &key).cloned();
                let _ = answer.send(Recent { record, window: writer.window(time_ms) });
            }
            // The others are not a lane's.
            Control::StoreBroken(_)
            | Control::KeyHorizon { .. }
            | Control::TakeOver { .. }
            | Control::HandOver { .. }
            | Control::Confirm { .. }
            | Control::Wake => {}
        }
    }

    /// The lane has ended: nothing of the shard is readable here any more, and nobody waits for it.
    pub fn retire(&self, end: End) {
        self.rest();
        let (shard, table) = (self.shard, self.table());
        table.epoch.store(0, Ordering::Release);
        self.shared.store.release(shard, self.epoch());
        // What the writer has not answered was never sent to the store.
        let effects = self.step(Event::Appended(Append::Lost { applied: Some(false) }));
        effects.into_iter().for_each(|effect| self.settle(effect));
        self.enqueue();
        self.shared.answers.borrow_mut().deliver(&self.shared.commits);
        table.partials.write().replace(Partials::default());
        table.changed.send_replace(());
        match end {
            End::HandedOver => info!("shard {shard} is handed over"),
            End::Lost => {
                warn!("shard {shard} was taken over by another node");
                self.shared.commits.lost.put(&mut vec![shard]);
            }
            End::Damaged(why) => {
                error!("shard {shard} is served no more: {why}");
                self.shared.commits.lost.put(&mut vec![shard]);
            }
        }
        // An entry whose outcome nobody knows leaves peers without an answer; they send it again.
        self.answered(self.taken.get());
        tell_all(self.ended.take(), ());
    }
}

/// Whoever went away is not told.
fn tell_all<T: Copy>(waiting: Vec<oneshot::Sender<T>>, news: T) {
    for answer in waiting {
        let _ = answer.send(news);
    }
}
