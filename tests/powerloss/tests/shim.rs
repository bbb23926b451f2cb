//! What survives, and what does not: a child process writes and is killed. The child is this very test program.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = "POWERLOSS_TEST_SCRIPT";

/// Runs a script in a child until it says that it is done, kills it, and shows what a power failure leaves.
fn survives(script: &str, prepare: impl FnOnce(&Path), arm: impl FnOnce(&mut Command)) -> tempfile::TempDir {
    let (dir, shadow) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    prepare(dir.path());
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", "child", "--nocapture"]).env(SCRIPT, script).current_dir(dir.path()).stdout(Stdio::piped());
    powerloss::arm(&mut child, dir.path(), shadow.path());
    arm(&mut child);
    let mut child = child.spawn().expect("starts");
    let output = BufReader::new(child.stdout.take().expect("is piped"));
    assert!(output.lines().any(|line| line.expect("reads").contains("written")), "{script} did not end");
    child.kill().expect("is killed");
    child.wait().expect("is gone");
    powerloss::restore(shadow.path(), dir.path()).expect("restores");
    dir
}

fn left(script: &str) -> tempfile::TempDir {
    survives(script, |_| {}, |_| {})
}

fn text(dir: &tempfile::TempDir, name: &str) -> Option<String> {
    fs::read_to_string(dir.path().join(name)).ok()
}

fn sync_dir(path: &str) {
    File::open(path).expect("opens").sync_all().expect("syncs");
}

/// A file whose bytes and name are durable.
fn durable(name: &str, bytes: &[u8]) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(name).expect("creates");
    (&file).write_all(bytes).expect("writes");
    file.sync_all().expect("syncs");
    sync_dir(".");
    file
}

/// What the child does; a test of its own only in name.
#[test]
fn child() {
    let Ok(script) = std::env::var(SCRIPT) else { return };
    match script.as_str() {
        "bytes" => {
            let mut file = durable("file", b"synced");
            file.write_all(b" and not").expect("writes");
            file.write_all_at(b"S", 0).expect("writes");
            drop(durable("all", b"first"));
            let file = OpenOptions::new().append(true).open("all").expect("opens");
            let written = (&file).write_vectored(&[std::io::IoSlice::new(b", second")]).expect("writes");
            assert_eq!(written, 8);
            file.sync_data().expect("syncs");
        }
        "clone" => {
            let file = durable("file", b"one");
            let mut other = file.try_clone().expect("clones");
            other.seek(SeekFrom::Start(3)).expect("seeks");
            other.write_all(b" two").expect("writes");
            file.sync_data().expect("syncs what the other wrote");
        }
        "names" => {
            let file = File::create("nameless").expect("creates");
            file.sync_all().expect("syncs its bytes, not its name");
            fs::create_dir("sub").expect("creates");
            drop(durable("empty", b""));
            fs::write("sub/file", b"x").expect("writes");
            File::open("sub/file").expect("opens").sync_all().expect("syncs");
            fs::write("late", b"unsynced").expect("writes");
            sync_dir(".");
            fs::write("later", b"unsynced").expect("writes");
        }
        "tree" => {
            fs::create_dir_all("a/b").expect("creates");
            fs::write("a/b/file", b"deep").expect("writes");
            File::open("a/b/file").expect("opens").sync_all().expect("syncs");
            for dir in ["a/b", "a", "."] {
                sync_dir(dir);
            }
            fs::remove_dir_all("a").expect("removes");
        }
        "renames" => {
            drop(durable("current", b"old"));
            drop(durable("gone", b"was removed without a sync"));
            drop(durable("removed", b"was removed with a sync"));
            fs::remove_file("removed").expect("removes");
            drop(durable("new", b"new"));
            fs::rename("new", "current").expect("renames");
            fs::remove_file("gone").expect("removes");
        }
        "renames synced" => {
            drop(durable("current", b"old"));
            drop(durable("new", b"new"));
            fs::rename("new", "current").expect("renames");
            sync_dir(".");
        }
        "numbers used again" => {
            for round in 0..50 {
                drop(durable("kept", format!("round {round}").as_bytes()));
                fs::remove_file("kept").expect("removes");
                let file = File::create("other").expect("creates");
                (&file).write_all(b"another file, perhaps with the same inode").expect("writes");
                file.sync_all().expect("syncs");
            }
        }
        "lengths" => {
            let file = durable("cut", b"0123456789");
            file.set_len(4).expect("cuts");
            file.set_len(8).expect("extends");
            file.sync_all().expect("syncs");
            file.set_len(2).expect("cuts");
            let file = durable("rewritten", b"a long text");
            drop(file);
            let file = File::create("rewritten").expect("truncates");
            (&file).write_all(b"short").expect("writes");
            file.sync_all().expect("syncs");
            drop(durable("emptied", b"not synced empty"));
            File::create("emptied").expect("truncates");
        }
        "copies" => {
            drop(durable("from", &[7; 100_000]));
            fs::copy("from", "synced").expect("copies");
            fs::copy("from", "unsynced").expect("copies");
            File::open("synced").expect("opens").sync_all().expect("syncs");
            sync_dir(".");
        }
        "scattered" => {
            let file = durable("file", &[0; 1 << 20]);
            for at in (0..1 << 20).step_by(500) {
                file.write_all_at(&[1; 250], at).expect("writes");
            }
            file.sync_data().expect("syncs");
        }
        "many" => {
            let file = durable("file", &[0; 1 << 20]);
            let begun = std::time::Instant::now();
            for number in 0..20_000u32 {
                file.write_all_at(&number.to_le_bytes().repeat(1024), u64::from(number % 256) * 4096).expect("writes");
                file.sync_data().expect("syncs");
            }
            println!("took {:?} for 20,000 syncs", begun.elapsed());
        }
        "threads" => std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for round in 0..200 {
                        drop(durable(&format!("{thread}-{}", round % 5), format!("{thread} {round}").as_bytes()));
                    }
                });
            }
        }),
        "adopted" => {
            let mut file = OpenOptions::new().append(true).open("before").expect("is there");
            file.write_all(b" and after").expect("writes");
        }
        "dsync" => {
            use std::os::unix::fs::OpenOptionsExt;
            // O_DSYNC
            let _ = OpenOptions::new().write(true).create_new(true).custom_flags(0o10000).open("file");
        }
        other => panic!("{other} is no script"),
    }
    println!("written");
    loop {
        std::thread::park();
    }
}

#[test]
fn bytes_last_from_their_sync_on() {
    let dir = left("bytes");
    assert_eq!(text(&dir, "file").as_deref(), Some("synced"));
    assert_eq!(text(&dir, "all").as_deref(), Some("first, second"));
    assert_eq!(text(&left("clone"), "file").as_deref(), Some("one two"));
}

#[test]
fn a_name_lasts_from_the_sync_of_its_directory_on() {
    let dir = left("names");
    assert_eq!(text(&dir, "empty").as_deref(), Some(""));
    assert_eq!(text(&dir, "nameless").as_deref(), Some(""));
    assert_eq!(text(&dir, "late").as_deref(), Some(""), "the name is there, the bytes are not");
    assert_eq!(text(&dir, "later"), None);
    assert!(dir.path().join("sub").is_dir());
    assert_eq!(text(&dir, "sub/file"), None, "its directory was not synced");
    assert_eq!(text(&left("tree"), "a/b/file").as_deref(), Some("deep"));
}

#[test]
fn a_rename_or_removal_lasts_from_the_sync_of_its_directory_on() {
    let dir = left("renames");
    assert_eq!(text(&dir, "current").as_deref(), Some("old"));
    assert_eq!(text(&dir, "new").as_deref(), Some("new"));
    assert_eq!(text(&dir, "gone").as_deref(), Some("was removed without a sync"));
    assert_eq!(text(&dir, "removed"), None);
    let dir = left("renames synced");
    assert_eq!((text(&dir, "current").as_deref(), text(&dir, "new")), (Some("new"), None));
}

#[test]
fn a_new_file_is_not_taken_for_a_removed_one() {
    assert_eq!(text(&left("numbers used again"), "kept").as_deref(), Some("round 49"));
}

#[test]
fn lengths_last_from_the_files_sync_on() {
    let dir = left("lengths");
    assert_eq!(text(&dir, "cut").as_deref(), Some("0123\0\0\0\0"));
    assert_eq!(text(&dir, "rewritten").as_deref(), Some("short"));
    assert_eq!(text(&dir, "emptied").as_deref(), Some("not synced empty"));
}

#[test]
fn copies_and_scattered_writes_are_seen() {
    let dir = left("copies");
    assert_eq!(fs::read(dir.path().join("synced")).expect("is there"), [7; 100_000]);
    assert_eq!(text(&dir, "unsynced").as_deref(), Some(""));
    let scattered = fs::read(left("scattered").path().join("file")).expect("is there");
    assert!(scattered.iter().enumerate().all(|(at, &byte)| byte == u8::from(at % 500 < 250)));
}

#[test]
fn many_syncs_and_many_threads_are_followed() {
    let last = fs::read(left("many").path().join("file")).expect("is there");
    for (block, bytes) in last.chunks(4096).enumerate() {
        let number = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        assert_eq!((number % 256, number >= 20_000 - 256), (block as u32, true));
    }
    let dir = left("threads");
    for thread in 0..4 {
        for file in 0..5 {
            assert_eq!(text(&dir, &format!("{thread}-{file}")), Some(format!("{thread} {}", 195 + file)));
        }
    }
}

#[test]
fn what_was_there_before_is_durable() {
    let dir = survives("adopted", |dir| fs::write(dir.join("before"), "before").expect("writes"), |_| {});
    assert_eq!(text(&dir, "before").as_deref(), Some("before"));
}

#[test]
fn ignored_syncs_lose_everything() {
    let dir = survives("bytes", |_| {}, powerloss::ignore_syncs);
    assert_eq!((text(&dir, "file"), text(&dir, "all")), (None, None));
}

#[test]
fn what_is_not_modelled_ends_the_program() {
    let (dir, shadow) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", "child", "--nocapture"]).env(SCRIPT, "dsync").current_dir(dir.path());
    powerloss::arm(&mut child, dir.path(), shadow.path());
    let output = child.output().expect("runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("powerloss: O_SYNC and O_DSYNC are not modelled"));
}

#[test]
fn unsynced_blocks_may_reach_the_disk_in_part() {
    let (dir, shadow) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    // An image of a file of zeros, of which the program then wrote every block.
    let path = dir.path().join("file");
    fs::write(&path, [1; 64 * 4096]).expect("writes");
    let about = fs::metadata(&path).expect("is there");
    let object = format!("f{}-1", std::os::unix::fs::MetadataExt::ino(&about));
    fs::write(shadow.path().join("root"), "d1-1").expect("writes");
    fs::write(shadow.path().join("d1-1"), format!("{object} file\n")).expect("writes");
    fs::write(shadow.path().join(object), [0; 64 * 4096]).expect("writes");
    powerloss::restore_torn(shadow.path(), dir.path(), 1).expect("restores");
    let torn = fs::read(&path).expect("is there");
    let reached = torn.chunks(4096).filter(|block| block.iter().all(|&byte| byte == 1)).count();
    assert!((10..54).contains(&reached), "{reached} of 64 blocks");
    assert!(torn.chunks(4096).all(|block| block.iter().all(|&byte| byte == block[0])));
}
