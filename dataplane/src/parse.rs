//! First step of every packet: from bytes and ingress port to a flow key, or to the reason why there is none.
//!
//! Nothing here looks anything up except the ingress port's own context. A packet that parses is safe to
//! rewrite without further checks of its lengths.

use crate::flow::FlowKey;
use crate::usual::Usual;
use crate::wire::{
    self, ETH_LEN, TCP_LEN, UDP_LEN, be16, ecn, icmp, ipv4, ipv6, proto, raw32, sctp, tcp_flags, vxlan,
};
use fairway_tables::{DropReason, Mac, Port, PortId, PortKind, Settings, Vxlan};

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
    /// This node's IPv4 underlay address, raw; 0: none.
    pub node_ip: u32,
    /// The same for IPv6.
    pub node_ip6: [u8; 16],
    /// The VXLAN network of most tunnels.
    pub vxlan: Vxlan,
    /// Another one.
    pub second_vxlan: Vxlan,
    /// Both as they are over IPv6.
    pub vxlan6: [Vxlan; 2],
    /// UDP port of bare IP packets; 0: none are taken.
    pub udp_tunnel_port: u16,
    /// What else the uplink takes: bits of [`Settings`].
    pub takes: u32,
    pub(crate) usual: Usual,
}

impl Ingress {
    /// The context of one port under the node's settings; `None` if the record makes no sense.
    pub fn new(id: PortId, port: &Port, settings: &Settings) -> Option<Ingress> {
        let kind = port.kind()?;
        let node_ip = settings.node_ip.as_v4().map_or(0, u32::from_ne_bytes);
        let vxlan = Vxlan { vni: settings.vni, udp_port: settings.vxlan_port, vtep_mac: settings.vtep_mac };
        let over_ipv6 = |network: Vxlan, vtep_mac| Vxlan { vtep_mac, ..network };
        let macs = [port.mac, if kind == PortKind::Uplink { port.mac } else { settings.gateway_mac }];
        let other_tunnels = [settings.second_vxlan.udp_port, settings.udp_tunnel_port];
        Some(Ingress {
            kind,
            port: id,
            mac: port.mac,
            gateway_mac: settings.gateway_mac,
            node_ip,
            node_ip6: settings.node_ip6.0,
            vxlan,
            vxlan6: [
                over_ipv6(vxlan, settings.vtep_mac6),
                over_ipv6(settings.second_vxlan, settings.second_vtep_mac6),
            ],
            usual: Usual::new(macs, node_ip, &vxlan, other_tunnels),
            second_vxlan: settings.second_vxlan,
            udp_tunnel_port: settings.udp_tunnel_port,
            takes: settings.takes,
        })
    }
}

/// What of a datagram a packet holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// Its first fragment, which has the transport header.
    First,
    /// Another fragment, which has none.
    Later,
}

/// A packet that belongs, or may belong, to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parsed {
    /// What identifies the flow.
    pub key: FlowKey,
    /// Where the Ethernet header before the IP header to forward begins, or would begin if the tunnel carried one: 0
    /// for a packet from no tunnel.
    pub l2: u16,
    /// Length of that IP header in bytes.
    pub ip_header_len: u16,
    /// Total length of that IP packet in bytes.
    pub ip_len: u16,
    /// TCP control bits, 0 for other protocols.
    pub tcp_flags: u8,
    /// Time to live on arrival.
    pub ttl: u8,
    /// Whether it is a fragment. The ports in a later one's key are zero until
    /// [`fragment`](crate::fragment) finds them.
    pub part: Part,
}

/// What a frame is. What is known of the packet itself stands in the [`Parsed`] beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// An IPv4 packet of a flow that a table entry may serve.
    Flow,
    /// An IPv4 packet that each time needs the full walk: ICMP other than echo.
    Single,
    /// A fragment of an IPv4 packet, to be joined to its flow by [`fragment`](crate::fragment).
    Fragment,
    /// A tunnel's packet whose outer header bears a congestion mark. To be carried over to the inner IP header, whose
    /// frame begins at `l2`, by [`ecn::carry_over`]; then the packet is parsed again.
    Marked,
    /// An IPv6 packet, yet to be classified by [`parse6`](crate::parse6::parse6): of [`Parsed`] hold `l2` and, of its key,
    /// where it came in and `outer`.
    Ipv6,
    /// An ARP packet.
    Arp,
    /// Nothing that the engine forwards.
    Drop(DropReason),
}

/// Classifies one received frame, and writes what it finds to where that is to stay, field by field: to move a value of
/// this size costs more than parsing, because the processor cannot forward such narrow stores to the wide loads of a copy.
#[inline(always)]
pub fn parse(frame: &[u8], ingress: &Ingress, parsed: &mut Parsed) -> Class {
    match parse_usual(frame, ingress, parsed) {
        Some(_) => Class::Flow,
        None => parse_unusual(frame, ingress, parsed),
    }
}

/// The first part of [`parse`]: packets of a flow that look like most. `None`: anything else, and `parsed` holds nothing.
#[inline(always)]
pub(crate) fn parse_usual(frame: &[u8], ingress: &Ingress, parsed: &mut Parsed) -> Option<FlowKey> {
    ingress.usual.read(frame, ingress.kind == PortKind::Uplink, ingress.port.0, parsed)
}

/// The second part of [`parse`], for packets of any shape.
#[inline(never)]
pub(crate) fn parse_unusual(frame: &[u8], ingress: &Ingress, parsed: &mut Parsed) -> Class {
    classify(frame, ingress, parsed).unwrap_or_else(Class::Drop)
}

fn classify(frame: &[u8], ingress: &Ingress, parsed: &mut Parsed) -> Result<Class, DropReason> {
    if ingress.kind == PortKind::Uplink {
        return from_uplink(frame, ingress, parsed);
    }
    if frame.len() < ETH_LEN {
        return Err(DropReason::Truncated);
    }
    if be16(frame, 12) != wire::ETHERTYPE_IPV4 {
        return match be16(frame, 12) {
            wire::ETHERTYPE_ARP => Ok(Class::Arp),
            wire::ETHERTYPE_IPV6 if is_for_us(frame, ingress) => Ok(six(parsed, 0, 0, ingress.port.0)),
            wire::ETHERTYPE_IPV6 => Err(DropReason::NotForUs),
            _ => Err(DropReason::EtherType),
        };
    }
    if frame[..6] != ingress.gateway_mac.0 && frame[..6] != ingress.mac.0 {
        return Err(DropReason::NotForUs);
    }
    flow(frame, 0, 0, ingress.port.0, parsed)
}

fn six(parsed: &mut Parsed, l2: usize, outer: u32, context: u16) -> Class {
    (parsed.l2, parsed.key) = (l2 as u16, FlowKey::new(0, 0, 0, 0, context, outer));
    Class::Ipv6
}

/// Whether an IPv6 frame is addressed to the gateway, or to a group that may mean it (RFC 2464 section 7).
fn is_for_us(frame: &[u8], ingress: &Ingress) -> bool {
    frame[..6] == ingress.gateway_mac.0 || frame[..6] == ingress.mac.0 || frame[..2] == [0x33, 0x33]
}

/// A packet from another node: through a tunnel to this node's address, or to a pod or to the node without encapsulation.
#[inline(always)]
fn from_uplink(frame: &[u8], ingress: &Ingress, parsed: &mut Parsed) -> Result<Class, DropReason> {
    if frame.len() < ETH_LEN {
        return Err(DropReason::Truncated);
    }
    if frame[..6] != ingress.mac.0 {
        return Err(DropReason::NotForUs);
    }
    match be16(frame, 12) {
        wire::ETHERTYPE_IPV4 => {}
        wire::ETHERTYPE_IPV6 => return from_uplink6(frame, ingress, parsed),
        _ => return Err(DropReason::EtherType),
    }
    let outer = ipv4::Header::parse(&frame[ETH_LEN..])?;
    if outer.dst() != ingress.node_ip {
        return flow(frame, 0, 0, ingress.port.0, parsed);
    }
    if outer.is_fragment() {
        return Err(DropReason::Fragment);
    }
    let inside = match outer.proto() {
        proto::UDP => {
            let at = ETH_LEN + outer.header_len();
            in_udp(outer.payload(), at, ingress, [&ingress.vxlan, &ingress.second_vxlan])?
        }
        other => in_ip(other, ETH_LEN + outer.header_len(), true, ingress),
    };
    let Some(inside) = inside else { return flow(frame, 0, 0, ingress.port.0, parsed) };
    let end = ETH_LEN + outer.total_len();
    from_tunnel(&frame[..end], &inside, outer.tos(), outer.src(), FlowKey::TUNNEL, parsed)
}

/// The same for IPv6. Which node sent a tunnel's packet is not known yet: see [`FlowKey::outer`].
#[inline(never)]
fn from_uplink6(frame: &[u8], ingress: &Ingress, parsed: &mut Parsed) -> Result<Class, DropReason> {
    const DST: usize = ETH_LEN + ipv6::DST;
    let other = Ok(six(parsed, 0, 0, ingress.port.0));
    let dst = frame.get(DST..DST + 16);
    if ingress.node_ip6 == [0; 16] || dst != Some(&ingress.node_ip6) {
        return other;
    }
    let outer = ipv6::Header::parse(&frame[ETH_LEN..])?;
    let (at, end) = (ETH_LEN + outer.l4(), ETH_LEN + outer.total_len());
    let is_later = outer.fragment().is_some_and(|fragment| fragment.is_later);
    let inside = match outer.proto() {
        // The rest of a datagram has no UDP header.
        proto::UDP if is_later => None,
        proto::UDP => in_udp(&frame[at..end], at, ingress, [&ingress.vxlan6[0], &ingress.vxlan6[1]])?,
        other => in_ip(other, at, false, ingress),
    };
    let Some(inside) = inside else { return other };
    if outer.fragment().is_some() {
        return Err(DropReason::Fragment);
    }
    from_tunnel(&frame[..end], &inside, outer.traffic_class(), 0, FlowKey::TUNNEL6, parsed)
}

/// What is inside a tunnel's packet, which ends where `frame` does: what pads an outer frame is not inside it.
#[inline(always)]
fn from_tunnel(
    frame: &[u8],
    inside: &Inner,
    outer_tos: u8,
    outer: u32,
    context: u16,
    parsed: &mut Parsed,
) -> Result<Class, DropReason> {
    let l2 = inside.at - ETH_LEN;
    if ecn::may_change_inner(outer_tos) {
        parsed.l2 = l2 as u16;
        return Ok(Class::Marked);
    }
    if !inside.is_ipv6 {
        return flow(&frame[l2..], l2, outer, context, parsed);
    }
    let len = frame.get(inside.at + 4..).and_then(|rest| rest.first_chunk());
    match len {
        Some(len) if inside.at + ipv6::LEN + usize::from(u16::from_be_bytes(*len)) <= frame.len() => {
            Ok(six(parsed, l2, outer, context))
        }
        _ => Err(DropReason::Truncated),
    }
}

/// The IP packet inside a tunnel's: where its header begins, and its family.
struct Inner {
    at: usize,
    is_ipv6: bool,
}

/// What is inside IP in IP, whose payload is at `at`; `None` if it is none that is taken.
fn in_ip(protocol: u8, at: usize, outer_is_v4: bool, ingress: &Ingress) -> Option<Inner> {
    let is_ipv6 = match protocol {
        proto::IPIP => false,
        proto::IPV6 => true,
        _ => return None,
    };
    let bit = Settings::takes_ip_in_ip(!is_ipv6, outer_is_v4);
    (ingress.takes & bit != 0).then_some(Inner { at, is_ipv6 })
}

/// What is inside a tunnel over UDP, whose header begins `udp` and is at `at`; `None` if it is none.
#[inline(always)]
fn in_udp(
    udp: &[u8],
    at: usize,
    ingress: &Ingress,
    networks: [&Vxlan; 2],
) -> Result<Option<Inner>, DropReason> {
    let Some(header) = udp.first_chunk::<UDP_LEN>() else { return Err(DropReason::Truncated) };
    let (dport, payload) = (be16(header, 2), at + UDP_LEN);
    if dport == 0 {
        // No network's port, though it stands for one that there is not.
        Ok(None)
    } else if networks.iter().any(|network| dport == network.udp_port) {
        let is_ipv6 = in_vxlan(&udp[UDP_LEN..], dport, networks)?;
        Ok(Some(Inner { at: payload + vxlan::LEN + ETH_LEN, is_ipv6 }))
    } else if dport == ingress.udp_tunnel_port {
        Ok(Some(Inner { at: payload, is_ipv6: udp.get(UDP_LEN).is_some_and(|first| first >> 4 == 6) }))
    } else {
        Ok(None)
    }
}

/// Checks a VXLAN header and the inner Ethernet header; returns whether an IPv6 packet follows.
#[inline(always)]
fn in_vxlan(bytes: &[u8], udp_port: u16, [first, second]: [&Vxlan; 2]) -> Result<bool, DropReason> {
    let Some(header) = bytes.first_chunk::<{ vxlan::LEN + ETH_LEN }>() else {
        return Err(DropReason::Truncated);
    };
    let vni = vxlan::vni(header)?;
    let is_of = |network: &Vxlan| network.vni == vni && network.udp_port == udp_port;
    let network = if is_of(first) { first } else { second };
    if !is_of(network) {
        return Err(DropReason::WrongVni);
    }
    if header[vxlan::LEN..vxlan::LEN + 6] != network.vtep_mac.0 {
        return Err(DropReason::NotForUs);
    }
    match be16(header, vxlan::LEN + 12) {
        wire::ETHERTYPE_IPV4 => Ok(false),
        wire::ETHERTYPE_IPV6 => Ok(true),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
fn flow(frame: &[u8], l2: usize, outer: u32, context: u16, parsed: &mut Parsed) -> Result<Class, DropReason> {
    let ip = ipv4::Header::parse(frame.get(ETH_LEN..).ok_or(DropReason::Truncated)?)?;
    parsed.key = FlowKey::new(ip.src(), ip.dst(), 0, ip.proto(), context, outer);
    parsed.l2 = l2 as u16;
    parsed.ip_header_len = ip.header_len() as u16;
    parsed.ip_len = ip.total_len() as u16;
    parsed.tcp_flags = 0;
    parsed.ttl = ip.ttl();
    parsed.part = Part::Whole;
    if ip.is_fragment() {
        return fragment(&ip, parsed);
    }
    transport(ip.payload(), parsed)
}

/// Reads the transport header.
#[inline(always)]
fn transport(l4: &[u8], parsed: &mut Parsed) -> Result<Class, DropReason> {
    match parsed.key.proto() {
        proto::TCP => {
            let Some(tcp) = l4.first_chunk::<TCP_LEN>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(tcp, 0);
            parsed.tcp_flags = tcp[13] & (tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK);
        }
        proto::UDP => {
            let Some(udp) = l4.first_chunk::<UDP_LEN>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(udp, 0);
        }
        proto::SCTP => {
            let Some(sctp) = l4.first_chunk::<{ sctp::LEN }>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(sctp, 0);
        }
        proto::ICMP => {
            let Some(message) = l4.first_chunk::<{ icmp::LEN }>() else { return Err(DropReason::Truncated) };
            if !icmp::is_echo(message[0]) {
                return Ok(Class::Single);
            }
            // The identifier stands for both ports, so that either direction is one conversation
            // (RFC 5508 section 3.1); request and reply differ in their addresses.
            parsed.key.ports = u32::from_ne_bytes([message[4], message[5], message[4], message[5]]);
        }
        _ => {}
    }
    Ok(Class::Flow)
}

/// A first fragment that is too short for its transport header hides it from whoever looks at ports and flags (RFC 1858
/// section 3). ICMP messages other than echo are never so large that they would have to be fragmented.
#[cold]
fn fragment(ip: &ipv4::Header<'_>, parsed: &mut Parsed) -> Result<Class, DropReason> {
    if ip.is_later_fragment() {
        parsed.part = Part::Later;
        return Ok(Class::Fragment);
    }
    parsed.part = Part::First;
    match transport(ip.payload(), parsed) {
        Ok(Class::Flow) => Ok(Class::Fragment),
        Ok(_) => Err(DropReason::Fragment),
        Err(_) => Err(DropReason::BadFragment),
    }
}
