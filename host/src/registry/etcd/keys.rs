//! The layout of the cluster's keys in etcd, in both directions.

/// The keys of one cluster. Its name has no `/`.
#[derive(Debug, Clone)]
pub struct Keys {
    root: String,
}

/// What a key below the root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    Config,
    Node(&'a str),
    Owner(u32),
    /// The prefix of a rule may hold anything, `/` included, and may be empty.
    Rule(&'a str),
    Plugin(&'a str),
    /// A plugin's name has no `/`, its keys may.
    Value {
        plugin: &'a str,
        key: &'a str,
    },
}

impl Keys {
    pub fn new(cluster: &str) -> Self {
        Self { root: format!("/{cluster}/") }
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    pub fn of(&self, key: Key) -> String {
        let root = &self.root;
        match key {
            Key::Config => format!("{root}config"),
            Key::Node(node) => format!("{root}nodes/{node}"),
            Key::Owner(shard) => format!("{root}owners/{shard}"),
            Key::Rule(prefix) => format!("{root}rules/{prefix}"),
            Key::Plugin(digest) => format!("{root}plugins/{digest}"),
            Key::Value { plugin, key } => format!("{root}kv/{plugin}/{key}"),
        }
    }

    /// None for what this version does not know.
    pub fn parse<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        let below = key.strip_prefix(&self.root)?;
        if below == "config" {
            return Some(Key::Config);
        }
        let (kind, rest) = below.split_once('/')?;
        match kind {
            "nodes" => Some(Key::Node(rest)),
            "owners" => rest.parse().ok().map(Key::Owner),
            "rules" => Some(Key::Rule(rest)),
            "plugins" => Some(Key::Plugin(rest)),
            "kv" => rest.split_once('/').map(|(plugin, key)| Key::Value { plugin, key }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_back_as_what_was_written() {
        let keys = Keys::new("c");
        let all = [
            Key::Config,
            Key::Node("n-1"),
            Key::Owner(4095),
            Key::Rule(""),
            Key::Rule("a/b/"),
            Key::Plugin("0f"),
            Key::Value { plugin: "p", key: "k/1" },
        ];
        for key in all {
            assert_eq!(keys.parse(&keys.of(key)), Some(key));
        }
    }

    #[test]
    fn unknown_and_foreign_keys_are_left_alone() {
        let keys = Keys::new("c");
        for key in ["/c/owners/x", "/c/other/1", "/c/kv/p", "/d/nodes/n", "/c/"] {
            assert_eq!(keys.parse(key), None, "{key}");
        }
    }
}
