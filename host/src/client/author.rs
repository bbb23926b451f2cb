//! `quipu plugin new`: writes the project of a policy that builds, tests and answers as it is. Needs no server.
//!
//! The texts are in `host/templates`, the contract in `wit`; both are part of the program, so a project always fits the
//! version that wrote it. What an author does next is told by the project's README and by `docs/authors.md`.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::error::Error;
use super::output::{Output, printable};
use crate::cli::{Language, PluginNew, World};

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../templates/", $path))
    };
}

macro_rules! contract {
    ($($name:literal),*) => {
        [$((concat!("wit/deps/quipu-policy/", $name), include_str!(concat!("../../../wit/", $name)))),*]
    };
}

const CONTRACT: [(&str, &str); 7] =
    contract!("aggregation.wit", "log.wit", "metrics.wit", "registry.wit", "selection.wit", "storage.wit", "types.wit");

type File = (&'static str, &'static str);

/// Writes the project below `--dir`, by default a folder of the policy's name.
pub fn new_project(new: &PluginNew, output: &mut Output<'_>) -> Result<(), Error> {
    check_name(&new.name)?;
    let dir = new.dir.clone().unwrap_or_else(|| PathBuf::from(&new.name));
    check_free(&dir)?;
    let files = files(new.lang, new.world);
    for (path, template) in &files {
        let text = template.replace("{{name}}", &new.name).replace("{{world}}", new.world.name());
        write_new(&dir.join(path), &text)?;
    }
    let shown = dir.display().to_string();
    if output.style.json {
        let names: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
        return output.json(&json!({ "directory": shown, "files": names }).to_string());
    }
    output.line(&format!("{}: {} files; README.md has the commands that come next", printable(&shown), files.len()))
}

/// Path below the project, and text.
fn files(language: Language, world: World) -> Vec<File> {
    let (world_wit, own): (&str, &[File]) = match (language, world) {
        (Language::Rust, World::Selection) => {
            (template!("wit/selection.wit"), &[("src/lib.rs", template!("rust/selection.rs"))])
        }
        (Language::Rust, World::Aggregation) => {
            (template!("wit/aggregation.wit"), &[("src/lib.rs", template!("rust/aggregation.rs"))])
        }
        (Language::Python, World::Selection) => (
            template!("wit/selection.wit"),
            &[("app.py", template!("python/selection.py")), ("test_app.py", template!("python/test_selection.py"))],
        ),
        (Language::Python, World::Aggregation) => (
            template!("wit/aggregation.wit"),
            &[("app.py", template!("python/aggregation.py")), ("test_app.py", template!("python/test_aggregation.py"))],
        ),
        (Language::Js, World::Selection) => (
            template!("wit/selection.wit"),
            &[
                ("package.json", template!("js/selection.json")),
                ("policy.js", template!("js/selection.js")),
                ("policy.test.js", template!("js/selection.test.js")),
            ],
        ),
        (Language::Js, World::Aggregation) => (
            template!("wit/aggregation.wit"),
            &[
                ("package.json", template!("js/aggregation.json")),
                ("policy.js", template!("js/aggregation.js")),
                ("policy.test.js", template!("js/aggregation.test.js")),
            ],
        ),
    };
    let common: &[File] = match language {
        Language::Rust => &[
            ("README.md", template!("rust/README.md")),
            ("Cargo.toml", template!("rust/Cargo.toml")),
            (".cargo/config.toml", template!("rust/config.toml")),
            (".gitignore", template!("rust/gitignore")),
        ],
        Language::Python => &[
            ("README.md", template!("python/README.md")),
            ("requirements.txt", template!("python/requirements.txt")),
            (".gitignore", template!("python/gitignore")),
        ],
        Language::Js => &[("README.md", template!("js/README.md")), (".gitignore", template!("js/gitignore"))],
    };
    [common, own, &[("wit/world.wit", world_wit)], &CONTRACT].concat()
}

/// Stricter than the server: the name is also that of a package, in whichever language.
fn check_name(name: &str) -> Result<(), Error> {
    let max = crate::policy::limits::NAME_BYTES_MAX;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = name.len() <= max
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && name.bytes().all(allowed);
    if good {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "a project's name has 1 to {max} of the characters a-z, 0-9 and '-', and begins with a letter; this one is {name:?}"
    )))
}

/// The folder must be missing or empty.
fn check_free(dir: &Path) -> Result<(), Error> {
    let refused = |reason: &str| {
        let text = format!("{reason}; nothing was written: give another place with --dir");
        Err(Error::File { path: dir.to_owned(), reason: text })
    };
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => refused("the folder is there already and not empty"),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => refused("this is no folder"),
        Err(error) => refused(&error.to_string()),
    }
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::File::create_new(path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| Error::File { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::output::Style;

    const PROJECTS: [(Language, World); 6] = [
        (Language::Rust, World::Selection),
        (Language::Rust, World::Aggregation),
        (Language::Python, World::Selection),
        (Language::Python, World::Aggregation),
        (Language::Js, World::Selection),
        (Language::Js, World::Aggregation),
    ];

    fn write(name: &str, lang: Language, world: World, dir: &Path) -> Result<String, Error> {
        let (mut printed, mut noted) = (Vec::new(), Vec::new());
        let mut output = Output::new(Style::default(), Box::new(&mut printed), Box::new(&mut noted));
        let new = PluginNew { name: name.into(), lang, world, dir: Some(dir.to_owned()) };
        new_project(&new, &mut output)?;
        drop(output);
        Ok(String::from_utf8(printed).expect("UTF-8"))
    }

    #[test]
    fn a_project_has_the_contract_and_no_placeholder() {
        for (lang, world) in PROJECTS {
            let dir = tempfile::tempdir().expect("a folder");
            let printed = write("even-share", lang, world, dir.path()).unwrap_or_else(|error| panic!("{error}"));
            assert!(printed.contains(&format!("{} files", files(lang, world).len())), "{printed}");
            for (path, _) in files(lang, world) {
                let text = fs::read_to_string(dir.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
                assert!(!text.is_empty() && !text.contains("{{"), "{lang:?} {world:?} {path}");
            }
            let read = |path: &str| fs::read_to_string(dir.path().join(path)).expect("it was written");
            assert!(read("README.md").contains(&format!("rule set example/ --{} even-share", world.name())));
            let exported = read("wit/world.wit").lines().filter(|line| line.trim().starts_with("export ")).count();
            assert_eq!(exported, 1, "{world:?}");
        }
    }

    #[test]
    fn a_project_has_every_file_of_the_contract() {
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
        for entry in fs::read_dir(wit).expect("it is there") {
            let path = entry.expect("readable").path();
            let name = format!("wit/deps/quipu-policy/{}", path.file_name().expect("a file").to_string_lossy());
            let text = fs::read_to_string(path).expect("UTF-8");
            assert!(CONTRACT.contains(&(name.as_str(), text.as_str())), "{name} is not in CONTRACT");
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().expect("a folder");
        let mine = dir.path().join("notes");
        fs::write(&mine, "mine").expect("writable");
        let refused =
            write("p", Language::Rust, World::Selection, dir.path()).expect_err("it is not empty").to_string();
        assert!(refused.contains("not empty") && refused.contains("--dir"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
        let refused = write("p", Language::Rust, World::Selection, &mine).expect_err("it is a file").to_string();
        assert!(refused.contains("no folder"), "{refused}");
        let refused = write_new(&mine, "theirs").expect_err("it is there").to_string();
        assert!(refused.contains("notes"), "{refused}");
        assert_eq!(fs::read_to_string(&mine).expect("readable"), "mine");
    }

    #[test]
    fn a_missing_folder_is_made_and_a_second_project_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = dir.path().join("a/b");
        assert!(write("p", Language::Js, World::Selection, &deep).is_ok());
        assert!(write("p", Language::Js, World::Selection, &deep).is_err_and(|error| error.exit_code() == 1));
    }

    #[test]
    fn names_are_good_for_every_language() {
        let dir = tempfile::tempdir().expect("a folder");
        for bad in ["", "-a", "1a", "A", "a_b", "a.b", "a/b", "..", "é", &"a".repeat(65)] {
            let refused = write(bad, Language::Python, World::Selection, dir.path()).expect_err(bad);
            assert!(matches!(&refused, Error::Usage(text) if text.contains("begins with a letter")), "{refused}");
        }
        for good in ["a", "a-1", &"a".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
