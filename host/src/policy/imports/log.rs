//! `quipu:policy/log`: a policy's lines for the operator, and what it prints.
//!
//! A revision may write so many lines a second, each cut at a length; the rest is counted and dropped, so a policy can
//! fill neither the log nor the memory. The newest lines stay here for `quipu plugin logs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::generated::log as generated;
use crate::policy::limits;
use crate::policy::state::{Shared, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Counts the lines of this revision on this node from 1; a gap says that older lines are gone.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub level: Level,
    pub text: String,
}

/// The log of one revision on this node.
#[derive(Debug)]
pub(in crate::policy) struct Lines {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    second_began: Instant,
    /// Lines taken since then.
    taken: u32,
    last_number: u64,
    kept: VecDeque<Line>,
}

impl Lines {
    pub fn new() -> Self {
        let inner = Inner { second_began: Instant::now(), taken: 0, last_number: 0, kept: VecDeque::new() };
        Self { inner: Mutex::new(inner) }
    }

    /// Lines numbered above `after`, oldest first.
    pub fn after(&self, after: u64) -> Vec<Line> {
        self.inner.lock().kept.iter().filter(|line| line.number > after).cloned().collect()
    }

    /// Keeps a line if this second has room for it; answers whether it had.
    fn take(&self, level: Level, text: &str, per_second: u32, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        if now.duration_since(inner.second_began).as_secs() >= 1 {
            inner.second_began = now;
            inner.taken = 0;
        }
        if inner.taken >= per_second {
            return false;
        }
        inner.taken += 1;
        inner.last_number += 1;
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        if inner.kept.len() == limits::LOG_LINES_KEPT {
            inner.kept.pop_front();
        }
        let number = inner.last_number;
        inner.kept.push_back(Line { number, at_ms, level, text: text.to_owned() });
        true
    }
}

impl Shared {
    /// Writes one line in the name of the revision, within its limits.
    pub fn log(&self, level: Level, text: &str) {
        let text = cut(text, self.limits.log_line_bytes);
        if !self.lines.take(level, text, self.limits.log_lines_per_second, Instant::now()) {
            self.stats.log_dropped();
            return;
        }
        let (plugin, revision) = (&self.name, &self.digest);
        match level {
            Level::Debug => tracing::debug!(target: "quipu::plugin", %plugin, %revision, "{text}"),
            Level::Info => tracing::info!(target: "quipu::plugin", %plugin, %revision, "{text}"),
            Level::Warn => tracing::warn!(target: "quipu::plugin", %plugin, %revision, "{text}"),
            Level::Error => tracing::error!(target: "quipu::plugin", %plugin, %revision, "{text}"),
        }
    }
}

/// At most `bytes` of a text, cut between characters.
pub(in crate::policy) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

impl generated::Host for State {
    fn write(&mut self, level: generated::Level, message: String) -> wasmtime::Result<()> {
        self.host_call()?;
        let level = match level {
            generated::Level::Debug => Level::Debug,
            generated::Level::Info => Level::Info,
            generated::Level::Warn => Level::Warn,
            generated::Level::Error => Level::Error,
        };
        self.shared.log(level, &message);
        Ok(())
    }
}

/// Standard output or error of a policy, line by line. A line without an end waits for the instance's next write, cut at
/// the limit of a line.
#[derive(Clone)]
pub(in crate::policy) struct Output {
    shared: Arc<Shared>,
    level: Level,
    /// The line so far; each handle of the stream writes to the same.
    line: Arc<Mutex<Vec<u8>>>,
}

impl Output {
    pub fn new(shared: Arc<Shared>, level: Level) -> Self {
        Self { shared, level, line: Arc::default() }
    }

    fn print(&self, bytes: &[u8]) {
        let mut line = self.line.lock();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = self.shared.limits.log_line_bytes - line.len();
            line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                if !text.is_empty() {
                    self.shared.log(self.level, text);
                }
                line.clear();
            }
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_keeps_its_first_lines_each_second() {
        let lines = Lines::new();
        let start = Instant::now();
        let taken = |at: Instant| (0..1_000).filter(|n| lines.take(Level::Info, &n.to_string(), 10, at)).count();
        assert_eq!(taken(start), 10);
        assert_eq!(taken(start + Duration::from_millis(999)), 0);
        assert_eq!(taken(start + Duration::from_millis(1_001)), 10);
        let texts: Vec<String> = lines.after(8).into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["8", "9", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    }

    #[test]
    fn only_the_newest_lines_are_kept() {
        let lines = Lines::new();
        let start = Instant::now();
        (0..1_000).for_each(|_| assert!(lines.take(Level::Warn, "x", u32::MAX, start)));
        let kept = lines.after(0);
        assert_eq!(kept.len(), limits::LOG_LINES_KEPT);
        assert_eq!(kept.last().map(|line| line.number), Some(1_000));
    }

    #[test]
    fn lines_are_cut_between_characters() {
        assert_eq!(cut("aéé", 4), "aé");
        assert_eq!(cut("a", 10), "a");
    }
}
