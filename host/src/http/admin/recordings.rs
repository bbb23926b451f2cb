//! Recording what a plugin's policies decide, for `quipu plugin replay`.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::Response;

use crate::error::Error;
use crate::http::body::{Body, streamed};
use crate::http::problem::Problem;
use crate::http::request::{self, Query};
use crate::limits;
use crate::node::Worker;
use crate::node::recordings::Started;
use crate::policy::recording::format::Because;

/// Answers NDJSON until there are `count` decisions or `seconds` have passed. A client that goes ends it.
pub fn record(worker: &Rc<Worker>, name: &str, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let name = request::path_text(name, "name")?;
    let within = |name: &str, default: u64, max: u64| match query.number(name)?.unwrap_or(default) {
        number if (1..=max).contains(&number) => Ok(number),
        _ => Err(Problem::from(Error::invalid(format!("{name}: must be from 1 to {max}")))),
    };
    let count = within("count", limits::RECORDING_COUNT_DEFAULT, limits::RECORDING_COUNT_MAX)?;
    let seconds = within("seconds", limits::RECORDING_SECONDS_DEFAULT, limits::RECORDING_SECONDS_MAX)?;
    let prefix = query.get("match")?;
    let started = worker.node.record_decisions(&name, prefix.as_deref(), count)?;
    let draining = Box::pin(worker.draining());
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let lines = stream::unfold((started, draining, false), move |(mut started, mut draining, mut closed)| async move {
        let part = loop {
            if closed {
                break started.recording.next().await;
            }
            let because = tokio::select! {
                biased;
                part = started.recording.next() => break part,
                () = tokio::time::sleep_until(until) => Because::Seconds,
                () = &mut draining => Because::Stopped,
            };
            started.recording.close(because);
            closed = true;
        };
        Some((gathered(part?, &mut started), (started, draining, closed)))
    });
    Ok(streamed("application/x-ndjson", lines))
}

/// A line, and those that wait behind it.
fn gathered(first: Bytes, started: &mut Started) -> Bytes {
    let mut part = BytesMut::from(first);
    while part.len() < PART_BYTES
        && let Some(line) = started.recording.try_next()
    {
        part.extend_from_slice(&line);
    }
    part.freeze()
}

/// Lines go out together up to about this size.
const PART_BYTES: usize = 64 * 1024;
