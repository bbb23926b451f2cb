//! The checkpoint thread: keeps the journal short by writing changed partials, idempotency records and marks to their
//! own rows.
//!
//! Shard by shard and in bounded pieces, so that a million changed counters are never in memory twice. The position
//! moves only with a shard's last piece: until then a piece is but a copy of what the journal holds. Nothing is lost
//! when a checkpoint fails; the journal grows, and it is tried again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Commits, Control, WriterState};
use crate::limits;
use crate::panics;
use crate::store::{self, Checkpoint, Store};

pub struct Checkpointer {
    commits: Arc<Commits>,
    store: Arc<dyn Store>,
}

impl Checkpointer {
    /// The commit thread does not end before this is dropped.
    pub fn new(commits: Arc<Commits>, store: Arc<dyn Store>) -> Self {
        commits.checkpointers.fetch_add(1, Ordering::AcqRel);
        Self { commits, store }
    }

    /// Takes checkpoints until [`Commits::stop`], and a last one then.
    pub async fn run(self) {
        let (retry_first, retry_max) = limits::CHECKPOINT_RETRY;
        let mut retry = None;
        loop {
            self.wait(retry).await;
            let last = self.commits.over();
            let result = self.round().await.map_err(|why| self.failed(why));
            match (result, retry) {
                (Ok(()), None) => {}
                (Ok(()), Some(_)) => {
                    info!("checkpoints work again");
                    retry = None;
                }
                (Err(why), None) => {
                    error!("no checkpoint could be taken; the journal keeps everything, and it is tried again: {why}");
                    retry = Some(retry_first);
                }
                (Err(_), Some(wait)) => retry = Some((wait * 2).min(retry_max)),
            }
            if last {
                return;
            }
        }
    }

    /// Until a checkpoint is due, or the node stops. After a failure nothing but time makes one due.
    async fn wait(&self, retry: Option<Duration>) {
        let until = Instant::now() + retry.unwrap_or(limits::CHECKPOINT_INTERVAL);
        while !self.commits.over() {
            let woken = tokio::time::timeout_at(until, self.commits.checkpoint_due.notified()).await;
            if woken.is_err() || retry.is_none() {
                return;
            }
        }
    }

    /// One checkpoint of every shard that changed.
    async fn round(&self) -> Result<(), store::Error> {
        panics::point("checkpoint");
        for shard in 0..self.commits.tables.len() as u32 {
            self.shard(shard).await?;
        }
        self.expire_keys().await
    }

    /// Says why, after telling the commit thread if the store must be opened again.
    fn failed(&self, why: store::Error) -> String {
        self.commits.stats.checkpoint_failures.fetch_add(1, Ordering::Relaxed);
        let said = why.to_string();
        if !matches!(why, store::Error::NotApplied(_)) {
            self.commits.control(Control::StoreBroken(why));
        }
        said
    }

    async fn shard(&self, shard: u32) -> Result<(), store::Error> {
        let changed = {
            let partials = self.commits.tables[shard as usize].partials.read();
            partials.applied() > partials.covered() || partials.dirty_len() > 0
        };
        if !changed {
            return Ok(());
        }
        // No answer: the store is being recovered, or the node ends. The next round is soon enough.
        let Some(state) = self.commits.snapshot(shard).await else { return Ok(()) };
        let (epoch, seq) = (state.epoch, state.seq);
        self.write(shard, state).await?;
        self.commits.checkpointed(shard, epoch, seq).await;
        self.commits.stats.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn write(&self, shard: u32, state: WriterState) -> Result<(), store::Error> {
        let WriterState { epoch, seq, keys, marks } = state;
        let partials = &self.commits.tables[shard as usize].partials;
        let (covered, dirty) = {
            let partials = partials.read();
            (partials.covered(), partials.dirty_len())
        };
        let mut from = 0;
        while dirty - from > limits::CHECKPOINT_PIECE {
            let piece = partials.read().dirty_piece(from, limits::CHECKPOINT_PIECE);
            let (keys, marks) = (Vec::new(), marks.clone());
            self.store
                .checkpoint(vec![Checkpoint { shard, epoch, seq: covered, partials: piece, keys, marks }])
                .await?;
            from += limits::CHECKPOINT_PIECE;
        }
        let piece = partials.read().dirty_piece(from, dirty - from);
        self.store.checkpoint(vec![Checkpoint { shard, epoch, seq, partials: piece, keys, marks }]).await
    }

    /// Drops idempotency records that no operation can ask for any more.
    async fn expire_keys(&self) -> Result<(), store::Error> {
        let Some(before_ms) = self.commits.key_horizon().await else { return Ok(()) };
        while self.store.expire_keys(before_ms, limits::KEY_EXPIRY_PIECE).await? == limits::KEY_EXPIRY_PIECE {
            if self.commits.stopped() {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.commits.checkpointers.fetch_sub(1, Ordering::AcqRel);
        if !self.commits.over() {
            warn!("the checkpoint thread ended; the journal grows until the restart");
        }
        self.commits.control(Control::Wake);
    }
}
