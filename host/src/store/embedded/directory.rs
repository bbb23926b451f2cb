//! The data directory: who may open it, and what is in it.
//!
//! `lock` is locked as long as a process has the directory open. `format` names the format's version and the number of
//! shards; it is durable before anything else is written, so data without it is damage.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use tracing::info;

use super::super::Error;

/// 2: entries and idempotency records have journal time. What a directory of format 1 holds is read as it is.
const VERSION: u32 = 2;

/// An opened directory. Dropping it lets another process have it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory if it is missing, locks it, and checks that it is ours to read.
    pub fn open(path: &Path, shards: u32) -> Result<Self, Error> {
        let path = std::path::absolute(path).map_err(|why| refused(path, &why))?;
        std::fs::create_dir_all(&path).map_err(|why| refused(&path, &why))?;
        let lock = lock(&path)?;
        let directory = Self { path, _lock: lock };
        match std::fs::read_to_string(directory.path.join("format")) {
            Ok(text) => directory.check(&text, shards)?,
            Err(why) if why.kind() == ErrorKind::NotFound => directory.create(shards)?,
            Err(why) => return Err(refused(&directory.path, &why)),
        }
        for part in [directory.log(), directory.lsm()] {
            std::fs::create_dir_all(&part).map_err(|why| refused(&part, &why))?;
        }
        sync(&directory.path).map_err(|why| refused(&directory.path, &why))?;
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn lsm(&self) -> PathBuf {
        self.path.join("lsm")
    }

    fn check(&self, text: &str, shards: u32) -> Result<(), Error> {
        let dir = self.path.display();
        let field = |name| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
            value.ok_or_else(|| Error::Damaged(format!("{dir}/format does not say its {name}")))
        };
        let (version, created_with) = (field("version ")?, field("shards ")?);
        if version > VERSION {
            return Err(Error::Refused(format!(
                "the data directory {dir} has format {version}, and this program reads up to {VERSION}: use the newer program"
            )));
        }
        if created_with != shards {
            return Err(Error::Refused(format!(
                "the data directory {dir} was created with {created_with} shards and cannot be opened with {shards}: start \
                 with --shards {created_with}, or use another directory"
            )));
        }
        if version < VERSION {
            self.write_format(shards).map_err(|why| refused(&self.path, &why))?;
            info!(
                "the data directory {dir} had format {version} and has format {VERSION} from now on: older programs refuse it"
            );
        }
        Ok(())
    }

    fn create(&self, shards: u32) -> Result<(), Error> {
        let dir = self.path.display();
        if self.log().exists() || self.lsm().exists() {
            return Err(Error::Damaged(format!("{dir} has data, but the file `format` is missing")));
        }
        self.write_format(shards).map_err(|why| refused(&self.path, &why))
    }

    fn write_format(&self, shards: u32) -> std::io::Result<()> {
        let new = self.path.join("format.new");
        let mut file = File::create(&new)?;
        write!(file, "version {VERSION}\nshards {shards}\n")?;
        file.sync_all()?;
        std::fs::rename(&new, self.path.join("format"))?;
        sync(&self.path)?;
        // The directory itself may be new too.
        self.path.parent().map_or(Ok(()), sync)
    }
}

/// Makes the names in a directory durable.
fn sync(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(|why| refused(dir, &why))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Refused(format!(
            "the data directory {} is in use by another process: stop that one, or use another directory",
            dir.display()
        ))),
        Err(TryLockError::Error(why)) => Err(refused(dir, &why)),
    }
}

fn refused(dir: &Path, why: &std::io::Error) -> Error {
    Error::Refused(format!("the data directory {} cannot be used: {why}", dir.display()))
}
