//! SRV records, for seeds that are found by the name of their service.
//!
//! The system's resolver has no call for them, so the DNS servers of its configuration (`/etc/resolv.conf`, or the
//! registry of Windows) are asked directly. That configuration is read anew for each resolution, and nothing is cached:
//! a change of either is seen at the next attempt to join.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

/// Asks DNS servers.
pub(crate) struct Resolver(TokioResolver);

impl Resolver {
    /// Asks this server, or those that the system is configured for.
    ///
    /// # Errors
    /// The system's configuration cannot be read.
    pub(crate) fn new(server: Option<SocketAddr>) -> Result<Self, String> {
        let mut builder = match server {
            Some(server) => {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for connection in &mut connections {
                    connection.port = server.port();
                }
                let server = NameServerConfig::new(server.ip(), true, connections);
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
            None => TokioResolver::builder_tokio()
                .map_err(|error| format!("the DNS configuration of the system cannot be read: {error}"))?,
        };
        builder.options_mut().cache_size = 0;
        builder.build().map(Self).map_err(|error| format!("no DNS client: {error}"))
    }

    /// The hosts and ports that offer a service. Priority and weight mean nothing to a cluster: any member will do.
    ///
    /// # Errors
    /// Nobody answered, or there is no such record.
    pub(crate) async fn targets(&self, service: &str) -> Result<Vec<(String, u16)>, String> {
        let answer = self.0.srv_lookup(service).await.map_err(|error| error.to_string())?;
        let target = |data: &RData| match data {
            // A target of `.` says that the service is not offered (RFC 2782).
            RData::SRV(srv) if !srv.target.is_root() => Some((srv.target.to_ascii(), srv.port)),
            _ => None,
        };
        Ok(answer.answers().iter().filter_map(|record| target(&record.data)).collect())
    }

    /// The addresses of a host, IPv4 and IPv6.
    ///
    /// # Errors
    /// Nobody answered, or there is none.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let answer = self.0.lookup_ip(host).await.map_err(|error| format!("{host}: {error}"))?;
        Ok(answer.iter().collect())
    }
}
