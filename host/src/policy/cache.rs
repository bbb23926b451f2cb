//! Compiled code on disk, so that a start costs no compilation.
//!
//! An entry is named by the component's digest and the engine's configuration, and begins with an HMAC-SHA256 under a
//! key that only this user can read. Compiled code is run as it is, so nothing is loaded whose MAC is not ours: a
//! changed or foreign entry is compiled anew. The cache holds nothing that cannot be made again; failures to write it
//! are logged and otherwise ignored.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::Sha256;
use wasmtime::component::Component;

use super::engine::Error;
use super::limits;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    key: [u8; KEY_BYTES],
    /// Of the engine's version and configuration.
    configuration: u64,
}

impl Cache {
    /// Opens the directory, or makes it. Refuses one that others can write: they could replace the key.
    pub fn open(path: PathBuf, wasm: &wasmtime::Engine) -> Result<Self, Error> {
        let failed = |reason: String| Error::Cache { path: path.clone(), reason };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| failed(error.to_string()))?;
        let directory = fs::metadata(&path).map_err(|error| failed(error.to_string()))?;
        private(&directory, 0o022).map_err(|what| failed(format!("the directory {what}")))?;
        let key = key(&path.join("key")).map_err(failed)?;
        let mut hasher = DefaultHasher::new();
        wasm.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { path, key, configuration: hasher.finish() })
    }

    fn file(&self, digest: &str) -> PathBuf {
        self.path.join(format!("{}-{:016x}.cwasm", digest.trim_start_matches("sha256:"), self.configuration))
    }

    /// The MAC covers the name too, so an entry cannot stand in for another.
    fn mac(&self, digest: &str, code: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("any length of key will do");
        mac.update(&self.configuration.to_le_bytes());
        mac.update(digest.as_bytes());
        mac.update(code);
        mac
    }

    /// Whether there is an entry; what it is worth shows when it is read.
    pub fn has(&self, digest: &str) -> bool {
        self.file(digest).exists()
    }

    /// The compiled component, if there is one that we wrote.
    pub fn get(&self, digest: &str, wasm: &wasmtime::Engine) -> Option<Component> {
        let file = self.file(digest);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, file = %file.display(), "cannot read compiled code; compiling anew");
                }
                return None;
            }
        };
        let (mac, code) = bytes.split_at_checked(MAC_BYTES)?;
        if self.mac(digest, code).verify_slice(mac).is_err() {
            tracing::warn!(file = %file.display(), "compiled code was not written by this node, or was changed; compiling anew");
            return None;
        }
        match deserialize(wasm, code) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "compiled code does not load; compiling anew");
                None
            }
        }
    }

    /// Keeps compiled code. Whole or not at all: it is written beside and then renamed.
    pub fn put(&self, digest: &str, component: &Component) {
        let written = component.serialize().map_err(|error| format!("{error:#}")).and_then(|code| {
            let mac = self.mac(digest, &code).finalize().into_bytes();
            self.write(&self.file(digest), &[&mac, &code]).map_err(|error| error.to_string())
        });
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.path.display(), "cannot keep compiled code; it is compiled again next time");
        }
        if let Err(error) = self.trim() {
            tracing::warn!(%error, path = %self.path.display(), "cannot trim the cache of compiled code");
        }
    }

    fn write(&self, file: &Path, parts: &[&[u8]]) -> io::Result<()> {
        // Unique, so that two loads of one component do not write into each other's file.
        let beside = self.path.join(format!("{:016x}.partial", rand::rng().next_u64()));
        let written = (|| {
            let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            for part in parts {
                out.write_all(part)?;
            }
            fs::rename(&beside, file)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// Removes the oldest entries over the limit, and what an interrupted write left.
    fn trim(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "cwasm" || extension == "partial") {
                entries.push((entry.metadata()?.modified()?, path));
            }
        }
        entries.sort();
        let over = entries.len().saturating_sub(limits::CACHE_ENTRIES_MAX);
        entries.iter().take(over).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

#[allow(unsafe_code)]
fn deserialize(wasm: &wasmtime::Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the caller verified the MAC, so these are bytes that `Component::serialize` made for a holder of our key,
    // under the same version and configuration of the engine.
    unsafe { Component::deserialize(wasm, code) }
}

/// The key, made on first use.
fn key(file: &Path) -> Result<[u8; KEY_BYTES], String> {
    let failed = |error: io::Error| format!("the key file: {error}");
    let metadata = match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_key(file).and_then(|()| fs::symlink_metadata(file)).map_err(failed)?
        }
        found => found.map_err(failed)?,
    };
    private(&metadata, 0o077).map_err(|what| format!("the key file {what}"))?;
    let bytes = fs::read(file).map_err(failed)?;
    bytes.try_into().map_err(|_| "the key file is damaged; remove it, and everything is compiled anew".to_owned())
}

/// Whole or not at all, and one for all: several nodes may open a directory for the first time at once.
fn make_key(file: &Path) -> io::Result<()> {
    let mut key = [0; KEY_BYTES];
    rand::rng().fill_bytes(&mut key);
    let beside = file.with_extension(format!("{:016x}.partial", rand::rng().next_u64()));
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let made = out.write_all(&key).and_then(|()| out.sync_all()).and_then(|()| fs::hard_link(&beside, file));
    let _ = fs::remove_file(&beside);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Ours, and without these rights for others.
fn private(metadata: &fs::Metadata, forbidden: u32) -> Result<(), &'static str> {
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err("belongs to another user");
    }
    if metadata.mode() & forbidden != 0 {
        return Err("can be used by other users; take their rights away (chmod go-rwx)");
    }
    Ok(())
}
