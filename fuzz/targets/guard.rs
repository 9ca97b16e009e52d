//! Addresses as URLs may spell them: whatever is let through must be global by a second opinion, that of the standard
//! library, however it was wrapped; and what is denied is never let through.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use libfuzzer_sys::fuzz_target;
use sidelens::{config::HostPattern, fetch::Guard};
use url::{Host, Url};

fuzz_target!(|input: (u128, u32, &str)| {
    let (v6, v4, text) = (Ipv6Addr::from_bits(input.0), Ipv4Addr::from_bits(input.1), input.2);
    let guard = Guard::new(&[], &[]);
    check(&guard, v6.into());
    check(&guard, v4.into());
    let permits_v4 = guard.permits(v4.into());
    assert_eq!(guard.permits(v4.to_ipv6_mapped().into()), permits_v4, "mapped {v4}");
    let [a, b, c, d] = v4.octets().map(u16::from);
    let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
    assert_eq!(guard.permits(nat64.into()), permits_v4, "translated {v4}");

    let everything: [IpNet; 2] = ["0.0.0.0/0", "::/0"].map(|network| network.parse().expect("a network"));
    let but_one = Guard::new(&everything, &[Ipv4Net::new(v4, 24).expect("a length").trunc().into()]);
    for denied in [IpAddr::V4(v4), v4.to_ipv6_mapped().into(), nat64.into(), v4.to_ipv6_compatible().into()] {
        assert!(!but_one.permits(denied), "denied {denied}");
    }

    let Ok(url) = Url::parse(&format!("http://{text}/")) else { return };
    match url.host() {
        Some(Host::Ipv4(address)) => check(&guard, address.into()),
        Some(Host::Ipv6(address)) => check(&guard, address.into()),
        Some(Host::Domain(name)) => {
            // A rule made of a host as it stands in a URL is about that host, and about no other unless it says so.
            if let Ok(pattern) = name.parse::<HostPattern>() {
                assert!(pattern.matches(name), "{name}");
                assert_eq!(pattern.matches(&format!("x{name}")), name.starts_with("*."), "{name}");
            }
        }
        None => {}
    }
});

fn check(guard: &Guard, address: IpAddr) {
    if !guard.permits(address) {
        return;
    }
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let is_special = v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast();
            assert!(!is_special, "{v4}");
        }
        IpAddr::V6(v6) => {
            let is_special = v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast();
            assert!(!is_special, "{v6}");
        }
    }
}
