//! The etcd and the Cassandra of the tests: those that run already, or a pair of one's own to stop, kill and start again.
//!
//! `tests/services/up` starts them; `.ci/test` does so and names them in `QUIPU_TEST_ETCD` and `QUIPU_TEST_CASSANDRA`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::network::{Beyond, Network};
use crate::until;
use crate::volume::Volume;

/// The first of eight ports of services that a test has for itself.
const OWN_PORTS: u16 = 24_860;
/// Of these, the one of Cassandra's clients.
const CQL_PORT: u16 = 2;
/// The Cassandra node, of several, whose disk can be filled.
pub const SMALL_DISK: usize = 3;
/// A statement that changes the schema takes seconds on a busy machine.
const CQL_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Services {
    /// URL of etcd.
    pub etcd: String,
    /// HOST:PORT of each Cassandra node, with commas between them.
    pub cassandra: String,
    own: Option<Own>,
}

/// Waits until no other test has services on these ports, in whatever process, and keeps others away until it is dropped.
fn alone_on(ports: u16) -> File {
    let path = std::env::temp_dir().join(format!("quipu-services-{ports}.lock"));
    let lock = File::create(&path).expect("a file in the temporary directory");
    lock.lock().expect("a lock on our own file");
    lock
}

/// Services that this process has started; stopped and deleted with it.
struct Own {
    disk: Option<Volume>,
    state: TempDir,
    ports: u16,
    /// Dropped after the other parts, which end inside it.
    network: Option<Network>,
    /// See [`alone_on`].
    _alone: File,
}

/// One process of them, to be harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Etcd,
    /// Node 1, 2 or 3.
    Cassandra(usize),
}

impl Services {
    /// Those that run already and that other tests use too, or None, said in plain sight.
    pub fn shared() -> Option<Self> {
        let (Ok(etcd), Ok(cassandra)) = (std::env::var("QUIPU_TEST_ETCD"), std::env::var("QUIPU_TEST_CASSANDRA"))
        else {
            println!(
                "skipped: {}: QUIPU_TEST_ETCD and QUIPU_TEST_CASSANDRA name no services; tests/services/up starts them",
                test_name()
            );
            return None;
        };
        Some(Self { etcd, cassandra, own: None })
    }

    /// Services of one's own where the shared ones run, or where `QUIPU_TEST_OWN_PORTS` says where they may be started; else
    /// None, said in plain sight.
    pub fn own() -> Option<Self> {
        Self::start_with(1, None, 0, &[])
    }

    /// As [`Services::own`], with three Cassandra nodes. One has a disk of so many MiB, a quarter of it for its commit log, that
    /// can be filled where mounting is allowed. Their links can be cut in a network.
    pub fn replicated(network: Option<Network>, disk_mebibytes: u32) -> Option<Self> {
        Self::start_with(3, network, disk_mebibytes, &[])
    }

    /// As [`Services::own`], with TLS, client certificates and passwords: a node needs [`Services::secrets`].
    pub fn secured() -> Option<Self> {
        Self::start_with(1, None, 0, &["--secure"])
    }

    /// The directory of the certificates and passwords of secured services: see `tests/services/secure.sh`.
    pub fn secrets(&self) -> Option<PathBuf> {
        self.etcd.starts_with("https://").then(|| self.own.as_ref().expect("it is ours").state.path().join("secure"))
    }

    fn start_with(
        cassandra_nodes: u16,
        network: Option<Network>,
        disk_mebibytes: u32,
        options: &[&str],
    ) -> Option<Self> {
        let ports = match std::env::var("QUIPU_TEST_OWN_PORTS") {
            Ok(text) => text.parse().expect("QUIPU_TEST_OWN_PORTS is a port number"),
            Err(_) => {
                Self::shared()?;
                OWN_PORTS
            }
        };
        let alone = alone_on(ports);
        let state = tempfile::Builder::new().prefix("quipu-services-").tempdir().expect("a temporary directory");
        let mut own = Own { disk: None, state, ports, network, _alone: alone };
        if disk_mebibytes > 0 {
            let at = own.directory(Service::Cassandra(SMALL_DISK));
            std::fs::create_dir_all(&at).expect("a directory of the services");
            own.disk = Volume::mount_at(&at, disk_mebibytes);
        }
        // Cassandra will be killed, so that it must not answer before its commit log is synced.
        let count = cassandra_nodes.to_string();
        let usual = ["--etcd", "--cassandra-nodes", &count, "--durable", "group"];
        if let Err(why) = own.run("up", &[&usual, options].concat()) {
            println!("skipped: {}: etcd and Cassandra did not start: {why}", test_name());
            return None;
        }
        let prefix = own.prefix();
        let scheme = if options.contains(&"--secure") { "https" } else { "http" };
        let etcd = format!("{scheme}://{prefix}.1:{ports}");
        let cassandra: Vec<_> = (1..=cassandra_nodes).map(|n| format!("{prefix}.{n}:{}", ports + CQL_PORT)).collect();
        let cassandra = cassandra.join(",");
        Some(Self { etcd, cassandra, own: Some(own) })
    }

    /// HOST:PORT of one Cassandra node, from 1.
    fn cassandra_node(&self, n: usize) -> &str {
        self.cassandra.split(',').nth(n - 1).unwrap_or_else(|| panic!("there is no Cassandra node {n}"))
    }

    pub fn cassandra_nodes(&self) -> usize {
        self.cassandra.split(',').count()
    }

    /// Where the nodes of a cluster are that can be cut off.
    pub fn network(&self) -> Option<&Network> {
        self.own.as_ref()?.network.as_ref()
    }

    /// What to cut a node off from, to be without etcd.
    pub fn beyond_etcd(&self) -> Beyond {
        Beyond::Etcd(self.own.as_ref().expect("only a test's own services are cut off").ports)
    }

    /// What to cut a node off from, to be without Cassandra.
    pub fn beyond_cassandra(&self) -> Beyond {
        Beyond::Cassandra(self.own.as_ref().expect("only a test's own services are cut off").ports + CQL_PORT)
    }

    /// The disk of the Cassandra node of [`SMALL_DISK`], if it has one of its own.
    pub fn disk(&self) -> Option<&Volume> {
        self.own.as_ref()?.disk.as_ref()
    }

    /// Whether anybody listens in its place.
    pub fn listens(&self, service: Service) -> bool {
        let address = match service {
            Service::Etcd => self.etcd.trim_start_matches("http://"),
            Service::Cassandra(n) => self.cassandra_node(n),
        };
        TcpStream::connect(address).is_ok()
    }

    fn process(&self, service: Service) -> Pid {
        let own = self.own.as_ref().expect("only a test's own services are harmed");
        own.pid(service).expect("the file with its process id")
    }

    /// Stops its process where it is, connections and all.
    pub fn pause(&self, service: Service) {
        kill_process(self.process(service), Signal::STOP).expect("it runs");
    }

    pub fn resume(&self, service: Service) {
        kill_process(self.process(service), Signal::CONT).expect("it is there");
    }

    /// `kill -9`; what it stored stays.
    pub fn kill(&self, service: Service) {
        // It may have ended by itself.
        let _ = kill_process(self.process(service), Signal::KILL);
        // Its threads may outlive the process's first one for a moment, and with them the port.
        until("nobody listens in a killed service's place", || !self.listens(service));
    }

    /// Starts it again on what it stored, and waits until it answers.
    pub fn start(&self, service: Service) {
        let own = self.own.as_ref().expect("only a test's own services are harmed");
        let started = match service {
            Service::Etcd => own.run("up", &["--etcd"]),
            Service::Cassandra(n) => own.run("up", &["--node", &n.to_string()]),
        };
        started.unwrap_or_else(|why| panic!("{service:?} does not start again: {why}"));
    }

    /// Removes a cluster's keyspace, so that the tests of a day do not pile up in one small Cassandra.
    pub fn drop_keyspace(&self, name: &str) -> io::Result<()> {
        if self.secrets().is_some() {
            // It goes with the services.
            return Ok(());
        }
        cql(self.cassandra_node(1), &format!("DROP KEYSPACE IF EXISTS {name}"))
    }
}

impl Own {
    /// The first three numbers of the services' addresses.
    fn prefix(&self) -> String {
        self.network.as_ref().map_or_else(|| "127.0.0".into(), |_| Network::prefix())
    }

    fn directory(&self, service: Service) -> PathBuf {
        match service {
            Service::Etcd => self.state.path().join("etcd"),
            Service::Cassandra(n) => self.state.path().join(format!("cassandra/node{n}")),
        }
    }

    fn pid(&self, service: Service) -> Option<Pid> {
        let text = std::fs::read_to_string(self.directory(service).join("pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("services").join(program);
        let mut command = Command::new(&path);
        command.args(args).env("QUIPU_SERVICES_DIR", self.state.path());
        command.env("QUIPU_SERVICES_PORTS", self.ports.to_string()).env("QUIPU_SERVICES_NETWORK", self.prefix());
        let output = command.output().map_err(|why| format!("{}: {why}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        output.status.success().then_some(()).ok_or(text)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.disk.is_some() {
            // The file with the process id is on that disk.
            if let Some(pid) = self.pid(Service::Cassandra(SMALL_DISK)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            // Before the directory that it is in is removed.
            self.disk = None;
        }
        // A process that was stopped ends by SIGKILL only.
        if let Err(why) = self.run("down", &["--kill"]) {
            eprintln!("the services in {} are not stopped: {why}", self.state.path().display());
        }
    }
}

fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Executes one statement over a connection of its own, in version 4 of Cassandra's protocol.
fn cql(address: &str, statement: &str) -> io::Result<()> {
    const ERROR: u8 = 0;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(CQL_TIMEOUT))?;
    let mut call = |operation: u8, body: &[u8]| -> io::Result<()> {
        let length = u32::try_from(body.len()).expect("a short body").to_be_bytes();
        stream.write_all(&[&[4, 0, 0, 0, operation], &length[..], body].concat())?;
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut answer = vec![0; u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize];
        stream.read_exact(&mut answer)?;
        if head[4] == ERROR { Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())) } else { Ok(()) }
    };
    // STARTUP {"CQL_VERSION": "3.0.0"}, then QUERY at consistency ONE without flags.
    call(1, b"\0\x01\0\x0bCQL_VERSION\0\x053.0.0")?;
    let length = u32::try_from(statement.len()).expect("a short statement").to_be_bytes();
    call(7, &[&length[..], statement.as_bytes(), &[0, 1, 0]].concat())
}
