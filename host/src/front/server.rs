//! Serving threads and the sockets that feed them.
//!
//! One thread accepts and deals connections out in turn, so that each serving thread has its share however few there
//! are. A connection stays on its thread: requests cross no thread but to the commit thread and back.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Instant, interval};
use tracing::warn;

use super::activity::{Activity, SWEEP};
use crate::commit::Inbox;
use crate::http::connection::Listener;
use crate::http::{self, Http, route};
use crate::node::{Node, Worker};
use crate::{limits, panics, resp};

/// What is spoken on a socket.
#[derive(Debug, Clone, Copy)]
pub enum Speaks {
    Http(Listener),
    Resp,
}

/// A connection on its way to a serving thread.
type Accepted = (std::net::TcpStream, SocketAddr, Speaks, Place);

/// What every serving thread is started with.
pub struct Settings {
    pub admin_token: Option<String>,
    pub advertise: String,
    pub drain_timeout: Duration,
}

/// The serving threads.
pub struct Server {
    node: Arc<Node>,
    workers: Vec<mpsc::UnboundedSender<Accepted>>,
    threads: Vec<JoinHandle<()>>,
}

/// Binds a socket that can be bound again right after a restart.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::ACCEPT_BACKLOG)?;
    Ok(socket.into())
}

impl Server {
    /// Starts one serving thread for each inbox.
    pub fn start(node: Arc<Node>, inboxes: &[Arc<Inbox>], settings: Settings) -> io::Result<Self> {
        let settings = Arc::new(settings);
        let mut server = Self { node: node.clone(), workers: Vec::new(), threads: Vec::new() };
        for (index, inbox) in (0u32..).zip(inboxes) {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (node, inbox, settings) = (node.clone(), inbox.clone(), settings.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("quipu-serve-{index}")).spawn(move || {
                let _owner = panics::Owner::new("a serving thread");
                LocalSet::new().block_on(&runtime, work(node, index, inbox, &settings, receiver));
                // Store work that is still under way on the pool is not waited for.
                runtime.shutdown_background();
            })?;
            server.workers.push(sender);
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// Accepts on a socket until the returned future is dropped.
    pub async fn accept(&self, socket: StdListener, speaks: Speaks) -> io::Result<()> {
        let socket = TcpListener::from_std(socket)?;
        let connections = &self.node.stats.connections;
        for worker in self.workers.iter().cycle() {
            let (stream, peer) = loop {
                match socket.accept().await {
                    Ok(accepted) if connections.load(Ordering::Relaxed) < limits::CONNECTIONS_MAX => break accepted,
                    Ok(_) => {
                        warn!("a connection is refused: {} are open, the most a node takes", limits::CONNECTIONS_MAX)
                    }
                    Err(why) => {
                        warn!("cannot accept connections now: {why}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            };
            let place = Place::new(self.node.clone());
            if stream.set_nodelay(true).is_ok() {
                // A serving thread that is gone drops it, and the place with it.
                let _ = worker.send((stream.into_std()?, peer, speaks, place));
            }
        }
        Ok(())
    }

    /// Lets every connection finish the request it is in, within the drain timeout, and ends the threads.
    pub fn drain(self) {
        drop(self.workers);
        for thread in self.threads {
            if thread.join().is_err() {
                warn!("a serving thread ended in a panic");
            }
        }
    }
}

/// One of the connections that a node takes. However the connection ends, its place is free again.
struct Place(Arc<Node>);

impl Place {
    fn new(node: Arc<Node>) -> Self {
        node.stats.connections.fetch_add(1, Ordering::Relaxed);
        Self(node)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.stats.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of one serving thread.
#[derive(Default)]
struct Connections(RefCell<Vec<Rc<Activity>>>);

/// One of them, until it ends.
struct Served {
    connections: Rc<Connections>,
    activity: Rc<Activity>,
}

impl Served {
    fn new(connections: Rc<Connections>) -> Self {
        let activity = Rc::new(Activity::default());
        connections.0.borrow_mut().push(activity.clone());
        Self { connections, activity }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.connections.0.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.activity));
    }
}

async fn work(
    node: Arc<Node>,
    index: u32,
    inbox: Arc<Inbox>,
    settings: &Settings,
    mut accepted: mpsc::UnboundedReceiver<Accepted>,
) {
    let http = Rc::new(Http {
        router: route::router(),
        admin_token: settings.admin_token.clone(),
        advertise: settings.advertise.clone(),
    });
    let worker = Worker::start(node.clone(), index, inbox);
    let connections = Rc::new(Connections::default());
    tokio::task::spawn_local(sweep(connections.clone()));
    while let Some((stream, peer, speaks, place)) = accepted.recv().await {
        let served = Served::new(connections.clone());
        let (http, worker, activity) = (http.clone(), worker.clone(), served.activity.clone());
        tokio::task::spawn_local(async move {
            let _held = (place, served);
            if let Ok(stream) = TcpStream::from_std(stream) {
                match speaks {
                    Speaks::Http(listener) => {
                        http::connection::serve(http, worker.clone(), stream, peer, listener, activity.clone()).await;
                    }
                    Speaks::Resp => resp::serve(worker.clone(), stream, activity.clone()).await,
                }
            }
        });
    }
    worker.end_watches();
    connections.0.borrow().iter().for_each(|activity| activity.drain());
    let begun = Instant::now();
    let deadline = begun + settings.drain_timeout;
    // A request that its client is just sending on an idle connection is answered, and not cut off by the close.
    let idle_until = begun + limits::DRAIN_IDLE.min(settings.drain_timeout);
    let mut ticks = interval(Duration::from_millis(5));
    while !connections.0.borrow().is_empty() && Instant::now() < deadline {
        ticks.tick().await;
        if Instant::now() >= idle_until {
            connections.0.borrow().iter().for_each(|activity| activity.close());
        }
    }
    let left = connections.0.borrow().len();
    if left > 0 {
        warn!("{left} connections did not finish within the drain timeout and are cut");
    }
}

async fn sweep(connections: Rc<Connections>) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        connections.0.borrow().iter().for_each(|activity| activity.sweep());
    }
}
