//! The load generator of HTTP/2: h2load, whose clients share connections as those of a Cassandra driver do.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::load::{Answers, answers, over_each};
use crate::plan::{COUNTERS, HOT, Load, PREFIX, STRIDE};

/// Connections to each node: one for each of its serving threads on the machine of two cores that the targets are for.
pub const CONNECTIONS: u32 = 2;
const BODY: &str = r#"{"amount":1}"#;

/// h2load, with what it sends on disk.
#[derive(Debug)]
pub struct Shared {
    dir: PathBuf,
}

impl Shared {
    /// Writes body and paths to `dir` and sees that h2load is there.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        if let Err(why) = Command::new("h2load").arg("--version").stdout(Stdio::null()).status() {
            bail!("cannot run h2load ({why}): install it, on Debian by .ci/setup or apt-get install nghttp2-client");
        }
        let mut paths = String::new();
        for n in 0..COUNTERS {
            // Writing to a string cannot fail.
            let _ = writeln!(paths, "/v1/counters/{PREFIX}{:06}/add", (n * STRIDE) % COUNTERS);
        }
        for (name, text) in [("body", BODY), ("hot", &format!("/v1/counters/{HOT}/add\n")), ("many", &paths)] {
            std::fs::write(dir.join(name), text).with_context(|| format!("cannot write to {}", dir.display()))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Loads all servers at once for `seconds`, the clients divided between them.
    pub fn run_over(&self, load: Load, addrs: &[SocketAddr], clients: u32, seconds: u32) -> anyhow::Result<Answers> {
        let paths = match load {
            Load::Add => "hot",
            Load::AddMany => "many",
            other => bail!("{} are not measured over HTTP/2", other.name()),
        };
        over_each(addrs, clients, |addr, clients| self.run(paths, addr, clients, seconds))
    }

    fn run(&self, paths: &str, addr: SocketAddr, clients: u32, seconds: u32) -> anyhow::Result<Answers> {
        let log = tempfile::NamedTempFile::new_in(&self.dir).context("cannot make a file")?;
        let output = Command::new("h2load")
            .args(["-c", &CONNECTIONS.to_string(), "-m", &clients.div_ceil(CONNECTIONS).to_string()])
            .args(["-D", &seconds.to_string(), "--log-file"])
            .arg(log.path())
            .arg("-d")
            .arg(self.dir.join("body"))
            .args(["-H", "content-type: application/json", "-B", &format!("http://{addr}"), "-i"])
            .arg(self.dir.join(paths))
            .output()
            .context("cannot run h2load")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("h2load ended with {}: {complaint}", output.status);
        }
        let text = std::fs::read_to_string(log.path()).context("h2load wrote no log")?;
        parse(&text, f64::from(seconds)).with_context(|| format!("h2load at {addr}: {complaint}"))
    }
}

/// Reads h2load's log: the time a request began, its status or -1, and the microseconds until its answer ended.
fn parse(log: &str, seconds: f64) -> anyhow::Result<Answers> {
    let mut latencies = Vec::new();
    let (mut refused, mut broken) = (0, 0);
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        let mut field = || fields.next().and_then(|field| field.parse::<i64>().ok());
        match field().zip(field()).with_context(|| format!("not a line of h2load's log: {line}"))? {
            (200..400, micros) => latencies.push(u32::try_from(micros).unwrap_or(u32::MAX)),
            (..0, _) => broken += 1,
            _ => refused += 1,
        }
    }
    answers(latencies, refused, broken, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_read() {
        let log = "1700000000000001\t200\t700\n1700000000000002\t503\t900\n1700000000000003\t-1\t3\n\
                   1700000000000004\t200\t500\n";
        let answers = parse(log, 2.0).expect("answers");
        assert_eq!((answers.good, answers.refused, answers.broken, answers.per_second()), (2, 1, 1, 1.0));
        assert_eq!(answers.mean_us, 600.0);
        assert!(parse("nonsense\n", 2.0).is_err());
        assert!(parse("1700000000000001\t503\t700\n", 2.0).is_err(), "no answer was good");
    }
}
