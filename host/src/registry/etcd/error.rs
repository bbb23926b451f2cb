//! What can go wrong with the registry, and how callers of the service see it.

use std::time::Duration;

use tonic::Code;

use crate::error::{Error as Domain, Kind};
use crate::limits;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer. A write may have happened or not; all of them can be tried again.
    #[error("the registry did not answer: {0}")]
    Unavailable(String),
    /// The key has changed since the caller read it. Nothing was written.
    #[error("the key has changed meanwhile")]
    Conflict,
    /// A limit of the interface; nothing was written. One sentence.
    #[error("{0}")]
    Limit(String),
    /// The cluster or a setting does not fit. One sentence for the operator.
    #[error("{0}")]
    Refused(String),
}

/// What to tell the operator of a node that starts, if etcd knows who it is, or does not, and lets it do nothing.
pub fn denied(why: &etcd_client::Error) -> Option<Error> {
    let etcd_client::Error::GRpcStatus(status) = why else { return None };
    let is_denied = match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => true,
        // A wrong password, and none where one is needed.
        Code::InvalidArgument => {
            ["authentication failed", "user name is empty"].iter().any(|text| status.message().contains(text))
        }
        _ => false,
    };
    is_denied.then(|| {
        Error::Refused(format!(
            "etcd lets this node do nothing: {}. Check --etcd-user, --etcd-password-file, and the roles of that user.",
            status.message()
        ))
    })
}

impl From<etcd_client::Error> for Error {
    fn from(why: etcd_client::Error) -> Self {
        Self::Unavailable(why.to_string())
    }
}

impl From<Error> for Domain {
    fn from(why: Error) -> Self {
        match why {
            Error::Unavailable(why) => {
                tracing::warn!("registry: {why}");
                let detail = "The cluster's registry does not answer now; the change may have been made or not. Read the \
                              rule, then try again.";
                Self::new(Kind::Unavailable, detail)
            }
            Error::Conflict => Self::new(Kind::PreconditionFailed, "The rule has changed meanwhile. Read it again."),
            Error::Limit(detail) | Error::Refused(detail) => Self::new(Kind::InvalidArgument, detail),
        }
    }
}

/// No call waits for etcd without an end.
pub async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Unavailable(format!("no answer within {limit:?}"))),
    }
}

pub async fn bounded<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
    within(limits::REGISTRY_CALL_TIMEOUT, call).await
}
