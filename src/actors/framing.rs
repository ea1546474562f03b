//! dskit's framing for the transport over TCP alone: the transport knows no protocol, and `wire` knows no sockets.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::transport::{Carries, Framing, FramingError, Unframed};
use crate::wire::WireError;
use crate::wire::grafana::{Connection, decode_packet, encode_packet, frame_len};

/// See [`grafana`](crate::wire::grafana).
#[derive(Debug)]
pub(crate) struct GrafanaFraming;

impl Framing for GrafanaFraming {
    fn carries(&self, first: u8) -> Carries {
        match Connection::by(first) {
            Ok(Connection::Packet) => Carries::Packet,
            Ok(Connection::Stream) => Carries::Stream,
            Err(_) => Carries::Unknown,
        }
    }

    fn stream_byte(&self) -> u8 {
        Connection::Stream.byte()
    }

    fn frame_len(&self, packet: usize) -> usize {
        frame_len(packet)
    }

    fn frame(&self, from: SocketAddr, packet: &[u8]) -> Vec<u8> {
        // Only a longer text than any address can be refused.
        encode_packet(&from.to_string(), packet).unwrap_or_default()
    }

    fn unframe(&self, connection: Bytes) -> Result<Unframed, FramingError> {
        let frame = decode_packet(connection).map_err(|error| match error {
            WireError::DigestMismatch => FramingError::Damaged,
            other => FramingError::Malformed(other.to_string()),
        })?;
        // Every member of Grafana's says an IP address and a port; to anything else no answer could be sent.
        let from =
            frame.from.parse().map_err(|_| FramingError::Malformed(format!("`{}` is no address", frame.from)))?;
        Ok(Unframed { from, packet: frame.packet })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_packet_of_dskit_is_read_and_written_byte_for_byte() {
        let bytes = hex::decode("010e3132372e302e302e313a3739343674657374098f6bcd4621d373cade4e832627b4f6").unwrap();
        let framing = GrafanaFraming;
        assert_eq!(framing.carries(bytes[0]), Carries::Packet);
        let Unframed { from, packet } = framing.unframe(bytes.clone().into()).unwrap();
        assert_eq!((from.to_string().as_str(), &packet[..]), ("127.0.0.1:7946", &b"test"[..]));
        assert_eq!(framing.frame(from, &packet), bytes);
        let v6 = framing.frame("[2001:db8::1]:7946".parse().unwrap(), b"x");
        assert_eq!(&v6[2..20], b"[2001:db8::1]:7946");
    }

    #[test]
    fn damage_is_told_from_what_was_never_right() {
        let from = "127.0.0.1:7946".parse().unwrap();
        let mut damaged = GrafanaFraming.frame(from, b"test");
        damaged[17] ^= 1;
        assert_eq!(GrafanaFraming.unframe(damaged.into()), Err(FramingError::Damaged));
        let named = encode_packet("a.host:7946", b"test").unwrap();
        assert!(matches!(GrafanaFraming.unframe(named.into()), Err(FramingError::Malformed(_))));
        assert!(matches!(GrafanaFraming.unframe(Bytes::from_static(b"\x02abc")), Err(FramingError::Malformed(_))));
        assert_eq!((GrafanaFraming.carries(2), GrafanaFraming.carries(0)), (Carries::Stream, Carries::Unknown));
        assert_eq!(GrafanaFraming.stream_byte(), 2);
    }
}
