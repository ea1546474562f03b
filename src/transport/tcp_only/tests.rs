#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::transport::tests::TestFraming;

/// Fails a test that hangs; never reached otherwise, so no test depends on its length.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("this should have happened long ago")
}

fn bind(settings: TcpSettings) -> TcpTransport {
    TcpTransport::bind(&[Ipv4Addr::LOCALHOST.into()], 0, settings, Arc::new(TestFraming)).unwrap()
}

async fn receive(transport: &TcpTransport, count: usize) -> Vec<InboundPacket> {
    let mut packets = Vec::new();
    while packets.len() < count {
        soon(transport.recv_packets(&mut packets, count)).await.unwrap();
    }
    packets
}

/// Writes these bytes to a connection of their own, ends it, and waits until the other side has hung up, too.
async fn say(to: &TcpTransport, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to.local_addr()).await.unwrap();
    // The other side may hang up before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = soon(stream.read_to_end(&mut Vec::new())).await;
}

/// Lets the other tasks run until this holds.
async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn sent(packet: &[u8]) -> Vec<u8> {
    TestFraming.frame("10.1.2.3:7946".parse().unwrap(), packet)
}

#[tokio::test]
async fn a_packet_comes_from_where_its_sender_says_that_it_can_be_reached() {
    let (a, b) = (bind(TcpSettings::default()), bind(TcpSettings::default()));
    a.advertise("10.9.8.7:6543".parse().unwrap());
    a.try_send_packet(b.local_addr(), b"ping").unwrap();
    let got = receive(&b, 1).await;
    assert_eq!((got[0].from.to_string().as_str(), &got[0].bytes[..]), ("10.9.8.7:6543", &b"ping"[..]));
    soon(a.flush()).await;
    let tcp = (a.tcp_counters().unwrap(), b.tcp_counters().unwrap());
    let framed = TestFraming.frame(got[0].from, b"ping").len() as u64;
    assert_eq!((tcp.0.sent_bytes, tcp.1.received_bytes), (framed, framed));
}

#[tokio::test]
async fn every_packet_arrives_also_when_many_are_sent_at_once() {
    let (a, b) = (bind(TcpSettings::default()), bind(TcpSettings::default()));
    for number in 0..20_u8 {
        a.try_send_packet(b.local_addr(), &[number]).unwrap();
    }
    let mut numbers: Vec<u8> = receive(&b, 20).await.iter().map(|packet| packet.bytes[0]).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<u8>>());
    soon(a.flush()).await;
    assert_eq!(a.counters().snapshot().packets_out, 20);
}

#[tokio::test]
async fn a_damaged_packet_is_dropped_and_counted() {
    let transport = bind(TcpSettings::default());
    let mut damaged = sent(b"hello");
    let at = damaged.len() - 2;
    damaged[at] ^= 1;
    say(&transport, &damaged).await;
    say(&transport, b"p").await;
    say(&transport, &sent(b"whole")).await;
    assert_eq!(&receive(&transport, 1).await[0].bytes[..], b"whole");
    let tcp = transport.tcp_counters().unwrap();
    assert_eq!((tcp.packets_received_errors, tcp.packets_damaged, tcp.unknown_connections), (2, 1, 0));
    assert_eq!(transport.counters().snapshot().packets_in, 1);
}

#[tokio::test]
async fn a_connection_that_carries_neither_is_closed_and_a_probe_of_the_port_is_no_error() {
    let transport = bind(TcpSettings::default());
    say(&transport, b"GET / HTTP/1.1\r\n\r\n").await;
    say(&transport, b"").await;
    let tcp = transport.tcp_counters().unwrap();
    assert_eq!((tcp.unknown_connections, tcp.packets_received_errors), (1, 0));
}

#[tokio::test]
async fn a_packet_over_the_largest_size_is_neither_sent_nor_received() {
    let settings = TcpSettings { max_packet: 1000, ..TcpSettings::default() };
    let (a, b) = (bind(TcpSettings::default()), bind(settings));
    assert_eq!(b.try_send_packet(a.local_addr(), &[7; 1001]).unwrap_err().kind(), ErrorKind::InvalidInput);
    a.try_send_packet(b.local_addr(), &[7; 1001]).unwrap();
    a.try_send_packet(b.local_addr(), &[7; 100_000]).unwrap();
    soon(a.flush()).await;
    until(|| b.tcp_counters().unwrap().packets_received_errors == 2).await;
    a.try_send_packet(b.local_addr(), &[7; 1000]).unwrap();
    assert_eq!(receive(&b, 1).await[0].bytes.len(), 1000);
}

#[tokio::test]
async fn who_says_nothing_or_does_not_end_is_hung_up_on() {
    let transport = bind(TcpSettings::default());
    let mut silent = TcpStream::connect(transport.local_addr()).await.unwrap();
    let mut endless = TcpStream::connect(transport.local_addr()).await.unwrap();
    let bytes = sent(b"no end");
    endless.write_all(&bytes).await.unwrap();
    until(|| transport.tcp_counters().unwrap().received_bytes == bytes.len() as u64).await;
    // From here nothing but time can pass, so it passes at once.
    tokio::time::pause();
    for stream in [&mut silent, &mut endless] {
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    let tcp = transport.tcp_counters().unwrap();
    assert_eq!((tcp.unknown_connections, tcp.packets_received_errors), (1, 1));
}

#[tokio::test]
async fn peers_that_hang_do_not_keep_packets_from_the_others() {
    // A listener that never accepts, with a full backlog, is what a host that is gone looks like.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let hole = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(hole)).await {
        fillers.push(stream.unwrap());
    }
    let settings = TcpSettings { writers: 4, dial_timeout: PATIENCE, ..TcpSettings::default() };
    let (a, b) = (bind(settings), bind(TcpSettings::default()));
    for _ in 0..100 {
        a.try_send_packet(hole, b"into the void").unwrap();
    }
    for _ in 0..10 {
        a.try_send_packet(b.local_addr(), b"probe").unwrap();
    }
    receive(&b, 10).await;
    assert!(a.counters().snapshot().packets_dropped > 0, "what waits for the one that hangs is bounded");
}

#[tokio::test]
async fn packets_for_nobody_are_counted_as_failed() {
    let (a, gone) = (bind(TcpSettings::default()), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addr = gone.local_addr().unwrap();
    drop(gone);
    a.try_send_packet(addr, b"x").unwrap();
    soon(a.flush()).await;
    assert_eq!(a.tcp_counters().unwrap().packets_sent_errors, 1);
    assert_eq!(a.counters().snapshot().packets_out, 0);
}

#[tokio::test]
async fn close_hangs_up_on_whoever_was_not_accepted() {
    let (a, b) = (bind(TcpSettings::default()), bind(TcpSettings::default()));
    let mut stream = a.connect(b.local_addr(), Instant::now() + PATIENCE).await.unwrap();
    until(|| b.counters().snapshot().streams_in == 1).await;
    b.close();
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
}
