//! Clusters that encrypt, in virtual time.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;

use super::harness::Net;
use crate::swim::{Input, MemberEvent, SwimConfig};
use crate::wire::message::{MemberState, Message};
use crate::wire::{
    Compression, EncryptionVersion, Key, Keyring, PacketOptions, StreamDecoder, StreamSide, WireError, decode_packet,
};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn keyed(fill: u8) -> PacketOptions {
    PacketOptions {
        label: "prod".parse().unwrap(),
        keyring: Keyring::new([Key::new(&[fill; 32]).unwrap()]).unwrap(),
        compression: Compression::Lzw,
        ..PacketOptions::default()
    }
}

fn config(packet: PacketOptions) -> SwimConfig {
    SwimConfig { packet, ..SwimConfig::lan() }
}

fn says_nothing(message: &Message) -> bool {
    match message {
        Message::Ping(ping) => ping.node.is_empty() && ping.source.is_none(),
        Message::IndirectPing(ping) => ping.node.is_empty() && ping.source.is_none() && ping.target.is_none(),
        _ => false,
    }
}

#[test]
fn a_cluster_with_key_label_and_compression_works_and_says_nothing_in_the_clear() {
    for encryption_version in [EncryptionVersion::V1, EncryptionVersion::V0] {
        let options = PacketOptions { encryption_version, ..keyed(7) };
        let config = config(options.clone());
        let mut net = Net::unjoined(6, 12, &config);
        net.wiretap = Some(Vec::new());
        net.loss = 0.05;
        net.nodes[3].user_state = Bytes::from(vec![b's'; 10_000]);
        net.join_all_to_first();
        net.until(secs(60), "the cluster forms", |net| net.all_alive(12));
        for i in 0..40 {
            // One in eight fits no packet and goes over streams.
            let len = if i % 8 == 0 { 2_000 } else { 200 };
            let payload = Bytes::from(vec![i as u8 + 1; len]);
            net.broadcast(i % 12, &format!("key{i}"), payload);
        }
        net.until(secs(60), "all have heard all", |net| net.nodes.iter().all(|node| node.heard.len() == 40));
        net.nodes[11].up = false;
        net.until(secs(60), "the dead is found", |net| {
            net.views("n11").iter().all(|state| *state == Some(MemberState::Dead))
        });

        let refused: u64 = net.nodes.iter().flat_map(|node| node.swim.stats().packets_refused.values()).sum();
        assert_eq!(refused, 0);
        let eavesdropper = PacketOptions { keyring: Keyring::default(), ..options };
        let wire = net.wiretap.take().unwrap();
        assert!(wire.len() > 1_000);
        let mut nonces = HashSet::new();
        for bytes in &wire {
            // A packet behind its label, or a stream, which a dialer labels and an answer does not.
            let frame = bytes.iter().position(|byte| *byte == 10).filter(|at| [0, 6].contains(at));
            if frame.is_none() {
                assert!(bytes.len() <= config.packet_budget, "a packet of {} bytes", bytes.len());
            }
            let start = frame.map_or(7, |frame| frame + 6);
            assert!(nonces.insert(bytes.slice(start..start + 12)), "a nonce comes once");
            // Without a key, the version byte is the type of a ping, and one nonce in some hundred begins like a map
            // without fields.
            let heard = decode_packet(bytes, &eavesdropper).map_or(Vec::new(), |packet| packet.messages);
            assert!(heard.iter().all(says_nothing), "{heard:?}");
            if let Some(frame) = frame {
                let side = if frame == 0 { StreamSide::Dialed } else { StreamSide::Accepted };
                let mut decoder = StreamDecoder::new(&eavesdropper, side);
                decoder.feed(bytes).unwrap();
                assert_eq!(decoder.poll(), Err(WireError::NoKey));
            }
        }
    }
}

#[test]
fn strangers_with_another_key_or_none_stay_outside() {
    let mut net = Net::cluster(6, 3, &config(keyed(7)));
    let seed = net.nodes[0].addr;
    for (port, packet) in [
        (7100, keyed(8)),
        (7101, PacketOptions { keyring: Keyring::default(), ..keyed(7) }),
        (7102, PacketOptions { label: "other".parse().unwrap(), ..keyed(7) }),
        (7103, PacketOptions { verify_outgoing: false, ..keyed(7) }),
    ] {
        let stranger = net.add("stranger", port, &config(packet));
        net.input(stranger, Input::Join { id: 9, seeds: vec![seed] });
        net.until(secs(60), "the join is over", |net| !net.nodes[stranger].joins.is_empty());
        let (_, joined, errors) = net.nodes[stranger].joins[0].clone();
        assert_eq!((joined, errors.len()), (0, 1), "{port}: {errors:?}");
        net.run(secs(20));
        assert_eq!(net.nodes[stranger].swim.members().len(), 1, "{port} learned of members");
        net.nodes[stranger].up = false;
        assert!(net.all_alive(3), "{port} was learned of");
    }
}

#[test]
fn a_member_with_old_and_new_key_understands_both_during_a_change_of_keys() {
    let (old, new) = (Key::new(&[7; 32]).unwrap(), Key::new(&[8; 16]).unwrap());
    let with =
        |keys: &[&Key]| PacketOptions { keyring: Keyring::new(keys.iter().copied().cloned()).unwrap(), ..keyed(0) };
    let mut net = Net::new(8);
    for (i, packet) in [with(&[&old, &new]), with(&[&new, &old]), with(&[&new, &old])].into_iter().enumerate() {
        net.add(&format!("n{i}"), 7000 + i as u16, &config(packet));
    }
    net.join_all_to_first();
    net.until(secs(60), "the cluster forms", |net| net.all_alive(3));
    net.run(secs(60));
    assert!(net.all_alive(3));
}

#[test]
fn a_running_cluster_changes_its_key_in_three_rounds_and_nobody_is_ever_suspected() {
    let (old, new) = (Key::new(&[1; 16]).unwrap(), Key::new(&[2; 32]).unwrap());
    let ring = |keys: &[&Key]| Keyring::new(keys.iter().copied().cloned()).unwrap();
    let mut net = Net::cluster(31, 10, &config(PacketOptions { keyring: ring(&[&old]), ..PacketOptions::default() }));
    for round in [ring(&[&old, &new]), ring(&[&new, &old]), ring(&[&new])] {
        for node in 0..10 {
            net.set_keyring(node, round.clone());
            net.broadcast(node, "key", Bytes::from(format!("{node} of round {round:?}")));
            // Long enough for probes, gossip and, over a round, push/pulls between nodes before and after the change.
            net.run(secs(5));
        }
    }
    net.until(secs(60), "all have heard all", |net| net.nodes.iter().all(|node| node.heard.len() == 30));
    assert!(net.all_alive(10));
    for node in &net.nodes {
        let suspected = node.events.iter().filter(|(_, event)| matches!(event, MemberEvent::Suspected(_)));
        assert_eq!(suspected.count(), 0);
        assert_eq!(node.swim.stats().packets_refused, Default::default());
        assert_eq!(node.swim.stats().push_pulls_failed, 0);
    }
    // The old key is worth nothing any more.
    let outside =
        net.add("outside", 7_500, &config(PacketOptions { keyring: ring(&[&old]), ..PacketOptions::default() }));
    let seed = net.nodes[0].addr;
    net.input(outside, Input::Join { id: 9, seeds: vec![seed] });
    net.until(secs(60), "the join ends", |net| !net.nodes[outside].joins.is_empty());
    assert_eq!(net.nodes[outside].joins[0].1, 0, "{:?}", net.nodes[outside].joins);
}
