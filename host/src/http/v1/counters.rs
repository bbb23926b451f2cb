//! One counter: create, add, read, remove, its shards; lists; and what became of a keyed operation.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::{ADD_ANSWER_BYTES, AddAnswer, Selection, Value, time};
use crate::counter::Id;
use crate::error::{Error, Kind};
use crate::http::body::{Body, full, json, no_content};
use crate::http::problem::Problem;
use crate::http::request::{self, Query, idempotency_key};
use crate::limits;
use crate::node::read::{Freshness, Total, read};
use crate::node::write::{self, Add, Chosen};
use crate::node::{Worker, now_ms};
use crate::panics;
use crate::shard::entry::Action;

const REPLAYED: &str = "idempotency-replayed";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    #[serde(default = "one")]
    amount: i64,
}

impl Default for AddBody {
    fn default() -> Self {
        Self { amount: 1 }
    }
}

fn one() -> i64 {
    1
}

pub async fn add(
    worker: &Rc<Worker>,
    id: Id,
    query: Query<'_>,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response<Body>, Problem> {
    let AddBody { amount } = request::json_or_default(&body)?;
    let key = idempotency_key(headers)?;
    let wants_value = query.word("return", &["value"])?.is_some();
    let added = write::add(worker, Add { id: id.clone(), amount, key }).await?;
    // The addition decides the outcome; what the read finds, or that it fails, changes nothing of it.
    let total = if wants_value { Some(total_now(worker, &id).await) } else { None };
    let mut body = Vec::with_capacity(ADD_ANSWER_BYTES);
    AddAnswer { id: id.as_str(), amount, added: &added, total, says_replayed: false }.write(&mut body);
    let mut response = full(StatusCode::OK, "application/json", body);
    if added.replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

async fn total_now(worker: &Rc<Worker>, id: &Id) -> Result<i128, Error> {
    let internal = |why: String| Error::new(Kind::Internal, format!("The total cannot be told: {why}"));
    let read = panics::caught(read(worker, id, Freshness::Exact)).await;
    Ok(read.map_err(internal)??.value)
}

/// Reads `?read=`, `?max_age_ms=` and `?stale=`.
fn freshness(query: Query<'_>) -> Result<Freshness, Problem> {
    let max_age_ms = query.number("max_age_ms")?;
    let stale = query.word("stale", &["allow"])?.is_some();
    match query.word("read", &["exact", "cached"])? {
        Some("cached") => {
            let age = Duration::from_millis(max_age_ms.unwrap_or(limits::MAX_AGE_MS_DEFAULT));
            Ok(Freshness::Within { age, stale })
        }
        _ if max_age_ms.is_some() => Err(Error::invalid("max_age_ms: only with read=cached").into()),
        _ if stale => Err(Error::invalid("stale: only with read=cached").into()),
        _ => Ok(Freshness::Exact),
    }
}

/// The answer to a read.
#[derive(Serialize)]
pub(super) struct ReadAnswer<'a> {
    id: &'a str,
    #[serde(flatten)]
    value: Value,
    as_of: String,
    age_ms: u64,
    exact: bool,
    shards: usize,
    /// Shards that nobody serves now, when the policy left them out.
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    missing: &'a [u32],
    policy: Aggregation<'a>,
}

#[derive(Serialize)]
struct Aggregation<'a> {
    aggregation: &'a str,
    fallback: bool,
}

impl<'a> ReadAnswer<'a> {
    pub fn new(id: &'a Id, total: &'a Total) -> Self {
        Self {
            id: id.as_str(),
            value: total.value.into(),
            as_of: time(total.as_of_ms),
            age_ms: total.age_ms,
            exact: total.exact,
            shards: total.shards,
            missing: &total.missing,
            policy: Aggregation { aggregation: total.policy.binding().revision.digest(), fallback: total.fallback },
        }
    }
}

pub async fn get(worker: &Rc<Worker>, id: Id, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let total = read(worker, &id, freshness(query)?).await?;
    Ok(json(StatusCode::OK, &ReadAnswer::new(&id, &total)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Created<'a> {
    id: &'a str,
    name: Option<&'a str>,
    created_at: String,
}

pub async fn create(worker: &Rc<Worker>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Problem> {
    let CreateBody { id, name } = request::json_or_default(&body)?;
    let key = idempotency_key(headers)?;
    if key.is_some() && id.is_none() {
        return Err(
            Error::invalid("Idempotency-Key: a key is scoped to a counter, so the body must name its \"id\"").into()
        );
    }
    let id = match id {
        Some(id) => Id::new(&id).map_err(Error::from)?,
        None => fresh_id(),
    };
    let created_at_ms = write::create(worker, &id, name.as_deref(), key).await?;
    let created = Created { id: id.as_str(), name: name.as_deref(), created_at: time(created_at_ms) };
    Ok(json(StatusCode::CREATED, &created))
}

/// 32 random hex digits.
pub fn fresh_id() -> Id {
    Id::new(&format!("{:032x}", rand::random::<u128>())).expect("32 bytes are a valid id")
}

pub async fn delete(worker: &Rc<Worker>, id: Id, headers: &HeaderMap) -> Result<Response<Body>, Problem> {
    let replayed = write::remove(worker, &id, idempotency_key(headers)?).await?;
    let mut response = no_content();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

#[derive(Serialize)]
struct ListedCounter<'a> {
    id: &'a str,
    name: Option<&'a str>,
    #[serde(flatten)]
    value: Value,
    created_at: String,
}

#[derive(Serialize)]
struct List<'a> {
    counters: Vec<ListedCounter<'a>>,
    next_cursor: Option<&'a str>,
}

/// The cursor is the last id of the page before.
pub async fn list(worker: &Rc<Worker>, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let limit = query.number("limit")?.unwrap_or(limits::LIST_LIMIT_DEFAULT as u64);
    if limit == 0 || limit > limits::LIST_LIMIT_MAX as u64 {
        return Err(Error::invalid(format!("limit: must be from 1 to {}", limits::LIST_LIMIT_MAX)).into());
    }
    let after = query.get("cursor")?.map(|cursor| Id::new(&cursor)).transpose().map_err(Error::from)?;
    let prefix = query.get("prefix")?.unwrap_or_default().into_owned();
    let page = worker.node.list(prefix, after, limit as usize).await?;
    let counters = page.counters.iter().map(|listed| ListedCounter {
        id: listed.id.as_str(),
        name: listed.name.as_deref(),
        value: listed.value.into(),
        created_at: time(listed.created_at_ms),
    });
    let list = List { counters: counters.collect(), next_cursor: page.next.as_ref().map(Id::as_str) };
    Ok(json(StatusCode::OK, &list))
}

#[derive(Serialize)]
struct PartialAnswer {
    shard: u32,
    value: i64,
    /// None: nobody serves it now.
    owner: Option<String>,
}

#[derive(Serialize)]
struct Shards<'a> {
    id: &'a str,
    partials: Vec<PartialAnswer>,
}

pub async fn shards(worker: &Rc<Worker>, id: Id) -> Result<Response<Body>, Problem> {
    let partials = worker.node.partials(&id).await?;
    let owner = |shard| worker.node.owner(shard);
    let partials = partials
        .into_iter()
        .map(|partial| PartialAnswer { shard: partial.shard, value: partial.value, owner: owner(partial.shard) })
        .collect();
    Ok(json(StatusCode::OK, &Shards { id: id.as_str(), partials }))
}

#[derive(Serialize)]
struct Operation<'a> {
    outcome: &'static str,
    counter_id: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard_value: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_at: Option<String>,
    policy: Selection<'a>,
}

pub async fn operation(worker: &Rc<Worker>, key: &str, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let key = request::path_text(key, "key")?;
    let id = Id::new(&query.required("counter_id")?).map_err(Error::from)?;
    // Keys of batches carry "/i" behind the caller's own.
    if key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX + limits::BATCH_KEY_SUFFIX_BYTES_MAX {
        write::check_key(&key)?;
    }
    let record = worker.node.operation(&id, &key).await?;
    let (kind, amount) = match record.as_ref().map(|record| record.action) {
        Some(Action::Add(amount)) => (Some("add"), Some(amount)),
        Some(Action::Create) => (Some("create"), None),
        Some(Action::Remove) => (Some("remove"), None),
        Some(Action::Skip) | None => (None, None),
    };
    let operation = Operation {
        outcome: if record.is_some() { "applied" } else { "not_found" },
        counter_id: id.as_str(),
        key: &key,
        kind,
        amount,
        shard_value: record.as_ref().map(|record| record.value),
        applied_at: record.as_ref().map(|record| time(record.at_ms.min(now_ms()))),
        policy: Selection::from(&Chosen::Key),
    };
    Ok(json(StatusCode::OK, &operation))
}
