//! What Go programs put on the wire is explained to the last layer, and what they refuse ends in an error that says where.
//!
//! Over the same golden bytes as `wire_vectors.rs`, through what `annulus decode` prints.

use std::fs;
use std::path::Path;

use annulus::wire::inspect::{self, Inspection};
use annulus::wire::{Key, Keyring, Label, PacketOptions, StreamSide};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Go refuses these for what they say, which the wire format has nothing against.
const FOR_MEMBERSHIP: [&str; 2] = ["rej-ping-wrong-node", "rej-tcp-pushpull-vsn-incompatible"];

/// What Annulus refuses and Go takes: a compound in a compound, and a packet whose digest does not fit.
const STRICTER: [&str; 2] = ["in-compound-nested-crc", "in-dskit-packet-bad-md5"];

/// Where the refused ones stop.
const STOPS: [(&str, &str, u64); 14] = [
    ("in-compound-nested-crc", "message", 0),
    ("in-dskit-packet-bad-md5", "grafana", 82),
    ("rej-compress-algo9", "compression", 7),
    ("rej-crc-mismatch", "crc", 1),
    ("rej-double-label", "encryption", 0),
    ("rej-empty-compound-trunc", "compound", 1),
    ("rej-enc-missing", "encryption", 0),
    ("rej-enc-wrong-aad", "encryption", 0),
    ("rej-label-empty", "label", 1),
    ("rej-label-on-unlabelled", "label", 0),
    ("rej-tcp-bad-label", "label", 0),
    ("rej-truncated-compound", "compound", 11),
    ("rej-unknown-type", "message", 0),
    ("rej-unlabelled-to-labelled", "label", 0),
];

struct Vector(Value);

impl Vector {
    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn inspect(&self, verify_label: bool) -> Result<Inspection> {
        let bytes = hex::decode(self.text("/hex"))?;
        let key = hex::decode(self.text("/config/key_hex"))?;
        let keys = if key.is_empty() { Vec::new() } else { vec![Key::new(&key)?] };
        let options = PacketOptions {
            label: Label::new(self.text("/config/label"))?,
            verify_label,
            keyring: Keyring::new(keys)?,
            ..PacketOptions::default()
        };
        Ok(match self.text("/transport") {
            "udp" => inspect::packet(&bytes.into(), &options),
            "dskit-packet" | "dskit-stream" => inspect::grafana(&bytes, &options),
            "tcp" => inspect::stream(&bytes, &options, StreamSide::Accepted),
            _ => inspect::stream(&bytes, &options, StreamSide::Dialed),
        })
    }

    /// The layers that the independent decoder saw, by our names, and how many messages.
    fn expected(&self) -> (Vec<&'static str>, usize) {
        let mut layers = Vec::new();
        if matches!(self.text("/transport"), "dskit-packet" | "dskit-stream") {
            layers.push("grafana");
        }
        // An answer has no label header.
        if !self.text("/config/label").is_empty() && !self.text("/transport").ends_with("-resp") {
            layers.push("label");
        }
        if !self.text("/config/key_hex").is_empty() {
            layers.push("encryption");
        }
        let mut message = &self.0["decoded"]["msg"];
        while let (Some(kind @ ("hasCrc" | "compress")), Some(inner)) = (message["type"].as_str(), message.get("inner"))
        {
            layers.push(if kind == "compress" { "compression" } else { "crc" });
            message = inner;
        }
        if message["type"] != "compound" {
            return (layers, 1);
        }
        layers.push("compound");
        (layers, message["msgs"].as_array().map_or(0, Vec::len))
    }
}

fn vectors() -> Result<Vec<Vector>> {
    let mut vectors = Vec::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire"))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            vectors.push(Vector(serde_json::from_slice(&fs::read(path)?)?));
        }
    }
    ensure!(vectors.len() > 90, "only {} vectors", vectors.len());
    Ok(vectors)
}

#[test]
fn what_go_says_is_explained_layer_by_layer() -> Result<()> {
    let mut explained = 0;
    for vector in vectors()? {
        let (name, rejected) = (vector.text("/name"), vector.text("/direction") == "rejected");
        let in_order = FOR_MEMBERSHIP.contains(&name) || !rejected && !STRICTER.contains(&name);
        if !in_order || name == "rej-truncated-compound" {
            continue;
        }
        for verify_label in [true, false] {
            let seen = vector.inspect(verify_label)?;
            ensure!(seen.is_ok(), "{name}: {:?}", seen.error);
            if vector.0["decoded"]["msg"].is_null() {
                continue;
            }
            let json = seen.to_json();
            let layers = json["layers"].as_array().context("layers")?.iter().map(|layer| layer["layer"].as_str());
            let (expected, messages) = vector.expected();
            assert_eq!(layers.collect::<Option<Vec<_>>>(), Some(expected), "{name}");
            assert_eq!(seen.messages.len(), messages, "{name}");
            explained += 1;
        }
    }
    ensure!(explained >= 160, "only {explained} were explained");
    Ok(())
}

#[test]
fn what_is_refused_ends_in_an_error_that_says_where() -> Result<()> {
    for vector in vectors()? {
        let name = vector.text("/name");
        if FOR_MEMBERSHIP.contains(&name) {
            continue;
        }
        let refused = vector.text("/direction") == "rejected" || name == "rej-truncated-compound";
        if refused || STRICTER.contains(&name) {
            let json = vector.inspect(true)?.to_json();
            assert_eq!(json["ok"], false, "{name}");
            let (_, layer, offset) =
                STOPS.iter().find(|(stop, ..)| *stop == name).with_context(|| format!("{name}: {}", json["error"]))?;
            assert_eq!(
                (json["error"]["layer"].as_str(), json["error"]["offset"].as_u64()),
                (Some(*layer), Some(*offset)),
                "{name}"
            );
            ensure!(!json["error"]["reason"].as_str().unwrap_or_default().is_empty(), "{name} gives no reason");
        }
    }
    Ok(())
}
