//! The networks that members may come from: `memberlist.cidrs_allowed` in a form that can be asked.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// An allow-list of networks. The empty list, which is the default, allows every address, as in memberlist (whose
/// documentation says otherwise).
///
/// ```
/// use annulus::config::Networks;
///
/// let networks = Networks::parse(["10.0.0.0/8", "fd00::/8"])?;
/// assert!(networks.allows("10.1.2.3".parse()?));
/// assert!(networks.allows("::ffff:10.1.2.3".parse()?), "the same address in its IPv6 form");
/// assert!(!networks.allows("192.168.0.1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// A text that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a network such as 10.0.0.0/8 or fd00::/8")]
pub struct NotANetwork {
    /// Where in the list it stands, from 0.
    pub index: usize,
    /// The text.
    pub text: String,
}

impl Networks {
    /// Networks in CIDR notation, IPv4 and IPv6. Bits behind the prefix mean nothing: `10.1.2.3/8` is `10.0.0.0/8`.
    ///
    /// # Errors
    /// The first text that is not a network. An address without a prefix length is none: write `10.1.2.3/32`.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, NotANetwork> {
        let parse = |(index, text): (usize, T)| match text.as_ref().trim().parse::<IpNet>() {
            Ok(network) => Ok(canonical(network)),
            Err(_) => Err(NotANetwork { index, text: text.as_ref().to_owned() }),
        };
        texts.into_iter().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the list is empty, so that everybody may come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a member may have this address. IPv4-mapped IPv6 addresses count as IPv4.
    #[must_use]
    pub fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.is_empty() || self.0.iter().any(|network| network.contains(&ip))
    }
}

/// `::ffff:10.0.0.0/104` means the same as `10.0.0.0/8`, and addresses are looked up in the second form.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let as_v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    as_v4.and_then(|(addr, prefix)| Ipv4Net::new(addr, prefix).ok()).map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn allowed(networks: &[&str], ip: &str) -> bool {
        Networks::parse(networks).unwrap().allows(ip.parse().unwrap())
    }

    #[test]
    fn an_empty_list_allows_everybody() {
        assert!(Networks::default().is_empty());
        assert!(allowed(&[], "192.0.2.1") && allowed(&[], "2001:db8::1"));
    }

    #[test]
    fn the_edges_of_a_network_are_inside_and_their_neighbours_outside() {
        let networks = ["10.1.2.3/16", "192.0.2.7/32", "2001:db8::/33"];
        for inside in ["10.1.0.0", "10.1.255.255", "192.0.2.7", "2001:db8:7fff:ffff::1"] {
            assert!(allowed(&networks, inside), "{inside}");
        }
        for outside in ["10.0.255.255", "10.2.0.0", "192.0.2.6", "192.0.2.8", "2001:db8:8000::", "::1", "127.0.0.1"] {
            assert!(!allowed(&networks, outside), "{outside}");
        }
    }

    #[test]
    fn both_forms_of_an_ipv4_address_are_the_same_in_the_list_and_in_the_question() {
        for networks in [["10.0.0.0/8"], ["::ffff:10.0.0.0/104"]] {
            assert!(allowed(&networks, "10.9.9.9") && allowed(&networks, "::ffff:10.9.9.9"), "{networks:?}");
            assert!(!allowed(&networks, "11.0.0.0") && !allowed(&networks, "::ffff:11.0.0.0"), "{networks:?}");
        }
        assert!(!allowed(&["::/0"], "10.0.0.1"), "all of IPv6 is not all of IPv4");
    }

    #[test]
    fn what_is_not_a_network_is_named_with_its_place() {
        for wrong in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "ten/8", "", "10.0.0/8"] {
            let error = Networks::parse(["10.0.0.0/8", wrong]).unwrap_err();
            assert_eq!((error.index, error.text.as_str()), (1, wrong));
        }
    }
}
