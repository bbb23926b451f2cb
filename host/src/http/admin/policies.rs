//! The emergency switch: all policies off, or on again.

use std::rc::Rc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::http::body::{Body, json};
use crate::http::problem::Problem;
use crate::http::request;
use crate::node::Worker;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    /// False: native choices answer everything, at once.
    enabled: bool,
}

/// The switch lasts until it is set again, restarts included, unless the node is started with `--policies off`.
pub async fn policies(worker: &Rc<Worker>, head: &Parts, body: Bytes) -> Result<Response<Body>, Problem> {
    if head.method == Method::PUT {
        let Switch { enabled } = request::json(&body)?;
        worker.node.switch_policies(enabled).await?;
    }
    Ok(json(StatusCode::OK, &Switch { enabled: worker.node.policies.enabled() }))
}
