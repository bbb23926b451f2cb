//! The registry of a single node: rule histories in the store's small values, one key a prefix.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::History;
use crate::error::Error;
use crate::limits;
use crate::store::Store;

const SPACE: &str = "rules";

/// Keys begin with this, since a prefix may be empty and a key may not.
fn key(prefix: &str) -> String {
    format!("={prefix}")
}

pub struct Local {
    store: Arc<dyn Store>,
}

impl Local {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Every prefix that ever had a rule.
    pub async fn load(&self) -> Result<BTreeMap<String, History>, Error> {
        let rows = self.store.scan(SPACE, "", limits::RULE_HISTORIES_MAX).await?;
        rows.into_iter()
            .map(|(key, value)| {
                let history = serde_json::from_slice(&value)
                    .map_err(|why| Error::internal(format!("the rule stored under {key:?} is not readable: {why}")))?;
                Ok((key.strip_prefix('=').unwrap_or(&key).to_owned(), history))
            })
            .collect()
    }

    /// Durable when it answers.
    pub async fn save(&self, prefix: &str, history: &History) -> Result<(), Error> {
        let value = serde_json::to_vec(history).map_err(Error::internal)?;
        Ok(self.store.put(SPACE, &key(prefix), &value).await?)
    }
}
