//! `quipu:policy/storage`: key-values in the plugin's own space, and partials read-only.

use super::backend::{self, Opened, Space};
use super::generated::storage::{Error, Host};
use crate::policy::limits;
use crate::policy::state::State;

impl Host for State {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        self.io_call()?;
        let opened = self.storage(&key);
        Ok(async { Ok(opened?.within(|backend, plugin| backend.get(Space::Storage, plugin, &key)).await?) }.await)
    }

    async fn put(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        self.io_call()?;
        let opened = self.storage(&key);
        Ok(async { Ok(opened?.within(|backend, plugin| backend.put(Space::Storage, plugin, &key, &value)).await?) }
            .await)
    }

    async fn delete(&mut self, key: String) -> wasmtime::Result<Result<(), Error>> {
        self.io_call()?;
        let opened = self.storage(&key);
        Ok(async { Ok(opened?.within(|backend, plugin| backend.delete(Space::Storage, plugin, &key)).await?) }.await)
    }

    async fn partial(&mut self, counter: String, shard: u32) -> wasmtime::Result<Result<Option<i64>, Error>> {
        self.io_call()?;
        // A counter's id has the same length limits as a key.
        let opened = self.storage(&counter);
        Ok(async { Ok(opened?.within(|backend, _| backend.partial(&counter, shard)).await?) }.await)
    }
}

impl State {
    fn storage(&self, key: &str) -> Result<Opened, Error> {
        if !self.grants.storage {
            return Err(Error::Denied);
        }
        backend::check_key(key, 1..=limits::STORAGE_KEY_BYTES_MAX)?;
        Ok(self.open()?)
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
