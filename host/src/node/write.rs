//! The way of a write: rule and candidates, the selection policy's choice, the shard's writer.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::StreamExt;
use smallvec::SmallVec;

use super::rules::{Answering, LocalRule};
use super::{Node, Worker, now_ms};
use crate::counter::rule::Durability;
use crate::counter::{Bounds, Candidates, Id, candidates, key_hash};
use crate::error::{Error, Kind};
use crate::limits;
use crate::policy::{self, Select, World};
use crate::shard::{self, Op, Origin, Outcome};

/// One addition, as a caller asks for it.
#[derive(Debug, Clone)]
pub struct Add {
    pub id: Id,
    pub amount: i64,
    pub key: Option<Box<str>>,
}

/// An addition that is counted, or, under a relaxed rule, will be.
pub struct Added {
    pub shard: u32,
    /// The shard's partial right after; None under a relaxed rule, where it is not known yet.
    pub value: Option<i64>,
    /// An earlier attempt with the same key did it.
    pub replayed: bool,
    pub chosen: Chosen,
}

/// Who chose the shard.
pub enum Chosen {
    /// The rule's selection policy or its canary, or the native choice in its place.
    Policy { policy: Answering, fallback: bool },
    /// Keyed operations go to the home shard.
    Key,
    /// The caller of a compatible route named it.
    Caller,
}

/// Where an addition goes, before it is submitted.
struct Routed {
    op: Op,
    durability: Durability,
    chosen: Chosen,
}

/// A key as it is stored, or why it cannot be one.
pub fn check_key(key: &str) -> Result<(), Error> {
    match key.len() {
        1..=limits::IDEMPOTENCY_KEY_BYTES_MAX => Ok(()),
        bytes => {
            let max = limits::IDEMPOTENCY_KEY_BYTES_MAX;
            Err(Error::invalid(format!("an idempotency key has 1 to {max} bytes; this one has {bytes}")))
        }
    }
}

/// Adds to a counter, creating it if it is new.
pub async fn add(worker: &Rc<Worker>, add: Add) -> Result<Added, Error> {
    // Until it is answered, it is seen that it goes by these.
    let _rules = worker.rules();
    let Routed { op, durability, chosen } = match route(worker, &add) {
        Way::Routed(routed) => routed,
        Way::Pooled(pooled) => route_pooled(worker, &add, pooled).await,
    };
    let shard = op.shard;
    if durability == Durability::Relaxed {
        worker.submit_relaxed(std::iter::once(op))?;
        return Ok(Added { shard, value: None, replayed: false, chosen });
    }
    let (shard, outcome) = submit_one(worker, op).await?;
    let (value, replayed) = applied(outcome)?;
    Ok(Added { shard, value: Some(value), replayed, chosen })
}

/// Adds on [`Node::compat_shard`]: what the compatible shard routes do.
pub async fn add_on_shard(worker: &Rc<Worker>, add: Add) -> Result<Added, Error> {
    // Shard and bounds by the same rules, which are held until the answer.
    let rules = worker.node.rules();
    let rule = &rules.governing(add.id.as_str()).rule;
    let shard = worker.node.served_candidate(&add.id, rule.spread);
    let op = Op { shard, ..op(&add, key_hash(add.id.as_str()), rule.bounds(), now_ms()) };
    let (shard, outcome) = submit_one(worker, op).await?;
    let (value, replayed) = applied(outcome)?;
    Ok(Added { shard, value: Some(value), replayed, chosen: Chosen::Caller })
}

/// Adds many, each by itself: one result per addition, in their order. Fails as a whole only when nothing was taken.
pub async fn add_batch(worker: &Rc<Worker>, adds: &[Add]) -> Result<Vec<Result<Added, Error>>, Error> {
    let _rules = worker.rules();
    let mut routed: Vec<Option<Routed>> = Vec::with_capacity(adds.len());
    let mut pooled = Vec::new();
    for (at, add) in adds.iter().enumerate() {
        match route(worker, add) {
            Way::Routed(one) => routed.push(Some(one)),
            Way::Pooled(waits) => {
                routed.push(None);
                pooled.push((at, waits));
            }
        }
    }
    let waits =
        pooled.into_iter().map(|(at, pooled)| async move { (at, route_pooled(worker, &adds[at], pooled).await) });
    let mut waits = futures_util::stream::iter(waits).buffer_unordered(limits::BATCH_POLICY_CALLS_MAX);
    while let Some((at, one)) = waits.next().await {
        routed[at] = Some(one);
    }
    let mut ops = Vec::with_capacity(adds.len());
    let mut results = Vec::with_capacity(adds.len());
    let mut relaxed = Vec::new();
    for one in routed {
        let Routed { op, durability, chosen } = one.expect("every addition was routed above");
        results.push((op.shard, durability, chosen));
        match durability {
            Durability::Durable => ops.push(op),
            Durability::Relaxed => relaxed.push(op),
        }
    }
    let none_taken = relaxed.is_empty();
    if !none_taken {
        worker.submit_relaxed(relaxed.into_iter())?;
    }
    let mut outcomes = match submit_all(worker, ops).await {
        Err(why) if none_taken => return Err(why),
        // The relaxed ones are taken: each of the others says for itself that it is not.
        outcomes => outcomes.map(Vec::into_iter),
    };
    let answered = results.into_iter().map(|(shard, durability, chosen)| {
        if durability == Durability::Relaxed {
            return Ok(Added { shard, value: None, replayed: false, chosen });
        }
        let outcomes = outcomes.as_mut().map_err(|why| why.clone())?;
        let (shard, outcome) = outcomes.next().expect("one outcome per operation");
        let (value, replayed) = applied(outcome)?;
        Ok(Added { shard, value: Some(value), replayed, chosen })
    });
    Ok(answered.collect())
}

/// Makes a counter exist with value 0. Returns its creation time in milliseconds since 1970.
pub async fn create(worker: &Rc<Worker>, id: &Id, name: Option<&str>, key: Option<Box<str>>) -> Result<u64, Error> {
    if let Some(bytes) = name.map(str::len).filter(|&bytes| bytes > limits::COUNTER_NAME_BYTES_MAX) {
        let max = limits::COUNTER_NAME_BYTES_MAX;
        return Err(Error::invalid(format!("a counter's name has at most {max} bytes; this one has {bytes}")));
    }
    let node = &worker.node;
    let hash = key_hash(id.as_str());
    if key.is_none() && node.exists(id, hash).await? {
        return Err(shard::Refusal::Exists.into());
    }
    let at_ms = now_ms();
    let op = Op {
        shard: candidates(hash, node.shards, 1)[0],
        counter: id.clone(),
        hash,
        kind: shard::Kind::Create { name: name.map(Into::into) },
        key,
        origin: Origin::Relaxed,
        at_ms,
    };
    applied(submit_one(worker, op).await?.1)?;
    Ok(at_ms)
}

/// Removes a counter from every shard that may hold a part of it. Removing one that does not exist succeeds.
///
/// With a key the home shard goes last and records it, so that a repetition of a finished removal removes nothing that
/// was counted since.
pub async fn remove(worker: &Rc<Worker>, id: &Id, key: Option<Box<str>>) -> Result<bool, Error> {
    let node = &worker.node;
    let hash = key_hash(id.as_str());
    let at_ms = now_ms();
    let shards = node.read_set(id, hash);
    let (home, others) = shards.split_first().expect("there is always a home shard");
    let op = |shard: u32, key: Option<Box<str>>| Op {
        shard,
        counter: id.clone(),
        hash,
        kind: shard::Kind::Remove,
        key,
        origin: Origin::Relaxed,
        at_ms,
    };
    if let Some(key) = &key
        && node.operation(id, key).await?.is_some()
    {
        // The home shard answers for the earlier attempt, also when that was another operation.
        let (_, outcome) = submit_one(worker, op(*home, Some(key.clone()))).await?;
        return applied(outcome).map(|(_, replayed)| replayed);
    }
    if !others.is_empty() {
        for (_, outcome) in submit_all(worker, others.iter().map(|&shard| op(shard, None)).collect()).await? {
            applied(outcome).map_err(partly)?;
        }
    }
    let removed = submit_one(worker, op(*home, key)).await.and_then(|(_, outcome)| applied(outcome));
    removed.map(|(_, replayed)| replayed).map_err(|why| if others.is_empty() { why } else { partly(why) })
}

/// Some shards may have removed their part already.
fn partly(why: Error) -> Error {
    match why.kind {
        Kind::Unavailable | Kind::QueueFull | Kind::NoOwner => Error::new(
            Kind::UnknownOutcome,
            "Not every shard has removed its part of the counter yet. Send the same request again.",
        ),
        _ => why,
    }
}

/// The value after an applied operation and whether an earlier attempt did it, or the error that its outcome is.
pub fn applied(outcome: Outcome) -> Result<(i64, bool), Error> {
    match outcome {
        Outcome::Applied { value, replayed } => Ok((value, replayed)),
        Outcome::Refused(refusal) => Err(refusal.into()),
        Outcome::NotApplied => Err(Error::unavailable()),
        Outcome::Unknown => Err(Error::unknown()),
    }
}

/// Submits one operation. Answers its outcome and the shard that it went to in the end.
async fn submit_one(worker: &Rc<Worker>, op: Op) -> Result<(u32, Outcome), Error> {
    if worker.node.peers.is_some() {
        return Ok(submit_all(worker, vec![op]).await?[0]);
    }
    let shard = op.shard;
    Ok((shard, worker.submit(std::iter::once(op)).await?[0]))
}

/// Submits many. In a cluster, those that were certainly not applied, because their shard was just moving to another
/// node, are submitted again until the deadline; what was chosen by a policy may go to another candidate then.
async fn submit_all(worker: &Rc<Worker>, mut ops: Vec<Op>) -> Result<Vec<(u32, Outcome)>, Error> {
    if ops.is_empty() {
        return Ok(Vec::new());
    }
    let Some(peers) = &worker.node.peers else {
        let shards: SmallVec<[u32; 16]> = ops.iter().map(|op| op.shard).collect();
        let outcomes = worker.submit(ops.into_iter()).await?;
        return Ok(shards.into_iter().zip(outcomes).collect());
    };
    let deadline = Instant::now() + limits::OPERATION_DEADLINE;
    let mut results = vec![(0, Outcome::NotApplied); ops.len()];
    let mut places: Vec<usize> = (0..ops.len()).collect();
    let mut first = true;
    loop {
        let outcomes = match worker.submit(ops.clone().into_iter()).await {
            Ok(outcomes) => outcomes,
            Err(why) if first => return Err(why.into()),
            // Others of them were applied in a round before.
            Err(_) => return Ok(results),
        };
        first = false;
        let mut again = (Vec::new(), Vec::new());
        for ((op, at), outcome) in ops.into_iter().zip(places).zip(outcomes) {
            results[at] = (op.shard, outcome);
            if outcome == Outcome::NotApplied {
                again.0.push(worker.node.moved(peers, op));
                again.1.push(at);
            }
        }
        if again.0.is_empty() || Instant::now() >= deadline {
            return Ok(results);
        }
        (ops, places) = again;
        tokio::time::sleep(limits::MOVED_RETRY).await;
    }
}

fn op(add: &Add, hash: u64, bounds: Bounds, at_ms: u64) -> Op {
    Op {
        shard: 0,
        counter: add.id.clone(),
        hash,
        kind: shard::Kind::Add { amount: add.amount, bounds },
        key: add.key.clone(),
        origin: Origin::Relaxed,
        at_ms,
    }
}

enum Way {
    Routed(Routed),
    /// Its policy runs beside the serving thread and has to be waited for.
    Pooled(Pooled),
}

struct Pooled {
    policy: Answering,
    op: Op,
    candidates: crate::counter::Candidates,
}

fn route(worker: &Worker, add: &Add) -> Way {
    let node = &worker.node;
    let rules = worker.rules();
    let rule = rules.governing(add.id.as_str());
    let hash = key_hash(add.id.as_str());
    let op = op(add, hash, rule.rule.bounds(), now_ms());
    if add.key.is_some() {
        let shard = candidates(hash, node.shards, 1)[0];
        return Way::Routed(Routed { op: Op { shard, ..op }, durability: Durability::Durable, chosen: Chosen::Key });
    }
    let mut candidates = candidates(hash, node.shards, rule.rule.spread);
    if let Some(limit) = rule.rule.spread_limit {
        node.widen(limit, hash, &mut candidates);
    }
    if let Some(peers) = &node.peers {
        node.leave_out_unserved(peers, &rule.rule, &mut candidates);
    }
    let request = Select { counter: add.id.as_str(), amount: add.amount, key_hash: hash, candidates: &candidates };
    let policy = Answering::selection(rule, hash);
    let chosen = worker.policies.borrow_mut().select_now(policy.binding(), &request);
    match chosen {
        Some(choice) => {
            compare(worker, rule, &request, choice);
            Way::Routed(routed(policy, op, choice))
        }
        None => Way::Pooled(Pooled { policy, op, candidates }),
    }
}

async fn route_pooled(worker: &Worker, add: &Add, Pooled { policy, op, candidates }: Pooled) -> Routed {
    let request = Select { counter: add.id.as_str(), amount: add.amount, key_hash: op.hash, candidates: &candidates };
    let choice = policy::select_pooled(&worker.node.policies, policy.binding(), &request).await;
    compare(worker, policy.rule(), &request, choice);
    routed(policy, op, choice)
}

fn routed(policy: Answering, op: Op, choice: policy::Chosen) -> Routed {
    let durability = policy.rule().rule.durability;
    let chosen = Chosen::Policy { policy, fallback: choice.fallback };
    Routed { op: Op { shard: choice.shard, ..op }, durability, chosen }
}

/// Asks the rule's shadow too, and counts whether it would have chosen the same. One on the pool is not waited for.
fn compare(worker: &Worker, rule: &LocalRule, request: &Select<'_>, choice: policy::Chosen) {
    let Some(shadow) = rule.shadow_of(World::Selection) else { return };
    let other = worker.policies.borrow_mut().select_now(&shadow.binding, request);
    if let Some(other) = other {
        shadow.compare(!other.fallback && other.shard == choice.shard);
    } else if shadow.enter() {
        let (rule, node) = (rule.clone(), worker.node.clone());
        let (counter, candidates) = (request.counter.to_owned(), request.candidates.to_vec());
        let (amount, key_hash) = (request.amount, request.key_hash);
        tokio::task::spawn_local(async move {
            let Some(shadow) = rule.shadow_of(World::Selection) else { return };
            let request = Select { counter: &counter, amount, key_hash, candidates: &candidates };
            let other = policy::select_pooled(&node.policies, &shadow.binding, &request).await;
            shadow.compare(!other.fallback && other.shard == choice.shard);
            shadow.leave();
        });
    }
}

impl Node {
    /// While all of the usual candidates are saturated, as this node sees it, the others up to the rule's limit take their place:
    /// those that are not saturated, or else all. Keyed operations stay with the home shard, and reads look at the widest
    /// spread there ever was, so nothing is missed or doubled.
    fn widen(&self, limit: u32, hash: u64, usual: &mut Candidates) {
        let saturated = |shard: u32| self.waiting(shard) >= limits::SATURATED_OPS;
        if usual.iter().all(|&shard| saturated(shard)) {
            self.stats.widened.fetch_add(1, Ordering::Relaxed);
            let all = candidates(hash, self.shards, limit);
            let free: Candidates = all.iter().copied().filter(|&shard| !saturated(shard)).collect();
            *usual = if free.is_empty() { all } else { free };
        }
    }

    /// Operations of this node that wait for the shard, wherever it is served.
    fn waiting(&self, shard: u32) -> usize {
        let here = self.commits.tables[shard as usize].queued.load(Ordering::Relaxed) as usize;
        here + self.peers.as_ref().map_or(0, |peers| peers.links.waiting_for(shard))
    }

    /// Where the compatible shard routes act: the lowest candidate of the counter that this node serves, or else the first.
    pub fn compat_shard(&self, id: &Id) -> u32 {
        self.served_candidate(id, self.rules().governing(id.as_str()).rule.spread)
    }

    fn served_candidate(&self, id: &Id, spread: u32) -> u32 {
        let candidates = candidates(key_hash(id.as_str()), self.shards, spread);
        let served = candidates.iter().copied().filter(|&shard| self.commits.serves(shard)).min();
        served.unwrap_or(candidates[0])
    }
}
