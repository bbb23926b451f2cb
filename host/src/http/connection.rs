//! One connection: its requests, and the clocks that end it when its client is slow or silent.
//!
//! No timer is armed per request: a sweep once a second looks at what each connection is doing and since when.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::body::Body;
use super::{Http, compat, route};
use crate::limits;
use crate::node::Worker;

/// Which socket a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Main,
    /// The port of one shard of the second compatible system.
    CompatShard(u32),
}

/// How often connections are looked at.
pub const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// Part of a request's head has come.
    Head,
    /// A request is being answered; its own limits apply.
    Busy,
    /// Events go out until somebody ends it.
    Streaming,
}

/// What a connection is doing, for the sweep and the drain.
pub struct Activity {
    phase: Cell<Phase>,
    /// Sweeps since the phase began.
    sweeps: Cell<u32>,
    draining: Cell<bool>,
    closing: Cell<bool>,
    expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            sweeps: Cell::new(0),
            draining: Cell::new(false),
            closing: Cell::new(false),
            expired: Cell::new(false),
            waker: RefCell::new(None),
        }
    }
}

impl Activity {
    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.sweeps.set(0);
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// One sweep has passed.
    pub fn sweep(&self) {
        let limit = match self.phase.get() {
            Phase::Head => limits::REQUEST_READ_TIMEOUT,
            Phase::Idle => limits::KEEP_ALIVE_TIMEOUT,
            Phase::Busy | Phase::Streaming => return,
        };
        self.sweeps.set(self.sweeps.get() + 1);
        if self.sweeps.get() > (limit.as_millis() / SWEEP.as_millis()) as u32 {
            self.expired.set(true);
            self.wake();
        }
    }

    /// Each answer from now on is the last on its connection and says so.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Close when the request under way, if there is one, is answered.
    pub fn close(&self) {
        if !self.closing.replace(true) {
            self.wake();
        }
    }
}

/// Notices when a head begins to arrive.
struct Watched {
    io: TokioIo<TcpStream>,
    activity: Rc<Activity>,
}

impl hyper::rt::Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if polled.is_ready() && self.activity.phase.get() == Phase::Idle {
            self.activity.enter(Phase::Head);
        }
        polled
    }
}

impl hyper::rt::Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }
}

/// Serves a connection until it ends, times out, or has drained.
pub async fn serve(
    http: Rc<Http>,
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Listener,
    activity: Rc<Activity>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (http, worker, activity) = (http.clone(), worker.clone(), activity.clone());
        async move {
            activity.enter(Phase::Busy);
            let mut response = match listener {
                Listener::Main => route::answer(&http, &worker, peer, request).await,
                Listener::CompatShard(shard) => {
                    let (head, body) = request.into_parts();
                    let body = super::body::read(body, limits::BODY_BYTES_MAX);
                    Box::pin(compat::answer_shard(&worker, shard, &head, body)).await
                }
            };
            if activity.draining.get() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            let streams = matches!(response.body(), Body::Events(_));
            activity.enter(if streams { Phase::Streaming } else { Phase::Idle });
            Ok::<_, Infallible>(response)
        }
    });
    let io = Watched { io: TokioIo::new(stream), activity: activity.clone() };
    // Head and body of an answer go out as one piece: copying a short body is cheaper than handing two pieces to the system.
    // Without `pipeline_flush`: with it an answer is not sent while bytes of the client are left over, as they are behind
    // a head that is refused.
    let connection =
        http1::Builder::new().writev(false).max_buf_size(limits::HEADER_BYTES_MAX).serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut told = false;
    poll_fn(|context| {
        if activity.expired.get() {
            return Poll::Ready(());
        }
        if activity.closing.get() && !told {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        match &mut *activity.waker.borrow_mut() {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        // A client that breaks the protocol or its connection has been answered as far as it can be.
        connection.as_mut().poll(context).map(drop)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_heads_and_silent_connections_are_ended() {
        let activity = Activity::default();
        for _ in 0..limits::KEEP_ALIVE_TIMEOUT.as_secs() {
            activity.sweep();
        }
        assert!(!activity.expired.get());
        activity.sweep();
        assert!(activity.expired.get());

        let activity = Activity::default();
        activity.enter(Phase::Head);
        for _ in 0..=limits::REQUEST_READ_TIMEOUT.as_secs() {
            activity.sweep();
        }
        assert!(activity.expired.get());
    }

    #[test]
    fn work_and_streams_are_left_alone() {
        for phase in [Phase::Busy, Phase::Streaming] {
            let activity = Activity::default();
            activity.enter(phase);
            (0..10_000).for_each(|_| activity.sweep());
            assert!(!activity.expired.get());
        }
    }
}
