//! What can go wrong with one call of a policy. Callers never see it as an error: the native choice answers, and the
//! fault is counted under its kind.

use serde::{Deserialize, Serialize};

/// Kinds of faults, for counters. Stable names: they are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// The guest trapped: an unreachable, a stack overflow, an exit, an answer that breaks the component ABI.
    Trap,
    /// The call used up its time.
    Deadline,
    /// The guest asked for more memory or table elements than it may have, and then trapped.
    Memory,
    /// It made more host calls than one call may, or moved more bytes in one of them or in its answer.
    HostCalls,
    /// The answer was none of the candidates, or a plan named a shard that was not asked about, or one twice.
    NotACandidate,
    /// Its calls took longer than a serving thread can spare, so many in a row that the breaker opened. Their answers were used.
    Slow,
    /// `combine` answered with an error, or `configure` refused a config that it took before.
    Refused,
    /// Too many calls wait for the pool.
    QueueFull,
    /// The machine is busy, and a policy whose calls take long has used its share of a thread: it was not asked.
    ShareUsed,
    /// The breaker is open: the policy was not asked.
    BreakerOpen,
    /// Policies are switched off, or the node has no room for another instance.
    Unavailable,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::HostCalls,
        Self::NotACandidate,
        Self::Slow,
        Self::Refused,
        Self::QueueFull,
        Self::ShareUsed,
        Self::BreakerOpen,
        Self::Unavailable,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::HostCalls => "host_calls",
            Self::NotACandidate => "not_a_candidate",
            Self::Slow => "slow",
            Self::Refused => "refused",
            Self::QueueFull => "queue_full",
            Self::ShareUsed => "share_used",
            Self::BreakerOpen => "breaker_open",
            Self::Unavailable => "unavailable",
        }
    }

    /// The guest is to blame: its instance is dropped, and the breaker counts it.
    pub fn is_the_guests(self) -> bool {
        match self {
            Self::Trap | Self::Deadline | Self::Memory | Self::HostCalls | Self::NotACandidate | Self::Slow => true,
            Self::Refused | Self::QueueFull | Self::ShareUsed | Self::BreakerOpen | Self::Unavailable => false,
        }
    }
}

/// One fault: its kind, and what to tell the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.name())]
pub struct Fault {
    pub kind: Kind,
    pub detail: String,
}

impl Fault {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}
