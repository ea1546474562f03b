//! `annulus decode`: bytes from a capture, explained by the decoders that run a cluster.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use annulus::kv::pair::{KeyValuePair, read_state};
use annulus::wire::inspect::{self, Inspected, Inspection};
use annulus::wire::{Key, Keyring, Label, Message, PacketOptions, StreamMessage, StreamSide};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::output::{Output, escape, pretty};

/// Most bytes that are read: the longest stream as hex, and spaces between.
const MAX_INPUT: u64 = 256 << 20;
/// Most pairs of the store that are listed.
const MAX_PAIRS: usize = 1_000;

#[derive(Debug, Args)]
pub(crate) struct Decode {
    /// The label that must be there, as text. Without it, any label is shown and accepted.
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,

    /// A key to decrypt with, in base64. May be repeated.
    #[arg(long, value_name = "BASE64")]
    key: Vec<String>,

    /// What carried the bytes. Grafana's transport has a framing of its own around packets and streams.
    #[arg(long, value_enum, default_value_t, value_name = "TRANSPORT")]
    transport: Transport,

    /// The bytes are what one side wrote on a stream, and not a packet. With `--transport tcp` they always are; with
    /// `grafana`, their first byte says so.
    #[arg(long)]
    stream: bool,

    /// The bytes are the answer on a stream: it has no label header, and is encrypted under the label of who asked.
    #[arg(long)]
    reply: bool,

    /// The input is the bytes themselves, and not hex. Input that is no text is taken so by itself.
    #[arg(long)]
    raw: bool,

    /// File with the bytes, in hex: spaces, line breaks, commas and 0x between them do not matter. Default: standard
    /// input.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What carries packets and streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// Packets, one a datagram.
    #[default]
    Udp,
    /// Streams.
    Tcp,
    /// dskit's TCP transport: one packet or one stream a connection.
    Grafana,
}

impl Decode {
    pub(crate) fn run(self, output: Output) -> anyhow::Result<ExitCode> {
        let (bytes, options) = (self.read()?, self.options()?);
        let is_stream = self.stream || self.transport == Transport::Tcp;
        let seen = match self.transport {
            _ if self.reply => inspect::stream(&bytes, &options, StreamSide::Dialed),
            Transport::Grafana => inspect::grafana(&bytes, &options),
            Transport::Udp | Transport::Tcp if is_stream => inspect::stream(&bytes, &options, StreamSide::Accepted),
            Transport::Udp | Transport::Tcp => inspect::packet(&bytes, &options),
        };
        let answer = json(&seen);
        output.print(&answer, || pretty(&answer))?;
        let Some(stop) = seen.error else { return Ok(ExitCode::SUCCESS) };
        eprintln!("annulus: {}, byte {}: {}", stop.stage.name(), stop.offset, escape(&stop.reason));
        Ok(ExitCode::FAILURE)
    }

    fn options(&self) -> anyhow::Result<PacketOptions> {
        let key = |(index, text): (usize, &String)| {
            Key::from_base64(text).with_context(|| format!("--key number {}", index + 1))
        };
        let keys = self.key.iter().enumerate().map(key).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(PacketOptions {
            label: Label::new(self.label.as_deref().unwrap_or_default()).context("--label")?,
            verify_label: self.label.is_some(),
            keyring: Keyring::new(keys).context("--key")?,
            ..PacketOptions::default()
        })
    }

    fn read(&self) -> anyhow::Result<Bytes> {
        let mut input = Vec::new();
        let (mut source, name): (Box<dyn Read>, _) = match &self.file {
            Some(path) => {
                let name = escape(&path.display().to_string());
                let file = std::fs::File::open(path);
                (Box::new(file.with_context(|| format!("cannot read {name}"))?), name)
            }
            None => (Box::new(std::io::stdin()), "standard input".to_owned()),
        };
        let read = source.by_ref().take(MAX_INPUT + 1).read_to_end(&mut input);
        if read.with_context(|| format!("cannot read {name}"))? as u64 > MAX_INPUT {
            bail!("{name} is longer than any packet or stream");
        }
        let text = match std::str::from_utf8(&input) {
            Ok(text) if !self.raw && !text.contains(|symbol: char| symbol.is_control() && !symbol.is_whitespace()) => {
                text
            }
            _ => return Ok(input.into()),
        };
        unhex(text).with_context(|| format!("{name} is not hex; give --raw when it is the bytes themselves"))
    }
}

/// Hex digits two by two, whatever stands between the pairs.
fn unhex(text: &str) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let words = text.split(|symbol: char| symbol.is_whitespace() || matches!(symbol, ',' | ':' | ';'));
    for word in words {
        let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")).unwrap_or(word);
        let values = digits.chars().map(|symbol| match symbol.to_digit(16) {
            Some(digit) => Ok(digit as u8),
            None => bail!("{symbol:?} is no hex digit"),
        });
        let values = values.collect::<anyhow::Result<Vec<u8>>>()?;
        let (pairs, rest) = values.as_chunks::<2>();
        if !rest.is_empty() {
            bail!("{:?} has an odd number of digits", digits.get(..20).unwrap_or(digits));
        }
        bytes.extend(pairs.iter().map(|[high, low]| high << 4 | low));
    }
    Ok(bytes.into())
}

/// The inspection as JSON, and beside what the gossip carries for a store what it is.
fn json(seen: &Inspection) -> Value {
    let mut answer = seen.to_json();
    for (index, message) in seen.messages.iter().enumerate() {
        let pairs = match message {
            Inspected::Packet(Message::User(payload)) | Inspected::Stream(StreamMessage::User(payload)) => {
                let found = KeyValuePair::from_bytes(payload.clone()).ok().filter(|found| !found.codec.is_empty());
                found.as_ref().map(pair)
            }
            Inspected::Stream(StreamMessage::PushPull(push_pull)) if !push_pull.user_state.is_empty() => {
                let pairs: Result<Vec<_>, _> = read_state(push_pull.user_state.clone(), MAX_PAIRS).collect();
                pairs.map(|pairs| pairs.iter().map(pair).collect()).ok()
            }
            _ => None,
        };
        if let Some(pairs) = pairs {
            answer["messages"][index]["kv"] = pairs;
        }
    }
    answer
}

fn pair(pair: &KeyValuePair) -> Value {
    json!({
        "key": pair.key, "codec": pair.codec, "value_bytes": pair.value.len(), "deleted": pair.deleted,
        "update_time_millis": pair.update_time_millis,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hex_is_read_as_tools_print_it() {
        for text in
            ["08686921", "08 68 69 21\n", "0x08686921", "0x08, 0x68, 0x69, 0x21", "08:68:69:21", "0868\n6921\r\n"]
        {
            assert_eq!(unhex(text).unwrap(), b"\x08hi!"[..], "{text}");
        }
        assert_eq!(unhex(" \n").unwrap(), b""[..]);
        assert_eq!(unhex("08 6g").unwrap_err().to_string(), "'g' is no hex digit");
        assert_eq!(unhex("08 686").unwrap_err().to_string(), "\"686\" has an odd number of digits");
        assert!(unhex("ä").is_err());
    }
}
