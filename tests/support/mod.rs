//! What several integration tests share: real servers, a proxy that breaks connections, and the store suite.

// Every test compiles this module and uses its own part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod consul;
pub mod etcd;
pub mod go;
pub mod notes;
pub mod proxy;
pub mod relay;
pub mod store_suite;

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

/// Asks again and again until the condition holds (`true`) or the time is over (`false`).
#[must_use = "a condition that does not come true must fail the test"]
pub async fn wait_until(deadline: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition().await {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Says that a test does not run here, and why. Where everything is required, that is a failure.
///
/// # Panics
/// When `ANNULUS_TEST_REQUIRE` is `all`.
pub fn skip_or_fail(reason: &str) {
    assert!(std::env::var("ANNULUS_TEST_REQUIRE").as_deref() != Ok("all"), "required, but missing: {reason}");
    println!("SKIPPED: {reason}");
}

/// Free ports of 127.0.0.1, for TCP and UDP, that nobody else gets before [`PortLease::release`].
///
/// Programs that do not tell which port the system gave them must be told one. The lease closes all of the window but
/// the moment between release and their own bind; whoever starts a program must still be ready to try other ports.
pub struct PortLease {
    held: Vec<(TcpListener, UdpSocket)>,
}

impl PortLease {
    /// Holds `count` different ports.
    ///
    /// # Panics
    /// When the system has no ports left.
    pub fn new(count: usize) -> Self {
        let mut held = Vec::with_capacity(count);
        for _ in 0..count * 50 {
            if held.len() == count {
                break;
            }
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
                held.push((tcp, udp));
            }
        }
        assert_eq!(held.len(), count, "no free ports");
        Self { held }
    }

    /// The ports; still held.
    pub fn ports(&self) -> Vec<u16> {
        self.held.iter().map(|(tcp, _)| tcp.local_addr().unwrap().port()).collect()
    }

    /// Lets go of the ports, right before a program binds them.
    pub fn release(self) -> Vec<u16> {
        self.ports()
    }
}
