//! The bare server: what hyper alone makes of the same requests, as the yardstick.
//!
//! It reads the body, parses the same JSON into the same type, adds the amount to a counter in memory, and answers bytes
//! that the runner took from Quipu: the same status, headers and body. It has no routes beyond a prefix, no limits, no
//! deadlines and keeps nothing. Two layouts: Quipu's own (one current-thread runtime per core, connections dealt in turn)
//! and tokio's multi-thread runtime; the runner keeps the faster.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

/// Connections that wait for one thread to take them over.
const HANDOVER_MAX: usize = 1024;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// JSON file with the answers to give
    #[arg(long)]
    answers: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    layout: Layout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One current-thread runtime per core, connections dealt in turn
    #[default]
    PerCore,
    /// One runtime whose tasks move between threads
    MultiThread,
}

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Self::PerCore => "per-core",
            Self::MultiThread => "multi-thread",
        }
    }
}

/// One answer as the file holds it: given to requests with this method whose path begins with `prefix`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub method: String,
    pub prefix: String,
    pub status: u16,
    /// Without `date` and `content-length`, which hyper writes.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// The body that Quipu's `add` takes.
#[derive(Deserialize)]
struct Add {
    #[serde(default = "one")]
    amount: i64,
}

fn one() -> i64 {
    1
}

struct Prepared {
    method: Method,
    prefix: String,
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

struct Service {
    answers: Vec<Prepared>,
    /// Keeps the parsed amount from being optimised away.
    total: AtomicI64,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let text = std::fs::read(&options.answers).with_context(|| format!("cannot read {}", options.answers.display()))?;
    let answers: Vec<Answer> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no list of answers", options.answers.display()))?;
    let service = Arc::new(Service::new(&answers)?);
    let listener = TcpListener::bind(options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    println!("bare ready http={}", listener.local_addr()?);
    match options.layout {
        Layout::PerCore => serve_per_core(&listener, &service),
        Layout::MultiThread => serve_multi_thread(listener, service),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn serve_per_core(listener: &TcpListener, service: &Arc<Service>) -> anyhow::Result<()> {
    let mut threads = Vec::new();
    for _ in 0..cores() {
        let (hand_over, mut handed) = tokio::sync::mpsc::channel(HANDOVER_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let service = service.clone();
        std::thread::Builder::new().name("bare".into()).spawn(move || {
            tokio::task::LocalSet::new().block_on(&runtime, async {
                while let Some(stream) = handed.recv().await {
                    if let Ok(stream) = to_tokio(stream) {
                        tokio::task::spawn_local(connection(stream, service.clone()));
                    }
                }
            });
        })?;
        threads.push(hand_over);
    }
    for turn in (0..threads.len()).cycle() {
        let (stream, _) = listener.accept().context("cannot accept connections")?;
        threads[turn].blocking_send(stream).context("a serving thread ended")?;
    }
    Ok(())
}

fn serve_multi_thread(listener: TcpListener, service: Arc<Service>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores()).enable_io().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await.context("cannot accept connections")?;
            stream.set_nodelay(true)?;
            tokio::spawn(connection(stream, service.clone()));
        }
    })
}

fn to_tokio(stream: TcpStream) -> std::io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

async fn connection(stream: tokio::net::TcpStream, service: Arc<Service>) {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    // A client that goes away in the middle of a request is its own affair.
    let _ = http1::Builder::new().pipeline_flush(true).serve_connection(TokioIo::new(stream), answer).await;
}

impl Service {
    fn new(answers: &[Answer]) -> anyhow::Result<Self> {
        let answers = answers.iter().map(prepare).collect::<anyhow::Result<_>>()?;
        Ok(Self { answers, total: AtomicI64::new(0) })
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let found = self.answers.iter().find(|a| a.method == *request.method() && path.starts_with(&a.prefix));
        let Some(prepared) = found else { return plain(StatusCode::NOT_FOUND) };
        if request.method() == Method::POST {
            let Ok(body) = read(request.into_body()).await else { return plain(StatusCode::BAD_REQUEST) };
            let Ok(add) = serde_json::from_slice::<Add>(&body) else { return plain(StatusCode::BAD_REQUEST) };
            self.total.fetch_add(add.amount, Ordering::Relaxed);
        }
        let mut response = Response::new(Full::new(prepared.body.clone()));
        *response.status_mut() = prepared.status;
        for (name, value) in &prepared.headers {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    }
}

/// The whole body, without a copy when it came in one piece.
async fn read(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut first = Bytes::new();
    if let Some(frame) = body.frame().await {
        first = frame?.into_data().unwrap_or_default();
    }
    if body.is_end_stream() {
        return Ok(first);
    }
    let mut all = BytesMut::from(first);
    while let Some(frame) = body.frame().await {
        all.extend_from_slice(&frame?.into_data().unwrap_or_default());
    }
    Ok(all.freeze())
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn prepare(answer: &Answer) -> anyhow::Result<Prepared> {
    let mut headers = Vec::new();
    for (name, value) in &answer.headers {
        let name = name.parse().with_context(|| format!("{name:?} is no header name"))?;
        headers.push((name, value.parse().with_context(|| format!("{value:?} is no header value"))?));
    }
    Ok(Prepared {
        method: answer.method.parse().with_context(|| format!("{:?} is no method", answer.method))?,
        prefix: answer.prefix.clone(),
        status: StatusCode::from_u16(answer.status).with_context(|| format!("{} is no status", answer.status))?,
        headers,
        body: Bytes::from(answer.body.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Vec<Answer> {
        let answer = |method: &str, prefix: &str, body: &str| Answer {
            method: method.into(),
            prefix: prefix.into(),
            status: 200,
            headers: vec![("content-type".into(), "application/json".into()), ("x-trace".into(), "7".into())],
            body: body.into(),
        };
        vec![
            answer("POST", "/v1/counters/hot/", r#"{"id":"hot"}"#),
            answer("GET", "/v1/counters/hot", r#"{"value":1}"#),
        ]
    }

    /// A server on a free port; it ends with the test process.
    fn serve(layout: Layout) -> (SocketAddr, Arc<Service>) {
        let service = Arc::new(Service::new(&answers()).expect("good answers"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let shared = service.clone();
        std::thread::spawn(move || match layout {
            Layout::PerCore => serve_per_core(&listener, &shared),
            Layout::MultiThread => serve_multi_thread(listener, shared),
        });
        (addr, service)
    }

    #[test]
    fn both_layouts_answer_the_bytes_they_were_given() {
        for layout in [Layout::PerCore, Layout::MultiThread] {
            let (addr, service) = serve(layout);
            let url = format!("http://{addr}/v1/counters/hot");
            let mut answer = ureq::post(format!("{url}/add")).send(r#"{"amount":5}"#).expect("answered");
            assert_eq!(answer.headers()["x-trace"], "7");
            assert_eq!(answer.headers()["content-length"], "12");
            assert_eq!(answer.body_mut().read_to_string().expect("text"), r#"{"id":"hot"}"#);
            let read = ureq::get(&url).call().expect("answered").body_mut().read_to_string().expect("text");
            assert_eq!(read, r#"{"value":1}"#);
            assert_eq!(service.total.load(Ordering::Relaxed), 5);
        }
    }

    #[test]
    fn a_body_that_is_no_addition_is_refused() {
        let (addr, service) = serve(Layout::PerCore);
        let refused = ureq::post(format!("http://{addr}/v1/counters/hot/add")).send(r#"{"amount":"x"}"#);
        assert!(matches!(refused, Err(ureq::Error::StatusCode(400))));
        assert_eq!(service.total.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_bad_answer_file_is_an_error() {
        let mut bad = answers();
        bad[0].headers[0].0 = "not a name".into();
        assert!(Service::new(&bad).is_err());
    }
}
