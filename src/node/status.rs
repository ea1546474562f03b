//! What a node shows of itself: made from published snapshots, so looking never disturbs it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::actors::guard::{ActorState, ChildStatus, Death};
use crate::actors::heartbeat::OwnInstance;
use crate::actors::system::System;
use crate::clock::Now;
use crate::migration::{LargeValue, MigrationStatus, Phase, Rollback};
use crate::ring::{InstanceState, Operation, Snapshot};
use crate::transport::{CounterValues, TcpCounterValues};
use crate::wire::message::MemberState;

/// One actor of the supervision tree.
#[derive(Clone, Debug, Serialize)]
pub struct ActorStatus {
    /// Its name, for example `heartbeat/ingester`.
    pub name: String,
    /// What it is doing.
    pub state: ActorState,
    /// How often it was started again, by reason.
    pub restarts: BTreeMap<&'static str, u64>,
    /// How it died last.
    pub last_death: Option<Death>,
    /// How long ago that was, in milliseconds.
    pub last_death_ms_ago: Option<u64>,
}

impl ActorStatus {
    pub(super) fn of(status: &ChildStatus) -> Self {
        let last = status.last_death();
        Self {
            name: status.name.clone(),
            state: status.state(),
            restarts: status.restarts().into_iter().collect(),
            last_death_ms_ago: last.as_ref().map(|(at, _)| {
                u64::try_from(Instant::now().saturating_duration_since(*at).as_millis()).unwrap_or(u64::MAX)
            }),
            last_death: last.map(|(_, death)| death),
        }
    }

    /// Restarts of every kind together.
    #[must_use]
    pub fn total_restarts(&self) -> u64 {
        self.restarts.values().sum()
    }
}

/// A ring for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct RingStatus {
    /// Its name.
    pub name: String,
    /// The structural digest, heartbeats left out: equal digests mean equal owners.
    pub digest: String,
    /// Its instances, by id.
    pub instances: Vec<InstanceStatus>,
    /// How this node's own instance is doing; absent when it only reads the ring.
    pub own: Option<OwnInstance>,
}

/// One instance of a ring.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: InstanceState,
    /// Where the application's peers dial it.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Unix time of its last heartbeat, in seconds.
    pub timestamp: i64,
    /// How long ago that was, in seconds.
    pub heartbeat_age_s: i64,
    /// Whether its heartbeat is recent enough.
    pub healthy: bool,
    /// Unix time of its registration, in seconds; 0 when unknown.
    pub registered_timestamp: i64,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// How many tokens it holds.
    pub tokens: usize,
    /// The share of the key space that it owns, between 0 and 1, among the tokens of its zone.
    pub ownership: f64,
}

impl RingStatus {
    pub(super) fn of(name: &str, snapshot: &Snapshot, own: Option<OwnInstance>, now: Now) -> Self {
        let ownership: BTreeMap<_, _> = snapshot.ownership().into_iter().collect();
        let instances = snapshot.instances().iter().map(|instance| InstanceStatus {
            id: instance.id.to_string(),
            state: instance.state,
            address: instance.addr.to_string(),
            zone: instance.zone.to_string(),
            timestamp: instance.timestamp,
            heartbeat_age_s: now.unix_secs().saturating_sub(instance.timestamp),
            healthy: instance.is_healthy(Operation::Reporting),
            registered_timestamp: instance.registered_timestamp,
            read_only: instance.read_only,
            tokens: instance.tokens.len(),
            ownership: ownership.get(&instance.id).copied().unwrap_or_default(),
        });
        Self {
            name: name.to_owned(),
            digest: format!("{:032x}", snapshot.digest()),
            instances: instances.collect(),
            own,
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RingState {
    name: String,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RingName {
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByStore {
    store: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByHash {
    sha256: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByNodeState {
    node_state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByGate {
    gate: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByLabel {
    label: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ActorRestart {
    actor: String,
    reason: &'static str,
}

/// The phase of a node whose store is not `multi`.
const SOLO: &str = "solo";

type Gauges<L> = Family<L, Gauge>;

/// Registers one number.
struct Page {
    registry: Registry,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: impl TryInto<i64>) {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        self.registry.register(name, help, gauge);
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.registry.register(name, help, gauge);
    }

    /// A counter whose name ends in `_total` on the page.
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.registry.register(name, help, counter);
    }

    /// A counter for each reason.
    fn by_reason(&mut self, name: &str, help: &str, counts: impl IntoIterator<Item = (&'static str, u64)>) {
        let family = Family::<ByReason, Counter>::default();
        self.registry.register(name, help, family.clone());
        for (reason, count) in counts {
            family.get_or_create(&ByReason { reason }).inc_by(count);
        }
    }

    fn family<L>(&mut self, name: &str, help: &str) -> Gauges<L>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
    {
        let family = Gauges::<L>::default();
        self.registry.register(name, help, family.clone());
        family
    }
}

/// All metrics of a node. Names that exist in the Grafana stack are theirs.
pub(super) fn metrics(system: &System) -> String {
    let mut page = Page { registry: Registry::default() };
    membership(&mut page, system);
    rings(&mut page, system);
    phase(&mut page, system);
    watches(&mut page, system);
    migration(&mut page, system);
    runtime_config(&mut page, system);
    actors(&mut page, system);
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = encode(&mut text, &page.registry);
    text
}

fn membership(page: &mut Page, system: &System) {
    let Some(transport) = &system.transport else { return };
    let members = system.members.load();
    let live = members.list.iter().filter(|member| member.is_live()).count();
    page.gauge("memberlist_client_cluster_members_count", "Members that are alive or suspected", live);
    page.gauge("memberlist_client_cluster_node_health_score", "Local health; 0 is healthy", members.health_score);
    page.gauge(
        "memberlist_client_messages_in_broadcast_queue",
        "Messages that wait to be gossiped",
        members.queued_broadcasts,
    );
    let by_state = page.family::<ByNodeState>("memberlist_node_instances", "Members by state");
    for (state, name) in [
        (MemberState::Alive, "alive"),
        (MemberState::Suspect, "suspect"),
        (MemberState::Dead, "dead"),
        (MemberState::Left, "left"),
    ] {
        let count = members.list.iter().filter(|member| member.state == state).count();
        by_state.get_or_create(&ByNodeState { node_state: name }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let moved = transport.transport.counters().snapshot();
    page.by_reason(
        "annulus_packets_refused",
        "Packets and messages refused; label_mismatch tells of another cluster",
        members.refused.iter().map(|(reason, count)| (*reason, *count)).chain([("over_rate", moved.packets_over_rate)]),
    );
    let counts = system.contents.as_ref().map(|contents| contents.stats().entries_refused).unwrap_or_default();
    page.by_reason(
        "annulus_entries_refused",
        "Entries of other nodes refused for their dates, or with reason own_clock just accepted",
        counts.by_reason(),
    );
    let foreign = Family::<ByLabel, Counter>::default();
    let help = "Packets and streams refused for their label, by that label";
    page.registry.register("annulus_foreign_label", help, foreign.clone());
    let counts = super::labels::foreign(&members, &transport.wrapping);
    for (label, count) in counts.iter() {
        foreign.get_or_create(&ByLabel { label: super::labels::text(label) }).inc_by(count);
    }
    // A label of this name cannot be told from it, but neither can do harm.
    if counts.others() > 0 {
        foreign.get_or_create(&ByLabel { label: "(others)".to_owned() }).inc_by(counts.others());
    }
    page.counter(
        "annulus_incarnation_jumps",
        "Incarnations that grew as no member's does: somebody may be forging them",
        members.incarnation_jumps,
    );
    page.counter("annulus_members_evicted", "Dead members forgotten early, the table being full", members.evicted);
    if let Some(tcp) = transport.transport.tcp_counters() {
        tcp_transport(page, &moved, &tcp);
    } else {
        page.counter("memberlist_udp_received_bytes", "Bytes of packets received", moved.packet_bytes_in);
        page.counter("memberlist_udp_sent_bytes", "Bytes of packets sent", moved.packet_bytes_out);
    }
    page.counter("annulus_packets_received", "Packets received", moved.packets_in);
    page.counter("annulus_packets_sent", "Packets sent", moved.packets_out);
    page.counter(
        "annulus_packets_dropped",
        "Packets dropped because a queue or a socket buffer was full",
        moved.packets_dropped + transport.queue.dropped(),
    );
    page.counter("annulus_streams_accepted", "Streams accepted", moved.streams_in);
    page.counter("annulus_streams_opened", "Streams opened", moved.streams_out);
    let over_limits = [
        ("too_many", moved.streams_over_total),
        ("too_many_from_address", moved.streams_over_source),
        ("too_often", moved.streams_over_rate),
    ];
    page.by_reason(
        "annulus_streams_refused",
        "Streams of others that were not answered",
        over_limits.into_iter().chain(transport.streams.refused()),
    );
    page.gauge("annulus_streams_active", "Streams of others that are being answered", transport.streams.active());
    page.gauge("annulus_stream_budget_free_bytes", "Bytes that streams may still hold", transport.budget.free());
}

/// As dskit names them, so that its dashboards and alerts work.
fn tcp_transport(page: &mut Page, moved: &CounterValues, tcp: &TcpCounterValues) {
    let mut counter = |name: &str, help, value| page.counter(&format!("memberlist_tcp_transport_{name}"), help, value);
    counter("incoming_streams", "Streams accepted", moved.streams_in);
    counter("outgoing_streams", "Streams opened", moved.streams_out);
    counter("outgoing_stream_errors", "Streams that could not be opened", moved.stream_errors);
    counter("packets_received", "Packets received", moved.packets_in);
    counter("packets_received_bytes", "Bytes of packets received", moved.packet_bytes_in);
    counter("packets_received_errors", "Packets that could not be read", tcp.packets_received_errors);
    counter("packets_dropped", "Packets dropped because others were still being sent", moved.packets_dropped);
    counter("packets_sent", "Packets sent", moved.packets_out);
    counter("packets_sent_bytes", "Bytes of packets sent", moved.packet_bytes_out);
    counter("packets_sent_errors", "Packets that could not be sent", tcp.packets_sent_errors);
    counter("unknown_connections", "Connections that were neither packet nor stream", tcp.unknown_connections);
    counter("sent_bytes", "Bytes sent, framing included", tcp.sent_bytes);
    counter("received_bytes", "Bytes received, framing included", tcp.received_bytes);
    page.counter(
        "annulus_packets_damaged",
        "Packets dropped because they did not match their digest",
        tcp.packets_damaged,
    );
}

fn rings(page: &mut Page, system: &System) {
    let members = page.family::<RingState>("ring_members", "Instances in the ring by state");
    let tokens = page.family::<RingName>("ring_tokens_total", "Tokens in the ring");
    let oldest = page.family::<RingState>("ring_oldest_member_timestamp", "Oldest heartbeat by state, unix seconds");
    let heartbeats = Family::<RingName, Counter>::default();
    page.registry.register("ring_member_heartbeats", "Heartbeats that the store acknowledged", heartbeats.clone());
    for entry in &system.rings {
        let name = entry.config.name.clone();
        let snapshot = entry.parts.snapshot.load();
        let mut counts = BTreeMap::<String, (i64, i64)>::new();
        let mut all_tokens = 0;
        for instance in snapshot.instances() {
            all_tokens += instance.tokens.len();
            let healthy = instance.is_healthy(Operation::Reporting);
            let state = if healthy { instance.state.to_string() } else { "Unhealthy".to_owned() };
            let (count, at) = counts.entry(state).or_insert((0, i64::MAX));
            *count += 1;
            *at = (*at).min(instance.timestamp);
        }
        for (state, (count, at)) in counts {
            let labels = RingState { name: name.clone(), state };
            members.get_or_create(&labels).set(count);
            oldest.get_or_create(&labels).set(at);
        }
        let labels = RingName { name };
        tokens.get_or_create(&labels).set(i64::try_from(all_tokens).unwrap_or(i64::MAX));
        if let Some(heartbeat) = &entry.heartbeat {
            heartbeats.get_or_create(&labels).inc_by(heartbeat.own.load().heartbeats);
        }
    }
}

/// Also of a node with one store, so that a fleet in the middle of a rollout shows who is how far.
fn phase(page: &mut Page, system: &System) {
    let now = system.mirror.as_ref().map_or(SOLO, |mirror| mirror.status.load().phase.as_str());
    let phases = page.family::<ByPhase>("annulus_migration_phase", "1 for the phase of this node, 0 for the others");
    for name in std::iter::once(SOLO).chain(Phase::ALL.iter().map(|phase| phase.as_str())) {
        phases.get_or_create(&ByPhase { phase: name }).set(i64::from(name == now));
    }
}

fn watches(page: &mut Page, system: &System) {
    let ages = Family::<ByStore, Gauge<f64, AtomicU64>>::default();
    let help = "Time since the store last answered the watch that has waited longest, with news or without";
    page.registry.register("annulus_watch_age_seconds", help, ages.clone());
    let both = system.mirror.as_ref().map(|mirror| &mirror.sides[..]);
    for store in both.unwrap_or(std::slice::from_ref(&system.store)) {
        if let Some(age) = store.watch_age(Now::read()) {
            ages.get_or_create(&ByStore { store: store.kind().to_string() }).set(age.as_secs_f64());
        }
    }
}

fn migration(page: &mut Page, system: &System) {
    let Some(mirror) = &system.mirror else { return };
    let status = mirror.status.load();
    let primary = page.family::<ByStore>("multikv_primary_store", "1 for the store that is primary");
    for (store, is_primary) in [(status.primary, 1), (status.secondary, 0)] {
        primary.get_or_create(&ByStore { store: store.to_string() }).set(is_primary);
    }
    page.gauge("multikv_mirror_enabled", "Whether writes are mirrored", i64::from(status.mirror_enabled));
    page.counter("multikv_mirror_writes", "Writes brought to the other store", status.mirrored_total);
    page.counter("multikv_mirror_write_errors", "Attempts that failed and are tried again", status.mirror_errors_total);
    page.gauge("annulus_mirror_outbox_keys", "Keys that wait for the other store", status.outbox_len);
    #[allow(clippy::cast_precision_loss, reason = "a lag in milliseconds is far below 2^52")]
    page.seconds("annulus_mirror_lag_seconds", "How far the other store is behind", status.mirror_lag_ms as f64 / 1e3);
    page.gauge("annulus_mirror_outbox_keys_max", "The most keys that ever waited", status.outbox_high_water);
    let help = "Writes that were not made because their key was deleted meanwhile";
    page.counter("annulus_mirror_writes_dropped", help, status.mirror_dropped_total);
    let too_large = status.large_values.iter().filter(|value| value.size > value.limit).count();
    let help = "Values of the primary that are larger than the other store takes";
    page.gauge("annulus_mirror_values_too_large", help, too_large);
    #[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let share = |value: &LargeValue| value.size as f64 / value.limit.max(1) as f64;
    let help = "The largest value as part of what the other store takes; 0 when none has more than 0.8";
    page.seconds("annulus_mirror_value_size_ratio", help, status.large_values.iter().map(share).fold(0.0, f64::max));
    parity(page, &status);
    shadow(page, system);
    page.counter("annulus_flips", "Flips carried out by this node", status.flips_total);
}

fn parity(page: &mut Page, status: &MigrationStatus) {
    if let Some(parity) = &status.parity {
        page.gauge("annulus_parity_equal", "Whether both stores hold the same", i64::from(parity.equal));
        let help = "Whether the other store has all that the primary has";
        page.gauge("annulus_parity_secondary_has_all", help, i64::from(parity.secondary_has_all));
        #[allow(clippy::cast_precision_loss, reason = "an age in milliseconds is far below 2^52")]
        let age = parity.age_ms as f64 / 1e3;
        page.seconds("annulus_parity_age_seconds", "How old the last comparison of the stores is", age);
        let help = "Part of the ring whose first owner a flip would change, 0 to 1";
        page.seconds("annulus_parity_ownership_delta_ratio", help, parity.ownership_delta);
        let help = "Part of the ring whose replicas a flip would change, 0 to 1";
        page.seconds("annulus_parity_replica_set_delta_ratio", help, parity.replica_set_delta);
    }
    let gates = page.family::<ByGate>("annulus_gate_open", "Whether a condition for a flip is fulfilled");
    for gate in &status.gates {
        gates.get_or_create(&ByGate { gate: gate.name }).set(i64::from(gate.open));
    }
    let safe = i64::from(status.rollback == Rollback::Safe);
    page.gauge("annulus_rollback_safe", "Whether the old store has everything", safe);
}

fn shadow(page: &mut Page, system: &System) {
    let compared = Family::<RingName, Counter>::default();
    page.registry.register("annulus_shadow_lookups", "Lookups answered from both stores", compared.clone());
    let mismatched = Family::<RingName, Counter>::default();
    page.registry.register("annulus_shadow_mismatches", "Of those, the ones with other owners", mismatched.clone());
    for entry in &system.rings {
        let Some(shadow) = entry.shadow.as_ref().map(|shadow| shadow.status(&entry.config.name)) else { continue };
        let labels = RingName { name: shadow.ring };
        compared.get_or_create(&labels).inc_by(shadow.compared);
        mismatched.get_or_create(&labels).inc_by(shadow.mismatched);
    }
}

fn runtime_config(page: &mut Page, system: &System) {
    let Some(parts) = &system.runtime_config else { return };
    let view = parts.view.load();
    page.gauge(
        "runtime_config_last_reload_successful",
        "Whether the last reading of the runtime config succeeded",
        i64::from(view.healthy),
    );
    let hash = page.family::<ByHash>("runtime_config_hash", "Hash of the runtime config in force");
    if !view.hash.is_empty() {
        hash.get_or_create(&ByHash { sha256: view.hash.clone() }).set(1);
    }
}

fn actors(page: &mut Page, system: &System) {
    let restarts = Family::<ActorRestart, Counter>::default();
    page.registry.register("annulus_actor_restarts", "Actors started again, by reason", restarts.clone());
    for status in system.tree.statuses() {
        for (reason, count) in status.restarts() {
            restarts.get_or_create(&ActorRestart { actor: status.name.clone(), reason }).inc_by(count);
        }
    }
    page.seconds(
        "annulus_uptime_seconds",
        "How long the node has been running",
        system.started.elapsed().as_secs_f64(),
    );
}
