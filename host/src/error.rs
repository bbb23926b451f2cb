//! The one error type of the domain: few kinds, each with a stable code, an outcome and whether trying again can help.
//!
//! It knows nothing of HTTP: `http::problem` turns it into an answer at the very end.

use std::fmt;

/// What became of an operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing changed and nothing will.
    NotApplied,
    /// It may have been counted. The same request with the same idempotency key can always be asked again.
    Unknown,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotApplied => "not_applied",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    InvalidArgument,
    CounterNotFound,
    CounterExists,
    /// A partial would leave the signed 64-bit range.
    Overflow,
    /// The rule's `min` or `max`.
    Bound,
    /// A bound would come into effect where parts of a counter are on shards that do not judge it.
    BoundUnsettled,
    /// The idempotency key stands for another operation on this counter.
    KeyReused,
    /// A queue is at its limit.
    QueueFull,
    /// The store is being reopened, or the node is stopping.
    Unavailable,
    /// The write was sent and no answer came.
    UnknownOutcome,
    /// Shards that nobody serves.
    NoOwner,
    RuleNotFound,
    /// The rule for every id can be replaced, not deleted.
    RuleProtected,
    PreconditionFailed,
    /// A live node could not put the rule in force; the old one stays.
    NotReady,
    PluginNotFound,
    /// The component failed a check of its admission.
    PluginRejected,
    /// A name that only built-in policies have.
    PluginNameTaken,
    PluginInUse,
    Internal,
}

impl Kind {
    /// Every kind, for the OpenAPI document's test.
    pub const ALL: [Self; 20] = [
        Self::InvalidArgument,
        Self::CounterNotFound,
        Self::CounterExists,
        Self::Overflow,
        Self::Bound,
        Self::BoundUnsettled,
        Self::KeyReused,
        Self::QueueFull,
        Self::Unavailable,
        Self::UnknownOutcome,
        Self::NoOwner,
        Self::RuleNotFound,
        Self::RuleProtected,
        Self::PreconditionFailed,
        Self::NotReady,
        Self::PluginNotFound,
        Self::PluginRejected,
        Self::PluginNameTaken,
        Self::PluginInUse,
        Self::Internal,
    ];

    /// Stable: clients branch on it.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::CounterNotFound => "counter_not_found",
            Self::CounterExists => "counter_exists",
            Self::Overflow => "overflow",
            Self::Bound => "bound",
            Self::BoundUnsettled => "bound_unsettled",
            Self::KeyReused => "key_reused",
            Self::QueueFull => "queue_full",
            Self::Unavailable => "unavailable",
            Self::UnknownOutcome => "unknown_outcome",
            Self::NoOwner => "no_owner",
            Self::RuleNotFound => "rule_not_found",
            Self::RuleProtected => "rule_protected",
            Self::PreconditionFailed => "precondition_failed",
            Self::NotReady => "not_ready",
            Self::PluginNotFound => "plugin_not_found",
            Self::PluginRejected => "plugin_rejected",
            Self::PluginNameTaken => "plugin_name_taken",
            Self::PluginInUse => "plugin_in_use",
            Self::Internal => "internal",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidArgument => "A value is not acceptable",
            Self::CounterNotFound => "No such counter",
            Self::CounterExists => "The counter exists already",
            Self::Overflow => "The value would leave the signed 64-bit range",
            Self::Bound => "The value would leave the rule's bounds",
            Self::BoundUnsettled => "A counter is on several shards, where no bound can be kept",
            Self::KeyReused => "The idempotency key was used for another operation",
            Self::QueueFull => "Too many operations are waiting",
            Self::Unavailable => "The service cannot write now",
            Self::UnknownOutcome => "The outcome is not known",
            Self::NoOwner => "A shard is not served now",
            Self::RuleNotFound => "No such rule",
            Self::RuleProtected => "This rule cannot be deleted",
            Self::PreconditionFailed => "The rule has changed meanwhile",
            Self::NotReady => "A node is not ready for the rule",
            Self::PluginNotFound => "No such plugin",
            Self::PluginRejected => "The component is not admitted",
            Self::PluginNameTaken => "The name is taken",
            Self::PluginInUse => "The revision is in use",
            Self::Internal => "An error inside the service",
        }
    }

    pub fn outcome(self) -> Outcome {
        match self {
            Self::UnknownOutcome | Self::Internal => Outcome::Unknown,
            Self::InvalidArgument
            | Self::CounterNotFound
            | Self::CounterExists
            | Self::Overflow
            | Self::Bound
            | Self::BoundUnsettled
            | Self::KeyReused
            | Self::QueueFull
            | Self::Unavailable
            | Self::NoOwner
            | Self::RuleNotFound
            | Self::RuleProtected
            | Self::PreconditionFailed
            | Self::NotReady
            | Self::PluginNotFound
            | Self::PluginRejected
            | Self::PluginNameTaken
            | Self::PluginInUse => Outcome::NotApplied,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retryable(self) -> bool {
        matches!(self, Self::QueueFull | Self::Unavailable | Self::UnknownOutcome | Self::NoOwner)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    /// One sentence for the caller: what was wrong, where, and what to do. No internals.
    pub detail: String,
}

impl Error {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub fn invalid(detail: impl fmt::Display) -> Self {
        Self::new(Kind::InvalidArgument, detail.to_string())
    }

    pub fn unknown() -> Self {
        Self::new(
            Kind::UnknownOutcome,
            "The write was under way when its answer was lost; it may have been counted. With an Idempotency-Key the same request can be sent again safely.",
        )
    }

    pub fn unavailable() -> Self {
        Self::new(
            Kind::Unavailable,
            "The store takes no writes now: its disk is full, it is being opened again, or the node is stopping. Nothing was \
             changed; try again in a moment.",
        )
    }

    pub fn queue_full() -> Self {
        Self::new(
            Kind::QueueFull,
            "Too many operations are waiting to be written; nothing was changed. Try again after Retry-After seconds.",
        )
    }

    /// The caller learns that something broke; the log learns what.
    pub fn internal(why: impl fmt::Display) -> Self {
        tracing::error!("internal error: {why}");
        Self::new(Kind::Internal, "The service met an error of its own; its log has the details.")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.code(), self.detail)
    }
}

impl std::error::Error for Error {}

impl From<crate::counter::id::Invalid> for Error {
    fn from(why: crate::counter::id::Invalid) -> Self {
        Self::invalid(why)
    }
}

impl From<crate::counter::Refused> for Error {
    fn from(why: crate::counter::Refused) -> Self {
        use crate::counter::Refused;
        let kind = match why {
            Refused::Overflow => Kind::Overflow,
            Refused::BelowMin { .. } | Refused::AboveMax { .. } => Kind::Bound,
        };
        Self::new(kind, format!("Nothing was changed: {why}."))
    }
}

impl From<crate::shard::Refusal> for Error {
    fn from(why: crate::shard::Refusal) -> Self {
        use crate::shard::Refusal;
        match why {
            Refusal::Arithmetic(why) => why.into(),
            Refusal::Exists => Self::new(Kind::CounterExists, "A counter with this id exists already."),
            Refusal::KeyReused => Self::new(
                Kind::KeyReused,
                "This Idempotency-Key was used on this counter with another kind or amount. A new operation needs a new key.",
            ),
            // Peers see this refusal and recover from it; it reaches a caller only when their stream is broken.
            Refusal::Gap | Refusal::Forgotten { .. } => Self::unknown(),
        }
    }
}

impl From<crate::store::Error> for Error {
    fn from(why: crate::store::Error) -> Self {
        match why {
            crate::store::Error::NotApplied(_) => Self::unavailable(),
            why => Self::internal(why),
        }
    }
}

impl From<crate::commit::Rejected> for Error {
    fn from(why: crate::commit::Rejected) -> Self {
        use crate::commit::Rejected;
        match why {
            Rejected::Full => Self::queue_full(),
            Rejected::Unavailable | Rejected::Stopped => Self::unavailable(),
        }
    }
}
