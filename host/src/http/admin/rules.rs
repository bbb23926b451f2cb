//! Setting, listing, deleting and rolling back rules.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::counter::Rule;
use crate::error::Error;
use crate::http::body::{Body, json, no_content};
use crate::http::problem::Problem;
use crate::http::request::{self, Query};
use crate::node::rollout::{ActiveShadow, Compared};
use crate::node::{ActiveRule, Node, Worker};
use crate::policy::{Binding, Placement};
use crate::registry::Precondition;

/// A rule as it is shown.
#[derive(Serialize)]
pub(super) struct RuleAnswer<'a> {
    #[serde(flatten)]
    rule: &'a Rule,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary_ended: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'a str>,
    /// How the shadow's answers compare, on this node and since the rule was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadowed: Option<Compared>,
    /// Policies that do not run on this node's serving threads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    on_pool: Vec<OnPool<'a>>,
}

#[derive(Serialize)]
struct OnPool<'a> {
    plugin: &'a str,
    revision: &'a str,
    because: &'a str,
}

fn on_pool(binding: &Binding) -> Option<OnPool<'_>> {
    let revision = &binding.revision;
    match &revision.placement {
        Placement::Inline => None,
        Placement::Pooled(because) => Some(OnPool { plugin: revision.name(), revision: revision.digest(), because }),
    }
}

impl<'a> From<&'a Arc<ActiveRule>> for RuleAnswer<'a> {
    fn from(active: &'a Arc<ActiveRule>) -> Self {
        Self {
            rule: &active.rule,
            version: active.version,
            canary_ended: active.canary_ended.as_deref(),
            degraded: active.degraded.as_deref(),
            shadowed: active.shadow.as_ref().map(ActiveShadow::compared),
            on_pool: active.bindings().filter_map(|binding| on_pool(binding)).collect(),
        }
    }
}

#[derive(Serialize)]
struct RulesAnswer<'a> {
    rules: Vec<RuleAnswer<'a>>,
}

pub async fn rules(
    worker: &Rc<Worker>,
    head: &Parts,
    query: Query<'_>,
    body: Bytes,
) -> Result<Response<Body>, Problem> {
    match head.method {
        Method::PUT => set(worker, &head.headers, query, &body).await,
        Method::DELETE => delete(worker, &head.headers, query).await,
        _ => {
            let rules = worker.node.rules().list();
            Ok(json(StatusCode::OK, &RulesAnswer { rules: rules.iter().map(RuleAnswer::from).collect() }))
        }
    }
}

async fn set(
    worker: &Rc<Worker>,
    headers: &HeaderMap,
    query: Query<'_>,
    body: &Bytes,
) -> Result<Response<Body>, Problem> {
    #[derive(Deserialize)]
    struct Named {
        r#match: Option<IgnoredAny>,
    }
    // A rule for every counter is meant only when it is said.
    if request::json::<Named>(body)?.r#match.is_none() {
        return Err(Problem::MissingMember("match"));
    }
    let rule: Rule = request::json(body)?;
    let precondition = precondition(headers)?;
    let allow_missing = query.word("allow_missing", &["1", "true"])?.is_some();
    let set = move |node: Arc<Node>| async move { node.set_rule(rule, precondition, allow_missing).await };
    let active = worker.node.off_thread(set).await?;
    Ok(with_etag(&active))
}

async fn delete(worker: &Rc<Worker>, headers: &HeaderMap, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let prefix = query.required("match")?;
    let (prefix, precondition) = (prefix.into_owned(), precondition(headers)?);
    // To its end, also when the client goes away.
    let delete = move |node: Arc<Node>| async move { node.delete_rule(&prefix, precondition).await };
    worker.node.off_thread(delete).await?;
    Ok(no_content())
}

/// Answers the rule that is in force again; 204 when there was none before.
pub async fn roll_back(worker: &Rc<Worker>, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let prefix = query.required("match")?.into_owned();
    let active = worker.node.off_thread(move |node| async move { node.roll_back_rule(&prefix).await }).await?;
    Ok(active.as_ref().map_or_else(no_content, with_etag))
}

fn with_etag(active: &Arc<ActiveRule>) -> Response<Body> {
    let mut response = json(StatusCode::OK, &RuleAnswer::from(active));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", active.version)) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// `If-Match: "7"`, `If-Match: *` or `If-None-Match: *`; versions are those in the rules' answers.
fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default().trim());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Precondition::None),
        (Some("*"), None) => Ok(Precondition::Exists),
        (None, Some("*")) => Ok(Precondition::Absent),
        (Some(version), None) => {
            let version = version.trim_matches('"').parse();
            Ok(Precondition::Version(
                version.map_err(|_| Error::invalid("If-Match: must be a rule's version, as in \"7\", or *"))?,
            ))
        }
        _ => Err(Error::invalid("If-None-Match: only * is understood, and not beside If-Match").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Option<Precondition> {
        let headers = headers
            .iter()
            .map(|&(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        precondition(&headers.collect()).ok()
    }

    #[test]
    fn preconditions_are_read() {
        assert_eq!(read(&[]), Some(Precondition::None));
        assert_eq!(read(&[("if-match", "\"12\"")]), Some(Precondition::Version(12)));
        assert_eq!(read(&[("if-match", "*")]), Some(Precondition::Exists));
        assert_eq!(read(&[("if-none-match", "*")]), Some(Precondition::Absent));
        assert_eq!(read(&[("if-match", "yesterday")]), None);
        assert_eq!(read(&[("if-none-match", "\"12\"")]), None);
    }
}
