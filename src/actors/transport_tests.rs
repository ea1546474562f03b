#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::mpsc;

use super::*;
use crate::actors::guard::{self, ChildEvent, ChildStatus, Death, RestartPolicy};
use crate::transport::{BoxFuture, Counters, InboundPacket, MemoryNetwork, MemoryTransport, Stream};
use crate::wire::message::Ping;
use crate::wire::{Key, Keyring, PacketOptions, encode_request};

const US: &str = "10.0.0.1:7946";

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn parts(transport: Arc<dyn Transport>, options: &PacketOptions) -> Arc<TransportParts> {
    Arc::new(TransportParts {
        transport,
        queue: Arc::default(),
        wrapping: Wrapping::new(options.clone()),
        stream_timeout: Duration::from_secs(60),
        membership: OnceLock::new(),
        budget: ByteBudget::default(),
        streams: Arc::default(),
    })
}

fn options(label: &str, key: Option<u8>) -> PacketOptions {
    let keys = key.map(|fill| Key::new(&[fill; 16]).unwrap());
    PacketOptions { label: label.parse().unwrap(), keyring: Keyring::new(keys).unwrap(), ..PacketOptions::default() }
}

#[test]
fn a_peer_of_our_own_cluster_is_told_why_its_request_cannot_be_read_and_a_stranger_is_not() {
    run(async {
        let ping = StreamMessage::Ping(Ping { seq_no: 1, node: "n".into(), source: None });
        let request = |options: &PacketOptions| encode_request(&ping, options, &mut rand::make_rng::<StdRng>());
        let (plain, keyed) = (options("prod", None), options("prod", Some(1)));
        let damaged = [&request(&plain)[..6], &[99]].concat().into();
        let rows: [(&PacketOptions, Bytes, Result<&str, ()>); 5] = [
            (&keyed, request(&plain), Ok("not encrypted, though there is a key here")),
            (&keyed, request(&options("prod", Some(2))), Ok("no key here decrypts it")),
            (&plain, damaged, Ok("unknown message type 99")),
            (&plain, request(&options("other", None)), Err(())),
            (&plain, request(&options("", None)), Err(())),
        ];
        for (own, request, expected) in rows {
            let network = MemoryNetwork::new();
            let parts = parts(Arc::new(network.endpoint(US.parse().unwrap())), own);
            let _actor = TransportActor::new(parts.clone()).start();
            let peer = network.endpoint("10.0.0.2:7946".parse().unwrap());
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            let mut stream = peer.connect(US.parse().unwrap(), deadline).await.unwrap();
            streams::write(&mut stream, &request).await.unwrap();
            let limits = ReadLimits::new(deadline, MAX_STREAM);
            // With the key that the node has: what it says is encrypted, too.
            let (budget, side) = (ByteBudget::default(), StreamSide::Dialed);
            let answer = streams::read(&mut stream, own, side, &limits, &mut budget.permit()).await;
            match (answer, expected) {
                (Ok((_, StreamMessage::Error(text))), Ok(expected)) => assert_eq!(text, expected),
                (Err(_), Err(())) => {}
                (answer, expected) => panic!("{answer:?} is not {expected:?}"),
            }
            assert_eq!(parts.streams.refused().values().sum::<u64>(), 1);
        }
    });
}

/// A transport whose loops fail before they work: each first panics, then gets an error.
struct Flaky {
    inner: MemoryTransport,
    receives: AtomicU32,
    accepts: AtomicU32,
}

fn fail(calls: &AtomicU32) -> io::Result<()> {
    match calls.fetch_add(1, Ordering::Relaxed) {
        0 => panic!("a bug"),
        1 => Err(io::Error::other("it will pass")),
        _ => Ok(()),
    }
}

impl Transport for Flaky {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn try_send_packet(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.inner.try_send_packet(to, bytes)
    }

    fn recv_packets<'a>(&'a self, into: &'a mut Vec<InboundPacket>, max: usize) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            fail(&self.receives)?;
            self.inner.recv_packets(into, max).await
        })
    }

    fn connect(&self, to: SocketAddr, deadline: tokio::time::Instant) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        self.inner.connect(to, deadline)
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            // After the other loop's failures, so that each is seen.
            if self.receives.load(Ordering::Relaxed) < 3 {
                std::future::pending::<()>().await;
            }
            fail(&self.accepts)?;
            self.inner.accept().await
        })
    }

    fn close(&self) {
        self.inner.close();
    }

    fn counters(&self) -> &Counters {
        self.inner.counters()
    }
}

#[test]
fn a_loop_that_fails_is_the_death_of_the_actor_and_its_successor_receives_and_accepts() {
    run(async {
        let network = MemoryNetwork::new();
        let inner = network.endpoint(US.parse().unwrap());
        let flaky = Flaky { inner, receives: AtomicU32::new(0), accepts: AtomicU32::new(0) };
        let parts = parts(Arc::new(flaky), &PacketOptions::default());
        let (events, mut seen) = mpsc::unbounded_channel();
        let policy = RestartPolicy { backoff_min: Duration::from_millis(1), ..RestartPolicy::default() };
        let actor = TransportActor::new(parts.clone());
        let (_address, _guarded) = guard::spawn(ChildStatus::new("transport"), policy, events, actor);
        let mut next_death = async || match seen.recv().await {
            Some(ChildEvent::Restarted { death, .. }) => death,
            _ => panic!("it only restarts"),
        };
        assert_eq!(next_death().await, Death::Panic("a bug".into()));
        assert_eq!(next_death().await, Death::Stop, "an error other than that it was closed");

        let peer = network.endpoint("10.0.0.2:7946".parse().unwrap());
        let accepts = [next_death().await, next_death().await];
        assert_eq!(accepts, [Death::Panic("a bug".into()), Death::Stop]);
        peer.try_send_packet(US.parse().unwrap(), b"hello").unwrap();
        assert_eq!(&parts.queue.pop_batch(1).await[0].bytes[..], b"hello");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut stream = peer.connect(US.parse().unwrap(), deadline).await.unwrap();
        streams::write(&mut stream, &Bytes::from_static(&[99])).await.unwrap();
        let limits = ReadLimits::new(deadline, MAX_STREAM);
        let (budget, side) = (ByteBudget::default(), StreamSide::Dialed);
        let options = PacketOptions::default();
        let answer = streams::read(&mut stream, &options, side, &limits, &mut budget.permit()).await;
        assert!(matches!(answer, Ok((_, StreamMessage::Error(_)))), "{answer:?}");
    });
}
