//! What a rule opens to its policies: `"grants": ["registry", "storage"]`.

use serde::{Deserialize, Serialize};

/// Which interfaces a rule opens. `Default` opens none: their calls answer `denied`, which is not the answer for a
/// missing key. In JSON it is the list of the names; one named twice counts once.
///
/// `shard-metrics` may be named, but every policy has them, named or not: the default policy lives on them, they tell of
/// no user's data, and the contract has no word to deny them with. The list that is shown leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<&'static str>")]
pub struct Grants {
    pub registry: bool,
    pub storage: bool,
}

/// A name that grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no grant {0:?}; a rule can grant \"registry\", \"storage\" and \"shard-metrics\"")]
pub struct UnknownGrant(String);

impl Grants {
    pub const ALL: Self = Self { registry: true, storage: true };

    /// Reads a rule's list.
    pub fn named<N: AsRef<str>>(names: &[N]) -> Result<Self, UnknownGrant> {
        let mut grants = Self::default();
        for name in names {
            match name.as_ref() {
                "registry" => grants.registry = true,
                "storage" => grants.storage = true,
                "shard-metrics" => {}
                other => return Err(UnknownGrant(other.chars().take(64).collect())),
            }
        }
        Ok(grants)
    }

    /// As a rule's list, in a fixed order.
    pub fn names(self) -> Vec<&'static str> {
        [("registry", self.registry), ("storage", self.storage)]
            .into_iter()
            .filter_map(|(name, granted)| granted.then_some(name))
            .collect()
    }
}

impl TryFrom<Vec<String>> for Grants {
    type Error = UnknownGrant;

    fn try_from(names: Vec<String>) -> Result<Self, UnknownGrant> {
        Self::named(&names)
    }
}

impl From<Grants> for Vec<&'static str> {
    fn from(grants: Grants) -> Self {
        grants.names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_list_is_read_and_written() {
        for (registry, storage) in [(false, false), (true, false), (false, true), (true, true)] {
            let grants = Grants { registry, storage };
            let text = serde_json::to_string(&grants).expect("it is a list");
            assert_eq!(serde_json::from_str::<Grants>(&text).expect("it is one"), grants);
        }
        let all = r#"["storage", "registry", "shard-metrics", "storage"]"#;
        assert_eq!(serde_json::from_str::<Grants>(all).expect("all are known"), Grants::ALL);
        assert_eq!(serde_json::to_string(&Grants::ALL).expect("it is a list"), r#"["registry","storage"]"#);
        assert_eq!(serde_json::from_str::<Grants>("[]").expect("it may be empty"), Grants::default());
    }

    #[test]
    fn an_unknown_grant_is_named() {
        let refused = serde_json::from_str::<Grants>(r#"["files"]"#).unwrap_err().to_string();
        assert!(refused.contains(r#"no grant "files""#), "{refused}");
    }
}
