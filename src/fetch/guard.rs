//! Which addresses a download may reach: global ones, and the networks that the operator allows.
//!
//! A name is judged by what it resolves to, at the moment of dialling (`resolve`). Addresses written into
//! a URL never pass a resolver, so `hop` asks the [`Guard`] about those before each hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Decides about addresses. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    allow: Arc<[IpNet]>,
    deny: Arc<[IpNet]>,
}

impl Guard {
    /// Lets global addresses pass and those in the networks of `allow`, but none of those in `deny`.
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        Self { allow: allow.into(), deny: deny.into() }
    }

    /// Whether a download may connect to `address`.
    pub fn permits(&self, address: IpAddr) -> bool {
        // ::ffff:10.0.0.1 reaches 10.0.0.1, so it is judged as that, for and against.
        let address = address.to_canonical();
        let is_in = |networks: &[IpNet], address| networks.iter().any(|network| network.contains(&address));
        // However it may be reached: an IPv4 address that is denied is denied inside an IPv6 one too.
        let hidden = match address {
            IpAddr::V6(v6) => hidden_v4(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let is_denied = is_in(&self.deny, address) || hidden.is_some_and(|hidden| is_in(&self.deny, hidden));
        !is_denied && (is_global(address) || is_in(&self.allow, address))
    }
}

/// Whether `address` belongs to the public internet, rather than to this machine, a private network
/// or a special purpose.
///
/// Source: the IANA special-purpose address registries (RFC 6890); of IPv6 only 2000::/3 is handed
/// out to hosts, so that everything else is refused unasked.
pub fn is_global(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => !SPECIAL_V4.iter().any(|network| network.contains(&v4)),
        IpAddr::V6(v6) if NAT64.contains(&v6) => is_global(last_v4(v6).into()),
        IpAddr::V6(v6) => {
            let is_special = SPECIAL_V6.iter().any(|network| network.contains(&v6));
            // An ISATAP router takes the packet out of IPv6 and on to the IPv4 address.
            let is_tunnel_inwards = is_isatap(v6) && !is_global(last_v4(v6).into());
            GLOBAL_V6.contains(&v6) && !is_special && !is_tunnel_inwards
        }
    }
}

/// The IPv4 address that a translator or tunnel would make of `address`: NAT64, 6to4 (RFC 3056), Teredo (RFC 4380),
/// ISATAP (RFC 5214), and the deprecated IPv4-compatible form.
fn hidden_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [_, _, a, b, c, d, ..] = address.octets();
    if SIX_TO_FOUR.contains(&address) {
        Some(Ipv4Addr::new(a, b, c, d))
    } else if TEREDO.contains(&address) {
        Some(Ipv4Addr::from_bits(!last_v4(address).to_bits()))
    } else if NAT64.contains(&address) || COMPATIBLE.contains(&address) || is_isatap(address) {
        Some(last_v4(address))
    } else {
        None
    }
}

/// Whether the lower half of `address` is an ISATAP interface identifier, `0:5efe` or `200:5efe` and an IPv4 address.
fn is_isatap(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, _, _])
}

fn last_v4(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

const SPECIAL_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),       // this network
    v4([10, 0, 0, 0], 8),      // private
    v4([100, 64, 0, 0], 10),   // carrier-grade NAT
    v4([127, 0, 0, 0], 8),     // loopback
    v4([169, 254, 0, 0], 16),  // link-local, clouds' metadata services
    v4([172, 16, 0, 0], 12),   // private
    v4([192, 0, 0, 0], 24),    // IETF protocol assignments
    v4([192, 0, 2, 0], 24),    // documentation
    v4([192, 88, 99, 0], 24),  // 6to4 relays
    v4([192, 168, 0, 0], 16),  // private
    v4([198, 18, 0, 0], 15),   // benchmarks
    v4([198, 51, 100, 0], 24), // documentation
    v4([203, 0, 113, 0], 24),  // documentation
    v4([224, 0, 0, 0], 4),     // multicast
    v4([240, 0, 0, 0], 4),     // reserved, broadcast
];

const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0], 3);

/// IPv4 addresses seen through a translator: as reachable as what they stand for.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0], 96);

/// `::1.2.3.4`, which no network carries any more.
const COMPATIBLE: Ipv6Net = v6([0, 0, 0], 96);
const TEREDO: Ipv6Net = v6([0x2001, 0, 0], 32);
/// Reaches any IPv4 address.
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0], 16);

const SPECIAL_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0, 0], 23),     // IETF protocol assignments: Teredo, benchmarks, ORCHID
    v6([0x2001, 0xdb8, 0], 32), // documentation
    SIX_TO_FOUR,
    v6([0x3fff, 0, 0], 20), // documentation
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b, c]: [u16; 3], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allow_networks: &[&str], address: &str) -> bool {
        let networks: Vec<IpNet> = allow_networks.iter().map(|network| network.parse().unwrap()).collect();
        Guard::new(&networks, &[]).permits(address.parse().unwrap())
    }

    #[test]
    fn global_addresses_pass() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700:4700::1111",
            "2003::1",
            "3ffe:ffff::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2a00:1450::5efe:1.1.1.1",
            "2a00:1450::200:5efe:1.1.1.1",
            "2a00:1450::1:5efe:10.0.0.1",
        ] {
            assert!(permits(&[], address), "{address}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for address in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::1.1.1.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:1.1.1.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "2001::1",
            // Teredo for 1.1.1.1 and for 10.0.0.1.
            "2001:0:4136:e378:8000:63bf:fefe:fefe",
            "2001:0:4136:e378:8000:63bf:f5ff:fffe",
            "2a00:1450::5efe:10.0.0.1",
            "2a00:1450::200:5efe:127.0.0.1",
            "2a00:1450::200:5efe:169.254.169.254",
            "fe80::5efe:1.1.1.1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:101:101::",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!permits(&[], address), "{address}");
        }
    }

    #[test]
    fn allowed_networks_open_exactly_themselves() {
        for (network, inside, outside) in [
            ("10.1.0.0/16", "10.1.2.3", "10.2.0.1"),
            ("10.1.0.0/16", "::ffff:10.1.2.3", "::ffff:10.2.0.1"),
            ("127.0.0.1/32", "127.0.0.1", "127.0.0.2"),
            ("127.0.0.0/8", "127.9.9.9", "::1"),
            ("fd00::/8", "fd12::1", "fc00::1"),
            ("::1/128", "::1", "127.0.0.1"),
            // All of IPv6 does not open IPv4 through its mapped form.
            ("::/0", "fe80::1", "::ffff:127.0.0.1"),
        ] {
            assert!(permits(&[network], inside), "{network} {inside}");
            assert!(!permits(&[network], outside), "{network} {outside}");
        }
    }

    #[test]
    fn denied_networks_win_however_they_are_reached() {
        let networks =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let deny = networks(&["1.1.1.0/24", "10.9.0.0/16", "2a00:1450::/32"]);
        let guard = Guard::new(&networks(&["10.0.0.0/8", "2001::/32", "2002::/16", "::/96"]), &deny);
        for (address, expected) in [
            ("1.1.1.1", false),
            ("1.1.2.1", true),
            ("10.8.0.1", true),
            ("10.9.0.1", false),
            ("2a00:1450::1", false),
            ("2a00:1451::1", true),
            // 1.1.1.1 and 1.1.2.1: mapped, compatible, through NAT64, 6to4, Teredo and ISATAP.
            ("::ffff:1.1.1.1", false),
            ("::ffff:1.1.2.1", true),
            ("::1.1.1.1", false),
            ("::1.1.2.1", true),
            ("64:ff9b::1.1.1.1", false),
            ("64:ff9b::1.1.2.1", true),
            ("2002:101:101::1", false),
            ("2002:101:201::1", true),
            ("2001:0:4136:e378:8000:63bf:fefe:fefe", false),
            ("2001:0:4136:e378:8000:63bf:fefe:fdfe", true),
            ("2a00:1451::5efe:1.1.1.1", false),
            ("2a00:1451::200:5efe:1.1.2.1", true),
        ] {
            assert_eq!(guard.permits(address.parse().unwrap()), expected, "{address}");
        }
    }
}
