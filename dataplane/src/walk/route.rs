//! Where a packet leaves, and what goes in front of it: longest prefix match, then pod, tunnel or neighbour.

use crate::flow::{Template, TemplateKey};
use crate::parse::Ingress;
use crate::wire::vxlan;
use fairway_tables::{DropReason, Ip, NextHop, NextHopKind, Port, PortId, PortKind, Settings, View};

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
    /// Whether they are an encapsulation.
    pub(crate) encapsulates: bool,
}

pub(super) fn resolve(tables: View<'_>, ingress: &Ingress, dst: Ip) -> Result<Way, DropReason> {
    let hop = tables.route(dst).ok_or(DropReason::NoRoute)?;
    let settings = tables.settings();
    match hop.kind().ok_or(DropReason::NoRoute)? {
        NextHopKind::Local => local(tables, &settings, dst),
        NextHopKind::Tunnel => tunnel(tables, hop.addr),
        NextHopKind::Gateway => gateway(tables, &hop, dst),
        NextHopKind::Host => host(tables, &settings, ingress),
        NextHopKind::Blackhole => Err(DropReason::Blackhole),
    }
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
        encapsulates: false,
    })
}

fn tunnel(tables: View<'_>, node: Ip) -> Result<Way, DropReason> {
    let tunnel = tables.tunnel(node).ok_or(DropReason::NoTunnel)?;
    let port = open_port(tables, tunnel.port)?;
    let neighbour = tables.neighbour(tunnel.next_hop, tunnel.port).ok_or(DropReason::NoNeighbour)?;
    let (Some(local), Some(remote)) = (tunnel.local.as_v4(), node.as_v4()) else {
        return Err(DropReason::NoTunnel);
    };
    let encap = vxlan::Encap {
        outer_src_mac: port.mac,
        outer_dst_mac: neighbour.mac,
        local,
        remote,
        udp_port: tunnel.udp_port,
        vni: tunnel.vni,
        inner_src_mac: tunnel.local_mac,
        inner_dst_mac: tunnel.remote_mac,
    };
    Ok(Way {
        port: tunnel.port,
        mtu: port.mtu.saturating_sub(vxlan::OVERHEAD as u32),
        key: TemplateKey::Node(node),
        template: Template::vxlan(&encap),
        encapsulates: true,
    })
}

fn gateway(tables: View<'_>, hop: &NextHop, dst: Ip) -> Result<Way, DropReason> {
    let port = open_port(tables, hop.port)?;
    let next = if hop.addr == Ip::UNSPECIFIED { dst } else { hop.addr };
    let neighbour = tables.neighbour(next, hop.port).ok_or(DropReason::NoNeighbour)?;
    Ok(Way {
        port: hop.port,
        mtu: port.mtu,
        key: TemplateKey::Neighbour(next, hop.port),
        template: Template::ethernet(neighbour.mac, port.mac),
        encapsulates: false,
    })
}

/// To the node's own stack; what came from there is not sent back, since it would come again.
fn host(tables: View<'_>, settings: &Settings, ingress: &Ingress) -> Result<Way, DropReason> {
    if ingress.kind == PortKind::Host {
        return Err(DropReason::NoRoute);
    }
    let port = open_port(tables, settings.host)?;
    Ok(Way {
        port: settings.host,
        mtu: port.mtu,
        key: TemplateKey::Host,
        template: Template::ethernet(port.peer_mac, settings.gateway_mac),
        encapsulates: false,
    })
}
