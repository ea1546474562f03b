//! The membership core on real sockets: a member of a memberlist cluster in which a test sees and does everything.
//!
//! `annulus::Node` keeps user messages and state for its own store. Here they belong to the test, so that what other
//! programs send and expect can be looked at byte by byte.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use annulus::clock::Now;
use annulus::swim::{ExchangeId, Input, LocalNode, Member, MemberEvent, Output, Swim, SwimConfig, UserBroadcast};
use annulus::transport::{InboundPacket, Limits, NetTransport, Stream, Transport};
use annulus::wire::message::{MemberState, NodeName};
use annulus::wire::{Keyring, Label, PacketOptions, StreamDecoder, StreamMessage, StreamSide};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::until;

/// Exchanges that peers began.
const INBOUND: u64 = 1 << 63;

/// Packets taken from the socket at a time.
const BATCH: usize = 64;

/// What a test sees of a node.
#[derive(Debug, Default)]
struct View {
    members: Vec<Arc<Member>>,
    events: Vec<MemberEvent>,
    messages: Vec<Bytes>,
    states: Vec<Bytes>,
    refused: BTreeMap<&'static str, u64>,
}

enum Command {
    Input(Input),
    Join(SocketAddr, oneshot::Sender<Result<usize, String>>),
    Leave(oneshot::Sender<()>),
    State(Bytes),
    Keys(Keyring),
}

enum Happening {
    Request { from: SocketAddr, label: Label, message: StreamMessage, answer: oneshot::Sender<Option<Bytes>> },
    Reply { exchange: ExchangeId, result: Result<Option<StreamMessage>, String> },
}

/// A node. Dead when dropped.
pub struct CoreNode {
    name: String,
    addr: SocketAddr,
    view: Arc<Mutex<View>>,
    muted: Arc<AtomicBool>,
    commands: mpsc::UnboundedSender<Command>,
    transport: Arc<NetTransport>,
    task: JoinHandle<()>,
}

impl CoreNode {
    /// A node that knows only itself, on this address and port (0 picks one).
    ///
    /// # Panics
    /// When the port is not free.
    pub fn start(name: &str, ip: IpAddr, port: u16, config: SwimConfig, meta: impl Into<Bytes>) -> Self {
        let transport = Arc::new(NetTransport::bind(&[ip], port, Limits::default()).unwrap());
        let addr = transport.local_addr();
        let local = LocalNode { name: NodeName::from(name), addr, meta: meta.into() };
        let view = Arc::new(Mutex::new(View::default()));
        let muted = Arc::new(AtomicBool::new(false));
        let (commands, inbox) = mpsc::unbounded_channel();
        let (happened, happenings) = mpsc::unbounded_channel();
        let driver = Driver {
            swim: Swim::new(config.clone(), local, rand::make_rng(), rand::make_rng(), Now::read()),
            config,
            transport: transport.clone(),
            view: view.clone(),
            muted: muted.clone(),
            happened,
            answers: HashMap::new(),
            next_inbound: 0,
            joins: HashMap::new(),
            next_join: 0,
            leaving: Vec::new(),
            state: Bytes::new(),
        };
        let task = tokio::spawn(driver.run(inbox, happenings));
        Self { name: name.to_owned(), addr, view, muted, commands, transport, task }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn command(&self, command: Command) {
        // A node that was killed does nothing.
        let _ = self.commands.send(command);
    }

    /// A member as this node sees it.
    pub fn member(&self, name: &str) -> Option<Arc<Member>> {
        self.view(|view| view.members.iter().find(|member| member.name == NodeName::from(name)).cloned())
    }

    /// Its state.
    pub fn state_of(&self, name: &str) -> Option<MemberState> {
        self.member(name).map(|member| member.state)
    }

    /// The names of those that are alive; the suspected do not count.
    pub fn alive(&self) -> Vec<String> {
        let alive = |member: &&Arc<Member>| member.state == MemberState::Alive;
        let mut names: Vec<String> =
            self.view(|view| view.members.iter().filter(alive).map(|member| member.name.to_string()).collect());
        names.sort();
        names
    }

    /// Waits until exactly these are alive.
    pub async fn sees(&self, names: &[&str]) -> Duration {
        let mut wanted: Vec<String> = names.iter().map(ToString::to_string).collect();
        wanted.sort();
        until(&format!("{} sees {wanted:?}", self.name), async || self.alive(), |alive| *alive == wanted).await
    }

    /// Waits until a member has a state.
    pub async fn sees_state(&self, name: &str, state: MemberState) -> Duration {
        let what = format!("{} sees {name} as {state:?}", self.name);
        until(&what, async || self.state_of(name), |seen| *seen == Some(state)).await
    }

    /// Whether a member was ever declared dead here.
    pub fn saw_failure_of(&self, name: &str) -> bool {
        let failed =
            |event: &MemberEvent| matches!(event, MemberEvent::Failed(member) if member.name == NodeName::from(name));
        self.view(|view| view.events.iter().any(failed))
    }

    /// Messages for the application, as they arrived.
    pub fn messages(&self) -> Vec<Bytes> {
        self.view(|view| view.messages.clone())
    }

    /// Waits until a message arrived.
    pub async fn hears(&self, message: impl AsRef<[u8]>) -> Duration {
        let wanted = message.as_ref();
        let what = format!("{} hears {:?}", self.name, String::from_utf8_lossy(&wanted[..wanted.len().min(40)]));
        let shown = async || self.messages().iter().map(|message| message.slice(..message.len().min(40))).collect();
        until(&what, shown, |_: &Vec<Bytes>| self.messages().iter().any(|message| message == wanted)).await
    }

    /// States of peers, as they arrived.
    pub fn states(&self) -> Vec<Bytes> {
        self.view(|view| view.states.clone())
    }

    /// Waits until a peer's state arrived.
    pub async fn receives_state(&self, state: impl AsRef<[u8]>) -> Duration {
        let wanted = state.as_ref();
        until(
            &format!("{} receives a state", self.name),
            async || self.states().len(),
            |_| self.states().iter().any(|state| state == wanted),
        )
        .await
    }

    /// How many packets and messages were refused for this reason.
    pub fn refused(&self, reason: &str) -> u64 {
        self.view(|view| view.refused.get(reason).copied().unwrap_or_default())
    }

    /// Joins through a member.
    ///
    /// # Errors
    /// Why that one did not let it.
    pub async fn join(&self, seed: SocketAddr) -> Result<(), String> {
        let (done, outcome) = oneshot::channel();
        self.command(Command::Join(seed, done));
        match outcome.await {
            Ok(Ok(1)) => Ok(()),
            Ok(Ok(joined)) => Err(format!("{joined} joined")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("the node is dead".to_owned()),
        }
    }

    /// Says goodbye and waits until the others were told; then it is gone.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        self.command(Command::Leave(done));
        let _ = left.await;
        self.kill();
    }

    /// Is gone, without a word.
    pub fn kill(&self) {
        self.task.abort();
        self.transport.close();
    }

    /// Tells one member: in a packet if it fits one, over a stream otherwise.
    pub fn send(&self, to: &str, message: impl Into<Bytes>) {
        self.command(Command::Input(Input::SendUser { to: NodeName::from(to), bytes: message.into() }));
    }

    /// Tells everyone.
    pub fn broadcast(&self, key: &str, message: impl Into<Bytes>) {
        self.command(Command::Input(Input::Broadcast(UserBroadcast {
            key: key.into(),
            content: Vec::new(),
            version: 1,
            local: true,
            payload: message.into(),
        })));
    }

    /// Says something else about itself.
    pub fn set_meta(&self, meta: impl Into<Bytes>) {
        self.command(Command::Input(Input::UpdateMeta(meta.into())));
    }

    /// What its push/pulls carry from now on.
    pub fn set_state(&self, state: impl Into<Bytes>) {
        self.command(Command::State(state.into()));
    }

    /// Goes on with other keys, as the same member.
    pub fn set_keys(&self, keys: Keyring) {
        self.command(Command::Keys(keys));
    }

    /// Cuts it off: nothing that it sends arrives, and nothing reaches it.
    pub fn mute(&self, muted: bool) {
        self.muted.store(muted, Ordering::SeqCst);
    }
}

impl Drop for CoreNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the core: what the actors do in a whole node.
struct Driver {
    swim: Swim,
    config: SwimConfig,
    transport: Arc<NetTransport>,
    view: Arc<Mutex<View>>,
    muted: Arc<AtomicBool>,
    happened: mpsc::UnboundedSender<Happening>,
    answers: HashMap<ExchangeId, oneshot::Sender<Option<Bytes>>>,
    next_inbound: u64,
    joins: HashMap<u64, oneshot::Sender<Result<usize, String>>>,
    next_join: u64,
    leaving: Vec<oneshot::Sender<()>>,
    state: Bytes,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut happenings: mpsc::UnboundedReceiver<Happening>,
    ) {
        let transport = self.transport.clone();
        let mut packets: Vec<InboundPacket> = Vec::new();
        loop {
            self.carry_out();
            let deadline = self.swim.next_deadline().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                received = transport.recv_packets(&mut packets, BATCH) => if received.is_err() { return },
                accepted = transport.accept() => match accepted {
                    Ok((stream, from)) => self.accept(stream, from),
                    Err(_) => return,
                },
                Some(happening) = happenings.recv() => self.happening(happening),
                Some(command) = commands.recv() => self.command(command),
                () = tokio::time::sleep_until(deadline.into()) => self.swim.handle(Now::read(), Input::Tick),
            }
            for InboundPacket { from, bytes } in packets.drain(..) {
                if !self.is_muted() {
                    self.swim.handle(Now::read(), Input::Packet { from, bytes });
                }
            }
        }
    }

    fn is_muted(&self) -> bool {
        self.muted.load(Ordering::SeqCst)
    }

    fn command(&mut self, command: Command) {
        let now = Now::read();
        match command {
            Command::Input(input) => self.swim.handle(now, input),
            Command::Join(seed, done) => {
                self.next_join += 1;
                self.joins.insert(self.next_join, done);
                self.swim.handle(now, Input::Join { id: self.next_join, seeds: vec![seed] });
            }
            Command::Leave(done) => {
                self.leaving.push(done);
                self.swim.handle(now, Input::Leave);
            }
            Command::State(state) => self.state = state,
            Command::Keys(keys) => {
                self.config.packet.keyring = keys.clone();
                self.swim.handle(now, Input::SetKeyring(keys));
            }
        }
    }

    fn happening(&mut self, happening: Happening) {
        let input = match happening {
            Happening::Request { from, label, message, answer } => {
                let exchange = ExchangeId(INBOUND | self.next_inbound);
                self.next_inbound += 1;
                self.answers.insert(exchange, answer);
                Input::StreamRequest { exchange, from, label, message }
            }
            Happening::Reply { exchange, result } => Input::StreamReply { exchange, result },
        };
        self.swim.handle(Now::read(), input);
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.swim.poll_output() {
            match output {
                Output::SendPacket { to, bytes } => {
                    if !self.is_muted() {
                        // A packet that is not sent is a packet lost.
                        let _ = self.transport.try_send_packet(to, &bytes);
                    }
                }
                Output::OpenStream { exchange, to, bytes, expect_reply, timeout } => {
                    self.dial(exchange, to, bytes, expect_reply, timeout);
                }
                Output::RespondStream { exchange, bytes } => {
                    if let Some(answer) = self.answers.remove(&exchange) {
                        let _ = answer.send(bytes);
                    }
                }
                Output::NeedUserState { exchange, .. } => {
                    let bytes = self.state.clone();
                    self.swim.handle(Now::read(), Input::UserState { exchange, bytes });
                }
                Output::JoinDone { id, joined, errors } => {
                    if let Some(done) = self.joins.remove(&id) {
                        let _ = done.send(if errors.is_empty() { Ok(joined) } else { Err(errors.join("; ")) });
                    }
                }
                Output::LeaveDone => {
                    for left in self.leaving.drain(..) {
                        let _ = left.send(());
                    }
                }
                Output::RemoteState { bytes, .. } => self.see(|view| view.states.push(bytes)),
                Output::UserMessage { bytes } => self.see(|view| view.messages.push(bytes)),
                Output::Event(event) => self.see(|view| view.events.push(event)),
                Output::LabelChecked { .. } => {}
            }
        }
        let (members, stats) = (self.swim.members(), self.swim.stats());
        let mut refused = stats.packets_refused.clone();
        for (reason, count) in &stats.messages_refused {
            *refused.entry(*reason).or_default() += count;
        }
        self.see(|view| {
            view.members = members;
            view.refused = refused;
        });
    }

    fn see(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn dial(&self, exchange: ExchangeId, to: SocketAddr, bytes: Bytes, expect_reply: bool, timeout: Duration) {
        let (transport, happened, options) =
            (self.transport.clone(), self.happened.clone(), self.config.packet.clone());
        let muted = self.is_muted();
        tokio::spawn(async move {
            let deadline = tokio::time::Instant::now() + timeout;
            let exchanged = async {
                if muted {
                    return Err("cut off".to_owned());
                }
                let mut stream = transport.connect(to, deadline).await.map_err(|error| error.to_string())?;
                stream.write_all(&bytes).await.map_err(|error| error.to_string())?;
                if !expect_reply {
                    let _ = stream.shutdown().await;
                    return Ok(None);
                }
                read(&mut stream, &options, StreamSide::Dialed).await.map(|(_, message)| Some(message))
            };
            let result = tokio::time::timeout_at(deadline, exchanged).await;
            let result = result.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let _ = happened.send(Happening::Reply { exchange, result });
        });
    }

    fn accept(&self, mut stream: Box<dyn Stream>, from: SocketAddr) {
        if self.is_muted() {
            return;
        }
        let (happened, options, timeout) =
            (self.happened.clone(), self.config.packet.clone(), self.config.stream_timeout);
        tokio::spawn(tokio::time::timeout(timeout, async move {
            // Who sends nonsense is not told.
            let Ok((label, message)) = read(&mut stream, &options, StreamSide::Accepted).await else { return };
            let (answer, answered) = oneshot::channel();
            let _ = happened.send(Happening::Request { from, label, message, answer });
            if let Ok(Some(bytes)) = answered.await {
                let _ = stream.write_all(&bytes).await;
            }
        }));
    }
}

async fn read(
    stream: &mut Box<dyn Stream>,
    options: &PacketOptions,
    side: StreamSide,
) -> Result<(Label, StreamMessage), String> {
    let mut decoder = StreamDecoder::new(options, side);
    let mut piece = vec![0; 16 << 10];
    loop {
        if let Some(message) = decoder.poll().map_err(|error| error.to_string())? {
            return Ok((decoder.label().clone(), message));
        }
        match stream.read(&mut piece).await.map_err(|error| error.to_string())? {
            0 => {
                decoder.finish().map_err(|error| error.to_string())?;
                return Err("closed without a message".to_owned());
            }
            count => decoder.feed(&piece[..count]).map_err(|error| error.to_string())?,
        }
    }
}
