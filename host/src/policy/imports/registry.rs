//! `quipu:policy/registry`: small settings below the plugin's own prefix, which all nodes see.
//!
//! On the pool the backend is asked and waited for. A policy that never writes runs inline, where its mirror answers.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use super::backend::{self, Opened, Space};
use super::generated::registry::{Entry, Error, Host};
use super::mirror::Mirror;
use crate::policy::limits;
use crate::policy::recording::format::{Blob, Heard};
use crate::policy::recording::tape::asked;
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
            let entries = opened?.within(|backend, plugin| backend.list(Space::Registry, plugin, &prefix, limit)).await;
            brought(entries?, max)
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

/// What one call may bring.
fn brought(entries: Vec<(String, Vec<u8>)>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
    let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > bytes_max {
        return Err(Error::Limit(format!("the answer has {bytes} bytes; one call brings at most {bytes_max}")));
    }
    Ok(entries.into_iter().map(|(key, value)| Entry { key, value }).collect())
}

/// The functions that only read, answered by the mirror. A component that imports `put` too runs on the pool.
pub(super) fn link_inline(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut registry = linker.instance("quipu:policy/registry@1.0.0")?;
    registry.func_wrap("get", |mut store: StoreContextMut<'_, State>, (key,): (String,)| {
        let state = store.data_mut();
        state.io_call()?;
        Ok((state.mirrored_get(&key),))
    })?;
    registry.func_wrap("list", |mut store: StoreContextMut<'_, State>, (prefix, limit): (String, u32)| {
        let state = store.data_mut();
        state.io_call()?;
        let limit = limit.min(limits::LIST_ENTRIES_MAX) as usize;
        Ok((state.mirrored_list(&prefix, limit),))
    })
}

impl State {
    fn registry(&self, key: &str, key_bytes_min: usize) -> Result<Opened, Error> {
        self.may_read(key, key_bytes_min)?;
        Ok(self.open()?)
    }

    fn may_read(&self, key: &str, key_bytes_min: usize) -> Result<(), Error> {
        if !self.grants.registry {
            return Err(Error::Denied);
        }
        Ok(backend::check_key(key, key_bytes_min..=limits::REGISTRY_KEY_BYTES_MAX)?)
    }

    fn mirror(&self) -> Result<&Mirror, backend::Error> {
        self.mirror.as_deref().ok_or(backend::Error::Unavailable)
    }

    fn mirrored_get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.may_read(key, 1)?;
        let live = || self.mirror().map(|mirror| mirror.get(key));
        let Some(tape) = &self.tape else { return Ok(live()?) };
        let heard = || {
            let answer = live().map(|value| value.map(Blob));
            Heard::Get { space: Space::Registry, key: key.to_owned(), answer }
        };
        match tape.answer(|| asked::get(Space::Registry, key), heard) {
            Some(Heard::Get { answer, .. }) => Ok(answer?.map(|Blob(value)| value)),
            _ => Err(Error::Unavailable),
        }
    }

    fn mirrored_list(&self, prefix: &str, limit: usize) -> Result<Vec<Entry>, Error> {
        self.may_read(prefix, 0)?;
        let max = self.shared.limits.host_call_bytes;
        let live = || self.mirror().map(|mirror| mirror.list(prefix, limit));
        let Some(tape) = &self.tape else { return brought(live()?, max) };
        let heard = || {
            let answer = live().map(|list| list.into_iter().map(|(key, value)| (key, Blob(value))).collect());
            Heard::List { space: Space::Registry, prefix: prefix.to_owned(), limit, answer }
        };
        match tape.answer(|| asked::list(Space::Registry, prefix, limit), heard) {
            Some(Heard::List { answer, .. }) => {
                brought(answer?.into_iter().map(|(key, Blob(value))| (key, value)).collect(), max)
            }
            _ => Err(Error::Unavailable),
        }
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
