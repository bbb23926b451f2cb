//! `quipu:policy/registry`: small settings below the plugin's own prefix, which all nodes see.

use super::backend::{self, Opened, Space};
use super::generated::registry::{Entry, Error, Host};
use crate::policy::limits;
use crate::policy::state::State;

impl Host for State {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        self.io_call()?;
        let opened = self.registry(&key, 1);
        Ok(async { Ok(opened?.within(|backend, plugin| backend.get(Space::Registry, plugin, &key)).await?) }.await)
    }

    async fn list(&mut self, prefix: String, limit: u32) -> wasmtime::Result<Result<Vec<Entry>, Error>> {
        self.io_call()?;
        let limit = limit.min(limits::LIST_ENTRIES_MAX) as usize;
        let max = self.shared.limits.host_call_bytes;
        let opened = self.registry(&prefix, 0);
        let listed = async {
            let entries =
                opened?.within(|backend, plugin| backend.list(Space::Registry, plugin, &prefix, limit)).await?;
            let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
            if bytes > max {
                return Err(Error::Limit(format!("the answer has {bytes} bytes; one call brings at most {max}")));
            }
            Ok(entries.into_iter().map(|(key, value)| Entry { key, value }).collect())
        };
        Ok(listed.await)
    }

    async fn put(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        self.io_call()?;
        let opened = self.registry(&key, 1);
        Ok(async { Ok(opened?.within(|backend, plugin| backend.put(Space::Registry, plugin, &key, &value)).await?) }
            .await)
    }
}

impl State {
    fn registry(&self, key: &str, key_bytes_min: usize) -> Result<Opened, Error> {
        if !self.grants.registry {
            return Err(Error::Denied);
        }
        Ok(self.open(key, key_bytes_min..=limits::REGISTRY_KEY_BYTES_MAX)?)
    }
}

impl From<backend::Error> for Error {
    fn from(error: backend::Error) -> Self {
        match error {
            backend::Error::Limit(what) => Self::Limit(what),
            backend::Error::Unavailable => Self::Unavailable,
        }
    }
}
