//! From the names in `join_members` to addresses.
//!
//! `host:port`, `dns+host:port`, `[v6]:port`, or without a port (then the default port of the protocol). An empty
//! answer is a failure, not an empty success: a cluster does not form by itself because DNS was slow.

use std::net::SocketAddr;

/// memberlist's default port.
const DEFAULT_PORT: u16 = 7946;

/// Resolves all names. What could be resolved is returned together with what could not.
pub(crate) async fn resolve(names: &[String]) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        match resolve_one(name).await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => errors.push(error),
        }
    }
    found.sort();
    found.dedup();
    (found, errors)
}

async fn resolve_one(name: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = name.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(ip) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_PORT)]);
    }
    if name.starts_with("dnssrv+") || name.starts_with("dnssrvnoa+") {
        return Err(format!("{name}: SRV look-ups are not available in this version; use dns+host:port"));
    }
    let host = name.strip_prefix("dns+").unwrap_or(name);
    let target = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:{DEFAULT_PORT}"),
    };
    let addresses: Vec<_> =
        tokio::net::lookup_host(&target).await.map_err(|error| format!("{name}: {error}"))?.collect();
    if addresses.is_empty() { Err(format!("{name}: resolved to no address")) } else { Ok(addresses) }
}
