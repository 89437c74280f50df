//! The addresses of the world.

use super::packet::Headers;
use super::packet6::Headers6;
use crate::wire::ipip::Outer;
use crate::wire::over_ipv6::{Outer6, Vxlan as Vxlan6};
use crate::wire::vxlan::Encap;
use fairway_tables::{Mac, PortId, Vxlan};

/// The uplink's port.
pub const UPLINK: PortId = PortId(0);
/// The host port.
pub const HOST: PortId = PortId(1);
/// This node's underlay address.
pub const NODE: [u8; 4] = [192, 168, 77, 1];
/// The uplink's own Ethernet address.
pub const UPLINK_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Ethernet address of the kernel's end of the host veth.
pub const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xaa]);
/// The gateway's Ethernet address.
pub const GATEWAY_MAC: Mac = Mac([0xee; 6]);
/// The gateway's address.
pub const GATEWAY: [u8; 4] = [169, 254, 1, 1];
/// This node's own address among its pods'.
pub const ROUTER: [u8; 4] = [10, 244, 16, 1];
/// The gateway's IPv6 address.
pub const GATEWAY6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee];
/// This node's own IPv6 address among its pods'.
pub const ROUTER6: [u8; 16] = [0xfd, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// This node's IPv6 address on the uplink.
pub const NODE6: [u8; 16] = [0xfd, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Translated IPv6 source towards the node's own network stack.
pub const HOST6: [u8; 16] = [0xfd, 0, 0, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
/// The router that leads out of the cluster.
pub const EXIT: [u8; 4] = [192, 168, 77, 254];
/// Its IPv6 address.
pub const EXIT6: [u8; 16] = [0xfd, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe];
/// Its Ethernet address.
pub const EXIT_MAC: Mac = Mac([2, 0, 0, 0, 2, 0xfe]);

/// Station `n` outside the cluster.
pub fn outside(n: u8) -> [u8; 4] {
    [203, 0, 113, n]
}

/// Its IPv6 address.
pub fn outside6(n: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
}

/// Ports of translated sources.
pub const SNAT_PORTS: (u16, u16) = (61_000, 65_535);

/// IPv6 address of local pod `n`, in fd00:10::/64.
pub fn pod6(n: u16) -> [u8; 16] {
    let mut ip = ROUTER6;
    ip[14..].copy_from_slice(&(n + 2).to_be_bytes());
    ip
}

/// IPv6 address of pod `host` on remote node `n`, in fd00:11:n::/64.
pub fn remote_pod6(n: u8, host: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0x11, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

/// This node's VTEP.
pub const VTEP: Mac = Mac([2, 0, 0, 0, 1, 1]);
/// This node's VTEP over IPv6.
pub const VTEP6: Mac = Mac([2, 0, 0, 0, 6, 0xff]);
/// The same in the second network.
pub const SECOND_VTEP6: Mac = Mac([2, 0, 0, 0, 7, 0xff]);
/// VXLAN network identifier.
pub const VNI: u32 = 4096;
/// A second VXLAN network, in Flannel's layout.
pub const SECOND_VXLAN: Vxlan = Vxlan { vni: 1, udp_port: 8472, vtep_mac: Mac([2, 0, 0, 0, 3, 1]) };
/// UDP port of bare IP packets.
pub const UDP_TUNNEL_PORT: u16 = 8285;

/// Port of local pod `n`.
pub fn pod_port(n: u16) -> PortId {
    PortId(2 + n)
}

/// Address of local pod `n`: 10.244.16.0/20 in order, from the third address on.
pub fn pod(n: u16) -> [u8; 4] {
    let host = n + 2;
    [10, 244, 16 + (host >> 8) as u8, host as u8]
}

/// Ethernet address of local pod `n`.
pub fn pod_mac(n: u16) -> Mac {
    let [a, b, c, d] = pod(n);
    Mac([0x0a, 0x58, a, b, c, d])
}

/// Underlay address of remote node `n`.
pub fn node(n: u8) -> [u8; 4] {
    [192, 168, 77, 2 + n]
}

/// Address of pod `host` on remote node `n`.
pub fn remote_pod(n: u8, host: u8) -> [u8; 4] {
    [10, 245, n, host]
}

/// Underlay Ethernet address of remote node `n`.
pub fn node_mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 2, n])
}

/// VTEP of remote node `n`.
pub fn node_vtep(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 3, n])
}

/// IPv6 underlay address of remote node `n`.
pub fn node6(n: u8) -> [u8; 16] {
    let mut ip = NODE6;
    ip[15] = 2 + n;
    ip
}

/// VTEP of remote node `n` over IPv6.
pub fn node_vtep6(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 6, n])
}

/// The underlay's headers from remote node `n` to this one over IPv6.
pub fn outer6_from(n: u8) -> Outer6 {
    Outer6 { src_mac: node_mac(n), dst_mac: UPLINK_MAC, local: node6(n), remote: NODE6 }
}

/// The VXLAN network over IPv6, as remote node `n` sends in it.
pub fn vxlan6_from(n: u8) -> Vxlan6 {
    Vxlan6 { udp_port: 4789, vni: VNI, inner_src_mac: node_vtep6(n), inner_dst_mac: VTEP6 }
}

/// Encapsulation from remote node `n` to this one.
pub fn encap_from(n: u8) -> Encap {
    Encap {
        outer_src_mac: node_mac(n),
        outer_dst_mac: UPLINK_MAC,
        local: node(n),
        remote: NODE,
        udp_port: 4789,
        vni: VNI,
        inner_src_mac: node_vtep(n),
        inner_dst_mac: VTEP,
    }
}

/// The underlay's headers from remote node `n` to this one.
pub fn outer_from(n: u8) -> Outer {
    Outer { src_mac: node_mac(n), dst_mac: UPLINK_MAC, local: node(n), remote: NODE }
}

/// Headers of a packet that a remote pod sends without encapsulation, through node `n`.
pub fn directly_from(n: u8, src: [u8; 4], dst: [u8; 4]) -> Headers {
    Headers { dst_mac: UPLINK_MAC, src_mac: node_mac(n), src, dst, ttl: 63 }
}

/// Headers of a packet that local pod `n` sends.
pub fn from_pod(n: u16, dst: [u8; 4]) -> Headers {
    Headers { dst_mac: GATEWAY_MAC, src_mac: pod_mac(n), src: pod(n), dst, ttl: 64 }
}

/// Headers of an IPv6 packet that local pod `n` sends.
pub fn from_pod6(n: u16, dst: [u8; 16]) -> Headers6 {
    Headers6 { dst_mac: GATEWAY_MAC, src_mac: pod_mac(n), src: pod6(n), dst, hop_limit: 64 }
}

/// Inner headers of an IPv6 packet that a remote pod sends.
pub fn from_remote6(src: [u8; 16], dst: [u8; 16]) -> Headers6 {
    Headers6 { dst_mac: VTEP, src_mac: Mac::ZERO, src, dst, hop_limit: 63 }
}

/// Inner headers of a packet that a remote pod sends.
pub fn from_remote(src: [u8; 4], dst: [u8; 4]) -> Headers {
    Headers { dst_mac: VTEP, src_mac: Mac::ZERO, src, dst, ttl: 63 }
}
