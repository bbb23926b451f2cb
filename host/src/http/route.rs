//! Every path and method, in one table, and the way from a request to its answer.

use std::net::SocketAddr;
use std::rc::Rc;

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tracing::error;

use super::body::Body;
use super::problem::Problem;
use super::request::Query;
use super::{Http, admin, compat, ops, v1};
use crate::error::Outcome;
use crate::node::Worker;
use crate::{limits, panics};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Counters,
    Counter,
    CounterAdd,
    CounterShards,
    CounterWatch,
    Batch,
    Read,
    Operation,
    Plugins,
    Plugin,
    PluginRevision,
    PluginLogs,
    PluginRecord,
    PluginRelease,
    Policies,
    Rules,
    RulesRollback,
    Cluster,
    ClusterVerify,
    ClusterFinalize,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
    Dashboard,
    Compat(compat::Route),
}

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const PUT: &[Method] = &[Method::PUT];
const DELETE: &[Method] = &[Method::DELETE];

/// `{id}` is one percent-encoded piece of the path; the paths without it take `?id=`.
const TABLE: &[(&str, Route, &[Method])] = &[
    ("/v1/counters", Route::Counters, &[Method::GET, Method::POST]),
    ("/v1/counters/{id}", Route::Counter, &[Method::GET, Method::DELETE]),
    ("/v1/counters/{id}/add", Route::CounterAdd, POST),
    ("/v1/counters/{id}/shards", Route::CounterShards, GET),
    ("/v1/counters/{id}/watch", Route::CounterWatch, GET),
    ("/v1/counter", Route::Counter, &[Method::GET, Method::DELETE]),
    ("/v1/counter/add", Route::CounterAdd, POST),
    ("/v1/counter/shards", Route::CounterShards, GET),
    ("/v1/counter/watch", Route::CounterWatch, GET),
    ("/v1/batch", Route::Batch, POST),
    ("/v1/read", Route::Read, POST),
    ("/v1/operations/{key}", Route::Operation, GET),
    ("/v1/plugins", Route::Plugins, GET),
    ("/v1/plugins/{name}", Route::Plugin, &[Method::GET, Method::PUT]),
    ("/v1/plugins/{name}/logs", Route::PluginLogs, GET),
    ("/v1/plugins/{name}/record", Route::PluginRecord, POST),
    ("/v1/plugins/{name}/{revision}", Route::PluginRevision, DELETE),
    ("/v1/plugins/{name}/{revision}/release", Route::PluginRelease, POST),
    ("/v1/policies", Route::Policies, &[Method::GET, Method::PUT]),
    ("/v1/rules", Route::Rules, &[Method::GET, Method::PUT, Method::DELETE]),
    ("/v1/rules/rollback", Route::RulesRollback, POST),
    ("/v1/cluster", Route::Cluster, GET),
    ("/v1/cluster/verify", Route::ClusterVerify, POST),
    ("/v1/cluster/finalize", Route::ClusterFinalize, POST),
    ("/healthz", Route::Healthz, GET),
    ("/readyz", Route::Readyz, GET),
    ("/metrics", Route::Metrics, GET),
    ("/openapi.json", Route::OpenApi, GET),
    ("/", Route::Dashboard, GET),
    ("/health", Route::Compat(compat::Route::Health), GET),
    ("/counter", Route::Compat(compat::Route::Counter), &[Method::GET, Method::POST]),
    ("/counter/value", Route::Compat(compat::Route::Value), GET),
    ("/counter/increment", Route::Compat(compat::Route::Increment), PUT),
    ("/counter/decrement", Route::Compat(compat::Route::Decrement), PUT),
    ("/counter/shard", Route::Compat(compat::Route::ShardValue), GET),
    ("/counter/shard/increment", Route::Compat(compat::Route::ShardIncrement), PUT),
    ("/counter/shard/decrement", Route::Compat(compat::Route::ShardDecrement), PUT),
    ("/increment", Route::Compat(compat::Route::ModuloIncrement), POST),
    ("/total", Route::Compat(compat::Route::ModuloTotal), GET),
];

pub type Router = matchit::Router<(Route, &'static [Method])>;

pub fn router() -> Router {
    let mut router = Router::new();
    for &(path, route, methods) in TABLE {
        router.insert(path, (route, methods)).expect("the paths of the table differ");
    }
    router
}

/// The paths and methods of the contract, for the OpenAPI document's test.
pub fn table() -> impl Iterator<Item = (&'static str, &'static [Method])> {
    TABLE.iter().map(|&(path, _, methods)| (path, methods))
}

/// Answers one request. Never fails: every failure is an answer.
pub async fn answer(http: &Http, worker: &Rc<Worker>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let id = request_id(&request);
    let outcome = outcome_of_panic(&request);
    let answered = match panics::caught(dispatch(http, worker, peer, request)).await {
        Ok(answered) => answered,
        Err(why) => {
            let id = id.text();
            error!("request {id} was answered 500, because the program has panicked: {why}");
            return Problem::Panicked(outcome).into_response(&id);
        }
    };
    match answered {
        Ok(mut response) => {
            if let RequestId::Given(given) = id {
                response.headers_mut().insert("x-request-id", given);
            }
            response
        }
        Err(problem) => problem.into_response(&id.text()),
    }
}

/// What a request that ended in a panic has done: reads change nothing, and of others nobody knows.
fn outcome_of_panic(request: &Request<Incoming>) -> Outcome {
    let reads = request.method().is_safe() || request.uri().path() == "/v1/read";
    if reads { Outcome::NotApplied } else { Outcome::Unknown }
}

async fn dispatch(
    http: &Http,
    worker: &Rc<Worker>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Problem> {
    let (head, incoming) = request.into_parts();
    let Ok(found) = http.router.at(head.uri.path()) else { return Err(Problem::UnknownRoute) };
    let (route, methods) = *found.value;
    // Whatever can be read can be asked for its head.
    let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
    if !methods.contains(method) {
        return Err(Problem::MethodNotAllowed { allow: methods.to_vec() });
    }
    let query = Query(head.uri.query());
    let id = || match found.params.get("id") {
        Some(id) => super::request::path_id(id),
        None => query.id(),
    };
    match route {
        Route::CounterAdd => {
            let body = super::body::read(incoming, limits::BODY_BYTES_MAX).await?;
            v1::counters::add(worker, id()?, query, &head.headers, body).await
        }
        Route::Counter if head.method == Method::GET => v1::counters::get(worker, id()?, query).await,
        // In memory of their own, so that the two above do not carry room for all the others around.
        Route::Compat(route) => {
            let body = super::body::read(incoming, limits::BODY_BYTES_MAX);
            Ok(Box::pin(compat::answer(http, worker, route, &head, body)).await)
        }
        _ => Box::pin(dispatch_others(http, worker, peer, &head, incoming, route, &found.params)).await,
    }
}

async fn dispatch_others(
    http: &Http,
    worker: &Rc<Worker>,
    peer: SocketAddr,
    head: &http::request::Parts,
    incoming: Incoming,
    route: Route,
    params: &matchit::Params<'_, '_>,
) -> Result<Response<Body>, Problem> {
    let query = Query(head.uri.query());
    let param = |name| params.get(name).unwrap_or_default();
    let id = || match params.get("id") {
        Some(id) => super::request::path_id(id),
        None => query.id(),
    };
    if route == Route::Plugin && head.method == Method::PUT {
        admin::auth::check(http, peer, head)?;
        return admin::plugins::upload(worker, param("name"), &head.headers, incoming).await;
    }
    let bytes_max = if route == Route::Batch { limits::BATCH_BODY_BYTES_MAX } else { limits::BODY_BYTES_MAX };
    let body = || super::body::read(incoming, bytes_max);
    match route {
        Route::Counter if head.method == Method::DELETE => v1::counters::delete(worker, id()?, &head.headers).await,
        Route::Counter => v1::counters::get(worker, id()?, query).await,
        Route::Counters if head.method == Method::POST => {
            v1::counters::create(worker, &head.headers, body().await?).await
        }
        Route::Counters => v1::counters::list(worker, query).await,
        Route::CounterShards => v1::counters::shards(worker, id()?).await,
        Route::CounterWatch => v1::watch::watch(worker, id()?).await,
        Route::Batch => v1::batch::batch(worker, &head.headers, body().await?).await,
        Route::Read => v1::batch::read(worker, body().await?).await,
        Route::Operation => v1::counters::operation(worker, param("key"), query).await,
        Route::Healthz => Ok(ops::healthz()),
        Route::Readyz => Ok(ops::readyz(worker)),
        Route::Metrics => Ok(ops::metrics(worker)),
        Route::OpenApi => Ok(ops::openapi()),
        Route::Dashboard => Ok(ops::dashboard()),
        _ => {
            admin::auth::check(http, peer, head)?;
            match route {
                Route::Plugins => Ok(admin::plugins::list(worker)),
                Route::Plugin => admin::plugins::show(worker, param("name")),
                Route::PluginRevision => admin::plugins::delete(worker, param("name"), param("revision")).await,
                Route::PluginLogs => admin::plugins::logs(worker, param("name"), query),
                Route::PluginRecord => admin::recordings::record(worker, param("name"), query),
                Route::PluginRelease => admin::plugins::release(worker, param("name"), param("revision")),
                Route::Policies => admin::policies::policies(worker, head, body().await?).await,
                Route::Rules => admin::rules::rules(worker, head, query, body().await?).await,
                Route::RulesRollback => admin::rules::roll_back(worker, query).await,
                Route::ClusterVerify => admin::cluster::verify(worker).await,
                Route::ClusterFinalize => admin::cluster::finalize(worker).await,
                _ => Ok(admin::cluster::cluster(http, worker).await),
            }
        }
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

enum RequestId {
    Given(HeaderValue),
    Fresh,
}

impl RequestId {
    fn text(&self) -> String {
        match self {
            Self::Given(value) => value.to_str().unwrap_or_default().to_owned(),
            Self::Fresh => format!("{:016x}", rand::random::<u64>()),
        }
    }
}

/// The caller's own `X-Request-Id` is echoed if it is short and printable; others are drawn when an error needs one.
fn request_id(request: &Request<Incoming>) -> RequestId {
    match request.headers().get(&REQUEST_ID) {
        Some(value) if value.len() <= limits::REQUEST_ID_BYTES_MAX && value.to_str().is_ok() => {
            RequestId::Given(value.clone())
        }
        _ => RequestId::Fresh,
    }
}
