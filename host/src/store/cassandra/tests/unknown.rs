//! Outcomes that are lost on the way: a proxy between the store and the server loses requests or answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;

const PASS: u8 = 0;
const LOSE_ANSWERS: u8 = 1;
const LOSE_REQUESTS: u8 = 2;

#[derive(Default)]
struct State {
    mode: AtomicU8,
    lost: Notify,
}

/// Once something is lost, the connection is cut: what follows would make no sense to either side.
struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    serving: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn new(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (address, state) = (listener.local_addr().expect("is bound"), Arc::new(State::default()));
        let of_proxy = state.clone();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), of_proxy.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::select! {
                        () = pass(from_client, to_server, &state, LOSE_REQUESTS) => {}
                        () = pass(from_server, to_client, &state, LOSE_ANSWERS) => {}
                    }
                });
            }
        });
        Self { address, state, serving }
    }

    fn set(&self, mode: u8) {
        self.state.mode.store(mode, Ordering::SeqCst);
    }

    async fn something_is_lost(&self) {
        tokio::time::timeout(DEADLINE, self.state.lost.notified()).await.expect("something is sent");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    state: &State,
    loses_in: u8,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if state.mode.load(Ordering::SeqCst) == loses_in {
            state.lost.notify_one();
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

struct Place {
    keyspace: Keyspace,
    proxy: Proxy,
    /// Behind the proxy; gives up soon.
    far: Arc<CassandraStore>,
    near: Arc<CassandraStore>,
}

impl Place {
    async fn new(settle_timeout: Duration) -> Option<Self> {
        let keyspace = Keyspace::new(1).await?;
        let proxy = Proxy::new(keyspace.0.contact_points[0].clone()).await;
        let address = proxy.address.to_string();
        let far = keyspace
            .open(|settings| (settings.contact_points, settings.settle_timeout) = (vec![address], settle_timeout))
            .await;
        let near = keyspace.open(|_| ()).await;
        Some(Self { keyspace, proxy, far, near })
    }

    async fn end(self) {
        let Self { keyspace, proxy, far, near } = self;
        drop((proxy, far, near));
        keyspace.end().await;
    }
}

/// Sends the identical entry until its outcome is known, as its caller does.
async fn settled(store: &CassandraStore, entry: &Arc<Entry>) -> Appended {
    let repeat = async {
        loop {
            match append_one(store, entry).await {
                Appended::Unknown => tokio::task::yield_now().await,
                known => return known,
            }
        }
    };
    tokio::time::timeout(DEADLINE, repeat).await.expect("it settles")
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_sending_again() {
    let Some(place) = Place::new(DEADLINE).await else { return };
    let epoch = raise(&place.far).await;
    fill(&place.far, epoch, 1..=1).await;
    for (seq, mode) in [(2, LOSE_ANSWERS), (3, LOSE_REQUESTS)] {
        place.proxy.set(mode);
        let sent = entry(0, epoch, seq, "a", 2);
        let (result, ()) = tokio::join!(append_one(&place.far, &sent), async {
            place.proxy.something_is_lost().await;
            place.proxy.set(PASS);
        });
        assert_eq!(result, Appended::Applied, "mode {mode}");
    }
    fill(&place.far, epoch, 4..=4).await;
    assert_eq!(seqs(&place.near).await, [1, 2, 3, 4]);
    place.end().await;
}

#[tokio::test]
async fn what_does_not_settle_in_time_is_unknown_and_may_be_sent_again() {
    let Some(place) = Place::new(Duration::from_millis(300)).await else { return };
    let epoch = raise(&place.far).await;
    for (seq, mode) in [(1, LOSE_ANSWERS), (2, LOSE_REQUESTS)] {
        place.proxy.set(mode);
        let sent = entry(0, epoch, seq, "a", 1);
        assert_eq!(append_one(&place.far, &sent).await, Appended::Unknown);
        // Without a connection it is still unknown: an earlier copy may be on its way.
        assert_eq!(append_one(&place.far, &sent).await, Appended::Unknown);
        place.proxy.set(PASS);
        assert_eq!(settled(&place.far, &sent).await, Appended::Applied);
    }
    assert_eq!(seqs(&place.near).await, [1, 2]);
    place.end().await;
}

/// What the old owner asks about after another came: its entry is found, or ruled out.
#[tokio::test]
async fn a_takeover_settles_what_was_unknown() {
    for (mode, applied) in [(LOSE_ANSWERS, true), (LOSE_REQUESTS, false)] {
        let Some(place) = Place::new(Duration::from_millis(300)).await else { return };
        let epoch = raise(&place.far).await;
        place.proxy.set(mode);
        let sent = entry(0, epoch, 1, "a", 1);
        assert_eq!(append_one(&place.far, &sent).await, Appended::Unknown);
        let next = raise(&place.near).await;
        let read = seqs(&place.near).await;
        assert_eq!(read.len(), usize::from(applied), "mode {mode}");
        let seq = read.len() as u64 + 1;
        fill(&place.near, next, seq..=seq).await;
        place.proxy.set(PASS);
        assert_eq!(settled(&place.far, &sent).await, Appended::Fenced { applied: Some(applied) }, "mode {mode}");
        place.end().await;
    }
}

#[tokio::test]
async fn without_a_connection_nothing_is_applied_and_everything_may_be_tried_again() {
    let Some(place) = Place::new(Duration::from_millis(300)).await else { return };
    let epoch = raise(&place.far).await;
    place.proxy.set(LOSE_REQUESTS);
    // The first finds that the connections are gone.
    assert!(matches!(place.far.confirm(0, epoch).await, Err(Error::NotApplied(_))));
    let sent = entry(0, epoch, 1, "a", 1);
    let first = place.far.append(std::slice::from_ref(&sent)).await;
    assert!(matches!(first, Err(Error::NotApplied(_)) | Ok(_)), "{first:?}");
    assert!(!matches!(first, Ok(ref results) if results[0] != Appended::Unknown), "{first:?}");
    assert!(matches!(place.far.raise(0).await, Err(Error::NotApplied(_))));
    assert!(matches!(place.far.load(0, &id("a")).await, Err(Error::NotApplied(_))));
    assert!(matches!(place.far.recover().await, Err(Error::NotApplied(_))));
    place.proxy.set(PASS);
    let back = async {
        while place.far.recover().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, back).await.expect("the driver connects again");
    assert_eq!(settled(&place.far, &sent).await, Appended::Fenced { applied: Some(false) });
    let epoch = raise(&place.far).await;
    fill(&place.far, epoch, 1..=1).await;
    place.end().await;
}
