//! Nodes of Annulus in a cluster of Alertmanager, which uses memberlist without anything on top but its own data.
//!
//! What servers say to each other is theirs: nodes of ours get a silence from one of them and bring it, unchanged, to
//! another that has never been in its cluster.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/interop/mod.rs"]
mod interop;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use annulus::swim::SwimConfig;
use annulus::wire::message::MemberState;
use annulus::wire::{Compression, Label, PacketOptions};
use bytes::Bytes;
use interop::alertmanager::{Alertmanager, Version, swim_config};
use interop::core_node::CoreNode;
use interop::loopback::Loopback;
use interop::matrix::{Scenario, passed};
use interop::{for_each_version, until};

for_each_version! {
    [alertmanager_0_25: super::Version::V025, alertmanager_0_28: super::Version::V028, alertmanager_sid: super::Version::Sid] {
        members_join_both_ways_and_carry_silences
        a_goodbye_is_believed
        a_killed_member_is_noticed_as_soon_as_among_servers
        a_suspected_member_that_lives_refutes
    }
}

fn core(name: &str, at: &Loopback, config: SwimConfig) -> CoreNode {
    CoreNode::start(name, at.ip(), 0, config, Bytes::new())
}

fn record(version: Version, scenario: Scenario, took: Duration) {
    passed(version.peer(), &version.number(), scenario, took);
}

/// The option that lets a server join through a member.
fn peer(addr: SocketAddr) -> String {
    format!("--cluster.peer={addr}")
}

/// Waits until something that came in speaks of a silence with this comment, and returns it.
async fn carrying(what: &str, came: impl Fn() -> Vec<Bytes>, comment: &str) -> Bytes {
    let has = |bytes: &&Bytes| bytes.windows(comment.len()).any(|window| window == comment.as_bytes());
    until(what, async || came().len(), |_| came().iter().any(|bytes| has(&bytes))).await;
    came().iter().find(has).unwrap().clone()
}

async fn members_join_both_ways_and_carry_silences(version: Version) {
    let [a, b, c, d, e] = std::array::from_fn(|_| Loopback::lease());
    let ours = core("ours", &b, swim_config());
    let begin = Instant::now();
    let Some(server) = Alertmanager::start(version, &a, &[peer(ours.addr())]).await else { return };
    let name = server.name().await;
    server.sees(&[server.addr(), ours.addr()]).await;
    ours.sees(&["ours", &name]).await;
    record(version, Scenario::JoinsUs, begin.elapsed());

    // The courier lives in the cluster of another server.
    let elsewhere = Alertmanager::start(version, &c, &[]).await.unwrap();
    let there = elsewhere.name().await;
    let compressing = PacketOptions { compression: Compression::Lzw, ..PacketOptions::default() };
    let courier = core("courier", &d, SwimConfig { packet: compressing, ..swim_config() });
    let begin = Instant::now();
    courier.join(elsewhere.addr()).await.unwrap();
    courier.sees(&["courier", &there]).await;
    elsewhere.sees(&[elsewhere.addr(), courier.addr()]).await;
    record(version, Scenario::WeJoin, begin.elapsed());

    let begin = Instant::now();
    server.silence("a short silence").await;
    let silence = carrying("we hear of a silence", || ours.messages(), "a short silence").await;
    courier.send(&there, silence);
    elsewhere.has_silence("a short silence").await;
    record(version, Scenario::PacketMessages, begin.elapsed());

    let begin = Instant::now();
    let long = "too long for a packet ".repeat(200);
    server.silence(&long).await;
    let silence = carrying("we hear of a long silence", || ours.messages(), &long).await;
    courier.send(&there, silence);
    elsewhere.has_silence(&long).await;
    record(version, Scenario::StreamMessages, begin.elapsed());

    let begin = Instant::now();
    server.silence("the last silence").await;
    let state = carrying("we get its state", || ours.states(), "the last silence").await;
    courier.set_state(state.clone());
    elsewhere.has_silence("the last silence").await;
    record(version, Scenario::PushPull, begin.elapsed());

    // And with a join.
    let newcomer = Alertmanager::start(version, &e, &[peer(courier.addr())]).await.unwrap();
    newcomer.has_silence(&long).await;
}

async fn a_goodbye_is_believed(version: Version) {
    let [a, b, c] = std::array::from_fn(|_| Loopback::lease());
    let Some(server) = Alertmanager::start(version, &a, &[]).await else { return };
    let [ours, leaver] = [("ours", &b), ("leaver", &c)].map(|(name, at)| core(name, at, swim_config()));
    ours.join(server.addr()).await.unwrap();
    leaver.join(server.addr()).await.unwrap();
    server.sees(&[server.addr(), ours.addr(), leaver.addr()]).await;
    ours.sees(&["leaver", "ours", &server.name().await]).await;

    let begin = Instant::now();
    leaver.leave().await;
    server.sees(&[server.addr(), ours.addr()]).await;
    record(version, Scenario::OurLeave, begin.elapsed());
    ours.sees_state("leaver", MemberState::Left).await;
    assert!(!server.log().contains("Suspect leaver has failed"), "{}", server.log());

    let name = server.name().await;
    let begin = Instant::now();
    server.terminate();
    ours.sees_state(&name, MemberState::Left).await;
    record(version, Scenario::TheirLeave, begin.elapsed());
    assert!(!ours.saw_failure_of(&name));
}

/// The longest that it can take to declare a killed one of three dead, by the rules, times three: see the test with
/// memberlist.
fn longest_detection() -> Duration {
    let config = swim_config();
    3 * config.probe_interval * (2 * 2 + 1 + config.suspicion_mult)
}

async fn a_killed_member_is_noticed_as_soon_as_among_servers(version: Version) {
    let at: [Loopback; 9] = std::array::from_fn(|_| Loopback::lease());
    let start = async |at, seeds: &[String]| Alertmanager::start(version, at, seeds).await;
    let Some(mut victim) = start(&at[0], &[]).await else { return };
    let name = victim.name().await;
    let [our_1, our_2, our_victim] =
        [("our-1", &at[1]), ("our-2", &at[2]), ("our-victim", &at[3])].map(|(name, at)| core(name, at, swim_config()));
    our_1.join(victim.addr()).await.unwrap();
    our_2.join(victim.addr()).await.unwrap();

    let mut victim_of_servers = start(&at[4], &[]).await.unwrap();
    let (of_servers, of_ours) = ([peer(victim_of_servers.addr())], [peer(our_victim.addr())]);
    let (server_1, server_2) = tokio::join!(start(&at[5], &of_servers), start(&at[6], &of_servers));
    let (server_3, server_4) = tokio::join!(start(&at[7], &of_ours), start(&at[8], &of_ours));
    let among_them = [server_1.unwrap(), server_2.unwrap()];
    let by_them = [server_3.unwrap(), server_4.unwrap()];
    for node in [&our_1, &our_2] {
        node.sees(&["our-1", "our-2", &name]).await;
    }
    for (servers, victim) in [(&among_them, victim_of_servers.addr()), (&by_them, our_victim.addr())] {
        for server in servers {
            server.sees(&[servers[0].addr(), servers[1].addr(), victim]).await;
        }
    }

    victim.kill();
    victim_of_servers.kill();
    our_victim.kill();
    let begin = Instant::now();
    let both = async |servers: &[Alertmanager; 2]| {
        for server in servers {
            server.sees(&[servers[0].addr(), servers[1].addr()]).await;
        }
        begin.elapsed()
    };
    let by_us = async {
        our_1.sees_state(&name, MemberState::Dead).await;
        our_2.sees_state(&name, MemberState::Dead).await;
        begin.elapsed()
    };
    let (by_us, among_them, by_them) = tokio::join!(by_us, both(&among_them), both(&by_them));
    record(version, Scenario::TheirDeath, by_us);
    record(version, Scenario::OurDeath, by_them);
    record(version, Scenario::DeathAmongThem, among_them);
    let bound = longest_detection().max(2 * among_them);
    assert!(by_us <= bound && by_them <= bound, "{by_us:?}, {by_them:?}, among them {among_them:?}");
}

async fn a_suspected_member_that_lives_refutes(version: Version) {
    let [a, b, c] = std::array::from_fn(|_| Loopback::lease());
    // Suspicions of twelve seconds: time enough to come back, however busy the machine.
    let Some(server) = Alertmanager::start_probing(version, &a, Duration::from_secs(3), &[]).await else { return };
    let name = server.name().await;
    let patient = SwimConfig { suspicion_mult: 60, ..swim_config() };
    let ours = core("ours", &b, patient);
    ours.join(server.addr()).await.unwrap();
    ours.sees(&["ours", &name]).await;

    let before = ours.member(&name).unwrap().incarnation;
    server.pause();
    ours.sees_state(&name, MemberState::Suspect).await;
    server.resume();
    let begin = Instant::now();
    ours.sees(&["ours", &name]).await;
    record(version, Scenario::TheirRefutation, begin.elapsed());
    assert!(ours.member(&name).unwrap().incarnation > before && !ours.saw_failure_of(&name));

    let before = ours.member("ours").unwrap().incarnation;
    let suspicions = || server.log().matches("Suspect ours has failed").count();
    let earlier = suspicions();
    ours.mute(true);
    until("the server suspects us", async || suspicions(), |count| *count > earlier).await;
    ours.mute(false);
    let begin = Instant::now();
    until("we refute", async || ours.member("ours").unwrap().incarnation, |now| *now > before).await;
    let newcomer = core("newcomer", &c, swim_config());
    newcomer.join(server.addr()).await.unwrap();
    let seen = async || newcomer.member("ours").map(|member| (member.state, member.incarnation));
    until("the newcomer knows the refutation", seen, |seen| {
        seen.is_some_and(|(state, incarnation)| state == MemberState::Alive && incarnation > before)
    })
    .await;
    record(version, Scenario::OurRefutation, begin.elapsed());
    server.sees(&[server.addr(), ours.addr(), newcomer.addr()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_labels_are_refused_on_both_sides() {
    let labelled = |text: &str| SwimConfig {
        packet: PacketOptions { label: Label::new(text).unwrap(), ..PacketOptions::default() },
        ..swim_config()
    };
    let label = |text: &str| format!("--cluster.label={text}");
    let [a, b] = [Loopback::lease(), Loopback::lease()];
    let labelled_node = core("labelled", &a, labelled("one"));
    let seeds = [peer(labelled_node.addr())];
    let Some(has_none) = Alertmanager::start(Version::V025, &b, &seeds).await else { return };
    assert!(labelled_node.join(has_none.addr()).await.is_err(), "we joined a server without a label");
    until("it was refused", async || has_none.log(), |log| log.contains("memberlist: Failed to join")).await;
    assert_eq!(has_none.members().await, [has_none.addr().to_string()]);
    drop((has_none, labelled_node));
    for version in [Version::V028, Version::Sid] {
        let [a, b, c, d] = std::array::from_fn(|_| Loopback::lease());
        let begin = Instant::now();
        let ours = core("ours", &a, labelled("one"));
        let Some(server) = Alertmanager::start(version, &b, &[label("one"), peer(ours.addr())]).await else { return };
        let both = [server.addr(), ours.addr()];
        server.sees(&both).await;
        server.silence("under a label").await;
        carrying("we hear of a silence", || ours.messages(), "under a label").await;
        for (name, config) in [("other", labelled("two")), ("none", swim_config())] {
            let outsider = core(name, &c, config);
            assert!(outsider.join(server.addr()).await.is_err(), "{name} joined the server");
            assert_eq!(outsider.alive(), [name]);
        }
        // A server with another label tries to join us when it starts, and then every second.
        let stranger = Alertmanager::start(version, &d, &[label("two"), peer(ours.addr())]).await.unwrap();
        assert!(ours.join(stranger.addr()).await.is_err(), "we joined the stranger");
        until("the stranger was refused", async || stranger.log(), |log| log.contains("memberlist: Failed to join"))
            .await;
        assert_eq!(stranger.members().await, [stranger.addr().to_string()]);
        server.sees(&both).await;
        record(version, Scenario::Label, begin.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_versions_and_annulus_live_in_one_cluster() {
    let [a, b, c, d, e] = std::array::from_fn(|_| Loopback::lease());
    let [ours, third] = [("ours", &a), ("third", &b)].map(|(name, at)| core(name, at, swim_config()));
    third.join(ours.addr()).await.unwrap();
    let begin = Instant::now();
    let mut servers = Vec::new();
    for (version, at) in [(Version::V025, &c), (Version::V028, &d), (Version::Sid, &e)] {
        // Each joins through another of ours.
        let seed = if version == Version::V028 { third.addr() } else { ours.addr() };
        let Some(server) = Alertmanager::start(version, at, &[peer(seed)]).await else { return };
        servers.push((version, server));
    }
    let mut everyone: Vec<SocketAddr> = servers.iter().map(|(_, server)| server.addr()).collect();
    everyone.extend([ours.addr(), third.addr()]);
    for (_, server) in &servers {
        server.sees(&everyone).await;
    }
    let took = begin.elapsed();
    servers[0].1.silence("for all of you").await;
    for (version, server) in &servers {
        server.has_silence("for all of you").await;
        record(*version, Scenario::MixedVersions, took);
    }
}
