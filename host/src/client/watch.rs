//! `quipu counter watch`: follows server-sent events and connects anew when the stream ends.

use std::io::{BufRead, BufReader, Read};

use serde_json::Value;
use ureq::http::Method;

use super::api::{Api, Call};
use super::error::Error;
use super::output::{Output, total};
use super::pace::{Limits, Pace};
use crate::limits;

/// Prints the total whenever it changes, until `count` of them are printed. A first connection that fails is an error
/// at once; later ones are tried again.
pub fn run(api: &Api, id: &str, count: Option<u64>, output: &mut Output<'_>, limits: Limits) -> Result<(), Error> {
    let connect = || api.stream(Call::counter(Method::GET, "/watch", id));
    let mut left = count.unwrap_or(u64::MAX);
    let mut last: Option<String> = None;
    // Since when the server sends nothing at all.
    let mut silence: Option<Pace> = None;
    let mut stream = connect()?;
    loop {
        let mut events = Events::new(stream.body_mut().as_reader());
        while let Some(data) = events.next_data()? {
            let event: Value =
                serde_json::from_str(&data).map_err(|e| Error::foreign(format!("an event that is no JSON: {e}")))?;
            let now = total(&event);
            // The first event after a reconnection repeats the total that is known already.
            if last.as_ref() == Some(&now) {
                continue;
            }
            match output.style.json {
                true => output.json(&data)?,
                false => output.line(&output.number(&now))?,
            }
            last = Some(now);
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        if events.heard {
            silence = None;
        }
        let pace = silence.get_or_insert_with(|| Pace::new(limits, limits.reconnect_for));
        output.note("the connection ended; connecting again");
        stream = loop {
            let last_attempt = !pace.wait(None);
            match connect() {
                Ok(stream) if !last_attempt => break stream,
                Ok(_) => return Err(Error::foreign("event streams that end at once")),
                Err(error) if last_attempt || !passing(&error) => return Err(error),
                Err(_) => {}
            }
        };
    }
}

/// Whether a failed connection may succeed later: the server is away, or busy.
fn passing(error: &Error) -> bool {
    match error {
        Error::Refused(problem) => matches!(problem.status, 429 | 503),
        other => matches!(other, Error::Unreachable { .. } | Error::Interrupted { .. } | Error::Foreign { .. }),
    }
}

/// Reads the data of events from a `text/event-stream`.
struct Events<R> {
    lines: BufReader<R>,
    /// A whole line came, if only a comment.
    heard: bool,
}

impl<R: Read> Events<R> {
    fn new(stream: R) -> Self {
        Self { lines: BufReader::new(stream), heard: false }
    }

    /// The data of the next event; none when the stream ended or broke. An event that was cut off is dropped, as the
    /// standard says.
    fn next_data(&mut self) -> Result<Option<String>, Error> {
        let mut data = String::new();
        loop {
            let Some(line) = self.next_line()? else { return Ok(None) };
            let field =
                line.split_once(':').map_or((line.as_str(), ""), |(n, v)| (n, v.strip_prefix(' ').unwrap_or(v)));
            match field {
                ("", "") if line.is_empty() && !data.is_empty() => return Ok(Some(data)),
                ("data", value) if data.len() + value.len() > limits::CLIENT_EVENT_BYTES_MAX as usize => {
                    return Err(too_long());
                }
                ("data", value) => {
                    if !data.is_empty() {
                        data.push('\n');
                    }
                    data.push_str(value);
                }
                _ => {}
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<String>, Error> {
        let mut line = Vec::new();
        let mut limited = (&mut self.lines).take(limits::CLIENT_EVENT_BYTES_MAX);
        match limited.read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {
                self.heard = true;
                let line = String::from_utf8_lossy(&line);
                Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
            }
            Ok(n) if n as u64 == limits::CLIENT_EVENT_BYTES_MAX => Err(too_long()),
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

fn too_long() -> Error {
    Error::foreign(format!("an event of more than {} bytes", limits::CLIENT_EVENT_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(stream: &str) -> Vec<String> {
        let mut events = Events::new(stream.as_bytes());
        std::iter::from_fn(|| events.next_data().expect("short lines")).collect()
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        assert_eq!(all("data: 1\n\ndata:2\r\n\r\n"), ["1", "2"]);
        assert_eq!(all(": comment\nid: 7\nevent: total\ndata: {\"a\":1}\n\n\n\n"), ["{\"a\":1}"]);
        assert_eq!(all("data: a\ndata: b\n\n"), ["a\nb"]);
        assert_eq!(all("data: whole\n\ndata: cut off\n"), ["whole"]);
        assert_eq!(all("retry: 100\n\n"), Vec::<String>::new());
    }

    #[test]
    fn an_endless_line_is_refused() {
        let stream = "x".repeat(limits::CLIENT_EVENT_BYTES_MAX as usize + 10);
        let error = Events::new(stream.as_bytes()).next_data().expect_err("too long");
        assert_eq!(error.exit_code(), 1);
    }
}
