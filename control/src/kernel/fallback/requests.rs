//! The rtnetlink messages of which only the fallback has need.

use super::state::{Hop, Identity, TABLE};
use crate::kernel::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, family};
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// Where the fallback's rule stands: after the kernel's own table (0), before all others.
pub(super) const RULE_PRIORITY: u32 = 70;

type Listed = Result<Vec<RouteNetlinkMessage>, NetlinkError>;

impl Netlink {
    pub(super) fn fallback_rules(&mut self) -> Listed {
        // Of both families.
        let message = RouteNetlinkMessage::GetRule(RuleMessage::default());
        self.request(|| "list rules".into(), message, NLM_F_DUMP)
    }

    pub(super) fn fdb_entries(&mut self) -> Listed {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        self.request(|| "list FDB entries".into(), RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP)
    }

    /// Makes a tunnel device that sends and understands what the engine does.
    pub(super) fn create_tunnel(
        &mut self,
        name: &str,
        identity: Identity,
        mac: Option<Mac>,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(link_info(identity)),
        ];
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        let what = || format!("create the device {name} ({identity})");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(what, RouteNetlinkMessage::NewLink(message), flags).map(drop)
    }

    /// Adds the rule that sends what comes in from `ifname` to the fallback's table.
    pub(super) fn add_rule(&mut self, family: AddressFamily, ifname: &str) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRule(rule(family, ifname));
        let what = || format!("add the rule from {ifname} to table {TABLE}");
        self.request(what, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    pub(super) fn delete_rule(&mut self, rule: RuleMessage) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelRule(rule);
        self.request(|| format!("remove a rule to table {TABLE}"), message, NLM_F_ACK).map(drop)
    }

    pub(super) fn set_fallback_route(&mut self, prefix: Prefix, hop: Hop) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRoute(route(prefix, hop));
        let what = || format!("add route {prefix} to table {TABLE}");
        self.request(what, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    pub(super) fn delete_fallback_route(&mut self, prefix: Prefix, hop: Hop) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelRoute(route(prefix, hop));
        self.request(|| format!("remove route {prefix} from table {TABLE}"), message, NLM_F_ACK).map(drop)
    }

    pub(super) fn delete_neighbour(&mut self, ifindex: u32, ip: Ip) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = ifindex;
        message.attributes.push(NeighbourAttribute::Destination(IpAddr::from(ip).into()));
        let message = RouteNetlinkMessage::DelNeighbour(message);
        self.request(|| format!("remove neighbour {ip} from link {ifindex}"), message, NLM_F_ACK).map(drop)
    }

    /// Says behind which node a VTEP address is.
    pub(super) fn set_fdb(&mut self, ifindex: u32, mac: Mac, node: Ip) -> Result<(), NetlinkError> {
        let mut message = fdb(ifindex, mac);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(IpAddr::from(node).into()));
        let message = RouteNetlinkMessage::NewNeighbour(message);
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(|| format!("set FDB entry {mac} to {node}"), message, flags).map(drop)
    }

    pub(super) fn delete_fdb(&mut self, ifindex: u32, mac: Mac) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelNeighbour(fdb(ifindex, mac));
        self.request(|| format!("remove FDB entry {mac}"), message, NLM_F_ACK).map(drop)
    }
}

fn fdb(ifindex: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn link_info(identity: Identity) -> Vec<LinkInfo> {
    match identity {
        Identity::Vxlan { vni, port, local: ip } => {
            let mut data = vec![
                InfoVxlan::Id(vni),
                InfoVxlan::Port(port),
                InfoVxlan::Learning(false),
                // As the engine does; the inner packet has its own checksum (RFC 7348 section 5).
                InfoVxlan::UDPCsum(false),
            ];
            data.extend(ip.map(|ip| match IpAddr::from(ip) {
                IpAddr::V4(ip) => InfoVxlan::Local(ip),
                IpAddr::V6(ip) => InfoVxlan::Local6(ip),
            }));
            if ip.is_some_and(|ip| !ip.is_v4()) {
                // Others may send without a checksum; it sends one, as the engine does.
                data.push(InfoVxlan::UDPZeroCsumRX(true));
            }
            vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]
        }
        Identity::Ipip { local: ip } => {
            // As the engine's outer header; with DF, which goes with a TTL of its own.
            let mut data = vec![InfoIpTunnel::Ttl(64)];
            data.extend(ip.map(|ip| InfoIpTunnel::Local(ip.into())));
            vec![LinkInfo::Kind(InfoKind::IpIp), LinkInfo::Data(InfoData::IpTunnel(data))]
        }
    }
}

fn rule(family: AddressFamily, ifname: &str) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Iifname(ifname.to_owned()),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    message
}

/// Whether a rule is the one that [`rule`] makes.
pub(super) fn is_wanted(found: &RuleMessage, ifname: &str) -> bool {
    let wanted = rule(found.header.family, ifname);
    wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
        && found.header.src_len == 0
        && found.header.dst_len == 0
}

fn route(prefix: Prefix, hop: Hop) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr());
    message.header.destination_prefix_length = prefix.len();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.attributes =
        vec![RouteAttribute::Destination(IpAddr::from(prefix.addr()).into()), RouteAttribute::Table(TABLE)];
    message.header.kind = match hop {
        Hop::Out { ifindex, gateway } => {
            message.attributes.push(RouteAttribute::Oif(ifindex));
            if let Some(gateway) = gateway {
                // No subnet holds the gateway, so the kernel must be told that it is on the link; a link-local one is.
                if gateway.is_v4() {
                    message.header.flags = RouteFlags::Onlink;
                }
                message.attributes.push(RouteAttribute::Gateway(IpAddr::from(gateway).into()));
            } else if prefix.addr().is_v4() {
                message.header.scope = RouteScope::Link;
            }
            RouteType::Unicast
        }
        Hop::Blackhole => RouteType::BlackHole,
        Hop::Unreachable => RouteType::Unreachable,
    };
    message
}
