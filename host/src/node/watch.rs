//! Watching a counter: its total whenever it changes, at most ten times a second.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use super::read::{Freshness, Total, read};
use super::{Node, Worker};
use crate::counter::{Id, key_hash};
use crate::error::{Error, Kind};
use crate::limits;

/// The least time between two totals.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often a total is read again of which other nodes have a part.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Counts itself among the open watches while it lives.
struct Place(Arc<Node>);

impl Place {
    fn take(node: &Arc<Node>) -> Result<Self, Error> {
        if node.stats.watches.fetch_add(1, Ordering::Relaxed) >= limits::WATCHES_MAX {
            node.stats.watches.fetch_sub(1, Ordering::Relaxed);
            let why = format!(
                "This node serves {} watches already, the most it takes. Try again later.",
                limits::WATCHES_MAX
            );
            return Err(Error::new(Kind::QueueFull, why));
        }
        Ok(Self(node.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.stats.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Watch {
    worker: Rc<Worker>,
    id: Id,
    changes: Vec<Receiver<()>>,
    last: Option<i128>,
    next_at: Instant,
    _place: Place,
}

/// Totals of a counter that exists: the present one at once, then each that differs from the one before. Ends when the
/// counter is removed.
pub async fn watch(worker: Rc<Worker>, id: Id) -> Result<impl Stream<Item = Total> + 'static, Error> {
    let node = &worker.node;
    let place = Place::take(node)?;
    let hash = key_hash(id.as_str());
    let shards = node.read_set(&id, hash);
    let changes = shards.iter().map(|&shard| node.commits.tables[shard as usize].changed.subscribe()).collect();
    let first = read(&worker, &id, Freshness::Exact).await?;
    let next_at = Instant::now() + INTERVAL;
    let last = Some(first.value);
    let watch = Watch { worker, id, changes, last, next_at, _place: place };
    Ok(stream::once(std::future::ready(first)).chain(stream::unfold(watch, |mut watch| async move {
        let total = watch.next().await?;
        Some((total, watch))
    })))
}

impl Watch {
    async fn next(&mut self) -> Option<Total> {
        loop {
            {
                let elsewhere = self.worker.node.peers.is_some();
                let mut changes: FuturesUnordered<_> = self.changes.iter_mut().map(Receiver::changed).collect();
                tokio::select! {
                    changed = changes.next() => changed?.ok()?,
                    // What other nodes count is asked for.
                    () = tokio::time::sleep(ASK_AGAIN), if elsewhere => {}
                }
            }
            sleep_until(self.next_at).await;
            // What changed while it slept is in the total that is read now.
            self.changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
            let total = read(&self.worker, &self.id, Freshness::Exact).await.ok()?;
            self.next_at = Instant::now() + INTERVAL;
            if self.last.replace(total.value) != Some(total.value) {
                return Some(total);
            }
        }
    }
}
