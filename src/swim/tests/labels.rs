//! Labels: two clusters stay two, and a cluster can find out whether it is ready for another label.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::harness::Net;
use crate::swim::{ForeignLabels, Input, MAX_FOREIGN_LABELS, SwimConfig};
use crate::wire::message::{Message, Nack};
use crate::wire::{Label, PacketOptions, WireError, encode_message, encode_packets};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn config(own: &str, verify_label: bool, accepted: &[&str]) -> SwimConfig {
    let accepted_labels = accepted.iter().map(|text| label(text)).collect();
    let packet = PacketOptions { label: label(own), verify_label, accepted_labels, ..PacketOptions::default() };
    SwimConfig { packet, ..SwimConfig::lan() }
}

fn join(net: &mut Net, node: usize, to: usize) -> (usize, String) {
    let seed = net.nodes[to].addr;
    let done = net.nodes[node].joins.len();
    net.input(node, Input::Join { id: 7, seeds: vec![seed] });
    net.until(secs(60), "the join ends", |net| net.nodes[node].joins.len() > done);
    let (_, joined, errors) = &net.nodes[node].joins[done];
    (*joined, errors.join("; "))
}

#[test]
fn a_node_that_accepts_any_label_cannot_pull_a_verifying_one_into_its_cluster() {
    // The open node takes what anybody sends, and its answer would have been merged: stock memberlist has no way to see
    // whose answer it is.
    for open in ["", "other"] {
        let mut net = Net::new(3);
        let strict = net.add("strict", 7000, &config("prod", true, &[]));
        let open_node = net.add("open", 7001, &config(open, false, &[]));
        net.nodes[open_node].user_state = Bytes::from_static(b"the ring of another cluster");
        let (joined, error) = join(&mut net, strict, open_node);
        assert_eq!(joined, 0);
        assert!(error.contains("another label"), "{error}");
        net.run(secs(30));
        assert!(net.nodes[strict].states.is_empty(), "nothing of its state was taken");
        assert!(net.member(strict, "open").is_none());
        let foreign: Vec<_> = net.nodes[strict].swim.foreign_labels().iter().map(|(label, _)| label.clone()).collect();
        assert_eq!(foreign, [label(open)]);
    }
}

#[test]
fn an_unlabelled_node_does_not_fall_to_a_labelled_one_that_accepts_anything() {
    let mut net = Net::new(4);
    let plain = net.add("plain", 7000, &config("", true, &[]));
    let labelled = net.add("labelled", 7001, &config("prod", false, &[]));
    assert_eq!(join(&mut net, plain, labelled).0, 0);
    net.run(secs(30));
    assert!(net.member(plain, "labelled").is_none());
}

#[test]
fn nodes_that_accept_each_other_join_whatever_they_send() {
    let mut net = Net::new(5);
    let old = net.add("old", 7000, &config("old", true, &["new"]));
    let new = net.add("new", 7001, &config("new", true, &["old"]));
    assert_eq!(join(&mut net, new, old).0, 1);
    net.until(secs(10), "they are one cluster", |net| net.all_alive(2));
    net.run(secs(30));
    assert!(net.all_alive(2));
    assert_eq!(net.nodes[old].swim.heard_labels().of(net.nodes[new].addr).cloned(), Some(label("new")));
    assert_eq!(net.nodes[new].swim.heard_labels().of(net.nodes[old].addr).cloned(), Some(label("old")));
}

#[test]
fn a_check_tells_who_accepts_a_label_although_packets_are_lost() {
    let mut net = Net::new(6);
    net.add("asks", 7000, &config("", false, &[]));
    for i in 1..6 {
        net.add(&format!("open{i}"), 7000 + i, &config("", false, &[]));
    }
    // Members that were forgotten in the first round.
    net.add("shut1", 7006, &config("", true, &[]));
    net.add("shut2", 7007, &config("", true, &[]));
    net.join_all_to_first();
    net.until(secs(30), "the cluster forms", |net| net.all_alive(8));
    net.loss = 0.2;
    net.input(0, Input::CheckLabel { id: 1, label: label("prod") });
    net.until(secs(10), "the check ends", |net| !net.nodes[0].label_checks.is_empty());
    let names = |list: &[_]| {
        let mut names: Vec<String> = list.iter().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let (id, accept, silent) = net.nodes[0].label_checks[0].clone();
    assert_eq!((id, names(&accept)), (1, (1..6).map(|i| format!("open{i}")).collect()));
    assert_eq!(names(&silent), ["shut1", "shut2"]);
    // A ping is no trace of a foreign cluster for those who do not mind, and nobody was suspected for it.
    assert_eq!(net.nodes[1].swim.foreign_labels().iter().count(), 0);
    assert_eq!(
        net.nodes[6].swim.foreign_labels().iter().map(|(label, _)| label.clone()).collect::<Vec<_>>(),
        [label("prod")]
    );

    // Nobody to ask, nothing to wait for.
    let alone = net.add("alone", 7100, &config("", true, &[]));
    net.input(alone, Input::CheckLabel { id: 2, label: label("prod") });
    assert_eq!(net.nodes[alone].label_checks, [(2, vec![], vec![])]);
}

/// A packet that says nothing arrives under a label.
fn packet_under(net: &mut Net, node: usize, from: SocketAddr, text: &str) {
    let nothing = Message::Nack(Nack { seq_no: 1 });
    let options = PacketOptions { label: label(text), ..PacketOptions::default() };
    let mut nonces: StdRng = SeedableRng::seed_from_u64(0);
    for bytes in encode_packets(&[encode_message(&nothing)], &options, false, &mut nonces) {
        net.input(node, Input::Packet { from, bytes });
    }
}

#[test]
fn labels_that_strangers_make_up_leave_room_for_those_of_members() {
    let mut net = Net::cluster(9, 3, &config("", false, &[]));
    let (member, other) = (net.nodes[1].addr, net.nodes[2].addr);
    net.until(secs(60), "it hears from both", |net| {
        [member, other].iter().all(|from| net.nodes[0].swim.heard_labels().of(*from).is_some())
    });
    for i in 0..255 {
        packet_under(&mut net, 0, SocketAddr::from(([10, 9, 0, 1], 1_000 + i)), &format!("made-up-{i}"));
    }
    packet_under(&mut net, 0, member, "next");
    assert_eq!(net.nodes[0].swim.heard_labels().of(member), Some(&label("next")));
    assert!(net.nodes[0].swim.heard_labels().of(other).is_some(), "what members sent is still known");
}

#[test]
fn foreign_labels_are_counted_and_a_flood_of_them_takes_no_room() {
    let mut net = Net::new(7);
    let node = net.add("n", 7000, &config("prod", true, &[]));
    for i in 0..10_000_u32 {
        let from = SocketAddr::from(([10, 9, (i >> 8) as u8, i as u8], 7946));
        packet_under(&mut net, node, from, &format!("cluster-{i}"));
    }
    let foreign = net.nodes[node].swim.foreign_labels();
    assert_eq!(foreign.iter().count(), MAX_FOREIGN_LABELS);
    assert_eq!(foreign.iter().map(|(_, count)| count).sum::<u64>() + foreign.others(), 10_000);
    assert_eq!(net.nodes[node].swim.stats().packets_refused["label_mismatch"], 10_000);
    assert!(net.nodes[node].swim.heard_addresses() <= 300, "strangers are forgotten");
}

#[test]
fn counts_of_two_places_are_added() {
    let (mut a, mut b) = (ForeignLabels::default(), ForeignLabels::default());
    a.count(&label("x"));
    b.count(&label("x"));
    b.count(&Label::NONE);
    a.merge(&b);
    assert_eq!(a.iter().collect::<Vec<_>>(), [(&Label::NONE, 1), (&label("x"), 2)]);
    assert_eq!(WireError::WrongLabel { got: label("x") }.reason(), "label_mismatch");
}
