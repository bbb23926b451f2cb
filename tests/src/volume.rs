//! Small file systems that can be filled and made read-only, for the tests of a failing disk. They need root.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted tmpfs of a fixed size, unmounted on drop.
pub struct Volume {
    path: PathBuf,
    /// Where it was mounted, if it has a directory of its own; gone after it was unmounted.
    _directory: Option<TempDir>,
}

impl Volume {
    /// None, with the reason printed, where mounting is not allowed.
    pub fn mount(mebibytes: u32) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("quipu-volume-").tempdir().expect("a temporary directory");
        Self::mounted(directory.path().to_owned(), mebibytes, Some(directory))
    }

    /// The same at a directory that exists.
    pub fn mount_at(path: &Path, mebibytes: u32) -> Option<Self> {
        Self::mounted(path.to_owned(), mebibytes, None)
    }

    fn mounted(path: PathBuf, mebibytes: u32, directory: Option<TempDir>) -> Option<Self> {
        let size = format!("size={mebibytes}m,mode=0755");
        match mount(&["-t", "tmpfs", "-o", &size, "quipu-test"], &path) {
            Ok(()) => Some(Self { path, _directory: directory }),
            Err(why) => {
                println!("skipped: a small file system cannot be mounted here ({why}); it needs root");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all space that is left, but for `bytes_left`.
    pub fn fill(&self, bytes_left: u64) -> Filler {
        let path = self.path().join("filler");
        let mut file = File::create(&path).expect("the volume is writable");
        let block = vec![0x55; 64 * 1024];
        let mut written = 0u64;
        // Whole blocks first, then bytes of a page, until nothing fits.
        for piece in [block.len(), 4096] {
            loop {
                match file.write(&block[..piece]) {
                    Ok(0) => break,
                    Ok(bytes) => written += bytes as u64,
                    Err(why) if why.kind() == ErrorKind::StorageFull => break,
                    Err(why) => panic!("the filler cannot be written: {why}"),
                }
            }
        }
        file.set_len(written.saturating_sub(bytes_left)).expect("shrinking needs no space");
        Filler { path }
    }

    pub fn make_read_only(&self) -> Result<(), String> {
        mount(&["-o", "remount,ro"], self.path())
    }

    pub fn make_writable(&self) -> Result<(), String> {
        mount(&["-o", "remount,rw"], self.path())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a server that still has files open here is being killed.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}

/// The file that takes the space; gone on drop.
pub struct Filler {
    path: PathBuf,
}

impl Drop for Filler {
    fn drop(&mut self) {
        if let Err(why) = std::fs::remove_file(&self.path) {
            eprintln!("{} cannot be removed: {why}", self.path.display());
        }
    }
}

fn mount(args: &[&str], at: &Path) -> Result<(), String> {
    let output = Command::new("mount").args(args).arg(at).output().map_err(|why| why.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
