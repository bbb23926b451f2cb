//! Against a real etcd: the one at `QUIPU_TEST_ETCD`, or one of the test's own from `QUIPU_ETCD_BIN` or the path.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::Client;
use tokio::net::{TcpListener as Listener, TcpStream};
use tokio::sync::watch;

use super::{Error, Etcd, Settings};
use crate::counter::Rule;
use crate::registry::History;
use crate::registry::etcd::values::Quota;
use crate::registry::picture::{NodeInfo, Picture, State};

const DEADLINE: Duration = Duration::from_secs(30);

fn service() -> Option<String> {
    let url = std::env::var("QUIPU_TEST_ETCD").ok();
    if url.is_none() {
        println!("skipped: no etcd; set QUIPU_TEST_ETCD to its URL");
    }
    url
}

fn cluster() -> String {
    format!("test-{}-{:016x}", std::process::id(), rand::random::<u64>())
}

fn node(id: &str) -> NodeInfo {
    NodeInfo::idle(id, rand::random())
}

fn settings(url: &str, cluster: &str, id: &str) -> Settings {
    Settings {
        endpoints: vec![url.into()],
        cluster: cluster.into(),
        shards: 12,
        user: None,
        password: None,
        tls: None,
        lease_ttl: Duration::from_secs(2),
        node: node(id),
    }
}

async fn until(etcd: &Etcd, what: &str, holds: impl FnMut(&Arc<Picture>) -> bool) -> Arc<Picture> {
    let mut pictures = etcd.pictures();
    let seen = tokio::time::timeout(DEADLINE, pictures.wait_for(holds)).await;
    seen.unwrap_or_else(|_| panic!("{what}: {:?}", etcd.picture())).unwrap().clone()
}

async fn join(url: &str, cluster: &str, id: &str) -> Etcd {
    join_as(settings(url, cluster, id)).await
}

async fn join_as(settings: Settings) -> Etcd {
    let etcd = Etcd::connect(settings).await.unwrap();
    until(&etcd, "the session becomes healthy", |picture| picture.session.healthy).await;
    etcd
}

#[tokio::test]
async fn one_of_many_claims_of_a_shard_succeeds_and_only_its_owner_changes_it() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let nodes = [join(&url, &cluster, "a").await, join(&url, &cluster, "b").await, join(&url, &cluster, "c").await];
    let (a, b, c) = tokio::join!(nodes[0].claim(7), nodes[1].claim(7), nodes[2].claim(7));
    let won = [a.unwrap(), b.unwrap(), c.unwrap()];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    let (winners, others): (Vec<_>, Vec<_>) = nodes.iter().zip(won).partition(|(_, won)| *won);
    let winner = winners[0].0;
    assert!(winner.claim(7).await.unwrap(), "a claim can be repeated");
    assert!(winner.serving(7, 3).await.unwrap());
    assert_eq!(winner.picture().owners[&7].state, State::Serving, "a node reads its own writes");
    for (other, _) in others {
        assert!(!other.serving(7, 4).await.unwrap());
        other.release(7).await.unwrap();
        let picture =
            until(other, "the owner is seen", |picture| picture.owners.get(&7).is_some_and(|o| o.epoch == 3)).await;
        assert_eq!(picture.owners[&7].node, winner.node_id());
    }
    winner.release(7).await.unwrap();
    assert!(!winner.picture().owners.contains_key(&7));
    assert!(!winner.serving(7, 5).await.unwrap(), "what was released is not announced");
}

#[tokio::test]
async fn a_cluster_of_another_size_is_refused_with_a_sentence() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let _first = join(&url, &cluster, "a").await;
    let refused = Etcd::connect(Settings { shards: 13, ..settings(&url, &cluster, "b") }).await;
    let why = refused.err().map(|why| why.to_string()).unwrap();
    assert!(why.contains("made with 12 shards") && why.contains("set to 13"), "{why}");
}

/// A program that reads formats 1 to `highest`.
fn reading(highest: u32, settings: Settings) -> Settings {
    Settings { node: NodeInfo { formats: (1, highest), ..settings.node }, ..settings }
}

fn written(picture: &Picture) -> u32 {
    picture.config.as_ref().unwrap().value.format
}

#[tokio::test]
async fn the_written_format_rises_once_every_node_reads_it() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let old = join(&url, &cluster, "a").await;
    let new = join_as(reading(2, settings(&url, &cluster, "b"))).await;
    let held = new.finalize().await.unwrap();
    assert_eq!((held.format, held.before, held.newest), (1, 1, 2));
    assert_eq!(held.held_back_by[0].node, "a");
    old.close().await;
    let other = join_as(reading(2, settings(&url, &cluster, "c"))).await;
    let raised = new.finalize().await.unwrap();
    assert_eq!((raised.format, raised.before, raised.held_back_by.len()), (2, 1, 0));
    assert_eq!(written(&new.picture()), 2);
    until(&other, "the format is seen", |picture| written(picture) == 2).await;
    assert_eq!(other.picture().session.recoveries, 1, "it goes on in its session");
    let refused = Etcd::connect(settings(&url, &cluster, "a")).await;
    let why = refused.err().map(|why| why.to_string()).unwrap();
    assert!(why.contains("writes format 2") && why.contains("reads up to 1"), "{why}");
    let again = other.finalize().await.unwrap();
    assert_eq!((again.format, again.before), (2, 2));
}

#[tokio::test]
async fn a_node_that_was_away_while_the_format_rose_does_not_come_back() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let proxy = Proxy::start(&url).await;
    let old = join(&proxy.url, &cluster, "a").await;
    let new = join_as(reading(2, settings(&url, &cluster, "b"))).await;
    proxy.cut(true);
    until(&new, "the lease ends", |picture| !picture.nodes.contains_key("a")).await;
    assert_eq!(new.finalize().await.unwrap().format, 2);
    proxy.cut(false);
    let mut pictures = new.pictures();
    let back = pictures.wait_for(|picture| picture.nodes.contains_key("a"));
    assert!(tokio::time::timeout(Duration::from_secs(3), back).await.is_err(), "it does not read what is written");
    assert!(!old.picture().session.healthy);
}

#[tokio::test]
async fn no_node_registers_beside_a_format_that_it_does_not_read() {
    let Some(url) = service() else { return };
    let mut raised = 0;
    for round in 0..12 {
        let cluster = cluster();
        // The cluster begins with format 1.
        join(&url, &cluster, "first").await.close().await;
        let new = join_as(reading(2, settings(&url, &cluster, "b"))).await;
        let late = async {
            tokio::time::sleep(Duration::from_millis(round)).await;
            new.finalize().await.unwrap()
        };
        let (old, done) = tokio::join!(Etcd::connect(settings(&url, &cluster, "a")), late);
        if let Ok(old) = old {
            let mut pictures = old.pictures();
            let registers = pictures.wait_for(|picture| picture.session.healthy);
            let patience = if done.format == 1 { DEADLINE } else { Duration::from_millis(500) };
            let registered = tokio::time::timeout(patience, registers).await.is_ok();
            assert_eq!(registered, done.format == 1, "round {round}: {done:?}");
        }
        raised += usize::from(done.format == 2);
    }
    println!("the format was raised before the older node in {raised} of 12 rounds");
}

#[tokio::test]
async fn a_lost_lease_is_replaced_and_keys_are_put_back() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let a = join(&url, &cluster, "a").await;
    let b = join(&url, &cluster, "b").await;
    assert!(a.claim(1).await.unwrap() && a.serving(1, 9).await.unwrap());
    let lost = a.lease().unwrap();
    Client::connect([&url], None).await.unwrap().lease_revoke(lost).await.unwrap();
    until(&a, "a new session", |picture| picture.session.recoveries == 2 && picture.session.healthy).await;
    assert_ne!(a.lease().unwrap(), lost);
    for node in [&a, &b] {
        let back = |picture: &Arc<Picture>| picture.nodes.contains_key("a") && picture.owners.contains_key(&1);
        let picture = until(node, "node and owner are back", back).await;
        assert_eq!((picture.owners[&1].state, picture.owners[&1].epoch), (State::Serving, 9));
    }
}

#[tokio::test]
async fn a_shard_taken_while_the_lease_was_lost_stays_with_who_took_it() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let proxy = Proxy::start(&url).await;
    let a = join(&proxy.url, &cluster, "a").await;
    let b = join(&url, &cluster, "b").await;
    assert!(a.claim(1).await.unwrap() && a.serving(1, 1).await.unwrap());
    proxy.cut(true);
    until(&b, "the lease runs out", |picture| !picture.owners.contains_key(&1)).await;
    assert!(b.claim(1).await.unwrap() && b.serving(1, 2).await.unwrap());
    until(&a, "the outage is noticed", |picture| !picture.session.healthy).await;
    proxy.cut(false);
    let taken =
        until(&a, "the new owner is seen", |picture| picture.owners.get(&1).is_some_and(|o| o.node == "b")).await;
    assert_eq!(taken.owners[&1].epoch, 2);
    assert!(!a.serving(1, 1).await.unwrap());
}

#[tokio::test]
async fn a_dead_node_is_gone_after_its_lease_and_a_closed_one_at_once() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let (a, b, c) = (join(&url, &cluster, "a").await, join(&url, &cluster, "b").await, join(&url, &cluster, "c").await);
    assert!(a.claim(1).await.unwrap() && b.claim(2).await.unwrap());
    let closed = Instant::now();
    b.close().await;
    until(&c, "the closed node is gone", |p| !p.nodes.contains_key("b") && !p.owners.contains_key(&2)).await;
    assert!(closed.elapsed() < Duration::from_millis(1500), "{:?}", closed.elapsed());
    assert!(matches!(b.claim(2).await, Err(Error::Unavailable(_))));
    drop(a);
    until(&c, "the dead node is gone", |p| !p.nodes.contains_key("a") && !p.owners.contains_key(&1)).await;
}

#[tokio::test]
async fn a_second_process_with_the_same_id_waits() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let first = join(&url, &cluster, "a").await;
    let second = Etcd::connect(settings(&url, &cluster, "a")).await.unwrap();
    assert!(first.claim(1).await.unwrap());
    assert!(!second.picture().session.healthy);
    first.close().await;
    until(&second, "the second one registers", |picture| picture.session.healthy).await;
    assert!(second.claim(1).await.unwrap());
}

#[tokio::test]
async fn a_compaction_while_the_watch_is_down_is_overcome_by_listing_again() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let proxy = Proxy::start(&url).await;
    let a = join(&proxy.url, &cluster, "a").await;
    let b = join(&url, &cluster, "b").await;
    let before = b.save_rule("gone/", &History::default(), None).await.unwrap();
    until(&a, "the rule is seen", |picture| picture.rules.contains_key("gone/")).await;
    proxy.cut(true);
    until(&a, "the cut is noticed", |picture| !picture.session.healthy).await;
    let mut raw = Client::connect([&url], None).await.unwrap();
    raw.delete(format!("/{cluster}/rules/gone/"), None).await.unwrap();
    let history = History::default().set(Rule { prefix: "new/".into(), ..Rule::fallback() }, 1);
    let after = b.save_rule("new/", &history, None).await.unwrap();
    assert!(after > before + 1);
    raw.compact(after, None).await.unwrap();
    proxy.cut(false);
    let picture = until(&a, "the picture is whole", |picture| picture.rules.contains_key("new/")).await;
    assert!(!picture.rules.contains_key("gone/"));
    assert_eq!(picture.rules["new/"].value, history);
    // A watch from a compacted revision ends the session, which lists again.
    let mut watch = a.shared.watch(before).await.unwrap();
    let message = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap();
    let why = a.shared.apply(message).err().map(|why| why.to_string()).unwrap();
    assert!(why.contains(&format!("compacted at {after}")), "{why}");
}

#[tokio::test]
async fn rules_are_compared_and_set_and_seen_everywhere() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let (a, b) = (join(&url, &cluster, "a").await, join(&url, &cluster, "b").await);
    let first = History::default().set(Rule::fallback(), 1);
    let revision = a.save_rule("", &first, None).await.unwrap();
    assert_eq!(a.picture().rules[""].mod_revision, revision);
    assert!(matches!(b.save_rule("", &first, None).await, Err(Error::Conflict)));
    let second = first.set(Rule { spread: 5, ..Rule::fallback() }, 2);
    let next = b.save_rule("", &second, Some(revision)).await.unwrap();
    assert!(matches!(a.save_rule("", &first, Some(revision)).await, Err(Error::Conflict)));
    until(&a, "the change is seen", |p| p.rules[""].mod_revision == next && p.rules[""].value == second).await;
    a.announce_plugin("0f", "least-cpu").await.unwrap();
    until(&b, "the plugin is seen", |p| p.plugins.get("0f").is_some_and(|plugin| plugin.name == "least-cpu")).await;
    b.withdraw_plugin("0f").await.unwrap();
    b.withdraw_plugin("0f").await.unwrap();
    until(&a, "the plugin is gone", |picture| picture.plugins.is_empty()).await;
}

#[tokio::test]
async fn values_of_plugins_are_apart_and_read_back_where_they_were_written() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let (a, b) = (join(&url, &cluster, "a").await, join(&url, &cluster, "b").await);
    let quota = Quota { keys_max: 2, bytes_max: 64, key_bytes_max: 16, value_bytes_max: 32 };
    for (plugin, key) in [("p", "x/2"), ("p", "x/1"), ("q", "x/3")] {
        a.put_value(plugin, key, key.as_bytes(), &quota).await.unwrap();
    }
    assert_eq!(a.value("p", "x/1").as_deref(), Some(b"x/1".as_slice()));
    let keys: Vec<_> = a.list_values("p", "x/", 10).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["x/1", "x/2"]);
    assert!(matches!(a.put_value("p", "y", b"", &quota).await, Err(Error::Limit(_))));
    assert!(matches!(a.put_value("p/q", "y", b"", &quota).await, Err(Error::Limit(_))));
    a.delete_value("p", "x/1").await.unwrap();
    assert_eq!(a.value("p", "x/1"), None);
    until(&b, "the other node sees it", |p| p.values.get("p").is_some_and(|values| values.len() == 1)).await;
}

#[tokio::test]
async fn load_is_published_when_it_changed() {
    let Some(url) = service() else { return };
    let cluster = cluster();
    let (a, b) = (join(&url, &cluster, "a").await, join(&url, &cluster, "b").await);
    a.update_node(|node| node.draining = true);
    until(&b, "draining is seen", |picture| picture.nodes["a"].draining).await;
    a.update_node(|node| (node.cpu, node.id) = (0.5, "other".into()));
    until(&b, "load is seen", |picture| picture.nodes["a"].cpu == 0.5).await;
    a.update_node(|node| node.cpu = f64::NAN);
    until(&b, "what is no number is 0", |picture| picture.nodes["a"].cpu == 0.0).await;
}

#[tokio::test]
async fn a_restart_of_etcd_leaves_an_old_picture_and_loses_nothing() {
    let Some(mut server) = Server::start() else { return };
    let cluster = cluster();
    let a = join(&server.url, &cluster, "a").await;
    assert!(a.claim(1).await.unwrap() && a.serving(1, 4).await.unwrap());
    server.kill();
    until(&a, "the outage is noticed", |picture| !picture.session.healthy).await;
    assert_eq!(a.picture().owners[&1].epoch, 4, "the picture stays");
    assert!(matches!(a.claim(2).await, Err(Error::Unavailable(_))));
    server.run();
    let healthy = until(&a, "the session is back", |picture| picture.session.healthy).await;
    assert_eq!(healthy.session.recoveries, 2);
    assert_eq!(healthy.owners[&1].epoch, 4);
    assert!(a.claim(2).await.unwrap());
}

/// An etcd of the test's own, killed on drop.
struct Server {
    bin: String,
    url: String,
    peer: String,
    data: tempfile::TempDir,
    child: Option<Child>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    fn start() -> Option<Self> {
        let bin = std::env::var("QUIPU_ETCD_BIN").unwrap_or_else(|_| "etcd".into());
        let runs = Command::new(&bin).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !runs.is_ok_and(|status| status.success()) {
            println!("skipped: no etcd program; set QUIPU_ETCD_BIN to its path");
            return None;
        }
        let url = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut server = Self { bin, url, peer, data: tempfile::tempdir().unwrap(), child: None };
        server.run();
        Some(server)
    }

    fn run(&mut self) {
        let Self { bin, url, peer, data, .. } = self;
        let child = Command::new(bin)
            .args(["--name", "t", "--logger", "zap", "--log-level", "error", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("t={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stands between a node and etcd; cutting it breaks all connections and refuses new ones.
struct Proxy {
    url: String,
    cut: watch::Sender<bool>,
}

impl Proxy {
    async fn start(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cut = watch::Sender::new(false);
        let state = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut state) = (target.clone(), state.subscribe());
                tokio::spawn(async move {
                    if *state.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Self { url, cut }
    }

    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}
