//! Mixed clusters of Annulus and of memberlist itself: HashiCorp's library and Grafana's fork of it.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/interop/mod.rs"]
mod interop;

use std::time::{Duration, Instant};

use annulus::swim::SwimConfig;
use annulus::wire::message::MemberState;
use annulus::wire::{Compression, Key, Keyring, Label, PacketOptions};
use base64::Engine as _;
use interop::core_node::CoreNode;
use interop::go_peer::{GoPeer, Library, Settings};
use interop::loopback::Loopback;
use interop::matrix::{Scenario, passed};
use interop::{for_each_version, until};

for_each_version! {
    [hashicorp: super::Library::Hashicorp, grafana: super::Library::Grafana] {
        members_join_both_ways_and_tell_each_other_everything
        a_goodbye_is_believed_and_the_name_may_return_elsewhere
        a_killed_member_is_noticed_as_soon_as_among_peers
        a_suspected_member_that_lives_refutes
        other_labels_are_refused_on_both_sides
        keys_of_all_sizes_work_and_other_keys_are_refused_on_both_sides
        keys_are_rotated_in_a_running_cluster
        compressed_and_plain_members_understand_each_other
    }
}

/// The same timings as [`Settings::fast`].
fn fast() -> SwimConfig {
    SwimConfig {
        probe_interval: Duration::from_millis(500),
        probe_timeout: Duration::from_millis(200),
        gossip_interval: Duration::from_millis(100),
        push_pull_interval: Duration::from_secs(1),
        stream_timeout: Duration::from_secs(5),
        ..SwimConfig::lan()
    }
}

fn with(packet: PacketOptions) -> SwimConfig {
    SwimConfig { packet, ..fast() }
}

/// Long suspicions, for tests in which nobody may be given up: a busy machine can hold a process up for seconds.
const PATIENT: u32 = 60;

/// A node of ours on any port of an address.
fn core(name: &str, at: &Loopback, config: SwimConfig) -> CoreNode {
    CoreNode::start(name, at.ip(), 0, config, format!("meta of {name}"))
}

async fn sees_meta(peer: &GoPeer, name: &str, meta: &str) {
    let what = format!("{} sees the meta {meta}", peer.name());
    until(&what, async || peer.members().await, |all| all.iter().any(|m| m.0 == name && m.2 == meta)).await;
}

async fn we_see_meta(node: &CoreNode, name: &str, meta: &str) {
    let what = format!("{} sees the meta {meta}", node.name());
    until(&what, async || node.member(name).map(|m| m.meta.clone()), |seen| seen.as_deref() == Some(meta.as_bytes()))
        .await;
}

/// Messages in packets and over streams and to everyone, from each to the other. Returns how long packets and streams took.
async fn exchange_messages(node: &CoreNode, peer: &GoPeer, tag: &str) -> (Duration, Duration) {
    // Whoever is joined takes over the state of the other only after it has answered.
    let known = async || peer.names().await;
    until(&format!("{} knows {}", peer.name(), node.name()), known, |all| all.iter().any(|n| n == node.name())).await;
    let begin = Instant::now();
    node.send(peer.name(), format!("packet of ours {tag}"));
    peer.tell(&format!("udp {} packet of theirs {tag}", node.name())).await;
    node.broadcast(tag, format!("broadcast of ours {tag}"));
    peer.tell(&format!("broadcast broadcast of theirs {tag}")).await;
    peer.hears(&format!("packet of ours {tag}")).await;
    node.hears(format!("packet of theirs {tag}")).await;
    peer.hears(&format!("broadcast of ours {tag}")).await;
    node.hears(format!("broadcast of theirs {tag}")).await;
    let packets = begin.elapsed();
    let begin = Instant::now();
    // Too large for a packet.
    let long = |whose: &str| format!("stream of {whose} {tag} {}", "0123456789".repeat(2_000));
    node.send(peer.name(), long("ours"));
    peer.tell(&format!("tcp {} {}", node.name(), long("theirs"))).await;
    peer.hears(&long("ours")).await;
    node.hears(long("theirs")).await;
    (packets, begin.elapsed())
}

async fn exchange_states(node: &CoreNode, peer: &GoPeer, tag: &str) -> Duration {
    let begin = Instant::now();
    let state = |whose: &str| format!("state of {whose} {tag} {}", "abcdefghij".repeat(500));
    node.set_state(state("ours"));
    peer.tell(&format!("state {}", state("theirs"))).await;
    peer.receives_state(&state("ours")).await;
    node.receives_state(state("theirs")).await;
    begin.elapsed()
}

async fn members_join_both_ways_and_tell_each_other_everything(library: Library) {
    let [a, b, c] = [Loopback::lease(), Loopback::lease(), Loopback::lease()];
    let Some(peer) = GoPeer::start(library, "theirs", &b, Settings::fast().with("meta", "meta of theirs")).await else {
        return;
    };
    let record = |scenario, took| passed(library.peer(), peer.version(), scenario, took);

    let ours = core("ours", &a, fast());
    let begin = Instant::now();
    peer.join(ours.addr()).await.unwrap();
    ours.sees(&["ours", "theirs"]).await;
    peer.sees(&["ours", "theirs"]).await;
    record(Scenario::JoinsUs, begin.elapsed());

    let third = core("third", &c, fast());
    let begin = Instant::now();
    third.join(peer.addr()).await.unwrap();
    for node in [&ours, &third] {
        node.sees(&["ours", "theirs", "third"]).await;
    }
    peer.sees(&["ours", "theirs", "third"]).await;
    record(Scenario::WeJoin, begin.elapsed());

    sees_meta(&peer, "ours", "meta of ours").await;
    sees_meta(&peer, "third", "meta of third").await;
    we_see_meta(&ours, "theirs", "meta of theirs").await;
    let begin = Instant::now();
    ours.set_meta("news of ours");
    peer.tell("meta news of theirs").await;
    sees_meta(&peer, "ours", "news of ours").await;
    we_see_meta(&ours, "theirs", "news of theirs").await;
    we_see_meta(&third, "theirs", "news of theirs").await;
    record(Scenario::Metadata, begin.elapsed());

    let (packets, streams) = exchange_messages(&ours, &peer, "1").await;
    record(Scenario::PacketMessages, packets);
    record(Scenario::StreamMessages, streams);
    record(Scenario::PushPull, exchange_states(&ours, &peer, "1").await);
}

async fn a_goodbye_is_believed_and_the_name_may_return_elsewhere(library: Library) {
    let [a, b, c] = [Loopback::lease(), Loopback::lease(), Loopback::lease()];
    // Only the name of a member that left is free at once.
    let Some(witness) = GoPeer::start(library, "witness", &a, Settings::fast().with("dead-reclaim-time", "0s")).await
    else {
        return;
    };
    let record = |scenario, took| passed(library.peer(), witness.version(), scenario, took);
    let ours = core("ours", &b, SwimConfig { dead_reclaim_time: Duration::ZERO, ..fast() });
    let theirs = GoPeer::start(library, "theirs", &c, Settings::fast()).await.unwrap();
    ours.join(witness.addr()).await.unwrap();
    theirs.join(ours.addr()).await.unwrap();
    let leaver = core("leaver", &b, fast());
    leaver.join(witness.addr()).await.unwrap();
    let everyone = ["leaver", "ours", "theirs", "witness"];
    ours.sees(&everyone).await;
    witness.sees(&everyone).await;

    let begin = Instant::now();
    theirs.tell("leave").await;
    ours.sees_state("theirs", MemberState::Left).await;
    record(Scenario::TheirLeave, begin.elapsed());
    assert!(!ours.saw_failure_of("theirs"));
    drop(theirs);
    let begin = Instant::now();
    let theirs = GoPeer::start(library, "theirs", &c, Settings::fast()).await.unwrap();
    theirs.join(ours.addr()).await.unwrap();
    ours.sees(&everyone).await;
    assert_eq!(ours.member("theirs").unwrap().socket_addr(), Some(theirs.addr()));
    record(Scenario::TheirRestart, begin.elapsed());

    let begin = Instant::now();
    leaver.leave().await;
    let gone = ["ours", "theirs", "witness"];
    witness.sees(&gone).await;
    theirs.sees(&gone).await;
    ours.sees_state("leaver", MemberState::Left).await;
    record(Scenario::OurLeave, begin.elapsed());
    let before = leaver.addr();
    let begin = Instant::now();
    let leaver = core("leaver", &b, fast());
    assert_ne!(leaver.addr(), before);
    leaver.join(witness.addr()).await.unwrap();
    // A name that had failed would be refused with another address.
    for peer in [&witness, &theirs] {
        let there = ("leaver".to_owned(), leaver.addr().to_string(), "meta of leaver".to_owned());
        until("the name is taken over", async || peer.members().await, |all| all.contains(&there)).await;
    }
    record(Scenario::OurRestart, begin.elapsed());
    assert!(!ours.saw_failure_of("leaver"));
}

/// The longest that it can take to declare a killed one of three dead, by the rules: the prober is in the middle of a
/// round of probes, and its own health is not perfect; the suspicion is as long as one without confirmations gets. Times
/// three, for a machine that has other work.
fn longest_detection() -> Duration {
    let config = fast();
    3 * config.probe_interval * (2 * 2 + 1 + config.suspicion_mult)
}

async fn a_killed_member_is_noticed_as_soon_as_among_peers(library: Library) {
    let at: [Loopback; 9] = std::array::from_fn(|_| Loopback::lease());
    let settings = Settings::fast().with("dead-reclaim-time", "1s");
    let config = SwimConfig { dead_reclaim_time: Duration::from_secs(1), ..fast() };
    let start = async |name: &str, at| GoPeer::start(library, name, at, settings.clone()).await;
    let Some(mut victim) = start("victim", &at[0]).await else { return };
    let version = victim.version().to_owned();
    let record = |scenario, took| passed(library.peer(), &version, scenario, took);

    // Each death is noticed by two nodes of the same kind.
    let (mut victim_of_peers, peer_1, peer_2) = tokio::join!(
        async { start("victim", &at[1]).await.unwrap() },
        async { start("peer-1", &at[2]).await.unwrap() },
        async { start("peer-2", &at[3]).await.unwrap() },
    );
    let (peer_3, peer_4) = tokio::join!(async { start("peer-3", &at[4]).await.unwrap() }, async {
        start("peer-4", &at[5]).await.unwrap()
    });
    let [our_1, our_2, our_victim] =
        [("our-1", &at[6]), ("our-2", &at[7]), ("victim", &at[8])].map(|(name, at)| core(name, at, config.clone()));
    peer_1.join(victim_of_peers.addr()).await.unwrap();
    peer_2.join(victim_of_peers.addr()).await.unwrap();
    our_1.join(victim.addr()).await.unwrap();
    our_2.join(victim.addr()).await.unwrap();
    peer_3.join(our_victim.addr()).await.unwrap();
    peer_4.join(our_victim.addr()).await.unwrap();
    our_1.sees(&["our-1", "our-2", "victim"]).await;
    our_2.sees(&["our-1", "our-2", "victim"]).await;
    for (peer, other) in [(&peer_1, "peer-2"), (&peer_2, "peer-1"), (&peer_3, "peer-4"), (&peer_4, "peer-3")] {
        peer.sees(&[peer.name(), other, "victim"]).await;
    }

    victim.kill();
    victim_of_peers.kill();
    our_victim.kill();
    let begin = Instant::now();
    let both = async |one: &GoPeer, other: &GoPeer| {
        one.sees(&[one.name(), other.name()]).await;
        other.sees(&[one.name(), other.name()]).await;
        begin.elapsed()
    };
    let by_us = async {
        our_1.sees_state("victim", MemberState::Dead).await;
        our_2.sees_state("victim", MemberState::Dead).await;
        begin.elapsed()
    };
    let (by_us, among_them, by_them) = tokio::join!(by_us, both(&peer_1, &peer_2), both(&peer_3, &peer_4));
    record(Scenario::TheirDeath, by_us);
    record(Scenario::OurDeath, by_them);
    record(Scenario::DeathAmongThem, among_them);
    let bound = longest_detection().max(2 * among_them);
    assert!(by_us <= bound && by_them <= bound, "{by_us:?}, {by_them:?}, among them {among_them:?}");

    // The names of the dead are taken over a second later, at another port.
    let begin = Instant::now();
    let returned = start("victim", &at[0]).await.unwrap();
    returned.join(our_1.addr()).await.unwrap();
    for node in [&our_1, &our_2] {
        let seen = async || node.member("victim").map(|member| (member.state, member.socket_addr()));
        let there = Some((MemberState::Alive, Some(returned.addr())));
        until("we see its name elsewhere", seen, |seen| *seen == there).await;
    }
    record(Scenario::TheirReturn, begin.elapsed());
    let begin = Instant::now();
    let returned = core("victim", &at[8], config.clone());
    returned.join(peer_3.addr()).await.unwrap();
    for peer in [&peer_3, &peer_4] {
        let there = ("victim".to_owned(), returned.addr().to_string(), "meta of victim".to_owned());
        until("it sees our name elsewhere", async || peer.members().await, |all| all.contains(&there)).await;
    }
    record(Scenario::OurReturn, begin.elapsed());
}

async fn a_suspected_member_that_lives_refutes(library: Library) {
    let [a, b, c] = [Loopback::lease(), Loopback::lease(), Loopback::lease()];
    // Time enough to be suspected and to come back, however busy the machine.
    let patient = SwimConfig { suspicion_mult: PATIENT, ..fast() };
    let settings = Settings::fast().with("suspicion-mult", PATIENT);
    let Some(theirs) = GoPeer::start(library, "theirs", &a, settings.clone()).await else { return };
    let record = |scenario, took| passed(library.peer(), theirs.version(), scenario, took);
    let witness = core("witness", &b, patient.clone());
    let ours = core("ours", &c, patient);
    witness.join(theirs.addr()).await.unwrap();
    ours.join(theirs.addr()).await.unwrap();
    let everyone = ["ours", "theirs", "witness"];
    witness.sees(&everyone).await;
    ours.sees(&everyone).await;
    theirs.sees(&everyone).await;

    let before = witness.member("theirs").unwrap().incarnation;
    theirs.pause();
    witness.sees_state("theirs", MemberState::Suspect).await;
    theirs.resume();
    let begin = Instant::now();
    witness.sees(&everyone).await;
    ours.sees(&everyone).await;
    record(Scenario::TheirRefutation, begin.elapsed());
    assert!(witness.member("theirs").unwrap().incarnation > before);
    assert!(!witness.saw_failure_of("theirs") && !ours.saw_failure_of("theirs"));

    // Only the peer can suspect: the witness is gone, and the peer says so.
    witness.leave().await;
    theirs.sees(&["ours", "theirs"]).await;
    let before = ours.member("ours").unwrap().incarnation;
    ours.mute(true);
    until("the peer suspects us", async || theirs.process_log(), |log| log.contains("Suspect ours has failed")).await;
    ours.mute(false);
    let begin = Instant::now();
    let what = "we refute";
    until(what, async || ours.member("ours").unwrap().incarnation, |now| *now > before).await;
    // A newcomer learns the state from the peer.
    let newcomer = core("newcomer", &b, fast());
    newcomer.join(theirs.addr()).await.unwrap();
    newcomer.sees(&["newcomer", "ours", "theirs"]).await;
    until(
        "the newcomer knows the refutation",
        async || newcomer.member("ours").unwrap().incarnation,
        |now| *now > before,
    )
    .await;
    record(Scenario::OurRefutation, begin.elapsed());
    assert!(!theirs.lost("ours"));
}

async fn other_labels_are_refused_on_both_sides(library: Library) {
    let [a, b, c, d] = std::array::from_fn(|_| Loopback::lease());
    let labelled = |text: &str| with(PacketOptions { label: Label::new(text).unwrap(), ..PacketOptions::default() });
    let Some(peer) = GoPeer::start(library, "theirs", &a, Settings::fast().with("label", "one")).await else { return };
    let stranger = GoPeer::start(library, "stranger", &b, Settings::fast().with("label", "two")).await.unwrap();
    let begin = Instant::now();
    let ours = core("ours", &c, labelled("one"));
    ours.join(peer.addr()).await.unwrap();
    ours.sees(&["ours", "theirs"]).await;
    exchange_messages(&ours, &peer, "labelled").await;
    exchange_states(&ours, &peer, "labelled").await;

    for (name, config) in [("other", labelled("two")), ("none", fast())] {
        let outsider = core(name, &d, config);
        let refused = outsider.join(peer.addr()).await;
        assert!(refused.is_err(), "{name} joined the peer");
        let refused = peer.join(outsider.addr()).await;
        assert!(refused.is_err(), "the peer joined {name}");
        assert_eq!(outsider.alive(), [name]);
    }
    let refused = stranger.join(ours.addr()).await;
    assert!(refused.is_err(), "the stranger joined us");
    let refused = ours.join(stranger.addr()).await;
    assert!(refused.is_err(), "we joined the stranger");
    assert_eq!(stranger.names().await, ["stranger"]);
    assert_eq!(peer.names().await, ["ours", "theirs"]);
    passed(library.peer(), peer.version(), Scenario::Label, begin.elapsed());
}

/// A key of this many bytes, for us and for a command line.
fn key(len: usize, fill: u8) -> (Key, String) {
    let bytes = vec![fill; len];
    (Key::new(&bytes).unwrap(), base64::engine::general_purpose::STANDARD.encode(&bytes))
}

async fn keys_of_all_sizes_work_and_other_keys_are_refused_on_both_sides(library: Library) {
    let [a, b, c] = std::array::from_fn(|_| Loopback::lease());
    let begin = Instant::now();
    let mut version = String::new();
    for len in [16, 24, 32] {
        let (ours_key, text) = key(len, 7);
        let settings = Settings::fast().with("keys", text).with("label", "keyed");
        let Some(peer) = GoPeer::start(library, "theirs", &a, settings).await else { return };
        let label = Label::new("keyed").unwrap();
        let labelled = |keyring| with(PacketOptions { keyring, label: label.clone(), ..PacketOptions::default() });
        let ours = core("ours", &b, labelled(Keyring::new([ours_key]).unwrap()));
        ours.join(peer.addr()).await.unwrap();
        ours.sees(&["ours", "theirs"]).await;
        exchange_messages(&ours, &peer, "sealed").await;
        exchange_states(&ours, &peer, "sealed").await;
        let without = labelled(Keyring::default());
        for (name, config) in [("other", labelled(Keyring::new([key(len, 8).0]).unwrap())), ("none", without)] {
            let outsider = core(name, &c, config);
            assert!(outsider.join(peer.addr()).await.is_err(), "{name} joined the peer, {len} bytes");
            assert!(peer.join(outsider.addr()).await.is_err(), "the peer joined {name}, {len} bytes");
            assert_eq!(outsider.alive(), [name]);
        }
        assert_eq!(peer.names().await, ["ours", "theirs"]);
        version = peer.version().to_owned();
    }
    passed(library.peer(), &version, Scenario::Keys, begin.elapsed());
}

async fn keys_are_rotated_in_a_running_cluster(library: Library) {
    let [a, b, c] = std::array::from_fn(|_| Loopback::lease());
    let ((old, old_text), (new, new_text)) = (key(16, 1), key(32, 2));
    let settings = Settings::fast().with("suspicion-mult", PATIENT).with("keys", &old_text);
    let Some(peer) = GoPeer::start(library, "theirs", &a, settings).await else { return };
    let mut keys = Keyring::new([old.clone()]).unwrap();
    let packet = PacketOptions { keyring: keys.clone(), ..PacketOptions::default() };
    let config = SwimConfig { suspicion_mult: PATIENT, ..with(packet) };
    let nodes = [core("ours", &b, config.clone()), core("third", &c, config)];
    let everyone = ["ours", "theirs", "third"];
    for node in &nodes {
        node.join(peer.addr()).await.unwrap();
    }
    let begin = Instant::now();
    for step in ["key-add", "key-use", "key-remove"] {
        match step {
            "key-add" => keys.add(new.clone()).unwrap(),
            "key-use" => keys.use_key(&new).unwrap(),
            _ => keys.remove(&old).unwrap(),
        }
        peer.tell(&format!("{step} {}", if step == "key-remove" { &old_text } else { &new_text })).await;
        for node in &nodes {
            node.set_keys(keys.clone());
            exchange_messages(node, &peer, &format!("{step} {}", node.name())).await;
            exchange_states(node, &peer, &format!("{step} {}", node.name())).await;
        }
        for node in &nodes {
            node.sees(&everyone).await;
        }
        peer.sees(&everyone).await;
    }
    let took = begin.elapsed();
    assert!(!peer.lost("ours") && !peer.lost("third"));
    for node in &nodes {
        assert!(!node.saw_failure_of("theirs") && !node.saw_failure_of("ours") && !node.saw_failure_of("third"));
    }
    passed(library.peer(), peer.version(), Scenario::KeyRotation, took);
}

async fn compressed_and_plain_members_understand_each_other(library: Library) {
    let [a, b, c] = std::array::from_fn(|_| Loopback::lease());
    let compressing = |compression| with(PacketOptions { compression, ..PacketOptions::default() });
    let begin = Instant::now();
    let mut version = String::new();
    let theirs: &[&str] = match library {
        Library::Hashicorp => &["", "lzw"],
        Library::Grafana => &["", "lzw", "snappy"],
    };
    for algorithm in theirs {
        let settings = match (library, *algorithm) {
            (_, "") => Settings::fast(),
            (Library::Hashicorp, _) => Settings::fast().with("compress", true),
            (Library::Grafana, algorithm) => {
                Settings::fast().with("compress", true).with("compression-algorithm", algorithm)
            }
        };
        let Some(peer) = GoPeer::start(library, "theirs", &a, settings).await else { return };
        // HashiCorp's library has never heard of snappy.
        let ours = match library {
            Library::Hashicorp => [Compression::None, Compression::Lzw],
            Library::Grafana => [Compression::Lzw, Compression::Snappy],
        };
        for (compression, at) in ours.into_iter().zip([&b, &c]) {
            let name = format!("{compression:?}").to_lowercase();
            let node = core(&name, at, compressing(compression));
            node.join(peer.addr()).await.unwrap();
            exchange_messages(&node, &peer, &name).await;
            exchange_states(&node, &peer, &name).await;
            node.leave().await;
        }
        version = peer.version().to_owned();
    }
    passed(library.peer(), &version, Scenario::Compression, begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_libraries_and_annulus_live_in_one_cluster() {
    let [a, b, c, d] = std::array::from_fn(|_| Loopback::lease());
    let Some(hashicorp) = GoPeer::start(Library::Hashicorp, "hashicorp", &a, Settings::fast()).await else { return };
    let Some(grafana) = GoPeer::start(Library::Grafana, "grafana", &b, Settings::fast()).await else { return };
    let [ours, third] = [core("ours", &c, fast()), core("third", &d, fast())];
    let begin = Instant::now();
    // A chain, so that everyone learns of somebody by somebody else.
    ours.join(hashicorp.addr()).await.unwrap();
    grafana.join(ours.addr()).await.unwrap();
    third.join(grafana.addr()).await.unwrap();
    let everyone = ["grafana", "hashicorp", "ours", "third"];
    tokio::join!(hashicorp.sees(&everyone), grafana.sees(&everyone), ours.sees(&everyone), third.sees(&everyone));
    let took = begin.elapsed();
    hashicorp.tell("broadcast for all of you").await;
    tokio::join!(grafana.hears("for all of you"), ours.hears("for all of you"), third.hears("for all of you"));
    for peer in [(Library::Hashicorp, &hashicorp), (Library::Grafana, &grafana)] {
        passed(peer.0.peer(), peer.1.version(), Scenario::MixedVersions, took);
    }
}
