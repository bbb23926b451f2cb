//! The Redis serialization protocol (RESP), versions 2 and 3: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! Commands come as arrays of bulk strings. The other form, a line of words, is not taken: a page in a browser could send
//! such a line to a port of this machine inside of what it posts.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use crate::limits;

/// The words of one command: its name and what follows.
pub type Words = SmallVec<[Bytes; 4]>;

/// What came is no command, and what follows it cannot be told apart: the connection ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

/// Longest line before a word: a sign and the digits of a 64-bit number.
const NUMBER_BYTES_MAX: usize = 21;

/// Takes the next command off the front. None: it has not come whole yet.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Words>, Malformed> {
    let Some((words, end)) = find(buffer)? else { return Ok(None) };
    let command = buffer.split_to(end).freeze();
    Ok(Some(words.into_iter().map(|word| command.slice(word)).collect()))
}

type Found = (SmallVec<[Range<usize>; 4]>, usize);

fn find(bytes: &[u8]) -> Result<Option<Found>, Malformed> {
    match bytes.first() {
        None => return Ok(None),
        Some(b'*') => {}
        Some(_) => return Err(Malformed("a command is an array of bulk strings and begins with '*'".into())),
    }
    let Some((count, mut at)) = number(bytes, 1)? else { return Ok(None) };
    let max = limits::RESP_WORDS_MAX;
    let count = usize::try_from(count).ok().filter(|&count| (1..=max).contains(&count));
    let Some(count) = count else { return Err(Malformed(format!("a command has 1 to {max} words"))) };
    let mut words = SmallVec::new();
    for _ in 0..count {
        match bytes.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(_) => return Err(Malformed("a word of a command is a bulk string and begins with '$'".into())),
        }
        let Some((length, begin)) = number(bytes, at + 1)? else { return Ok(None) };
        let max = limits::RESP_WORD_BYTES_MAX;
        let length = usize::try_from(length).ok().filter(|&length| length <= max);
        let Some(length) = length else { return Err(Malformed(format!("a word has 0 to {max} bytes"))) };
        let end = begin + length;
        match bytes.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => {}
            Some(_) => return Err(Malformed("a word is longer than it says".into())),
        }
        words.push(begin..end);
        at = end + 2;
    }
    Ok(Some((words, at)))
}

/// The number at a place, and the place behind its line.
fn number(bytes: &[u8], at: usize) -> Result<Option<(i64, usize)>, Malformed> {
    let rest = &bytes[at..];
    let Some(length) = rest.iter().take(NUMBER_BYTES_MAX + 1).position(|&byte| byte == b'\r') else {
        return if rest.len() > NUMBER_BYTES_MAX { Err(Malformed("a length has no end".into())) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&rest[..length]).ok();
    let number = text.and_then(|text| text.parse().ok()).ok_or_else(|| Malformed("a length is no number".into()))?;
    match rest.get(length + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((number, at + length + 2))),
        Some(_) => Err(Malformed("a line ends with CR and LF".into())),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple(&'static str),
    Integer(i64),
    Bulk(Bytes),
    Nil,
    Array(Vec<Reply>),
    Map(Vec<(&'static str, Reply)>),
    /// A word in capitals that programs can tell it by, and a sentence.
    Error(String, String),
}

/// Which version replies are written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Two,
    Three,
}

impl Reply {
    pub fn bulk(text: impl Into<Bytes>) -> Self {
        Self::Bulk(text.into())
    }

    pub fn error(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Error(code.into(), detail.into())
    }

    pub fn write(&self, version: Version, out: &mut Vec<u8>) {
        match self {
            Self::Simple(text) => line(out, b'+', text),
            Self::Integer(number) => line(out, b':', itoa::Buffer::new().format(*number)),
            Self::Bulk(bytes) => {
                head(out, b'$', bytes.len());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Nil => out.extend_from_slice(if version == Version::Two { b"$-1\r\n" } else { b"_\r\n" }),
            Self::Array(replies) => {
                head(out, b'*', replies.len());
                replies.iter().for_each(|reply| reply.write(version, out));
            }
            Self::Map(pairs) => {
                match version {
                    Version::Two => head(out, b'*', pairs.len() * 2),
                    Version::Three => head(out, b'%', pairs.len()),
                }
                for (name, value) in pairs {
                    Self::Bulk(Bytes::from_static(name.as_bytes())).write(version, out);
                    value.write(version, out);
                }
            }
            Self::Error(code, detail) => {
                // A line, whatever a client had in what is told back to it.
                line(out, b'-', &format!("{code} {detail}").replace(['\r', '\n'], " "));
            }
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn head(out: &mut Vec<u8>, kind: u8, count: usize) {
    line(out, kind, itoa::Buffer::new().format(count));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(words: &[Vec<u8>]) -> Vec<u8> {
        let mut out = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    proptest! {
        #[test]
        fn commands_are_found_wherever_the_bytes_are_cut(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6), 1..6),
            cut in 1usize..40,
        ) {
            let bytes: Vec<u8> = commands.iter().flat_map(|words| encoded(words)).collect();
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(words) = take(&mut buffer).expect("well formed") {
                    found.push(words.iter().map(|word| word.to_vec()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(found, commands);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(prop_oneof![
            Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'-'), b'0'..=b'9', any::<u8>(),
        ], 0..60)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }
    }

    #[test]
    fn what_is_no_command_is_named() {
        let refused = |text: &str| take(&mut BytesMut::from(text)).expect_err(text).0;
        assert!(refused("INCR x\r\n").contains("begins with '*'"));
        assert!(refused("POST / HTTP/1.1\r\n").contains("begins with '*'"));
        assert!(refused("*0\r\n").contains("1 to"));
        assert!(refused("*-1\r\n").contains("1 to"));
        assert!(refused("*9999999999\r\n").contains("1 to"));
        assert!(refused("*x\r\n").contains("no number"));
        assert!(refused("*1111111111111111111111").contains("no end"));
        assert!(refused("*1\rx").contains("CR and LF"));
        assert!(refused("*1\r\n:5\r\n").contains("begins with '$'"));
        assert!(refused("*1\r\n$-1\r\n").contains("0 to"));
        assert!(refused("*1\r\n$99999999\r\n").contains("0 to"));
        assert!(refused("*1\r\n$2\r\nabc\r\n").contains("longer"));
    }

    #[test]
    fn replies_are_written_in_both_versions() {
        let written = |reply: &Reply, version| {
            let mut out = Vec::new();
            reply.write(version, &mut out);
            String::from_utf8(out).expect("text")
        };
        let both = |reply: &Reply| [Version::Two, Version::Three].map(|version| written(reply, version));
        assert_eq!(both(&Reply::Integer(-7)), [":-7\r\n", ":-7\r\n"]);
        assert_eq!(both(&Reply::Nil), ["$-1\r\n", "_\r\n"]);
        assert_eq!(
            both(&Reply::Map(vec![("a", Reply::Integer(1))])),
            ["*2\r\n$1\r\na\r\n:1\r\n", "%1\r\n$1\r\na\r\n:1\r\n"]
        );
        let array = Reply::Array(vec![Reply::bulk("x"), Reply::Simple("OK")]);
        assert_eq!(written(&array, Version::Two), "*2\r\n$1\r\nx\r\n+OK\r\n");
        assert_eq!(
            written(&Reply::error("ERR", "a\r\n+OK"), Version::Two),
            "-ERR a  +OK\r\n",
            "one line, whatever it says"
        );
    }
}
