//! A counter's total as server-sent events.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::Response;
use tokio::time::{MissedTickBehavior, interval};

use super::counters::ReadAnswer;
use crate::counter::Id;
use crate::http::body::{Body, events};
use crate::http::problem::Problem;
use crate::node::{Worker, watch as totals};

/// A comment goes out this often, so that proxies and clients see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub async fn watch(worker: &Rc<Worker>, id: Id) -> Result<Response<Body>, Problem> {
    let totals = totals::watch(worker.clone(), id.clone()).await?;
    let changes = totals
        .map(move |total| {
            let mut event = b"event: total\ndata: ".to_vec();
            // Writing into memory cannot fail.
            let _ = serde_json::to_writer(&mut event, &ReadAnswer::new(&id, &total));
            event.extend_from_slice(b"\n\n");
            Some(Bytes::from(event))
        })
        .chain(stream::once(std::future::ready(None)));
    let mut ticks = interval(KEEP_ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let comments = stream::unfold(ticks, |mut ticks| async move {
        ticks.tick().await;
        Some((Some(Bytes::from_static(b": still here\n\n")), ticks))
    });
    // None marks the end of the counter: the stream ends with it, not with the endless comments.
    let both = stream::select(changes.boxed_local(), comments.boxed_local());
    let both = both.take_until(Box::pin(worker.draining()));
    Ok(events(both.take_while(|event| std::future::ready(event.is_some())).filter_map(std::future::ready)))
}
