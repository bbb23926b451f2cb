//! The HTTP side: one call, its answer, its errors.

use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::http::{Method, Request, Response, Uri, header};
use ureq::{Agent, AsSendBody, Body, SendBody, Timeout};

use super::error::{Error, Problem};
use crate::cli::{DEFAULT_URL, ServerArgs};
use crate::limits;

/// Everything but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// A server, by its base address.
pub struct Api {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// A request, built up by the command.
pub struct Call {
    method: Method,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
}

impl Call {
    pub fn new(method: Method, path: &str) -> Self {
        Self { method, target: path.into(), headers: Vec::new(), body: None }
    }

    /// A route of one counter. The id travels in the query, since proxies tend to decode `%2F` in paths.
    pub fn counter(method: Method, rest: &str, id: &str) -> Self {
        Self::new(method, &format!("/v1/counter{rest}")).query("id", id)
    }

    pub fn query(mut self, name: &str, value: &str) -> Self {
        let separator = if self.target.contains('?') { '&' } else { '?' };
        self.target.push_str(&format!("{separator}{name}={}", encode(value)));
        self
    }

    pub fn header(mut self, name: &'static str, value: Option<String>) -> Self {
        self.headers.extend(value.map(|value| (name, value)));
        self
    }

    pub fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }
}

/// A successful answer.
pub struct Answer {
    /// As it came, for `--json`; empty for 204.
    pub text: String,
    pub json: Value,
    /// `Idempotency-Replayed: true`: this repeats the answer of an earlier request with the same key.
    pub replayed: bool,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// It is whole soon.
    Answer,
    /// It goes on, with something at least now and then.
    Endless,
    /// It goes on, and may be silent for any time.
    Silent,
}

impl Api {
    pub fn new(server: &ServerArgs) -> Result<Self, Error> {
        let base = match server.url.trim_end_matches('/') {
            "" => DEFAULT_URL.to_owned(),
            url => url.to_owned(),
        };
        let wrong = || Error::Usage(format!("--url {}: must be http://HOST:PORT or https://HOST:PORT", server.url));
        let uri: Uri = base.parse().map_err(|_| wrong())?;
        let plain = uri.query().is_none() && matches!(uri.scheme_str(), Some("http" | "https"));
        let host = uri.host().filter(|_| plain).ok_or_else(wrong)?;
        let token = server.token.clone().filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::Usage("--token: must be visible ASCII characters without spaces".into()));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("quipu/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(limits::CLIENT_CONNECT_TIMEOUT));
        if is_loopback(host) {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().new_agent(), base, token })
    }

    /// Sends a request once and reads the whole answer. Problems of the server are errors.
    pub fn call(&self, call: Call) -> Result<Answer, Error> {
        let response = self.send(call, Wait::Answer)?;
        self.answer(response)
    }

    /// The same for an answer that may take any time.
    pub fn call_patiently(&self, call: Call) -> Result<Answer, Error> {
        let response = self.send(call, Wait::Silent)?;
        self.answer(response)
    }

    /// Sends a body of known length as it is read.
    pub fn upload(&self, call: Call, body: &mut dyn std::io::Read, bytes: usize) -> Result<Answer, Error> {
        let call = call.header("content-length", Some(bytes.to_string()));
        let request = self.request(&call, SendBody::from_reader(body))?;
        let request = self.agent.configure_request(request).timeout_global(Some(limits::CLIENT_UPLOAD_TIMEOUT)).build();
        self.answer(self.run(request)?)
    }

    fn answer(&self, mut response: Response<Body>) -> Result<Answer, Error> {
        let replayed = response.headers().get("idempotency-replayed").is_some_and(|value| value == "true");
        let text = self.text(&mut response)?;
        let json = match text.is_empty() {
            true => Value::Null,
            false => serde_json::from_str(&text).map_err(|e| Error::foreign(format!("no JSON: {e}")))?,
        };
        Ok(Answer { text, json, replayed })
    }

    /// Sends a request whose answer is a stream of events, and returns it once it has begun.
    pub fn stream(&self, call: Call) -> Result<Response<Body>, Error> {
        self.begun(call.header("accept", Some("text/event-stream".into())), Wait::Endless, "text/event-stream")
    }

    /// Sends a request whose answer is one JSON document a line, without an end when it is followed.
    pub fn lines(&self, call: Call, follow: bool) -> Result<Response<Body>, Error> {
        self.begun(call, if follow { Wait::Silent } else { Wait::Answer }, "application/x-ndjson")
    }

    fn begun(&self, call: Call, wait: Wait, mime_type: &str) -> Result<Response<Body>, Error> {
        let response = self.send(call, wait)?;
        match response.body().mime_type() {
            Some(given) if given == mime_type => Ok(response),
            other => Err(Error::foreign(format!("{} instead of {mime_type}", other.unwrap_or("no type")))),
        }
    }

    fn send(&self, call: Call, wait: Wait) -> Result<Response<Body>, Error> {
        let body = call.body.as_ref().map(Value::to_string);
        let call = call.header("content-type", body.is_some().then(|| "application/json".into()));
        let request = self.request(&call, body.unwrap_or_default())?;
        let configured = self.agent.configure_request(request);
        let request = match wait {
            Wait::Answer => configured.timeout_global(Some(limits::CLIENT_ANSWER_TIMEOUT)).build(),
            Wait::Endless => configured.timeout_per_read(Some(limits::CLIENT_WATCH_SILENCE)).build(),
            Wait::Silent => configured.build(),
        };
        self.run(request)
    }

    fn request<B>(&self, call: &Call, body: B) -> Result<Request<B>, Error> {
        let mut request = Request::builder().method(&call.method).uri(format!("{}{}", self.base, call.target));
        for (name, value) in &call.headers {
            // As bytes: an idempotency key may be any UTF-8 without control characters.
            request = request.header(*name, value.as_bytes());
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).map_err(|e| Error::Usage(e.to_string()))
    }

    fn run(&self, request: Request<impl AsSendBody>) -> Result<Response<Body>, Error> {
        let mut response = self.agent.run(request).map_err(|e| self.failure(e))?;
        match response.status().as_u16() {
            200..300 => Ok(response),
            status => Err(self.problem(status, &mut response)),
        }
    }

    fn problem(&self, status: u16, response: &mut Response<Body>) -> Error {
        let retry_after_s = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let text = match self.text(response) {
            Ok(text) => text,
            Err(error) => return error,
        };
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) if !problem.code.is_empty() => {
                Error::Refused(Box::new(Problem { status, retry_after_s, ..problem }))
            }
            _ => Error::Foreign {
                reason: format!("HTTP {status} without a problem document"),
                maybe_done: status >= 500,
            },
        }
    }

    fn text(&self, response: &mut Response<Body>) -> Result<String, Error> {
        let body = response.body_mut().with_config().limit(limits::CLIENT_ANSWER_BYTES_MAX);
        body.read_to_string().map_err(|e| self.failure(e))
    }

    /// Sorts what the transport reports by the one thing that matters: whether the server can have seen the request.
    fn failure(&self, error: ureq::Error) -> Error {
        use std::io::ErrorKind;
        let unsent = match &error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) => true,
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
            ureq::Error::Io(e) => match e.kind() {
                ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable => true,
                // The standard library has no stable kind for a failed name look-up; the text is its own.
                _ => e.raw_os_error().is_none() && e.to_string().starts_with("failed to lookup address"),
            },
            _ => false,
        };
        let url = self.base.clone();
        let reason = match error {
            ureq::Error::Io(e) => e.to_string(),
            other => other.to_string(),
        };
        if unsent { Error::Unreachable { url, reason } } else { Error::Interrupted { url, reason } }
    }
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_an_id_survives_the_query() {
        let id = "a b/ü?&=#%+\n";
        let call = Call::counter(Method::GET, "/add", id).query("read", "cached");
        assert_eq!(call.target, "/v1/counter/add?id=a%20b%2F%C3%BC%3F%26%3D%23%25%2B%0A&read=cached");
        assert_eq!(percent_encoding::percent_decode_str(&encode(id)).decode_utf8_lossy(), id);
    }

    #[test]
    fn loopback_hosts_are_recognised() {
        for (host, expected) in [("localhost", true), ("127.0.0.1", true), ("[::1]", true), ("example.org", false)] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
