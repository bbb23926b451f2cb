//! What can go wrong with a command, the sentence that tells it, and the exit code.

use std::path::PathBuf;

use serde::Deserialize;

use crate::settings::EXIT_USAGE;

/// `EX_UNAVAILABLE` of sysexits.h.
const EXIT_UNREACHABLE: u8 = 69;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    /// Nothing was sent.
    #[error(
        "the server at {url} cannot be reached ({reason}); start one with `quipu serve`, or give its address with --url"
    )]
    Unreachable { url: String, reason: String },
    /// The request was sent, or part of it, and no answer came.
    #[error("no answer came from {url} ({reason})")]
    Interrupted { url: String, reason: String },
    #[error("{0}")]
    Refused(Box<Problem>),
    /// An answer that this version cannot read.
    #[error("the answer is not Quipu's ({reason}); is --url right?")]
    Foreign {
        reason: String,
        /// The request may have been carried out all the same: a gateway gave up on it, or the answer was garbled.
        maybe_done: bool,
    },
    /// An addition that may or may not have been counted.
    #[error("{cause}; {advice}")]
    Unknown { cause: Box<Error>, advice: String },
    /// Everything else was printed; some of what was asked for failed.
    #[error("{failed} of {asked} failed")]
    Partly { failed: usize, asked: usize },
    /// What was to be tried here did not hold.
    #[error("{0}")]
    Failed(String),
    /// A file or folder on this machine.
    #[error("{path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Unreachable { .. } => EXIT_UNREACHABLE,
            // The reader has seen enough, as in `quipu counter list --all | head`.
            Self::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe => 0,
            Self::Interrupted { .. } | Self::Refused(_) | Self::Foreign { .. } | Self::Unknown { .. } => 1,
            Self::Partly { .. } | Self::Failed(_) | Self::File { .. } | Self::Output(_) => 1,
        }
    }

    pub fn foreign(reason: impl Into<String>) -> Self {
        Self::Foreign { reason: reason.into(), maybe_done: true }
    }

    /// A stable word for `--json`: the server's code, or one of the client's own.
    pub fn code(&self) -> &str {
        match self {
            Self::Usage(_) => "usage",
            Self::Unreachable { .. } => "unreachable",
            Self::Interrupted { .. } => "interrupted",
            Self::Refused(problem) => &problem.code,
            Self::Foreign { .. } => "foreign_answer",
            Self::Unknown { .. } => "unknown_outcome",
            Self::Partly { .. } => "partly_failed",
            Self::Failed(_) => "failed",
            Self::File { .. } => "file",
            Self::Output(_) => "output",
        }
    }

    /// Whether an addition that ended so may have been counted.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Interrupted { .. } | Self::Unknown { .. } => true,
            Self::Refused(problem) => problem.outcome.as_deref() == Some("unknown"),
            Self::Foreign { maybe_done, .. } => *maybe_done,
            Self::Usage(_) | Self::Unreachable { .. } | Self::Partly { .. } => false,
            Self::Failed(_) | Self::File { .. } | Self::Output(_) => false,
        }
    }
}

/// An `application/problem+json` answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub title: String,
    pub status: u16,
    pub code: String,
    pub detail: String,
    pub request_id: String,
    pub outcome: Option<String>,
    /// Seconds, from the header `Retry-After`.
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// What a person can do about it.
    fn advice(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "counter_not_found" => "add to it with `quipu counter add`, or find its id with `quipu counter list`",
            "counter_exists" => "choose another id, or add to this one",
            "overflow" => "nothing was changed",
            "bound" => "nothing was changed; `quipu rule list` shows the bounds",
            "key_reused" => "use a new --key for a new addition",
            "unauthorized" => "give the admin token with --token or QUIPU_TOKEN",
            "forbidden" => "check --token; a server without a token answers this on its own machine only",
            "queue_full" | "unavailable" | "no_owner" | "too_slow" => "try again in a moment",
            "unknown_outcome" => "it may or may not have been done",
            "rule_not_found" => "`quipu rule list` shows the rules",
            "rule_protected" => "replace it with `quipu rule set ''`",
            "precondition_failed" => "look at the rule with `quipu rule list` and use its version",
            "plugin_in_use" => "`quipu rule list` shows the rules",
            "plugin_rejected" => "`quipu plugin test FILE` runs the same checks without a server",
            "plugin_not_found" => "`quipu plugin list` shows the names",
            "unknown_route" => "is the server of this version, and --url its base address?",
            "internal" => "the server's log has more under this request id",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = if self.detail.is_empty() { &self.title } else { &self.detail };
        write!(f, "{} ({}", text.trim_end_matches('.'), self.code)?;
        if !self.request_id.is_empty() {
            write!(f, ", request {}", self.request_id)?;
        }
        write!(f, ")")?;
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}
