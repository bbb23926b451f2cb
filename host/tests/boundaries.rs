//! Which part of the code may name what. Reads the source text, so that a wrong import is found before it is used.
//!
//! Unit tests inside a file (everything from its first `#[cfg(test)]` on) and comments are not looked at.

use std::fs;
use std::path::{Path, PathBuf};

struct Rule {
    /// Files and folders under `host/src` that must not name it; "" is all of them.
    inside: &'static [&'static str],
    /// Those under `inside` that may.
    except: &'static [&'static str],
    /// Words, matched whole, `::` included.
    never: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        inside: &["counter", "shard"],
        except: &[],
        never: &["tokio", "async", "await", "std::thread"],
        why: "counter and shard are pure: no runtime",
    },
    Rule {
        inside: &["counter", "shard"],
        except: &[],
        never: &["crate::store", "fjall", "std::fs", "std::io", "std::net"],
        why: "counter and shard are pure: no store and no I/O",
    },
    Rule {
        inside: &["counter", "shard"],
        except: &[],
        never: &["SystemTime", "Instant", "rand", "getrandom", "RandomState"],
        why: "counter and shard are pure: no clock and no randomness",
    },
    Rule {
        inside: &["cluster/assignment", "cluster/ownership"],
        except: &[],
        never: &["tokio", "async", "await", "crate::store", "registry::etcd", "SystemTime", "Instant", "rand"],
        why: "what a node does about its shards is pure: no runtime, no store, no clock, no randomness",
    },
    Rule {
        inside: &["cluster/assignment", "cluster/ownership", "shard"],
        except: &[],
        never: &["HashMap", "HashSet"],
        why: "the standard hash maps iterate in a random order",
    },
    Rule {
        inside: &["cluster", "commit", "counter", "node", "policy", "registry", "shard", "store"],
        except: &[],
        never: &["hyper", "crate::http"],
        why: "only the HTTP front speaks HTTP",
    },
    Rule {
        inside: &["front", "http", "resp"],
        except: &[],
        never: &["crate::store", "store::Store", "fjall", "scylla"],
        why: "no front touches a store",
    },
    Rule { inside: &["resp"], except: &[], never: &["hyper", "crate::http"], why: "the Redis front speaks no HTTP" },
    Rule {
        inside: &[""],
        except: &["policy"],
        never: &["wasmtime", "wasmtime_wasi"],
        why: "only policy names wasmtime",
    },
    Rule { inside: &[""], except: &["store"], never: &["fjall"], why: "only the embedded store names its engine" },
    Rule { inside: &[""], except: &["store/cassandra"], never: &["scylla"], why: "only store/cassandra names scylla" },
    Rule { inside: &[""], except: &["registry/etcd"], never: &["etcd_client"], why: "only registry/etcd names etcd" },
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the source folder is readable") {
        let path = entry.expect("the source folder is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether `path`, relative to `host/src`, is `place` or lies in it.
fn lies_in(path: &Path, place: &str) -> bool {
    path.starts_with(place) || path == Path::new(&format!("{place}.rs"))
}

fn names(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let part_of_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    code.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|before| code.as_bytes()[before]);
        let after = code.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

fn broken(path: &Path, text: &str) -> Vec<String> {
    let rules = RULES.iter().filter(|rule| {
        rule.inside.iter().any(|place| lies_in(path, place)) && !rule.except.iter().any(|place| lies_in(path, place))
    });
    let mut broken = Vec::new();
    for rule in rules {
        let shipped = text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
        for (line, number) in shipped.zip(1..) {
            for word in rule.never.iter().filter(|word| names(line, word)) {
                broken.push(format!("host/src/{}:{number}: names {word}: {}", path.display(), rule.why));
            }
        }
    }
    broken
}

#[test]
fn each_part_names_only_what_it_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 10, "the sources are not where they are looked for: {}", root.display());
    files.sort();
    let broken: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).expect("a source file is readable");
            broken(file.strip_prefix(&root).expect("it was found there"), &text)
        })
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn a_forbidden_name_is_found_with_its_line() {
    let text = "use std::sync::Arc;\nuse tokio::sync::Notify;\n#[cfg(test)]\nuse tokio::time;\n";
    assert_eq!(
        broken(Path::new("shard/writer.rs"), text),
        ["host/src/shard/writer.rs:2: names tokio: counter and shard are pure: no runtime"]
    );
    assert_eq!(broken(Path::new("node/mod.rs"), text), [""; 0]);
    assert_eq!(broken(Path::new("policy.rs"), "use wasmtime::Engine;"), [""; 0]);
    assert_eq!(broken(Path::new("node/policy.rs"), "use wasmtime::Engine;").len(), 1);
    assert_eq!(broken(Path::new("counter/id.rs"), "// tokio\nlet operand = brand;"), [""; 0]);
}
