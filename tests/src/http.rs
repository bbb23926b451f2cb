//! A small HTTP/1.1 client over one kept-alive connection. It reads strictly, and can be made to send anything.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// The longest that any answer may take: beyond every deadline of the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// No head of an answer is longer; guards the tests against a server that never ends one.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// A piece of a path or of a query, percent-encoded.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

pub struct Client {
    stream: BufReader<TcpStream>,
    host: String,
    /// Kept between requests, so that a load of them allocates little.
    out: Vec<u8>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream), host: addr.to_string(), out: Vec::new() })
    }

    /// The socket, to send what no client should.
    pub fn socket(&mut self) -> &mut TcpStream {
        self.stream.get_mut()
    }

    /// Sends one request. `Host` and `Content-Length` are added unless given.
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let given = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        self.out.clear();
        write!(self.out, "{method} {target} HTTP/1.1\r\n")?;
        if !given("host") {
            write!(self.out, "host: {}\r\n", self.host)?;
        }
        if !given("content-length") && !given("transfer-encoding") && (!body.is_empty() || method != "GET") {
            write!(self.out, "content-length: {}\r\n", body.len())?;
        }
        for (name, value) in headers {
            write!(self.out, "{name}: {value}\r\n")?;
        }
        self.out.extend_from_slice(b"\r\n");
        self.out.extend_from_slice(body);
        let out = std::mem::take(&mut self.out);
        let sent = self.socket().write_all(&out);
        self.out = out;
        sent
    }

    /// Reads one whole answer to a request that was not HEAD.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let mut answer = self.head()?;
        if answer.status == 204 || answer.status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk()? {
                answer.body.extend_from_slice(&chunk);
            }
            return Ok(answer);
        }
        let length = answer.header("content-length").ok_or_else(|| bad("an answer without a length"))?;
        let length: usize = length.parse().map_err(|_| bad("a Content-Length that is no number"))?;
        answer.body.resize(length, 0);
        self.stream.read_exact(&mut answer.body)?;
        Ok(answer)
    }

    pub fn call(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        self.send(method, target, headers, body)?;
        if method == "HEAD" { self.head() } else { self.receive() }
    }

    /// Reads the head of an answer; its body follows on the connection.
    pub fn head(&mut self) -> io::Result<Answer> {
        loop {
            let answer = self.any_head()?;
            // `100 Continue` and its like come before the answer.
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }

    fn any_head(&mut self) -> io::Result<Answer> {
        let mut head = (&mut self.stream).take(HEAD_BYTES_MAX);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| bad(&format!("not a status line: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let field = line.strip_suffix("\r\n").ok_or_else(|| bad("a header line without an end"))?;
            if field.is_empty() {
                return Ok(Answer { status, headers, body: Vec::new() });
            }
            let (name, value) = field.split_once(':').ok_or_else(|| bad(&format!("not a header: {field:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads one chunk of a chunked body; None at its end.
    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = usize::from_str_radix(line.trim(), 16).map_err(|_| bad(&format!("not a chunk: {line:?}")))?;
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        if !chunk.ends_with(b"\r\n") {
            return Err(bad("a chunk without an end"));
        }
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    /// Whether the server has closed the connection and sent nothing (more) before.
    pub fn closed(&mut self) -> bool {
        matches!(self.stream.fill_buf(), Ok(bytes) if bytes.is_empty())
            || self.stream.fill_buf().is_err_and(|why| why.kind() == io::ErrorKind::ConnectionReset)
    }

    /// Asks for a stream of server-sent events and reads the head of the answer.
    pub fn events(mut self, target: &str) -> io::Result<Events> {
        self.send("GET", target, &[("accept", "text/event-stream")], b"")?;
        let head = self.head()?;
        assert_eq!(head.status, 200, "{target}");
        assert_eq!(head.header("content-type"), Some("text/event-stream"), "{target}");
        Ok(Events { client: self, text: String::new() })
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A stream of server-sent events whose data is JSON.
pub struct Events {
    client: Client,
    text: String,
}

impl Events {
    /// The data of the next event, comments left out; None when the stream has ended.
    pub fn read(&mut self) -> io::Result<Option<Value>> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let data: Vec<&str> = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                let data = data.join("\n");
                self.text = rest.to_owned();
                if !data.is_empty() {
                    return serde_json::from_str(&data).map(Some).map_err(io::Error::from);
                }
            }
            match self.client.chunk()? {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk).map_err(|_| bad("not UTF-8"))?),
                None => return Ok(None),
            }
        }
    }
}

/// One whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("not JSON ({why}): {:?}", self.text()))
    }

    /// The answer itself if it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// All digits of a total.
    #[track_caller]
    pub fn total(&self) -> i128 {
        let json = self.json();
        json["value_str"].as_str().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no total: {json}"))
    }

    /// Checks that this is a whole `application/problem+json` answer with this status and code, and returns it.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.any_problem(code)
    }

    #[track_caller]
    fn any_problem(&self, code: &str) -> Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text());
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], self.status, "{problem}");
        for member in ["type", "title", "detail", "request_id"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {problem}");
        }
        assert!(matches!(problem["outcome"].as_str(), Some("not_applied" | "unknown")), "{problem}");
        problem
    }
}
