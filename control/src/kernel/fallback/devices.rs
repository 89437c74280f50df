//! The kernel's tunnel devices: one for each VXLAN network and family, one for IPIP. They are Fairway's by their names.

use super::FallbackError;
use super::state::{Device, Identity, State};
use crate::index::FallbackPlan;
use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl::{forward_ipv6, loose_or_off, sysctl};
use crate::names::{
    FALLBACK_FLANNEL_IF, FALLBACK_FLANNEL6_IF, FALLBACK_IPIP_IF, FALLBACK_VXLAN_IF, FALLBACK_VXLAN6_IF,
};
use fairway_tables::Mac;
use std::collections::BTreeMap;

/// The names of all.
pub(super) const NAMES: [&str; 5] =
    [FALLBACK_VXLAN_IF, FALLBACK_FLANNEL_IF, FALLBACK_VXLAN6_IF, FALLBACK_FLANNEL6_IF, FALLBACK_IPIP_IF];

/// What a device should be, and its Ethernet address if it has one.
type Wanted = (Identity, Option<Mac>);

fn wanted(plan: &FallbackPlan) -> BTreeMap<&'static str, Wanted> {
    let vxlans = plan.vxlans.iter().map(|vxlan| {
        let identity = Identity::Vxlan { vni: vxlan.vni, port: vxlan.port, local: Some(vxlan.local) };
        (vxlan.ifname, (identity, Some(vxlan.mac)))
    });
    let ipip = plan.ipip.map(|local| (FALLBACK_IPIP_IF, (Identity::Ipip { local: Some(local) }, None)));
    vxlans.chain(ipip).collect()
}

/// Makes the devices of the plan as they should be, and removes those that no way leads through any more. Returns their
/// numbers.
pub(super) fn ensure(
    netlink: &mut Netlink,
    state: &mut State,
    plan: &FallbackPlan,
    keep_others: bool,
    errors: &mut Vec<FallbackError>,
) -> BTreeMap<&'static str, u32> {
    let wanted = wanted(plan);
    let mut out = BTreeMap::new();
    for name in NAMES {
        if let Some(device) = wanted.get(name) {
            match ensure_one(netlink, state, name, *device, plan) {
                Ok(ifindex) => drop(out.insert(name, ifindex)),
                Err(error) => errors.push(error),
            }
        } else if let (Some(unused), Some(_), false) = (state.device(name), plan.uplink, keep_others)
            && unused.identity.is_some()
        {
            errors.extend(netlink.delete_link(unused.ifindex).err().map(FallbackError::from));
        }
    }
    out
}

fn ensure_one(
    netlink: &mut Netlink,
    state: &mut State,
    name: &'static str,
    (identity, mac): Wanted,
    plan: &FallbackPlan,
) -> Result<u32, FallbackError> {
    let refused = |error, state: &State| explain(error, state, name, identity);
    if let Some(device) = state.device(name) {
        if device.identity.is_none() {
            return Err(FallbackError::NotOurs { name });
        }
        // What a tunnel device is cannot be changed.
        if device.identity != Some(identity) {
            netlink.delete_link(device.ifindex)?;
            *state = State::read(netlink)?;
        }
    }
    if state.device(name).is_none() {
        netlink.create_tunnel(name, identity, mac, plan.mtu).map_err(|error| refused(error, state))?;
        *state = State::read(netlink)?;
    }
    let Some(device) = state.device(name).cloned() else {
        return Err(FallbackError::NoTunnel(identity.kind()));
    };
    // It has no address of its own and nothing to say by itself.
    sysctl("ipv6", name, "addr_gen_mode", "1");
    if plan.ipv6 {
        forward_ipv6(name);
    } else {
        sysctl("ipv6", name, "disable_ipv6", "1");
    }
    if let Some(mac) = mac.filter(|mac| device.mac != *mac) {
        netlink.set_mac(device.ifindex, mac)?;
    }
    if device.mtu != plan.mtu || !device.is_up {
        netlink.set_link(device.ifindex, plan.mtu).map_err(|error| refused(error, state))?;
    }
    sysctl("ipv4", name, "forwarding", "1");
    sysctl("ipv4", name, "rp_filter", loose_or_off());
    Ok(device.ifindex)
}

/// Says what a refusal to have the device means.
fn explain(
    error: crate::kernel::NetlinkError,
    state: &State,
    name: &'static str,
    identity: Identity,
) -> FallbackError {
    match error.error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => FallbackError::NoTunnel(identity.kind()),
        Some(libc::EEXIST | libc::EADDRINUSE) => {
            let is_rival = |device: &&Device| {
                device.name != name && device.identity.is_some_and(|other| other.excludes(identity))
            };
            match state.devices.iter().find(is_rival) {
                Some(rival) => FallbackError::Taken { device: rival.name.clone(), identity },
                None => error.into(),
            }
        }
        _ => error.into(),
    }
}
