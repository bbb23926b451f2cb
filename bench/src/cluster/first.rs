//! The system that Quipu replaces, as it was deployed: one app before three shards, which register in etcd.
//!
//! A shard listens on port 8080 of every address, and registers under the address that `POD_IP` names; so each has a
//! network namespace of its own. The app is on the loopback interface, as Quipu's nodes are. A shard talks to etcd once in
//! five seconds, through a forwarder, since etcd may listen on the loopback interface alone. All logs are thrown away.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use etcd_client::{Client, DeleteOptions, GetOptions};
use tokio::runtime::Runtime;

use super::nodes::Services;
use crate::load::{Answers, Generator};
use crate::plan::{HOT, Load};

const SHARDS: u8 = 3;
/// Where it keeps the live shards, and the shards of each counter, in etcd.
const SHARDS_PREFIX: &str = "shards/";
const COUNTERS_PREFIX: &str = "counters/";
/// Its shards register five seconds after their start, and anew as often.
const REGISTERED_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct FirstSystem {
    app: App,
    // Ended after the app, which needs them.
    _shards: Vec<Shard>,
    etcd: String,
    runtime: Runtime,
    /// Increments that were acknowledged, and that may have been applied.
    acknowledged: u64,
    open: u64,
}

#[derive(Debug)]
struct App {
    process: Child,
    addr: SocketAddr,
}

/// A shard in its namespace.
#[derive(Debug)]
struct Shard {
    namespace: String,
    process: Option<Child>,
}

impl FirstSystem {
    pub fn start(program: &Path, services: &Services) -> anyhow::Result<Self> {
        let etcd = services.etcd.split(',').next().unwrap_or_default().to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // What an interrupted run left would name shards that are not there.
        runtime.block_on(forget(&etcd))?;
        let mut shards = Vec::new();
        for n in 1..=SHARDS {
            shards.push(Shard::start(n, program, &etcd, &runtime)?);
        }
        let app = App::start(program, &etcd)?;
        runtime.block_on(registered(&etcd))?;
        Ok(Self { app, _shards: shards, etcd, runtime, acknowledged: 0, open: 0 })
    }

    pub fn run(
        &mut self,
        generator: &Generator,
        load: Load,
        connections: u32,
        seconds: u32,
    ) -> anyhow::Result<Answers> {
        let answers = generator.run(load, self.app.addr, connections, seconds)?;
        self.acknowledged += answers.good;
        self.open += u64::from(connections) + answers.refused + answers.broken;
        Ok(answers)
    }

    /// It must have counted what it acknowledged, or it was not measured counting.
    pub fn check(&self) -> anyhow::Result<()> {
        let url = format!("http://{}/counter?counter_id={HOT}", self.app.addr);
        let body =
            ureq::get(&url).call().context("the first system does not tell its total")?.body_mut().read_to_string()?;
        let answer: serde_json::Value = serde_json::from_str(&body).context("the first system's total is no JSON")?;
        let value =
            answer["data"]["value"].as_u64().with_context(|| format!("the first system has no total: {body}"))?;
        let (least, most) = (self.acknowledged, self.acknowledged + self.open);
        if !(least..=most).contains(&value) {
            bail!("the first system: {HOT} is {value} and must be from {least} to {most}");
        }
        Ok(())
    }

    /// Stops it and removes its keys.
    pub fn remove(self) -> anyhow::Result<()> {
        let Self { app, _shards: shards, etcd, runtime, .. } = self;
        drop((app, shards));
        runtime.block_on(forget(&etcd))
    }
}

impl App {
    fn start(program: &Path, etcd: &str) -> anyhow::Result<Self> {
        // It does not say which port it was given, so it gets one that was free a moment ago.
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let process =
            spawn(Command::new(program).env("SERVICE_TYPE", "app").env("PORT", addr.port().to_string()), etcd)?;
        Ok(Self { process, addr })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

impl Shard {
    fn start(n: u8, program: &Path, etcd: &str, runtime: &Runtime) -> anyhow::Result<Self> {
        let namespace = format!("quipu-bench-{n}");
        let (link, [here, there]) = (format!("quipu-bench-{n}"), addresses(n));
        // Of a run that was killed.
        let _ = ip(&format!("netns del {namespace}"));
        ip(&format!("netns add {namespace}"))?;
        let mut shard = Self { namespace, process: None };
        let namespace = &shard.namespace;
        ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"))?;
        ip(&format!("addr add {here}/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-n {namespace} addr add {there}/30 dev eth0"))?;
        ip(&format!("-n {namespace} link set eth0 up"))?;
        let forwarder = forward(runtime, here, etcd)?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command.env("SERVICE_TYPE", "shard").env("POD_IP", there.to_string());
        shard.process = Some(spawn(&mut command, &format!("http://{forwarder}"))?);
        Ok(shard)
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            end(process);
        }
        // The link goes with it. What fails here is not there.
        let _ = ip(&format!("netns del {}", self.namespace));
    }
}

fn spawn(command: &mut Command, etcd: &str) -> anyhow::Result<Child> {
    command.env("ETCD_ENDPOINTS", etcd).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start the first system")
}

fn end(process: &mut Child) {
    // Both fail only when it has ended already.
    let _ = process.kill();
    let _ = process.wait();
}

/// The two ends of a shard's link: RFC 2544 keeps these addresses for benchmarks.
fn addresses(n: u8) -> [Ipv4Addr; 2] {
    [1, 2].map(|end| Ipv4Addr::new(198, 18, n, end))
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot run ip, of Debian's iproute2")?;
    if !output.status.success() {
        bail!("ip {words}: {}; it needs root", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Carries connections to `here` on to etcd; answers where it listens.
fn forward(runtime: &Runtime, here: Ipv4Addr, etcd: &str) -> anyhow::Result<SocketAddr> {
    let to = etcd.trim_start_matches("http://").to_owned();
    let listener = runtime.block_on(tokio::net::TcpListener::bind((here, 0)))?;
    let addr = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                if let Ok(mut to) = tokio::net::TcpStream::connect(&to).await {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    Ok(addr)
}

/// Waits until the shards that live are ours.
async fn registered(etcd: &str) -> anyhow::Result<()> {
    let ours: BTreeSet<String> = (1..=SHARDS).map(|n| format!("{SHARDS_PREFIX}{}", addresses(n)[1])).collect();
    let mut client = connect(etcd).await?;
    let deadline = Instant::now() + REGISTERED_DEADLINE;
    loop {
        let found = client.get(SHARDS_PREFIX, Some(GetOptions::new().with_prefix().with_keys_only())).await?;
        let found: BTreeSet<String> =
            found.kvs().iter().map(|kv| String::from_utf8_lossy(kv.key()).into_owned()).collect();
        if found == ours {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the first system's shards are {found:?} and not {ours:?} after {REGISTERED_DEADLINE:?}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Removes what it keeps: the counter of the bench, and shards that are gone.
async fn forget(etcd: &str) -> anyhow::Result<()> {
    let mut client = connect(etcd).await?;
    client.delete(format!("{COUNTERS_PREFIX}{HOT}"), None).await.context("etcd does not remove a key")?;
    for n in 1..=SHARDS {
        let key = format!("{SHARDS_PREFIX}{}", addresses(n)[1]);
        client.delete(key, None::<DeleteOptions>).await.context("etcd does not remove a key")?;
    }
    Ok(())
}

async fn connect(etcd: &str) -> anyhow::Result<Client> {
    Client::connect([etcd], None).await.context("etcd does not answer")
}
