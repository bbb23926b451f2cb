//! Policies: uploading and removing them, what the cluster holds, who uses it, and how it fares on this node.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;

use crate::error::{Error, Kind};
use crate::http::body::{self, Body, full, json, no_content, streamed};
use crate::http::problem::Problem;
use crate::http::request::{self, Query};
use crate::http::v1::time;
use crate::node::{Node, Worker};
use crate::policy::imports::log::Level;
use crate::policy::stats::Snapshot;
use crate::policy::{Placement, Revision, World, admission, builtin};

#[derive(Serialize)]
struct RevisionAnswer {
    name: String,
    revision: String,
    world: World,
    size_bytes: usize,
    builtin: bool,
    /// Whether calls run on the serving thread or on the policy pool, and why there.
    #[serde(flatten)]
    placement: Placement,
    imports: Vec<String>,
    /// Prefixes of the rules that use it.
    used_by: Vec<String>,
    /// On this node.
    status: Snapshot,
}

#[derive(Serialize)]
struct Plugins {
    plugins: Vec<RevisionAnswer>,
}

fn answer(node: &Node, revision: &Arc<Revision>) -> RevisionAnswer {
    let rules = node.rules().list();
    let uses = rules.iter().filter(|active| active.uses(revision.digest()));
    RevisionAnswer {
        name: revision.name().to_owned(),
        revision: revision.digest().to_owned(),
        world: revision.world,
        size_bytes: revision.size_bytes,
        builtin: builtin::find(revision.name()).is_some(),
        placement: revision.placement.clone(),
        imports: revision.imports.clone(),
        used_by: uses.map(|active| active.rule.prefix.clone()).collect(),
        status: revision.snapshot(),
    }
}

pub fn list(worker: &Rc<Worker>) -> Response<Body> {
    let node = &worker.node;
    let plugins = node.catalog.list().iter().map(|revision| answer(node, revision)).collect();
    json(StatusCode::OK, &Plugins { plugins })
}

/// Every revision of one plugin, the newest first.
pub fn show(worker: &Rc<Worker>, name: &str) -> Result<Response<Body>, Problem> {
    let node = &worker.node;
    let name = crate::http::request::path_text(name, "name")?;
    let revisions = node.catalog.list();
    let plugins: Vec<_> =
        revisions.iter().filter(|revision| revision.name() == name).map(|r| answer(node, r)).collect();
    if plugins.is_empty() {
        return Err(no_such_plugin(&name).into());
    }
    Ok(json(StatusCode::OK, &Plugins { plugins }))
}

fn no_such_plugin(name: &str) -> Error {
    let shortened: String = name.chars().take(64).collect();
    Error::new(Kind::PluginNotFound, format!("There is no plugin {shortened:?}; GET /v1/plugins lists them."))
}

#[derive(Serialize)]
struct UploadAnswer<'a> {
    name: &'a str,
    revision: &'a str,
    world: World,
    imports: &'a [String],
    size_bytes: usize,
    admission: &'a admission::Report,
}

/// Admits the component in the body and stores it: 201, or 200 when these very bytes were there.
pub async fn upload(
    worker: &Rc<Worker>,
    name: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Response<Body>, Problem> {
    let name = request::path_text(name, "name")?.into_owned();
    let signature = headers.get(SIGNATURE).map(|value| value.to_str().map(str::to_owned));
    let signature = signature.transpose().map_err(|_| Error::invalid("Quipu-Signature: must be hexadecimal digits"))?;
    let _place = worker.node.place_for_upload()?;
    let bytes = body::read_long(body, worker.node.policies.component_bytes_max()).await?;
    let uploaded = worker
        .node
        .off_thread(move |node| async move { node.upload(&name, &bytes, signature.as_deref()).await })
        .await?;
    let revision = &uploaded.revision;
    let answer = UploadAnswer {
        name: revision.name(),
        revision: revision.digest(),
        world: revision.world,
        imports: &revision.imports,
        size_bytes: revision.size_bytes,
        admission: &uploaded.admission,
    };
    Ok(json(if uploaded.new { StatusCode::CREATED } else { StatusCode::OK }, &answer))
}

pub async fn delete(worker: &Rc<Worker>, name: &str, digest: &str) -> Result<Response<Body>, Problem> {
    let (name, digest) =
        (request::path_text(name, "name")?.into_owned(), request::path_text(digest, "revision")?.into_owned());
    worker.node.off_thread(move |node| async move { node.remove_plugin(&name, &digest).await }).await?;
    Ok(no_content())
}

/// Ends a revision's quarantine on this node, or the pause of its open breakers.
pub fn release(worker: &Rc<Worker>, name: &str, digest: &str) -> Result<Response<Body>, Problem> {
    let (name, digest) = (request::path_text(name, "name")?, request::path_text(digest, "revision")?);
    let revision = worker.node.release_plugin(&name, &digest)?;
    Ok(json(StatusCode::OK, &answer(&worker.node, &revision)))
}

/// Log lines of one plugin's revisions, as NDJSON; with `follow=true` the answer goes on as they come.
pub fn logs(worker: &Rc<Worker>, name: &str, query: Query<'_>) -> Result<Response<Body>, Problem> {
    let name = request::path_text(name, "name")?.into_owned();
    let follow = query.word("follow", &["true", "false"])? == Some("true");
    let mut follower = Follower { worker: worker.clone(), name, seen: HashMap::new() };
    if follower.revisions().is_empty() {
        return Err(no_such_plugin(&follower.name).into());
    }
    let first = follower.fresh_lines();
    if !follow {
        return Ok(full(StatusCode::OK, "application/x-ndjson", first));
    }
    let draining = Box::pin(worker.draining());
    let lines = stream::unfold(follower, |mut follower| async move {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        Some((Bytes::from(follower.fresh_lines()), follower))
    });
    let lines = lines.filter(|lines| std::future::ready(!lines.is_empty())).take_until(draining);
    Ok(streamed("application/x-ndjson", stream::once(std::future::ready(Bytes::from(first))).chain(lines)))
}

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// The detached Ed25519 signature of an uploaded component.
const SIGNATURE: &str = "quipu-signature";

struct Follower {
    worker: Rc<Worker>,
    name: String,
    /// Number of the last line seen, by revision.
    seen: HashMap<String, u64>,
}

#[derive(Serialize)]
struct LogLine<'a> {
    at: String,
    revision: &'a str,
    level: Level,
    text: &'a str,
}

impl Follower {
    fn revisions(&self) -> Vec<Arc<Revision>> {
        let all = self.worker.node.catalog.list();
        all.into_iter().filter(|revision| revision.name() == self.name).collect()
    }

    fn fresh_lines(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for revision in self.revisions() {
            let seen = self.seen.entry(revision.digest().to_owned()).or_default();
            for line in revision.log_lines(*seen) {
                *seen = line.number;
                let line =
                    LogLine { at: time(line.at_ms), revision: revision.digest(), level: line.level, text: &line.text };
                // Writing into memory cannot fail.
                let _ = serde_json::to_writer(&mut out, &line);
                out.push(b'\n');
            }
        }
        out
    }
}
