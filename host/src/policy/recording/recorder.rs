//! One recording that is under way: it takes the lines of all its instances until it is as long as it may be.
//!
//! Lines wait in memory for whoever carries them away. The recording's own length bounds them, so no instance waits for
//! a slow reader, and none of its calls is missing in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::format::{Because, End, FORMAT, Head, Line};
use crate::policy::binding::Binding;
use crate::policy::revision::World;

/// How long a recording may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Decisions: a `select`, a `plan` or a `combine` each.
    pub decisions: u64,
    /// Bytes of all lines; the line that passes it is left out.
    pub bytes: usize,
}

/// Another recording has the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rule {0} is being recorded already")]
pub struct Busy<T>(pub T);

pub(in crate::policy) struct Recorder {
    /// Never 0, and never used again in this process.
    pub id: u64,
    closed: AtomicBool,
    bounds: Bounds,
    inner: Mutex<Inner>,
}

struct Inner {
    /// None once it is closed.
    lines: Option<mpsc::UnboundedSender<Bytes>>,
    bytes: usize,
    decisions: u64,
    instances: u64,
}

static LAST_ID: AtomicU64 = AtomicU64::new(0);

impl Recorder {
    fn new(head: Head, bounds: Bounds) -> (Self, mpsc::UnboundedReceiver<Bytes>) {
        let (lines, receiver) = mpsc::unbounded_channel();
        let recorder = Self {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            closed: AtomicBool::new(false),
            bounds,
            inner: Mutex::new(Inner { lines: Some(lines), bytes: 0, decisions: 0, instances: 0 }),
        };
        recorder.take(&Line::Recording(head));
        (recorder, receiver)
    }

    /// Nothing more is taken.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The number of a new instance.
    pub fn instance(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.instances += 1;
        inner.instances
    }

    pub fn take(&self, line: &Line) {
        let bytes = text(line);
        let mut inner = self.inner.lock();
        if inner.lines.is_none() {
            return;
        }
        if inner.bytes + bytes.len() > self.bounds.bytes {
            return self.end(&mut inner, Because::Bytes);
        }
        inner.bytes += bytes.len();
        inner.decisions += u64::from(matches!(line, Line::Selected(_) | Line::Planned(_) | Line::Combined(_)));
        if let Some(lines) = &inner.lines {
            // Whoever read them may be gone; the recording ends when they are dropped.
            let _ = lines.send(bytes);
        }
        if inner.decisions >= self.bounds.decisions {
            self.end(&mut inner, Because::Count);
        }
    }

    pub fn close(&self, because: Because) {
        self.end(&mut self.inner.lock(), because);
    }

    fn end(&self, inner: &mut Inner, because: Because) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(lines) = inner.lines.take() {
            // As in `take`.
            let _ = lines.send(text(&Line::End(End { because, decisions: inner.decisions })));
        }
    }
}

fn text(line: &Line) -> Bytes {
    // Plain data with string keys: serialising cannot fail.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// A recording for whoever reads it. Dropping it ends the recording.
pub struct Recording {
    recorder: Arc<Recorder>,
    lines: mpsc::UnboundedReceiver<Bytes>,
    /// Those that are recorded. A binding that goes with its rule is recorded no more.
    bindings: Vec<std::sync::Weak<Binding>>,
}

impl Recording {
    /// Records what these bindings, of one plugin, decide from now on. Each comes with its rule's prefix.
    pub fn begin(
        plugin: &str,
        world: World,
        bindings: &[(String, Arc<Binding>)],
        bounds: Bounds,
    ) -> Result<Self, Busy<String>> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (recorder, lines) =
            Recorder::new(Head { format: FORMAT, version, plugin: plugin.to_owned(), world }, bounds);
        let mut recording = Self { recorder: Arc::new(recorder), lines, bindings: Vec::new() };
        for (rule, binding) in bindings {
            // Those that were taken before are given back by the drop.
            binding.taping.record(&recording.recorder, rule).map_err(|()| Busy(format!("{rule:?}")))?;
            recording.bindings.push(Arc::downgrade(binding));
        }
        Ok(recording)
    }

    /// The next lines, as text; None when the recording has ended and all of it was read.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.lines.recv().await
    }

    /// The next lines if they are there.
    pub fn try_next(&mut self) -> Option<Bytes> {
        self.lines.try_recv().ok()
    }

    /// Ends it; what it holds can still be read.
    pub fn close(&self, because: Because) {
        self.recorder.close(because);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.recorder.close(Because::Stopped);
        for binding in self.bindings.iter().filter_map(std::sync::Weak::upgrade) {
            binding.taping.end(self.recorder.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::recording::format::{Answer, Selected};

    fn line(counter: &str) -> Line {
        let (counter, candidates, answer) = (counter.to_owned(), vec![1], Answer::Ok(1));
        Line::Selected(Selected { instance: 1, counter, amount: 1, key_hash: 0, candidates, answer, heard: vec![] })
    }

    fn recorder(decisions: u64, bytes: usize) -> (Recorder, mpsc::UnboundedReceiver<Bytes>) {
        let head = Head { format: FORMAT, version: "0".into(), plugin: "p".into(), world: World::Selection };
        Recorder::new(head, Bounds { decisions, bytes })
    }

    fn read(mut lines: mpsc::UnboundedReceiver<Bytes>) -> Vec<Line> {
        let lines = std::iter::from_fn(move || lines.try_recv().ok());
        lines.map(|line| serde_json::from_slice(&line).expect("a line")).collect()
    }

    #[test]
    fn it_ends_with_the_last_decision_that_was_asked_for() {
        let (recorder, lines) = recorder(2, 10_000);
        (0..5).for_each(|_| recorder.take(&line("c")));
        assert!(recorder.closed());
        let lines = read(lines);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[3], Line::End(End { because: Because::Count, decisions: 2 }));
    }

    #[test]
    fn it_grows_no_longer_than_it_may() {
        let (recorder, lines) = recorder(100, 1_000);
        (0..5).for_each(|_| recorder.take(&line("c")));
        recorder.take(&line(&"c".repeat(1_000)));
        recorder.take(&line("c"));
        let lines = read(lines);
        assert_eq!(lines.last(), Some(&Line::End(End { because: Because::Bytes, decisions: 5 })));
        assert_eq!(lines.len(), 7);
    }
}
