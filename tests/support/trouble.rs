//! Everything that can go wrong on the way to a server, by one name for Consul behind the proxy and etcd behind the relay.

#![allow(dead_code, unreachable_pub, reason = "every test uses its own part of this")]

use std::time::Duration;

use annulus::config::Config;

use crate::support::proxy::{Fault, FaultProxy};
use crate::support::relay::{Line, Relay};

/// What goes wrong between the nodes and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Answers come late, but in time.
    Delay,
    /// Connections break before an answer.
    Lost,
    /// Connections are reset in the middle of an answer: what was asked for is done.
    Torn,
    /// Later answers overtake earlier ones.
    Overtaken,
    /// Half-open: nothing reaches the server, and nobody says so.
    Unheard,
    /// Half-open: everything reaches the server, and nothing comes back.
    Unanswered,
    /// The server is gone.
    Down,
}

impl Trouble {
    /// Each of them.
    pub const ALL: [Self; 7] =
        [Self::Delay, Self::Lost, Self::Torn, Self::Overtaken, Self::Unheard, Self::Unanswered, Self::Down];

    /// Whether a store that this happens to can become primary.
    pub fn becoming_primary(self) -> Becoming {
        match self {
            Self::Delay | Self::Overtaken => Becoming::Primary,
            Self::Lost | Self::Unheard | Self::Unanswered | Self::Down => Becoming::Never,
            // What was asked for is done, but the ring changes faster than that is found out.
            Self::Torn => Becoming::Perhaps,
        }
    }
}

/// Whether a store in trouble can become primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becoming {
    Primary,
    Never,
    Perhaps,
}

/// The way to a server.
pub enum Way {
    Http(FaultProxy),
    Bytes(Relay),
}

impl Way {
    /// Lets something go wrong from now on.
    pub fn set(&self, trouble: Trouble) {
        match self {
            Self::Http(proxy) => proxy.set(match trouble {
                Trouble::Delay => Fault::Late { method: "PUT", by: Duration::from_millis(500) },
                Trouble::Lost => Fault::Cut,
                Trouble::Torn => Fault::Torn { method: "PUT" },
                Trouble::Overtaken => Fault::Overtaken { method: "PUT", at_most: Duration::from_millis(500) },
                Trouble::Unheard => Fault::Unheard,
                Trouble::Unanswered => Fault::Unanswered,
                Trouble::Down => Fault::Refuse,
            }),
            Self::Bytes(relay) => relay.set(match trouble {
                // Not more: of those that compare and swap one key, the one on the slowest line would not get a turn.
                Trouble::Delay => Line::Slow(Duration::from_millis(50)),
                Trouble::Torn => Line::Torn(5),
                Trouble::Overtaken => Line::Uneven(Duration::from_millis(50)),
                Trouble::Unheard => Line::Unheard,
                Trouble::Unanswered => Line::Unanswered,
                Trouble::Lost | Trouble::Down => Line::Closed,
            }),
        }
    }

    /// Puts it right again.
    pub fn heal(&self) {
        match self {
            Self::Http(proxy) => proxy.set(Fault::None),
            Self::Bytes(relay) => relay.set(Line::Open),
        }
    }

    /// How often something went wrong so far.
    pub fn injected(&self) -> u64 {
        match self {
            Self::Http(proxy) => proxy.injected(),
            Self::Bytes(relay) => relay.injected() as u64,
        }
    }

    /// Sends a node this way to its store.
    pub fn point(&self, config: &mut Config) {
        match self {
            Self::Http(proxy) => config.kv.consul.host = proxy.host(),
            Self::Bytes(relay) => config.kv.etcd.endpoints = vec![relay.host()],
        }
    }
}
