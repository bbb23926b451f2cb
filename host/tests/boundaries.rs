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
        inside: &["http"],
        except: &[],
        never: &["crate::store", "store::Store", "fjall", "scylla"],
        why: "http never touches a store",
    },
    Rule {
        inside: &[""],
        except: &["policy"],
        never: &["wasmtime", "wasmtime_wasi"],
        why: "only policy names wasmtime",
    },
    Rule { inside: &[""], except: &["store"], never: &["fjall"], why: "only the embedded store names its engine" },
    Rule { inside: &[""], except: &["store/cassandra"], never: &["scylla"], why: "only store/cassandra names scylla" },
    Rule { inside: &[""], except: &["registry/etcd"], never: &["etcd_client"], why: "only registry/etcd names etcd" },
