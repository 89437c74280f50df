//! What the kernel holds now of the things that the fallback is made of.

use crate::kernel::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL};
use crate::kernel::read;
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

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
    /// What it is, if it is a tunnel that the fallback knows.
    pub(super) identity: Option<Identity>,
}

/// What makes a tunnel device what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// VXLAN.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// This node's underlay address.
        local: Option<Ip>,
    },
    /// IPIP to any node.
    Ipip {
        /// This node's underlay address.
        local: Option<Ip>,
    },
}

impl Identity {
    /// The kernel's name of its kind, and of the module.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Identity::Vxlan { .. } => "vxlan",
            Identity::Ipip { .. } => "ipip",
        }
    }

    /// Whether the kernel does not give a second device this identity beside one.
    pub(super) fn excludes(self, other: Identity) -> bool {
        match (self, other) {
            (Identity::Vxlan { port, local: of, .. }, Identity::Vxlan { port: wanted, local, .. }) => {
                let is_v4 = |ip: Option<Ip>| ip.is_none_or(|ip| ip.is_v4());
                port == wanted && is_v4(of) == is_v4(local)
            }
            _ => self == other,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Vxlan { vni, port, .. } => write!(f, "VXLAN network {vni} on UDP port {port}"),
            Identity::Ipip { local } => write!(f, "IPIP from {}", local.unwrap_or(Ip::v4([0; 4]))),
        }
    }
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
    pub(super) addresses: BTreeSet<(u32, Ip)>,
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
        messages.extend(netlink.addresses()?);
        messages.extend(netlink.routes_in(TABLE)?);
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
            RouteNetlinkMessage::NewAddress(m) => self.addresses.extend(read::address(&m)),
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
        identity: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name.clone(),
            LinkAttribute::Address(bytes) => device.mac = read::mac_of(bytes),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => device.identity = infos.iter().find_map(identity),
            _ => {}
        }
    }
    Some(device)
}

fn identity(info: &LinkInfo) -> Option<Identity> {
    match info {
        LinkInfo::Data(InfoData::Vxlan(attributes)) => vxlan(attributes),
        LinkInfo::Data(InfoData::IpTunnel(attributes)) => ipip(attributes),
        _ => None,
    }
}

fn vxlan(attributes: &[InfoVxlan]) -> Option<Identity> {
    let (mut vni, mut port, mut local) = (None, None, None);
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Local(ip) => local = Some(Ip::from(*ip)),
            InfoVxlan::Local6(ip) => local = Some(Ip::from(*ip)),
            _ => {}
        }
    }
    Some(Identity::Vxlan { vni: vni?, port: port?, local })
}

/// IPIP to any node; tunnels between IPv6 addresses and those to one node are others.
fn ipip(attributes: &[InfoIpTunnel]) -> Option<Identity> {
    let mut ends = [None; 2];
    for attribute in attributes {
        match attribute {
            InfoIpTunnel::Local(IpAddr::V4(ip)) => ends[0] = Some(*ip),
            InfoIpTunnel::Remote(IpAddr::V4(ip)) => ends[1] = Some(*ip),
            _ => {}
        }
    }
    let [local, remote] = ends.map(|ip| ip.filter(|ip| !ip.is_unspecified()));
    remote.is_none().then(|| Identity::Ipip { local: local.map(Ip::from) })
}

/// Every address of a family.
pub(super) fn any(is_v4: bool) -> Prefix {
    // What is not zero cannot be cut off.
    let zero = if is_v4 { Ip::v4([0; 4]) } else { Ip::UNSPECIFIED };
    Prefix::new(zero, 0).unwrap_or(Prefix::host(zero))
}

/// A route of the fallback's table under Fairway's mark.
fn route(message: &RouteMessage) -> Option<(Prefix, Hop)> {
    if u8::from(message.header.protocol) != ROUTE_PROTOCOL || read::table_of(message) != TABLE {
        return None;
    }
    let is_v4 = message.header.address_family == AddressFamily::Inet;
    let (mut destination, mut out, mut gateway) = (any(is_v4).addr(), 0, None);
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
                node = match bytes.len() {
                    16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(Ip),
                    _ => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ip::v4),
                };
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => node = Some(Ip::from(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => node = Some(Ip::from(*ip)),
            _ => {}
        }
    }
    Some(((message.header.ifindex, mac?), node?))
}
