//! The node's own network: the veth pair through which the node itself reaches pods and services, its
//! address, and the kernel's routes into it. Everything here is done again and again until it is so; what is
//! already right is left alone.

use super::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL};
use super::offload::{self, OffloadError};
use super::read;
use super::sysctl::{loose_or_off, sysctl};
use crate::index::{Facts, Hop, HostPlan, KernelEvent, is_link_local};
use crate::names::{GATEWAY_IP6, GATEWAY_MAC, HOST_ENGINE_IF, HOST_KERNEL_IF, HOST_NEXT_HOP};
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use std::collections::BTreeMap;

/// The node's own network cannot be made as it should be.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Checksum or segmentation offload stays on.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// Only one end of the pair is there.
    #[error(
        "{present} exists without {missing}; remove it (ip link del {present}), fairway-control makes both anew"
    )]
    HalfPair {
        /// The end that is there.
        present: &'static str,
        /// The end that is not.
        missing: &'static str,
    },
}

fn links(netlink: &mut Netlink) -> Result<Facts, PrepareError> {
    Ok(read::listing(&netlink.links()?).0)
}

fn ends(facts: &Facts) -> (Option<u32>, Option<u32>) {
    let end = |name| facts.link_named(name).map(|link| link.ifindex);
    (end(HOST_KERNEL_IF), end(HOST_ENGINE_IF))
}

/// Creates the pair if it is not there, turns off what AF_XDP cannot carry, and sets both ends up; with this
/// MTU, or the one that they have.
pub fn ensure_pair(mtu: Option<u32>) -> Result<(), PrepareError> {
    let mut netlink = Netlink::open()?;
    let mut facts = links(&mut netlink)?;
    if ends(&facts) == (None, None) {
        netlink.create_veth(HOST_KERNEL_IF, HOST_ENGINE_IF)?;
        // Without addresses of their own the ends have nothing to say by themselves.
        sysctl("ipv6", HOST_KERNEL_IF, "disable_ipv6", "1");
        sysctl("ipv6", HOST_ENGINE_IF, "disable_ipv6", "1");
        facts = links(&mut netlink)?;
    }
    let (kernel, engine) = match ends(&facts) {
        (Some(kernel), Some(engine)) => (kernel, engine),
        (Some(_), None) => {
            return Err(PrepareError::HalfPair { present: HOST_KERNEL_IF, missing: HOST_ENGINE_IF });
        }
        _ => return Err(PrepareError::HalfPair { present: HOST_ENGINE_IF, missing: HOST_KERNEL_IF }),
    };
    // A packet crosses with the checksum and length that it has: no device behind it completes either.
    offload::turn_off(HOST_KERNEL_IF)?;
    sysctl("ipv4", HOST_KERNEL_IF, "rp_filter", loose_or_off());
    // Answers of node ports and of masqueraded connections come from the engine with the node's own address.
    sysctl("ipv4", HOST_KERNEL_IF, "accept_local", "1");
    // The kernel itself takes what is sent to the gateway's address as long as the engine does not.
    if facts.links.get(&engine).is_some_and(|link| link.mac != GATEWAY_MAC) {
        netlink.set_mac(engine, GATEWAY_MAC)?;
    }
    for ifindex in [kernel, engine] {
        let own = facts.links.get(&ifindex).map_or(0, |link| link.mtu);
        netlink.set_link(ifindex, mtu.unwrap_or(own))?;
    }
    Ok(())
}

/// Brings addresses and routes of the pair in line with the plan.
pub fn reconcile(plan: &HostPlan) -> Result<(), PrepareError> {
    ensure_pair(Some(plan.mtu))?;
    let mut netlink = Netlink::open()?;
    let (Some(ifindex), _) = ends(&links(&mut netlink)?) else { return Ok(()) };
    let listed = netlink.addresses()?.into_iter().flat_map(|m| read::meaning(&m, 0).events);
    let have: Vec<Ip> = listed
        .filter_map(|event| match event {
            KernelEvent::Address(i, ip) if i == ifindex && !is_link_local(ip) => Some(ip),
            _ => None,
        })
        .collect();
    if plan.addresses.iter().any(|ip| !ip.is_v4()) {
        sysctl("ipv6", HOST_KERNEL_IF, "disable_ipv6", "0");
    }
    for ip in plan.addresses.iter().filter(|ip| !have.contains(ip)) {
        netlink.set_address(ifindex, *ip, true)?;
    }
    for next_hop in plan.addresses.iter().map(|ip| next_hop(*ip)) {
        if neighbour_on(&mut netlink, ifindex, next_hop)? != Some(GATEWAY_MAC) {
            netlink.set_neighbour(ifindex, next_hop, GATEWAY_MAC)?;
        }
    }
    let routes = our_routes(&mut netlink, ifindex)?;
    for prefix in routes.keys().filter(|prefix| !plan.routes.contains_key(prefix)) {
        netlink.delete_route(*prefix, ifindex)?;
    }
    // One route that the kernel refuses must not keep the others out.
    let mut first_error = None;
    for (prefix, source) in &plan.routes {
        let via = Hop { ifindex, gateway: Some(next_hop(prefix.addr())), weight: 1 };
        if routes.get(prefix) == Some(&(via, Some(*source))) {
            continue;
        }
        let result = netlink.add_route(*prefix, via, *source, routes.contains_key(prefix));
        first_error = first_error.or(result.err());
    }
    // Addresses last: the kernel drops routes with their source.
    for ip in have.iter().filter(|ip| !plan.addresses.contains(ip)) {
        netlink.set_address(ifindex, *ip, false)?;
    }
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// Removes the pair, and with it everything that leads there.
pub fn cleanup() -> Result<(), PrepareError> {
    let mut netlink = Netlink::open()?;
    let (kernel, engine) = ends(&links(&mut netlink)?);
    if let Some(ifindex) = kernel.or(engine) {
        netlink.delete_link(ifindex)?;
    }
    Ok(())
}

/// The next hop of our routes of an address's family.
fn next_hop(of: Ip) -> Ip {
    if of.is_v4() { HOST_NEXT_HOP } else { GATEWAY_IP6 }
}

/// The address that the kernel has for good for a next hop of our routes.
fn neighbour_on(netlink: &mut Netlink, ifindex: u32, next_hop: Ip) -> Result<Option<Mac>, PrepareError> {
    let listed = netlink.neighbours()?;
    let found = listed.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(m)
            if m.header.ifindex == ifindex && m.header.state == NeighbourState::Permanent =>
        {
            read::neighbour(m).filter(|(ip, _)| *ip == next_hop)
        }
        _ => None,
    });
    Ok(found.and_then(|(_, mac)| mac))
}

/// Next hop and source address of a route.
type Origin = (Hop, Option<Ip>);

fn our_routes(netlink: &mut Netlink, ifindex: u32) -> Result<BTreeMap<Prefix, Origin>, PrepareError> {
    let messages = netlink.routes()?;
    let routes = messages.iter().filter_map(|m| match m {
        RouteNetlinkMessage::NewRoute(m) => read::route_origin(m),
        _ => None,
    });
    let ours = routes.filter(|(_, via, protocol, _)| via.ifindex == ifindex && *protocol == ROUTE_PROTOCOL);
    Ok(ours.map(|(prefix, via, _, source)| (prefix, (via, source))).collect())
}
