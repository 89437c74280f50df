//! Where a packet leaves, and what goes in front of it: longest prefix match, then pod, tunnel or neighbour.

use super::connection::Bound;
use crate::flow::{Binding, Template, TemplateKey};
use crate::parse::Ingress;
use crate::wire::over_ipv6::{self, Outer6};
use crate::wire::{ETH_LEN, ipip, udp_tunnel, vxlan};
use fairway_tables::{DropReason, Ip, NextHop, NextHopKind, Port, PortId, PortKind, Settings, Tunnel, View};

/// A resolved way out.
pub(crate) struct Way {
    /// Output port.
    pub(crate) port: PortId,
    /// Largest IP packet that it takes, encapsulation considered.
    pub(crate) mtu: u32,
    /// What leads there.
    pub(crate) key: TemplateKey,
    /// The bytes to put in front.
    pub(crate) template: Template,
    /// Which encapsulation they are: the flag of a flow entry, or 0.
    pub(crate) encapsulation: u32,
}

/// The way out of packets of a connection. One that is left to another node has its own. Where a route has several next hops, the tuple with which they leave chooses;
/// what a pod whose address belongs to an uplink sends out of the node without encapsulation leaves there, whatever the
/// route says.
pub(super) fn resolve(tables: View<'_>, ingress: &Ingress, bound: &Bound) -> Result<Way, DropReason> {
    let leaves = &bound.leaves;
    let dst = leaves.dst;
    if let Some(via) = bound.via {
        let kind = via.kind().filter(|kind| kind.is_tunnel()).ok_or(DropReason::NoTunnel)?;
        return tunnel(tables, &tables.settings(), via.addr, kind);
    }
    let hop = tables.route_for(dst, leaves.path_hash()).ok_or(DropReason::NoRoute)?;
    let settings = tables.settings();
    let kind = hop.kind().ok_or(DropReason::NoRoute)?;
    if let Some(uplink) = bound_uplink(tables, ingress, leaves.src)
        && leaves_the_node(kind, &settings, dst)
    {
        let gateway = open_port(tables, uplink)?.gateway_for(dst.is_v4()).ok_or(DropReason::NoRoute)?;
        return neighbour(tables, uplink, gateway);
    }
    match kind {
        NextHopKind::Local => local(tables, &settings, dst),
        NextHopKind::Tunnel | NextHopKind::Ipip | NextHopKind::UdpTunnel => {
            tunnel(tables, &settings, hop.addr, kind)
        }
        NextHopKind::Gateway => gateway(tables, &hop, dst),
        NextHopKind::Host => host(tables, &settings, ingress, bound),
        NextHopKind::Blackhole => Err(DropReason::Blackhole),
        NextHopKind::Unreachable => Err(DropReason::Unreachable),
    }
}

/// The uplink that a pod's address belongs to.
fn bound_uplink(tables: View<'_>, ingress: &Ingress, src: Ip) -> Option<PortId> {
    tables.endpoint(src).filter(|_| ingress.kind == PortKind::Pod)?.bound_to()
}

/// Whether packets leave the node without encapsulation, where the table sends them so. What it leaves to the node's own
/// stack does, but for the node's addresses and link-local ones (RFC 3927), which are of this node alone.
fn leaves_the_node(kind: NextHopKind, settings: &Settings, dst: Ip) -> bool {
    let link_local = dst.as_v4().is_some_and(|octets| octets[..2] == [169, 254]);
    let Settings { node_ip, node_ip6, router_ip, router_ip6, .. } = *settings;
    let Settings { outside_ip, outside_ip6, host_ip, host_ip6, .. } = *settings;
    let own = [node_ip, node_ip6, router_ip, router_ip6, outside_ip, outside_ip6, host_ip, host_ip6];
    let own = own.contains(&dst) || link_local;
    kind == NextHopKind::Gateway || kind == NextHopKind::Host && !own
}

fn open_port(tables: View<'_>, port: PortId) -> Result<Port, DropReason> {
    tables.port(port).ok_or(DropReason::PortDown)
}

fn local(tables: View<'_>, settings: &Settings, dst: Ip) -> Result<Way, DropReason> {
    let endpoint = tables.endpoint(dst).ok_or(DropReason::NoEndpoint)?;
    let port = open_port(tables, endpoint.port)?;
    Ok(Way {
        port: endpoint.port,
        mtu: port.mtu,
        key: TemplateKey::Pod(dst),
        template: Template::ethernet(endpoint.mac, settings.gateway_mac),
        encapsulation: 0,
    })
}

fn tunnel(tables: View<'_>, settings: &Settings, node: Ip, kind: NextHopKind) -> Result<Way, DropReason> {
    let tunnel = tables.tunnel(node).ok_or(DropReason::NoTunnel)?;
    let port = open_port(tables, tunnel.port)?;
    let neighbour = tables.neighbour(tunnel.next_hop, tunnel.port).ok_or(DropReason::NoNeighbour)?;
    let (src_mac, dst_mac, udp_port) = (port.mac, neighbour.mac, settings.udp_tunnel_port);
    let (encapsulation, overhead, template) = match (tunnel.local.as_v4(), node.as_v4()) {
        (Some(local), Some(remote)) => {
            over_ipv4(&ipip::Outer { src_mac, dst_mac, local, remote }, &tunnel, kind, udp_port)
        }
        (None, None) => {
            let outer = Outer6 { src_mac, dst_mac, local: tunnel.local.0, remote: node.0 };
            over_ipv6(&outer, &tunnel, kind, udp_port)
        }
        _ => return Err(DropReason::NoTunnel),
    };
    Ok(Way {
        port: tunnel.port,
        mtu: port.mtu.saturating_sub(overhead as u32),
        key: TemplateKey::Node(node, kind),
        template,
        encapsulation,
    })
}

/// The flag of a flow entry, the bytes added and what they are.
type Encapsulation = (u32, usize, Template);

fn over_ipv4(outer: &ipip::Outer, tunnel: &Tunnel, kind: NextHopKind, udp_port: u16) -> Encapsulation {
    match kind {
        NextHopKind::Ipip => (Binding::IPIP, ipip::OVERHEAD, Template::ipip(outer)),
        NextHopKind::UdpTunnel => {
            (Binding::UDP_TUNNEL, udp_tunnel::OVERHEAD, Template::udp_tunnel(outer, udp_port))
        }
        _ => (Binding::VXLAN, vxlan::OVERHEAD, Template::vxlan(&vxlan_encap(outer, tunnel))),
    }
}

fn over_ipv6(outer: &Outer6, tunnel: &Tunnel, kind: NextHopKind, udp_port: u16) -> Encapsulation {
    let (flag, header_len, template) = match kind {
        NextHopKind::Ipip => (Binding::IPIP, over_ipv6::IP_HEADER_LEN, Template::ip_in_ipv6(outer)),
        NextHopKind::UdpTunnel => {
            (Binding::UDP_TUNNEL, over_ipv6::UDP_HEADER_LEN, Template::udp_over_ipv6(outer, udp_port))
        }
        _ => {
            let network = over_ipv6::Vxlan {
                udp_port: tunnel.udp_port,
                vni: tunnel.vni,
                inner_src_mac: tunnel.local_mac,
                inner_dst_mac: tunnel.remote_mac,
            };
            (Binding::VXLAN, over_ipv6::VXLAN_HEADER_LEN, Template::vxlan_over_ipv6(outer, &network))
        }
    };
    (flag | Binding::OVER_IPV6, header_len - ETH_LEN, template)
}

fn vxlan_encap(outer: &ipip::Outer, tunnel: &Tunnel) -> vxlan::Encap {
    vxlan::Encap {
        outer_src_mac: outer.src_mac,
        outer_dst_mac: outer.dst_mac,
        local: outer.local,
        remote: outer.remote,
        udp_port: tunnel.udp_port,
        vni: tunnel.vni,
        inner_src_mac: tunnel.local_mac,
        inner_dst_mac: tunnel.remote_mac,
    }
}

fn gateway(tables: View<'_>, hop: &NextHop, dst: Ip) -> Result<Way, DropReason> {
    neighbour(tables, hop.port, if hop.addr == Ip::UNSPECIFIED { dst } else { hop.addr })
}

fn neighbour(tables: View<'_>, id: PortId, next: Ip) -> Result<Way, DropReason> {
    let port = open_port(tables, id)?;
    let neighbour = tables.neighbour(next, id).ok_or(DropReason::NoNeighbour)?;
    Ok(Way {
        port: id,
        mtu: port.mtu,
        key: TemplateKey::Neighbour(next, id),
        template: Template::ethernet(neighbour.mac, port.mac),
        encapsulation: 0,
    })
}

/// To the node's own stack; what came from there is not sent back as it is, since it would come again.
fn host(tables: View<'_>, settings: &Settings, ingress: &Ingress, bound: &Bound) -> Result<Way, DropReason> {
    if ingress.kind == PortKind::Host && bound.leaves == bound.arrives {
        return Err(DropReason::NoRoute);
    }
    let port = open_port(tables, settings.host)?;
    Ok(Way {
        port: settings.host,
        mtu: port.mtu,
        key: TemplateKey::Host,
        template: Template::ethernet(port.peer_mac, settings.gateway_mac),
        encapsulation: 0,
    })
}
