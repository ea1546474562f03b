//! The fuzz targets over what is known: seeds made from the golden bytes, and every input that ever broke something.
//!
//! The targets are those that the fuzzer runs (`fuzz/src/lib.rs`); here they run on stable, over a few hundred inputs.
//! `ANNULUS_WRITE_CORPUS=1 cargo test --test fuzz_corpus` writes the seeds to `fuzz/corpus/`, for the fuzzer to begin with.
//! What the fuzzer finds goes to `fuzz/regressions/`, and stays there.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use annulus::wire::message::StreamMessage;
use annulus::wire::{
    Compression, Key, Keyring, Label, PacketOptions, StreamDecoder, StreamSide, decode_packet, encode_message,
    encode_packets, encode_reply,
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

/// Runs one target over one input.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 9] = [
    ("packet", targets::packet),
    ("stream", targets::stream),
    ("label", targets::label),
    ("encryption", targets::encryption),
    ("compression", targets::compression),
    ("compound", targets::compound),
    ("body", targets::body),
    ("push_pull", targets::push_pull),
    ("grafana_frame", targets::grafana_frame),
];

/// The seeds of each target, by a name.
#[derive(Default)]
struct Seeds(BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>);

impl Seeds {
    fn add(&mut self, target: &'static str, name: &str, bytes: impl Into<Vec<u8>>) {
        self.0.entry(target).or_default().insert(name.to_owned(), bytes.into());
    }

    /// What can be made of a packet. `choice` is how the targets choose its options.
    fn packet(&mut self, name: &str, bytes: &[u8], choice: u8, options: &PacketOptions) {
        self.add("packet", name, [&[choice], bytes].concat());
        if bytes.first() == Some(&0xf4) {
            self.add("label", name, bytes);
        }
        let Ok(packet) = decode_packet(&Bytes::copy_from_slice(bytes), options) else { return };
        let parts: Vec<Bytes> = packet.messages.iter().map(encode_message).collect();
        for (index, part) in parts.iter().enumerate() {
            self.add("body", &format!("{name}-{index}"), part.clone());
        }
        let nonces = &mut StdRng::seed_from_u64(1);
        for (algorithm, compression) in [(0, Compression::Lzw), (1, Compression::Snappy)] {
            let options = PacketOptions { compression, ..PacketOptions::default() };
            let long = [&parts[..], &parts[..]].concat();
            for packed in encode_packets(&long, &options, false, nonces) {
                let clear = decode_packet(&packed, &options).is_ok().then_some(packed);
                let data = clear.and_then(|packed| compressed(&packed).map(<[u8]>::to_vec));
                let data = data.map(|data| [&[algorithm][..], &data].concat());
                data.into_iter().for_each(|data| self.add("compression", &format!("{name}-{algorithm}"), data));
            }
        }
        for packed in encode_packets(&[&parts[..], &parts[..]].concat(), &PacketOptions::default(), false, nonces) {
            self.add("compound", name, &packed[1..]);
            self.add("encryption", &format!("{name}-compound"), [&[0], &packed[..]].concat());
        }
        for (index, part) in parts.iter().enumerate() {
            self.add("encryption", &format!("{name}-{index}"), [&[choice | 16], &part[..]].concat());
        }
    }

    /// What can be made of a stream.
    fn stream(&mut self, name: &str, bytes: &[u8], choice: u8, side: StreamSide, options: &PacketOptions) {
        let side_choice = u8::from(side == StreamSide::Dialed);
        self.add("stream", name, [&[choice, side_choice | 64], bytes].concat());
        if bytes.first() == Some(&0xf4) {
            self.add("label", name, bytes);
        }
        let mut decoder = StreamDecoder::new(options, side);
        let Ok(Some(message)) = decoder.feed(bytes).and_then(|()| decoder.poll()) else { return };
        let nonces = &mut StdRng::seed_from_u64(1);
        let plain = encode_reply(&message, &PacketOptions::default(), &Label::NONE, nonces);
        match message {
            StreamMessage::PushPull(_) => self.add("push_pull", name, [&[9], &plain[1..]].concat()),
            _ => self.add("body", name, plain),
        }
    }
}

/// The data in a compressed message: what follows the head of its last field.
fn compressed(message: &[u8]) -> Option<&[u8]> {
    let at = message.windows(3).position(|window| window == b"Buf")? + 3;
    let head = match message.get(at)? {
        0xa0..=0xbf => 1,
        0xda => 3,
        _ => 5,
    };
    message.get(at + head..)
}

/// All seeds, from all golden bytes.
fn seeds() -> Result<Seeds> {
    let mut seeds = Seeds::default();
    for file in files(&root("tests/data/wire"))? {
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let vector: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let text = |pointer: &str| vector.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (name, bytes) = (text("/name"), hex::decode(text("/hex"))?);
        let key = hex::decode(text("/config/key_hex"))?;
        let keys = if key.is_empty() { Vec::new() } else { vec![Key::new(&key)?] };
        let choice = u8::from(!text("/config/label").is_empty()) | if keys.is_empty() { 0 } else { 4 };
        let options = PacketOptions {
            label: Label::new(text("/config/label"))?,
            keyring: Keyring::new(keys)?,
            ..PacketOptions::default()
        };
        let transport = text("/transport");
        if matches!(transport, "dskit-packet" | "dskit-stream") {
            seeds.add("grafana_frame", name, [&[3], &bytes[..]].concat());
        }
        match transport {
            "udp" => seeds.packet(name, &bytes, choice, &options),
            "dskit-packet" => {
                let packet = bytes.get(2 + usize::from(bytes[1])..bytes.len() - 16).context("no packet")?;
                seeds.packet(name, packet, choice, &options);
            }
            "tcp" => seeds.stream(name, &bytes, choice, StreamSide::Accepted, &options),
            "dskit-stream" => seeds.stream(name, &bytes[1..], choice, StreamSide::Accepted, &options),
            _ => seeds.stream(name, &bytes, choice, StreamSide::Dialed, &options),
        }
    }
    Ok(seeds)
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a folder; none when there is no such folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

#[test]
fn the_golden_bytes_hold_in_every_target() -> Result<()> {
    let seeds = seeds()?;
    for (name, target) in TARGETS {
        let seeds = seeds.0.get(name).with_context(|| format!("no seeds for {name}"))?;
        ensure!(seeds.len() >= 10, "{name} has only {} seeds", seeds.len());
        for (seed, bytes) in seeds {
            println!("{name}/{seed}");
            target(bytes);
            if std::env::var_os("ANNULUS_WRITE_CORPUS").is_some() {
                let folder = root("fuzz/corpus").join(name);
                fs::create_dir_all(&folder)?;
                fs::write(folder.join(seed), bytes)?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_was_found_stays_fixed() -> Result<()> {
    for (name, target) in TARGETS {
        for file in files(&root("fuzz/regressions").join(name))? {
            println!("{}", file.display());
            target(&fs::read(file)?);
        }
    }
    Ok(())
}
