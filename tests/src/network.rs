//! A network that a test has for itself: etcd and Cassandra on one side, each node of a cluster in a network namespace of
//! its own behind a link that can be cut. What is cut is dropped without a word, as when a switch fails: nobody is refused.
//!
//! The test's process runs itself a second time inside a namespace, so that nothing on the machine is changed and
//! everything is gone with the last process. It needs root, `ip`, `iptables`, `unshare` and `nsenter`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdout, Command, Stdio};

/// The first three numbers of all addresses: services have .1 to .3, and node N has .(10 + N).
pub const PREFIX: [u8; 3] = [10, 77, 0];
/// Set in the process that runs inside.
const INSIDE: &str = "QUIPU_TEST_INSIDE_NETWORK";
/// What the machine must allow.
const PROBE: &str =
    "ip link add probe type bridge && iptables -w -A OUTPUT -p tcp --dport 1 -j DROP && command -v nsenter";

/// What became of the wish to have a network.
pub enum Entry {
    /// This is the process inside.
    Inside(Network),
    /// A process inside has run the whole test, and it passed.
    Done,
    /// The machine does not allow it, and why.
    Refused(String),
}

pub struct Network {
    nodes: BTreeMap<String, Link>,
}

/// A namespace and the process that keeps it; the process ends with its standard input.
struct Link {
    address: Ipv4Addr,
    holder: Child,
}

/// What a node is cut off from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beyond {
    /// The port of etcd.
    Etcd(u16),
    /// The port of every Cassandra node.
    Cassandra(u16),
    Peers,
}

/// Which packets of a node are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Both,
    /// What it sends: the others hear nothing of it.
    Out,
    /// What it is sent: its requests are executed, and it never learns that.
    In,
}

/// Runs the calling test, named with its module, in a network with so many nodes `n1`, `n2`, …
pub fn enter(test: &str, nodes: u8) -> Entry {
    if std::env::var_os(INSIDE).is_some() {
        return Entry::Inside(Network::build(nodes));
    }
    if let Err(why) = run(&["unshare", "--net", "sh", "-c", PROBE]) {
        return Entry::Refused(format!("no network namespaces with links and filters here ({why}); they need root"));
    }
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "exec \"$@\" 2>&1", "sh"]).arg(program);
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(INSIDE, "1").stdout(Stdio::piped());
    let mut child = command.spawn().expect("it was run before");
    let mut passed = false;
    for line in lines(&mut child).map_while(Result::ok) {
        passed |= line.starts_with("test result: ok. 1 passed");
        println!("{line}");
    }
    let status = child.wait().expect("our own child");
    assert!(status.success() && passed, "inside its network the test has failed: {status}");
    Entry::Done
}

impl Network {
    fn build(nodes: u8) -> Self {
        expect_run("ip link set lo up");
        expect_run("ip link add services type bridge");
        (1..=3).for_each(|host| expect_run(&format!("ip addr add {}/24 dev services", address(host))));
        expect_run("ip link set services up");
        let nodes = (1..=nodes).map(|n| (format!("n{n}"), Link::build(n))).collect();
        Self { nodes }
    }

    /// The first three numbers of the services' addresses.
    pub fn prefix() -> String {
        let [a, b, c] = PREFIX;
        format!("{a}.{b}.{c}")
    }

    fn link(&self, node: &str) -> &Link {
        self.nodes.get(node).unwrap_or_else(|| panic!("no place in the network for {node}"))
    }

    pub fn address(&self, node: &str) -> Ipv4Addr {
        self.link(node).address
    }

    /// The program and its argument that run a command in a node's namespace.
    pub fn wrapper(&self, node: &str) -> [String; 2] {
        self.link(node).wrapper()
    }

    /// Drops a node's packets to or from the other side, connections that are open included, until [`Network::heal`].
    pub fn cut(&self, node: &str, beyond: Beyond, way: Way) {
        let link = self.link(node);
        let drop_all = |chain: &str, matching: String| {
            link.expect_run(&format!("iptables -w -A {chain} {matching} -j DROP"));
        };
        let others = || self.nodes.iter().filter(|(name, _)| *name != node).map(|(_, other)| other.address);
        if way != Way::In {
            match beyond {
                Beyond::Etcd(port) | Beyond::Cassandra(port) => drop_all("OUTPUT", format!("-p tcp --dport {port}")),
                Beyond::Peers => others().for_each(|other| drop_all("OUTPUT", format!("-d {other}"))),
            }
        }
        if way != Way::Out {
            match beyond {
                Beyond::Etcd(port) | Beyond::Cassandra(port) => drop_all("INPUT", format!("-p tcp --sport {port}")),
                Beyond::Peers => others().for_each(|other| drop_all("INPUT", format!("-s {other}"))),
            }
        }
    }

    /// Takes back every cut of a node. Returns how many packets were dropped, which proves that there was a cut.
    pub fn heal(&self, node: &str) -> u64 {
        let link = self.link(node);
        let [program, namespace] = link.wrapper();
        // Lines such as `[12:840] -A OUTPUT -p tcp -m tcp --dport 2379 -j DROP`.
        let rules = run(&[&program, &namespace, "iptables-save", "-c"]).unwrap_or_else(|why| panic!("{why}"));
        let packets = |line: &str| line.strip_prefix('[')?.split_once(':')?.0.parse::<u64>().ok();
        let dropped = rules.lines().filter(|line| line.ends_with("-j DROP")).filter_map(packets).sum();
        link.expect_run("iptables -w -F");
        dropped
    }
}

impl Link {
    fn build(n: u8) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare was run before");
        let mut ready = [0];
        let stdout = holder.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut ready).expect("the namespace is there");
        let link = Self { address: address(10 + n), holder };
        let pid = link.holder.id();
        expect_run(&format!("ip link add node{n} type veth peer name services netns {pid}"));
        expect_run(&format!("ip link set node{n} master services up"));
        link.expect_run("ip link set lo up");
        link.expect_run(&format!("ip addr add {}/24 dev services", link.address));
        link.expect_run("ip link set services up");
        link
    }

    fn wrapper(&self) -> [String; 2] {
        ["nsenter".into(), format!("--net=/proc/{}/ns/net", self.holder.id())]
    }

    fn expect_run(&self, words: &str) {
        expect_run(&format!("{} {words}", self.wrapper().join(" ")));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn address(host: u8) -> Ipv4Addr {
    let [a, b, c] = PREFIX;
    Ipv4Addr::new(a, b, c, host)
}

fn lines(child: &mut Child) -> std::io::Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().expect("piped")).lines()
}

/// Runs a command to its end. Returns what it printed, or why it failed.
fn run(words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|why| format!("{}: {why}", words[0]))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn expect_run(words: &str) {
    run(&words.split(' ').collect::<Vec<_>>()).unwrap_or_else(|why| panic!("{words}: {why}"));
}
