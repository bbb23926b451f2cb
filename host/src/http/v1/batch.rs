//! Many additions or reads in one request: one result each, in order, each applied or failed by itself.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::counters::ReadAnswer;
use super::{ADD_ANSWER_BYTES, AddAnswer};
use crate::counter::Id;
use crate::error::Error;
use crate::http::body::{Body, full, json};
use crate::http::problem::Problem;
use crate::http::request::{self, idempotency_key};
use crate::limits;
use crate::node::Worker;
use crate::node::read::{self, Freshness};
use crate::node::write::{self, Add, Added, check_key};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpBody<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(default = "one")]
    amount: i64,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
}

fn one() -> i64 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody<'a> {
    #[serde(borrow)]
    ops: Vec<OpBody<'a>>,
}

/// One operation that failed, in a list of results.
#[derive(Serialize)]
struct Failed<'a> {
    id: &'a str,
    outcome: &'static str,
    error: Cause,
}

#[derive(Serialize)]
struct Cause {
    status: u16,
    code: &'static str,
    detail: String,
}

impl<'a> Failed<'a> {
    fn new(id: &'a str, problem: &Problem) -> Self {
        let (status, code, detail) = (problem.status().as_u16(), problem.code(), problem.detail());
        Self { id, outcome: problem.outcome().as_str(), error: Cause { status, code, detail } }
    }
}

/// JSON, or with `application/x-ndjson` one operation a line; the answer has the form of the request.
pub async fn batch(worker: &Rc<Worker>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Problem> {
    let lines =
        headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/x-ndjson"));
    let ops = if lines { parse_lines(&body)? } else { parse(&body)? };
    if ops.len() > limits::BATCH_OPS_MAX {
        let why = format!("ops: a batch has at most {} operations; this one has {}", limits::BATCH_OPS_MAX, ops.len());
        return Err(Error::invalid(why).into());
    }
    let header_key = idempotency_key(headers)?;
    let mut adds = Vec::with_capacity(ops.len());
    let mut rejected = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        match checked(op, at, header_key.as_deref()) {
            Ok(add) => adds.push(add),
            Err(why) => rejected.push((at, why)),
        }
    }
    let added = write::add_batch(worker, &adds).await?;
    Ok(respond(lines, &ops, &adds, added, rejected))
}

fn parse(body: &Bytes) -> Result<Vec<OpBody<'_>>, Problem> {
    Ok(request::json::<BatchBody<'_>>(body)?.ops)
}

fn parse_lines(body: &Bytes) -> Result<Vec<OpBody<'_>>, Problem> {
    let lines = body.split(|&byte| byte == b'\n').enumerate();
    let filled = lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    let parsed = filled.map(|(at, line)| {
        request::json(line).map_err(|why| match why {
            Problem::MalformedJson(why) => Problem::MalformedJson(format!("line {}: {why}", at + 1)),
            Problem::Domain(why) => Error::new(why.kind, format!("line {}: {}", at + 1, why.detail)).into(),
            other => other,
        })
    });
    parsed.collect()
}

fn checked(op: &OpBody<'_>, at: usize, header_key: Option<&str>) -> Result<Add, Error> {
    let key = match (&op.key, header_key) {
        (Some(key), _) => {
            check_key(key)?;
            Some(key.as_ref().into())
        }
        (None, Some(key)) => Some(format!("{key}/{at}").into_boxed_str()),
        (None, None) => None,
    };
    Ok(Add { id: Id::new(&op.id)?, amount: op.amount, key })
}

/// Writes the results in the order of the operations.
fn respond(
    lines: bool,
    ops: &[OpBody<'_>],
    adds: &[Add],
    added: Vec<Result<Added, Error>>,
    rejected: Vec<(usize, Error)>,
) -> Response<Body> {
    let mut out = Vec::with_capacity(ops.len() * ADD_ANSWER_BYTES + 16);
    if !lines {
        out.extend_from_slice(b"{\"results\":[");
    }
    let mut added = added.into_iter().zip(adds);
    let mut rejected = rejected.into_iter().peekable();
    for (at, op) in ops.iter().enumerate() {
        if at > 0 && !lines {
            out.push(b',');
        }
        let result = match rejected.next_if(|&(rejected, _)| rejected == at) {
            Some((_, why)) => Err(why),
            None => added.next().expect("every operation was added or rejected").0,
        };
        match result {
            Ok(added) => {
                AddAnswer { id: &op.id, amount: op.amount, added: &added, total: None, says_replayed: true }
                    .write(&mut out);
            }
            // Writing into memory cannot fail.
            Err(why) => drop(serde_json::to_writer(&mut out, &Failed::new(&op.id, &why.into()))),
        }
        if lines {
            out.push(b'\n');
        }
    }
    if !lines {
        out.extend_from_slice(b"]}");
    }
    full(StatusCode::OK, if lines { "application/x-ndjson" } else { "application/json" }, out)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadBody {
    ids: Vec<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ReadResult<'a> {
    Read(ReadAnswer<'a>),
    Failed(Failed<'a>),
}

#[derive(Serialize)]
struct Results<'a> {
    results: Vec<ReadResult<'a>>,
}

/// Exact totals of many counters.
pub async fn read(worker: &Rc<Worker>, body: Bytes) -> Result<Response<Body>, Problem> {
    let ReadBody { ids } = request::json(&body)?;
    if ids.len() > limits::READ_IDS_MAX {
        let why = format!("ids: at most {} in one request; this one has {}", limits::READ_IDS_MAX, ids.len());
        return Err(Error::invalid(why).into());
    }
    let mut totals = Vec::with_capacity(ids.len());
    for id in &ids {
        totals.push(match Id::new(id) {
            Ok(id) => read::read(worker, &id, Freshness::Exact).await.map(|total| (id, total)),
            Err(why) => Err(why.into()),
        });
    }
    let results = ids.iter().zip(&totals).map(|(id, total)| match total {
        Ok((id, total)) => ReadResult::Read(ReadAnswer::new(id, total)),
        Err(why) => ReadResult::Failed(Failed::new(id, &why.clone().into())),
    });
    Ok(json(StatusCode::OK, &Results { results: results.collect() }))
}
