//! rtnetlink: requests and their answers over one socket, and the few messages that Fairway sends.

use crate::index::Hop;
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;

/// Mark of the routes that Fairway put into the kernel (`proto 70` in `ip route`).
pub const ROUTE_PROTOCOL: u8 = 70;

/// The kernel refused a request.
#[derive(Debug, thiserror::Error)]
#[error("kernel: cannot {what}: {error}{}", hint(error))]
pub struct NetlinkError {
    /// What was asked for.
    pub what: String,
    /// Its answer.
    pub error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run fairway-control as root or with CAP_NET_ADMIN",
        _ => "",
    }
}

/// A socket for requests.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

pub(super) fn family(ip: Ip) -> AddressFamily {
    if ip.is_v4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Netlink {
    /// Opens a socket in the current network namespace.
    pub fn open() -> Result<Netlink, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let failed = |error| NetlinkError { what: "open an rtnetlink socket".into(), error };
        Ok(Netlink { socket: open().map_err(failed)?, sequence: 0 })
    }

    /// Sends a request and returns what came before the kernel's acknowledgement.
    pub(super) fn request(
        &mut self,
        what: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(message, flags).map_err(|error| NetlinkError { what: what(), error })
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut out = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (header, payload) in messages(&bytes) {
                if header.sequence_number != self.sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => out.push(message),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(out),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(out),
                    _ => {}
                }
            }
        }
    }

    /// Lists every link.
    pub(super) fn links(&mut self) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.request(|| "list links".into(), message, NLM_F_DUMP)
    }

    /// Lists every address.
    pub(super) fn addresses(&mut self) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.request(|| "list addresses".into(), message, NLM_F_DUMP)
    }

    /// Lists every route of both families and all tables.
    pub(super) fn routes(&mut self) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut out = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let message = RouteNetlinkMessage::GetRoute(message);
            match self.request(|| "list routes".into(), message, NLM_F_DUMP) {
                Ok(routes) => out.extend(routes),
                // A kernel without IPv6 has no such table.
                Err(_) if family == AddressFamily::Inet6 => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Lists the routes of both families in one table. A kernel before 4.20 lists all tables instead.
    pub(super) fn routes_in(&mut self, table: u32) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        // The kernel looks at what a listing asks for only then.
        let _ = self.socket.set_netlink_get_strict_chk(true);
        let mut out = Vec::new();
        let mut failed = None;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.attributes.push(RouteAttribute::Table(table));
            let message = RouteNetlinkMessage::GetRoute(message);
            match self.request(|| format!("list routes of table {table}"), message, NLM_F_DUMP) {
                Ok(routes) => out.extend(routes),
                // No such table yet; or, in a kernel without it, no IPv6.
                Err(error) if error.error.kind() == io::ErrorKind::NotFound => {}
                Err(_) if family == AddressFamily::Inet6 => {}
                Err(error) => failed = Some(error),
            }
        }
        let _ = self.socket.set_netlink_get_strict_chk(false);
        failed.map_or(Ok(out), Err)
    }

    /// Lists every neighbour.
    pub(super) fn neighbours(&mut self) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.request(|| "list neighbours".into(), message, NLM_F_DUMP)
    }

    /// Makes the kernel resolve a neighbour, or confirm it, as if it had a packet for it.
    pub fn probe_neighbour(&mut self, ifindex: u32, ip: Ip) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(IpAddr::from(ip).into()));
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.request(|| format!("resolve neighbour {ip}"), message, NLM_F_ACK | NLM_F_CREATE)?;
        Ok(())
    }

    /// Creates a veth pair with one queue on either end.
    pub(super) fn create_veth(&mut self, name: &str, peer: &str) -> Result<(), NetlinkError> {
        let ends = |name: &str| {
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::NumTxQueues(1),
                LinkAttribute::NumRxQueues(1),
            ];
            message
        };
        let mut message = ends(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(ends(peer)))),
        ]));
        let what = || format!("create the veth pair {name} and {peer}");
        self.request(what, RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)?;
        Ok(())
    }

    /// Removes a link.
    pub(super) fn delete_link(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let message = RouteNetlinkMessage::DelLink(message);
        self.request(|| format!("remove link {ifindex}"), message, NLM_F_ACK)?;
        Ok(())
    }

    /// Sets a link up, with this MTU.
    pub(super) fn set_link(&mut self, ifindex: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let what = || format!("set link {ifindex} up with MTU {mtu}");
        self.request(what, RouteNetlinkMessage::SetLink(message), NLM_F_ACK)?;
        Ok(())
    }

    /// Sets a link's Ethernet address.
    pub(super) fn set_mac(&mut self, ifindex: u32, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        let what = || format!("set the Ethernet address of link {ifindex} to {mac}");
        self.request(what, RouteNetlinkMessage::SetLink(message), NLM_F_ACK)?;
        Ok(())
    }

    /// Tells the kernel a neighbour's Ethernet address for good, under Fairway's mark.
    pub(super) fn set_neighbour(&mut self, ifindex: u32, ip: Ip, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(IpAddr::from(ip).into()),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            NeighbourAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
        ];
        let what = || format!("set neighbour {ip} on link {ifindex} to {mac}");
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.request(what, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        Ok(())
    }

    /// Gives a link an address of its own, without a subnet, or takes it away.
    pub(super) fn set_address(&mut self, ifindex: u32, ip: Ip, present: bool) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = if ip.is_v4() { 32 } else { 128 };
        message.header.index = ifindex;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Address(ip.into()), AddressAttribute::Local(ip.into())];
        if !ip.is_v4() {
            // Nobody but the engine is on the link; and a route from an address still being probed is refused.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let what = || format!("{} address {ip} on link {ifindex}", if present { "set" } else { "remove" });
        if present {
            let message = RouteNetlinkMessage::NewAddress(message);
            self.request(what, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        } else {
            self.request(what, RouteNetlinkMessage::DelAddress(message), NLM_F_ACK)?;
        }
        Ok(())
    }

    /// Adds a route of Fairway's to the main table: out of the link, with this source address.
    /// `replace` says that the route there now is ours too; otherwise another's route is left alone.
    pub(super) fn add_route(
        &mut self,
        prefix: Prefix,
        via: Hop,
        source: Ip,
        replace: bool,
    ) -> Result<(), NetlinkError> {
        let mut message = our_route(prefix, via.ifindex);
        if let Some(gateway) = via.gateway {
            // No subnet holds the gateway, so the kernel must be told that it is on the link; a link-local one is.
            if gateway.is_v4() {
                message.header.flags = RouteFlags::Onlink;
            }
            message.header.scope = RouteScope::Universe;
            message.attributes.push(RouteAttribute::Gateway(IpAddr::from(gateway).into()));
        }
        message.attributes.push(RouteAttribute::PrefSource(IpAddr::from(source).into()));
        let message = RouteNetlinkMessage::NewRoute(message);
        let mode = if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        self.request(|| format!("add route {prefix}"), message, NLM_F_ACK | NLM_F_CREATE | mode)?;
        Ok(())
    }

    /// Removes a route of Fairway's.
    pub(super) fn delete_route(&mut self, prefix: Prefix, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = our_route(prefix, ifindex);
        // Nowhere: a route of any scope.
        message.header.scope = RouteScope::NoWhere;
        let message = RouteNetlinkMessage::DelRoute(message);
        self.request(|| format!("remove route {prefix}"), message, NLM_F_ACK)?;
        Ok(())
    }
}

fn our_route(prefix: Prefix, ifindex: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr());
    message.header.destination_prefix_length = prefix.len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.scope = if prefix.addr().is_v4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(IpAddr::from(prefix.addr()).into()), RouteAttribute::Oif(ifindex)];
    message
}

/// The raw messages of one datagram.
fn raw_messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let (message, _) = rest.split_at_checked(length).filter(|_| length >= 16)?;
        rest = rest.get((length + 3) & !3..).unwrap_or_default();
        Some(message)
    })
}

/// The types of the messages of one datagram, understood or not.
pub(super) fn message_types(bytes: &[u8]) -> impl Iterator<Item = u16> {
    raw_messages(bytes).map(|message| u16::from_ne_bytes([message[4], message[5]]))
}

/// The messages of one datagram; those that cannot be understood are left out.
pub(super) fn messages(
    bytes: &[u8],
) -> impl Iterator<Item = (NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)> + '_ {
    raw_messages(bytes).filter_map(|message| {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
            Ok(message) => Some((message.header, message.payload)),
            Err(error) => {
                tracing::debug!(%error, "rtnetlink message not understood");
                None
            }
        }
    })
}
