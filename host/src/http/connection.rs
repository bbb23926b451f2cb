//! One connection and its requests, over HTTP/1.1 or HTTP/2, whichever the client begins with.
//!
//! Over HTTP/2 many requests share a connection: each runs as a task of its own on the connection's thread, and answers
//! that are ready together leave together.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use http::{HeaderValue, Method, Request, Version, header};
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;

use super::{Http, compat, route};
use crate::front::Activity;
use crate::limits;
use crate::node::Worker;

/// Which socket a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Main,
    /// The port of one shard of the second compatible system.
    CompatShard(u32),
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
        if polled.is_ready() {
            self.activity.received();
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

/// Starts the requests of a connection on the thread that serves it.
#[derive(Clone, Copy)]
struct SameThread;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for SameThread {
    fn execute(&self, request: F) {
        tokio::task::spawn_local(request);
    }
}

/// How connections are spoken with.
fn protocols() -> auto::Builder<SameThread> {
    let mut builder = auto::Builder::new(SameThread);
    // Head and body of an answer go out as one piece: copying a short body is cheaper than handing two pieces to the system.
    // Without `pipeline_flush`: with it an answer is not sent while bytes of the client are left over, as they are behind
    // a head that is refused.
    builder.http1().writev(false).max_buf_size(limits::HEADER_BYTES_MAX);
    builder
        .http2()
        .max_concurrent_streams(limits::STREAMS_MAX)
        .max_header_list_size(limits::HEADER_BYTES_MAX as u32)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(limits::STREAM_SEND_BYTES_MAX);
    builder
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
    let seen = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (http, worker, activity) = (http.clone(), worker.clone(), seen.clone());
        // In a place of its own from the start: hyper and tokio move what they are given several times.
        Box::pin(async move {
            let multiplexed = request.version() == Version::HTTP_2;
            let open = activity.open(multiplexed);
            let only_head = request.method() == Method::HEAD;
            let mut response = match listener {
                Listener::Main => route::answer(&http, &worker, peer, request).await,
                Listener::CompatShard(shard) => {
                    let (head, body) = request.into_parts();
                    let body = super::body::read(body, limits::BODY_BYTES_MAX);
                    Box::pin(compat::answer_shard(&worker, shard, &head, body)).await
                }
            };
            if activity.is_draining() && !multiplexed {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if only_head {
                response = super::body::only_head(response);
            }
            Ok::<_, Infallible>(response.map(|body| body.holding(open)))
        })
    });
    let io = Watched { io: TokioIo::new(stream), activity: activity.clone() };
    let protocols = protocols();
    let mut connection = pin!(protocols.serve_connection(io, service));
    let mut told = false;
    poll_fn(|context| {
        if activity.is_expired() {
            return Poll::Ready(());
        }
        if activity.is_closing() && !told {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        activity.watch(context);
        // A client that breaks the protocol or its connection has been answered as far as it can be.
        connection.as_mut().poll(context).map(drop)
    })
    .await;
}
