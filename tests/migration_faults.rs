//! A ring moves out of a real Consul and a real etcd, and from gossip into a Consul, while everything goes wrong that can on
//! the way to them, under load.
//!
//! In every test a checker knows each write that was acknowledged, and a witness looks at all nodes all the time: no living
//! instance is LEFT or missing anywhere, no owner changes, and no node sees an older ring than before.
#![cfg(all(feature = "consul", feature = "etcd"))]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/checker.rs"]
mod checker;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/trouble.rs"]
mod trouble;
#[path = "support/witness.rs"]
mod witness;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use annulus::Node;
use annulus::config::{Config, KvStore};
use annulus::kv::StoreKind;
use annulus::migration::MigrationStatus;
use checker::Workload;
use fleet::{Fleet, RuntimeFile, identities, is_complete, ring_text, two_stores, until_seen};
use support::consul::Consul;
use support::etcd::Etcd;
use support::proxy::FaultProxy;
use support::relay::Relay;
use trouble::{Becoming, Trouble, Way};
use witness::Witness;

const NODES: usize = 3;

const WRITE_PAUSE: Duration = Duration::from_millis(100);

const WIRED: &str = "multi_kv_config: { mirror_enabled: false }\n";
const MIRROR: &str = "multi_kv_config: { mirror_enabled: true }\n";

fn primary(store: StoreKind) -> String {
    format!("multi_kv_config: {{ mirror_enabled: true, primary: {store} }}\n")
}

/// A fleet that moves, the load on it, and those who look.
struct Move {
    fleet: Fleet,
    workload: Workload,
    witness: Witness,
    runtime: RuntimeFile,
    old: StoreKind,
    new: StoreKind,
}

impl Move {
    /// A fleet with its ring in one store, or in two, under load.
    async fn start(
        customise: impl Fn(usize, &mut Config) + Send + Sync + 'static,
        runtime: RuntimeFile,
        old: StoreKind,
        new: StoreKind,
    ) -> Self {
        let path = runtime.path();
        let fleet = Fleet::start(NODES, move |number, config| {
            config.rings[0].heartbeat_timeout = Duration::from_secs(9);
            config.rings[0].unregister_on_shutdown = false;
            config.runtime_config.file = vec![path.clone()];
            config.memberlist.leave_timeout = Duration::from_secs(2);
            customise(number, config);
        })
        .await;
        let workload = Workload::with_pause(&fleet.nodes, Some(WRITE_PAUSE));
        let witness = Witness::start(&fleet.nodes);
        Self { fleet, workload, witness, runtime, old, new }
    }

    /// Every node is restarted, one after the other, as its configuration is now.
    async fn roll(&mut self) {
        for number in 1..=NODES {
            self.restart(number).await;
        }
    }

    async fn restart(&mut self, number: usize) -> Node {
        let node = self.fleet.take(&fleet::id(number));
        self.workload.retire(&node).await;
        self.witness.leave_out(&node);
        node.leave().await;
        let node = self.fleet.add(number).await;
        for node in &self.fleet.nodes {
            self.whole(node).await;
        }
        self.workload.add(&node);
        self.witness.add(&node);
        node
    }

    async fn whole(&self, node: &Node) {
        let what = format!("the ring of {} is complete", node.id());
        until_seen(&what, || ring_text(node), async || is_complete(node, NODES)).await;
    }

    /// Waits until all nodes say so.
    async fn all(&self, what: &str, condition: impl Fn(&MigrationStatus) -> bool) {
        for node in &self.fleet.nodes {
            let what = format!("{} {what}", node.id());
            let said = || node.migration();
            until_seen(&what, said, async || said().is_some_and(|status| condition(&status))).await;
        }
    }

    async fn flipped(&self, to: StoreKind) {
        self.fleet.primary(to).await;
        self.workload.goes_on().await;
    }

    /// Mirror on, flip, back, and mirror off: at each boundary something goes wrong and is put right again. `becoming`:
    /// whether the old store and the new one can become primary meanwhile.
    async fn there_and_back(&self, what: &str, becoming: [Becoming; 2], trouble: impl Fn(), heal: impl Fn()) {
        let [old, new] = becoming;
        let phase = |step: &str| self.witness.phase(&format!("{what}, {step}"));
        phase("mirror on");
        trouble();
        self.runtime.write(MIRROR);
        self.all("mirrors", |status| status.mirror_enabled).await;
        self.workload.lookups_go_on().await;
        heal();
        self.fleet.mirrored().await;
        self.workload.goes_on().await;

        phase("flip");
        trouble();
        self.runtime.write(&primary(self.new));
        self.asked_to_flip(self.old, self.new, new).await;
        heal();
        self.flipped(self.new).await;
        self.fleet.mirrored().await;

        phase("flip back");
        trouble();
        self.runtime.write(&primary(self.old));
        self.asked_to_flip(self.new, self.old, old).await;
        heal();
        self.flipped(self.old).await;
        self.fleet.mirrored().await;

        phase("mirror off");
        trouble();
        self.runtime.write(WIRED);
        self.all("does not mirror", |status| !status.mirror_enabled).await;
        self.workload.lookups_go_on().await;
        heal();
        self.all("has sent everything", |status| status.outbox_len == 0).await;
        self.workload.goes_on().await;
    }

    /// A flip that can be goes through. One that cannot waits: everybody stays where it is, and says why.
    async fn asked_to_flip(&self, from: StoreKind, to: StoreKind, becoming: Becoming) {
        let waits = |status: &MigrationStatus| status.pending_flip.is_some() && status.primary == from;
        match becoming {
            Becoming::Primary => self.flipped(to).await,
            Becoming::Never => {
                self.all("waits", waits).await;
                self.workload.lookups_go_on().await;
                self.all("still waits", waits).await;
            }
            Becoming::Perhaps => {
                self.all("waits or has flipped", |status| waits(status) || status.primary == to).await;
                self.workload.lookups_go_on().await;
            }
        }
    }

    /// Nothing was lost, and nobody noticed anything. Returns how many writes were acknowledged.
    async fn end(self, what: &str, injected: u64) {
        let lookups = self.workload.lookups_done();
        let writes = self.workload.writes_done();
        let report = self.workload.stop().await;
        report.assert_lookups();
        report.assert_nothing_lost(&self.fleet.nodes).await;
        self.witness.assert_flawless();
        println!("{what}: {writes} writes acknowledged, {lookups} lookups, {injected} faults injected");
        self.fleet.stop().await;
    }
}

/// Steps of an operator, as the configuration of a node that starts has them.
const BEFORE: u8 = 0;
const MULTI: u8 = 1;
const TORN_DOWN: u8 = 2;

/// All five steps between a server and gossip, either way, through what can go wrong on the way to the server. `meanwhile`
/// is done to the server while something goes wrong; `gone` when nobody needs the old store any more.
async fn five_steps(
    [old, new]: [KvStore; 2],
    way: Arc<Way>,
    troubles: &[Trouble],
    meanwhile: impl Fn(Trouble),
    gone: impl FnOnce(),
) {
    let step = Arc::new(AtomicU8::new(BEFORE));
    let (now, to) = (step.clone(), way.clone());
    let customise = move |_: usize, config: &mut Config| {
        to.point(config);
        match now.load(Ordering::Relaxed) {
            BEFORE => config.kv.store = old,
            MULTI => two_stores(config, old, new),
            _ => {
                config.kv.store = new;
                config.migration.teardown = true;
            }
        }
    };
    let [from, into] = [old, new].map(|store| store.name().parse::<StoreKind>().unwrap());
    // What can happen to gossip is not between it and its node.
    let becoming = |store: StoreKind, trouble: Trouble| match store {
        StoreKind::Memberlist => Becoming::Primary,
        _ => trouble.becoming_primary(),
    };
    let mut moving = Move::start(customise, RuntimeFile::new(WIRED), from, into).await;
    let before = identities(&moving.fleet.nodes[0]);

    moving.witness.phase("wire");
    step.store(MULTI, Ordering::Relaxed);
    way.set(Trouble::Delay);
    moving.roll().await;
    way.heal();
    moving.fleet.complete().await;

    for trouble in troubles {
        let start = || {
            way.set(*trouble);
            meanwhile(*trouble);
        };
        let becoming = [from, into].map(|store| becoming(store, *trouble));
        moving.there_and_back(&format!("{trouble:?}"), becoming, start, || way.heal()).await;
    }

    moving.runtime.write(MIRROR);
    moving.fleet.mirrored().await;
    moving.runtime.write(&primary(into));
    moving.flipped(into).await;

    moving.witness.phase("tear down");
    // One restarts before its turn, with its old static configuration: the section tells it what to read.
    let early = moving.restart(2).await;
    moving.fleet.primary(into).await;
    assert_eq!(early.migration().unwrap().primary, into);
    step.store(TORN_DOWN, Ordering::Relaxed);
    // The server that is left behind may be out of reach; the other one may not.
    way.set(if into == StoreKind::Memberlist { Trouble::Lost } else { Trouble::Delay });
    moving.roll().await;
    way.heal();
    // Now that nobody has two stores, the section may go.
    moving.runtime.write("# multi_kv_config is gone\n");
    moving.witness.phase("clean");
    gone();
    moving.workload.goes_on().await;
    moving.fleet.complete().await;
    assert_eq!(
        identities(&moving.fleet.nodes[0]),
        before,
        "the same instances with the same tokens since the beginning"
    );
    let injected = way.injected();
    moving.end(&format!("five steps from {from} to {into}"), injected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_leaves_consul_in_five_steps_through_every_kind_of_trouble() {
    let Some(mut consul) = Consul::start() else { return };
    let way = Arc::new(Way::Http(FaultProxy::start(consul.addr()).await));
    five_steps([KvStore::Consul, KvStore::Memberlist], way, &Trouble::ALL, |_| {}, move || consul.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_leaves_etcd_in_five_steps_through_every_kind_of_trouble_and_its_history_is_compacted() {
    let Some(etcd) = Etcd::start() else { return };
    let way = Arc::new(Way::Bytes(Relay::start(etcd.addr()).await));
    let etcd = Mutex::new(etcd);
    let meanwhile = |trouble: Trouble| {
        if trouble.becoming_primary() == Becoming::Never {
            // Whoever watches comes back to a history that does not reach to where it was.
            let etcd = etcd.lock().unwrap();
            for number in 0..5_u8 {
                etcd.put("somebody-else", &[number]);
            }
            etcd.compact();
        }
    };
    let stores = [KvStore::Etcd, KvStore::Memberlist];
    five_steps(stores, way, &Trouble::ALL, meanwhile, || etcd.lock().unwrap().stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_moves_from_gossip_into_consul_in_five_steps() {
    let Some(consul) = Consul::start() else { return };
    let way = Arc::new(Way::Http(FaultProxy::start(consul.addr()).await));
    let troubles = [Trouble::Delay, Trouble::Torn, Trouble::Down];
    five_steps([KvStore::Memberlist, KvStore::Consul], way, &troubles, |_| {}, || {}).await;
}

/// From Consul to etcd and back, while one or both of them are down at every boundary.
async fn with_stores_down(old_down: bool, new_down: bool) {
    let Some(consul) = Consul::start() else { return };
    let Some(etcd) = Etcd::start() else { return };
    let old = Arc::new(Way::Http(FaultProxy::start(consul.addr()).await));
    let new = Arc::new(Way::Bytes(Relay::start(etcd.addr()).await));
    let (to_old, to_new) = (old.clone(), new.clone());
    let customise = move |_: usize, config: &mut Config| {
        two_stores(config, KvStore::Consul, KvStore::Etcd);
        to_old.point(config);
        to_new.point(config);
    };
    let moving = Move::start(customise, RuntimeFile::new(WIRED), StoreKind::Consul, StoreKind::Etcd).await;
    let etcd = Mutex::new(etcd);
    let trouble = || {
        if old_down {
            old.set(Trouble::Down);
        }
        if new_down {
            new.set(Trouble::Down);
            etcd.lock().unwrap().stop();
        }
    };
    let heal = || {
        if new_down {
            etcd.lock().unwrap().restart();
        }
        old.heal();
        new.heal();
    };
    let what = format!("consul down: {old_down}, etcd down: {new_down}");
    let becoming = |down| if down { Becoming::Never } else { Becoming::Primary };
    moving.there_and_back(&what, [becoming(old_down), becoming(new_down)], trouble, heal).await;
    let injected = old.injected() + new.injected();
    moving.end(&what, injected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_moves_from_consul_to_etcd_and_back_while_either_or_both_are_down_at_every_boundary() {
    tokio::join!(with_stores_down(true, false), with_stores_down(false, true), with_stores_down(true, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consul_that_is_set_back_to_a_snapshot_takes_nothing_away_in_any_phase() {
    let Some(mut consul) = Consul::start() else { return };
    let way = Arc::new(Way::Http(FaultProxy::start(consul.addr()).await));
    let to = way.clone();
    let customise = move |_: usize, config: &mut Config| {
        two_stores(config, KvStore::Consul, KvStore::Memberlist);
        to.point(config);
    };
    let moving = Move::start(customise, RuntimeFile::new(MIRROR), StoreKind::Consul, StoreKind::Memberlist).await;
    moving.fleet.mirrored().await;
    moving.workload.goes_on().await;

    moving.witness.phase("set back while Consul is read");
    let snapshot = consul.snapshot();
    moving.workload.goes_on().await;
    moving.fleet.mirrored().await;
    consul.restore(&snapshot);
    moving.workload.goes_on().await;

    moving.witness.phase("flip, and set back right after it");
    moving.runtime.write(&primary(StoreKind::Memberlist));
    moving.flipped(StoreKind::Memberlist).await;
    consul.restore(&snapshot);
    moving.workload.goes_on().await;
    moving.fleet.mirrored().await;

    moving.witness.phase("Consul is restarted, and set back");
    // An empty one, whose indexes begin anew, and then an old one.
    consul.restart();
    moving.workload.goes_on().await;
    consul.restore(&snapshot);
    moving.workload.goes_on().await;

    moving.witness.phase("flip back");
    moving.runtime.write(&primary(StoreKind::Consul));
    moving.flipped(StoreKind::Consul).await;
    moving.fleet.mirrored().await;
    // Set back three times, and once emptied.
    moving.end("Consul set back", 4).await;
}
