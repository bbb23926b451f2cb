//! The session: a lease that is kept alive, this node's keys under it, and one watch that feeds the picture.
//!
//! A session is made anew as a whole whenever a part of it breaks; the lease outlives that as long as etcd knows it. While
//! there is no session the picture stays what it was and says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use etcd_client::{GetOptions, LeaseKeepAliveStream, LeaseKeeper, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{MissedTickBehavior, interval};

use super::error::{Error, bounded, within};
use super::keys::Key;
use super::{Shared, apply, presence};
use crate::clock::Boot;
use crate::limits;
use crate::registry::picture::{NodeInfo, Picture};

/// Before attempt `attempt` (from 0): doubled each time up to a limit, and half of it drawn.
pub(super) fn pause(attempt: u32) -> Duration {
    let (first, most) = limits::REGISTRY_RETRY;
    let step = first.saturating_mul(1 << attempt.min(16)).min(most);
    step + step.mul_f64(rand::random::<f64>())
}

/// Runs until the registry is closed; an error never ends it.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut closing = shared.closing.subscribe();
    let mut attempt = 0;
    loop {
        let recoveries = shared.picture.borrow().session.recoveries;
        let ended = tokio::select! {
            ended = session(&shared) => ended,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        shared.set_healthy(false);
        if shared.picture.borrow().session.recoveries != recoveries {
            attempt = 0;
        }
        if let Err(why) = ended {
            tracing::warn!(%why, attempt, "the session with etcd is lost; it is made anew");
        }
        tokio::select! {
            () = tokio::time::sleep(pause(attempt)) => {}
            _ = closing.wait_for(|closing| *closing) => break,
        }
        attempt = attempt.saturating_add(1);
    }
    shared.set_healthy(false);
}

async fn session(shared: &Shared) -> Result<(), Error> {
    let (lease, beat) = shared.lease().await?;
    let node = shared.node.borrow().clone();
    let config = shared.fitting_config().await?;
    shared.register(lease, &node, config.as_ref()).await?;
    shared.put_back_held(lease).await?;
    let picture = shared.list().await?;
    shared.standing.listed(picture.revision);
    let watch = shared.watch(picture.revision + 1).await?;
    shared.publish(picture);
    shared.set_healthy(true);
    drive(shared, lease, beat, watch, node).await
}

/// The lease's two directions.
struct Beat {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

async fn drive(
    shared: &Shared,
    lease: i64,
    mut beat: Beat,
    mut watch: WatchStream,
    mut written: NodeInfo,
) -> Result<(), Error> {
    let ttl = shared.lease_ttl;
    crate::panics::point("session");
    let mut answered = Boot::now();
    // Renewals that are not answered yet, in their order.
    let mut sent = VecDeque::new();
    let mut beats = interval(ttl / 4);
    let mut refresh = interval(limits::NODE_REFRESH_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut nodes = shared.node.subscribe();
    loop {
        let write = tokio::select! {
            message = watch.message() => {
                shared.apply(message?)?;
                false
            }
            answer = beat.answers.message() => {
                shared.check_beat(answer?.map(|answer| answer.ttl()))?;
                answered = Boot::now();
                if let Some(sent) = sent.pop_front() {
                    shared.standing.renewed(sent, ttl);
                }
                false
            }
            _ = beats.tick() => {
                if Boot::now().saturating_since(answered) > ttl * 3 / 4 {
                    return Err(Error::Unavailable("keep-alives are not answered".into()));
                }
                sent.push_back(Boot::now());
                bounded(beat.keeper.keep_alive()).await?;
                false
            }
            _ = refresh.tick() => presence::is_noticeable(&written, &shared.node.borrow()),
            _ = nodes.changed() => presence::is_urgent(&written, &nodes.borrow()),
        };
        if write {
            written = shared.node.borrow().clone();
            let picture = shared.picture.borrow().clone();
            shared.register(lease, &written, picture.config.as_ref()).await?;
        }
    }
}

impl Shared {
    /// The lease from before while etcd knows it, else a new one.
    async fn lease(&self) -> Result<(i64, Beat), Error> {
        let mut client = self.client.lease_client();
        let known = self.lease.load(Ordering::SeqCst);
        let sent = Boot::now();
        if known != 0 {
            match bounded(client.keep_alive(known)).await {
                Ok((keeper, answers)) => {
                    self.standing.renewed(sent, self.lease_ttl);
                    return Ok((known, Beat { keeper, answers }));
                }
                Err(why) => {
                    // Told apart from an outage by asking: only etcd's own word ends a lease.
                    let left = bounded(client.time_to_live(known, None)).await?;
                    if left.ttl() > 0 {
                        return Err(why);
                    }
                    self.lease.store(0, Ordering::SeqCst);
                    tracing::warn!("the lease ran out; this node registers again");
                }
            }
        }
        let seconds = self.lease_ttl.as_secs() + u64::from(self.lease_ttl.subsec_nanos() > 0);
        self.standing.granted();
        let lease = bounded(client.grant(seconds as i64, None)).await?.id();
        self.lease.store(lease, Ordering::SeqCst);
        let sent = Boot::now();
        let (keeper, answers) = bounded(client.keep_alive(lease)).await?;
        self.standing.renewed(sent, self.lease_ttl);
        Ok((lease, Beat { keeper, answers }))
    }

    fn check_beat(&self, ttl: Option<i64>) -> Result<(), Error> {
        match ttl {
            Some(1..) => Ok(()),
            Some(_) => Err(Error::Unavailable("the lease ran out".into())),
            None => Err(Error::Unavailable("the keep-alive stream ended".into())),
        }
    }

    /// Everything below the root as of one revision, a page at a time.
    pub(super) async fn list(&self) -> Result<Picture, Error> {
        let root = self.keys.root();
        // The root ends with '/', and '0' is the byte after it.
        let end = format!("{}0", root.trim_end_matches('/'));
        let mut from = root.as_bytes().to_vec();
        let mut picture = Picture::empty(Instant::now());
        loop {
            let page = GetOptions::new()
                .with_range(end.clone())
                .with_limit(limits::REGISTRY_PAGE_KEYS)
                .with_revision(picture.revision);
            let page = bounded(self.kv().get(from.clone(), Some(page))).await?;
            if picture.revision == 0 {
                picture.revision = page.header().map_or(0, |header| header.revision());
            }
            for kv in page.kvs() {
                apply::put(&mut picture, &self.keys, kv);
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                _ => return Ok(picture),
            }
        }
    }

    pub(super) async fn watch(&self, from_revision: i64) -> Result<WatchStream, Error> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from_revision);
        let client = self.client.watch_client().max_decoding_message_size(limits::REGISTRY_MESSAGE_BYTES_MAX);
        let open = async {
            let mut client = client;
            let mut watch = client.watch(self.keys.root(), Some(options)).await?;
            let first = watch.message().await?;
            Ok((watch, first))
        };
        let (watch, first) = within(limits::REGISTRY_CALL_TIMEOUT, open).await?;
        check_watch(first.as_ref())?;
        Ok(watch)
    }

    pub(super) fn apply(&self, message: Option<WatchResponse>) -> Result<(), Error> {
        check_watch(message.as_ref())?;
        let Some(message) = message else { return Ok(()) };
        let mut picture = Picture::clone(&self.picture.borrow());
        for event in message.events() {
            apply::event(&mut picture, &self.keys, event);
        }
        picture.revision = picture.revision.max(message.header().map_or(0, |header| header.revision()));
        let registered = picture.nodes.get(&self.node_id).is_some_and(|node| node.incarnation == self.incarnation);
        self.publish(picture);
        match registered {
            true => Ok(()),
            false => Err(Error::Unavailable(format!("the key {} is gone", self.keys.of(Key::Node(&self.node_id))))),
        }
    }

    /// The session's state is kept.
    fn publish(&self, mut picture: Picture) {
        self.picture.send_modify(|current| {
            picture.session = current.session;
            *current = Arc::new(picture);
        });
    }

    fn set_healthy(&self, healthy: bool) {
        self.picture.send_if_modified(|current| {
            let changed = current.session.healthy != healthy;
            if changed {
                *current = Arc::new(Picture::clone(current).with_session(healthy, Instant::now()));
            }
            changed
        });
    }
}

fn check_watch(message: Option<&WatchResponse>) -> Result<(), Error> {
    match message {
        None => Err(Error::Unavailable("the watch ended".into())),
        Some(message) if message.canceled() => Err(Error::Unavailable(format!(
            "etcd ended the watch: {} (compacted at {})",
            message.cancel_reason(),
            message.compact_revision()
        ))),
        Some(_) => Ok(()),
    }
}
