//! Errors as `application/problem+json` (RFC 9457), and those that only HTTP knows.

use http::{HeaderValue, Method, Response, StatusCode, header};
use serde::Serialize;

use super::body::{Body, full};
use crate::error::{Error, Kind, Outcome};

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Domain(Error),
    MalformedJson(String),
    /// In the query.
    MissingParameter(&'static str),
    /// In the body.
    MissingMember(&'static str),
    UnknownRoute,
    MethodNotAllowed {
        allow: Vec<Method>,
    },
    BodyTooLarge {
        bytes_max: usize,
    },
    BodyTooSlow,
    /// The client went away in the middle of its body.
    BodyBroken,
    Unauthorized,
    Forbidden(&'static str),
    /// The program has panicked while it answered.
    Panicked(Outcome),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Domain(error)
    }
}

/// What every problem says besides its sentence.
struct Meaning {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    outcome: Outcome,
}

fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::InvalidArgument | Kind::KeyReused | Kind::PluginRejected => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::CounterNotFound | Kind::RuleNotFound | Kind::PluginNotFound => StatusCode::NOT_FOUND,
        Kind::CounterExists
        | Kind::Overflow
        | Kind::Bound
        | Kind::BoundUnsettled
        | Kind::RuleProtected
        | Kind::NotReady
        | Kind::PluginNameTaken
        | Kind::PluginInUse => StatusCode::CONFLICT,
        Kind::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        Kind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable | Kind::UnknownOutcome | Kind::NoOwner => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl Problem {
    fn meaning(&self) -> Meaning {
        let (status, code, title) = match self {
            &Self::Panicked(outcome) => {
                let kind = Kind::Internal;
                return Meaning { status: status(kind), code: kind.code(), title: kind.title(), outcome };
            }
            Self::Domain(error) => {
                let kind = error.kind;
                return Meaning {
                    status: status(kind),
                    code: kind.code(),
                    title: kind.title(),
                    outcome: kind.outcome(),
                };
            }
            Self::MalformedJson(_) => (StatusCode::BAD_REQUEST, "malformed_json", "The body is not JSON"),
            Self::MissingParameter(_) | Self::MissingMember(_) => {
                (StatusCode::BAD_REQUEST, "missing_parameter", "A parameter is missing")
            }
            Self::UnknownRoute => (StatusCode::NOT_FOUND, "unknown_route", "There is nothing at this path"),
            Self::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The path does not take this method")
            }
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large"),
            Self::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow", "The body did not arrive in time"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "body_broken", "The body did not arrive whole"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "The admin token is missing"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "The request is not allowed"),
        };
        Meaning { status, code, title, outcome: Outcome::NotApplied }
    }

    pub fn status(&self) -> StatusCode {
        self.meaning().status
    }

    pub fn code(&self) -> &'static str {
        self.meaning().code
    }

    pub fn outcome(&self) -> Outcome {
        self.meaning().outcome
    }

    /// One sentence for the caller.
    pub fn detail(&self) -> String {
        match self {
            Self::Domain(error) => error.detail.clone(),
            Self::MalformedJson(why) => format!("The body could not be read as JSON: {why}."),
            Self::MissingParameter(name) => format!("The query parameter {name:?} is required."),
            Self::MissingMember(name) => format!("The member {name:?} of the body is required."),
            Self::UnknownRoute => "GET /openapi.json describes every path.".into(),
            Self::MethodNotAllowed { allow } => {
                let allow: Vec<_> = allow.iter().map(Method::as_str).collect();
                format!("This path takes {}.", allow.join(", "))
            }
            Self::BodyTooLarge { bytes_max } => format!("A body has at most {bytes_max} bytes here."),
            Self::BodyTooSlow => "Send the body without long pauses.".into(),
            Self::BodyBroken => "The connection ended inside the body; nothing was changed.".into(),
            Self::Unauthorized => "Send the header \"Authorization: Bearer <admin token>\".".into(),
            Self::Forbidden(why) => (*why).into(),
            Self::Panicked(_) => {
                "The request met a mistake of the program. Its log has more, under the request's id.".into()
            }
        }
    }

    pub fn into_response(self, request_id: &str) -> Response<Body> {
        let Meaning { status, code, title, outcome } = self.meaning();
        #[derive(Serialize)]
        struct Document<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            code: &'a str,
            detail: String,
            request_id: &'a str,
            outcome: &'a str,
        }
        let document = Document {
            r#type: format!("urn:quipu:problem:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: self.detail(),
            request_id,
            outcome: outcome.as_str(),
        };
        let json = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = full(status, "application/problem+json", json);
        let headers = response.headers_mut();
        match &self {
            Self::MethodNotAllowed { allow } => {
                let allow: Vec<_> = allow.iter().map(Method::as_str).collect();
                if let Ok(value) = HeaderValue::from_str(&allow.join(", ")) {
                    headers.insert(header::ALLOW, value);
                }
            }
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Domain(error) if error.kind.retryable() => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // What is left of the body is not read, so the connection cannot be used again.
            Self::BodyTooLarge { .. } | Self::BodyTooSlow | Self::BodyBroken => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        if let Ok(value) = HeaderValue::from_str(request_id) {
            headers.insert("x-request-id", value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_answer_is_unknown() {
        for kind in Kind::ALL {
            let unknown = Problem::from(Error::new(kind, "")).outcome() == Outcome::Unknown;
            assert_eq!(unknown, matches!(kind, Kind::UnknownOutcome | Kind::Internal), "{kind:?}");
        }
        assert_eq!(Problem::BodyTooSlow.outcome(), Outcome::NotApplied);
    }

    #[test]
    fn what_may_be_retried_says_when() {
        let response = Problem::from(Error::queue_full()).into_response("r1");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()["x-request-id"], "r1");
    }
}
