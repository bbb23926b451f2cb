//! The routes of the two systems that Quipu replaces, with their paths, bodies, words and status codes.
//!
//! Both send and read JSON whatever the Content-Type says. Everything they do is done by the same `node` calls that
//! `/v1` uses; only the envelopes differ.

use std::rc::Rc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::error;

use super::Http;
use super::body::{Body, json};
use super::problem::Problem;
use super::request::{self, Query};
use super::v1::counters::fresh_id;
use crate::counter::{Id, key_hash};
use crate::error::{Error, Kind, Outcome};
use crate::node::Worker;
use crate::node::read::{Freshness, read};
use crate::node::rules::MODULO_COUNTER;
use crate::node::write::{self, Add};
use crate::panics;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Health,
    Counter,
    Value,
    Increment,
    Decrement,
    ShardValue,
    ShardIncrement,
    ShardDecrement,
    ModuloIncrement,
    ModuloTotal,
}

/// A panic is answered in the envelope of the route's system.
pub async fn answer(
    http: &Http,
    worker: &Rc<Worker>,
    route: Route,
    head: &Parts,
    body: impl Future<Output = Result<Bytes, Problem>>,
) -> Response<Body> {
    match panics::caught(dispatch(http, worker, route, head, body)).await {
        Ok(answered) => answered,
        Err(why) => {
            let panicked = panicked(&why);
            if matches!(route, Route::ModuloIncrement | Route::ModuloTotal) {
                modulo(Err(panicked))
            } else {
                enveloped(Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error", panicked.detail)))
            }
        }
    }
}

fn panicked(why: &str) -> Error {
    error!("a request was answered 500, because the program has panicked: {why}");
    Error::new(Kind::Internal, Problem::Panicked(Outcome::Unknown).detail())
}

async fn dispatch(
    http: &Http,
    worker: &Rc<Worker>,
    route: Route,
    head: &Parts,
    body: impl Future<Output = Result<Bytes, Problem>>,
) -> Response<Body> {
    let query = Query(head.uri.query());
    match route {
        Route::Health => success("Hey I am Healthy", None::<()>),
        Route::ModuloIncrement => modulo(increment(worker, head, body, None).await),
        Route::ModuloTotal => modulo(total(worker).await),
        Route::Counter if head.method == Method::POST => enveloped(create(http, worker, body).await),
        Route::Counter | Route::Value => enveloped(value(worker, query).await),
        Route::Increment => enveloped(change(worker, body, 1).await),
        Route::Decrement => enveloped(change(worker, body, -1).await),
        Route::ShardValue => enveloped(shard_value(worker, query).await),
        Route::ShardIncrement => enveloped(change_shard(worker, body, 1).await),
        Route::ShardDecrement => enveloped(change_shard(worker, body, -1).await),
    }
}

// The first system: an envelope around everything.

/// An answer of the first system that is no success.
struct Refusal {
    status: StatusCode,
    message: &'static str,
    details: String,
}

fn refusal(status: StatusCode, message: &'static str, details: impl Into<String>) -> Refusal {
    Refusal { status, message, details: details.into() }
}

fn bad_request(message: &'static str, details: impl Into<String>) -> Refusal {
    refusal(StatusCode::BAD_REQUEST, message, details)
}

fn no_id(field: &str) -> Refusal {
    bad_request("Counter ID is required", field)
}

fn unknown_id() -> Refusal {
    bad_request("Counter ID does not exist", "invalid value in counter_id")
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::BodyTooLarge { .. } | Problem::BodyTooSlow => {
                refusal(problem.status(), "Invalid request body", problem.detail())
            }
            Problem::Domain(error) => error.into(),
            other => bad_request("Invalid request body", other.detail()),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error.kind {
            Kind::Overflow => refusal(StatusCode::CONFLICT, "Counter value out of range", error.detail),
            Kind::Bound => refusal(StatusCode::CONFLICT, "Counter value out of bounds", error.detail),
            Kind::CounterNotFound => unknown_id(),
            Kind::InvalidArgument => bad_request("Invalid request body", error.detail),
            _ => refusal(StatusCode::SERVICE_UNAVAILABLE, "Counter service unavailable", error.detail),
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    success: bool,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cause<'a>>,
}

#[derive(Serialize)]
struct Cause<'a> {
    code: u16,
    details: &'a str,
}

fn success(message: &str, data: Option<impl Serialize>) -> Response<Body> {
    json(StatusCode::OK, &Envelope { success: true, message, data, error: None })
}

fn enveloped(result: Result<Response<Body>, Refusal>) -> Response<Body> {
    result.unwrap_or_else(|Refusal { status, message, details }| {
        let error = Some(Cause { code: status.as_u16(), details: &details });
        let mut response = json(status, &Envelope::<()> { success: false, message, data: None, error });
        if status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::REQUEST_TIMEOUT {
            response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
        }
        response
    })
}

#[derive(Serialize)]
struct CounterValue<'a> {
    counter_id: &'a str,
    value: i128,
}

#[derive(Deserialize)]
struct IdBody {
    counter_id: Option<String>,
}

#[derive(Deserialize)]
struct NameBody {
    name: Option<String>,
}

async fn parsed<T: serde::de::DeserializeOwned>(
    body: impl Future<Output = Result<Bytes, Problem>>,
) -> Result<T, Refusal> {
    request::json(&body.await?).map_err(|why| bad_request("Invalid request body", why.detail()))
}

async fn body_id(body: impl Future<Output = Result<Bytes, Problem>>) -> Result<Id, Refusal> {
    let IdBody { counter_id } = parsed(body).await?;
    let text = counter_id.filter(|id| !id.is_empty()).ok_or_else(|| no_id("Missing field: counter_id"))?;
    Ok(Id::new(&text).map_err(Error::from)?)
}

fn query_id(query: Query<'_>) -> Result<Id, Refusal> {
    let text = query.get("counter_id")?.filter(|id| !id.is_empty());
    let text = text.ok_or_else(|| no_id("Missing query parameter: counter_id"))?;
    Ok(Id::new(&text).map_err(Error::from)?)
}

async fn create(
    http: &Http,
    worker: &Rc<Worker>,
    body: impl Future<Output = Result<Bytes, Problem>>,
) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    struct Created<'a> {
        counter_id: &'a str,
        counter_name: &'a str,
        shards: Vec<String>,
    }
    let NameBody { name } = parsed(body).await?;
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| bad_request("Counter name is required", "Missing field: name"))?;
    let id = fresh_id();
    write::create(worker, &id, Some(&name), None).await?;
    let created =
        Created { counter_id: id.as_str(), counter_name: &name, shards: worker.node.addresses(&http.advertise) };
    Ok(success("Counter created successfully", Some(created)))
}

async fn value(worker: &Rc<Worker>, query: Query<'_>) -> Result<Response<Body>, Refusal> {
    let id = query_id(query)?;
    let total = read(worker, &id, Freshness::Exact).await?;
    let value = CounterValue { counter_id: id.as_str(), value: total.value };
    Ok(success("Counter aggregated successfully", Some(value)))
}

fn changed(amount: i64) -> &'static str {
    if amount > 0 { "Counter incremented successfully" } else { "Counter decremented successfully" }
}

/// Increments create a counter, decrements need one.
async fn change(
    worker: &Rc<Worker>,
    body: impl Future<Output = Result<Bytes, Problem>>,
    amount: i64,
) -> Result<Response<Body>, Refusal> {
    let id = body_id(body).await?;
    if amount < 0 && !worker.node.exists(&id, key_hash(id.as_str())).await? {
        return Err(unknown_id());
    }
    write::add(worker, Add { id, amount, key: None }).await?;
    Ok(success(changed(amount), None::<()>))
}

async fn change_shard(
    worker: &Rc<Worker>,
    body: impl Future<Output = Result<Bytes, Problem>>,
    amount: i64,
) -> Result<Response<Body>, Refusal> {
    let id = body_id(body).await?;
    let added = write::add_on_shard(worker, Add { id: id.clone(), amount, key: None }).await?;
    let value = CounterValue { counter_id: id.as_str(), value: added.value.unwrap_or_default().into() };
    Ok(success(changed(amount), Some(value)))
}

async fn shard_value(worker: &Rc<Worker>, query: Query<'_>) -> Result<Response<Body>, Refusal> {
    let id = query_id(query)?;
    let value = worker.node.partial(&id, worker.node.compat_shard(&id)).await?.unwrap_or(0);
    let value = CounterValue { counter_id: id.as_str(), value: value.into() };
    Ok(success("Counter Value fetched successfully", Some(value)))
}

// The second system: one counter, whose shard is the value modulo the number of shards.

fn modulo(result: Result<Response<Body>, Error>) -> Response<Body> {
    result.unwrap_or_else(|why| json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": why.detail })))
}

fn modulo_counter() -> Id {
    Id::new(MODULO_COUNTER).expect("the name is a valid id")
}

/// Only what is no integer is refused; no body, or one without a Content-Type, counts as 1.
async fn modulo_value(head: &Parts, body: impl Future<Output = Result<Bytes, Problem>>) -> Result<i64, Error> {
    #[derive(Deserialize)]
    struct ValueBody {
        value: Option<i64>,
    }
    let refused = || Error::invalid("Failed to increment counter");
    let body = body.await.map_err(|_| refused())?;
    if body.is_empty() || !head.headers.contains_key(header::CONTENT_TYPE) {
        return Ok(1);
    }
    let parsed: ValueBody = request::json(&body).map_err(|_| refused())?;
    Ok(parsed.value.unwrap_or(1))
}

/// `only`: the shard whose own port was asked; values of other shards are turned away.
async fn increment(
    worker: &Rc<Worker>,
    head: &Parts,
    body: impl Future<Output = Result<Bytes, Problem>>,
    only: Option<u32>,
) -> Result<Response<Body>, Error> {
    let amount = modulo_value(head, body).await?;
    let shard = amount.rem_euclid(i64::from(worker.node.shards)) as u32;
    if only.is_some_and(|only| only != shard) {
        return Ok(json(StatusCode::OK, &json!({ "success": false, "message": "Value not handled by this shard" })));
    }
    let added = write::add(worker, Add { id: modulo_counter(), amount, key: None }).await?;
    let count = added.value.unwrap_or_default();
    Ok(json(StatusCode::OK, &json!({ "success": true, "shardId": added.shard, "count": count })))
}

/// Not by `json!`, whose numbers end at 64 bits.
#[derive(Serialize)]
struct ModuloTotal {
    total: i128,
}

async fn total(worker: &Rc<Worker>) -> Result<Response<Body>, Error> {
    let total = match read(worker, &modulo_counter(), Freshness::Exact).await {
        Ok(total) => total.value,
        Err(why) if why.kind == Kind::CounterNotFound => 0,
        Err(why) => return Err(why),
    };
    Ok(json(StatusCode::OK, &ModuloTotal { total }))
}

/// The port of one shard of the second system.
pub async fn answer_shard(
    worker: &Rc<Worker>,
    shard: u32,
    head: &Parts,
    body: impl Future<Output = Result<Bytes, Problem>>,
) -> Response<Body> {
    let answered = panics::caught(async {
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/count") => modulo(count(worker, shard).await),
            (&Method::POST, "/increment") => modulo(increment(worker, head, body, Some(shard)).await),
            _ => json(StatusCode::NOT_FOUND, &json!({ "error": "This port serves GET /count and POST /increment." })),
        }
    });
    answered.await.unwrap_or_else(|why| modulo(Err(panicked(&why))))
}

async fn count(worker: &Rc<Worker>, shard: u32) -> Result<Response<Body>, Error> {
    let count = worker.node.partial(&modulo_counter(), shard).await?.unwrap_or(0);
    Ok(json(StatusCode::OK, &json!({ "shardId": shard, "count": count })))
}
