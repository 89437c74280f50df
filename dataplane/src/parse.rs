//! First step of every packet: from bytes and ingress port to a flow key, or to the reason why there is none.
//!
//! Nothing here looks anything up except the ingress port's own context. A packet that parses is safe to
//! rewrite without further checks of its lengths.

use crate::flow::FlowKey;
use crate::wire::{self, ETH_LEN, TCP_LEN, UDP_LEN, be16, icmp, ipv4, proto, raw32, tcp_flags, vxlan};
use fairway_tables::{DropReason, Mac, Port, PortId, PortKind, Settings};

/// What parsing needs to know of the port on which a packet came in.
#[derive(Clone, Copy, Debug)]
pub struct Ingress {
    /// What stands behind the port.
    pub kind: PortKind,
    /// The port's number.
    pub port: PortId,
    /// The device's own address.
    pub mac: Mac,
    /// The address that pods and the host's kernel take for their gateway's.
    pub gateway_mac: Mac,
    /// Ethernet destination of decapsulated frames.
    pub vtep_mac: Mac,
    /// This node's underlay address, raw.
    pub node_ip: u32,
    /// The network that tunnels must name.
    pub vni: u32,
    /// The UDP port of tunnels.
    pub vxlan_port: u16,
}

impl Ingress {
    /// The context of one port under the node's settings; `None` if the record makes no sense.
    pub fn new(id: PortId, port: &Port, settings: &Settings) -> Option<Ingress> {
        Some(Ingress {
            kind: port.kind()?,
            port: id,
            mac: port.mac,
            gateway_mac: settings.gateway_mac,
            vtep_mac: settings.vtep_mac,
            node_ip: settings.node_ip.as_v4().map_or(0, u32::from_ne_bytes),
            vni: settings.vni,
            vxlan_port: settings.vxlan_port,
        })
    }
}

/// A packet that belongs, or may belong, to a flow.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// What identifies the flow.
    pub key: FlowKey,
    /// Offset of the Ethernet header before the IP header to forward: 0, or behind a VXLAN header.
    pub l2: u16,
    /// Length of that IP header in bytes.
    pub ip_header_len: u16,
    /// Total length of that IP packet in bytes.
    pub ip_len: u16,
    /// TCP control bits, 0 for other protocols.
    pub tcp_flags: u8,
    /// Time to live on arrival.
    pub ttl: u8,
}

/// What a frame is.
#[derive(Clone, Copy, Debug)]
pub enum Class {
    /// An IPv4 packet of a flow that a table entry may serve.
    Flow(Parsed),
    /// An IPv4 packet that each time needs the full walk: ICMP other than echo.
    Single(Parsed),
    /// An IPv6 packet, yet to be classified by [`parse6`](crate::parse6::parse6): where its Ethernet header is, and the raw
    /// outer source address if it came from a tunnel.
    Ipv6 {
        /// Offset of the Ethernet header.
        l2: u16,
        /// Outer source.
        outer: u32,
    },
    /// An ARP packet.
    Arp,
    /// Nothing that the engine forwards.
    Drop(DropReason),
}

/// Classifies one received frame.
#[inline]
pub fn parse(frame: &[u8], ingress: &Ingress) -> Class {
    match classify(frame, ingress) {
        Ok(class) => class,
        Err(reason) => Class::Drop(reason),
    }
}

#[inline(always)]
fn classify(frame: &[u8], ingress: &Ingress) -> Result<Class, DropReason> {
    if ingress.kind == PortKind::Uplink {
        let (l2, outer_src) = decapsulate(frame, ingress)?;
        let inner = &frame[l2..];
        if inner.len() < ETH_LEN {
            return Err(DropReason::Truncated);
        }
        if inner[..6] != ingress.vtep_mac.0 {
            return Err(DropReason::NotForUs);
        }
        match be16(inner, 12) {
            wire::ETHERTYPE_IPV4 => {}
            wire::ETHERTYPE_IPV6 => return Ok(Class::Ipv6 { l2: l2 as u16, outer: outer_src }),
            _ => return Err(DropReason::EtherType),
        }
        return flow(inner, l2, outer_src, FlowKey::TUNNEL);
    }
    if frame.len() < ETH_LEN {
        return Err(DropReason::Truncated);
    }
    if be16(frame, 12) != wire::ETHERTYPE_IPV4 {
        return match be16(frame, 12) {
            wire::ETHERTYPE_ARP => Ok(Class::Arp),
            wire::ETHERTYPE_IPV6 if is_for_us(frame, ingress) => Ok(Class::Ipv6 { l2: 0, outer: 0 }),
            wire::ETHERTYPE_IPV6 => Err(DropReason::NotForUs),
            _ => Err(DropReason::EtherType),
        };
    }
    if frame[..6] != ingress.gateway_mac.0 && frame[..6] != ingress.mac.0 {
        return Err(DropReason::NotForUs);
    }
    flow(frame, 0, 0, ingress.port.0)
}

/// Whether an IPv6 frame is addressed to the gateway, or to a group that may mean it (RFC 2464 section 7).
fn is_for_us(frame: &[u8], ingress: &Ingress) -> bool {
    frame[..6] == ingress.gateway_mac.0 || frame[..6] == ingress.mac.0 || frame[..2] == [0x33, 0x33]
}

#[cold]
fn not_ipv4(frame: &[u8]) -> DropReason {
    if be16(frame, 12) == wire::ETHERTYPE_IPV6 { DropReason::Ipv6 } else { DropReason::EtherType }
}

/// Checks the outer headers of a VXLAN packet; returns where the inner Ethernet header starts and the raw
/// outer source address.
#[inline(always)]
fn decapsulate(frame: &[u8], ingress: &Ingress) -> Result<(usize, u32), DropReason> {
    if frame.len() < vxlan::HEADER_LEN {
        return Err(DropReason::Truncated);
    }
    if be16(frame, 12) != wire::ETHERTYPE_IPV4 {
        return Err(not_ipv4(frame));
    }
    if frame[..6] != ingress.mac.0 {
        return Err(DropReason::NotForUs);
    }
    let outer = ipv4::Header::parse(&frame[ETH_LEN..])?;
    if outer.is_fragment() {
        return Err(DropReason::Fragment);
    }
    if outer.dst() != ingress.node_ip || outer.proto() != proto::UDP {
        return Err(DropReason::NotForUs);
    }
    let udp = outer.payload();
    if udp.len() < UDP_LEN + vxlan::LEN {
        return Err(DropReason::Truncated);
    }
    if be16(udp, 2) != ingress.vxlan_port {
        return Err(DropReason::NotForUs);
    }
    if vxlan::vni(&udp[UDP_LEN..])? != ingress.vni {
        return Err(DropReason::WrongVni);
    }
    Ok((ETH_LEN + outer.header_len() + UDP_LEN + vxlan::LEN, outer.src()))
}

#[inline(always)]
fn flow(frame: &[u8], l2: usize, outer: u32, context: u16) -> Result<Class, DropReason> {
    let ip = ipv4::Header::parse(&frame[ETH_LEN..])?;
    if ip.is_fragment() {
        return Err(DropReason::Fragment);
    }
    let l4 = ip.payload();
    let mut parsed = Parsed {
        key: FlowKey::new(ip.src(), ip.dst(), 0, ip.proto(), context, outer),
        l2: l2 as u16,
        ip_header_len: ip.header_len() as u16,
        ip_len: ip.total_len() as u16,
        tcp_flags: 0,
        ttl: ip.ttl(),
    };
    match ip.proto() {
        proto::TCP => {
            let Some(tcp) = l4.first_chunk::<TCP_LEN>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(tcp, 0);
            parsed.tcp_flags = tcp[13] & (tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK);
        }
        proto::UDP => {
            let Some(udp) = l4.first_chunk::<UDP_LEN>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(udp, 0);
        }
        proto::ICMP => {
            let Some(message) = l4.first_chunk::<{ icmp::LEN }>() else { return Err(DropReason::Truncated) };
            if !icmp::is_echo(message[0]) {
                return Ok(Class::Single(parsed));
            }
            // The identifier stands for both ports, so that either direction is one conversation
            // (RFC 5508 section 3.1); request and reply differ in their addresses.
            parsed.key.ports = u32::from_ne_bytes([message[4], message[5], message[4], message[5]]);
        }
        _ => {}
    }
    Ok(Class::Flow(parsed))
}
