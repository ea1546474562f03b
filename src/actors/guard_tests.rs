#![allow(clippy::unwrap_used)]

use actix::{Handler, Message};

use super::*;

/// Counts what it handled since its last start; dies on request.
struct Counter {
    handled: u32,
    starts: Arc<AtomicU64>,
}

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }
}

impl Supervised for Counter {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.handled = 0;
    }
}

#[derive(Clone, Copy)]
enum Do {
    Count,
    Panic,
    PanicLater,
    Stop,
}

impl Message for Do {
    type Result = u32;
}

impl Handler<Do> for Counter {
    type Result = u32;

    fn handle(&mut self, what: Do, ctx: &mut Self::Context) -> u32 {
        match what {
            Do::Count => self.handled += 1,
            Do::Panic => panic!("asked to"),
            Do::PanicLater => {
                ctx.run_later(Duration::ZERO, |_, _| panic!("later"));
            }
            Do::Stop => ctx.stop(),
        }
        self.handled
    }
}

fn quick() -> RestartPolicy {
    RestartPolicy { backoff_min: Duration::from_millis(1), ..RestartPolicy::default() }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

fn start(policy: RestartPolicy) -> (Addr<Counter>, Guarded, mpsc::UnboundedReceiver<ChildEvent>, Arc<AtomicU64>) {
    let (events, seen) = mpsc::unbounded_channel();
    let starts = Arc::new(AtomicU64::new(0));
    let actor = Counter { handled: 0, starts: starts.clone() };
    let (address, guarded) = spawn(ChildStatus::new("counter"), policy, events, actor);
    (address, guarded, seen, starts)
}

#[test]
fn a_message_queued_behind_a_panic_is_handled_by_the_successor_at_the_same_address() {
    run(|| async {
        let (address, guarded, mut seen, starts) = start(quick());
        assert_eq!(address.send(Do::Count).await.unwrap(), 1);
        let dying = address.send(Do::Panic);
        let queued = address.send(Do::Count);
        assert!(dying.await.is_err(), "the message that killed the actor is answered with an error");
        assert_eq!(queued.await.unwrap(), 1, "the successor starts fresh and handles what was queued");
        assert_eq!(starts.load(Ordering::Relaxed), 2);
        assert_eq!(guarded.status.restarts()[0], ("panic", 1));
        let Some(ChildEvent::Restarted { death, .. }) = seen.recv().await else { panic!("no event") };
        assert_eq!(death, Death::Panic("asked to".into()));
    });
}

#[test]
fn a_panic_in_a_timer_and_a_stop_are_both_survived() {
    run(|| async {
        let (address, guarded, mut seen, _) = start(quick());
        for request in [Do::PanicLater, Do::Stop] {
            address.send(request).await.unwrap();
            assert!(matches!(seen.recv().await, Some(ChildEvent::Restarted { .. })));
            assert_eq!(address.send(Do::Count).await.unwrap(), 1);
        }
        assert_eq!(guarded.status.restarts(), [("panic", 1), ("stop", 1), ("sibling", 0)]);
    });
}

#[test]
fn an_actor_that_dies_too_often_asks_its_parent() {
    run(|| async {
        let (address, guarded, mut seen, _) = start(RestartPolicy { max_restarts: 2, ..quick() });
        for _ in 0..3 {
            let _ = address.send(Do::Panic).await;
        }
        let verdict = loop {
            match seen.recv().await.unwrap() {
                ChildEvent::Escalated { verdict, .. } => break verdict,
                ChildEvent::Restarted { .. } => {}
            }
        };
        assert_eq!(guarded.status.state(), ActorState::Escalated);
        verdict.send(Verdict::GiveUp).unwrap();
        guarded.done.await.unwrap();
        assert_eq!(guarded.status.state(), ActorState::Failed);
        assert!(address.send(Do::Count).await.is_err());
    });
}

#[test]
fn a_parent_that_says_restart_keeps_the_address() {
    run(|| async {
        let (address, _guarded, mut seen, _) = start(RestartPolicy { max_restarts: 0, ..quick() });
        let _ = address.send(Do::Panic).await;
        let Some(ChildEvent::Escalated { verdict, .. }) = seen.recv().await else { panic!("no escalation") };
        verdict.send(Verdict::Restart).unwrap();
        assert_eq!(address.send(Do::Count).await.unwrap(), 1);
    });
}

#[test]
fn a_stopped_guard_ends_and_closes_the_address() {
    run(|| async {
        let (address, guarded, _seen, _) = start(quick());
        guarded.control.send(Control::Stop).unwrap();
        guarded.done.await.unwrap();
        assert_eq!(guarded.status.state(), ActorState::Stopped);
        assert!(!address.connected());
    });
}
