//! The lines of a recording, one JSON document each: a head, what happened to each instance in its order, and an end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::policy::fault::{Fault, Kind};
use crate::policy::imports::Grants;
use crate::policy::imports::backend::{self, Space};
use crate::policy::revision::World;
use crate::policy::view::{Plan, ShardInfo, View};

/// Rises when a reader of the older format could misread the newer one.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// The first line.
    Recording(Head),
    /// An instance begins.
    Made(Made),
    Refreshed(Refreshed),
    Selected(Selected),
    Planned(Planned),
    Combined(Combined),
    /// The last line. Without it the recording was cut off, and what is there is good.
    End(End),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub format: u32,
    /// Of the program that recorded.
    pub version: String,
    pub plugin: String,
    pub world: World,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Counts the instances of a recording from 1.
    pub instance: u64,
    /// Prefix of the rule that it serves.
    pub rule: String,
    pub revision: String,
    pub config: String,
    pub grants: Grants,
    /// It ran on the pool, with the pool's limits.
    pub pooled: bool,
    pub seed: Seed,
    pub answer: Answer<()>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Heard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refreshed {
    pub instance: u64,
    pub version: u64,
    pub shards: Vec<Shard>,
    pub answer: Answer<()>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Heard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selected {
    pub instance: u64,
    pub counter: String,
    pub amount: i64,
    pub key_hash: u64,
    pub candidates: Vec<u32>,
    pub answer: Answer<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Heard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub instance: u64,
    pub counter: String,
    pub key_hash: u64,
    pub shards: Vec<u32>,
    pub max_age_ms: u32,
    pub answer: Answer<Plan>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Heard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Combined {
    pub instance: u64,
    /// Shard and value.
    pub partials: Vec<(u32, i64)>,
    /// A decimal number of up to 128 bits, hence a text.
    pub answer: Answer<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Heard>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub because: Because,
    pub decisions: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// As many decisions as were asked for.
    Count,
    Seconds,
    /// The recording is as long as one may be.
    Bytes,
    /// One call of the policy asked the host more than a recording keeps.
    HostCalls,
    /// The node stops.
    Stopped,
}

/// What a policy answered, or why it did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    Ok(T),
    /// `configure` refused the config, in the guest's words.
    Refused(String),
    Fault {
        kind: Kind,
        detail: String,
    },
}

impl<T> Answer<T> {
    pub fn of(answer: Result<T, &Fault>) -> Self {
        match answer {
            Ok(answer) => Self::Ok(answer),
            Err(fault) => Self::Fault { kind: fault.kind, detail: fault.detail.clone() },
        }
    }
}

/// What the host answered during one call, in its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Heard {
    /// Nanoseconds since 1970.
    WallClock {
        ns: u64,
    },
    MonotonicClock {
        ns: u64,
    },
    NodeCpu {
        cpu: f64,
    },
    Get {
        space: Space,
        key: String,
        answer: Result<Option<Blob>, backend::Error>,
    },
    List {
        space: Space,
        prefix: String,
        limit: usize,
        answer: Result<Vec<(String, Blob)>, backend::Error>,
    },
    Put {
        space: Space,
        key: String,
        answer: Result<(), backend::Error>,
    },
    Delete {
        space: Space,
        key: String,
        answer: Result<(), backend::Error>,
    },
    Partial {
        counter: String,
        shard: u32,
        answer: Result<Option<i64>, backend::Error>,
    },
}

/// Bytes, in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(|why| serde::de::Error::custom(format!("no base64: {why}")))
    }
}

/// What an instance's random numbers come from, in base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl Seed {
    pub(in crate::policy) fn draw() -> Self {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        Self(seed)
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Blob(bytes) = Blob::deserialize(deserializer)?;
        let bytes = bytes.try_into().map_err(|_| serde::de::Error::custom("a seed has 32 bytes"))?;
        Ok(Self(bytes))
    }
}

/// A [`ShardInfo`]. JSON knows no NaN: a CPU use that nobody knows is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    pub shard: u32,
    pub available: bool,
    pub local: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_cpu: Option<f64>,
    pub queued: u32,
}

impl From<&ShardInfo> for Shard {
    fn from(info: &ShardInfo) -> Self {
        let &ShardInfo { shard, available, local, owner_cpu, queued } = info;
        Self { shard, available, local, owner_cpu: Some(owner_cpu).filter(|cpu| !cpu.is_nan()), queued }
    }
}

impl Refreshed {
    pub fn view(&self) -> View {
        let info = |shard: &Shard| {
            let &Shard { shard, available, local, owner_cpu, queued } = shard;
            ShardInfo { shard, available, local, owner_cpu: owner_cpu.unwrap_or(f64::NAN), queued }
        };
        View { version: self.version, shards: self.shards.iter().map(info).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_survives_its_text() {
        let heard = vec![
            Heard::WallClock { ns: u64::MAX },
            Heard::NodeCpu { cpu: 0.1 + 0.2 },
            Heard::Get { space: Space::Registry, key: "k\n".into(), answer: Ok(Some(Blob(vec![0, 255]))) },
            Heard::List {
                space: Space::Storage,
                prefix: "".into(),
                limit: 3,
                answer: Err(backend::Error::Unavailable),
            },
            Heard::Put { space: Space::Storage, key: "k".into(), answer: Err(backend::Error::Limit("full".into())) },
            Heard::Partial { counter: "c".into(), shard: 1, answer: Ok(Some(i64::MIN)) },
        ];
        let shards = [0.25, f64::NAN]
            .map(|owner_cpu| Shard::from(&ShardInfo { shard: 1, available: true, local: false, owner_cpu, queued: 9 }));
        let head = Head { format: FORMAT, version: "0".into(), plugin: "p".into(), world: World::Selection };
        for line in [
            Line::Recording(head),
            Line::Made(Made {
                instance: 1,
                rule: "a/".into(),
                revision: "sha256:00".into(),
                config: "x".into(),
                grants: Grants::ALL,
                pooled: true,
                seed: Seed([7; 32]),
                answer: Answer::Refused("no".into()),
                heard,
            }),
            Line::Refreshed(Refreshed {
                instance: 1,
                version: 3,
                shards: shards.into(),
                answer: Answer::Ok(()),
                heard: vec![],
            }),
            Line::Selected(Selected {
                instance: 1,
                counter: "é".into(),
                amount: i64::MIN,
                key_hash: u64::MAX,
                candidates: vec![3, 1],
                answer: Answer::Fault { kind: Kind::Trap, detail: "it stopped".into() },
                heard: vec![],
            }),
            Line::Planned(Planned {
                instance: 2,
                counter: "c".into(),
                key_hash: 1,
                shards: vec![],
                max_age_ms: 5,
                answer: Answer::Ok(Plan::Only(vec![1])),
                heard: vec![],
            }),
            Line::Combined(Combined {
                instance: 2,
                partials: vec![(1, i64::MIN)],
                answer: Answer::Ok(i128::MIN.to_string()),
                heard: vec![],
            }),
            Line::End(End { because: Because::Count, decisions: 1 }),
        ] {
            let text = serde_json::to_string(&line).expect("it is plain data");
            let again: Line = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(again, line, "{text}");
        }
        let seed = serde_json::from_str::<Seed>("\"AAAA\"").unwrap_err().to_string();
        assert!(seed.contains("32 bytes"), "{seed}");
    }
}
