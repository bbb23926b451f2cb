//! The task that carries the ownership machine's effects out: keys in the registry, shards on this node.
//!
//! It decides nothing. Effects of one shard run one after the other, those of different shards side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::ownership::{Config, Effect, Event, Ownership};
use crate::error::Error;
use crate::limits;
use crate::registry::etcd::{self, Etcd};
use crate::registry::picture::Picture;

/// The shards of this node; the commit thread has them.
#[async_trait]
pub trait Shards: Send + Sync + 'static {
    /// Raises the epoch in the store, replays and serves. Returns the epoch. Ends by itself, also while the store does not
    /// answer; after an error the shard is not served.
    async fn take_over(&self, shard: u32) -> Result<u64, Error>;

    /// Stops serving: takes no more operations, and answers when those that it took are answered. What is not
    /// served is no error. Ends by itself.
    async fn hand_over(&self, shard: u32);

    /// Follows the journals of these shards and of no others: this node would serve them next.
    fn stand_by(&self, shards: &BTreeSet<u32>);

    /// Waits for the next shard that the store fenced. Nothing is missed when the call is dropped and made again.
    async fn lost(&self) -> u32;
}

/// The ownership keys of the registry. Nothing here fences anybody.
#[async_trait]
pub trait Claims: Send + Sync + 'static {
    fn pictures(&self) -> watch::Receiver<Arc<Picture>>;

    /// Whether this process holds the key now. An unknown outcome is false: the picture will tell.
    async fn claim(&self, shard: u32) -> bool;

    async fn announce(&self, shard: u32, epoch: u64);

    async fn release(&self, shard: u32);
}

#[async_trait]
impl Claims for Etcd {
    fn pictures(&self) -> watch::Receiver<Arc<Picture>> {
        Self::pictures(self)
    }

    async fn claim(&self, shard: u32) -> bool {
        told(shard, "claimed", Self::claim(self, shard).await).unwrap_or(false)
    }

    async fn announce(&self, shard: u32, epoch: u64) {
        told(shard, "announced", self.serving(shard, epoch).await);
    }

    async fn release(&self, shard: u32) {
        told(shard, "released", Self::release(self, shard).await);
    }
}

fn told<T>(shard: u32, what: &str, answer: Result<T, etcd::Error>) -> Option<T> {
    answer.inspect_err(|why| tracing::warn!(shard, %why, "the shard's key was not {what}; it is tried again")).ok()
}

/// The running task. Dropping it stops it where it is, as a crash would.
pub struct Agent {
    draining: watch::Sender<bool>,
    drained: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Agent {
    pub fn start<C: Claims, S: Shards>(config: Config, claims: Arc<C>, shards: Arc<S>) -> Self {
        let (draining, asked) = watch::channel(false);
        let (done, drained) = watch::channel(false);
        let pictures = claims.pictures();
        let hands = Hands { claims, shards, running: JoinSet::new(), busy: BTreeMap::new() };
        let task = tokio::spawn(crate::panics::owned(
            "what takes over and hands over",
            run(Ownership::new(config), hands, pictures, asked, done),
        ));
        Self { draining, drained, task }
    }

    /// Hands every shard over and claims none any more; whether that was done within the time. Other nodes take them when
    /// this node's entry says `draining` before.
    pub async fn drain(&self, within: Duration) -> bool {
        self.draining.send_replace(true);
        let mut drained = self.drained.clone();
        matches!(tokio::time::timeout(within, drained.wait_for(|drained| *drained)).await, Ok(Ok(_)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run<C: Claims, S: Shards>(
    mut machine: Ownership,
    mut hands: Hands<C, S>,
    mut pictures: watch::Receiver<Arc<Picture>>,
    mut draining: watch::Receiver<bool>,
    done: watch::Sender<bool>,
) {
    let begun = Instant::now();
    let mut ticks = interval(limits::OWNERSHIP_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pictures.mark_changed();
    let mut standing_by = BTreeSet::new();
    loop {
        let shards = hands.shards.clone();
        let event = tokio::select! {
            changed = pictures.changed() => match changed {
                Ok(()) => Event::Picture(pictures.borrow_and_update().clone()),
                Err(_) => return,
            },
            Some(event) = hands.answer() => event,
            shard = shards.lost() => Event::Lost { shard },
            changed = draining.changed() => match changed {
                Ok(()) => Event::Drain,
                Err(_) => return,
            },
            _ = ticks.tick() => Event::Tick { now: begun.elapsed() },
        };
        let mut effects = match event {
            Event::Tick { .. } => Vec::new(),
            _ => machine.step(Event::Tick { now: begun.elapsed() }),
        };
        effects.extend(machine.step(event));
        effects.into_iter().for_each(|effect| hands.begin(effect));
        if *machine.standing_by() != standing_by {
            standing_by.clone_from(machine.standing_by());
            hands.shards.stand_by(&standing_by);
        }
        done.send_if_modified(|done| std::mem::replace(done, machine.is_drained()) != *done);
    }
}

/// What is under way.
struct Hands<C, S> {
    claims: Arc<C>,
    shards: Arc<S>,
    running: JoinSet<Event>,
    /// Shards with an effect under way, and what has to follow it.
    busy: BTreeMap<u32, Option<Effect>>,
}

impl<C: Claims, S: Shards> Hands<C, S> {
    fn begin(&mut self, effect: Effect) {
        if let Some(next) = self.busy.get_mut(&effect.shard()) {
            *next = Some(effect);
            return;
        }
        self.busy.insert(effect.shard(), None);
        self.running.spawn(carry_out(self.claims.clone(), self.shards.clone(), effect));
    }

    /// None while nothing is under way.
    async fn answer(&mut self) -> Option<Event> {
        let event = match self.running.join_next().await? {
            Ok(event) => event,
            // An effect that panicked has no answer; its shard stays as it is.
            Err(why) => {
                tracing::error!(%why, "an ownership effect failed");
                return None;
            }
        };
        if let Some(next) = event.answers().and_then(|shard| self.busy.remove(&shard)).flatten() {
            self.begin(next);
        }
        Some(event)
    }
}

async fn carry_out<C: Claims, S: Shards>(claims: Arc<C>, shards: Arc<S>, effect: Effect) -> Event {
    match effect {
        Effect::Claim { shard } => Event::Claimed { shard, ours: claims.claim(shard).await },
        Effect::TakeOver { shard } => match shards.take_over(shard).await {
            Ok(epoch) => {
                tracing::info!(shard, epoch, "serving");
                Event::Acquired { shard, epoch }
            }
            Err(why) => {
                tracing::warn!(shard, %why, "the shard was not taken over; it is tried again");
                Event::AcquireFailed { shard }
            }
        },
        Effect::Announce { shard, epoch } => {
            claims.announce(shard, epoch).await;
            Event::Announced { shard }
        }
        Effect::Release { shard } => {
            shards.hand_over(shard).await;
            claims.release(shard).await;
            tracing::info!(shard, "released");
            Event::Released { shard }
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::*;
    use crate::registry::picture::{NodeInfo, Owner, State};

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A registry in memory, as one node sees it: always healthy, never late.
    struct Registry {
        node: &'static str,
        picture: watch::Sender<Arc<Picture>>,
    }

    impl Registry {
        fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, Owner>)) {
            self.picture.send_modify(|picture| {
                let mut next = Picture::clone(picture);
                change(Arc::make_mut(&mut next.owners));
                *picture = Arc::new(next);
            });
        }
    }

    #[async_trait]
    impl Claims for Registry {
        fn pictures(&self) -> watch::Receiver<Arc<Picture>> {
            self.picture.subscribe()
        }

        async fn claim(&self, shard: u32) -> bool {
            let owner = Owner { node: self.node.into(), incarnation: 1, state: State::Acquiring, epoch: 0 };
            let mut ours = false;
            self.change(|owners| ours = owners.entry(shard).or_insert(owner).node == self.node);
            ours
        }

        async fn announce(&self, shard: u32, epoch: u64) {
            self.change(|owners| match owners.get_mut(&shard) {
                Some(owner) if owner.node == self.node => (owner.state, owner.epoch) = (State::Serving, epoch),
                _ => {}
            });
        }

        async fn release(&self, shard: u32) {
            self.change(|owners| owners.retain(|held, owner| *held != shard || owner.node != self.node));
        }
    }

    struct Fake {
        serving: Arc<Mutex<BTreeSet<u32>>>,
        standing_by: Arc<Mutex<BTreeSet<u32>>>,
        failures: Mutex<u32>,
        epoch: Mutex<u64>,
        lost: tokio::sync::Mutex<mpsc::Receiver<u32>>,
    }

    #[async_trait]
    impl Shards for Fake {
        async fn take_over(&self, shard: u32) -> Result<u64, Error> {
            let mut failures = self.failures.lock();
            if *failures > 0 {
                *failures -= 1;
                return Err(Error::unavailable());
            }
            self.serving.lock().insert(shard);
            *self.epoch.lock() += 1;
            Ok(*self.epoch.lock())
        }

        async fn hand_over(&self, shard: u32) {
            self.serving.lock().remove(&shard);
        }

        fn stand_by(&self, shards: &BTreeSet<u32>) {
            self.standing_by.lock().clone_from(shards);
        }

        async fn lost(&self) -> u32 {
            match self.lost.lock().await.recv().await {
                Some(shard) => shard,
                None => std::future::pending().await,
            }
        }
    }

    fn node(id: &str) -> NodeInfo {
        NodeInfo::idle(id, 1)
    }

    struct Member {
        agent: Agent,
        registry: Arc<Registry>,
        serving: Arc<Mutex<BTreeSet<u32>>>,
        standing_by: Arc<Mutex<BTreeSet<u32>>>,
        lose: mpsc::Sender<u32>,
    }

    fn start(id: &'static str, picture: &watch::Sender<Arc<Picture>>, failures: u32) -> Member {
        let (lose, lost) = mpsc::channel(8);
        let shards = || Arc::new(Mutex::new(BTreeSet::new()));
        let (serving, standing_by) = (shards(), shards());
        let fake = Fake {
            serving: serving.clone(),
            standing_by: standing_by.clone(),
            failures: Mutex::new(failures),
            epoch: Mutex::new(0),
            lost: tokio::sync::Mutex::new(lost),
        };
        let registry = Arc::new(Registry { node: id, picture: picture.clone() });
        let config = Config { node: id.into(), incarnation: 1, shards: 12, lease_ttl: Duration::from_millis(200) };
        let agent = Agent::start(config, registry.clone(), Arc::new(fake));
        Member { agent, registry, serving, standing_by, lose }
    }

    fn cluster(nodes: &[&str]) -> watch::Sender<Arc<Picture>> {
        let now = std::time::Instant::now();
        let mut picture = Picture::empty(now).with_session(true, now);
        picture.nodes = Arc::new(nodes.iter().map(|id| ((*id).to_owned(), node(id))).collect());
        watch::Sender::new(Arc::new(picture))
    }

    async fn until(picture: &watch::Sender<Arc<Picture>>, what: &str, holds: impl FnMut(&Arc<Picture>) -> bool) {
        let mut pictures = picture.subscribe();
        let seen = tokio::time::timeout(DEADLINE, pictures.wait_for(holds)).await;
        assert!(seen.is_ok(), "{what}: {:?}", picture.borrow().owners);
    }

    fn served_by(picture: &Picture, node: &str) -> usize {
        picture.owners.values().filter(|owner| owner.node == node && owner.state == State::Serving).count()
    }

    #[tokio::test]
    async fn a_node_serves_everything_and_shares_with_one_that_joins() {
        let picture = cluster(&["a"]);
        let a = start("a", &picture, 3);
        until(&picture, "a serves all, after failures too", |picture| served_by(picture, "a") == 12).await;
        assert_eq!(a.serving.lock().len(), 12);
        let b = start("b", &picture, 0);
        picture.send_modify(|picture| {
            let mut next = Picture::clone(picture);
            Arc::make_mut(&mut next.nodes).insert("b".into(), node("b"));
            *picture = Arc::new(next);
        });
        until(&picture, "they share", |picture| served_by(picture, "a") == 6 && served_by(picture, "b") == 6).await;
        assert_eq!((a.serving.lock().len(), b.serving.lock().len()), (6, 6));
        assert!(a.serving.lock().is_disjoint(&b.serving.lock()));
        let stand_by = async {
            while *a.standing_by.lock() != *b.serving.lock() || *b.standing_by.lock() != *a.serving.lock() {
                tokio::time::sleep(limits::OWNERSHIP_TICK).await;
            }
        };
        tokio::time::timeout(DEADLINE, stand_by).await.expect("each stands by for the other");
    }

    #[tokio::test]
    async fn a_fenced_shard_is_given_up_and_taken_again_under_a_new_epoch() {
        let picture = cluster(&["a"]);
        let a = start("a", &picture, 0);
        until(&picture, "a serves all", |picture| served_by(picture, "a") == 12).await;
        let before = picture.borrow().owners[&3].epoch;
        a.lose.send(3).await.unwrap();
        until(&picture, "served anew", |p| p.owners.get(&3).is_some_and(|owner| owner.epoch > before)).await;
        a.registry.change(|owners| drop(owners.remove(&4)));
        let kept = |picture: &Arc<Picture>| picture.owners.get(&4).is_some_and(|owner| owner.state == State::Serving);
        until(&picture, "a key that vanished is put back", kept).await;
        assert!(picture.borrow().owners[&4].epoch <= before.max(12), "without a takeover");
    }

    #[tokio::test]
    async fn a_drain_releases_everything_and_nothing_is_claimed_again() {
        let picture = cluster(&["a"]);
        let a = start("a", &picture, 0);
        until(&picture, "a serves all", |picture| served_by(picture, "a") == 12).await;
        assert!(a.agent.drain(DEADLINE).await);
        assert!(picture.borrow().owners.is_empty() && a.serving.lock().is_empty());
        // Another picture changes nothing.
        a.registry.change(|_| {});
        assert!(a.agent.drain(DEADLINE).await && picture.borrow().owners.is_empty());
    }
}
