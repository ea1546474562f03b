//! From the names in `join_members` to addresses.
//!
//! | name | what |
//! |---|---|
//! | `host:port`, `10.0.0.1:7946`, `[v6]:port` | as it is; without a port, the default port of the protocol |
//! | `dns+host:port` | all addresses of the host |
//! | `dnssrv+name` | SRV records, and the addresses of their targets from the same DNS server (feature `dns-srv`) |
//! | `dnssrvnoa+name` | SRV records, whose targets the system resolves like any host (feature `dns-srv`) |
//!
//! An empty answer is a failure, not an empty success: a cluster does not form by itself because DNS was slow. A name
//! that cannot be resolved keeps the addresses that it had last.

use std::collections::HashMap;
use std::net::SocketAddr;

#[cfg(feature = "dns-srv")]
use super::srv;

/// memberlist's default port.
const DEFAULT_PORT: u16 = 7946;

/// The seeds of a node: their names, and what those meant last.
#[derive(Debug)]
pub(crate) struct Seeds {
    names: Vec<String>,
    /// The DNS server to ask for SRV records, where it is not the system's.
    #[cfg_attr(not(feature = "dns-srv"), expect(dead_code, reason = "nobody is asked for SRV records"))]
    server: Option<SocketAddr>,
    last: HashMap<String, Vec<SocketAddr>>,
}

/// What a name means now: what could be resolved, and what could not.
type Found = (Vec<SocketAddr>, Vec<String>);

impl Seeds {
    pub(crate) fn new(names: Vec<String>, server: Option<SocketAddr>) -> Self {
        Self { names, server, last: HashMap::new() }
    }

    /// Whether there may be other seeds the next time.
    pub(crate) fn may_change(&self) -> bool {
        self.names.iter().any(|name| literal(name).is_none())
    }

    /// Resolves all names anew. What could be resolved is returned together with what could not.
    pub(crate) async fn resolve(&mut self) -> Found {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for name in &self.names {
            let (addresses, problems) = self.resolve_one(name).await;
            if problems.is_empty() {
                self.last.insert(name.clone(), addresses.clone());
            } else {
                found.extend(self.last.get(name).into_iter().flatten());
                errors.extend(problems.iter().map(|problem| format!("{name}: {problem}")));
            }
            found.extend(addresses);
        }
        found.sort();
        found.dedup();
        (found, errors)
    }

    async fn resolve_one(&self, name: &str) -> Found {
        if let Some(address) = literal(name) {
            return (vec![address], Vec::new());
        }
        let found = if let Some(service) = name.strip_prefix("dnssrv+") {
            self.service(service, true).await
        } else if let Some(service) = name.strip_prefix("dnssrvnoa+") {
            self.service(service, false).await
        } else {
            let host = name.strip_prefix("dns+").unwrap_or(name);
            let (host, port) = split_port(host);
            addresses_of(host, port.unwrap_or(DEFAULT_PORT)).await
        };
        match found {
            (addresses, problems) if addresses.is_empty() && problems.is_empty() => {
                (addresses, vec!["resolved to no address".to_owned()])
            }
            found => found,
        }
    }

    /// The addresses of a service. A port in the name wins over those of the records.
    #[cfg(feature = "dns-srv")]
    async fn service(&self, service: &str, with_addresses: bool) -> Found {
        let (service, port) = split_port(service);
        let resolver = match srv::Resolver::new(self.server) {
            Ok(resolver) => resolver,
            Err(error) => return (Vec::new(), vec![error]),
        };
        let targets = match resolver.targets(service).await {
            Ok(targets) => targets,
            Err(error) => return (Vec::new(), vec![error]),
        };
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for (host, its_port) in targets {
            let port = port.unwrap_or(its_port);
            if with_addresses {
                match resolver.addresses(&host).await {
                    Ok(ips) => found.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, port))),
                    Err(error) => errors.push(error),
                }
            } else {
                // With its final dot the name is complete, which saves questions about search domains, but `/etc/hosts`
                // knows names without it.
                let (mut addresses, mut problems) = addresses_of(&host, port).await;
                if let (false, Some(host)) = (problems.is_empty(), host.strip_suffix('.')) {
                    (addresses, problems) = addresses_of(host, port).await;
                }
                found.extend(addresses);
                errors.extend(problems);
            }
        }
        (found, errors)
    }

    #[cfg(not(feature = "dns-srv"))]
    #[allow(clippy::unused_async, reason = "as where there are look-ups")]
    async fn service(&self, _: &str, _: bool) -> Found {
        (Vec::new(), vec!["SRV look-ups need the feature dns-srv, which this program was built without".to_owned()])
    }
}

/// What the system knows of a host.
async fn addresses_of(host: &str, port: u16) -> Found {
    let host = host.trim_matches(['[', ']']);
    match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => (addresses.collect(), Vec::new()),
        Err(error) => (Vec::new(), vec![format!("{host}: {error}")]),
    }
}

/// A name that is an address already.
fn literal(name: &str) -> Option<SocketAddr> {
    let ip = || name.trim_matches(['[', ']']).parse().ok().map(|ip| SocketAddr::new(ip, DEFAULT_PORT));
    name.parse().ok().or_else(ip)
}

fn split_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn resolve(names: &[&str]) -> Found {
        Seeds::new(names.iter().map(|name| (*name).to_owned()).collect(), None).resolve().await
    }

    #[tokio::test]
    async fn addresses_are_taken_as_they_are_and_each_once() {
        let names =
            ["10.0.0.1", "10.0.0.1:7946", "[2001:db8::1]:7000", "2001:db8::2", "[2001:db8::3]", "dns+127.0.0.1:9"];
        let (found, errors) = resolve(&names).await;
        assert!(errors.is_empty(), "{errors:?}");
        let expected =
            ["10.0.0.1:7946", "127.0.0.1:9", "[2001:db8::1]:7000", "[2001:db8::2]:7946", "[2001:db8::3]:7946"];
        assert_eq!(found, expected.map(|text| text.parse().unwrap()));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_is_an_error_and_the_others_count() {
        let (found, errors) = resolve(&["127.0.0.1:1", "dns+no such host:7946"]).await;
        assert_eq!(found, ["127.0.0.1:1".parse().unwrap()]);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].starts_with("dns+no such host:7946: "), "{errors:?}");
    }

    #[tokio::test]
    async fn a_name_that_fails_keeps_what_it_meant_last() {
        let name = "dns+no such host:7946";
        let mut seeds = Seeds::new(vec![name.to_owned()], None);
        seeds.last.insert(name.to_owned(), vec!["10.0.0.1:1".parse().unwrap()]);
        let (found, errors) = seeds.resolve().await;
        assert_eq!((found, errors.len()), (vec!["10.0.0.1:1".parse().unwrap()], 1));
    }

    #[test]
    fn only_names_may_change() {
        let may_change = |name: &str| Seeds::new(vec![name.to_owned()], None).may_change();
        assert!(!may_change("10.0.0.1:1") && !may_change("::1"));
        assert!(may_change("host:1") && may_change("dns+host:1") && may_change("dnssrv+_a._tcp.b"));
    }

    #[cfg(not(feature = "dns-srv"))]
    #[tokio::test]
    async fn srv_names_say_which_feature_they_need() {
        let (found, errors) = resolve(&["dnssrv+_gossip._tcp.example.org"]).await;
        assert!(found.is_empty() && errors[0].contains("dns-srv"), "{errors:?}");
    }
}
