//! The load generator: wrk with the scripts of `lua/`, the same for every server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::plan::{COUNTERS, HOT, Load, PREFIX};
use crate::servers::piece_of_path;

const DONE: &str = include_str!("../lua/done.lua");
const SAME: &str = include_str!("../lua/same.lua");
const MANY: &str = include_str!("../lua/many.lua");
const BATCH: &str = include_str!("../lua/batch.lua");

/// Answers later than this count as broken. Generous: a slow answer is a result, not an error.
const ANSWER_TIMEOUT_SECONDS: u32 = 10;

/// What wrk saw in one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answers {
    /// Requests answered with 2xx or 3xx.
    pub good: u64,
    /// Requests answered with 4xx or 5xx.
    pub refused: u64,
    /// Connections and requests that ended without an answer.
    pub broken: u64,
    pub seconds: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Answers {
    pub fn per_second(&self) -> f64 {
        self.good as f64 / self.seconds
    }

    /// Both at once: counts add up, the mean is that of all requests, of quantiles the higher one stands.
    fn and(self, other: Self) -> Self {
        let (here, there) = (self.good as f64, other.good as f64);
        Self {
            good: self.good + other.good,
            refused: self.refused + other.refused,
            broken: self.broken + other.broken,
            seconds: self.seconds.max(other.seconds),
            mean_us: (self.mean_us * here + other.mean_us * there) / (here + there).max(1.0),
            p50_us: self.p50_us.max(other.p50_us),
            p99_us: self.p99_us.max(other.p99_us),
        }
    }
}

/// What wrk is told to send: one of its scripts, with a path and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    script: &'static str,
    path: String,
    arguments: Vec<String>,
}

impl Requests {
    /// Additions of 1 to one counter.
    pub fn adds_to(id: &str) -> Self {
        let path = format!("/v1/counters/{}/add", piece_of_path(id));
        Self { script: "same", path, arguments: vec!["POST".into(), r#"{"amount":1}"#.into()] }
    }
}

impl From<Load> for Requests {
    fn from(load: Load) -> Self {
        let (script, path, arguments) = match load {
            Load::Add => return Self::adds_to(HOT),
            Load::Increment => {
                ("same", "/counter/increment".into(), vec!["PUT".into(), format!(r#"{{"counter_id":"{HOT}"}}"#)])
            }
            Load::Read => ("same", format!("/v1/counters/{HOT}"), vec!["GET".into()]),
            Load::AddMany => ("many", "/".into(), vec![COUNTERS.to_string(), PREFIX.into()]),
            Load::Batch { ops } => ("batch", "/".into(), vec![ops.to_string(), COUNTERS.to_string(), PREFIX.into()]),
        };
        Self { script, path, arguments }
    }
}

/// wrk, with its scripts on disk.
#[derive(Debug)]
pub struct Generator {
    scripts: PathBuf,
    threads: u32,
}

impl Generator {
    /// Writes the scripts to `dir` and sees that wrk is there.
    pub fn new(dir: &Path, threads: u32) -> anyhow::Result<Self> {
        if let Err(why) = Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            bail!("cannot run wrk ({why}): install it, on Debian by .ci/setup or apt-get install wrk");
        }
        for (name, text) in [("same", SAME), ("many", MANY), ("batch", BATCH)] {
            std::fs::write(dir.join(name).with_extension("lua"), format!("{text}\n{DONE}"))
                .with_context(|| format!("cannot write the scripts of wrk to {}", dir.display()))?;
        }
        Ok(Self { scripts: dir.to_owned(), threads })
    }

    /// Loads the server for `seconds` and waits until that is over.
    pub fn run(
        &self,
        requests: impl Into<Requests>,
        addr: SocketAddr,
        connections: u32,
        seconds: u32,
    ) -> anyhow::Result<Answers> {
        let mut command = self.command(requests, addr, connections, seconds);
        let output = command.output().context("cannot run wrk")?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse(&text).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            format!("wrk ended with {} and without its result: {text}{complaint}", output.status)
        })
    }

    /// Loads several servers at once, the connections divided between them, and adds up what they answered.
    pub fn run_over(
        &self,
        load: Load,
        addrs: &[SocketAddr],
        connections: u32,
        seconds: u32,
    ) -> anyhow::Result<Answers> {
        over_each(addrs, connections, |addr, share| self.run(load, addr, share, seconds))
    }

    pub fn command(&self, requests: impl Into<Requests>, addr: SocketAddr, connections: u32, seconds: u32) -> Command {
        let Requests { script, path, arguments } = requests.into();
        let mut command = Command::new("wrk");
        command
            .args(["--latency", "--timeout", &format!("{ANSWER_TIMEOUT_SECONDS}s")])
            .args(["-d", &format!("{seconds}s")])
            .args(["-c", &connections.to_string(), "-t", &self.threads.min(connections).to_string()])
            .arg("-s")
            .arg(self.scripts.join(script).with_extension("lua"))
            .arg(format!("http://{addr}{path}"))
            .arg("--")
            .args(arguments);
        command
    }
}

/// Loads several servers at once, each with its share of the clients, and adds up what they answered.
pub fn over_each(
    addrs: &[SocketAddr],
    clients: u32,
    run: impl Fn(SocketAddr, u32) -> anyhow::Result<Answers> + Sync,
) -> anyhow::Result<Answers> {
    let run = &run;
    let all = std::thread::scope(|scope| {
        let shares = shares(clients, addrs.len());
        let runs: Vec<_> =
            addrs.iter().zip(shares).map(|(&addr, share)| scope.spawn(move || run(addr, share))).collect();
        let join = |run: std::thread::ScopedJoinHandle<'_, _>| run.join().expect("a load does not panic");
        runs.into_iter().map(join).collect::<anyhow::Result<Vec<Answers>>>()
    })?;
    all.into_iter().reduce(Answers::and).context("no server to load")
}

/// What one client of this program saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub latencies_us: Vec<u32>,
    pub refused: u64,
    pub broken: u64,
}

impl Seen {
    /// A good answer to what was sent then.
    pub fn answered(&mut self, sent: Instant) {
        self.latencies_us.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
    }

    /// What all of them saw in this time.
    pub fn sum_up(all: Vec<Self>, took: Duration) -> anyhow::Result<Answers> {
        let (refused, broken) = all.iter().fold((0, 0), |(r, b), seen| (r + seen.refused, b + seen.broken));
        let latencies = all.into_iter().flat_map(|seen| seen.latencies_us).collect();
        answers(latencies, refused, broken, took.as_secs_f64())
    }
}

/// Sums up the microseconds of good answers, and how many were refused or never came.
pub fn answers(mut latencies_us: Vec<u32>, refused: u64, broken: u64, seconds: f64) -> anyhow::Result<Answers> {
    latencies_us.sort_unstable();
    let last = latencies_us.len().checked_sub(1).context("nothing was answered well")?;
    let quantile = |percent: usize| f64::from(latencies_us[last * percent / 100]);
    Ok(Answers {
        good: latencies_us.len() as u64,
        refused,
        broken,
        seconds,
        mean_us: latencies_us.iter().map(|&us| f64::from(us)).sum::<f64>() / latencies_us.len() as f64,
        p50_us: quantile(50),
        p99_us: quantile(99),
    })
}

/// `all` in `parts` parts that differ by one at most, none of them 0.
fn shares(all: u32, parts: usize) -> impl Iterator<Item = u32> {
    let parts = u32::try_from(parts).unwrap_or(u32::MAX).max(1);
    (0..parts).map(move |part| (all / parts + u32::from(part < all % parts)).max(1))
}

/// Reads the line that `done.lua` wrote.
fn parse(text: &str) -> anyhow::Result<Answers> {
    let line = text.lines().find_map(|line| line.strip_prefix("quipu-bench ")).context("no result line")?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let value = line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.with_context(|| format!("no {name}"))?.parse().with_context(|| format!("{name} is no number"))
    };
    let refused = field("status")?;
    let micros = |name| field(name).map(|value| value as f64);
    Ok(Answers {
        good: field("requests")?.saturating_sub(refused),
        refused,
        broken: field("connect")? + field("read")? + field("write")? + field("timeout")?,
        seconds: micros("duration_us")? / 1e6,
        mean_us: micros("mean_us")?,
        p50_us: micros("p50_us")?,
        p99_us: micros("p99_us")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_is_read() {
        let text = "Running 1s test\n\nquipu-bench requests=10 duration_us=2000000 status=4 connect=1 read=2 write=0 \
                    timeout=3 mean_us=7 p50_us=6 p99_us=90\n";
        let answers = parse(text).expect("a result");
        assert_eq!((answers.good, answers.refused, answers.broken), (6, 4, 6));
        assert_eq!((answers.per_second(), answers.p99_us), (3.0, 90.0));
    }

    #[test]
    fn an_id_is_one_piece_of_the_path() {
        assert_eq!(Requests::adds_to("python/hot").path, "/v1/counters/python%2Fhot/add");
        assert_eq!(Requests::from(Load::Add), Requests::adds_to(HOT));
    }

    #[test]
    fn connections_are_divided_evenly() {
        assert_eq!(shares(64, 3).collect::<Vec<_>>(), [22, 21, 21]);
        assert_eq!(shares(64, 1).collect::<Vec<_>>(), [64]);
    }

    #[test]
    fn loads_at_once_add_up() {
        let one = Answers { good: 3, refused: 1, broken: 0, seconds: 1.0, mean_us: 10.0, p50_us: 9.0, p99_us: 30.0 };
        let both = one.and(Answers { good: 1, mean_us: 30.0, p50_us: 8.0, p99_us: 40.0, seconds: 2.0, ..one });
        assert_eq!((both.good, both.refused, both.seconds, both.mean_us), (4, 2, 2.0, 15.0));
        assert_eq!((both.p50_us, both.p99_us), (9.0, 40.0));
    }

    #[test]
    fn what_clients_saw_adds_up() {
        let one = Seen { latencies_us: vec![30, 10], refused: 1, broken: 0 };
        let other = Seen { latencies_us: vec![20], refused: 0, broken: 2 };
        let all = Seen::sum_up(vec![one, other], Duration::from_secs(2)).expect("answers");
        assert_eq!((all.good, all.refused, all.broken, all.per_second()), (3, 1, 2, 1.5));
        assert_eq!((all.p50_us, all.mean_us), (20.0, 20.0));
        assert!(Seen::sum_up(vec![Seen::default()], Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_missing_field_is_named() {
        let why = parse("quipu-bench requests=10 status=0\n").expect_err("no duration");
        assert!(why.to_string().contains("connect"), "{why}");
        assert!(parse("Running 1s test\n").is_err());
    }
}
