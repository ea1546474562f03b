#![allow(clippy::unwrap_used)]

use super::*;
use crate::transport::MemoryNetwork;
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
