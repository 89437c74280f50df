//! The compiler: what each object, or this node itself, contributes to the tables. Pure functions of the
//! index's state but for the numbers they claim; the union over all sources is the model.

use super::dsr::node_ports_at;
use super::masquerade::everything;
use super::pools::{underlay_of, vtep_mac};
use super::ways::WayTo;
use super::{DirectRoutes, Index, Source};
use crate::encapsulation::Encapsulation;
use crate::model::{Key, Value};
use crate::names;
use crate::object::{Node, Pod};
use fairway_tables as tables;
use fairway_tables::{Ip, NeighbourKey, NextHop, NextHopKind, PortId, PortKind, Prefix};
use std::collections::BTreeMap;

/// The uplink's port.
pub const UPLINK_PORT: PortId = PortId(0);
/// The host veth's port.
pub const HOST_PORT: PortId = PortId(1);
/// MTU assumed as long as the uplink is not known.
const DEFAULT_MTU: u32 = 1500;

/// What one source contributes.
pub(super) type Contribution = BTreeMap<Key, Value>;

/// The address inside a pod range that belongs to the node's own side of the host veth.
pub fn host_address(pod_cidr: &Prefix) -> Ip {
    Ip((u128::from_be_bytes(pod_cidr.addr().0) + 1).to_be_bytes())
}

/// Whether this is an IPv6 link-local address (RFC 4291 section 2.5.6), which no router forwards to.
pub fn is_link_local(ip: Ip) -> bool {
    ip.0[0] == 0xfe && ip.0[1] & 0xc0 == 0x80
}

fn route(kind: NextHopKind, addr: Ip) -> Value {
    Value::Route(NextHop::new(kind, addr, PortId::NONE))
}

impl Index {
    /// What `source` contributes now.
    pub(super) fn compile(&mut self, source: &Source) -> Contribution {
        match source {
            Source::Local => self.compile_local(),
            Source::Node(name) => self.compile_node(name),
            Source::NextHop(ifindex, ip) => self.compile_next_hop(*ifindex, *ip),
            Source::Pod(namespace, name) => self.compile_pod(&(namespace.clone(), name.clone())),
            Source::Service(namespace, name) => self.compile_service(&(namespace.clone(), name.clone())),
            Source::Pools => self.compile_pools(),
            Source::Enis => self.compile_enis(),
            Source::Kernel(_) => Contribution::new(),
        }
    }

    /// This node: settings, uplink and host port, the routes to its own addresses and pods.
    fn compile_local(&self) -> Contribution {
        let mut out = Contribution::new();
        let uplink = self.uplink.and_then(|i| self.facts.links.get(&i));
        if let Some(link) = uplink {
            out.extend(self.uplink_record(link).map(|port| (Key::Port(UPLINK_PORT), Value::Port(port))));
        }
        let kernel_end = self.facts.link_named(names::HOST_KERNEL_IF);
        let engine_end = self.facts.link_named(names::HOST_ENGINE_IF);
        let mut host = PortId::NONE;
        if let (Some(kernel), Some(engine)) = (kernel_end, engine_end) {
            host = HOST_PORT;
            let port = tables::Port::new(&engine.name, PortKind::Host, engine.mtu, engine.mac, kernel.mac);
            out.extend(port.map(|p| (Key::Port(HOST_PORT), Value::Port(p))));
        }
        let Some(node) = self.nodes.get(&self.config.node) else { return out };
        let router = |is_v4: bool| {
            let cidr = node.pod_cidrs.iter().find(|cidr| cidr.addr().is_v4() == is_v4);
            cidr.map_or(Ip::UNSPECIFIED, host_address)
        };
        let networks = self.vxlan_networks(node);
        // The kernel's own tunnels over IPv6 stay its own where pods use none.
        let has_ipv6 = self.possible_ways(node).iter().any(|(_, _, outer_is_v4)| !outer_is_v4);
        let mut settings = tables::Settings {
            node_ip: underlay_of(node, true).unwrap_or(Ip::UNSPECIFIED),
            node_ip6: underlay_of(node, false).filter(|_| has_ipv6).unwrap_or(Ip::UNSPECIFIED),
            gateway_ip: names::GATEWAY_IP,
            router_ip: router(true),
            gateway_ip6: names::GATEWAY_IP6,
            router_ip6: router(false),
            outside_ip: Ip::UNSPECIFIED,
            outside_ip6: Ip::UNSPECIFIED,
            host_ip: Ip::UNSPECIFIED,
            host_ip6: Ip::UNSPECIFIED,
            vni: networks.own.vni,
            pod_mtu: self.pod_mtu(),
            vxlan_port: networks.own.udp_port,
            uplink: if uplink.is_some() { UPLINK_PORT } else { PortId::NONE },
            host,
            gateway_mac: names::GATEWAY_MAC,
            vtep_mac: networks.own.vtep_mac,
            vtep_mac6: networks.macs6[0],
            second_vtep_mac6: networks.macs6[1],
            udp_tunnel_port: self.udp_tunnel_port(),
            snat_first: 0,
            snat_last: 0,
            takes: self.takes(node),
            second_vxlan: networks.second,
        };
        self.set_snat(node, &mut settings);
        out.insert(Key::Settings, Value::Settings(settings));
        for cidr in &node.pod_cidrs {
            out.insert(Key::Route(*cidr), route(NextHopKind::Local, Ip::UNSPECIFIED));
            // What no other route matches is the kernel's to forward, maybe out of the uplink,
            let is_v4 = cidr.addr().is_v4();
            let port = self.default_hop(is_v4).map_or(PortId::NONE, |_| UPLINK_PORT);
            let host = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, port);
            out.insert(Key::Route(everything(is_v4)), Value::Route(host));
        }
        // unless the engine knows the gateway, and translates.
        self.compile_masquerade(node, &mut out);
        // What no service has of their ranges leads nowhere.
        for cidr in &self.config.service_cidrs {
            out.insert(Key::Route(*cidr), route(NextHopKind::Blackhole, Ip::UNSPECIFIED));
        }
        let on_uplink = |entry: &&(u32, Ip)| Some(entry.0) == self.uplink && !is_link_local(entry.1);
        let uplink_ips = self.facts.addresses.iter().filter(on_uplink).map(|(_, ip)| *ip);
        let own = node.pod_cidrs.iter().map(host_address).chain(node.underlay());
        for ip in own.chain(uplink_ips) {
            out.insert(Key::Route(Prefix::host(ip)), route(NextHopKind::Host, Ip::UNSPECIFIED));
        }
        out
    }

    /// Largest packet that a pod may send so that it fits the uplink in every encapsulation that is in use.
    pub fn pod_mtu(&self) -> u32 {
        let uplink = self.uplink.and_then(|i| self.facts.links.get(&i));
        uplink.map_or(DEFAULT_MTU, |link| link.mtu).saturating_sub(self.largest_overhead())
    }

    /// A remote node: its tunnel, and the routes of its pods, through that or without.
    fn compile_node(&mut self, name: &str) -> Contribution {
        let mut out = Contribution::new();
        let paths = self.paths_to(name);
        let (Some(node), Some(local)) = (self.nodes.get(name), self.nodes.get(&self.config.node)) else {
            return out;
        };
        let ways = self.ways_to(node);
        let path_of = |family| paths.iter().find(|(is_v4, ..)| *is_v4 == family);
        for WayTo { range, encapsulation, is_v4 } in &ways {
            let Some((_, vtep, next_hop)) = path_of(*is_v4).copied() else { continue };
            if *encapsulation == Encapsulation::Direct && self.config.direct_routes == DirectRoutes::Kernel {
                continue;
            }
            let (kind, addr, port) = match encapsulation {
                Encapsulation::Direct => (NextHopKind::Gateway, next_hop.unwrap_or(vtep), UPLINK_PORT),
                Encapsulation::Vxlan | Encapsulation::FlannelVxlan { .. } => {
                    (NextHopKind::Tunnel, vtep, PortId::NONE)
                }
                Encapsulation::Ipip => (NextHopKind::Ipip, vtep, PortId::NONE),
                Encapsulation::Udp { .. } => (NextHopKind::UdpTunnel, vtep, PortId::NONE),
            };
            out.insert(Key::Route(*range), Value::Route(NextHop::new(kind, addr, port)));
        }
        let all: Vec<WayTo> = ways.into_iter().chain(self.ways_from(node)).collect();
        let first = node.underlay().next().unwrap_or(Ip::UNSPECIFIED);
        for (is_v4, vtep, next_hop) in paths {
            let Some(next_hop) = next_hop else { continue };
            self.compile_path(&mut out, (local, node), &all, (is_v4, vtep, next_hop), first);
        }
        out
    }

    /// What leads to a remote node by one family: the route to its address there, and its tunnel.
    fn compile_path(
        &self,
        out: &mut Contribution,
        (local, node): (&Node, &Node),
        ways: &[WayTo],
        (is_v4, vtep, next_hop): (bool, Ip, Ip),
        first: Ip,
    ) {
        // A node itself sees this node's address instead of pods'.
        if self.masquerades(local, is_v4) {
            let hop = NextHop::new(NextHopKind::Gateway, next_hop, UPLINK_PORT);
            out.insert(Key::Route(Prefix::host(vtep)), Value::Route(hop));
        }
        let ways = ways.iter().filter(|way| way.is_v4 == is_v4).map(|way| way.encapsulation);
        let mut tunnels = ways.filter(|encapsulation| *encapsulation != Encapsulation::Direct).peekable();
        let dsr = self.uses_dsr();
        if tunnels.peek().is_none() && !dsr {
            return;
        }
        // A node whose ranges are in two VXLAN networks is reached through the first; `pending` says so.
        let vxlan = tunnels.find(|encapsulation| encapsulation.is_vxlan());
        // Services with DSR need one where pods do not.
        let vxlan = vxlan.or_else(|| dsr.then(|| self.dsr_vxlan(node)));
        let (vni, udp_port) = vxlan.and_then(|way| way.vxlan(self.own_vxlan())).unwrap_or_default();
        let is_flannel = matches!(vxlan, Some(Encapsulation::FlannelVxlan { .. }));
        let tunnel = tables::Tunnel {
            local: underlay_of(local, is_v4).unwrap_or(Ip::UNSPECIFIED),
            node: first,
            next_hop,
            vni,
            udp_port,
            port: UPLINK_PORT,
            remote_mac: vtep_mac(node, is_flannel, is_v4),
            local_mac: vtep_mac(local, is_flannel, is_v4),
            node_ports: node_ports_at(node, true).unwrap_or(Ip::UNSPECIFIED),
            node_ports6: node_ports_at(node, false).unwrap_or(Ip::UNSPECIFIED),
        };
        out.insert(Key::Tunnel(vtep), Value::Tunnel(tunnel));
    }

    /// The ranges of pods: an address of theirs that no node has is nobody's, and must not leave the cluster.
    fn compile_pools(&self) -> Contribution {
        let pools = self.pools.values().filter(|pool| !pool.disabled);
        let cidrs = pools.flat_map(|pool| &pool.cidrs);
        cidrs.map(|cidr| (Key::Route(*cidr), route(NextHopKind::Unreachable, Ip::UNSPECIFIED))).collect()
    }

    /// A neighbour on an uplink that some tunnel or route leads through.
    fn compile_next_hop(&self, ifindex: u32, ip: Ip) -> Contribution {
        let Some(port) = self.uplink_port(ifindex) else { return Contribution::new() };
        let mac = self.facts.neighbours.get(&(ifindex, ip)).filter(|_| self.is_next_hop(ifindex, ip));
        let key = NeighbourKey { ip, port, reserved: 0 };
        let value = |mac: &tables::Mac| Value::Neighbour(tables::Neighbour { mac: *mac, reserved: 0 });
        mac.map(|mac| (Key::Neighbour(key), value(mac))).into_iter().collect()
    }

    /// A pod of this node whose veth is there: its port and its addresses.
    fn compile_pod(&mut self, key: &(String, String)) -> Contribution {
        let mut out = Contribution::new();
        let Some(pod) = self.pods.get(key).filter(|p| self.is_local(p) && !p.ips.is_empty()) else {
            return out;
        };
        let veth = names::host_veth(&pod.namespace, &pod.name);
        let Some(link) = self.facts.link_named(&veth) else { return out };
        let record = tables::Port::new(&veth, PortKind::Pod, link.mtu, link.mac, tables::Mac::ZERO);
        let Some(number) = self.port_ids.claim(&veth) else {
            self.waiting_for_port.insert(key.clone());
            return out;
        };
        let Some(record) = record else { return out };
        let port = PortId(number as u16);
        out.insert(Key::Port(port), Value::Port(record));
        // One interface, one Ethernet address: that of the pod's first address.
        let mac = names::pod_mac(pod.ips[0]);
        for ip in &pod.ips {
            let uplink = self.endpoint_uplink(*ip);
            out.insert(Key::Endpoint(*ip), Value::Endpoint(tables::Endpoint { port, uplink, mac }));
            if uplink != PortId::NONE {
                out.insert(Key::Route(Prefix::host(*ip)), route(NextHopKind::Local, Ip::UNSPECIFIED));
            }
        }
        out
    }

    /// Whether the pod runs here and needs a port.
    pub(super) fn is_local(&self, pod: &Pod) -> bool {
        pod.node == self.config.node && pod.has_network()
    }
}
