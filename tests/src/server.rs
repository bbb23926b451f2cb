//! One node: the real binary on a free port, its data in a temporary directory, killed on drop.
//!
//! What it prints is kept, and shown when the test that owns it fails.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::http::{Answer, Client};
use crate::metrics::Metrics;
use crate::{PATIENCE, within};

/// The program under test: `$QUIPU_BIN`, or the one beside the test's own directory.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("QUIPU_BIN") {
        return path.into();
    }
    let path = target_dir().join("quipu");
    assert!(path.exists(), "{} is missing: build it with `cargo build --release -p quipu`", path.display());
    path
}

/// `target/release`: the test programs are in its `deps`.
pub fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors().nth(2).expect("it is in target/release/deps").to_owned()
}

/// How a node is started. Cheap to clone; a clone starts on the same data.
#[derive(Clone)]
pub struct Launch {
    /// A program and its arguments that run the server's command line; none by default.
    wrapper: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    listen: String,
    admin_token: Option<String>,
    data: PathBuf,
    /// Dropped with the last launch of this data, unless the directory is the caller's own.
    scratch: Arc<TempDir>,
}

impl Default for Launch {
    fn default() -> Self {
        Self::new()
    }
}

impl Launch {
    /// A node on a free port of loopback with an empty data directory.
    pub fn new() -> Self {
        let scratch = tempfile::Builder::new().prefix("quipu-test-").tempdir().expect("a temporary directory");
        let data = scratch.path().join("data");
        let (listen, scratch) = ("127.0.0.1:0".into(), Arc::new(scratch));
        Self { wrapper: Vec::new(), args: Vec::new(), env: Vec::new(), listen, admin_token: None, data, scratch }
    }

    pub fn flag(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.args.extend([name.into(), value.as_ref().into()]);
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(given, _)| given != name);
        self
    }

    /// Runs the server by another program, which must `exec` what follows its own arguments.
    pub fn wrapped<const N: usize>(mut self, program: [impl Into<OsString>; N]) -> Self {
        self.wrapper = program.map(Into::into).to_vec();
        self
    }

    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// Sets the token without which only clients on the node's own host are administrators; [`Server::call`] sends it.
    pub fn admin_token(mut self, token: &str) -> Self {
        self.admin_token = Some(token.into());
        self.flag("--admin-token", token)
    }

    /// Where it listens; panics unless that is an address with a port.
    pub fn address(&self) -> SocketAddr {
        self.listen.parse().unwrap_or_else(|why| panic!("{}: {why}", self.listen))
    }

    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data = path.into();
        self
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A directory that lives as long as this launch, for whatever a test wants to put beside the data.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The command with its environment, but not yet run. Settings in the environment of the tests do not leak in.
    pub fn command(&self) -> Command {
        let words: Vec<OsString> = self.wrapper.iter().cloned().chain([binary().into()]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.scratch());
        command.arg("serve").arg("--data-dir").arg(&self.data);
        if !self.listen.is_empty() {
            command.args(["--listen", &self.listen]);
        }
        // Compiled policies are shared by all tests: compiling them is measured once, in `lifecycle`.
        if !self.args.iter().any(|arg| arg == "--cache-dir") {
            command.arg("--cache-dir").arg(target_dir().join("quipu-tests-cache"));
        }
        if !self.args.iter().any(|arg| arg == "--log") {
            command.args(["--log", "info"]);
        }
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the node and waits until it says that it is ready.
    pub fn start(&self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(ended) => panic!("the server ended before it was ready: {} {}", ended.status, ended.output),
        }
    }

    /// As [`Launch::start`], or how the process ended instead of becoming ready.
    pub fn try_start(&self) -> Result<Server, Ended> {
        let began = Instant::now();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|why| panic!("{} cannot be run: {why}", binary().display()));
        let output = Output::default();
        let lines = output.collect(child.stdout.take().expect("piped"));
        drop(output.collect(child.stderr.take().expect("piped")));
        let mut child = Running { child, output: output.clone() };
        let ready = loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with("quipu ready ") => break line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("not ready within {PATIENCE:?}: {}", output.text()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = child.wait(PATIENCE);
                    return Err(Ended { status, output: output.settled() });
                }
            }
        };
        let ready_after = began.elapsed();
        let addr = address_in(&ready, "http=").unwrap_or_else(|| panic!("no address in {ready:?}"));
        Ok(Server { running: child, launch: self.clone(), addr, ready, ready_after })
    }
}

fn address_in(line: &str, name: &str) -> Option<SocketAddr> {
    line.split(' ').find_map(|word| word.strip_prefix(name))?.parse().ok()
}

/// A process that ended by itself.
pub struct Ended {
    pub status: ExitStatus,
    pub output: String,
}

impl Ended {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// What a process has printed on both its streams.
#[derive(Clone, Default)]
struct Output {
    text: Arc<Mutex<String>>,
    /// Streams that have not ended.
    open: Arc<AtomicUsize>,
}

impl Output {
    /// Reads a stream to its end on a thread of its own, which also tells the lines one by one.
    fn collect(&self, stream: impl Read + Send + 'static) -> Receiver<String> {
        let (sender, lines) = channel();
        let output = self.clone();
        output.open.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).into_owned();
                output.text.lock().expect("no reader panics").push_str(&text);
                // Nobody may be waiting for lines any more.
                let _ = sender.send(text.trim_end().to_owned());
                line.clear();
            }
            output.open.fetch_sub(1, Ordering::SeqCst);
        });
        lines
    }

    fn text(&self) -> String {
        self.text.lock().expect("no reader panics").clone()
    }

    /// Everything that an ended process has printed.
    fn settled(&self) -> String {
        crate::until("the streams of an ended process end", || self.open.load(Ordering::SeqCst) == 0);
        self.text()
    }
}

struct Running {
    child: Child,
    output: Output,
}

impl Running {
    fn wait(&mut self, deadline: Duration) -> ExitStatus {
        within(deadline, "the server exits", || self.child.try_wait().expect("our own child"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- what the server printed ----\n{}---- end ----", self.output.text());
        }
    }
}

/// A running node.
pub struct Server {
    running: Running,
    pub launch: Launch,
    pub addr: SocketAddr,
    /// The line that told that it is ready.
    pub ready: String,
    /// From the start of the process to that line.
    pub ready_after: Duration,
}

impl Server {
    /// A node with the usual settings and an empty data directory.
    pub fn start() -> Self {
        Launch::new().start()
    }

    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// The port of one shard of the second compatible system.
    pub fn shard_addr(&self, shard: u32) -> SocketAddr {
        address_in(&self.ready, &format!("shard{shard}="))
            .unwrap_or_else(|| panic!("no shard {shard} in {:?}", self.ready))
    }

    /// Where it speaks RESP; panics unless it was told to.
    pub fn resp_addr(&self) -> SocketAddr {
        address_in(&self.ready, "resp=").unwrap_or_else(|| panic!("no resp in {:?}", self.ready))
    }

    /// `kill -9`, as a crash would.
    pub fn kill(mut self) -> Launch {
        self.running.child.kill().expect("our own child");
        self.running.wait(PATIENCE);
        self.launch.clone()
    }

    /// `kill -9` and a start on the same data.
    pub fn crash_and_restart(self) -> Self {
        self.kill().start()
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// SIGSTOP: it stands still until [`Server::resume`], and its connections stay open.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.running.child);
        rustix::process::kill_process(pid, signal).expect("our own child");
    }

    /// Waits for the process to end by itself.
    pub fn ended(mut self) -> (Ended, Launch) {
        let status = self.running.wait(PATIENCE);
        (Ended { status, output: self.running.output.settled() }, self.launch.clone())
    }

    /// SIGTERM, then the end that follows.
    pub fn stop(self) -> (Ended, Launch) {
        self.terminate();
        self.ended()
    }

    /// Whether the process is there and answers.
    pub fn alive(&mut self) -> bool {
        self.running.child.try_wait().expect("our own child").is_none() && self.get("/healthz").status == 200
    }

    /// What it has printed until now.
    pub fn output(&self) -> String {
        self.running.output.text()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.addr).unwrap_or_else(|why| panic!("cannot connect to {}: {why}", self.addr))
    }

    pub fn call(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bearer = self.launch.admin_token.as_ref().map(|token| format!("Bearer {token}"));
        let authorization = bearer.as_deref().map(|bearer| ("authorization", bearer));
        let headers: Vec<_> = headers.iter().copied().chain(authorization).collect();
        let answer = self.client().call(method, target, &headers, body);
        answer.unwrap_or_else(|why| panic!("{method} {target}: {why}"))
    }

    pub fn get(&self, target: &str) -> Answer {
        self.call("GET", target, &[], b"")
    }

    pub fn delete(&self, target: &str) -> Answer {
        self.call("DELETE", target, &[], b"")
    }

    pub fn post(&self, target: &str, body: Value) -> Answer {
        self.call("POST", target, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn put(&self, target: &str, body: Value) -> Answer {
        self.call("PUT", target, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Adds and returns the answer, whatever it is.
    pub fn add(&self, id: &str, amount: i64) -> Answer {
        self.post(&format!("/v1/counters/{}/add", crate::encode(id)), serde_json::json!({ "amount": amount }))
    }

    /// Adds under an idempotency key.
    pub fn add_with_key(&self, id: &str, amount: i64, key: &str) -> Answer {
        let body = serde_json::json!({ "amount": amount }).to_string();
        self.call(
            "POST",
            &format!("/v1/counters/{}/add", crate::encode(id)),
            &[("idempotency-key", key)],
            body.as_bytes(),
        )
    }

    /// The exact total; panics if there is no such counter.
    pub fn total(&self, id: &str) -> i128 {
        self.get(&format!("/v1/counters/{}", crate::encode(id))).expect(200).total()
    }

    /// The partials of a counter as (shard, value).
    pub fn partials(&self, id: &str) -> Vec<(u64, i64)> {
        let answer = self.get(&format!("/v1/counters/{}/shards", crate::encode(id))).expect(200).json();
        let partials = answer["partials"].as_array().expect("a list").iter();
        partials.map(|p| (p["shard"].as_u64().expect("a shard"), p["value"].as_i64().expect("a value"))).collect()
    }

    /// Sets a rule and expects that it is taken.
    pub fn set_rule(&self, rule: Value) -> Value {
        self.put("/v1/rules", rule).expect(200).json()
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").expect(200).text())
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has it");
        kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Runs a client command of the binary against this node.
    pub fn quipu(&self, args: &[&str]) -> Ran {
        run(&[&["--url", &format!("http://{}", self.addr)], args].concat())
    }
}

/// What a client command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `quipu GROUP --url URL …`: the first two arguments are put behind the group that `args` names third.
fn run(args: &[&str]) -> Ran {
    let (server, command) = args.split_at(2);
    let output = client_command().args(&command[..1]).args(server).args(&command[1..]).output();
    ran(output.unwrap_or_else(|why| panic!("the client cannot be run: {why}")))
}

/// Runs `quipu` with these arguments and nothing of the tests' own environment.
pub fn quipu(args: &[&str]) -> Ran {
    ran(client_command().args(args).output().unwrap_or_else(|why| panic!("the client cannot be run: {why}")))
}

pub fn client_command() -> Command {
    let mut command = Command::new(binary());
    command.env_clear().stdin(Stdio::null());
    command
}

fn ran(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
