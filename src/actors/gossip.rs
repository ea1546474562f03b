//! The gossip store actor: the shell around the `kv` gossip core, and the store that others use.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use actix::{
    Actor, Addr, AsyncContext, Context, Handler, MailboxError, MessageResult, ResponseFuture, Supervised, WrapFuture,
};
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::events::{EventHub, NodeEvent};
use super::joining::Joined;
use super::membership::{Broadcasts, Membership};
use super::message::{drillable, message};
use super::timer::CoreTimer;
use super::watch_hub::WatchHub;
use crate::clock::Now;
use crate::kv::gossip::{Contents, GossipConfig, GossipStore, Input, Output};
use crate::kv::{BoxFuture, CasFn, CasOutcome, Codecs, Entry, Store, StoreError, StoreKind, Value, Watch};
use crate::swim::UserBroadcast;
use crate::transport::BytePermit;

/// Batches of updates that may wait in the mailbox before new ones are dropped (and repaired by push/pull).
const MAILBOX: usize = 1024;

/// How often updates are handed to a membership actor that keeps dying, before push/pull must carry them.
const TELL_ATTEMPTS: usize = 5;

/// How long a caller waits for this actor before it is told that something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// What outlives the actor.
pub(crate) struct GossipParts {
    pub(crate) config: GossipConfig,
    pub(crate) codecs: Arc<Codecs>,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) events: EventHub,
    pub(crate) membership: OnceLock<Addr<Membership>>,
    /// A live handle: the store writes through it, so it is always current.
    pub(crate) contents: Contents,
}

pub(crate) struct Gossip {
    parts: Arc<GossipParts>,
    store: GossipStore,
    timer: CoreTimer,
}

impl Gossip {
    pub(crate) fn new(parts: Arc<GossipParts>) -> Self {
        let (config, codecs) = (parts.config.clone(), parts.codecs.clone());
        let store = GossipStore::resume(config, codecs, parts.contents.clone());
        Self { parts, store, timer: CoreTimer::default() }
    }

    /// Publishes and sends what the last input led to, and sets the timer. The future ends when our own updates are on
    /// their way to other members; who does not wait for it may drop it.
    fn pump(&mut self, ctx: &mut Context<Self>) -> impl Future<Output = ()> + 'static + use<> {
        let mut broadcasts = Vec::new();
        while let Some(output) = self.store.poll_output() {
            match output {
                Output::Changed { key, entry } => self.parts.hub.publish(key, entry),
                Output::Refused { key, refused } => {
                    self.parts.events.publish(NodeEvent::EntriesRefused { key: key.to_string(), refused });
                }
                Output::Broadcast(update) => broadcasts.push(UserBroadcast {
                    key: update.key,
                    content: update.content,
                    version: update.version,
                    local: update.local,
                    payload: update.payload,
                }),
            }
        }
        let (told, telling) = oneshot::channel();
        if let (false, Some(membership)) = (broadcasts.is_empty(), self.parts.membership.get()) {
            ctx.spawn(tell(membership.clone(), Broadcasts(broadcasts), told).into_actor(self));
        }
        self.set_timer(ctx);
        async move {
            let _ = telling.await;
        }
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        self.timer.arm(self.store.next_deadline(), ctx, |this, ctx| {
            this.timer.fired();
            this.store.handle(Now::read(), Input::Tick);
            drop(this.pump(ctx));
        });
    }
}

/// Hands updates to the membership actor, again if that dies over them: an update is never lost on this way.
async fn tell(membership: Addr<Membership>, broadcasts: Broadcasts, told: oneshot::Sender<()>) {
    for _ in 0..TELL_ATTEMPTS {
        if membership.send(broadcasts.clone()).await.is_ok() || !membership.connected() {
            break;
        }
    }
    let _ = told.send(());
}

impl Actor for Gossip {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        drop(self.pump(ctx));
    }
}

impl Supervised for Gossip {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self::new(self.parts.clone());
    }
}

drillable!(Gossip);

/// Gossiped updates from peers.
pub(crate) struct UserMessages(pub(crate) Vec<Bytes>);
message!(UserMessages => ());

impl Handler<UserMessages> for Gossip {
    type Result = ();

    fn handle(&mut self, UserMessages(messages): UserMessages, ctx: &mut Self::Context) {
        let now = Now::read();
        for message in messages {
            self.store.handle(now, Input::UserMessage(message));
        }
        drop(self.pump(ctx));
    }
}

/// The state of a peer, from a push/pull.
pub(crate) struct RemoteState {
    pub(crate) bytes: Bytes,
    pub(crate) join: bool,
    /// Its share of what may wait in our mailbox.
    pub(crate) permit: BytePermit,
}
message!(RemoteState => ());

impl Handler<RemoteState> for Gossip {
    type Result = ();

    fn handle(&mut self, RemoteState { bytes, join, permit }: RemoteState, ctx: &mut Self::Context) {
        self.store.handle(Now::read(), Input::RemoteState { bytes, join });
        drop(permit);
        drop(self.pump(ctx));
    }
}

/// Our state, for a push/pull.
pub(crate) struct LocalState;
message!(LocalState => Bytes);

impl Handler<LocalState> for Gossip {
    type Result = MessageResult<LocalState>;

    fn handle(&mut self, _: LocalState, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.store.local_state())
    }
}

/// Queue again what this node changed in the last minute: the membership actor lost its queue.
pub(crate) struct RebroadcastOwn;
message!(RebroadcastOwn => ());

impl Handler<RebroadcastOwn> for Gossip {
    type Result = ();

    fn handle(&mut self, _: RebroadcastOwn, ctx: &mut Self::Context) {
        self.store.rebroadcast_own(Now::read());
        drop(self.pump(ctx));
    }
}

/// The callback of a compare-and-swap, kept by the caller so that it can ask again when this actor dies over it.
type SharedCas = Arc<Mutex<CasFn>>;

struct Cas {
    key: Arc<str>,
    f: SharedCas,
}
message!(Cas => Result<CasOutcome, StoreError>);

impl Handler<Cas> for Gossip {
    type Result = ResponseFuture<Result<CasOutcome, StoreError>>;

    fn handle(&mut self, Cas { key, f }: Cas, ctx: &mut Self::Context) -> Self::Result {
        let mut f = f.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.store.cas(Now::read(), &key, &mut **f);
        let told = self.pump(ctx);
        Box::pin(async move {
            told.await;
            outcome
        })
    }
}

struct JoinValue {
    key: Arc<str>,
    delta: Value,
}
message!(JoinValue => Result<CasOutcome, StoreError>);

impl Handler<JoinValue> for Gossip {
    type Result = ResponseFuture<Result<CasOutcome, StoreError>>;

    fn handle(&mut self, JoinValue { key, delta }: JoinValue, ctx: &mut Self::Context) -> Self::Result {
        let outcome = self.store.join(Now::read(), &key, &delta);
        let told = self.pump(ctx);
        Box::pin(async move {
            told.await;
            outcome
        })
    }
}

struct Delete(Arc<str>);
message!(Delete => Result<(), StoreError>);

impl Handler<Delete> for Gossip {
    type Result = ResponseFuture<Result<(), StoreError>>;

    fn handle(&mut self, Delete(key): Delete, ctx: &mut Self::Context) -> Self::Result {
        let outcome = self.store.delete(Now::read(), &key);
        let told = self.pump(ctx);
        Box::pin(async move {
            told.await;
            outcome
        })
    }
}

/// Answered when all is merged that came before.
struct UpToHere;
message!(UpToHere => Result<(), StoreError>);

impl Handler<UpToHere> for Gossip {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, _: UpToHere, _: &mut Self::Context) -> Self::Result {
        Ok(())
    }
}

/// The gossip store as everybody else sees it. Reads are served from what the actor published, without it.
///
/// Writes wait until the first attempt to join is over, so that they are made on top of what the cluster knows. So do reads
/// by which another store is brought up to date: before, there is nothing here, and that would pass for everything.
pub(crate) struct GossipClient {
    address: Addr<Gossip>,
    hub: Arc<WatchHub>,
    contents: Contents,
    joined: watch::Receiver<Joined>,
}

impl GossipClient {
    pub(crate) fn new(
        address: Addr<Gossip>,
        hub: Arc<WatchHub>,
        contents: Contents,
        joined: watch::Receiver<Joined>,
    ) -> Arc<Self> {
        Arc::new(Self { address, hub, contents, joined })
    }

    /// Sends a message and, when the actor dies over it, sends it again: every operation here is safe to repeat.
    async fn ask<M, T>(&self, make: impl Fn() -> M) -> Result<T, StoreError>
    where
        M: actix::Message<Result = Result<T, StoreError>> + Send + 'static,
        T: Send + 'static,
        Gossip: Handler<M>,
    {
        let mut joined = self.joined.clone();
        if joined.wait_for(|joined| *joined == Joined::Done).await.is_err() {
            return Err(StoreError::Closed(StoreKind::Memberlist));
        }
        for _ in 0..3 {
            match self.address.send(make()).timeout(PATIENCE).await {
                Ok(result) => return result,
                Err(MailboxError::Timeout) => {
                    return Err(StoreError::Timeout { store: StoreKind::Memberlist, after: PATIENCE });
                }
                Err(MailboxError::Closed) if self.address.connected() => {}
                Err(MailboxError::Closed) => break,
            }
        }
        Err(StoreError::Closed(StoreKind::Memberlist))
    }
}

impl Store for GossipClient {
    fn kind(&self) -> StoreKind {
        StoreKind::Memberlist
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let entry = self.hub.get(key);
        Box::pin(std::future::ready(Ok(entry)))
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let keys = self.hub.list(prefix);
        Box::pin(std::future::ready(Ok(keys)))
    }

    fn get_latest(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.ask(|| UpToHere).await?;
            Ok(self.hub.get(&key))
        })
    }

    fn list_latest(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.ask(|| UpToHere).await?;
            Ok(self.hub.list(&prefix))
        })
    }

    fn cas(&self, key: &str, f: CasFn) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let (key, f): (Arc<str>, SharedCas) = (key.into(), Arc::new(Mutex::new(f)));
        Box::pin(async move { self.ask(|| Cas { key: key.clone(), f: f.clone() }).await })
    }

    fn join(&self, key: &str, delta: Value) -> BoxFuture<'_, Result<CasOutcome, StoreError>> {
        let key: Arc<str> = key.into();
        Box::pin(async move { self.ask(|| JoinValue { key: key.clone(), delta: delta.clone() }).await })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key: Arc<str> = key.into();
        Box::pin(async move { self.ask(|| Delete(key.clone())).await })
    }

    fn watch_key(&self, key: &str) -> Watch {
        self.hub.watch_key(key)
    }

    fn watch_prefix(&self, prefix: &str) -> Watch {
        self.hub.watch_prefix(prefix)
    }

    fn remembers_deletion(&self, key: &str) -> bool {
        self.contents.remembers_deletion(key)
    }
}
