//! What the kernel holds now of the things that the fallback is made of.

use crate::kernel::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL};
use crate::kernel::read;
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeMap;

/// The routing table of the fallback.
pub const TABLE: u32 = 7070;

/// A device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Device {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) is_up: bool,
    pub(super) is_vxlan: bool,
    /// VNI, UDP port and local address of a VXLAN device.
    pub(super) vxlan: Option<(u32, u16, Option<Ip>)>,
}

/// Where a route of the fallback's table leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hop {
    /// Out of a device, to a neighbour or straight to the destination.
    Out { ifindex: u32, gateway: Option<Ip> },
    /// Nowhere, and nobody is told.
    Blackhole,
    /// Nowhere, and the sender is told.
    Unreachable,
}

/// What there is now.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) devices: Vec<Device>,
    /// The rules under Fairway's mark.
    pub(super) rules: Vec<RuleMessage>,
    pub(super) routes: BTreeMap<Prefix, Hop>,
    /// Neighbours that are set for good, under Fairway's mark.
    pub(super) neighbours: BTreeMap<(u32, Ip), Mac>,
    /// Forwarding entries of VXLAN devices: device and inner address, and the node that has it.
    pub(super) fdb: BTreeMap<(u32, Mac), Ip>,
}

impl State {
    /// Lists it all.
    pub(super) fn read(netlink: &mut Netlink) -> Result<State, NetlinkError> {
        let mut state = State::default();
        let mut messages = netlink.links()?;
        messages.extend(netlink.routes()?);
        messages.extend(netlink.neighbours()?);
        messages.extend(netlink.fallback_rules()?);
        messages.extend(netlink.fdb_entries()?);
        for message in messages {
            state.take(message);
        }
        Ok(state)
    }

    fn take(&mut self, message: RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(m) => self.devices.extend(device(&m)),
            RouteNetlinkMessage::NewRoute(m) => self.routes.extend(route(&m)),
            RouteNetlinkMessage::NewRule(m) if is_ours(&m) => self.rules.push(m),
            RouteNetlinkMessage::NewNeighbour(m) if m.header.family == AddressFamily::Bridge => {
                self.fdb.extend(fdb(&m));
            }
            RouteNetlinkMessage::NewNeighbour(m) => self.neighbours.extend(neighbour(&m)),
            _ => {}
        }
    }

    pub(super) fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }
}

fn device(message: &LinkMessage) -> Option<Device> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut device = Device {
        ifindex: message.header.index,
        name: String::new(),
        mac: Mac::ZERO,
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_vxlan: false,
        vxlan: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name.clone(),
            LinkAttribute::Address(bytes) => device.mac = read::mac_of(bytes),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                device.is_vxlan = infos.contains(&LinkInfo::Kind(InfoKind::Vxlan));
                device.vxlan = infos.iter().find_map(vxlan);
            }
            _ => {}
        }
    }
    Some(device)
}

fn vxlan(info: &LinkInfo) -> Option<(u32, u16, Option<Ip>)> {
    let LinkInfo::Data(InfoData::Vxlan(attributes)) = info else { return None };
    let (mut vni, mut port, mut local) = (None, None, None);
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Local(ip) => local = Some(Ip::from(*ip)),
            _ => {}
        }
    }
    Some((vni?, port?, local))
}

/// A route of the fallback's table under Fairway's mark.
fn route(message: &RouteMessage) -> Option<(Prefix, Hop)> {
    if message.header.address_family != AddressFamily::Inet
        || u8::from(message.header.protocol) != ROUTE_PROTOCOL
        || read::table_of(message) != TABLE
    {
        return None;
    }
    let (mut destination, mut out, mut gateway) = (Ip::v4([0; 4]), 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => destination = read::ip_of(ip)?,
            RouteAttribute::Oif(ifindex) => out = *ifindex,
            other => gateway = read::gateway_of(other).or(gateway),
        }
    }
    let hop = match message.header.kind {
        RouteType::BlackHole => Hop::Blackhole,
        RouteType::Unreachable => Hop::Unreachable,
        _ => Hop::Out { ifindex: out, gateway },
    };
    Some((Prefix::new(destination, message.header.destination_prefix_length)?, hop))
}

/// Whether a rule bears Fairway's mark.
fn is_ours(message: &RuleMessage) -> bool {
    let ours = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Protocol(p) if u8::from(*p) == ROUTE_PROTOCOL);
    message.header.action == RuleAction::ToTable && message.attributes.iter().any(ours)
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, Ip), Mac)> {
    let marked = |attribute: &NeighbourAttribute| matches!(attribute, NeighbourAttribute::Protocol(p) if u8::from(*p) == ROUTE_PROTOCOL);
    if message.header.state != NeighbourState::Permanent || !message.attributes.iter().any(marked) {
        return None;
    }
    let (ip, mac) = read::neighbour(message)?;
    Some(((message.header.ifindex, ip), mac?))
}

fn fdb(message: &NeighbourMessage) -> Option<((u32, Mac), Ip)> {
    let (mut mac, mut node) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(read::mac_of(bytes)),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                node = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ip::v4);
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => node = Some(Ip::from(*ip)),
            _ => {}
        }
    }
    Some(((message.header.ifindex, mac?), node?))
}
