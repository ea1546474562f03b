//! Addresses of the loopback network, one for each peer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// The port that whoever uses an address listens on, so that nobody else takes the address. Below those that the system
/// hands out by itself.
const LEASE_PORT: u16 = 19_999;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address in 127.64.0.0/10 that no other test has, in this process or another, for as long as this lives.
#[derive(Debug)]
pub struct Loopback {
    ip: Ipv4Addr,
    _lease: TcpListener,
}

impl Loopback {
    /// Takes an address.
    ///
    /// # Panics
    /// When the system does not let programs use all of 127.0.0.0/8.
    pub fn lease() -> Self {
        // Processes begin at different places, and go on when they meet.
        let begin = std::process::id().wrapping_mul(0x9E37_79B1) >> 10;
        for _ in 0..1_000 {
            let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) & 0x003F_FFFF;
            let [_, second, third, fourth] = number.to_be_bytes();
            if matches!(fourth, 0 | 255) {
                continue;
            }
            let ip = Ipv4Addr::new(127, 64 | second, third, fourth);
            if let Ok(lease) = TcpListener::bind((ip, LEASE_PORT)) {
                return Self { ip, _lease: lease };
            }
        }
        panic!("no address of 127.64.0.0/10 can be had");
    }

    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.ip.into()
    }

    /// The address with a port.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip.into(), port)
    }
}
