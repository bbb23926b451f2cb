//! What this node does about each shard: a pure state machine, `step(event) -> effects`.
//!
//! It follows the desired map of the latest picture. It claims what nobody holds and is its own to have, gives away what
//! another ready node should have, a few shards at a time, and goes on serving everything else, whatever happens to its
//! lease. Every effect is answered by one event, and a shard has one under way, except that a `Release` may follow another
//! effect that is not answered yet.
//!
//! It does not fence anybody: a wrong decision costs a takeover, never a count. `agent` carries the effects out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::assignment::{desired, standbys};
use crate::limits;
use crate::registry::picture::{Owner, Picture, State};

#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    pub incarnation: u64,
    pub shards: u32,
    pub lease_ttl: Duration,
}

#[derive(Debug, Clone)]
pub enum Event {
    /// A picture that is not older than the one before.
    Picture(Arc<Picture>),
    /// Time since any fixed moment; never goes back. One comes before the first picture, and often enough to wait by.
    Tick { now: Duration },
    /// Answers `Claim`: whether the key is ours now.
    Claimed { shard: u32, ours: bool },
    /// Answers `TakeOver`: the shard can be served under `epoch`.
    Acquired { shard: u32, epoch: u64 },
    /// Answers `TakeOver`.
    AcquireFailed { shard: u32 },
    /// Answers `Announce`, however it went: the picture tells.
    Announced { shard: u32 },
    /// Answers `Release`.
    Released { shard: u32 },
    /// The store fenced us.
    Lost { shard: u32 },
    /// Hand everything over and claim nothing more.
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Create the key if it is absent.
    Claim { shard: u32 },
    /// Raise the epoch in the store and replay.
    TakeOver { shard: u32 },
    /// Write into the key that we serve under this epoch.
    Announce { shard: u32, epoch: u64 },
    /// Stop serving the shard, if we do, then delete the key, if it is ours.
    Release { shard: u32 },
}

impl Event {
    /// The shard whose effect it answers.
    pub fn answers(&self) -> Option<u32> {
        match self {
            Self::Claimed { shard, .. }
            | Self::Acquired { shard, .. }
            | Self::AcquireFailed { shard }
            | Self::Announced { shard }
            | Self::Released { shard } => Some(*shard),
            Self::Picture(_) | Self::Tick { .. } | Self::Lost { .. } | Self::Drain => None,
        }
    }
}

impl Effect {
    pub fn shard(self) -> u32 {
        match self {
            Self::Claim { shard }
            | Self::TakeOver { shard }
            | Self::Announce { shard, .. }
            | Self::Release { shard } => shard,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Claiming,
    TakingOver,
    /// `busy`: a `Claim` or an `Announce` is under way.
    Serving {
        epoch: u64,
        busy: bool,
    },
    Releasing,
}

/// Whom the desired map gives a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Us,
    Other,
    Nobody,
}

#[derive(Debug, Clone, Copy)]
struct Shard {
    phase: Phase,
    /// Nothing is begun before.
    retry_at: Duration,
    failures: u32,
    /// We gave it to another node, which has until then to serve it before the next one goes.
    handed_until: Option<Duration>,
    /// Its key was there since our session is healthy. If it is absent now, its owner or its owner's lease let it go.
    seen: bool,
}

#[derive(Debug)]
pub struct Ownership {
    config: Config,
    shards: Vec<Shard>,
    picture: Option<Arc<Picture>>,
    /// By shard, for `picture`.
    wanted: Vec<Wanted>,
    now: Duration,
    /// The session that `settled_at` is about.
    recoveries: u64,
    /// From then on, keys that were never there are claimed: a living owner had a lease time to put them back.
    settled_at: Duration,
    draining: bool,
    standing_by: BTreeSet<u32>,
}

impl Ownership {
    pub fn new(config: Config) -> Self {
        let idle = Shard { phase: Phase::Idle, retry_at: Duration::ZERO, failures: 0, handed_until: None, seen: false };
        Self {
            shards: vec![idle; config.shards as usize],
            config,
            picture: None,
            wanted: Vec::new(),
            now: Duration::ZERO,
            recoveries: 0,
            settled_at: Duration::MAX,
            draining: false,
            standing_by: BTreeSet::new(),
        }
    }

    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Picture(picture) => self.look(picture),
            Event::Tick { now } => self.now = self.now.max(now),
            Event::Drain => {
                self.draining = true;
                self.wanted = self.picture.as_ref().map_or_else(Vec::new, |picture| self.map(picture));
            }
            Event::Claimed { shard, ours } => self.claimed(shard, ours, &mut effects),
            Event::Acquired { shard, epoch } => self.acquired(shard, epoch, &mut effects),
            Event::AcquireFailed { shard } => {
                if let Some(shard) = self.in_phase(shard, |phase| phase == Phase::TakingOver) {
                    self.fail(shard);
                    self.release(shard, &mut effects);
                }
            }
            Event::Announced { shard } => {
                // The picture that shows it may come a little later; if it does not, it is written again.
                let again_at = self.now + limits::TAKEOVER_RETRY.0;
                if let Some(place) = self.place(shard)
                    && let Phase::Serving { busy, .. } = &mut place.phase
                {
                    (*busy, place.retry_at) = (false, again_at);
                }
            }
            Event::Released { shard } => {
                if let Some(shard) = self.in_phase(shard, |phase| phase == Phase::Releasing) {
                    self.shards[shard as usize].phase = Phase::Idle;
                }
            }
            Event::Lost { shard } => {
                if let Some(shard) = self.in_phase(shard, |phase| matches!(phase, Phase::Serving { .. })) {
                    self.release(shard, &mut effects);
                }
            }
        }
        self.plan(&mut effects);
        self.standing_by.retain(|&shard| !matches!(self.shards[shard as usize].phase, Phase::Serving { .. }));
        effects
    }

    /// Shards whose journals this node should follow, because it would be their next owner. One that lost its owner stays
    /// until it is served.
    pub fn standing_by(&self) -> &BTreeSet<u32> {
        &self.standing_by
    }

    /// The epoch under which this node serves `shard`.
    pub fn serves(&self, shard: u32) -> Option<u64> {
        match self.shards.get(shard as usize)?.phase {
            Phase::Serving { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// A drain is over: nothing is held and nothing is under way.
    pub fn is_drained(&self) -> bool {
        self.draining && self.shards.iter().all(|shard| shard.phase == Phase::Idle)
    }

    fn place(&mut self, shard: u32) -> Option<&mut Shard> {
        self.shards.get_mut(shard as usize)
    }

    fn in_phase(&self, shard: u32, holds: impl Fn(Phase) -> bool) -> Option<u32> {
        self.shards.get(shard as usize).filter(|place| holds(place.phase)).map(|_| shard)
    }

    fn look(&mut self, picture: Arc<Picture>) {
        let session = picture.session;
        if session.healthy && session.recoveries != self.recoveries {
            self.recoveries = session.recoveries;
            self.settled_at = self.now + self.config.lease_ttl;
            self.shards.iter_mut().for_each(|shard| shard.seen = false);
        }
        if session.healthy {
            for (shard, owner) in picture.owners.iter() {
                let arrived = owner.state == State::Serving && !self.is_ours(owner);
                if let Some(place) = self.place(*shard) {
                    place.seen = true;
                    if arrived {
                        place.handed_until = None;
                    }
                }
            }
        }
        self.wanted = self.map(&picture);
        if self.draining {
            self.standing_by.clear();
        } else if self.picture.as_ref().is_none_or(|before| may_own_differently(before, &picture)) {
            self.stand_by(&picture);
        }
        self.picture = Some(picture);
    }

    fn stand_by(&mut self, picture: &Picture) {
        let us = self.config.node.as_str();
        let mut next = standbys(&takers(picture), &self.owners(picture), us);
        let theirs = |shard: &u32| picture.owners.get(shard).is_some_and(|owner| !self.is_ours(owner));
        next.extend(self.standing_by.iter().copied().filter(|shard| !theirs(shard)));
        self.standing_by = next;
    }

    /// By shard, who holds its key.
    fn owners<'a>(&self, picture: &'a Picture) -> Vec<Option<&'a str>> {
        (0..self.config.shards).map(|shard| picture.owners.get(&shard).map(|owner| owner.node.as_str())).collect()
    }

    fn claimed(&mut self, shard: u32, ours: bool, effects: &mut Vec<Effect>) {
        let Some(place) = self.shards.get_mut(shard as usize) else { return };
        match (place.phase, ours) {
            (Phase::Claiming, true) if self.draining => self.release(shard, effects),
            (Phase::Claiming, true) => {
                place.phase = Phase::TakingOver;
                effects.push(Effect::TakeOver { shard });
            }
            (Phase::Claiming, false) => {
                place.phase = Phase::Idle;
                place.retry_at = self.now + limits::TAKEOVER_RETRY.0;
            }
            (Phase::Serving { epoch, .. }, true) => {
                place.phase = Phase::Serving { epoch, busy: true };
                effects.push(Effect::Announce { shard, epoch });
            }
            (Phase::Serving { epoch, .. }, false) => {
                place.phase = Phase::Serving { epoch, busy: false };
                place.retry_at = self.now + limits::TAKEOVER_RETRY.0;
            }
            (Phase::Idle | Phase::TakingOver | Phase::Releasing, _) => {}
        }
    }

    fn acquired(&mut self, shard: u32, epoch: u64, effects: &mut Vec<Effect>) {
        if self.in_phase(shard, |phase| phase == Phase::TakingOver).is_none() {
            return;
        }
        if self.draining {
            return self.release(shard, effects);
        }
        let place = &mut self.shards[shard as usize];
        (place.phase, place.failures) = (Phase::Serving { epoch, busy: true }, 0);
        effects.push(Effect::Announce { shard, epoch });
    }

    fn release(&mut self, shard: u32, effects: &mut Vec<Effect>) {
        self.shards[shard as usize].phase = Phase::Releasing;
        effects.push(Effect::Release { shard });
    }

    /// Not again at once: doubled each time up to a limit.
    fn fail(&mut self, shard: u32) {
        let (first, most) = limits::TAKEOVER_RETRY;
        let place = &mut self.shards[shard as usize];
        place.retry_at = self.now + first.saturating_mul(1 << place.failures.min(16)).min(most);
        place.failures += 1;
    }

    /// The desired map of the latest picture, as far as it concerns us.
    fn map(&self, picture: &Picture) -> Vec<Wanted> {
        let us = self.config.node.as_str();
        let mut live = takers(picture);
        if self.draining {
            // Our own entry may not say so yet.
            live.remove(us);
        }
        let wanted = desired(&live, &self.owners(picture)).into_iter().map(|node| match node {
            None => Wanted::Nobody,
            Some(node) if node == us => Wanted::Us,
            Some(_) => Wanted::Other,
        });
        wanted.collect()
    }

    /// Begins whatever the latest picture asks for and the limits allow.
    fn plan(&mut self, effects: &mut Vec<Effect>) {
        let Some(picture) = self.picture.clone() else { return };
        let under_way = |place: &&Shard| matches!(place.phase, Phase::Claiming | Phase::TakingOver);
        let mut takeovers = self.shards.iter().filter(under_way).count();
        for shard in 0..self.config.shards {
            if self.shards[shard as usize].retry_at > self.now {
                continue;
            }
            let wanted = self.wanted[shard as usize];
            let effect = match self.shards[shard as usize].phase {
                Phase::Idle => self.plan_idle(shard, &picture, wanted, takeovers < limits::TAKEOVERS_MAX),
                Phase::Serving { epoch, busy: false } => self.plan_serving(shard, epoch, &picture, wanted),
                _ => None,
            };
            let Some(effect) = effect else { continue };
            self.begin(effect);
            takeovers += usize::from(self.shards[shard as usize].phase == Phase::Claiming);
            effects.push(effect);
        }
    }

    fn begin(&mut self, effect: Effect) {
        let phase = &mut self.shards[effect.shard() as usize].phase;
        *phase = match (effect, *phase) {
            (Effect::Release { .. }, _) => Phase::Releasing,
            (_, Phase::Serving { epoch, .. }) => Phase::Serving { epoch, busy: true },
            (_, _) => Phase::Claiming,
        };
    }

    fn is_ours(&self, owner: &Owner) -> bool {
        owner.node == self.config.node && owner.incarnation == self.config.incarnation
    }

    /// `room`: one more takeover may be under way.
    fn plan_idle(&self, shard: u32, picture: &Picture, wanted: Wanted, room: bool) -> Option<Effect> {
        if !picture.session.healthy {
            return None;
        }
        let to_us = wanted == Wanted::Us;
        match picture.owners.get(&shard) {
            // Left from an attempt whose answer was lost.
            Some(owner) if self.is_ours(owner) && !to_us => Some(Effect::Release { shard }),
            Some(owner) if self.is_ours(owner) && room => Some(Effect::Claim { shard }),
            Some(_) => None,
            None => {
                let free = self.shards[shard as usize].seen || self.now >= self.settled_at;
                (to_us && free && room).then_some(Effect::Claim { shard })
            }
        }
    }

    fn plan_serving(&mut self, shard: u32, epoch: u64, picture: &Picture, wanted: Wanted) -> Option<Effect> {
        let elsewhere = wanted == Wanted::Other;
        if self.draining && (!elsewhere || !picture.session.healthy) {
            // Nobody is known who could take it, so waiting for a turn helps nobody.
            return Some(Effect::Release { shard });
        }
        if !picture.session.healthy {
            return None;
        }
        match picture.owners.get(&shard) {
            None => match self.draining {
                true => Some(Effect::Release { shard }),
                false => Some(Effect::Claim { shard }),
            },
            Some(owner) if !self.is_ours(owner) => {
                // A higher epoch stands in the store already: our next append would be refused.
                let fenced = self.draining || owner.state == State::Serving && owner.epoch > epoch;
                fenced.then_some(Effect::Release { shard })
            }
            Some(_) if elsewhere && self.may_hand_over() => {
                self.shards[shard as usize].handed_until = Some(self.now + self.config.lease_ttl);
                Some(Effect::Release { shard })
            }
            Some(owner) => {
                let told = owner.state == State::Serving && owner.epoch == epoch;
                (!told).then_some(Effect::Announce { shard, epoch })
            }
        }
    }

    fn may_hand_over(&self) -> bool {
        let open = |place: &&Shard| place.handed_until.is_some_and(|until| until > self.now);
        self.shards.iter().filter(open).count() < limits::RELEASES_MAX
    }
}

/// The nodes that may own shards.
fn takers(picture: &Picture) -> BTreeSet<&str> {
    picture.nodes.values().filter(|node| node.takes_shards()).map(|node| node.id.as_str()).collect()
}

/// Whether other nodes may own shards now, or own other ones. Most pictures bring other news.
fn may_own_differently(before: &Picture, now: &Picture) -> bool {
    !Arc::ptr_eq(&before.owners, &now.owners) || takers(before) != takers(now)
}
