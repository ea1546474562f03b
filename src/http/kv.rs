//! The store, as people and scripts use it: values as JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use futures_util::StreamExt;
use serde_json::{Map, Value as Json, json};

use super::api::Api;
use super::request::Request;
use super::response::{Refusal, Response};
use super::stream::server_sent;
use crate::clock::Now;
use crate::kv::lww::LWW_MAP_CODEC;
use crate::kv::pair::{MAX_VALUE_LEN, check_key};
use crate::kv::{CasAction, CasOutcome, Codec, Codecs, KeyChange, LwwMap, StoreError, Value, Watch};
use crate::node::Node;

type JsonMap = LwwMap<Json>;

pub(super) async fn list(api: &Api, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&["prefix", "watch"])?;
    let prefix = request.parameter("prefix").unwrap_or_default();
    let store = api.node.store();
    if request.flag("watch")? {
        return watch(api, store.watch_prefix(prefix));
    }
    Ok(Response::json(&json!({ "keys": store.list(prefix).await? })))
}

pub(super) async fn get(api: &Api, key: &str, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&["watch"])?;
    let codec = codec(&api.node, key)?;
    let store = api.node.store();
    if request.flag("watch")? {
        return watch(api, store.watch_key(key));
    }
    let entry = store.get(key).await?.ok_or_else(|| Refusal::new(404, format!("there is no key {key:?}")))?;
    let value = codec.to_json(&entry.value)?;
    Ok(Response::json(&json!({ "key": key, "version": entry.version, "codec": codec.id(), "value": value })))
}

fn watch(api: &Api, changes: Watch) -> Result<Response, Refusal> {
    let codecs = api.node.codecs();
    let shown = changes.filter_map(move |change| std::future::ready(show(&codecs, &change)));
    server_sent(api, shown)
}

/// What a watcher is told. That the store is out of reach is not a change of the key.
fn show(codecs: &Codecs, change: &KeyChange) -> Option<Json> {
    if !change.fresh {
        return None;
    }
    let value = match &change.entry {
        // A value that has no JSON form comes as null with its version, which a deleted key does not have.
        Some(entry) => codecs.for_key(&change.key).and_then(|codec| codec.to_json(&entry.value).ok()),
        None => None,
    };
    let version = change.entry.as_ref().map(|entry| entry.version);
    Some(json!({ "key": &*change.key, "version": version, "value": value }))
}

pub(super) async fn delete(node: &Node, key: &str, request: &Request) -> Result<Response, Refusal> {
    // No store can delete on a condition, so `version` is refused here and not ignored.
    request.allow_only(&[])?;
    codec(node, key)?;
    node.store().delete(key).await?;
    Ok(Response::json(&json!({ "deleted": true })))
}

pub(super) async fn put(node: &Node, key: &str, request: &Request) -> Result<Response, Refusal> {
    request.allow_only(&["version"])?;
    let condition = request.number::<u64>("version")?;
    let codec = codec(node, key)?;
    let json = serde_json::from_slice(&request.body)
        .map_err(|error| Refusal::new(400, format!("the body is not JSON: {error}")))?;
    let edit = Edit::parse(&*codec, key, json)?;

    let store = node.store();
    let base = match condition {
        None => None,
        Some(version) => {
            let current = store.get(key).await?;
            let found = current.as_ref().map_or(0, |entry| entry.version);
            if found != version {
                return Err(Refusal::new(409, format!("key {key:?} has version {found}, not {version}")));
            }
            Some(current.map(|entry| codec.encode(&entry.value)).transpose()?)
        }
    };
    let status = Arc::new(AtomicU16::new(409));
    let callback = {
        let (codec, status) = (codec.clone(), status.clone());
        move |current: Option<&Value>| {
            // The callback sees no version: the same bytes as when the version was compared mean the same.
            if let Some(base) = &base
                && current.map(|value| codec.encode(value)).transpose().ok().as_ref() != Some(base)
            {
                return CasAction::Abort("the key was changed by somebody else meanwhile".to_owned());
            }
            edit.apply(current, Now::read()).map_or_else(
                |refusal| {
                    status.store(refusal.status, Ordering::Relaxed);
                    CasAction::Abort(refusal.message)
                },
                CasAction::Write,
            )
        }
    };
    let outcome = store.cas(key, Box::new(callback)).await.map_err(|error| match error {
        StoreError::Aborted(reason) => Refusal::new(status.load(Ordering::Relaxed), reason),
        other => other.into(),
    })?;
    Ok(Response::json(&match outcome {
        CasOutcome::Written { version, .. } => json!({ "written": true, "version": version }),
        CasOutcome::Unchanged => {
            let version = store.get(key).await?.map(|entry| entry.version);
            json!({ "written": false, "version": version })
        }
    }))
}

fn codec(node: &Node, key: &str) -> Result<Arc<dyn Codec>, Refusal> {
    check_key(key).map_err(|error| Refusal::new(400, error.to_string()))?;
    node.codecs().for_key(key).ok_or_else(|| StoreError::NoCodec { key: key.to_owned() }.into())
}

/// What a PUT does to the value that it finds.
enum Edit {
    /// Entries of a map of JSON values: each is written, or removed if it is null; others stay.
    Entries(Map<String, Json>),
    /// A whole value, joined into what is there.
    Join(Value),
}

impl Edit {
    fn parse(codec: &dyn Codec, key: &str, json: Json) -> Result<Self, Refusal> {
        // An application may use the same codec with values of a type of its own; their JSON form is then the codec's.
        let plain = codec.id() == LWW_MAP_CODEC && codec.encode(&Value::new(JsonMap::new())).is_ok();
        let (edit, value) = if plain {
            let Json::Object(entries) = json else {
                return Err(Refusal::new(422, "the body must be an object: {\"entry\": value, …}"));
            };
            let map = JsonMap::from_plain_json(Now::read(), entries.clone())
                .map_err(|error| Refusal::new(422, error.to_string()))?;
            (Self::Entries(entries), Value::new(map))
        } else {
            let value = codec.parse_json(json)?;
            (Self::Join(value.clone()), value)
        };
        // What peers could not read must not get into the store: too large, or nested too deeply for their decoder.
        let bytes = codec.encode(&value)?;
        if bytes.len() > MAX_VALUE_LEN {
            let message = format!("the value of key {key:?} has {} bytes; at most {MAX_VALUE_LEN}", bytes.len());
            return Err(Refusal::new(413, message));
        }
        codec.decode(&bytes)?;
        Ok(edit)
    }

    fn apply(&self, current: Option<&Value>, now: Now) -> Result<Value, Refusal> {
        match self {
            Self::Entries(entries) => {
                let mut map = match current {
                    None => JsonMap::new(),
                    Some(value) => value.downcast_ref::<JsonMap>().cloned().ok_or_else(mismatch)?,
                };
                for (entry, value) in entries {
                    match value {
                        Json::Null => drop(map.remove(now, entry)),
                        value => map.insert(now, entry.as_str(), value.clone()),
                    }
                }
                Ok(Value::new(map))
            }
            Self::Join(value) => match current {
                None => Ok(value.clone()),
                Some(current) => Ok(current.join(value, now).map_err(|_| mismatch())?.value),
            },
        }
    }
}

fn mismatch() -> Refusal {
    Refusal::new(422, crate::kv::TypeMismatch.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(codec: &dyn Codec, json: Json) -> Result<Edit, Refusal> {
        Edit::parse(codec, "k", json)
    }

    fn applied(edit: &Edit, current: Option<&Value>) -> Value {
        edit.apply(current, Now::read()).unwrap()
    }

    #[test]
    fn entries_are_written_removed_and_left_alone() {
        let codec = JsonMap::codec();
        let first = applied(&parse(&codec, json!({ "a": 1, "b": 2, "c": 3 })).unwrap(), None);
        let second = applied(&parse(&codec, json!({ "a": 10, "b": null, "new": [] })).unwrap(), Some(&first));
        let map = second.downcast_ref::<JsonMap>().unwrap();
        let entries: Vec<_> = map.iter().map(|(entry, value)| (entry, value.clone())).collect();
        assert_eq!(entries, [("a", json!(10)), ("c", json!(3)), ("new", json!([]))]);
        assert!(map.stamp("b").is_some(), "the removal leaves a tombstone, or other nodes would bring the entry back");
    }

    #[test]
    fn a_write_wins_over_one_from_a_clock_ahead_of_ours() {
        let ahead = Now::read() + std::time::Duration::from_secs(3600);
        let mut map = JsonMap::new();
        map.insert(ahead, "a", json!("theirs"));
        let edit = parse(&JsonMap::codec(), json!({ "a": "ours" })).unwrap();
        let current = Value::new(map);
        let written = applied(&edit, Some(&current));
        let joined = current.join(&written, Now::read()).unwrap().value;
        assert_eq!(joined.downcast_ref::<JsonMap>().unwrap().get("a"), Some(&json!("ours")));
    }

    #[test]
    fn the_same_codec_with_another_type_takes_its_own_json() {
        let codec = LwwMap::<u32>::codec();
        let edit = parse(&codec, json!({ "a": { "value": 7, "stamp": 1 } })).unwrap();
        let value = applied(&edit, None);
        assert_eq!(value.downcast_ref::<LwwMap<u32>>().unwrap().get("a"), Some(&7));
        assert_eq!(parse(&codec, json!({ "a": 7 })).err().unwrap().status, 422);
        let other = Value::new(JsonMap::new());
        assert_eq!(edit.apply(Some(&other), Now::read()).unwrap_err().status, 422);
    }

    #[test]
    fn what_peers_could_not_decode_is_refused() {
        let mut deep = json!(1);
        for _ in 0..126 {
            deep = json!([deep]);
        }
        assert_eq!(parse(&JsonMap::codec(), json!({ "a": deep })).err().unwrap().status, 422);
        let large = "x".repeat(MAX_VALUE_LEN);
        assert_eq!(parse(&JsonMap::codec(), json!({ "a": large })).err().unwrap().status, 413);
        assert_eq!(parse(&JsonMap::codec(), json!([1])).err().unwrap().status, 422);
    }
}
