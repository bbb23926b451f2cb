//! Health, metrics, the API document and the dashboard.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, Response, StatusCode, header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::json;

use super::body::{Body, full, json};
use crate::node::{Node, Worker};

/// The process lives. It says nothing about the store: restarting the process would not mend that.
pub fn healthz() -> Response<Body> {
    json(StatusCode::OK, &json!({ "status": "ok" }))
}

/// The node takes writes.
pub fn readyz(worker: &Rc<Worker>) -> Response<Body> {
    if worker.node.ready() {
        return json(StatusCode::OK, &json!({ "status": "ready" }));
    }
    json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "not ready", "reason": "the store is not open" }))
}

pub fn openapi() -> Response<Body> {
    full(StatusCode::OK, "application/json", super::openapi::DOCUMENT)
}

pub fn dashboard() -> Response<Body> {
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";
    let mut response = full(StatusCode::OK, "text/html; charset=utf-8", include_str!("ui.html"));
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

pub fn metrics(worker: &Rc<Worker>) -> Response<Body> {
    let mut registry = Registry::with_prefix("quipu");
    registry.register_collector(Box::new(Metrics(worker.node.clone())));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => full(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
        Err(_) => full(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the metrics could not be written"),
    }
}

struct Metrics(Arc<Node>);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Families of one collector, written one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> std::fmt::Result {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> std::fmt::Result {
        let metric = ConstGauge::new(value);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn seconds(&mut self, name: &str, help: &str, nanos: u64) -> std::fmt::Result {
        let metric = ConstCounter::new(nanos as f64 / 1e9);
        metric.encode(self.0.encode_descriptor(name, help, Some(&Unit::Seconds), metric.metric_type())?)
    }

    fn family<'a>(
        &'a mut self,
        name: &'a str,
        help: &'a str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'a>, std::fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut families = Families(encoder);
        node(&self.0, &mut families)?;
        policies(&self.0, &mut families)
    }
}

fn node(node: &Node, families: &mut Families<'_>) -> std::fmt::Result {
    let (commits, stats) = (&node.commits, &node.commits.stats);
    let resident: usize = commits.tables.iter().map(|table| table.partials.read().len()).sum();
    families.gauge("ready", "1 when the node takes writes", f64::from(u8::from(node.ready())))?;
    families.gauge(
        "cpu_ratio",
        "CPU use of this node, 0 to 1 of what it may use",
        node.stats.cpu_micros.load(Ordering::Relaxed) as f64 / 1e6,
    )?;
    let clock = node.stats.clock_steps.seen();
    families.counter("clock_steps", "Times the wall clock was set by a second or more", clock.count)?;
    families.gauge(
        "clock_offset_seconds",
        "How far the wall clock is ahead of what it would say had nobody set it since the process began",
        clock.offset_ms as f64 / 1e3,
    )?;
    families.gauge("connections", "Open connections", node.stats.connections.load(Ordering::Relaxed) as f64)?;
    families.gauge("watches", "Open watches", node.stats.watches.load(Ordering::Relaxed) as f64)?;
    families.gauge("queued_operations", "Operations waiting to be journaled", commits.queued() as f64)?;
    let widened = node.stats.widened.load(Ordering::Relaxed);
    families.counter(
        "spread_widened",
        "Additions that found all usual shards saturated and could go to more",
        widened,
    )?;
    families.gauge("resident_partials", "Partials in memory", resident as f64)?;
    families.gauge(
        "journal_uncovered_bytes",
        "Journal that no checkpoint covers yet",
        node.store.journal_bytes() as f64,
    )?;
    families.gauge(
        "standby_shards",
        "Shards of other nodes whose journals are followed, for a short takeover",
        commits.standbys.followed() as f64,
    )?;
    families.gauge(
        "standby_records",
        "Counters and idempotency records in memory for those shards",
        commits.standbys.records() as f64,
    )?;
    families.gauge(
        "recent_keys",
        "Idempotency records that no checkpoint holds yet",
        stats.recent_keys.load(Ordering::Relaxed) as f64,
    )?;
    families.counter(
        "operations",
        "Operations answered after their journal entry",
        stats.operations.load(Ordering::Relaxed),
    )?;
    families.counter(
        "journal_entries",
        "Journal entries written, one per shard and group",
        stats.entries.load(Ordering::Relaxed),
    )?;
    families.counter(
        "journal_groups",
        "Durable writes, each for all shards that had operations",
        stats.groups.load(Ordering::Relaxed),
    )?;
    families.seconds("journal_write", "Time inside durable writes", stats.append_nanos.load(Ordering::Relaxed))?;
    families.counter(
        "store_recoveries",
        "Times the store failed and was opened again",
        stats.recoveries.load(Ordering::Relaxed),
    )?;
    families.counter("checkpoints", "Checkpoints taken of a shard", stats.checkpoints.load(Ordering::Relaxed))?;
    families.counter(
        "checkpoint_failures",
        "Checkpoints that failed and are tried again",
        stats.checkpoint_failures.load(Ordering::Relaxed),
    )?;
    families.counter(
        "evictions",
        "Partials forgotten from memory because many are resident",
        stats.evictions.load(Ordering::Relaxed),
    )?;
    let lost = node.stats.relaxed_lost.load(Ordering::Relaxed) + stats.relaxed_lost.load(Ordering::Relaxed);
    families.counter("relaxed_lost", "Relaxed operations that were accepted and could not be journaled", lost)
}

/// Labels are (plugin, revision) and, for faults, the kind.
fn policies(node: &Node, families: &mut Families<'_>) -> std::fmt::Result {
    let revisions: Vec<_> = node
        .catalog
        .list()
        .into_iter()
        .map(|revision| {
            let snapshot = revision.snapshot();
            (revision, snapshot)
        })
        .collect();
    let mut calls = families.family("policy_calls", "Calls that reached a policy", MetricType::Counter)?;
    for (revision, snapshot) in &revisions {
        let labels = [("plugin", revision.name()), ("revision", revision.digest())];
        calls.encode_family(&labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&snapshot.calls, None)?;
    }
    let mut faults = families.family(
        "policy_faults",
        "Calls answered by the native choice instead, by kind of fault",
        MetricType::Counter,
    )?;
    for (revision, snapshot) in &revisions {
        for (kind, count) in &snapshot.faults {
            let labels = [("plugin", revision.name()), ("revision", revision.digest()), ("kind", kind)];
            faults.encode_family(&labels)?.encode_counter::<[(&str, &str); 0], _, u64>(count, None)?;
        }
    }
    let mut memory =
        families.family("policy_memory_peak_bytes", "Most linear memory one instance ever had", MetricType::Gauge)?;
    for (revision, snapshot) in &revisions {
        let labels = [("plugin", revision.name()), ("revision", revision.digest())];
        memory.encode_family(&labels)?.encode_gauge(&(snapshot.memory_peak_bytes as f64))?;
    }
    let mut latency =
        families.family("policy_latency_ns", "Quantiles of the sampled time of one call", MetricType::Gauge)?;
    for (revision, snapshot) in &revisions {
        for (quantile, nanos) in
            [("0.5", snapshot.latency.p50_ns), ("0.9", snapshot.latency.p90_ns), ("0.99", snapshot.latency.p99_ns)]
        {
            let labels = [("plugin", revision.name()), ("revision", revision.digest()), ("quantile", quantile)];
            latency.encode_family(&labels)?.encode_gauge(&(nanos as f64))?;
        }
    }
    Ok(())
}
