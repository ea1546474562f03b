//! Why a transport could not be bound, in words that an operator can act on.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Binding an address failed. Nothing stays bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {hint}", SocketAddr::new(*addr, *port))]
#[non_exhaustive]
pub struct BindError {
    /// The address that failed.
    pub addr: IpAddr,
    /// The port that failed; 0 when any port would have done.
    pub port: u16,
    /// What went wrong, for programs.
    pub kind: BindErrorKind,
    /// What went wrong and what to do about it, for people.
    pub hint: String,
    /// The error of the system.
    pub source: io::Error,
}

/// The reasons for a [`BindError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BindErrorKind {
    /// Another socket has the port. Stop its owner or choose another port.
    PortInUse,
    /// The process may not bind this port.
    PermissionDenied,
    /// The address belongs to no interface of this host.
    AddressNotAvailable,
    /// The list of addresses is empty, or no tokio runtime is there to drive the sockets. An error in the program.
    InvalidUse,
    /// Anything else; the hint carries the words of the system.
    Other,
}

/// Which of the two sockets of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The packet socket.
    Udp,
    /// The stream listener.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

impl BindError {
    /// Explains what the system said about binding `protocol` at this address and port.
    #[must_use]
    pub fn from_io(addr: IpAddr, port: u16, protocol: Protocol, source: io::Error) -> Self {
        let (kind, hint) = match source.kind() {
            io::ErrorKind::AddrInUse => (
                BindErrorKind::PortInUse,
                format!("{protocol} port {port} is in use; stop the process that has it, or choose another port"),
            ),
            io::ErrorKind::PermissionDenied => (
                BindErrorKind::PermissionDenied,
                format!(
                    "no permission to bind {protocol} port {port}; ports below 1024 need a privilege \
                     (CAP_NET_BIND_SERVICE on Linux), higher ones do not"
                ),
            ),
            io::ErrorKind::AddrNotAvailable => (
                BindErrorKind::AddressNotAvailable,
                format!(
                    "{addr} is not an address of this host; bind an address of one of its interfaces, or {} for all",
                    if addr.is_ipv4() { "0.0.0.0" } else { "::" }
                ),
            ),
            _ => (BindErrorKind::Other, format!("{protocol}: {source}")),
        };
        Self { addr, port, kind, hint, source }
    }

    /// An error in how the program called, found before any system call.
    pub(super) fn invalid_use(addr: IpAddr, port: u16, hint: &str) -> Self {
        let source = io::Error::new(io::ErrorKind::InvalidInput, hint);
        Self { addr, port, kind: BindErrorKind::InvalidUse, hint: hint.to_owned(), source }
    }
}
