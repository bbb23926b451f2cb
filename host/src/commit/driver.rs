//! The commit thread: drives every shard writer of this node on the store, one durable write for all of them at a time.
//!
//! What arrives while a write is under way becomes the next group; there is no timer. The thread owns the writers, so
//! no lock guards them; readers see the tables, which change only after a write is durable. When the store fails, every
//! caller in flight learns that its outcome is unknown, and the shards are taken over anew from what is on disk. When
//! what is there is damaged, the thread ends with the error, and the node with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::answers::Collected;
use super::takeover::take_over;
use super::{Commits, Control, Recent, Settings, Table, WriterState};
use crate::clock;
use crate::limits;
use crate::panics;
use crate::shard::entry::Entry;
use crate::shard::partials::Resident;
use crate::shard::writer::{Answers, Append, Effect, Event};
use crate::shard::{JournalTime, Op, Outcome, Writer};
use crate::store::{self, Appended, Store};

/// Why no [`Effect::Return`] comes: the shards of this store have no other owner that could take anything.
const NOT_RETURNING: &str = "the driver's writers return nothing";

/// Owns the writers; lives on the commit thread.
pub struct Driver {
    commits: Arc<Commits>,
    store: Arc<dyn Store>,
    settings: Settings,
    writers: Vec<Writer>,
    /// None until every shard was taken over.
    time: Option<JournalTime>,
    /// Shards with operations that wait.
    touched: Vec<u32>,
    /// Operations of the group under way, by shard.
    taken: Vec<u32>,
    effects: Vec<Effect>,
    /// Delivered once per durable write.
    answers: Collected,
    /// The last write found no room; said once.
    no_room: bool,
    /// The last group had more than one operation.
    crowd: bool,
}

/// The group could not be written.
enum Failed {
    NotWritten(String),
    Broken(store::Error),
}

/// Waits before something is tried again: the first time, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Driver {
    /// Takes every shard over; serves afterwards.
    pub async fn start(commits: Arc<Commits>, store: Arc<dyn Store>, settings: Settings) -> Result<Self, store::Error> {
        let mut driver = Self {
            answers: Collected::new(&commits),
            taken: vec![0; commits.tables.len()],
            commits,
            store,
            settings,
            writers: Vec::new(),
            time: None,
            touched: Vec::new(),
            effects: Vec::new(),
            no_room: false,
            crowd: false,
        };
        driver.take_over().await?;
        driver.serve();
        Ok(driver)
    }

    fn serve(&self) {
        self.commits.serving.store(!self.commits.stopped(), Ordering::Release);
        // `stop` may have come between the two; it sets `stopped` first.
        if self.commits.stopped() {
            self.commits.serving.store(false, Ordering::Release);
        }
    }

    async fn take_over(&mut self) -> Result<(), store::Error> {
        self.writers.clear();
        self.touched.clear();
        for shard in 0..self.commits.tables.len() as u32 {
            let table = &self.commits.tables[shard as usize];
            let durable_seq = table.partials.read().applied();
            let (writer, read) = take_over(&*self.store, self.settings, shard, durable_seq, None).await?;
            table.epoch.store(writer.epoch(), Ordering::Release);
            let mut partials = table.partials.write();
            partials.replace(*read);
            partials.limit_readers(self.settings.resident_max);
            drop(partials);
            table.changed.send_replace(());
            self.writers.push(*writer);
        }
        if self.time.is_none() {
            let last_ms = self.writers.iter().filter_map(Writer::time_ms).max();
            self.time = Some(JournalTime::resume(last_ms, clock::now()));
        }
        Ok(())
    }

    /// Runs until [`Commits::stop`]; everything submitted before is answered then. An error: the data is damaged, or
    /// another process took it. Nothing is served any more, and the process should exit.
    pub async fn run(mut self) -> Result<(), store::Error> {
        let commits = self.commits.clone();
        let (mut batches, mut control) = (Vec::new(), Vec::new());
        loop {
            let woken = commits.wake.notified();
            {
                let mut queue = commits.queue.lock();
                std::mem::swap(&mut queue.batches, &mut batches);
                std::mem::swap(&mut queue.control, &mut control);
                if batches.is_empty() && control.is_empty() && self.may_end() {
                    queue.closed = true;
                    return Ok(());
                }
            }
            if batches.is_empty() && control.is_empty() {
                woken.await;
                continue;
            }
            self.gather(&mut batches);
            self.group(&mut batches).await?;
            for control in control.drain(..) {
                self.control(control).await?;
            }
        }
    }

    /// Lets serving threads that are ready to run submit what they have, when the last group was a crowd: the same
    /// synced write then carries more. Costs nothing when no thread waits for this core.
    fn gather(&mut self, batches: &mut Vec<Vec<Op>>) {
        if self.crowd {
            std::thread::yield_now();
            batches.append(&mut self.commits.queue.lock().batches);
        }
        self.crowd = batches.iter().map(Vec::len).sum::<usize>() > 1;
    }

    fn may_end(&self) -> bool {
        self.commits.stopped() && self.commits.checkpointers.load(Ordering::Acquire) == 0
    }

    /// Journals one group: everything that was waiting.
    async fn group(&mut self, batches: &mut Vec<Vec<Op>>) -> Result<(), store::Error> {
        self.enqueue(batches);
        if !self.touched.is_empty() {
            panics::point("commit");
        }
        while !self.touched.is_empty() {
            match self.commit().await {
                Ok(()) => self.no_room = false,
                Err(Failed::NotWritten(why)) => {
                    if !std::mem::replace(&mut self.no_room, true) {
                        error!("the store takes no writes now, and operations are refused: {why}");
                    }
                }
                Err(Failed::Broken(why)) => self.recover(why).await?,
            }
            self.deliver();
            let writers = &self.writers;
            self.touched.retain(|&shard| writers[shard as usize].queued() > 0);
        }
        self.tidy();
        Ok(())
    }

    /// Moves operations to their writers' queues.
    fn enqueue(&mut self, batches: &mut Vec<Vec<Op>>) {
        for op in batches.drain(..).flatten() {
            let shard = op.shard;
            let taken = &mut self.taken[shard as usize];
            if *taken == 0 {
                self.touched.push(shard);
            }
            *taken += 1;
            if let Some(Effect::Answer(answers)) = self.writers[shard as usize].submit(op) {
                self.answer(shard, answers);
            }
        }
    }

    /// Writes one entry of every shard with waiting operations, in one go.
    async fn commit(&mut self) -> Result<(), Failed> {
        let group = match self.seal().await {
            Ok(group) => group,
            Err(why) => {
                // Nothing of this group was sent.
                self.fail_all(Append::Lost { applied: Some(false) });
                return Err(Failed::Broken(why));
            }
        };
        self.append(group).await
    }

    /// Closes the next entry of every touched shard.
    async fn seal(&mut self) -> Result<Vec<Arc<Entry>>, store::Error> {
        let mut group = Vec::with_capacity(self.touched.len());
        let time_ms = self.time_ms();
        for at in 0..self.touched.len() {
            let shard = self.touched[at];
            self.step(shard, Event::Prepare);
            self.fetch(shard, &mut group).await?;
            self.step(shard, Event::Seal { entry_id: rand::random(), time_ms });
            // What is still missing is asked for in the next round; only an eviction since `Prepare` leads there.
            self.fetch(shard, &mut group).await?;
        }
        Ok(group)
    }

    fn step(&mut self, shard: u32, event: Event) {
        let partials = self.commits.tables[shard as usize].partials.read();
        self.writers[shard as usize].step(&partials, event, &mut self.effects);
    }

    /// Carries out effects that may need the store.
    async fn fetch(&mut self, shard: u32, group: &mut Vec<Arc<Entry>>) -> Result<(), store::Error> {
        if self.effects.is_empty() {
            return Ok(());
        }
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Load { hash, counter } => {
                    let partials = &self.commits.tables[shard as usize].partials;
                    // A batch may ask many times for one counter.
                    if partials.read().get(hash, &counter) == Resident::Unloaded {
                        let partial = self.store.load(shard, &counter).await?;
                        partials.write().load(hash, &counter, partial);
                    }
                }
                Effect::LookUp { as_of, hash, counter, key } => {
                    let record = self.store.load_key(shard, &counter, &key).await?;
                    self.step(shard, Event::LookedUp { as_of, hash, counter, key, record });
                }
                Effect::Append(entry) => group.push(entry),
                // The store of one process is locked by it: the shard is ours as long as we run.
                Effect::Confirm => self.confirm(shard),
                Effect::Apply(entry, slots) => self.apply(shard, &entry, &slots),
                Effect::Answer(answers) => self.answer(shard, answers),
                Effect::Return(_) => unreachable!("{NOT_RETURNING}"),
            }
        }
        self.effects = effects;
        Ok(())
    }

    fn confirm(&mut self, shard: u32) {
        self.step(shard, Event::Appended(Append::Applied));
        for effect in std::mem::take(&mut self.effects) {
            if let Effect::Answer(answers) = effect {
                self.answer(shard, answers);
            }
        }
    }

    fn apply(&self, shard: u32, entry: &Entry, slots: &[u32]) {
        let table = &self.commits.tables[shard as usize];
        table.partials.write().apply_at(entry, slots);
        if table.changed.receiver_count() > 0 {
            table.changed.send_replace(());
        }
    }

    /// Writes a group until every entry of it is settled.
    async fn append(&mut self, mut group: Vec<Arc<Entry>>) -> Result<(), Failed> {
        let mut wait = RETRY.0;
        while !group.is_empty() {
            let begun = Instant::now();
            let results = match self.store.append(&group).await {
                Ok(results) => results,
                Err(why @ store::Error::NotApplied(_)) => {
                    group = self.settle(&group, |_| Append::NotWritten);
                    if group.is_empty() {
                        return Err(Failed::NotWritten(why.to_string()));
                    }
                    self.pause(&mut wait).await?;
                    continue;
                }
                Err(why) => {
                    self.settle(&group, |_| Append::Lost { applied: None });
                    return Err(Failed::Broken(why));
                }
            };
            let stats = &self.commits.stats;
            let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            stats.append_nanos.fetch_add(nanos, Ordering::Relaxed);
            stats.groups.fetch_add(1, Ordering::Relaxed);
            stats.entries.fetch_add(group.len() as u64, Ordering::Relaxed);
            group = self.settle(&group, |at| match results.get(at) {
                Some(Appended::Applied) => Append::Applied,
                Some(&Appended::Fenced { applied }) => Append::Lost { applied },
                Some(Appended::Unknown) | None => Append::Unknown,
            });
            if results.iter().any(|result| matches!(result, Appended::Fenced { .. })) {
                return Err(Failed::Broken(store::Error::Broken("another owner took a shard over".into())));
            }
            if !group.is_empty() {
                self.pause(&mut wait).await?;
            }
        }
        Ok(())
    }

    /// Before entries are sent again; those already settled are answered first.
    async fn pause(&mut self, wait: &mut Duration) -> Result<(), Failed> {
        self.deliver();
        if self.commits.stopped() {
            let why = "the node stops while the outcome of a write is unknown";
            return Err(Failed::Broken(store::Error::Broken(why.into())));
        }
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(RETRY.1);
        Ok(())
    }

    /// Tells the writers what became of their entries; returns those to be sent again.
    fn settle(&mut self, group: &[Arc<Entry>], result: impl Fn(usize) -> Append) -> Vec<Arc<Entry>> {
        let mut again = Vec::new();
        let mut effects = std::mem::take(&mut self.effects);
        for (at, entry) in group.iter().enumerate() {
            let shard = entry.shard;
            {
                let partials = self.commits.tables[shard as usize].partials.read();
                self.writers[shard as usize].step(&partials, Event::Appended(result(at)), &mut effects);
            }
            for effect in effects.drain(..) {
                match effect {
                    Effect::Append(entry) => again.push(entry),
                    Effect::Apply(entry, slots) => self.apply(shard, &entry, &slots),
                    Effect::Answer(answers) => self.answer(shard, answers),
                    // Settling an entry asks for nothing.
                    Effect::Load { .. } | Effect::LookUp { .. } | Effect::Confirm => {}
                    Effect::Return(_) => unreachable!("{NOT_RETURNING}"),
                }
            }
        }
        self.effects = effects;
        again
    }

    /// Ends every writer: in flight as `result` says, waiting ones as not applied.
    fn fail_all(&mut self, result: Append) {
        self.effects.clear();
        for shard in 0..self.writers.len() as u32 {
            self.step(shard, Event::Appended(result));
            for effect in std::mem::take(&mut self.effects) {
                if let Effect::Answer(answers) = effect {
                    self.answer(shard, answers);
                }
            }
        }
    }

    fn answer(&mut self, shard: u32, answers: Answers) {
        self.commits.stats.operations.fetch_add(answers.len() as u64, Ordering::Relaxed);
        self.answers.take(&self.commits, shard, answers);
    }

    fn deliver(&mut self) {
        self.answers.deliver(&self.commits);
    }

    /// After a group: its room in the queue is free again, memory stays bounded, and a long journal is noticed.
    fn tidy(&mut self) {
        let mut total = 0;
        for (table, taken) in self.commits.tables.iter().zip(&mut self.taken) {
            if *taken > 0 {
                table.queued.fetch_sub(*taken, Ordering::Relaxed);
                total += std::mem::take(taken) as usize;
                self.settings.evict(&self.commits, table);
            }
        }
        self.commits.queued.fetch_sub(total, Ordering::Relaxed);
        let keys = self.writers.iter().map(Writer::keys_len).sum();
        self.commits.stats.recent_keys.store(keys, Ordering::Relaxed);
        if self.store.journal_bytes() > limits::JOURNAL_BYTES_MAX {
            self.commits.checkpoint_due.notify_one();
        }
    }

    /// Closes and opens the store until it works, then takes every shard over again.
    async fn recover(&mut self, why: store::Error) -> Result<(), store::Error> {
        self.commits.serving.store(false, Ordering::Release);
        self.fail_all(Append::Lost { applied: None });
        self.deliver();
        if let store::Error::Damaged(_) = why {
            error!("the node stops serving: {why}");
            return Err(why);
        }
        error!("the store failed, and is closed and opened again: {why}");
        let mut wait = RETRY.0;
        loop {
            self.refuse_waiting();
            let recovered = match self.store.recover().await {
                Ok(()) => self.take_over().await,
                Err(why) => Err(why),
            };
            match recovered {
                Ok(()) => break,
                Err(why @ (store::Error::Damaged(_) | store::Error::Refused(_))) => {
                    error!("the node stops serving: {why}");
                    return Err(why);
                }
                Err(why) => warn!("the store is not back yet: {why}"),
            }
            if self.commits.stopped() {
                return Err(store::Error::Broken("the node was stopped before the store was back".into()));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
        self.commits.stats.recoveries.fetch_add(1, Ordering::Relaxed);
        self.serve();
        info!("the store is open again, and its journal replayed");
        Ok(())
    }

    /// Nothing waits for a store that is away: what is queued was never written, and what is asked is not answered.
    fn refuse_waiting(&mut self) {
        let batches = {
            let mut queue = self.commits.queue.lock();
            queue.control.clear();
            std::mem::take(&mut queue.batches)
        };
        for ops in batches {
            self.commits.release(&ops);
            for op in ops {
                self.answer(op.shard, vec![(op.origin, Outcome::NotApplied)]);
            }
        }
        self.deliver();
    }

    async fn control(&mut self, control: Control) -> Result<(), store::Error> {
        match control {
            Control::Wake => {}
            Control::Snapshot { shard, answer } => {
                self.step(shard, Event::ExpireMarks { lifetime_ms: limits::MARK_LIFETIME.as_millis() as u64 });
                let _ = answer.send(self.state(shard));
            }
            Control::Checkpointed { shard, epoch, seq, answer } => {
                // A checkpoint begun before a takeover may have been ignored by the store.
                if self.writers[shard as usize].epoch() == epoch {
                    let table = &self.commits.tables[shard as usize];
                    table.partials.write().checkpointed(seq);
                    self.settings.evict(&self.commits, table);
                    self.step(shard, Event::Checkpointed { seq });
                }
                let _ = answer.send(());
            }
            Control::RecentKey { shard, hash, counter, key, answer } => {
                let time_ms = self.time_ms();
                let writer = &self.writers[shard as usize];
                let record = writer.recent_key(hash, &counter, &key).cloned();
                let _ = answer.send(Recent { record, window: writer.window(time_ms) });
            }
            Control::KeyHorizon { answer } => {
                if let Some(horizon_ms) = self.key_horizon_ms() {
                    let _ = answer.send(horizon_ms);
                }
            }
            Control::StoreBroken(why) => self.recover(why).await?,
            // One process has all shards as long as it runs: whoever asks for one is told nothing.
            Control::TakeOver { .. } | Control::HandOver { .. } => {}
            Control::Confirm { answer, .. } => drop(answer.send(true)),
        }
        Ok(())
    }

    /// Journal time now: one for all shards, since one process serves them all.
    fn time_ms(&mut self) -> Option<u64> {
        self.time.as_mut().map(|time| time.advance(clock::now()))
    }

    /// Records from before it are out of force, those of each shard from before its journal time included.
    fn key_horizon_ms(&mut self) -> Option<u64> {
        let slack_ms = limits::KEY_EXPIRY_SLACK.as_millis() as u64;
        let horizon_ms = self.time_ms()?.checked_sub(self.settings.key_window_ms().saturating_add(slack_ms))?;
        let since_ms = self.writers.iter().filter_map(Writer::since_ms).max()?;
        (horizon_ms > since_ms).then_some(horizon_ms)
    }

    fn state(&self, shard: u32) -> WriterState {
        WriterState::of(&self.writers[shard as usize], &self.commits.tables[shard as usize])
    }
}

impl WriterState {
    pub(super) fn of(writer: &Writer, table: &Table) -> Self {
        Self {
            epoch: writer.epoch(),
            seq: table.partials.read().applied(),
            keys: writer.key_records().cloned().collect(),
            marks: writer.marks(),
        }
    }
}

impl Drop for Driver {
    /// However the thread ends, nobody waits for ever.
    fn drop(&mut self) {
        self.commits.serving.store(false, Ordering::Release);
        self.commits.queue.lock().closed = true;
        self.fail_all(Append::Lost { applied: None });
        self.refuse_waiting();
        self.commits.ended.send_replace(true);
        self.commits.checkpoint_due.notify_one();
    }
}
