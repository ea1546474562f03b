#![allow(clippy::unwrap_used)]

use tokio::sync::mpsc;

use super::*;
use crate::actors::guard::{self, ChildStatus, RestartPolicy};
use crate::actors::keys::CheckLabel;
use crate::actors::message::{Drill, Fault};
use crate::transport::{BoxFuture, Counters, MemoryNetwork, MemoryTransport, Stream};
use crate::wire::message::{Ack, Alive, Message, Ping, Source, Suspect, VSN, WireIp};
use crate::wire::{decode_packet, encode_message, encode_packets};

/// A transport that shows each packet together with the members that were published when it was sent.
struct Spy {
    inner: MemoryTransport,
    members: Arc<ArcSwap<Members>>,
    sent: mpsc::UnboundedSender<(Bytes, Arc<Members>)>,
}

impl Transport for Spy {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn try_send_packet(&self, _: SocketAddr, bytes: &[u8]) -> std::io::Result<()> {
        let _ = self.sent.send((Bytes::copy_from_slice(bytes), self.members.load_full()));
        Ok(())
    }

    fn recv_packets<'a>(&'a self, into: &'a mut Vec<InboundPacket>, max: usize) -> BoxFuture<'a, std::io::Result<()>> {
        self.inner.recv_packets(into, max)
    }

    fn connect(
        &self,
        to: SocketAddr,
        deadline: tokio::time::Instant,
    ) -> BoxFuture<'_, std::io::Result<Box<dyn Stream>>> {
        self.inner.connect(to, deadline)
    }

    fn accept(&self) -> BoxFuture<'_, std::io::Result<(Box<dyn Stream>, SocketAddr)>> {
        self.inner.accept()
    }

    fn close(&self) {
        self.inner.close();
    }

    fn counters(&self) -> &Counters {
        self.inner.counters()
    }
}

fn addr(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 7946))
}

/// A node "me" at host 1 that does nothing by itself.
fn parts() -> (Arc<MembershipParts>, mpsc::UnboundedReceiver<(Bytes, Arc<Members>)>) {
    let zero = Duration::ZERO;
    let config = SwimConfig {
        probe_interval: zero,
        gossip_interval: zero,
        push_pull_interval: zero,
        leave_timeout: Duration::from_millis(300),
        ..SwimConfig::lan()
    };
    let members = Arc::<ArcSwap<Members>>::default();
    let (sent, packets) = mpsc::unbounded_channel();
    let network = Spy { inner: MemoryNetwork::new().endpoint(addr(1)), members: members.clone(), sent };
    let parts = MembershipParts {
        wrapping: Wrapping::new(config.packet.clone()),
        config,
        local: LocalNode { name: "me".into(), addr: addr(1), meta: Bytes::new() },
        queue: Arc::default(),
        network: Arc::new(network),
        states: ByteBudget::default(),
        members,
        events: EventHub::new(),
        transport: OnceLock::new(),
        gossip: OnceLock::new(),
        had_left: Mutex::new(None),
        join_members: Vec::new(),
        dns_server: None,
        join: JoinPolicy { max_retries: 0, min_backoff: zero, max_backoff: zero, abort: false, resolve_every: zero },
        seeds: Mutex::default(),
        joined: watch::Sender::new(Joined::Trying),
    };
    (Arc::new(parts), packets)
}

fn alive(name: &str, host: u8, incarnation: u32) -> Message {
    let addr = WireIp::from(addr(host).ip());
    Message::Alive(Alive { incarnation, node: name.into(), addr, port: 7946, meta: Bytes::new(), vsn: Some(VSN) })
}

/// One packet of these messages, from host 2.
fn packet(messages: &[Message]) -> InboundPacket {
    let messages: Vec<_> = messages.iter().map(encode_message).collect();
    let mut nonces: rand::rngs::StdRng = rand::make_rng();
    let bytes = encode_packets(&messages, &PacketOptions::default(), false, &mut nonces).remove(0);
    InboundPacket { from: addr(2), bytes }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn what_is_sent_and_told_is_in_the_snapshot_before() {
    run(async {
        let (parts, mut packets) = parts();
        let (queue, mut events) = (parts.queue.clone(), parts.events.subscribe());
        let _actor = Membership::new(parts).start();
        let source = Some(Source { addr: WireIp::from(addr(2).ip()), port: 7946, node: "n".into() });
        queue.push(packet(&[
            alive("n", 2, 1),
            Message::Suspect(Suspect { incarnation: 7, node: "me".into(), from: "n".into() }),
            Message::Ping(Ping { seq_no: 5, node: "me".into(), source }),
        ]));
        // The ack takes our refutation along.
        let (ack, shown) = packets.recv().await.unwrap();
        let ack = decode_packet(&ack, &PacketOptions::default()).unwrap().messages;
        let refutation = |message: &Message| matches!(message, Message::Alive(own) if own.incarnation == 8);
        assert!(ack.iter().any(refutation), "{ack:?}");
        let own = shown.list.iter().find(|member| member.name.as_str() == "me").unwrap();
        assert_eq!(own.incarnation, 8, "a core that took over now would have to know it");
        let joined = |event: &NodeEvent| matches!(event, NodeEvent::MemberJoined { name } if name == "n");
        while !joined(&events.recv().await.unwrap()) {}
        assert!(shown.list.iter().any(|member| member.name.as_str() == "n"));
    });
}

#[test]
fn refusals_are_logged_once_a_minute_even_while_members_change_all_the_time() {
    let (parts, _packets) = parts();
    let mut membership = Membership::new(parts);
    let mut change = |incarnation, seconds_since_log| {
        membership.logged.1 = Instant::now().checked_sub(Duration::from_secs(seconds_since_log)).unwrap();
        let InboundPacket { from, bytes } = packet(&[alive("n", 2, incarnation), alive("n", 3, incarnation)]);
        membership.swim.handle(Now::read(), Input::Packet { from, bytes });
        membership.publish_changes();
        membership.logged.0.get("alive_conflict").copied()
    };
    assert_eq!(change(1, 30), None, "not yet");
    assert_eq!(change(2, 60), Some(2));
    assert_eq!(change(3, 30), Some(2));
    assert_eq!(change(4, 61), Some(4));
}

#[test]
fn a_goodbye_over_which_the_actor_dies_is_said_again_and_not_reported_before() {
    run(async {
        let (parts, mut packets) = parts();
        let queue = parts.queue.clone();
        let (events, _seen) = mpsc::unbounded_channel();
        let status = ChildStatus::new("membership");
        let (address, guarded) = guard::spawn(status, RestartPolicy::default(), events, Membership::new(parts));
        let source = Some(Source { addr: WireIp::from(addr(2).ip()), port: 7946, node: "n".into() });
        queue.push(packet(&[alive("n", 2, 1), Message::Ping(Ping { seq_no: 5, node: "me".into(), source })]));
        packets.recv().await.unwrap();

        // The goodbye waits until it was sent often enough, and the actor dies in between.
        let (left, died) = futures_util::join!(address.send(Leave), address.send(Drill(Fault::Panic)));
        assert_eq!((left.unwrap(), died.is_err()), (Err(()), true));
        assert!(leave(&address).await, "its successor says it");
        guarded.control.send(guard::Control::Stop).unwrap();
        guarded.done.await.unwrap();
        assert!(!leave(&address).await, "nobody does any more");
    });
}

#[test]
fn the_labels_that_a_check_heard_are_published_with_its_result() {
    run(async {
        let (parts, mut packets) = parts();
        let (queue, members) = (parts.queue.clone(), parts.members.clone());
        let address = Membership::new(parts).start();
        let source = Some(Source { addr: WireIp::from(addr(2).ip()), port: 7946, node: "third".into() });
        // Host 2 tells of a member at host 3, which has not sent anything yet.
        queue.push(packet(&[alive("n", 3, 1), Message::Ping(Ping { seq_no: 5, node: "me".into(), source })]));
        packets.recv().await.unwrap();
        let answer = async {
            let (ping, _) = packets.recv().await.unwrap();
            let messages = decode_packet(&ping, &PacketOptions::default()).unwrap().messages;
            let Some(Message::Ping(Ping { seq_no, .. })) = messages.first() else { panic!("{messages:?}") };
            let ack = Message::Ack(Ack { seq_no: *seq_no, payload: Bytes::new() });
            queue.push(InboundPacket { from: addr(3), ..packet(&[ack]) });
        };
        let (checked, ()) = futures_util::join!(address.send(CheckLabel(Label::NONE)), answer);
        assert_eq!(checked.unwrap().unwrap().accept, ["n"]);
        let shown = members.load_full();
        let member = shown.list.iter().find(|member| member.name.as_str() == "n").unwrap();
        assert_eq!(shown.label_of(member), Some(&Label::NONE));
    });
}
