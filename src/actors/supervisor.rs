//! The supervisor: owner of all other actors of a node.
//!
//! Each child is restarted in place by its own guard. A child that dies too often is escalated to this actor, which
//! restarts it together with the children started after it (they may hold what the broken one gave them: the
//! *rest-for-one* strategy of OTP). When even that happens too often the node is given up: it reports `Failed`, with
//! the cause, through [`crate::Node::closed`], instead of limping on or ending the host's process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, AsyncContext, Context, Handler, Supervised, WrapFuture};
use tokio::sync::{mpsc, watch};

use super::events::{EventHub, NodeEvent};
use super::guard::{ActorState, ChildEvent, ChildStatus, Control, Death, Guarded, Verdict};
use super::message::{drillable, message};

/// How a node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It left the cluster or was stopped, as asked.
    Stopped,
    /// One of its actors could not be kept alive.
    Failed {
        /// Which one.
        actor: String,
        /// How it died last.
        cause: String,
    },
}

/// Escalations after which the node is given up, within [`ESCALATION_WINDOW`].
const MAX_ESCALATIONS: usize = 3;
const ESCALATION_WINDOW: Duration = Duration::from_secs(300);

/// The children in the order in which they were started. Outlives the supervisor.
pub(crate) struct Tree {
    children: Mutex<Vec<Guarded>>,
    statuses: Mutex<Vec<Arc<ChildStatus>>>,
    reports: tokio::sync::Mutex<mpsc::UnboundedReceiver<ChildEvent>>,
    report: mpsc::UnboundedSender<ChildEvent>,
    escalations: Mutex<VecDeque<Instant>>,
    exit: watch::Sender<Option<Exit>>,
    events: EventHub,
}

impl Tree {
    pub(crate) fn new(events: EventHub) -> Arc<Self> {
        let (report, reports) = mpsc::unbounded_channel();
        Arc::new(Self {
            children: Mutex::default(),
            statuses: Mutex::default(),
            reports: tokio::sync::Mutex::new(reports),
            report,
            escalations: Mutex::default(),
            exit: watch::Sender::new(None),
            events,
        })
    }

    /// Where guards send their reports.
    pub(crate) fn reports(&self) -> mpsc::UnboundedSender<ChildEvent> {
        self.report.clone()
    }

    /// Takes over a child that was just started.
    pub(crate) fn adopt(&self, child: Guarded) {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).push(child.status.clone());
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }

    /// All children, for status pages.
    pub(crate) fn statuses(&self) -> Vec<Arc<ChildStatus>> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the node ended, once it has.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Ends the node; the first cause counts.
    pub(crate) fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(exit);
            }
            first
        });
    }

    /// Stops all children, the last started first, and waits until they are gone.
    pub(crate) async fn stop_all(&self) {
        let children = std::mem::take(&mut *self.children.lock().unwrap_or_else(PoisonError::into_inner));
        for child in children.into_iter().rev() {
            let _ = child.control.send(Control::Stop);
            if child.done.await.is_err() {
                tracing::error!(actor = %child.status.name, "the guard of an actor panicked");
            }
        }
    }

    /// What the guard of the supervisor itself reports. Nobody is above it: when it dies too often, the node ends.
    pub(crate) fn heard_of_supervisor(&self, event: ChildEvent) {
        match event {
            ChildEvent::Restarted { status, death } => {
                self.events.publish(NodeEvent::ActorRestarted { actor: status.name.clone(), death });
            }
            ChildEvent::Escalated { status, death, verdict } => {
                let _ = verdict.send(Verdict::GiveUp);
                self.end(Exit::Failed { actor: status.name.clone(), cause: format!("{death:?}") });
            }
        }
    }

    fn restart_those_after(&self, name: &str) {
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        for child in children.iter().skip_while(|child| child.status.name != name).skip(1) {
            if child.status.state() == ActorState::Running {
                let _ = child.control.send(Control::Restart);
            }
        }
    }

    /// Whether one more escalation is within what the node bears.
    fn bears_escalation(&self) -> bool {
        let mut escalations = self.escalations.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        escalations.retain(|at| now.duration_since(*at) <= ESCALATION_WINDOW);
        escalations.push_back(now);
        escalations.len() <= MAX_ESCALATIONS
    }
}

/// The actor.
pub(crate) struct Supervisor {
    tree: Arc<Tree>,
}

impl Supervisor {
    pub(crate) fn new(tree: Arc<Tree>) -> Self {
        Self { tree }
    }
}

struct Report(ChildEvent);
message!(Report => ());

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let tree = self.tree.clone();
        let address = ctx.address();
        ctx.spawn(
            async move {
                let mut reports = tree.reports.lock().await;
                while let Some(event) = reports.recv().await {
                    let _ = address.send(Report(event)).await;
                }
            }
            .into_actor(self),
        );
    }
}

impl Supervised for Supervisor {
    // All state is in the tree; `started` listens to it again.
    fn restarting(&mut self, _: &mut Self::Context) {}
}

drillable!(Supervisor);

impl Handler<Report> for Supervisor {
    type Result = ();

    fn handle(&mut self, Report(event): Report, _: &mut Self::Context) {
        match event {
            ChildEvent::Restarted { status, death } => {
                self.tree.events.publish(NodeEvent::ActorRestarted { actor: status.name.clone(), death });
            }
            ChildEvent::Escalated { status, death, verdict } => self.decide(&status, &death, verdict),
        }
    }
}

impl Supervisor {
    fn decide(&self, status: &ChildStatus, death: &Death, verdict: tokio::sync::oneshot::Sender<Verdict>) {
        if self.tree.bears_escalation() {
            tracing::error!(actor = %status.name, ?death, "actor died too often: restarting it and those after it");
            self.tree.restart_those_after(&status.name);
            let _ = verdict.send(Verdict::Restart);
        } else {
            tracing::error!(actor = %status.name, ?death, "actor cannot be kept alive: the node gives up");
            let _ = verdict.send(Verdict::GiveUp);
            self.tree.end(Exit::Failed { actor: status.name.clone(), cause: format!("{death:?}") });
        }
    }
}
