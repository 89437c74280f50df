//! A site for tests without a device.

use fairway_bench::pktgen::paths::{Around, Site};
use fairway_bench::pktgen::ranges::{Addresses, Ports};
use fairway_tables::Mac;

fn six(range: u8, host: u8, count: u32) -> Addresses {
    Addresses::v6([0xfd, 0, 0, range, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host], count)
}

/// Four Services; 200 pods or stations of each kind elsewhere.
pub(crate) fn site() -> Site {
    Site {
        client_mac: Mac([0x0a, 0x58, 10, 244, 1, 11]),
        server_mac: Mac([0x0a, 0x58, 10, 244, 1, 10]),
        gateway_mac: Mac([0xee; 6]),
        station_mac: Mac([2, 0, 0, 0, 0, 9]),
        node_mac: Mac([2, 0, 0, 0, 0, 1]),
        node_ports: Ports { first: 30_000, count: 4 },
        ipv4: Around {
            client: Addresses::one([10, 244, 1, 11]),
            server: Addresses::one([10, 244, 1, 10]),
            node: Addresses::one([192, 168, 77, 1]),
            vxlan_pods: Addresses::v4(0x0af4_0202, 200),
            ipip_pods: Addresses::v4(0x0af5_0302, 200),
            direct_pods: Addresses::v4(0x0af6_0402, 200),
            outside: Addresses::v4(0xcb00_7101, 200),
            services: Addresses::v4(0x0a60_000a, 4),
            remote_services: Addresses::v4(0x0a61_000a, 4),
        },
        ipv6: Around {
            client: six(1, 11, 1),
            server: six(1, 10, 1),
            node: six(77, 1, 1),
            vxlan_pods: six(2, 2, 200),
            ipip_pods: six(3, 2, 200),
            direct_pods: six(4, 2, 200),
            outside: six(0xdb, 1, 200),
            services: six(96, 10, 4),
            remote_services: six(97, 10, 4),
        },
    }
}
