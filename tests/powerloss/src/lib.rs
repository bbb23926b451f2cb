//! Runs a program whose power fails: whatever it did not sync is gone.
//!
//! [`arm`] makes a command load the library in `shim.c`, which keeps an image of what is durable beside the program's
//! directory. After the program was killed, [`restore`] turns the directory into that image. `shim.c` says what counts as
//! durable: the strictest reading of POSIX, in which a file's own sync does not make its name durable.
//!
//! The image fits on `/dev/shm`; a sync costs a copy of what was written, and the disk is never synced.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const BLOCK_BYTES: usize = 4096;

/// The preloaded library.
pub fn shim() -> &'static Path {
    Path::new(env!("POWERLOSS_SHIM"))
}

/// Makes a command keep in `shadow` what it makes durable in `dir`. Both must exist; what `shadow` held is lost. What is in
/// `dir` when the command starts counts as durable.
pub fn arm(command: &mut Command, dir: &Path, shadow: &Path) {
    command.env("LD_PRELOAD", shim()).env("POWERLOSS_DIR", dir).env("POWERLOSS_SHADOW", shadow);
    command.env_remove("POWERLOSS_IGNORE_SYNC");
}

/// Makes every sync of an armed command a lie, to see that a test notices.
pub fn ignore_syncs(command: &mut Command) {
    command.env("POWERLOSS_IGNORE_SYNC", "1");
}

/// Replaces what is in `dir` by what was durable. Call it when the program is gone.
pub fn restore(shadow: &Path, dir: &Path) -> Result<()> {
    replace(shadow, dir, &mut |_, _| Ok(()))
}

/// As [`restore`], but of what was written and not synced about half the blocks have reached the disk, in no order, as
/// happens when the system writes back by itself. Names are durable only as they were synced.
pub fn restore_torn(shadow: &Path, dir: &Path, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    replace(shadow, dir, &mut |image, unsynced| tear(image, unsynced, &mut random))
}

type Tear<'a> = dyn FnMut(&Path, &Path) -> Result<()> + 'a;

fn replace(shadow: &Path, dir: &Path, tear: &mut Tear) -> Result<()> {
    let root = fs::read_to_string(shadow.join("root")).context("the program never started under the library")?;
    // Inside, since the directory may be a mount point.
    let old = dir.join(".unsynced");
    let entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    fs::create_dir(&old)?;
    for entry in entries {
        fs::rename(entry.path(), old.join(entry.file_name()))?;
    }
    let unsynced = Unsynced { files: files_below(&old)? };
    build(shadow, &root, dir, &unsynced, tear)?;
    fs::remove_dir_all(&old)?;
    Ok(())
}

/// The files as the program last saw them, whatever their names.
struct Unsynced {
    files: Vec<(u64, PathBuf)>,
}

impl Unsynced {
    fn find(&self, object: &str) -> Option<&Path> {
        let inode: u64 = object.get(1..)?.split('-').next()?.parse().ok()?;
        self.files.iter().find(|&&(known, _)| known == inode).map(|(_, path)| path.as_path())
    }
}

fn files_below(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push((about.ino(), entry.path()));
        }
    }
    Ok(found)
}

/// Fills an empty directory from its listing.
fn build(shadow: &Path, listing: &str, dir: &Path, unsynced: &Unsynced, tear: &mut Tear) -> Result<()> {
    // A directory that was never synced has no listing: whatever was in it is gone.
    let Ok(names) = fs::read_to_string(shadow.join(listing)) else { return Ok(()) };
    for line in names.lines() {
        let (object, name) = line.split_once(' ').context("a listing is damaged")?;
        ensure!(!name.contains('/'), "a listing is damaged");
        let path = dir.join(name);
        if object.starts_with('d') {
            fs::create_dir(&path)?;
            build(shadow, object, &path, unsynced, tear)?;
            continue;
        }
        match fs::copy(shadow.join(object), &path) {
            Ok(_) => {}
            // Its name is durable, and nothing of what was written to it.
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => fs::write(&path, [])?,
            Err(why) => return Err(why.into()),
        }
        if let Some(unsynced) = unsynced.find(object) {
            tear(&path, unsynced)?;
        }
    }
    Ok(())
}

/// Lets some of the blocks in which the two differ reach the image.
fn tear(image: &Path, unsynced: &Path, random: &mut StdRng) -> Result<()> {
    let (durable, written) = (fs::read(image)?, fs::read(unsynced)?);
    let file = fs::OpenOptions::new().write(true).open(image)?;
    for (number, block) in written.chunks(BLOCK_BYTES).enumerate() {
        let at = number * BLOCK_BYTES;
        let same = durable.get(at..at + block.len()) == Some(block);
        if !same && random.random_bool(0.5) {
            file.write_all_at(block, at as u64)?;
        }
    }
    Ok(())
}
