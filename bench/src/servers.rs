//! The measured processes: started on a free port of the loopback interface, filled, asked, and ended on drop.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bare::{Answer, Layout};
use crate::plan::{COUNTERS, HOT, PREFIX, Server};

/// From start to the line that says ready; a first start compiles the policies.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// From SIGTERM to the end; killed afterwards.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// One request of the runner itself; a large component is compiled meanwhile.
const REQUEST_DEADLINE: Duration = Duration::from_secs(90);
/// Until a relaxed addition that was answered must be readable.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
/// Additions in one batch while filling.
const FILL_BATCH: u32 = 10_000;
/// Headers that hyper writes itself.
const WRITTEN_BY_HYPER: [&str; 4] = ["date", "content-length", "connection", "transfer-encoding"];

/// What Quipu's metrics say of its journal since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Journal {
    /// Time spent inside durable writes.
    pub write_seconds: f64,
    /// Durable writes: group commits over all shards.
    pub groups: f64,
}

impl Journal {
    pub fn since(self, before: Self) -> Self {
        Self { write_seconds: self.write_seconds - before.write_seconds, groups: self.groups - before.groups }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Process {
    child: Child,
    addr: SocketAddr,
    resp_addr: Option<SocketAddr>,
    agent: ureq::Agent,
    /// By [`Process::kill`]; ending is not reported then.
    killed: bool,
}

/// Where the programs are and where they may write.
#[derive(Debug)]
pub struct Places {
    pub quipu: PathBuf,
    /// Data, scripts and caches; removed at the end.
    pub scratch: PathBuf,
    /// What the servers wrote to stderr; kept.
    pub logs: PathBuf,
}

impl Places {
    pub fn start_quipu(&self, server: Server) -> anyhow::Result<Process> {
        self.start_named(server.slug(), server != Server::Native)
    }

    /// A Quipu with data and log of this name, with or without policies.
    pub fn start_named(&self, slug: &str, policies: bool) -> anyhow::Result<Process> {
        let mut command = self.serve();
        command.arg("--data-dir").arg(self.scratch.join(slug));
        if !policies {
            command.args(["--policies", "off"]);
        }
        Process::start(command, &self.logs.join(slug).with_extension("log"))
    }

    /// `quipu serve` on a free port; where the counters are is for the caller to add.
    pub fn serve(&self) -> Command {
        let mut command = Command::new(&self.quipu);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn"])
            .arg("--cache-dir")
            .arg(self.scratch.join("cache"));
        // Settings of the caller's own server must not reach the measured ones.
        command.env_remove("PORT");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUIPU_")) {
            command.env_remove(name);
        }
        command
    }

    pub fn start_bare(&self, layout: Layout, answers: &[Answer]) -> anyhow::Result<Process> {
        let path = self.scratch.join("answers.json");
        std::fs::write(&path, serde_json::to_vec(answers)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this program's file")?);
        command.args(["bare", "--layout", layout.name(), "--answers"]).arg(path);
        Process::start(command, &self.logs.join(format!("bare-{}.log", layout.name())))
    }
}

impl Process {
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        let errors = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", Path::new(&program).display()))?;
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (tell, told) = mpsc::channel();
        // Reads on after the ready line, so that the server never waits for its own output.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(addr) = ready_address(&line, "http") {
                    let _ = tell.send((addr, ready_address(&line, "resp")));
                }
            }
        });
        let (addr, resp_addr) = match told.recv_timeout(READY_DEADLINE) {
            Ok(addrs) => addrs,
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                let what = match why {
                    mpsc::RecvTimeoutError::Timeout => format!("was not ready in {READY_DEADLINE:?}"),
                    mpsc::RecvTimeoutError::Disconnected => "ended before it was ready".into(),
                };
                bail!("{} {what}: see {}", Path::new(&program).display(), log.display());
            }
        };
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST_DEADLINE))
            .http_status_as_error(false)
            .build()
            .into();
        Ok(Self { child, addr, resp_addr, agent, killed: false })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it speaks RESP, if it does.
    pub fn resp_addr(&self) -> Option<SocketAddr> {
        self.resp_addr
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The answer's status, headers and body, whatever the status.
    pub fn ask(&self, method: &str, path: &str, body: Option<String>) -> anyhow::Result<Answer> {
        self.send(method, path, "application/json", body.map(String::into_bytes))
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: Option<Vec<u8>>) -> anyhow::Result<Answer> {
        let request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        let request = request.header("content-type", kind);
        let answer = match body {
            Some(body) => self.agent.run(request.body(body)?),
            None => self.agent.run(request.body(())?),
        };
        let mut answer = answer.with_context(|| format!("{method} {path} got no answer"))?;
        let headers = answer.headers().iter().map(|(name, value)| {
            let value = value.to_str().with_context(|| format!("{method} {path} answers {name} with no text"))?;
            Ok((name.to_string(), value.to_owned()))
        });
        let headers = headers.collect::<anyhow::Result<Vec<_>>>()?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_to_string().with_context(|| format!("{method} {path}: the body broke"))?;
        Ok(Answer { method: method.into(), prefix: path.into(), status, headers, body })
    }

    /// As [`Process::ask`]; any status but 2xx is an error.
    pub fn ask_well(&self, method: &str, path: &str, body: Option<String>) -> anyhow::Result<Answer> {
        well(self.ask(method, path, body)?)
    }

    /// Makes a component the newest revision of a plugin.
    pub fn upload(&self, plugin: &str, component: Vec<u8>) -> anyhow::Result<()> {
        let path = format!("/v1/plugins/{plugin}");
        well(self.send("PUT", &path, "application/wasm", Some(component))?).map(drop)
    }

    /// Lets answers leave before the entry is durable, for all counters of the bench.
    pub fn relax(&self) -> anyhow::Result<()> {
        let rule = json!({ "match": PREFIX, "durability": "relaxed" });
        self.ask_well("PUT", "/v1/rules", Some(rule.to_string())).map(drop)
    }

    /// Makes every counter of the bench exist and resident.
    pub fn fill(&self) -> anyhow::Result<()> {
        for first in (0..COUNTERS).step_by(FILL_BATCH as usize) {
            let ops: Vec<Value> = (first..COUNTERS.min(first + FILL_BATCH))
                .map(|n| json!({ "id": format!("{PREFIX}{n:06}"), "amount": 1 }))
                .collect();
            self.ask_well("POST", "/v1/batch", Some(json!({ "ops": ops }).to_string()))?;
        }
        self.ask_well("POST", &format!("/v1/counters/{HOT}/add"), Some(r#"{"amount":1}"#.into())).map(drop)
    }

    /// What the bare server shall answer: this server's own bytes, by method and path prefix.
    pub fn answers(&self) -> anyhow::Result<Vec<Answer>> {
        let add = || Some(r#"{"amount":1}"#.to_owned());
        let mut hot = self.ask_well("POST", &format!("/v1/counters/{HOT}/add"), add())?;
        let mut read = self.ask_well("GET", &format!("/v1/counters/{HOT}"), None)?;
        let mut many = self.ask_well("POST", &format!("/v1/counters/{PREFIX}{:06}/add", COUNTERS / 2), add())?;
        many.prefix = format!("/v1/counters/{PREFIX}");
        for answer in [&mut hot, &mut read, &mut many] {
            answer.headers.retain(|(name, _)| !WRITTEN_BY_HYPER.contains(&name.as_str()));
        }
        // The first that matches answers: the longer prefix comes first.
        Ok(vec![hot, read, many])
    }

    /// Waits until the hot counter shows at least `expected`, and answers its value.
    pub fn settled_value(&self, expected: i64) -> anyhow::Result<i64> {
        self.settled_value_of(HOT, expected)
    }

    /// The same of any counter.
    pub fn settled_value_of(&self, id: &str, expected: i64) -> anyhow::Result<i64> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        loop {
            let answer = self.ask_well("GET", &format!("/v1/counters/{}", piece_of_path(id)), None)?;
            let json: Value = serde_json::from_str(&answer.body).context("a read is answered without JSON")?;
            let value = json["value"].as_i64().with_context(|| format!("a read has no value: {}", answer.body))?;
            if value >= expected || Instant::now() > deadline {
                return Ok(value);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn journal(&self) -> anyhow::Result<Journal> {
        let [write_seconds, groups] =
            self.metrics(["quipu_journal_write_seconds_total", "quipu_journal_groups_total"])?;
        Ok(Journal { write_seconds, groups })
    }

    /// What `/metrics` says now, summed over the series of each name.
    pub fn metrics<const N: usize>(&self, names: [&str; N]) -> anyhow::Result<[f64; N]> {
        let text = self.ask_well("GET", "/metrics", None)?.body;
        let mut values = [0.0; N];
        for (value, name) in values.iter_mut().zip(names) {
            *value = sum_of(&text, name, "").with_context(|| format!("/metrics has no {name}"))?;
        }
        Ok(values)
    }

    /// Calls that the native choice answered in the place of a plugin, for whatever reason.
    pub fn fallbacks(&self, plugin: &str) -> anyhow::Result<f64> {
        let text = self.ask_well("GET", "/metrics", None)?.body;
        // A kind of fault that never came has no series.
        Ok(sum_of(&text, "quipu_policy_faults_total", &format!("plugin=\"{plugin}\"")).unwrap_or(0.0))
    }

    /// SIGKILL: nothing is closed or handed over.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.killed = true;
        self.child.kill().context("cannot kill a server")?;
        self.child.wait().context("cannot wait for a killed server")?;
        Ok(())
    }

    /// SIGTERM, so that the server closes its store; killed when it takes too long.
    fn stop(&mut self) -> anyhow::Result<()> {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("process {} did not end in {STOP_DEADLINE:?}", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.killed {
            return;
        }
        if let Ok(Some(status)) = self.child.try_wait() {
            eprintln!("process {} had ended by itself with {status}", self.child.id());
        } else if let Err(why) = self.stop() {
            eprintln!("killing a server: {why}");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `… ready http=ADDR resp=ADDR …`
fn ready_address(line: &str, name: &str) -> Option<SocketAddr> {
    let (_, settings) = line.split_once(" ready ")?;
    settings.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// An answer of 2xx, or the error that it is none.
fn well(answer: Answer) -> anyhow::Result<Answer> {
    let Answer { method, prefix: path, status, body, .. } = &answer;
    if !(200..300).contains(status) {
        bail!("{method} {path} was answered {status}: {body}");
    }
    Ok(answer)
}

/// A counter's id as the path has it. Of what needs encoding, the ids of the bench have only this.
pub fn piece_of_path(id: &str) -> String {
    id.replace('/', "%2F")
}

/// The sum of the series of one metric in Prometheus text that have this label, as it is written there; of all for "".
fn sum_of(text: &str, name: &str, label: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, rest) = if rest.starts_with('{') { rest.rsplit_once('}')? } else { ("", rest) };
        if !labels.contains(label) {
            return None;
        }
        rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
    });
    values.reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let port = |line, name| ready_address(line, name).map(|addr| addr.port());
        let line = "quipu ready http=127.0.0.1:4711 resp=127.0.0.1:4712";
        assert_eq!((port(line, "http"), port(line, "resp")), (Some(4711), Some(4712)));
        assert_eq!(port("quipu ready http=127.0.0.1:4711", "resp"), None);
        assert_eq!(port("quipu starts http=127.0.0.1:4711", "http"), None);
    }

    #[test]
    fn series_of_a_metric_add_up() {
        let text =
            "# TYPE x_total counter\nx_total{shard=\"0\"} 1.5\nx_total{shard=\"1\"} 2\nx_total_more 9\ny 4 123\n";
        assert_eq!(sum_of(text, "x_total", ""), Some(3.5));
        assert_eq!(sum_of(text, "x_total", r#"shard="1""#), Some(2.0));
        assert_eq!(sum_of(text, "x_total", r#"shard="2""#), None);
        assert_eq!(sum_of(text, "y", ""), Some(4.0));
        assert_eq!(sum_of(text, "z", ""), None);
    }
}
