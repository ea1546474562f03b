//! Keys and labels of a running node: changes of its keyring, and questions about labels.
//!
//! How packets and streams are wrapped ([`PacketOptions`]) is shared by the transport actor, which reads streams, and
//! the membership actor, whose core does everything else. Only the membership actor changes it, so changes come one
//! after the other, and a restarted actor finds the keys as they were last.

use std::sync::{Arc, Mutex, PoisonError};

use actix::{Context, Handler, ResponseFuture};
use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::membership::Membership;
use super::message::message;
use crate::swim::{ForeignLabels, Input};
use crate::wire::{Key, KeyError, Keyring, Label, PacketOptions};

/// Checks of a label at the same time. Each pings every member.
const MAX_CHECKS: usize = 4;

/// How packets and streams are wrapped now, and what came under other labels.
#[derive(Debug)]
pub(crate) struct Wrapping {
    options: ArcSwap<PacketOptions>,
    foreign_streams: Mutex<ForeignLabels>,
}

impl Wrapping {
    pub(crate) fn new(options: PacketOptions) -> Arc<Self> {
        Arc::new(Self { options: ArcSwap::from_pointee(options), foreign_streams: Mutex::default() })
    }

    /// The options in force.
    pub(crate) fn options(&self) -> Arc<PacketOptions> {
        self.options.load_full()
    }

    /// Counts a stream that came under a foreign label.
    pub(crate) fn foreign_stream(&self, label: &Label) {
        self.foreign_streams.lock().unwrap_or_else(PoisonError::into_inner).count(label);
    }

    /// How many streams came under foreign labels.
    pub(crate) fn foreign_streams(&self) -> ForeignLabels {
        self.foreign_streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_keyring(&self, keyring: Keyring) {
        self.options.store(Arc::new(PacketOptions { keyring, ..PacketOptions::clone(&self.options.load()) }));
    }
}

/// Why the keys of a running node were not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyChangeError {
    /// The node does not gossip.
    #[error("this node's store is not memberlist, so it has no keys")]
    NoGossip,
    /// The node has no key. With its first key it would fall silent for everybody who has none.
    #[error(
        "this node does not encrypt; encryption is switched on in the configuration, in three rounds over the nodes \
         (memberlist.encryption_keys with gossip_verify_incoming and gossip_verify_outgoing)"
    )]
    NotEncrypted,
    /// The keyring does not allow it.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The node has ended.
    #[error("the node has ended")]
    Closed,
    /// The membership actor died over the change, and was started again. The change may be made or not.
    #[error("the membership actor died over the change; look at the keys, and ask again")]
    Interrupted,
}

/// A change of the keyring.
#[derive(Debug)]
pub(crate) enum ChangeKeys {
    /// Install a key behind the others.
    Install(Key),
    /// Encrypt with the key of this id.
    Use(String),
    /// Remove the key of this id.
    Remove(String),
}
message!(ChangeKeys => Result<(), KeyChangeError>);

impl ChangeKeys {
    fn apply(&self, keyring: &mut Keyring) -> Result<(), KeyChangeError> {
        if keyring.is_empty() {
            return Err(KeyChangeError::NotEncrypted);
        }
        match self {
            Self::Install(key) => keyring.add(key.clone())?,
            Self::Use(id) => keyring.use_key(&keyring.find(id)?.clone())?,
            Self::Remove(id) => keyring.remove(&keyring.find(id)?.clone())?,
        }
        Ok(())
    }

    fn what(&self) -> (&'static str, String) {
        match self {
            Self::Install(key) => ("installed", key.id()),
            Self::Use(id) => ("used to encrypt from now on", id.clone()),
            Self::Remove(id) => ("removed", id.clone()),
        }
    }
}

impl Handler<ChangeKeys> for Membership {
    type Result = Result<(), KeyChangeError>;

    fn handle(&mut self, change: ChangeKeys, ctx: &mut Self::Context) -> Self::Result {
        let wrapping = self.wrapping();
        let mut keyring = wrapping.options().keyring.clone();
        change.apply(&mut keyring)?;
        wrapping.set_keyring(keyring.clone());
        self.input(Input::SetKeyring(keyring), ctx);
        let (what, key) = change.what();
        tracing::info!(key, "gossip key {what}");
        Ok(())
    }
}

/// Who would accept a label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelCheck {
    /// Members that answered under the label.
    pub accept: Vec<String>,
    /// Members that did not: they refuse the label, or cannot be reached.
    pub silent: Vec<String>,
}

/// Asks every live member whether it accepts a label.
pub(crate) struct CheckLabel(pub(crate) Label);
message!(CheckLabel => Result<LabelCheck, String>);

/// Checks in progress, by their number.
#[derive(Default)]
pub(super) struct Checks {
    next: u64,
    waiting: Vec<(u64, oneshot::Sender<LabelCheck>)>,
}

impl Checks {
    /// A check has ended.
    pub(super) fn done(&mut self, id: u64, check: LabelCheck) {
        if let Some(place) = self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            let _ = self.waiting.swap_remove(place).1.send(check);
        }
    }
}

impl Handler<CheckLabel> for Membership {
    type Result = ResponseFuture<Result<LabelCheck, String>>;

    fn handle(&mut self, CheckLabel(label): CheckLabel, ctx: &mut Context<Self>) -> Self::Result {
        let checks = self.checks();
        if checks.waiting.len() >= MAX_CHECKS {
            return Box::pin(async { Err(format!("{MAX_CHECKS} checks of labels are running; ask again")) });
        }
        let id = checks.next;
        checks.next += 1;
        let (done, result) = oneshot::channel();
        checks.waiting.push((id, done));
        self.input(Input::CheckLabel { id, label }, ctx);
        Box::pin(
            async move { result.await.map_err(|_| "the membership actor died over the check; ask again".to_owned()) },
        )
    }
}
