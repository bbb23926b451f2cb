//! The `/v1` routes of counters. Handlers parse, ask `node` and answer; what a request means is decided there.

pub mod batch;
pub mod counters;
pub mod watch;

use serde::Serialize;

use crate::error::Error;
use crate::node::write::{Added, Chosen};

/// Which policy chose a shard.
#[derive(Serialize)]
struct Selection<'a> {
    selection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl<'a> From<&'a Chosen> for Selection<'a> {
    fn from(chosen: &'a Chosen) -> Self {
        match chosen {
            Chosen::Policy { policy, fallback } => {
                let digest = policy.binding().revision.digest();
                Self { selection: Some(digest), fallback: Some(*fallback), reason: None }
            }
            Chosen::Key => Self { selection: None, fallback: None, reason: Some("idempotency_key") },
            Chosen::Caller => Self { selection: None, fallback: None, reason: Some("named_shard") },
        }
    }
}

/// Why the total that was asked for beside an addition cannot be told.
#[derive(Serialize)]
struct ValueError<'a> {
    code: &'static str,
    detail: &'a str,
}

/// Most answers to an addition fit.
const ADD_ANSWER_BYTES: usize = 256;

/// The answer to an addition: `{"id","amount","shard","shard_value","outcome","policy"}`, `"value"` and `"value_str"` where the
/// total was asked for (or `"value": null` and `"value_error"`), and `"replayed": true` in a batch.
struct AddAnswer<'a> {
    id: &'a str,
    amount: i64,
    added: &'a Added,
    /// Where it was asked for: the total, or why it cannot be told. The addition is counted in either case.
    total: Option<Result<i128, Error>>,
    /// Batches have no headers to say it in.
    says_replayed: bool,
}

impl AddAnswer<'_> {
    /// Written by hand: it is the answer that most requests get, up to ten thousand times in one.
    fn write(&self, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        out.extend_from_slice(b"{\"id\":");
        // Writing into memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, self.id);
        out.extend_from_slice(b",\"amount\":");
        out.extend_from_slice(number.format(self.amount).as_bytes());
        out.extend_from_slice(b",\"shard\":");
        out.extend_from_slice(number.format(self.added.shard).as_bytes());
        match self.added.value {
            Some(value) => {
                out.extend_from_slice(b",\"shard_value\":");
                out.extend_from_slice(number.format(value).as_bytes());
                out.extend_from_slice(b",\"outcome\":\"applied\",\"policy\":");
            }
            // Under a relaxed rule it is not known yet.
            None => out.extend_from_slice(b",\"shard_value\":null,\"outcome\":\"accepted\",\"policy\":"),
        }
        match &self.added.chosen {
            Chosen::Policy { policy, fallback } => {
                // A digest is plain ASCII.
                out.extend_from_slice(b"{\"selection\":\"");
                out.extend_from_slice(policy.binding().revision.digest().as_bytes());
                out.extend_from_slice(if *fallback { b"\",\"fallback\":true}" } else { b"\",\"fallback\":false}" });
            }
            chosen => drop(serde_json::to_writer(&mut *out, &Selection::from(chosen))),
        }
        match &self.total {
            None => {}
            Some(Ok(total)) => {
                let total = number.format(*total);
                for part in [",\"value\":", total, ",\"value_str\":\"", total, "\""] {
                    out.extend_from_slice(part.as_bytes());
                }
            }
            Some(Err(why)) => {
                out.extend_from_slice(b",\"value\":null,\"value_error\":");
                let _ = serde_json::to_writer(&mut *out, &ValueError { code: why.kind.code(), detail: &why.detail });
            }
        }
        if self.says_replayed && self.added.replayed {
            out.extend_from_slice(b",\"replayed\":true");
        }
        out.push(b'}');
    }
}

/// A total, also as text for readers that lose digits past 2^53.
#[derive(Serialize)]
struct Value {
    value: i128,
    value_str: String,
}

impl From<i128> for Value {
    fn from(value: i128) -> Self {
        Self { value, value_str: value.to_string() }
    }
}

/// The last millisecond of the year 9999: RFC 3339 has no later one.
const TIME_MS_MAX: u64 = 253_402_300_799_999;

/// A moment in RFC 3339, to the millisecond. A later one than it can say, which only a wrong clock makes, is its last.
pub fn time(since_1970_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(since_1970_ms.min(TIME_MS_MAX));
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_time_can_be_told() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(253_402_300_800_000), "9999-12-31T23:59:59.999Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    proptest! {
        #[test]
        fn the_answer_to_an_addition_is_json(
            id in "\\PC{1,20}",
            amount: i64,
            shard: u32,
            value: Option<i64>,
            replayed: bool,
            total: Option<Option<i128>>,
        ) {
            let told = |total: Option<i128>| total.ok_or_else(|| Error::new(crate::error::Kind::NoOwner, "\"nobody\""));
            let added = Added { shard, value, replayed, chosen: Chosen::Key };
            let mut out = Vec::new();
            AddAnswer { id: &id, amount, added: &added, total: total.map(told), says_replayed: true }.write(&mut out);
            let text = std::str::from_utf8(&out).expect("UTF-8");
            let read: serde_json::Value = serde_json::from_str(text).expect("JSON");
            prop_assert_eq!(read["id"].as_str(), Some(id.as_str()));
            prop_assert_eq!(read["amount"].as_i64(), Some(amount));
            prop_assert_eq!(read["shard"].as_u64(), Some(u64::from(shard)));
            prop_assert_eq!(read["shard_value"].as_i64(), value);
            prop_assert_eq!(read["outcome"].as_str(), Some(if value.is_some() { "applied" } else { "accepted" }));
            prop_assert_eq!(read["policy"]["reason"].as_str(), Some("idempotency_key"));
            prop_assert_eq!(read["value_str"].as_str().map(str::to_owned), total.flatten().map(|total| total.to_string()));
            prop_assert_eq!(read.get("value").is_some(), total.is_some());
            let error = (total == Some(None)).then_some(("no_owner", "\"nobody\""));
            prop_assert_eq!(read["value_error"]["code"].as_str().zip(read["value_error"]["detail"].as_str()), error);
            prop_assert_eq!(read["replayed"].as_bool(), replayed.then_some(true));
        }
    }
}
