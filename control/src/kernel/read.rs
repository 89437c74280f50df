//! From rtnetlink messages to plain facts.

use super::netlink::ROUTE_PROTOCOL;
use crate::index::{Facts, KernelEvent, Link, RouteVia};
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia as Via,
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
            let replaces = flags & NLM_F_REPLACE != 0 && flags & NLM_F_APPEND == 0;
            let event = if replaces { KernelEvent::RouteReplaced } else { KernelEvent::Route };
            out.events.extend(route(m).map(|(prefix, metric, via)| event(prefix, metric, via)));
        }
        RouteNetlinkMessage::DelRule(m) => {
            let ours = |a: &RuleAttribute| *a == RuleAttribute::Protocol(ROUTE_PROTOCOL.into());
            out.ours_gone = m.attributes.iter().any(ours);
        }
        RouteNetlinkMessage::DelRoute(m) => {
            out.ours_gone = m.header.protocol == ROUTE_PROTOCOL.into();
            out.events
                .extend(route(m).map(|(p, metric, via)| KernelEvent::RouteGone(p, metric, via.ifindex)));
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
        let meaning = meaning(message, 0);
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
    let mut link = Link { ifindex: message.header.index, name: String::new(), mac: Mac::ZERO, mtu: 0 };
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
        RouteAttribute::Via(Via::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(Via::Inet6(ip)) => Some((*ip).into()),
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

fn route(message: &RouteMessage) -> Option<(Prefix, u32, RouteVia)> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let default: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut destination = Ip::from(default);
    let mut metric = 0;
    let mut via = RouteVia { ifindex: 0, gateway: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address)?,
            RouteAttribute::Oif(ifindex) => via.ifindex = *ifindex,
            RouteAttribute::Priority(priority) => metric = *priority,
            // Of several equal paths a tunnel takes the first: its packets must keep their order.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                via = RouteVia {
                    ifindex: hop.interface_index,
                    gateway: hop.attributes.iter().find_map(gateway_of),
                };
            }
            other => via.gateway = gateway_of(other).or(via.gateway),
        }
    }
    if table_of(message) != u32::from(RouteHeader::RT_TABLE_MAIN) || via.ifindex == 0 {
        return None;
    }
    Some((Prefix::new(destination, header.destination_prefix_length)?, metric, via))
}

/// Next hop, preferred source and origin of a route of the main table.
pub(super) fn route_origin(message: &RouteMessage) -> Option<(Prefix, RouteVia, u8, Option<Ip>)> {
    let (prefix, _, via) = route(message)?;
    let source = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::PrefSource(address) => ip_of(address),
        _ => None,
    });
    Some((prefix, via, message.header.protocol.into(), source))
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
