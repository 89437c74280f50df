//! The records that control writes and the dataplane reads: plain old data, no padding, any bit
//! pattern valid, multi-byte integers in host order and addresses in network order.
//!
//! Fields that hold a small enumeration are integers here, because a hostile or torn file may hold
//! anything; each has a checked accessor that returns an enum.

use crate::{Ip, Mac};
use bytemuck::{Pod, Zeroable};

/// Index of a port, dense from 0. `PortId::NONE` stands for no port.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable, Debug, Default)]
pub struct PortId(pub u16);

impl PortId {
    /// No port.
    pub const NONE: PortId = PortId(u16::MAX);

    /// As an array index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What stands behind a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A NIC towards other nodes, every queue of it.
    Uplink,
    /// The host end of a pod's veth.
    Pod,
    /// The engine's end of the veth into the host's own namespace.
    Host,
}

/// A network device that the dataplane opens with AF_XDP. Key: [`PortId`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Port {
    /// Device name, NUL-padded (at most 15 bytes, IFNAMSIZ).
    pub ifname: [u8; 16],
    /// [`PortKind`] + 1; 0 is not a port.
    pub kind: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// The device's own Ethernet address: source of what the engine sends there.
    pub mac: Mac,
    /// Ethernet address of the one station behind a host port; zero elsewhere.
    pub peer_mac: Mac,
    /// Of an uplink to which endpoints are bound ([`Endpoint::uplink`]): the neighbour that leads out of its subnet, for
    /// IPv4. Unspecified: none.
    pub gateway: Ip,
    /// The same for IPv6.
    pub gateway6: Ip,
}

impl Port {
    /// A record for the device `ifname`, or `None` if the name is empty or longer than 15 bytes.
    pub fn new(ifname: &str, kind: PortKind, mtu: u32, mac: Mac, peer_mac: Mac) -> Option<Port> {
        if ifname.is_empty() || ifname.len() > 15 {
            return None;
        }
        let mut name = [0; 16];
        name[..ifname.len()].copy_from_slice(ifname.as_bytes());
        let (gateway, gateway6) = (Ip::UNSPECIFIED, Ip::UNSPECIFIED);
        Some(Port { ifname: name, kind: kind as u32 + 1, mtu, mac, peer_mac, gateway, gateway6 })
    }

    /// The gateway of a family, if there is one.
    #[inline]
    pub fn gateway_for(&self, is_v4: bool) -> Option<Ip> {
        let gateway = if is_v4 { self.gateway } else { self.gateway6 };
        (gateway != Ip::UNSPECIFIED).then_some(gateway)
    }

    /// The device's name; empty if the record holds no valid UTF-8.
    pub fn ifname(&self) -> &str {
        let end = self.ifname.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(&self.ifname[..end]).unwrap_or("")
    }

    /// What stands behind the port, or `None` for a record that makes no sense.
    #[inline]
    pub fn kind(&self) -> Option<PortKind> {
        match self.kind {
            1 => Some(PortKind::Uplink),
            2 => Some(PortKind::Pod),
            3 => Some(PortKind::Host),
            _ => None,
        }
    }
}

/// A pod address on this node. Key: the pod's [`Ip`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Endpoint {
    /// The port behind which the pod lives.
    pub port: PortId,
    /// The uplink that the address belongs to: what the pod sends leaves the node there. [`PortId::NONE`]: by routes.
    /// [`Endpoint::OWN_NIC`]: past the engine.
    pub uplink: PortId,
    /// The pod's own Ethernet address.
    pub mac: Mac,
}

impl Endpoint {
    /// As [`Endpoint::uplink`]: the pod has a NIC of its own, and its port is a second interface, by which it reaches
    /// services and its node.
    pub const OWN_NIC: PortId = PortId(u16::MAX - 2);

    /// An address that belongs to no uplink.
    pub fn new(port: PortId, mac: Mac) -> Endpoint {
        Endpoint { port, uplink: PortId::NONE, mac }
    }

    /// The uplink that the address belongs to.
    pub fn bound_to(&self) -> Option<PortId> {
        (self.uplink != PortId::NONE && !self.has_own_nic()).then_some(self.uplink)
    }

    /// Whether the pod has a NIC of its own.
    pub fn has_own_nic(&self) -> bool {
        self.uplink == Endpoint::OWN_NIC
    }
}

/// What to do with a packet that a route matches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NextHopKind {
    /// The destination is a pod of this node: look it up as an [`Endpoint`].
    Local,
    /// Encapsulate in VXLAN towards the remote node `addr`: look it up as a [`Tunnel`].
    Tunnel,
    /// Send through `port` to the neighbour `addr` (or to the destination itself where `addr` is
    /// unspecified), without encapsulation.
    Gateway,
    /// Hand to the node's own network stack through the host port. It is for that, or the stack delivers it somewhere; where
    /// it does so out of an uplink without further ado, `port` is that one.
    Host,
    /// Drop, counted.
    Blackhole,
    /// Encapsulate in IP (RFC 2003, RFC 2473, RFC 4213) towards the remote node `addr`: look it up as a [`Tunnel`].
    Ipip,
    /// Put the bare IP packet into UDP, as Flannel's `udp` backend does, towards the remote node `addr`: look it up as a
    /// [`Tunnel`].
    UdpTunnel,
    /// Drop, and tell the sender that nobody has the address.
    Unreachable,
}

impl NextHopKind {
    /// Whether the way leads through a [`Tunnel`], of whatever encapsulation.
    #[inline]
    pub fn is_tunnel(self) -> bool {
        matches!(self, NextHopKind::Tunnel | NextHopKind::Ipip | NextHopKind::UdpTunnel)
    }
}

/// The value of a route. Key: [`Prefix`](crate::Prefix).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct NextHop {
    /// Remote node or gateway; unspecified where the kind needs none.
    pub addr: Ip,
    /// [`NextHopKind`] + 1; 0 is no next hop.
    pub kind: u16,
    /// Output port, or [`PortId::NONE`].
    pub port: PortId,
}

impl NextHop {
    /// A next hop of the given kind.
    pub fn new(kind: NextHopKind, addr: Ip, port: PortId) -> NextHop {
        NextHop { addr, kind: kind as u16 + 1, port }
    }

    /// Whether the record says anything at all.
    #[inline(always)]
    pub(crate) fn is_some(&self) -> bool {
        self.kind != 0
    }

    /// What to do, or `None` for a record that makes no sense.
    #[inline]
    pub fn kind(&self) -> Option<NextHopKind> {
        match self.kind {
            1 => Some(NextHopKind::Local),
            2 => Some(NextHopKind::Tunnel),
            3 => Some(NextHopKind::Gateway),
            4 => Some(NextHopKind::Host),
            5 => Some(NextHopKind::Blackhole),
            6 => Some(NextHopKind::Ipip),
            7 => Some(NextHopKind::UdpTunnel),
            8 => Some(NextHopKind::Unreachable),
            _ => None,
        }
    }
}

/// How packets reach a remote node. Key: the remote node's underlay [`Ip`] (its VTEP), whose family is that of the outer
/// header; a node that is reached by both has two. The route that leads here says which encapsulation is used; what only
/// one of them needs is zero where none of the node's routes uses it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Tunnel {
    /// Outer source address: this node's underlay address of the same family.
    pub local: Ip,
    /// The remote node's first underlay address: the same in each of its tunnels, so that they are known for one node's.
    pub node: Ip,
    /// Neighbour on the underlay that leads to the remote node: itself, or a gateway.
    pub next_hop: Ip,
    /// VXLAN network identifier, 24 bits (RFC 7348 section 5).
    pub vni: u32,
    /// Outer UDP destination port of VXLAN; 4789 by RFC 7348, 8472 for Flannel.
    pub udp_port: u16,
    /// Uplink through which the outer packet leaves.
    pub port: PortId,
    /// Inner Ethernet destination: the remote node's VTEP address.
    pub remote_mac: Mac,
    /// Inner Ethernet source: this node's VTEP address.
    pub local_mac: Mac,
    /// The remote node's address at which its node ports are reached over IPv4: its first InternalIP. Unspecified: none.
    pub node_ports: Ip,
    /// The same over IPv6.
    pub node_ports6: Ip,
}

/// Key of a [`Neighbour`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct NeighbourKey {
    /// The neighbour's address on the link.
    pub ip: Ip,
    /// The port whose link it is on.
    pub port: PortId,
    /// Zero.
    pub reserved: u16,
}

/// A resolved neighbour. Key: [`NeighbourKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Neighbour {
    /// The neighbour's Ethernet address.
    pub mac: Mac,
    /// Zero.
    pub reserved: u16,
}

/// Key of a service port: an address at which the service is reached, and `port` and `protocol` of one of its
/// `spec.ports`; with a node's own address, `nodePort` instead of `port`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct ServiceKey {
    /// The service address.
    pub ip: Ip,
    /// Destination port, host order.
    pub port: u16,
    /// IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

impl ServiceKey {
    /// Address at which the node's own processes find the node ports of all its IPv4 addresses: what they send to those
    /// themselves never leaves the kernel, and is turned to this one. Link-local, beside the pods' gateway.
    pub const NODE_PORTS: Ip = Ip::v4([169, 254, 1, 2]);
    /// As [`NODE_PORTS`](Self::NODE_PORTS), for IPv6: of the prefix whose packets may go nowhere (RFC 6666).
    pub const NODE_PORTS6: Ip = Ip([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The key of one port of a service.
    pub fn new(ip: Ip, port: u16, proto: u8) -> ServiceKey {
        ServiceKey { ip, port, proto, reserved: 0 }
    }

    /// The key of what is sent to a service's address, but to none of its ports.
    pub fn no_port(ip: Ip) -> ServiceKey {
        ServiceKey::new(ip, 0, 0)
    }

    /// Whether this is the key of a port, not of [what has none](Self::no_port).
    pub fn is_port(&self) -> bool {
        self.proto != 0
    }
}

/// What is fixed per service port; its backends follow separately. Key: [`ServiceKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Service {
    /// Number that stays with the service port as long as it lives, the same for all its addresses of one family.
    pub id: u32,
    /// Bits: [`Service::ENDPOINTS_ELSEWHERE`], [`Service::MASQUERADE`], [`Service::EXTERNAL`], [`Service::LOCAL`],
    /// [`Service::SOURCE_RANGES`], [`Service::MAGLEV`], [`Service::DSR`].
    pub flags: u32,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds`; 0 is no affinity.
    pub affinity_timeout_s: u32,
}

impl Service {
    /// Endpoints exist, but none that the service's traffic policy allows on this node: where there is no backend,
    /// clients are not refused, their packets are dropped (as kube-proxy does).
    pub const ENDPOINTS_ELSEWHERE: u32 = 1;
    /// Backends see an address of this node instead of the client's, as for external addresses under the traffic
    /// policy Cluster.
    pub const MASQUERADE: u32 = 2;
    /// The address is not a cluster address but a node port's, a load balancer's or an external one.
    pub const EXTERNAL: u32 = 4;
    /// Clients that are neither pods nor this node use the backends on this node only, and backends see their
    /// addresses (`externalTrafficPolicy: Local`).
    pub const LOCAL: u32 = 8;
    /// Only clients of certain ranges are admitted (`loadBalancerSourceRanges`).
    pub const SOURCE_RANGES: u32 = 16;
    /// A flow's hash chooses the backend by a Maglev table, the same on every node; else chance does.
    pub const MAGLEV: u32 = 32;
    /// Clients that are neither pods nor nodes are answered straight from the backend's node, which sees their addresses
    /// (docs/dsr.md): for backends elsewhere there is a way to their node, and this node's own are listed apart.
    pub const DSR: u32 = 64;
}

/// One ready endpoint of a service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct Backend {
    /// The backend pod's address.
    pub ip: Ip,
    /// Its target port, host order.
    pub port: u16,
    /// Bits for locality, zone and state; none is defined yet.
    pub flags: u16,
}

/// A VXLAN network, as a node takes part in it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Vxlan {
    /// Network identifier that packets carry, 24 bits.
    pub vni: u32,
    /// UDP port on which they arrive; 0: there is no such network.
    pub udp_port: u16,
    /// This node's VTEP address: Ethernet destination that decapsulated frames must carry.
    pub vtep_mac: Mac,
}

/// What holds for the whole node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Settings {
    /// This node's IPv4 underlay address: source of tunnels, and where they must be addressed. Unspecified: there are none
    /// over IPv4.
    pub node_ip: Ip,
    /// The same for IPv6.
    pub node_ip6: Ip,
    /// The gateway that pods are given (169.254.1.1).
    pub gateway_ip: Ip,
    /// This node's own address in its pods' range, from which the engine itself speaks (ICMP errors): it says which
    /// node it was, and other nodes know that it lives here. Unspecified: the engine keeps silent.
    pub router_ip: Ip,
    /// The gateway that pods are given for IPv6, link-local.
    pub gateway_ip6: Ip,
    /// As `router_ip`, for IPv6; unspecified on a node without IPv6 pods.
    pub router_ip6: Ip,
    /// Source of what leaves by the uplink with a translated source: the node's own IPv4 address there. Unspecified: there
    /// is none, and nothing leaves so.
    pub outside_ip: Ip,
    /// As `outside_ip`, for IPv6.
    pub outside_ip6: Ip,
    /// Source of what goes to the node's own network stack with a translated source. The stack routes it to the host port
    /// and does not have it itself: else its replies would stay there.
    pub host_ip: Ip,
    /// As `host_ip`, for IPv6.
    pub host_ip6: Ip,
    /// Network identifier that packets of the first VXLAN network must carry.
    pub vni: u32,
    /// Largest IP packet that a pod may send so that its encapsulated form fits the uplink.
    pub pod_mtu: u32,
    /// UDP port on which the first VXLAN network's packets arrive.
    pub vxlan_port: u16,
    /// The uplink's port, or [`PortId::NONE`].
    pub uplink: PortId,
    /// The host port, or [`PortId::NONE`].
    pub host: PortId,
    /// The gateway's Ethernet address, the same on every node so that a pod's ARP cache stays right.
    pub gateway_mac: Mac,
    /// This node's VTEP address: Ethernet destination that decapsulated frames must carry.
    pub vtep_mac: Mac,
    /// The same of what comes over IPv6, in the first VXLAN network.
    pub vtep_mac6: Mac,
    /// The same in the second.
    pub second_vtep_mac6: Mac,
    /// UDP port of bare IP packets, on every node (8285 for Flannel's `udp` backend); 0: none are taken.
    pub udp_tunnel_port: u16,
    /// First of the ports (ICMP: identifiers) that translated sources are given; the node's own stack leaves them alone.
    pub snat_first: u16,
    /// Last of these.
    pub snat_last: u16,
    /// Bits: [`Settings::TAKES_IPIP`] and its like, [`Settings::TAKES_DIRECT`], [`Settings::CLAMP_MSS`].
    pub takes: u32,
    /// A second VXLAN network, of another layout than the first.
    pub second_vxlan: Vxlan,
}

impl Settings {
    /// IPv4 in IPv4 addressed to this node is taken from the uplink.
    pub const TAKES_IPIP: u32 = 1;
    /// Packets to this node's pods are taken from the uplink without encapsulation.
    pub const TAKES_DIRECT: u32 = 2;
    /// The maximum segment size in TCP's SYNs is lowered to what their way takes.
    pub const CLAMP_MSS: u32 = 4;
    /// IPv6 in IPv4 addressed to this node is taken from the uplink.
    pub const TAKES_IPV6_IN_IPV4: u32 = 8;
    /// IPv4 in IPv6 addressed to this node is taken from the uplink.
    pub const TAKES_IPV4_IN_IPV6: u32 = 16;
    /// IPv6 in IPv6 addressed to this node is taken from the uplink.
    pub const TAKES_IPV6_IN_IPV6: u32 = 32;

    /// The bit for one family inside another.
    pub const fn takes_ip_in_ip(inner_is_v4: bool, outer_is_v4: bool) -> u32 {
        match (inner_is_v4, outer_is_v4) {
            (true, true) => Self::TAKES_IPIP,
            (false, true) => Self::TAKES_IPV6_IN_IPV4,
            (true, false) => Self::TAKES_IPV4_IN_IPV6,
            (false, false) => Self::TAKES_IPV6_IN_IPV6,
        }
    }
}
