//! From rtnetlink messages to plain facts.

use super::netlink::ROUTE_PROTOCOL;
use crate::index::{Facts, Hop, KernelEvent, KernelRoute, Link, Place, RouteKind};
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use netlink_packet_route::rule::RuleAttribute;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// How sure the kernel is of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeighbourTrust {
    /// It answered lately, is being asked, or needs no asking.
    Fresh,
    /// Its address is known, but nothing confirmed it lately.
    Stale,
    /// Not resolved, or forgotten.
    Unknown,
}

/// What one message means.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Meaning {
    pub(super) events: Vec<KernelEvent>,
    pub(super) trust: Option<(u32, Ip, NeighbourTrust)>,
    /// The kernel drops routes without saying so when a link goes down or loses an address.
    pub(super) relist: bool,
    /// Something under Fairway's mark is gone.
    pub(super) ours_gone: bool,
}

/// What a message of the kernel means; nothing for those that do not concern Fairway.
pub(super) fn meaning(message: &RouteNetlinkMessage, flags: u16) -> Meaning {
    let mut out = Meaning::default();
    match message {
        RouteNetlinkMessage::NewLink(m) => {
            out.relist = !m.header.flags.contains(LinkFlags::Up);
            out.events.extend(link(m).map(KernelEvent::Link));
        }
        RouteNetlinkMessage::DelLink(m) => {
            out.relist = true;
            out.events.extend(link(m).map(|l| KernelEvent::LinkGone(l.ifindex)));
        }
        RouteNetlinkMessage::NewAddress(m) => {
            out.events.extend(address(m).map(|(i, ip)| KernelEvent::Address(i, ip)));
        }
        RouteNetlinkMessage::DelAddress(m) => {
            out.relist = true;
            out.events.extend(address(m).map(|(i, ip)| KernelEvent::AddressGone(i, ip)));
        }
        RouteNetlinkMessage::NewRoute(m) => {
            let event = |(prefix, metric, route)| KernelEvent::Route(prefix, metric, route, place(flags));
            out.events.extend(route(m).map(event));
        }
        RouteNetlinkMessage::DelRule(m) => {
            let ours = |a: &RuleAttribute| *a == RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
            out.ours_gone = m.attributes.iter().any(ours);
        }
        RouteNetlinkMessage::DelRoute(m) => {
            out.ours_gone = m.header.protocol == ROUTE_PROTOCOL.into();
            let event = |(prefix, metric, route)| KernelEvent::RouteGone(prefix, metric, route);
            out.events.extend(route(m).map(event));
        }
        RouteNetlinkMessage::NewNeighbour(m) => {
            let Some((ip, mac)) = neighbour(m) else { return out };
            let ifindex = m.header.ifindex;
            let mac = mac.filter(|mac| *mac != Mac::ZERO);
            let trust = match (m.header.state, mac) {
                (NeighbourState::Stale, Some(_)) => NeighbourTrust::Stale,
                (NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None, _)
                | (_, None) => NeighbourTrust::Unknown,
                _ => NeighbourTrust::Fresh,
            };
            out.trust = Some((ifindex, ip, trust));
            // What is being resolved again keeps its last known address until it is known not to answer.
            if trust != NeighbourTrust::Unknown {
                out.events.push(KernelEvent::Neighbour(ifindex, ip, mac));
            } else if m.header.state == NeighbourState::Failed {
                out.events.push(KernelEvent::Neighbour(ifindex, ip, None));
            }
        }
        RouteNetlinkMessage::DelNeighbour(m) => {
            let ours = |a: &NeighbourAttribute| *a == NeighbourAttribute::Protocol(ROUTE_PROTOCOL.into());
            out.ours_gone = m.attributes.iter().any(ours);
            out.trust = neighbour(m).map(|(ip, _)| (m.header.ifindex, ip, NeighbourTrust::Unknown));
        }
        _ => {}
    }
    out
}

/// What a whole listing means.
pub(super) fn listing(messages: &[RouteNetlinkMessage]) -> (Facts, Vec<(u32, Ip, NeighbourTrust)>) {
    let mut facts = Facts::default();
    let mut trusts = Vec::new();
    for message in messages {
        // A listing comes in the kernel's own order.
        let meaning = meaning(message, NLM_F_APPEND);
        meaning.events.iter().for_each(|event| facts.apply(event));
        trusts.extend(meaning.trust);
    }
    (facts, trusts)
}

pub(super) fn mac_of(bytes: &[u8]) -> Mac {
    bytes.try_into().map_or(Mac::ZERO, Mac)
}

fn link(message: &LinkMessage) -> Option<Link> {
    // A message of the bridge family is about a bridge's port, not about the link.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { ifindex: message.header.index, name: String::new(), mac: Mac::ZERO, mtu: 0, up };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::Address(bytes) => link.mac = mac_of(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    Some(link)
}

pub(super) fn address(message: &AddressMessage) -> Option<(u32, Ip)> {
    // Of a point-to-point address, ours is the local one.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let any = || {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    };
    Some((message.header.index, local.or_else(any)?.into()))
}

pub(super) fn ip_of(address: &RouteAddress) -> Option<Ip> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

pub(super) fn gateway_of(attribute: &RouteAttribute) -> Option<Ip> {
    match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    }
}

/// Number of the table that a route is in; the header has room for small ones only.
pub(super) fn table_of(message: &RouteMessage) -> u32 {
    let long = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(number) => Some(*number),
        _ => None,
    });
    long.unwrap_or(u32::from(message.header.table))
}

fn hop_of(hop: &RouteNextHop) -> Hop {
    let gateway = hop.attributes.iter().find_map(gateway_of);
    Hop { ifindex: hop.interface_index, gateway, weight: u32::from(hop.hops) + 1 }
}

/// Where an added route stands, by the flags of its announcement (as Linux 6.18 sets them).
fn place(flags: u16) -> Place {
    match flags {
        _ if flags & NLM_F_APPEND != 0 => Place::Last,
        _ if flags & NLM_F_REPLACE != 0 => Place::Instead,
        _ if flags & NLM_F_EXCL != 0 => Place::Last,
        _ => Place::First,
    }
}

/// A route of the main table that any packet may take: by its destination alone.
fn route(message: &RouteMessage) -> Option<(Prefix, u32, KernelRoute)> {
    let header = &message.header;
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable | RouteType::Prohibit => RouteKind::Unreachable,
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Cloned) || header.tos != 0 || header.source_prefix_length != 0 {
        return None;
    }
    let default: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut destination = Ip::from(default);
    let mut metric = 0;
    let mut only = Hop { ifindex: 0, gateway: None, weight: 1 };
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address)?,
            RouteAttribute::Oif(ifindex) => only.ifindex = *ifindex,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(all) => hops = all.iter().map(hop_of).collect(),
            other => only.gateway = gateway_of(other).or(only.gateway),
        }
    }
    if kind != RouteKind::Unicast {
        hops.clear();
    } else if hops.is_empty() {
        hops.push(only);
    }
    if table_of(message) != u32::from(RouteHeader::RT_TABLE_MAIN) || hops.iter().any(|hop| hop.ifindex == 0) {
        return None;
    }
    let route = KernelRoute { kind, protocol: header.protocol.into(), hops };
    Some((Prefix::new(destination, header.destination_prefix_length)?, metric, route))
}

/// Next hop, preferred source and origin of a route of the main table.
pub(super) fn route_origin(message: &RouteMessage) -> Option<(Prefix, Hop, u8, Option<Ip>)> {
    let (prefix, _, route) = route(message)?;
    let hop = *route.hops.first()?;
    let source = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::PrefSource(address) => ip_of(address),
        _ => None,
    });
    Some((prefix, hop, route.protocol, source))
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(Ip, Option<Mac>)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => ip = Some(Ip::from(*addr)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => ip = Some(Ip::from(*addr)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(mac_of(bytes)),
            _ => {}
        }
    }
    Some((ip?, mac))
}
