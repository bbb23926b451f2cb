//! Reading what a request says: ids, queries, keys and JSON. Every failure names the field and what to do.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::problem::Problem;
use crate::counter::Id;
use crate::error::Error;
use crate::node::write::check_key;

/// A percent-encoded piece of a path, or of a query, where `+` is a space.
fn decoded<'a>(text: &'a str, what: &str) -> Result<Cow<'a, str>, Problem> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Error::invalid(format!("{what}: the percent-encoded bytes are not UTF-8")).into())
}

pub fn path_id(text: &str) -> Result<Id, Problem> {
    Ok(Id::new(&decoded(text, "id")?).map_err(Error::from)?)
}

pub fn path_text<'a>(text: &'a str, what: &str) -> Result<Cow<'a, str>, Problem> {
    decoded(text, what)
}

/// The query of a request.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a>(pub Option<&'a str>);

impl<'a> Query<'a> {
    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Result<Option<Cow<'a, str>>, Problem> {
        let pairs = self.0.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        for (key, value) in pairs {
            if key == name {
                // Raw pluses are spaces; a literal one is written %2B.
                return Ok(Some(match value.contains('+') {
                    false => decoded(value, name)?,
                    true => decoded(&value.replace('+', " "), name)?.into_owned().into(),
                }));
            }
        }
        Ok(None)
    }

    pub fn required(&self, name: &'static str) -> Result<Cow<'a, str>, Problem> {
        self.get(name)?.ok_or(Problem::MissingParameter(name))
    }

    pub fn id(&self) -> Result<Id, Problem> {
        Ok(Id::new(&self.required("id")?).map_err(Error::from)?)
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let number =
            text.parse().map_err(|_| Error::invalid(format!("{name}: must be a whole number of 0 or more")))?;
        Ok(Some(number))
    }

    /// One of a few words; None when the parameter is absent.
    pub fn word(&self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>, Problem> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let known = words.iter().find(|word| **word == text);
        let known = known.ok_or_else(|| Error::invalid(format!("{name}: must be one of {}", words.join(", "))))?;
        Ok(Some(known))
    }
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The `Idempotency-Key` header.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = std::str::from_utf8(value.as_bytes()).map_err(|_| Error::invalid("Idempotency-Key: must be UTF-8"))?;
    check_key(key)?;
    Ok(Some(key.into()))
}

/// A JSON object. An empty body is `T`'s default where it has one: see [`json_or_default`].
pub fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // Derived readers would take a list for an object, its elements for the members in their order.
    if body.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice::<IgnoredAny>(body).map_err(json_problem)?;
        return Err(Error::invalid("the body does not fit: it must be a JSON object, not a list").into());
    }
    serde_json::from_slice(body).map_err(json_problem)
}

pub fn json_or_default<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) { Ok(T::default()) } else { json(body) }
}

/// Syntax is 400, a well-formed document with wrong contents 422.
pub fn json_problem(why: serde_json::Error) -> Problem {
    let text = why.to_string();
    // Numbers beyond every type are well formed; the reader counts them as bad syntax.
    match why.is_data() || text.starts_with("number out of range") {
        true => Error::invalid(format!("the body does not fit: {text}")).into(),
        false => Problem::MalformedJson(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_are_decoded_once() {
        let query = Query(Some("id=a%2Fb+c%2Bd&id=second&empty=&flag"));
        assert_eq!(query.get("id").expect("valid").as_deref(), Some("a/b c+d"));
        assert_eq!(query.get("empty").expect("valid").as_deref(), Some(""));
        assert_eq!(query.get("flag").expect("valid").as_deref(), Some(""));
        assert_eq!(query.get("none").expect("valid"), None);
        assert!(Query(Some("id=%FF")).get("id").is_err());
    }

    #[test]
    fn syntax_and_contents_are_told_apart() {
        type Amounts = std::collections::BTreeMap<String, i64>;
        let amounts = |text: &str| json::<Amounts>(text.as_bytes()).map_err(|why| why.code());
        let huge = "9".repeat(400);
        for text in
            ["{\"a\":1.5}", "{\"a\":99999999999999999999}", "{\"a\":1e999}", &format!("{{\"a\":{huge}}}"), " [1]"]
        {
            assert_eq!(amounts(text), Err("invalid_argument"), "{text}");
        }
        for text in ["{\"a\":1", "[1,", "", "{\"a\":1}x"] {
            assert_eq!(amounts(text), Err("malformed_json"), "{text}");
        }
        assert_eq!(amounts("{\"a\":9223372036854775807}"), Ok(Amounts::from([("a".into(), i64::MAX)])));
    }

    proptest! {
        #[test]
        fn no_query_panics(text in "[ -~é%+&=]{0,40}", name in "[a-z]{1,3}") {
            let query = Query(Some(&text));
            let _ = query.get(&name);
            let _ = query.number(&name);
            let _ = query.id();
            let _ = path_id(&text);
        }

        #[test]
        fn an_encoded_id_is_read_back(id in "\\PC{1,40}") {
            let encoded = percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC).to_string();
            let read = path_id(&encoded).expect("valid");
            prop_assert_eq!(read.as_str(), id.as_str());
            let query = format!("id={encoded}");
            prop_assert_eq!(Query(Some(&query)).id().expect("valid").as_str().to_owned(), id);
        }
    }
}
