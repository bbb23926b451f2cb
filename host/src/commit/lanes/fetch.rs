//! What a lane's writer must know of the store before it can judge what waits.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::warn;

use super::RETRY;
use super::lane::{End, Lane};
use crate::counter::Id;
use crate::limits;
use crate::shard::entry::KeyRecord;
use crate::shard::partials::{Partial, Resident};
use crate::shard::writer::{Effect, Event};
use crate::store;

/// What the store answered to what a writer must know.
enum Fetched {
    Partial(u64, Id, Option<Partial>),
    Key(u64, u64, Id, Box<str>, Option<KeyRecord>),
}

impl Lane {
    /// Asks the store for what the writer must know, many at a time, until it has answered everything.
    pub(super) async fn fetch(&self, effects: Vec<Effect>) -> Result<(), End> {
        let mut wanted = effects.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            while asked.len() < limits::STORE_LOADS_MAX
                && let Some(effect) = wanted.next()
            {
                asked.push(self.ask(effect));
            }
            let Some(fetched) = asked.next().await else { return Ok(()) };
            match fetched? {
                Some(Fetched::Partial(hash, counter, partial)) => {
                    self.shared.commits.tables[self.shard as usize].partials.write().load(hash, &counter, partial);
                }
                Some(Fetched::Key(as_of, hash, counter, key, record)) => {
                    self.step(Event::LookedUp { as_of, hash, counter, key, record });
                }
                None => {}
            }
        }
    }

    /// One question to the store, asked again until it is answered or the node stops.
    async fn ask(&self, effect: Effect) -> Result<Option<Fetched>, End> {
        let shard = self.shard;
        let mut wait = RETRY.0;
        loop {
            let answer = match &effect {
                Effect::Load { hash, counter } => {
                    let partials = &self.shared.commits.tables[shard as usize].partials;
                    if partials.read().get(*hash, counter) != Resident::Unloaded {
                        return Ok(None);
                    }
                    let loaded = self.shared.store.load(shard, counter).await;
                    loaded.map(|partial| Fetched::Partial(*hash, counter.clone(), partial))
                }
                Effect::LookUp { as_of, hash, counter, key } => {
                    let found = self.shared.store.load_key(shard, counter, key).await;
                    found.map(|record| Fetched::Key(*as_of, *hash, counter.clone(), key.clone(), record))
                }
                // Nothing else asks for anything.
                _ => return Ok(None),
            };
            match answer {
                Ok(fetched) => return Ok(Some(fetched)),
                Err(why @ store::Error::Damaged(_)) => return Err(End::Damaged(why)),
                Err(_) if self.shared.commits.stopped() => return Err(End::Lost),
                Err(why) => warn!("shard {shard} waits for the store: {why}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}
