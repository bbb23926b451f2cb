//! Keys and events of etcd become parts of a picture.
//!
//! A value that is not readable (damaged, or of a later version) is left out with a warning: one bad key must not blind
//! a node for all others.

use std::sync::Arc;

use etcd_client::{Event, EventType, KeyValue};
use serde::de::DeserializeOwned;

use super::keys::{Key, Keys};
use crate::registry::picture::{Picture, Revised};

fn read<T: DeserializeOwned>(key: &str, kv: &KeyValue) -> Option<T> {
    serde_json::from_slice(kv.value())
        .map_err(|why| tracing::warn!(key, %why, "a value in the registry is not readable and is left out"))
        .ok()
}

pub fn put(picture: &mut Picture, keys: &Keys, kv: &KeyValue) {
    let Ok(key) = kv.key_str() else { return };
    match keys.parse(key) {
        Some(Key::Node(node)) => {
            if let Some(info) = read(key, kv) {
                Arc::make_mut(&mut picture.nodes).insert(node.to_owned(), info);
            }
        }
        Some(Key::Owner(shard)) => {
            if let Some(owner) = read(key, kv) {
                Arc::make_mut(&mut picture.owners).insert(shard, owner);
            }
        }
        Some(Key::Rule(prefix)) => {
            if let Some(value) = read(key, kv) {
                let revised = Revised { value, mod_revision: kv.mod_revision() };
                Arc::make_mut(&mut picture.rules).insert(prefix.to_owned(), revised);
            }
        }
        Some(Key::Plugin(digest)) => {
            if let Some(plugin) = read(key, kv) {
                Arc::make_mut(&mut picture.plugins).insert(digest.to_owned(), plugin);
            }
        }
        Some(Key::Value { plugin, key }) => {
            let values = Arc::make_mut(&mut picture.values).entry(plugin.to_owned()).or_default();
            Arc::make_mut(values).insert(key.to_owned(), kv.value().into());
        }
        Some(Key::Config) => {
            if let Some(value) = read(key, kv) {
                picture.config = Some(Revised { value, mod_revision: kv.mod_revision() });
            }
        }
        None => {}
    }
}

fn delete(picture: &mut Picture, keys: &Keys, key: &str) {
    match keys.parse(key) {
        Some(Key::Node(node)) => drop(Arc::make_mut(&mut picture.nodes).remove(node)),
        Some(Key::Owner(shard)) => drop(Arc::make_mut(&mut picture.owners).remove(&shard)),
        Some(Key::Rule(prefix)) => drop(Arc::make_mut(&mut picture.rules).remove(prefix)),
        Some(Key::Plugin(digest)) => drop(Arc::make_mut(&mut picture.plugins).remove(digest)),
        Some(Key::Value { plugin, key }) => {
            let all = Arc::make_mut(&mut picture.values);
            if let Some(values) = all.get_mut(plugin) {
                Arc::make_mut(values).remove(key);
                if values.is_empty() {
                    all.remove(plugin);
                }
            }
        }
        Some(Key::Config) => picture.config = None,
        None => {}
    }
}

pub fn event(picture: &mut Picture, keys: &Keys, event: &Event) {
    let Some(kv) = event.kv() else { return };
    match event.event_type() {
        EventType::Put => put(picture, keys, kv),
        EventType::Delete => {
            if let Ok(key) = kv.key_str() {
                delete(picture, keys, key);
            }
        }
    }
}
