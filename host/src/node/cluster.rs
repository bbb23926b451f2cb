//! What is different when other nodes serve shards too: exact reads ask their owners, and wait for owners that are
//! missing; operations leave out shards that nobody serves, where their rule allows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;

use super::list::Found;
use super::verify::Audit;
use super::{Node, Peers, now_ms};
use crate::counter::{Candidates, Id, Rule, candidates, key_hash};
use crate::error::{Error, Kind};
use crate::limits;
use crate::peer::Owner;
use crate::peer::wire::message;
use crate::policy;
use crate::registry::picture::NodeInfo;
use crate::shard::entry::KeyRecord;
use crate::shard::{self, Op};

/// What one shard has journaled of a counter.
#[derive(Debug, Clone, Copy)]
pub struct Journaled {
    pub shard: u32,
    /// Sequence of the entry that last changed it.
    pub seq: u64,
    pub value: i64,
    /// False: it was removed, or never was there.
    pub exists: bool,
}

impl Journaled {
    pub fn nothing(shard: u32) -> Self {
        Self { shard, seq: 0, value: 0, exists: false }
    }

    pub fn live(self) -> Option<policy::Partial> {
        self.exists.then_some(policy::Partial { shard: self.shard, value: self.value })
    }
}

/// What could be read of a counter.
#[derive(Default)]
pub struct Gathered {
    /// Shards on which it never was are left out.
    pub found: Vec<Journaled>,
    /// Shards that nobody serves now, ascending.
    pub missing: Vec<u32>,
}

/// Whether a read waits for shards that nobody serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Wait,
    LeaveOut,
}

/// The policy whose choice is no preference but the meaning of the counter: another shard would be wrong.
const BINDING_CHOICE: &str = "value-modulo";

fn no_owner(shards: &[u32]) -> Error {
    let list: Vec<String> = shards.iter().map(u32::to_string).collect();
    let what = if shards.len() == 1 { "Shard" } else { "Shards" };
    let why = format!("{what} {} had no node that serves them in time; try again in a moment.", list.join(", "));
    Error::new(Kind::NoOwner, why)
}

impl Node {
    fn served(&self, peers: &Peers, shard: u32) -> bool {
        self.commits.serves(shard) || peers.links.reachable(shard)
    }

    /// Leaves only the candidates that somebody serves, unless nobody serves any or the rule's policy binds its choice.
    pub(super) fn leave_out_unserved(&self, peers: &Peers, rule: &Rule, candidates: &mut Candidates) {
        let served = |shard: &u32| self.served(peers, *shard);
        if candidates.iter().all(served) || rule.selection.plugin == BINDING_CHOICE || !candidates.iter().any(served) {
            return;
        }
        candidates.retain(|shard| self.served(peers, *shard));
    }

    /// An operation that was not applied, for another try: on another candidate, if it may go there.
    pub(super) fn moved(&self, peers: &Peers, mut op: Op) -> Op {
        self.hold_to_bounds(&mut op);
        if op.key.is_some() || !matches!(op.kind, shard::Kind::Add { .. }) || self.served(peers, op.shard) {
            return op;
        }
        let rules = self.rules();
        let rule = &rules.governing(op.counter.as_str()).rule;
        let mut others = candidates(op.hash, self.shards, rule.spread);
        if !others.contains(&op.shard) {
            return op;
        }
        self.leave_out_unserved(peers, rule, &mut others);
        let shard = if others.contains(&op.shard) { op.shard } else { others[0] };
        Op { shard, ..op }
    }

    /// Holds an addition to this node's rules as well as to those that it was routed by. A node that stood still while a
    /// bound came into force, be it another or this one, routed by the rules that it knew.
    pub fn hold_to_bounds(&self, op: &mut Op) {
        if let shard::Kind::Add { bounds, .. } = &mut op.kind {
            *bounds = bounds.and(self.rules().governing(op.counter.as_str()).rule.bounds());
        }
    }

    /// What these shards have journaled of the counter, wherever they are served.
    pub(super) async fn gather(
        self: &Arc<Self>,
        peers: &Peers,
        id: &Id,
        shards: &[u32],
        missing: Missing,
    ) -> Result<Gathered, Error> {
        let deadline = Instant::now() + limits::OPERATION_DEADLINE;
        let mut map = peers.questions.watch_map();
        let mut gathered = Gathered { found: Vec::new(), missing: shards.to_vec() };
        loop {
            map.borrow_and_update();
            let wanted = std::mem::take(&mut gathered.missing);
            let mut by_owner: BTreeMap<Option<String>, Vec<u32>> = BTreeMap::new();
            for shard in wanted {
                match peers.questions.owner(shard) {
                    _ if self.commits.serves(shard) => by_owner.entry(None).or_default().push(shard),
                    Owner::Other(node) => by_owner.entry(Some(node)).or_default().push(shard),
                    Owner::None | Owner::This => gathered.missing.push(shard),
                }
            }
            let asked = by_owner.into_iter().map(|(owner, shards)| async move {
                match owner {
                    None => self.read_own(id, shards).await,
                    Some(node) => Ok(ask_partials(peers, &node, id, shards).await),
                }
            });
            for answer in join_all(asked).await {
                let (found, unserved) = answer?;
                gathered.found.extend(found);
                gathered.missing.extend(unserved);
            }
            gathered.missing.sort_unstable();
            if gathered.missing.is_empty() || missing == Missing::LeaveOut {
                return Ok(gathered);
            }
            if Instant::now() >= deadline {
                return Err(no_owner(&gathered.missing));
            }
            let _ = tokio::time::timeout(limits::OWNER_RETRY, map.changed()).await;
        }
    }

    /// Exact partials of shards that this node serves, and those of `shards` that it does not serve (any more).
    pub async fn read_own(self: &Arc<Self>, id: &Id, shards: Vec<u32>) -> Result<(Vec<Journaled>, Vec<u32>), Error> {
        let hash = key_hash(id.as_str());
        let epochs: Vec<u64> = shards.iter().map(|&shard| self.epoch(shard)).collect();
        let confirmed = join_all(shards.iter().map(|&shard| self.commits.confirm(shard))).await;
        let mut unserved = Vec::new();
        let mut own = Vec::new();
        for ((&shard, confirmed), &epoch) in shards.iter().zip(confirmed).zip(&epochs) {
            if confirmed && epoch != 0 { own.push(shard) } else { unserved.push(shard) }
        }
        let mut found = self.found_here(id, hash, &own).await?;
        // A table that was given up meanwhile is empty.
        for (&shard, &epoch) in shards.iter().zip(&epochs) {
            if self.epoch(shard) != epoch && !unserved.contains(&shard) {
                unserved.push(shard);
            }
        }
        found.retain(|found| !unserved.contains(&found.shard));
        Ok((found, unserved))
    }

    fn epoch(&self, shard: u32) -> u64 {
        self.commits.tables[shard as usize].epoch.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The record of a key on a shard that this node serves, while it is in force; None when the node does not.
    pub async fn find_key_own(
        self: &Arc<Self>,
        shard: u32,
        id: &Id,
        key: &str,
    ) -> Result<Option<Option<KeyRecord>>, Error> {
        let epoch = self.epoch(shard);
        let hash = key_hash(id.as_str());
        let Ok(recent) = self.commits.recent_key(shard, hash, id.clone(), key).await else { return Ok(None) };
        let record = match recent.record {
            Some(record) => Some(record),
            None => self.store.load_key(shard, id, key).await?,
        };
        let served = epoch != 0 && self.epoch(shard) == epoch && self.commits.confirm(shard).await;
        Ok(served.then(|| record.filter(|record| recent.window.holds(record, now_ms()))))
    }

    /// The record of a key, from whoever serves the shard.
    pub(super) async fn find_key(
        self: &Arc<Self>,
        peers: &Peers,
        shard: u32,
        id: &Id,
        key: &str,
    ) -> Result<Option<KeyRecord>, Error> {
        let deadline = Instant::now() + limits::OPERATION_DEADLINE;
        let mut map = peers.questions.watch_map();
        loop {
            map.borrow_and_update();
            let found = match peers.questions.owner(shard) {
                _ if self.commits.serves(shard) => self.find_key_own(shard, id, key).await?,
                Owner::Other(node) => ask_key(peers, &node, shard, id, key).await,
                Owner::None | Owner::This => None,
            };
            if let Some(record) = found {
                return Ok(record);
            }
            if Instant::now() >= deadline {
                return Err(no_owner(&[shard]));
            }
            let _ = tokio::time::timeout(limits::OWNER_RETRY, map.changed()).await;
        }
    }

    /// What has changed on the shards of other nodes since their checkpoints.
    pub(super) async fn changed_elsewhere(
        &self,
        peers: &Peers,
        prefix: &str,
        after: Option<&Id>,
        limit: usize,
    ) -> Result<Found, Error> {
        let map = peers.questions.map();
        let request = message::ListChangedRequest {
            prefix: prefix.to_owned(),
            after: after.map(|id| id.as_str().to_owned()),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            ..message::ListChangedRequest::default()
        };
        let asked = map.nodes.keys().map(|node| {
            let request = request.clone();
            async move {
                let mut client = peers.questions.client(node).ok_or_else(|| away(node))?;
                client.list_changed(request).await.map_err(|_| away(node))
            }
        });
        let mut found = Found::new();
        for answer in join_all(asked).await {
            for listed in answer?.into_inner().counters {
                let id = Id::new(&listed.counter)?;
                let partials = listed.partials.into_iter().map(message::ListedPartial::into_partial);
                super::list::merge(&mut found, id, partials);
            }
        }
        Ok(found)
    }

    /// The name of the node that serves the shard.
    pub fn owner(&self, shard: u32) -> Option<String> {
        match &self.peers {
            None => Some(self.id.clone()),
            Some(_) if self.commits.serves(shard) => Some(self.id.clone()),
            Some(peers) => match peers.questions.owner(shard) {
                Owner::Other(node) => Some(node),
                Owner::This | Owner::None => None,
            },
        }
    }

    /// What every other live node says of itself; None for one that does not answer.
    pub async fn describe_others(&self) -> Vec<(NodeInfo, Option<message::DescribeReply>)> {
        let Some(peers) = &self.peers else { return Vec::new() };
        let picture = peers.pictures.borrow().clone();
        let others = picture.nodes.values().filter(|info| info.id != self.id).map(|info| async move {
            let asked = async {
                let mut client = peers.questions.client(&info.id)?;
                Some(client.describe(message::DescribeRequest {}).await.ok()?.into_inner())
            };
            let reply = tokio::time::timeout(limits::PEER_CONNECT_TIMEOUT, asked).await.ok().flatten();
            (info.clone(), reply)
        });
        join_all(others).await
    }

    /// The audit of every live node, together. Shards that nobody serves are not in it.
    pub async fn verify_all(self: &Arc<Self>) -> Result<Audit, Error> {
        let mut audit = self.verify().await?;
        let Some(peers) = &self.peers else { return Ok(audit) };
        let map = peers.questions.map();
        let asked = map.nodes.keys().map(|node| async move {
            let mut client = peers.questions.patient_client(node).ok_or_else(|| away(node))?;
            let mut request = tonic::Request::new(message::VerifyRequest {});
            request.set_timeout(limits::AUDIT_TIMEOUT);
            let reply = client.verify(request).await.map_err(|_| away(node))?.into_inner();
            serde_json::from_slice::<Audit>(&reply.audit).map_err(Error::internal)
        });
        for other in join_all(asked).await {
            audit.add(other?);
        }
        Ok(audit)
    }

    /// The addresses of the live nodes' HTTP servers; `own` is this one's.
    pub fn addresses(&self, own: &str) -> Vec<String> {
        let Some(peers) = &self.peers else { return vec![own.to_owned()] };
        let picture = peers.pictures.borrow();
        let others = picture.nodes.values().filter(|info| info.id != self.id).map(|info| info.http_address.clone());
        std::iter::once(own.to_owned()).chain(others).collect()
    }

    /// Of this node, for the others and for operators.
    pub fn describe(&self) -> message::DescribeReply {
        let shards = (0u32..).zip(&self.commits.tables).filter(|&(shard, _)| self.commits.serves(shard));
        let shards = shards.map(|(shard, table)| {
            let partials = table.partials.read();
            message::ShardState {
                shard,
                epoch: self.epoch(shard),
                counters: partials.len() as u64,
                journal_position: partials.applied(),
            }
        });
        let clock = self.stats.clock_steps.seen();
        message::DescribeReply {
            clock_steps: clock.count,
            clock_last_step_ms: clock.last_ms,
            clock_offset_ms: clock.offset_ms,
            connections: self.stats.connections.load(std::sync::atomic::Ordering::Relaxed) as u64,
            queued: self.commits.queued() as u64,
            uptime_seconds: self.began.elapsed().as_secs(),
            shards: shards.collect(),
        }
    }
}

pub(super) fn away(node: &str) -> Error {
    Error::new(Kind::Unavailable, format!("Node {node} does not answer; nothing was changed. Try again in a moment."))
}

/// A node that does not answer serves nothing.
async fn ask_partials(peers: &Peers, node: &str, id: &Id, shards: Vec<u32>) -> (Vec<Journaled>, Vec<u32>) {
    let Some(mut client) = peers.questions.client(node) else { return (Vec::new(), shards) };
    let request = message::ReadRequest { shards: shards.clone(), counter: id.as_str().to_owned() };
    match client.read_partials(request).await {
        Ok(reply) => {
            let message::ReadReply { partials, unserved, removed } = reply.into_inner();
            let partials = partials.into_iter().map(|partial| (partial, true));
            let partials = partials.chain(removed.into_iter().map(|partial| (partial, false)));
            let partials = partials.filter(|(partial, _)| shards.contains(&partial.shard));
            let found = partials.map(|(message::Partial { shard, value, seq }, exists)| Journaled {
                shard,
                seq,
                value,
                exists,
            });
            (found.collect(), unserved)
        }
        Err(_) => (Vec::new(), shards),
    }
}

async fn ask_key(peers: &Peers, node: &str, shard: u32, id: &Id, key: &str) -> Option<Option<KeyRecord>> {
    let mut client = peers.questions.client(node)?;
    let request = message::FindKeyRequest { shard, counter: id.as_str().to_owned(), key: key.to_owned() };
    let reply = client.find_key(request).await.ok()?.into_inner();
    reply.served.then(|| reply.record.map(|record| record.into_record(id.clone(), key)))
}
