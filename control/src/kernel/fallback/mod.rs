//! The kernel's own path for pod traffic, made ready while the engine runs and used when it does not: nothing has to be
//! switched over, because the steering program is gone with the engine (docs/fallback.md).
//!
//! ```text
//!  pod's veth ──> main table: pod ranges, services ──> fwhost0 ──> fwhost1 ──> table 7070 ──> pod's veth
//!  (the gateway's Ethernet address)                   (the engine's end of the pair) └─────> fairway.vxlan
//! ```
//! Brought in line by difference, again and again. What others made is not touched.

mod answers;
mod devices;
mod guard;
mod requests;
mod state;

pub use state::{Identity, TABLE};

use super::netlink::{Netlink, NetlinkError};
use super::sysctl::{answer_arp, answers_arp, forward_ipv6, loose_or_off, may_forward_ipv6, reset, sysctl};
use crate::index::{FallbackPlan, Guarded, Way};
use crate::names::{
    FALLBACK_IPIP_IF, GATEWAY_IP6, GATEWAY_MAC, HOST_ENGINE_IF, HOST_KERNEL_IF, is_host_veth, link_local,
};
use fairway_tables::{Ip, Mac, Prefix};
use netlink_packet_route::AddressFamily;
use state::{Device, Hop, State};
use std::collections::{BTreeMap, BTreeSet};

/// A part of the fallback cannot be made; the rest is.
#[derive(Debug, thiserror::Error)]
pub enum FallbackError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel has no such tunnel device.
    #[error(
        "this kernel has no {0} devices, so no traffic to the nodes that are reached by {0} while the engine is not running; \
         load the module {0}"
    )]
    NoTunnel(&'static str),
    /// Another tunnel device has our network.
    #[error(
        "device {device} has {identity} already, so no traffic to the nodes that are reached by it while the engine is not \
         running; remove it (ip link del {device}), or have Fairway use another VNI and port"
    )]
    Taken {
        /// That device.
        device: String,
        /// What both would be.
        identity: Identity,
    },
    /// Some other kind of device has our name.
    #[error("{name} exists and is no device of Fairway's; rename or remove it")]
    NotOurs {
        /// The name.
        name: &'static str,
    },
    /// Replies of services cannot be told apart.
    #[error(
        "{0}; without the filter the kernel would have clients end their connections through services, so it carries \
         nothing while the engine is not running; load the modules sch_ingress and cls_bpf"
    )]
    Guard(NetlinkError),
    /// Answers to translated connections cannot be told apart.
    #[error(
        "{0}; without the filter the node's own stack resets connections through it, of pods to the outside and to node \
         ports, that have packets on their way when the engine dies; load the modules sch_ingress and cls_bpf"
    )]
    Answers(NetlinkError),
    /// The host veth pair is not there.
    #[error("{HOST_ENGINE_IF} is not there; the host network must be made first")]
    NoHostPair,
    /// The kernel forwards IPv6 on all devices or on none, and on none here.
    #[error(
        "this node does not forward IPv6, so no IPv6 traffic while the engine is not running; set \
         net.ipv6.conf.all.forwarding=1 (and accept_ra=2 on devices that get their routes by router advertisements)"
    )]
    NoIpv6Forwarding,
}

/// How the fallback is brought in line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mode {
    /// Senders to addresses that nobody has, services among them, are told; else their packets just vanish.
    pub refuse: bool,
    /// Some objects cannot be read now: what is there from before stays.
    pub keep_others: bool,
}

/// What came of bringing the kernel in line.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything that could not be done.
    pub errors: Vec<FallbackError>,
    /// Pod ranges of other nodes that the kernel does not reach.
    pub not_carried: BTreeSet<Prefix>,
}

/// Brings the kernel in line with the plan.
pub fn reconcile(plan: &FallbackPlan, mode: Mode) -> Outcome {
    let mut outcome = Outcome { errors: Vec::new(), not_carried: plan.not_carried.clone() };
    if let Err(error) = try_reconcile(plan, mode, &mut outcome) {
        outcome.errors.push(error.into());
    }
    outcome
}

fn try_reconcile(plan: &FallbackPlan, mode: Mode, outcome: &mut Outcome) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut state = State::read(&mut netlink)?;
    if plan.ipv6 && !may_forward_ipv6() {
        outcome.errors.push(FallbackError::NoIpv6Forwarding);
    }
    let devices = devices::ensure(&mut netlink, &mut state, plan, mode.keep_others, &mut outcome.errors);
    let mut work = Work { netlink, state, mode, errors: &mut outcome.errors };
    let nothing = FallbackPlan { ipv6: plan.ipv6, ..FallbackPlan::default() };
    let allowed = if work.entrance(plan.ipv6) { plan } else { &nothing };
    work.guard_uplinks(&plan.guarded);
    work.pods(plan);
    work.vxlan_peers(plan, &devices);
    let routed = work.routes(allowed, &devices);
    outcome.not_carried.extend(plan.ranges.keys().filter(|range| !routed.contains(range)));
    Ok(())
}

/// The neighbour through which a way by VXLAN leads, of the range's family: the other node itself, or where that is reached
/// by IPv6 the first address of the range, which no pod has; for IPv6 the address that follows from the node's VTEP's.
fn vxlan_neighbour(range: &Prefix, node: Ip, vtep_mac: Mac) -> Ip {
    match (range.addr().is_v4(), node.is_v4()) {
        (true, true) => node,
        (true, false) => range.addr(),
        (false, _) => link_local(vtep_mac),
    }
}

struct Work<'a> {
    netlink: Netlink,
    state: State,
    mode: Mode,
    errors: &'a mut Vec<FallbackError>,
}

impl Work<'_> {
    /// One thing that the kernel refuses must not keep the others from being done. The first few tell enough.
    fn note(&mut self, result: Result<(), NetlinkError>) {
        const TOLD: usize = 4;
        if let Err(error) = result
            && self.errors.len() < TOLD
        {
            self.errors.push(error.into());
        }
    }

    /// What the kernel finds on the engine's end of the host pair goes by the fallback's table. Whether what must
    /// not is kept out.
    fn entrance(&mut self, ipv6: bool) -> bool {
        let Some(ifindex) = self.state.device(HOST_ENGINE_IF).map(|device| device.ifindex) else {
            self.errors.push(FallbackError::NoHostPair);
            return false;
        };
        let guard = self.netlink.drop_resets(ifindex).map_err(FallbackError::Guard);
        sysctl("ipv4", HOST_ENGINE_IF, "rp_filter", loose_or_off());
        // What the node itself sends comes in here, from its own addresses.
        sysctl("ipv4", HOST_ENGINE_IF, "accept_local", "1");
        sysctl("ipv4", HOST_ENGINE_IF, "forwarding", "1");
        let mut missing = vec![AddressFamily::Inet];
        if ipv6 {
            // The link-local address that its Ethernet address asks for is the pods' gateway.
            sysctl("ipv6", HOST_ENGINE_IF, "addr_gen_mode", "1");
            forward_ipv6(HOST_ENGINE_IF);
            missing.push(AddressFamily::Inet6);
        }
        for rule in std::mem::take(&mut self.state.rules) {
            let place = missing.iter().position(|family| *family == rule.header.family);
            match place.filter(|_| requests::is_wanted(&rule, HOST_ENGINE_IF)) {
                Some(place) => drop(missing.remove(place)),
                None => {
                    let result = self.netlink.delete_rule(rule);
                    self.note(result);
                }
            }
        }
        for family in missing {
            let result = self.netlink.add_rule(family, HOST_ENGINE_IF);
            self.note(result);
        }
        let guarded = guard.is_ok();
        self.errors.extend(guard.err());
        guarded
    }

    /// What comes in from uplinks and only the engine knows is kept from the node's own stack.
    fn guard_uplinks(&mut self, guarded: &Guarded) {
        for ifindex in &guarded.links {
            let result = self.netlink.drop_answers(*ifindex, guarded).map_err(FallbackError::Answers);
            self.errors.extend(result.err());
        }
    }

    /// The host end of each pod's veth is the pod's gateway.
    fn pods(&mut self, plan: &FallbackPlan) {
        let devices: BTreeMap<u32, Device> =
            self.state.devices.iter().map(|device| (device.ifindex, device.clone())).collect();
        let mut wanted: BTreeMap<(u32, Ip), Mac> = BTreeMap::new();
        for (ifindex, pod) in &plan.pods {
            let Some(device) = devices.get(ifindex).filter(|device| device.name == pod.ifname) else {
                continue;
            };
            if device.mac != GATEWAY_MAC {
                if let Err(error) = self.netlink.set_mac(*ifindex, GATEWAY_MAC) {
                    self.note(Err(error));
                    continue;
                }
                // The kernel forgets the device's neighbours when its address changes.
                self.state.neighbours.retain(|(other, _), _| other != ifindex);
            }
            sysctl("ipv4", &pod.ifname, "rp_filter", loose_or_off());
            sysctl("ipv4", &pod.ifname, "forwarding", "1");
            // Last, so that no pod ever learns another Ethernet address for its gateway.
            answer_arp(&pod.ifname);
            if pod.ips.iter().any(|ip| !ip.is_v4()) {
                self.answer_ipv6(*ifindex, &pod.ifname);
            }
            wanted.extend(pod.ips.iter().map(|ip| ((*ifindex, *ip), pod.mac)));
        }
        if !self.mode.keep_others {
            let kept: BTreeSet<u32> = wanted.keys().map(|(ifindex, _)| *ifindex).collect();
            self.release_pods(&kept);
        }
        let is_pod = |ifindex: &u32| devices.get(ifindex).is_some_and(|device| is_host_veth(&device.name));
        self.neighbours(&wanted, is_pod);
    }

    /// The gateway of IPv6 is a link-local address, which the kernel has on this device and answers for on no other.
    fn answer_ipv6(&mut self, ifindex: u32, ifname: &str) {
        forward_ipv6(ifname);
        if !self.state.addresses.contains(&(ifindex, GATEWAY_IP6)) {
            let result = self.netlink.set_address(ifindex, GATEWAY_IP6, true);
            self.note(result);
        }
    }

    /// The veths that are no pod's any more are no gateways either.
    fn release_pods(&mut self, kept: &BTreeSet<u32>) {
        for device in self.state.devices.iter().filter(|device| !kept.contains(&device.ifindex)) {
            if let Err(error) = release_pod(&mut self.netlink, &self.state, device) {
                self.errors.push(error.into());
            }
        }
    }

    fn neighbours(&mut self, wanted: &BTreeMap<(u32, Ip), Mac>, in_charge: impl Fn(&u32) -> bool) {
        let have = self.state.neighbours.clone();
        if !self.mode.keep_others {
            for (ifindex, ip) in have.keys().filter(|key| in_charge(&key.0) && !wanted.contains_key(key)) {
                let result = self.netlink.delete_neighbour(*ifindex, *ip);
                self.note(result);
            }
        }
        for ((ifindex, ip), mac) in wanted.iter().filter(|(key, mac)| have.get(key) != Some(mac)) {
            let result = self.netlink.set_neighbour(*ifindex, *ip, *mac);
            self.note(result);
        }
    }

    /// The other nodes on the VXLAN devices: the VTEP address of each, and where that is.
    fn vxlan_peers(&mut self, plan: &FallbackPlan, devices: &BTreeMap<&'static str, u32>) {
        let mut neighbours: BTreeMap<(u32, Ip), Mac> = BTreeMap::new();
        let mut wanted: BTreeMap<(u32, Mac), Ip> = BTreeMap::new();
        for (range, way) in &plan.ranges {
            let Way::Vxlan { ifname, node, vtep_mac } = way else { continue };
            let Some(device) = devices.get(ifname) else { continue };
            neighbours.insert((*device, vxlan_neighbour(range, *node, *vtep_mac)), *vtep_mac);
            wanted.insert((*device, *vtep_mac), *node);
        }
        let in_charge = |ifindex: &u32| devices.values().any(|device| device == ifindex);
        self.neighbours(&neighbours, in_charge);
        let have = std::mem::take(&mut self.state.fdb);
        if !self.mode.keep_others {
            for (ifindex, mac) in have.keys().filter(|key| in_charge(&key.0) && !wanted.contains_key(key)) {
                let result = self.netlink.delete_fdb(*ifindex, *mac);
                self.note(result);
            }
        }
        for ((ifindex, mac), ip) in wanted.iter().filter(|(key, ip)| have.get(key) != Some(ip)) {
            let result = self.netlink.set_fdb(*ifindex, *mac, *ip);
            self.note(result);
        }
    }

    /// The fallback's table. Returns the prefixes that it has routes for.
    fn routes(&mut self, plan: &FallbackPlan, devices: &BTreeMap<&'static str, u32>) -> BTreeSet<Prefix> {
        let mut wanted = BTreeMap::new();
        // The end of the way, also for what the main table would send round in circles.
        let end = if self.mode.refuse { Hop::Unreachable } else { Hop::Blackhole };
        let families = [true, false].into_iter().filter(|is_v4| *is_v4 || plan.ipv6);
        wanted.extend(families.map(|is_v4| (state::any(is_v4), end)));
        for (range, way) in &plan.ranges {
            let (device, gateway) = match way {
                Way::Vxlan { ifname, node, vtep_mac } => {
                    (devices.get(ifname).copied(), vxlan_neighbour(range, *node, *vtep_mac))
                }
                Way::Ipip(node) => (devices.get(FALLBACK_IPIP_IF).copied(), *node),
                Way::Direct(neighbour) => (plan.uplink, *neighbour),
            };
            wanted.extend(device.map(|ifindex| (*range, Hop::Out { ifindex, gateway: Some(gateway) })));
        }
        for (ifindex, pod) in &plan.pods {
            let out = Hop::Out { ifindex: *ifindex, gateway: None };
            wanted.extend(pod.ips.iter().map(|ip| (Prefix::host(*ip), out)));
        }
        let have = std::mem::take(&mut self.state.routes);
        if !self.mode.keep_others {
            for (prefix, hop) in have.iter().filter(|(prefix, _)| !wanted.contains_key(prefix)) {
                let result = self.netlink.delete_fallback_route(*prefix, *hop);
                self.note(result);
            }
        }
        for (prefix, hop) in wanted.iter().filter(|(prefix, hop)| have.get(prefix) != Some(hop)) {
            let result = self.netlink.set_fallback_route(*prefix, *hop);
            self.note(result);
        }
        wanted.into_keys().collect()
    }
}

/// Removes everything that the fallback consists of. The host ends of pods' veths keep their Ethernet address.
pub fn cleanup() -> Result<(), FallbackError> {
    let mut netlink = Netlink::open()?;
    let state = State::read(&mut netlink)?;
    for rule in &state.rules {
        netlink.delete_rule(rule.clone())?;
    }
    for (prefix, hop) in &state.routes {
        netlink.delete_fallback_route(*prefix, *hop)?;
    }
    for device in devices::NAMES.iter().filter_map(|name| state.device(name)) {
        if device.identity.is_some() {
            netlink.delete_link(device.ifindex)?;
        }
    }
    for device in state.devices.iter().filter(|device| is_host_veth(&device.name)) {
        for (ifindex, ip) in state.neighbours.keys().filter(|(ifindex, _)| *ifindex == device.ifindex) {
            netlink.delete_neighbour(*ifindex, *ip)?;
        }
        release_pod(&mut netlink, &state, device)?;
    }
    if state.device(HOST_ENGINE_IF).is_some() {
        ["forwarding", "accept_local", "rp_filter"]
            .iter()
            .for_each(|name| reset("ipv4", HOST_ENGINE_IF, name));
        ["forwarding", "force_forwarding"].iter().for_each(|name| reset("ipv6", HOST_ENGINE_IF, name));
        sysctl("ipv6", HOST_ENGINE_IF, "disable_ipv6", "1");
    }
    // Those of uplinks too, whichever devices these were.
    for device in state.devices.iter().filter(|device| !is_host_veth(&device.name)) {
        netlink.remove_guard(device.ifindex)?;
    }
    Ok(())
}

fn release_pod(netlink: &mut Netlink, state: &State, device: &Device) -> Result<(), NetlinkError> {
    if !is_host_veth(&device.name) {
        return Ok(());
    }
    if answers_arp(&device.name) {
        ["proxy_arp", "forwarding", "rp_filter"].iter().for_each(|name| reset("ipv4", &device.name, name));
    }
    if state.addresses.contains(&(device.ifindex, GATEWAY_IP6)) {
        netlink.set_address(device.ifindex, GATEWAY_IP6, false)?;
        ["forwarding", "force_forwarding"].iter().for_each(|name| reset("ipv6", &device.name, name));
    }
    Ok(())
}

/// Whether the loss of this device, or of something on it, concerns the fallback or the host network.
pub fn rests_on(device: &str) -> bool {
    is_tunnel(device) || device == HOST_ENGINE_IF || device == HOST_KERNEL_IF || is_host_veth(device)
}

/// Whether this is the name of a tunnel device of the fallback's.
pub fn is_tunnel(device: &str) -> bool {
    devices::NAMES.contains(&device)
}
