//! One suite for every transport, and what only one of them has.

#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::io::{ReadError, ReadLimits, feed_until, read_until, write_all_deadline};
use super::*;

/// Fails a test that hangs; never reached otherwise, so no test depends on its length.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("this should have happened long ago")
}

fn in_time() -> Instant {
    Instant::now() + PATIENCE
}

/// A kind of network on which the suite runs.
trait Network {
    /// A transport at a given address of the kind, or (`None`) at a free port of a local address.
    fn open(&self, at: Option<SocketAddr>, limits: Limits) -> Arc<dyn Transport>;

    fn open_any(&self) -> Arc<dyn Transport> {
        self.open(None, Limits::default())
    }
}

struct Sockets(IpAddr);

impl Network for Sockets {
    fn open(&self, at: Option<SocketAddr>, limits: Limits) -> Arc<dyn Transport> {
        let (ip, port) = at.map_or((self.0, 0), |at| (at.ip(), at.port()));
        Arc::new(NetTransport::bind(&[ip], port, limits).unwrap())
    }
}

/// TCP alone.
struct Connections(IpAddr);

impl Network for Connections {
    fn open(&self, at: Option<SocketAddr>, limits: Limits) -> Arc<dyn Transport> {
        let (ip, port) = at.map_or((self.0, 0), |at| (at.ip(), at.port()));
        let settings = TcpSettings { limits, max_packet: MAX_PACKET, ..TcpSettings::default() };
        Arc::new(TcpTransport::bind(&[ip], port, settings, Arc::new(TestFraming)).unwrap())
    }
}

/// `p ‖ length ‖ address ‖ packet ‖ sum of its bytes`, or `s` and a stream.
pub(super) struct TestFraming;

impl Framing for TestFraming {
    fn carries(&self, first: u8) -> Carries {
        match first {
            b'p' => Carries::Packet,
            b's' => Carries::Stream,
            _ => Carries::Unknown,
        }
    }

    fn stream_byte(&self) -> u8 {
        b's'
    }

    fn frame_len(&self, packet: usize) -> usize {
        packet + 3 + 255
    }

    fn frame(&self, from: SocketAddr, packet: &[u8]) -> Vec<u8> {
        let from = from.to_string();
        [b"p", &[from.len() as u8][..], from.as_bytes(), packet, &[sum(packet)]].concat()
    }

    fn unframe(&self, connection: Bytes) -> Result<Unframed, FramingError> {
        let malformed = || FramingError::Malformed("cut".to_owned());
        let len = usize::from(*connection.get(1).ok_or_else(malformed)?);
        let from = connection.get(2..2 + len).and_then(|from| std::str::from_utf8(from).ok()?.parse().ok());
        let from = from.ok_or_else(malformed)?;
        let (sent, packet) = connection[2 + len..].split_last().ok_or_else(malformed)?;
        if *sent != sum(packet) {
            return Err(FramingError::Damaged);
        }
        Ok(Unframed { from, packet: connection.slice_ref(packet) })
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(1, |sum, byte| sum.wrapping_mul(3).wrapping_add(*byte))
}

impl Network for MemoryNetwork {
    fn open(&self, at: Option<SocketAddr>, limits: Limits) -> Arc<dyn Transport> {
        let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        Arc::new(self.endpoint_with(at.unwrap_or(any), limits))
    }
}

/// Receives until there are `count` packets.
async fn receive(transport: &dyn Transport, count: usize) -> Vec<InboundPacket> {
    let mut packets = Vec::new();
    while packets.len() < count {
        soon(transport.recv_packets(&mut packets, count)).await.unwrap();
    }
    packets
}

/// Opens a stream and accepts it.
async fn stream_pair(client: &dyn Transport, server: &dyn Transport) -> (Box<dyn Stream>, Box<dyn Stream>) {
    let ours = client.connect(server.local_addr(), in_time()).await.unwrap();
    let (theirs, _) = soon(server.accept()).await.unwrap();
    (ours, theirs)
}

/// Whether the other side has closed this stream. Closing with unread bytes may also show as a reset.
async fn is_hung_up(stream: &mut Box<dyn Stream>) -> bool {
    match soon(stream.read(&mut [0; 1])).await {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

mod suite {
    use super::*;

    pub(super) async fn packets_go_both_ways_and_say_where_they_come_from(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        a.try_send_packet(b.local_addr(), b"ping").unwrap();
        let got = receive(&*b, 1).await;
        assert_eq!((&got[0].bytes[..], got[0].from), (&b"ping"[..], a.local_addr()));
        b.try_send_packet(got[0].from, b"").unwrap();
        let got = receive(&*a, 1).await;
        assert_eq!((&got[0].bytes[..], got[0].from), (&b""[..], b.local_addr()), "an empty packet is a packet");
        let (sent, received) = (a.counters().snapshot(), b.counters().snapshot());
        assert_eq!((sent.packets_out, sent.packet_bytes_out, sent.packets_in), (1, 4, 1));
        assert_eq!((received.packets_in, received.packet_bytes_in, received.packets_out), (1, 4, 1));
    }

    pub(super) async fn packets_that_are_ready_come_in_batches_up_to_the_maximum(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        for number in 0..10_u8 {
            a.try_send_packet(b.local_addr(), &[number]).unwrap();
        }
        let mut packets = Vec::new();
        let mut batches = Vec::new();
        while packets.len() < 10 {
            let before = packets.len();
            soon(b.recv_packets(&mut packets, 4)).await.unwrap();
            batches.push(packets.len() - before);
        }
        assert!(batches.iter().all(|size| (1..=4).contains(size)), "{batches:?}");
        assert!(batches.len() < 10, "packets that were ready were not taken together: {batches:?}");
        let numbers: Vec<u8> = packets.iter().map(|packet| packet.bytes[0]).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<u8>>(), "appended, and in order");
    }

    pub(super) async fn the_largest_datagram_arrives_whole_and_a_larger_one_is_refused(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let error = a.try_send_packet(b.local_addr(), &[0; MAX_PACKET + 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let bytes: Vec<u8> = (0..MAX_PACKET).map(|index| (index % 251) as u8).collect();
        a.try_send_packet(b.local_addr(), &bytes).unwrap();
        assert_eq!(receive(&*b, 1).await[0].bytes, bytes);
        assert_eq!((a.counters().snapshot().packets_out, a.counters().snapshot().packet_errors), (1, 1));
    }

    pub(super) async fn streams_go_both_ways_and_end(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let mut ours = a.connect(b.local_addr(), in_time()).await.unwrap();
        let (mut theirs, from) = soon(b.accept()).await.unwrap();
        assert_eq!(from.ip(), a.local_addr().ip());
        // More than any buffer on the way holds, so both ends have to work at the same time.
        let question = vec![7; 8 << 20];
        let ask = async {
            write_all_deadline(&mut ours, &question, in_time()).await.unwrap();
            let mut answer = Vec::new();
            ours.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let reply = async {
            let mut got = vec![0; 8 << 20];
            theirs.read_exact(&mut got).await.unwrap();
            write_all_deadline(&mut theirs, &got[..3], in_time()).await.unwrap();
            theirs.shutdown().await.unwrap();
            got
        };
        let (answer, got) = soon(async { tokio::join!(ask, reply) }).await;
        assert!(got == question);
        assert_eq!(answer, [7; 3]);
        assert_eq!((a.counters().snapshot().streams_out, b.counters().snapshot().streams_in), (1, 1));
    }

    pub(super) async fn a_silent_peer_ends_the_read_at_the_first_byte_deadline(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let (_ours, mut theirs) = stream_pair(&*a, &*b).await;
        // From here nothing but time can pass, so it passes at once.
        tokio::time::pause();
        let start = Instant::now();
        let limits = ReadLimits::new(start + Duration::from_secs(10), 1000);
        let read = read_until(&mut theirs, &limits, &ByteBudget::default(), |_| Ok::<_, ()>(true)).await;
        assert!(matches!(read, Err(ReadError::Silent)), "{read:?}");
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    pub(super) async fn a_peer_that_takes_nothing_ends_the_write_at_the_deadline(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let (mut ours, _theirs) = stream_pair(&*a, &*b).await;
        tokio::time::pause();
        let endless = vec![0; 64 << 20];
        let error = write_all_deadline(&mut ours, &endless, Instant::now() + Duration::from_secs(10)).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
    }

    pub(super) async fn a_port_where_nobody_listens_refuses_streams(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let gone = b.local_addr();
        b.close();
        drop(b);
        let Err(error) = a.connect(gone, in_time()).await else { panic!("nobody can have answered") };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(a.counters().snapshot().stream_errors, 1);
        a.try_send_packet(gone, b"into the void").unwrap();
    }

    pub(super) async fn a_connect_whose_deadline_has_passed_times_out(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let Err(error) = a.connect(b.local_addr(), Instant::now()).await else { panic!("too late to succeed") };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    pub(super) async fn streams_over_the_total_limit_are_hung_up_on(network: &dyn Network) {
        let limits = Limits { max_streams: 2, max_streams_per_ip: 100, ..Limits::default() };
        a_limit_of_two(network, limits).await;
    }

    pub(super) async fn streams_over_the_limit_for_one_address_are_hung_up_on(network: &dyn Network) {
        let limits = Limits { max_streams: 100, max_streams_per_ip: 2, limit_loopback: true, ..Limits::default() };
        a_limit_of_two(network, limits).await;
    }

    async fn a_limit_of_two(network: &dyn Network, limits: Limits) {
        let (a, b) = (network.open_any(), network.open(None, limits));
        let (_first, accepted) = stream_pair(&*a, &*b).await;
        let (_second, _also_accepted) = stream_pair(&*a, &*b).await;
        let mut third = a.connect(b.local_addr(), in_time()).await.unwrap();
        let refusing = async {
            tokio::select! {
                _ = b.accept() => panic!("the third stream is over the limit"),
                hung_up = is_hung_up(&mut third) => hung_up,
            }
        };
        assert!(soon(refusing).await);
        assert_eq!(b.counters().snapshot().streams_refused(), 1);
        drop(accepted);
        let (_fourth, _accepted_again) = stream_pair(&*a, &*b).await;
        assert_eq!((b.counters().snapshot().streams_in, b.counters().snapshot().streams_refused()), (3, 1));
    }

    pub(super) async fn packets_over_their_sources_rate_are_dropped_and_members_may_send_more(network: &dyn Network) {
        let once = |burst| Rate { per_second: 0, burst };
        let packets = Rates { member: once(50), stranger: once(5), strangers: once(100) };
        let limits = Limits { packets, limit_loopback: true, ..Limits::default() };
        let (a, b) = (network.open_any(), network.open(None, limits));
        let flood = async |expected: u64| {
            for _ in 0..20 {
                a.try_send_packet(b.local_addr(), b"knock").unwrap();
            }
            let mut received = Vec::new();
            let all = async {
                loop {
                    let seen = b.counters().snapshot();
                    if seen.packets_in + seen.packets_over_rate == expected {
                        return;
                    }
                    tokio::select! {
                        done = b.recv_packets(&mut received, 7) => done.unwrap(),
                        // What is dropped wakes nobody.
                        () = tokio::time::sleep(Duration::from_millis(1)) => {}
                    }
                }
            };
            soon(all).await;
            received.len()
        };
        assert_eq!(flood(20).await, 5);
        b.set_members(&Arc::new([a.local_addr().ip()].into_iter().collect()));
        assert_eq!(flood(40).await, 20);
        assert_eq!(b.counters().snapshot().packets_over_rate, 15);
    }

    pub(super) async fn close_ends_every_call_that_waits_and_every_later_one(network: &dyn Network) {
        let transport = network.open_any();
        let receiving = tokio::spawn({
            let transport = Arc::clone(&transport);
            async move { transport.recv_packets(&mut Vec::new(), 1).await.unwrap_err().kind() }
        });
        let accepting = tokio::spawn({
            let transport = Arc::clone(&transport);
            async move { transport.accept().await.err().unwrap().kind() }
        });
        tokio::task::yield_now().await;
        transport.close();
        assert_eq!(soon(receiving).await.unwrap(), ErrorKind::NotConnected);
        assert_eq!(soon(accepting).await.unwrap(), ErrorKind::NotConnected);
        let own = transport.local_addr();
        assert_eq!(transport.try_send_packet(own, b"").unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(transport.accept().await.err().unwrap().kind(), ErrorKind::NotConnected);
        assert_eq!(transport.connect(own, in_time()).await.err().unwrap().kind(), ErrorKind::NotConnected);
        let received = transport.recv_packets(&mut Vec::new(), 1).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::NotConnected);
    }

    pub(super) async fn the_same_port_can_be_opened_again_after_close(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let (mut ours, _theirs) = stream_pair(&*a, &*b).await;
        let addr = b.local_addr();
        let receiving = tokio::spawn({
            let b = Arc::clone(&b);
            async move { b.recv_packets(&mut Vec::new(), 1).await }
        });
        tokio::task::yield_now().await;
        b.close();
        soon(receiving).await.unwrap().unwrap_err();
        // The old transport still exists, and a stream of it is still open.
        let again = network.open(Some(addr), Limits::default());
        assert_eq!(again.local_addr(), addr);
        a.try_send_packet(addr, b"welcome back").unwrap();
        assert_eq!(&receive(&*again, 1).await[0].bytes[..], b"welcome back");
        ours.write_all(b"still open").await.unwrap();
        let (_ours, _theirs) = stream_pair(&*a, &*again).await;
        b.close();
        drop(b);
        stream_pair(&*a, &*again).await;
    }

    pub(super) async fn a_dropped_receive_loses_no_packet(network: &dyn Network) {
        let (a, b) = (network.open_any(), network.open_any());
        let mut packets = Vec::new();
        tokio::select! {
            biased;
            _ = b.recv_packets(&mut packets, 8) => panic!("nothing was sent"),
            () = tokio::task::yield_now() => {}
        }
        a.try_send_packet(b.local_addr(), b"late").unwrap();
        assert_eq!(&receive(&*b, 1).await[0].bytes[..], b"late");
    }
}

/// Makes a test of each function of the suite, for each network.
macro_rules! run_suite {
    ($($test:ident)*) => {
        mod over_ipv4 { $(
            #[tokio::test]
            async fn $test() {
                super::suite::$test(&super::Sockets(super::Ipv4Addr::LOCALHOST.into())).await;
            }
        )* }
        mod over_ipv6 { $(
            #[tokio::test]
            async fn $test() {
                if super::has_ipv6() {
                    super::suite::$test(&super::Sockets(super::Ipv6Addr::LOCALHOST.into())).await;
                }
            }
        )* }
        mod in_memory { $(
            #[tokio::test]
            async fn $test() {
                super::suite::$test(&super::MemoryNetwork::new()).await;
            }
        )* }
    };
}

run_suite! {
    packets_go_both_ways_and_say_where_they_come_from
    packets_that_are_ready_come_in_batches_up_to_the_maximum
    the_largest_datagram_arrives_whole_and_a_larger_one_is_refused
    streams_go_both_ways_and_end
    a_silent_peer_ends_the_read_at_the_first_byte_deadline
    a_peer_that_takes_nothing_ends_the_write_at_the_deadline
    a_port_where_nobody_listens_refuses_streams
    a_connect_whose_deadline_has_passed_times_out
    streams_over_the_total_limit_are_hung_up_on
    streams_over_the_limit_for_one_address_are_hung_up_on
    packets_over_their_sources_rate_are_dropped_and_members_may_send_more
    close_ends_every_call_that_waits_and_every_later_one
    the_same_port_can_be_opened_again_after_close
    a_dropped_receive_loses_no_packet
}

/// Packets that travel in connections of their own may overtake each other, so there is no test of their order.
macro_rules! run_suite_over_connections {
    ($($test:ident)*) => {
        mod over_tcp_alone { $(
            #[tokio::test]
            async fn $test() {
                super::suite::$test(&super::Connections(super::Ipv4Addr::LOCALHOST.into())).await;
            }
        )* }
    };
}

run_suite_over_connections! {
    packets_go_both_ways_and_say_where_they_come_from
    the_largest_datagram_arrives_whole_and_a_larger_one_is_refused
    streams_go_both_ways_and_end
    a_silent_peer_ends_the_read_at_the_first_byte_deadline
    a_peer_that_takes_nothing_ends_the_write_at_the_deadline
    a_port_where_nobody_listens_refuses_streams
    a_connect_whose_deadline_has_passed_times_out
    streams_over_the_total_limit_are_hung_up_on
    streams_over_the_limit_for_one_address_are_hung_up_on
    close_ends_every_call_that_waits_and_every_later_one
    the_same_port_can_be_opened_again_after_close
    a_dropped_receive_loses_no_packet
}

/// Whether the IPv6 loopback can be bound. Says why a test is skipped if not.
fn has_ipv6() -> bool {
    let bound = std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0));
    if let Err(error) = &bound {
        println!("skipped: this host has no IPv6 loopback ({error})");
    }
    bound.is_ok()
}

mod sockets {
    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_protocol() {
        let tcp = std::net::TcpListener::bind((LOCAL, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        let error = NetTransport::bind(&[LOCAL], port, Limits::default()).unwrap_err();
        assert_eq!((error.addr, error.port, error.kind), (LOCAL, port, BindErrorKind::PortInUse));
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on 127.0.0.1:{port}: TCP port {port} is in use; \
                 stop the process that has it, or choose another port"
            )
        );
        let udp = std::net::UdpSocket::bind((LOCAL, 0)).unwrap();
        let port = udp.local_addr().unwrap().port();
        let error = NetTransport::bind(&[LOCAL], port, Limits::default()).unwrap_err();
        assert!(error.hint.starts_with("UDP port"), "{error}");
        // Nothing stays bound: the TCP half of that port is free.
        std::net::TcpListener::bind((LOCAL, port)).unwrap();
    }

    #[test]
    fn a_missing_permission_is_a_typed_error_that_says_what_to_do() {
        let denied = std::io::Error::from(ErrorKind::PermissionDenied);
        let error = BindError::from_io(Ipv6Addr::LOCALHOST.into(), 79, Protocol::Udp, denied);
        assert_eq!(error.kind, BindErrorKind::PermissionDenied);
        assert!(
            error.to_string().starts_with("cannot listen on [::1]:79: no permission to bind UDP port 79"),
            "{error}"
        );
        assert!(error.hint.contains("CAP_NET_BIND_SERVICE"));
        assert_eq!(error.source.kind(), ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_a_typed_error() {
        // 192.0.2.0/24 is reserved for documentation: no host has it.
        let error = NetTransport::bind(&["192.0.2.1".parse().unwrap()], 0, Limits::default()).unwrap_err();
        assert_eq!(error.kind, BindErrorKind::AddressNotAvailable);
        assert!(error.to_string().contains("192.0.2.1 is not an address of this host"), "{error}");
    }

    #[tokio::test]
    async fn an_empty_list_of_addresses_is_a_typed_error() {
        assert_eq!(NetTransport::bind(&[], 0, Limits::default()).unwrap_err().kind, BindErrorKind::InvalidUse);
    }

    #[tokio::test]
    async fn several_addresses_share_one_port_and_each_family_sends_from_its_own() {
        if !has_ipv6() {
            return;
        }
        let ips = [LOCAL, Ipv6Addr::LOCALHOST.into(), LOCAL];
        let both = Arc::new(NetTransport::bind(&ips, 0, Limits::default()).unwrap());
        let port = both.local_addr().port();
        let addrs: Vec<SocketAddr> = ips[..2].iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        assert_eq!(both.local_addrs(), addrs);
        for (ip, at) in ips.iter().zip(&addrs) {
            let other = NetTransport::bind(&[*ip], 0, Limits::default()).unwrap();
            other.try_send_packet(*at, b"in").unwrap();
            assert_eq!(receive(&*both, 1).await[0].from, other.local_addr());
            both.try_send_packet(other.local_addr(), b"out").unwrap();
            assert_eq!(receive(&other, 1).await[0].from, *at);
            let _ours = other.connect(*at, in_time()).await.unwrap();
            assert_eq!(soon(both.accept()).await.unwrap().1.ip(), *ip);
        }
    }

    #[tokio::test]
    async fn a_family_that_is_not_bound_cannot_be_sent_to_and_a_mapped_address_is_ipv4() {
        let transport = NetTransport::bind(&[LOCAL], 0, Limits::default()).unwrap();
        let error = transport.try_send_packet("[::1]:9".parse().unwrap(), b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        assert_eq!(transport.counters().snapshot().packet_errors, 1);
        let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), transport.local_addr().port());
        transport.try_send_packet(mapped, b"y").unwrap();
        assert_eq!(receive(&transport, 1).await[0].from, transport.local_addr());
        let _ours = transport.connect(mapped, in_time()).await.unwrap();
        soon(transport.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn the_receive_buffer_can_be_asked_for_and_seen() {
        let small = Limits { receive_buffer: 64 * 1024, ..Limits::default() };
        let small = NetTransport::bind(&[LOCAL], 0, small).unwrap();
        let large = NetTransport::bind(&[LOCAL], 0, Limits::default()).unwrap();
        assert!(small.receive_buffer() >= 64 * 1024);
        assert!(large.receive_buffer() > small.receive_buffer());
        large.close();
        assert_eq!(large.receive_buffer(), 0);
    }

    #[test]
    fn back_pressure_on_sending_counts_as_dropped_and_not_as_an_error() {
        let counters = Counters::default();
        let full = counters.sent(10, Err(ErrorKind::WouldBlock.into()));
        assert_eq!(full.unwrap_err().kind(), ErrorKind::WouldBlock);
        let values = counters.snapshot();
        assert_eq!((values.packets_dropped, values.packet_errors, values.packets_out), (1, 0, 0));
    }
}

mod memory {
    use super::*;

    fn pair() -> (MemoryNetwork, MemoryTransport, MemoryTransport) {
        let network = MemoryNetwork::new();
        let a = network.endpoint("10.0.0.1:7946".parse().unwrap());
        let b = network.endpoint("10.0.0.2:7946".parse().unwrap());
        (network, a, b)
    }

    /// How many packets wait at `to`, after one has been sent to mark the end.
    async fn waiting(from: &MemoryTransport, to: &MemoryTransport) -> usize {
        from.try_send_packet(to.local_addr(), b"end").unwrap();
        let mut packets = Vec::new();
        soon(to.recv_packets(&mut packets, usize::MAX)).await.unwrap();
        assert_eq!(&packets.pop().unwrap().bytes[..], b"end");
        packets.len()
    }

    #[tokio::test]
    async fn a_partition_swallows_packets_both_ways_until_it_heals() {
        let (network, a, b) = pair();
        let c = network.endpoint("10.0.0.3:7946".parse().unwrap());
        network.partition(&[a.local_addr()], &[b.local_addr()]);
        a.try_send_packet(b.local_addr(), b"lost").unwrap();
        b.try_send_packet(a.local_addr(), b"lost").unwrap();
        c.try_send_packet(b.local_addr(), b"not lost").unwrap();
        network.heal();
        assert_eq!(waiting(&a, &b).await, 1);
        assert_eq!(waiting(&b, &a).await, 0);
    }

    #[tokio::test]
    async fn an_address_that_is_down_neither_sends_nor_receives_and_healing_does_not_raise_it() {
        let (network, a, b) = pair();
        network.set_down(b.local_addr(), true);
        network.heal();
        a.try_send_packet(b.local_addr(), b"lost").unwrap();
        b.try_send_packet(a.local_addr(), b"lost").unwrap();
        network.set_down(b.local_addr(), false);
        assert_eq!((waiting(&a, &b).await, waiting(&b, &a).await), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connect_across_a_partition_hangs_until_its_deadline() {
        let (network, a, b) = pair();
        network.partition(&[a.local_addr()], &[b.local_addr()]);
        let start = Instant::now();
        let error = a.connect(b.local_addr(), start + Duration::from_secs(10)).await.err().unwrap();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (ErrorKind::TimedOut, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connect_succeeds_when_the_network_heals_before_its_deadline() {
        let (network, a, b) = pair();
        network.partition(&[a.local_addr()], &[b.local_addr()]);
        let connect = a.connect(b.local_addr(), in_time());
        let heal = async {
            tokio::task::yield_now().await;
            network.heal();
        };
        assert!(tokio::join!(connect, heal).0.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_stream_stalls_in_a_partition_and_goes_on_when_it_heals() {
        let (network, a, b) = pair();
        let (mut ours, mut theirs) = stream_pair(&a, &b).await;
        network.partition(&[a.local_addr()], &[b.local_addr()]);
        let stalled = write_all_deadline(&mut ours, b"x", Instant::now() + Duration::from_secs(1)).await;
        assert_eq!(stalled.unwrap_err().kind(), ErrorKind::TimedOut);
        let read = tokio::spawn(async move { theirs.read_u8().await });
        tokio::task::yield_now().await;
        network.heal();
        ours.write_u8(42).await.unwrap();
        assert_eq!(soon(read).await.unwrap().unwrap(), 42);
    }

    #[tokio::test]
    async fn loss_takes_its_part_of_the_packets_and_repeats_with_its_seed() {
        let mut counts = Vec::new();
        for seed in [1, 1, 2] {
            let (network, a, b) = pair();
            network.set_loss(0.3, seed);
            for _ in 0..1000 {
                a.try_send_packet(b.local_addr(), b"x").unwrap();
            }
            network.set_loss(0.0, seed);
            counts.push(waiting(&a, &b).await);
        }
        assert_eq!(counts[0], counts[1]);
        assert!(counts.iter().all(|count| (620..780).contains(count)), "{counts:?}");
    }

    #[tokio::test]
    async fn a_receiver_that_falls_behind_loses_the_oldest_packets_and_counts_them() {
        let (_network, a, b) = pair();
        let too_many = PacketQueue::DEFAULT_CAPACITY + 3;
        for number in 0..too_many {
            a.try_send_packet(b.local_addr(), &number.to_be_bytes()).unwrap();
        }
        let mut packets = Vec::new();
        soon(b.recv_packets(&mut packets, usize::MAX)).await.unwrap();
        assert_eq!(packets.len(), PacketQueue::DEFAULT_CAPACITY);
        assert_eq!(packets[0].bytes[..], 3_usize.to_be_bytes());
        assert_eq!(b.counters().snapshot().packets_dropped, 3);
    }

    #[tokio::test]
    async fn a_port_that_was_asked_for_is_not_handed_out_again() {
        let network = MemoryNetwork::new();
        let asked = network.endpoint("10.0.0.1:49152".parse().unwrap());
        let any = network.endpoint("10.0.0.1:0".parse().unwrap());
        assert_ne!(any.local_addr(), asked.local_addr());
        assert_ne!(any.local_addr().port(), 0);
    }

    #[tokio::test]
    async fn an_endpoint_that_comes_back_replaces_the_former_which_cannot_take_it_away() {
        let (network, a, b) = pair();
        let mut waiting = a.connect(b.local_addr(), in_time()).await.unwrap();
        let again = network.endpoint(b.local_addr());
        assert_eq!(b.accept().await.err().unwrap().kind(), ErrorKind::NotConnected);
        assert!(is_hung_up(&mut waiting).await, "who waited to be accepted is told");
        drop(b);
        stream_pair(&a, &again).await;
    }
}

mod reading {
    use super::*;

    fn limits(max_bytes: usize) -> ReadLimits {
        ReadLimits::new(Instant::now() + Duration::from_secs(10), max_bytes)
    }

    fn at_least(count: usize) -> impl FnMut(&[u8]) -> Result<bool, String> {
        move |bytes| Ok(bytes.len() >= count)
    }

    #[tokio::test]
    async fn a_message_in_pieces_is_read_until_the_caller_has_enough() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let message = vec![9; 100_000];
        let budget = ByteBudget::default();
        let (limits, step) = (limits(200_000), at_least(message.len()));
        let (read, written) = tokio::join!(read_until(&mut theirs, &limits, &budget, step), ours.write_all(&message));
        written.unwrap();
        let received = read.unwrap();
        assert_eq!(*received, message[..]);
        let taken = ByteBudget::DEFAULT - budget.free();
        assert!((100_000..=200_000).contains(&taken), "{taken} bytes are accounted for");
        drop(received);
        assert_eq!(budget.free(), ByteBudget::DEFAULT);
    }

    #[tokio::test]
    async fn the_last_byte_that_is_allowed_is_read_and_the_next_is_not() {
        for (max, fits) in [(10, true), (9, false)] {
            let mut bytes = &[1_u8; 10][..];
            let read = read_until(&mut bytes, &limits(max), &ByteBudget::default(), at_least(10)).await;
            match read {
                Ok(received) => assert!(fits && received.len() == 10),
                Err(error) => assert!(!fits && matches!(error, ReadError::TooLarge { max: 9 }), "{error}"),
            }
            assert_eq!(bytes.len(), 10 - max, "not one byte more was taken");
        }
    }

    #[tokio::test]
    async fn memory_follows_what_arrived_and_not_what_could_come() {
        let budget = ByteBudget::new(1 << 20);
        let mut least = budget.free();
        let mut bytes = &[1_u8; 10][..];
        let read = read_until(&mut bytes, &limits(usize::MAX), &budget, |_| {
            least = least.min(budget.free());
            Ok::<_, ()>(false)
        })
        .await;
        assert!(matches!(read, Err(ReadError::Closed { received: 10 })));
        assert_eq!(((1 << 20) - least, budget.free()), (4096, 1 << 20));
    }

    #[tokio::test]
    async fn a_node_that_holds_too_many_bytes_takes_no_more() {
        let budget = ByteBudget::new(10_000);
        let mut endless = tokio::io::repeat(1);
        let read = read_until(&mut endless, &limits(1 << 30), &budget, at_least(1 << 20)).await;
        assert!(matches!(read, Err(ReadError::Overloaded)));
        assert_eq!(budget.free(), 10_000);
    }

    #[tokio::test]
    async fn a_decoder_is_fed_every_byte_once_and_they_stay_accounted_for() {
        let message: Vec<u8> = (0..100_000_u32).map(|index| (index % 251) as u8).collect();
        let (mut bytes, budget) = (&message[..], ByteBudget::new(1 << 20));
        let mut permit = budget.permit();
        let mut fed = Vec::new();
        let read = feed_until(&mut bytes, &limits(100_000), &mut permit, |piece| {
            fed.extend_from_slice(piece);
            Ok::<_, ()>(fed.len() == 100_000)
        })
        .await;
        assert_eq!(read.unwrap(), 100_000);
        assert!(fed == message);
        assert_eq!((1 << 20) - budget.free(), 100_000);
        drop(permit);
        assert_eq!(budget.free(), 1 << 20);
    }

    #[tokio::test]
    async fn a_decoder_is_never_fed_more_than_the_limit_or_the_budget() {
        let mut endless = tokio::io::repeat(1);
        for (max, free) in [(50_000, 1 << 20), (1 << 20, 50_000)] {
            let budget = ByteBudget::new(free);
            let mut fed = 0;
            let read = feed_until(&mut endless, &limits(max), &mut budget.permit(), |piece| {
                fed += piece.len();
                Ok::<_, ()>(false)
            })
            .await;
            match read {
                Err(ReadError::TooLarge { max: 50_000 }) => assert_eq!((max, fed), (50_000, 50_000)),
                Err(ReadError::Overloaded) => assert!(free == 50_000 && fed <= 50_000),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_decoder_waits_no_longer_for_a_silent_peer() {
        let (_ours, mut theirs) = tokio::io::duplex(64);
        let start = Instant::now();
        let mut permit = ByteBudget::default().permit();
        let read = feed_until(&mut theirs, &limits(100), &mut permit, |_| Ok::<_, ()>(true)).await;
        assert!(matches!(read, Err(ReadError::Silent)), "{read:?}");
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test]
    async fn the_callers_refusal_ends_the_read() {
        let mut bytes = &b"rubbish"[..];
        let read = read_until(&mut bytes, &limits(100), &ByteBudget::default(), |_| Err("no such message")).await;
        assert_eq!(read.unwrap_err().to_string(), "no such message");
    }

    #[tokio::test]
    async fn a_peer_that_closes_without_a_word_is_told_from_one_that_closes_early() {
        for bytes in [&b""[..], b"half"] {
            let mut stream = bytes;
            let read = read_until(&mut stream, &limits(100), &ByteBudget::default(), at_least(10)).await;
            assert!(matches!(read, Err(ReadError::Closed { received }) if received == bytes.len()));
        }
    }

    /// Reads a megabyte from a peer that sends `piece` bytes every 100 ms of virtual time.
    async fn read_from_a_peer_sending(
        piece: usize,
        limits: ReadLimits,
    ) -> (Result<io::Received, ReadError<String>>, u64) {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        let start = Instant::now();
        let sender = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            let bytes = vec![0; piece];
            loop {
                tick.tick().await;
                if ours.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        let read = read_until(&mut theirs, &limits, &ByteBudget::default(), at_least(1 << 20)).await;
        sender.abort();
        (read, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_drips_single_bytes_is_cut_off_long_before_the_deadline() {
        let (read, seconds) = read_from_a_peer_sending(1, limits(2 << 20)).await;
        assert!(matches!(read, Err(ReadError::TooSlow { received: 20 | 21 })), "{read:?}");
        assert_eq!(seconds, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_above_the_lowest_rate_may_take_until_the_deadline_and_no_longer() {
        let (read, seconds) = read_from_a_peer_sending(8 * 1024, limits(2 << 20)).await;
        assert!(matches!(read, Err(ReadError::Deadline { received }) if received > 800_000), "{read:?}");
        assert_eq!(seconds, 10);
        let later = ReadLimits { deadline: Instant::now() + Duration::from_secs(60), ..limits(2 << 20) };
        let (read, seconds) = read_from_a_peer_sending(8 * 1024, later).await;
        assert!(read.unwrap().len() >= 1 << 20);
        assert_eq!(seconds, 12);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lowest_rate_only_the_deadline_ends_a_slow_peer() {
        let (read, seconds) = read_from_a_peer_sending(1, ReadLimits { min_rate: 0, ..limits(2 << 20) }).await;
        assert!(matches!(read, Err(ReadError::Deadline { .. })), "{read:?}");
        assert_eq!(seconds, 10);
    }
}
