//! The shell around the core: what it does with callers that are gone, and with its own death.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::super::guard::{self, ChildStatus, RestartPolicy};
use super::super::message::{Drill, Fault};
use super::super::multi::MultiStore;
use super::*;
use crate::kv::{BoxFuture, Entry, LwwMap, Store, StoreKind, Watch};
use crate::stores::memory::Memory;

type Flags = LwwMap<u32>;

/// A store that never answers a compare-and-swap by itself: it hands out the question.
struct Stuck {
    inner: SharedStore,
    asked: mpsc::UnboundedSender<Asked>,
}

/// A compare-and-swap that waits for its answer.
struct Asked {
    f: CasFn,
    answer: oneshot::Sender<Result<CasOutcome, StoreError>>,
}

impl Store for Stuck {
    fn kind(&self) -> StoreKind {
        StoreKind::Consul
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.inner.get(key)
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        self.inner.list(prefix)
    }

    fn cas(&self, _: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let (answer, answered) = oneshot::channel();
        self.asked.send(Asked { f, answer }).unwrap();
        Box::pin(async { answered.await.unwrap() })
    }

    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        self.inner.join(key, delta)
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.delete(key)
    }

    fn watch_key(&self, key: &str) -> Watch {
        self.inner.watch_key(key)
    }

    fn watch_prefix(&self, prefix: &str) -> Watch {
        self.inner.watch_prefix(prefix)
    }
}

/// A multi store over a stuck Consul and a memory for gossip.
struct Bench {
    parts: Arc<MirrorParts>,
    mirror: Addr<Mirror>,
    multi: Arc<MultiStore>,
    /// What Consul is asked.
    asked: mpsc::UnboundedReceiver<Asked>,
    /// What Consul holds.
    consul: SharedStore,
    /// The other store.
    gossip: SharedStore,
    deaths: mpsc::UnboundedReceiver<guard::ChildEvent>,
    guarded: guard::Guarded,
}

impl Bench {
    fn start(mirror_enabled: bool) -> Self {
        let codecs = Arc::new(Codecs::default());
        codecs.register("flags/", Arc::new(Flags::codec()));
        let (asking, asked) = mpsc::unbounded_channel();
        let gossip = Memory::new().store(codecs.clone());
        let consul = Memory::new().store(codecs.clone());
        let stuck = Arc::new(Stuck { inner: consul.clone(), asked: asking });
        let config = MultiConfig {
            mirror_enabled,
            mirror_timeout: Duration::from_millis(200),
            prefixes: codecs.prefixes(),
            ..MultiConfig::default()
        };
        let parts = Arc::new(MirrorParts {
            views: watch::Sender::new(Mirror::first_view(&config)),
            status: ArcSwap::from_pointee(Mirror::first_status(&config)),
            config,
            codecs,
            sides: [stuck, gossip.clone()],
            members: None,
            events: EventHub::new(),
            durable: Mutex::new(None),
            next_op: AtomicU64::new(0),
            address: OnceLock::new(),
            drained: watch::Sender::new(false),
        });
        let (events, deaths) = mpsc::unbounded_channel();
        let policy = RestartPolicy { backoff_min: Duration::from_millis(1), ..RestartPolicy::default() };
        let (mirror, guarded) = guard::spawn(ChildStatus::new("mirror"), policy, events, Mirror::new(parts.clone()));
        let multi = MultiStore::new(parts.clone(), mirror.clone());
        Self { parts, mirror, multi, asked, consul, gossip, deaths, guarded }
    }

    async fn flip(&self, to: StoreKind) {
        let runtime = RuntimeMulti { primary: Some(to), mirror_enabled: None };
        self.mirror.send(Runtime(Ok(runtime))).await.unwrap();
        self.parts.views.subscribe().wait_for(|view| view.primary_kind == to).await.unwrap();
    }

    /// Begins a compare-and-swap that Consul is asked to do, and whose caller goes away then.
    async fn abandoned(&mut self, key: &str, f: CasFn) -> Asked {
        tokio::select! {
            result = self.multi.cas(key, f) => panic!("{result:?}"),
            asked = self.asked.recv() => asked.unwrap(),
        }
    }

    async fn kill(&mut self) {
        assert!(self.mirror.send(Drill(Fault::Panic)).await.is_err());
        self.deaths.recv().await.unwrap();
    }

    async fn in_gossip(&self, key: &str) -> Flags {
        let entry = self.gossip.get(key).await.unwrap();
        entry.map(|entry| entry.value.downcast_ref::<Flags>().unwrap().clone()).unwrap_or_default()
    }
}

/// A callback that sets a flag to what it is at this time.
fn sets(name: &'static str, value: u32) -> CasFn {
    Box::new(move |current| {
        let mut flags = current.and_then(|value| value.downcast_ref::<Flags>()).cloned().unwrap_or_default();
        flags.insert(Now::read(), name, value);
        CasAction::Write(Value::new(flags))
    })
}

fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

#[test]
fn a_write_whose_caller_is_gone_does_not_run_again_after_a_flip_and_so_not_over_what_came_later() {
    run(|| async {
        let mut bench = Bench::start(false);
        let (ran, mut active) = (Arc::new(AtomicBool::new(false)), sets("state", 1));
        // Told when the callback is dropped: then nothing can run it any more.
        let (held, dropped) = oneshot::channel::<()>();
        let callback = {
            let ran = ran.clone();
            Box::new(move |current: Option<&Value>| {
                let _ = &held;
                ran.store(true, Ordering::Relaxed);
                active(current)
            })
        };
        let first_run = bench.abandoned("flags/x", callback).await;
        bench.flip(StoreKind::Memberlist).await;
        bench.multi.cas("flags/x", sets("state", 2)).await.unwrap();
        drop(first_run.f);
        assert!(dropped.await.is_err());
        assert!(!ran.load(Ordering::Relaxed));
        assert_eq!(bench.in_gossip("flags/x").await.get("state"), Some(&2));
    });
}

#[test]
fn a_write_whose_caller_waits_runs_again_after_a_flip() {
    run(|| async {
        let mut bench = Bench::start(false);
        let multi = bench.multi.clone();
        let mut write = multi.cas("flags/x", sets("state", 1));
        let first_run = tokio::select! {
            result = &mut write => panic!("{result:?}"),
            asked = bench.asked.recv() => asked.unwrap(),
        };
        bench.flip(StoreKind::Memberlist).await;
        write.await.unwrap();
        assert_eq!(bench.in_gossip("flags/x").await.get("state"), Some(&1));
        assert!(first_run.answer.is_closed(), "the first run was dropped");
    });
}

#[test]
fn a_mirrored_write_is_a_join_of_what_is_there() {
    run(|| async {
        let mut bench = Bench::start(true);
        bench.flip(StoreKind::Memberlist).await;
        bench.multi.cas("flags/x", sets("state", 1)).await.unwrap();
        let Asked { mut f, .. } = bench.asked.recv().await.unwrap();
        assert!(matches!(f(None), CasAction::Keep), "it is not created again without asking whether it was deleted");
        let joined = f(Some(&Value::new(Flags::default())));
        assert!(matches!(joined, CasAction::Join(_)), "{joined:?}");
    });
}

#[test]
fn a_callback_that_still_runs_when_its_actor_has_died_says_nothing_of_later_operations() {
    run(|| async {
        let mut bench = Bench::start(true);
        let mut before = bench.abandoned("flags/before", sets("before", 1)).await;
        bench.kill().await;
        let after = bench.abandoned("flags/after", sets("after", 1)).await;
        let mut mirrored = bench.gossip.watch_key("flags/after");
        // It was waiting in the mailbox of a store.
        (before.f)(None);
        let down = StoreError::Unavailable { store: StoreKind::Consul, reason: "down".to_owned() };
        after.answer.send(Err(down)).unwrap();
        while mirrored.next().await.unwrap().entry.is_none() {}
        let flags = bench.in_gossip("flags/after").await;
        assert_eq!((flags.get("after"), flags.get("before")), (Some(&1), None));
    });
}

#[test]
fn a_watch_of_a_prefix_forgets_keys_that_are_deleted() {
    run(|| async {
        let bench = Bench::start(false);
        let mut watch = bench.multi.homed(|store| store.watch_prefix("flags/"));
        let mut flags = Flags::default();
        flags.insert(Now::read(), "state", 1);
        for n in 0..10 {
            let key = format!("flags/{n}");
            bench.consul.join(&key, Value::new(flags.clone())).await.unwrap();
            while watch.next().await.unwrap().entry.is_none() {}
            assert_eq!(watch.remembered(), 1);
            bench.consul.delete(&key).await.unwrap();
            while watch.next().await.unwrap().entry.is_some() {}
            assert_eq!(watch.remembered(), 0, "{key}");
        }
    });
}

#[test]
fn a_read_that_nobody_can_join_with_what_is_known_is_not_answered_with_less() {
    run(|| async {
        let bench = Bench::start(false);
        let mut flags = Flags::default();
        flags.insert(Now::read(), "state", 1);
        bench.consul.join("flags/x", Value::new(flags)).await.unwrap();
        assert!(bench.multi.get("flags/x").await.unwrap().is_some());
        bench.guarded.control.send(guard::Control::Stop).unwrap();
        bench.guarded.done.await.unwrap();
        let read = bench.multi.get("flags/x").await;
        assert!(matches!(read, Err(StoreError::Closed(StoreKind::Multi))), "{read:?}");
    });
}
