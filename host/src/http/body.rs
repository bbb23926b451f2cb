//! Bodies: answers that are whole or streamed, and requests read up to a limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use super::problem::Problem;
use crate::limits;

/// The body of an answer.
pub enum Body {
    /// None once it was taken.
    Full(Option<Bytes>),
    Events(Pin<Box<dyn Stream<Item = Bytes>>>),
}

impl Body {
    /// Keeps `held` until the last event went out. A whole body is out of our hands at once.
    pub fn holding(self, held: impl Sized + 'static) -> Self {
        match self {
            Self::Full(bytes) => Self::Full(bytes),
            Self::Events(events) => Self::Events(Box::pin(events.inspect(move |_| _ = &held))),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => {
                events.as_mut().poll_next(context).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

pub fn full(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let bytes = bytes.into();
    let mut response = Response::new(Body::Full((!bytes.is_empty()).then_some(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    // The values are ours: maps have string keys, so serialising cannot fail.
    full(status, "application/json", serde_json::to_vec(value).unwrap_or_default())
}

pub fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::Full(None));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// What HEAD is answered: everything but the body.
pub fn only_head(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    if let Some(bytes) = body.size_hint().exact() {
        head.headers.insert(header::CONTENT_LENGTH, bytes.into());
    }
    Response::from_parts(head, Body::Full(None))
}

pub fn events(events: impl Stream<Item = Bytes> + 'static) -> Response<Body> {
    streamed("text/event-stream", events)
}

/// An answer whose parts go out as they come.
pub fn streamed(content_type: &'static str, parts: impl Stream<Item = Bytes> + 'static) -> Response<Body> {
    let mut response = Response::new(Body::Events(Box::pin(parts)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Reads a whole body. One that came together with its head, as nearly all do, costs no copy and no timer.
pub async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Problem> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context))).await;
    let first = match polled {
        Poll::Ready(None) => return Ok(Bytes::new()),
        Poll::Ready(Some(frame)) => data(frame)?,
        Poll::Pending => Bytes::new(),
    };
    if body.is_end_stream() && first.len() <= bytes_max {
        return Ok(first);
    }
    tokio::time::timeout(limits::REQUEST_READ_TIMEOUT, rest(body, first, bytes_max))
        .await
        .map_err(|_| Problem::BodyTooSlow)?
}

/// Reads a large body, as long as it keeps coming.
pub async fn read_long(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Problem> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(limits::REQUEST_READ_TIMEOUT, body.frame()).await;
        let Some(frame) = frame.map_err(|_| Problem::BodyTooSlow)? else { return Ok(whole.freeze()) };
        append(&mut whole, &data(frame)?, bytes_max)?;
    }
}

async fn rest(mut body: Incoming, first: Bytes, bytes_max: usize) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    append(&mut whole, &first, bytes_max)?;
    loop {
        match body.frame().await {
            None => return Ok(whole.freeze()),
            Some(frame) => append(&mut whole, &data(frame)?, bytes_max)?,
        }
    }
}

/// Grows by doubling, but never beyond the limit.
fn append(whole: &mut BytesMut, data: &[u8], bytes_max: usize) -> Result<(), Problem> {
    let needed = whole.len() + data.len();
    if needed > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    if needed > whole.capacity() {
        let target = (whole.capacity() * 2).clamp(needed, bytes_max);
        whole.reserve(target - whole.len());
    }
    whole.extend_from_slice(data);
    Ok(())
}

fn data(frame: Result<Frame<Bytes>, hyper::Error>) -> Result<Bytes, Problem> {
    let frame = frame.map_err(|_| Problem::BodyBroken)?;
    Ok(frame.into_data().unwrap_or_default())
}
