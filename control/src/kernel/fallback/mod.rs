//! The kernel's own path for pod traffic, made ready while the engine runs and used when it does not: nothing has to be
//! switched over, because the steering program is gone with the engine (docs/fallback.md).
//!
//! ```text
//!  pod's veth ──> main table: pod ranges, services ──> fwhost0 ──> fwhost1 ──> table 7070 ──> pod's veth
//!  (the gateway's Ethernet address)                   (the engine's end of the pair) └─────> fairway.vxlan
//! ```
//! Brought in line by difference, again and again. What others made is not touched.

mod guard;
mod requests;
mod state;

pub use state::TABLE;

use super::netlink::{Netlink, NetlinkError};
use super::sysctl::{answer_arp, answers_arp, loose_or_off, reset, sysctl};
use crate::index::{FallbackPlan, VxlanPlan, Way};
use crate::names::{FALLBACK_VXLAN_IF, GATEWAY_MAC, HOST_ENGINE_IF, HOST_KERNEL_IF, is_host_veth};
use fairway_tables::{Ip, Mac, Prefix};
use state::{Device, Hop, State};
use std::collections::{BTreeMap, BTreeSet};

/// A part of the fallback cannot be made; the rest is.
#[derive(Debug, thiserror::Error)]
pub enum FallbackError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel has no VXLAN.
    #[error(
        "this kernel has no VXLAN device, so no traffic between nodes while the engine is not running; load the module vxlan"
    )]
    NoVxlan,
    /// Another VXLAN device has our network.
    #[error(
        "device {device} has VXLAN network {vni} on UDP port {port} already, so no traffic between nodes while the engine is \
         not running; remove it (ip link del {device}) or set --vni"
    )]
    Taken {
        /// That device.
        device: String,
        /// VXLAN network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
    },
    /// Some other kind of device has our name.
    #[error("{FALLBACK_VXLAN_IF} exists and is no VXLAN device; rename or remove it")]
    NotVxlan,
    /// Replies of services cannot be told apart.
    #[error(
        "{0}; without the filter the kernel would have clients end their connections through services, so it carries \
         nothing while the engine is not running; load the modules sch_ingress and cls_bpf"
    )]
    Guard(NetlinkError),
    /// The host veth pair is not there.
    #[error("{HOST_ENGINE_IF} is not there; the host network must be made first")]
    NoHostPair,
}

/// How the fallback is brought in line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mode {
    /// Senders to addresses that nobody has, services among them, are told; else their packets just vanish.
    pub refuse: bool,
    /// Some objects cannot be read now: what is there from before stays.
    pub keep_others: bool,
}

/// Brings the kernel in line with the plan. Returns everything that could not be done.
pub fn reconcile(plan: &FallbackPlan, mode: Mode) -> Vec<FallbackError> {
    let mut errors = Vec::new();
    if let Err(error) = try_reconcile(plan, mode, &mut errors) {
        errors.push(error.into());
    }
    errors
}

fn try_reconcile(
    plan: &FallbackPlan,
    mode: Mode,
    errors: &mut Vec<FallbackError>,
) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut state = State::read(&mut netlink)?;
    let vxlan = match &plan.vxlan {
        Some(wanted) => match ensure_vxlan(&mut netlink, &mut state, wanted) {
            Ok(ifindex) => Some(ifindex),
            Err(error) => {
                errors.push(error);
                None
            }
        },
        None => {
            // No node is reached by VXLAN any more.
            let unused = state.device(FALLBACK_VXLAN_IF).filter(|device| device.is_vxlan);
            if let (Some(device), Some(_), false) = (unused, plan.uplink, mode.keep_others) {
                netlink.delete_link(device.ifindex)?;
            }
            None
        }
    };
    let mut work = Work { netlink, state, mode, errors };
    let nothing = FallbackPlan::default();
    let allowed = if work.entrance() { plan } else { &nothing };
    work.pods(plan);
    work.vxlan_peers(plan, vxlan);
    work.routes(allowed, vxlan);
    Ok(())
}

/// Makes the device as it should be, and returns its number.
fn ensure_vxlan(netlink: &mut Netlink, state: &mut State, plan: &VxlanPlan) -> Result<u32, FallbackError> {
    let identity = (plan.vni, plan.port, Some(plan.local));
    if let Some(device) = state.device(FALLBACK_VXLAN_IF) {
        if !device.is_vxlan {
            return Err(FallbackError::NotVxlan);
        }
        // What a VXLAN device is cannot be changed; it is ours by its name.
        if device.vxlan != Some(identity) {
            netlink.delete_link(device.ifindex)?;
            *state = State::read(netlink)?;
        }
    }
    if state.device(FALLBACK_VXLAN_IF).is_none() {
        create_vxlan(netlink, state, plan)?;
        // It has no address of its own and nothing to say by itself.
        sysctl("ipv6", FALLBACK_VXLAN_IF, "disable_ipv6", "1");
        *state = State::read(netlink)?;
    }
    let Some(device) = state.device(FALLBACK_VXLAN_IF).cloned() else { return Err(FallbackError::NoVxlan) };
    if device.mac != plan.mac {
        netlink.set_mac(device.ifindex, plan.mac)?;
    }
    if device.mtu != plan.mtu || !device.is_up {
        netlink.set_link(device.ifindex, plan.mtu).map_err(|error| explain(error, state, plan))?;
    }
    sysctl("ipv4", FALLBACK_VXLAN_IF, "forwarding", "1");
    sysctl("ipv4", FALLBACK_VXLAN_IF, "rp_filter", loose_or_off());
    Ok(device.ifindex)
}

fn create_vxlan(netlink: &mut Netlink, state: &State, plan: &VxlanPlan) -> Result<(), FallbackError> {
    netlink.create_vxlan(FALLBACK_VXLAN_IF, plan).map_err(|error| explain(error, state, plan))
}

/// Says what a refusal to have the device means.
fn explain(error: NetlinkError, state: &State, plan: &VxlanPlan) -> FallbackError {
    match error.error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => FallbackError::NoVxlan,
        Some(libc::EEXIST | libc::EADDRINUSE) => {
            let is_rival = |device: &&Device| {
                device.name != FALLBACK_VXLAN_IF && device.vxlan.is_some_and(|(_, port, _)| port == plan.port)
            };
            match state.devices.iter().find(is_rival) {
                Some(rival) => {
                    FallbackError::Taken { device: rival.name.clone(), vni: plan.vni, port: plan.port }
                }
                None => error.into(),
            }
        }
        _ => error.into(),
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
    fn entrance(&mut self) -> bool {
        let Some(ifindex) = self.state.device(HOST_ENGINE_IF).map(|device| device.ifindex) else {
            self.errors.push(FallbackError::NoHostPair);
            return false;
        };
        let guard = self.netlink.set_guard(ifindex).map_err(FallbackError::Guard);
        sysctl("ipv4", HOST_ENGINE_IF, "rp_filter", loose_or_off());
        // What the node itself sends comes in here, from its own addresses.
        sysctl("ipv4", HOST_ENGINE_IF, "accept_local", "1");
        sysctl("ipv4", HOST_ENGINE_IF, "forwarding", "1");
        let mut found = false;
        for rule in std::mem::take(&mut self.state.rules) {
            if !found && requests::is_wanted(&rule, HOST_ENGINE_IF) {
                found = true;
            } else {
                let result = self.netlink.delete_rule(rule);
                self.note(result);
            }
        }
        if !found {
            let result = self.netlink.add_rule(HOST_ENGINE_IF);
            self.note(result);
        }
        let guarded = guard.is_ok();
        self.errors.extend(guard.err());
        guarded
    }

    /// The host end of each pod's veth is the pod's gateway.
    fn pods(&mut self, plan: &FallbackPlan) {
        let devices: BTreeMap<u32, Device> =
            self.state.devices.iter().map(|device| (device.ifindex, device.clone())).collect();
        let mut wanted: BTreeMap<(u32, Ip), Mac> = BTreeMap::new();
        for (ip, pod) in &plan.pods {
            let Some(device) = devices.get(&pod.ifindex).filter(|device| device.name == pod.ifname) else {
                continue;
            };
            if device.mac != GATEWAY_MAC {
                if let Err(error) = self.netlink.set_mac(pod.ifindex, GATEWAY_MAC) {
                    self.note(Err(error));
                    continue;
                }
                // The kernel forgets the device's neighbours when its address changes.
                self.state.neighbours.retain(|(ifindex, _), _| *ifindex != pod.ifindex);
            }
            sysctl("ipv4", &pod.ifname, "rp_filter", loose_or_off());
            sysctl("ipv4", &pod.ifname, "forwarding", "1");
            // Last, so that no pod ever learns another Ethernet address for its gateway.
            answer_arp(&pod.ifname);
            wanted.insert((pod.ifindex, *ip), pod.mac);
        }
        if !self.mode.keep_others {
            let kept: BTreeSet<u32> = wanted.keys().map(|(ifindex, _)| *ifindex).collect();
            self.release_pods(&kept);
        }
        let is_pod = |ifindex: &u32| devices.get(ifindex).is_some_and(|device| is_host_veth(&device.name));
        self.neighbours(&wanted, is_pod);
    }

    /// The veths that are no pod's any more are no gateways either.
    fn release_pods(&self, kept: &BTreeSet<u32>) {
        let gone = self.state.devices.iter().filter(|device| !kept.contains(&device.ifindex));
        gone.for_each(release_pod);
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

    /// The other nodes on the VXLAN device: the VTEP address of each, and where that is.
    fn vxlan_peers(&mut self, plan: &FallbackPlan, vxlan: Option<u32>) {
        let Some(vxlan) = vxlan else { return };
        let neighbours = plan.remotes.iter().map(|(ip, mac)| ((vxlan, *ip), *mac)).collect();
        self.neighbours(&neighbours, |ifindex| *ifindex == vxlan);
        let wanted: BTreeMap<(u32, Mac), Ip> =
            plan.remotes.iter().map(|(ip, mac)| ((vxlan, *mac), *ip)).collect();
        let have = std::mem::take(&mut self.state.fdb);
        if !self.mode.keep_others {
            for (ifindex, mac) in have.keys().filter(|key| key.0 == vxlan && !wanted.contains_key(key)) {
                let result = self.netlink.delete_fdb(*ifindex, *mac);
                self.note(result);
            }
        }
        for ((ifindex, mac), ip) in wanted.iter().filter(|(key, ip)| have.get(key) != Some(ip)) {
            let result = self.netlink.set_fdb(*ifindex, *mac, *ip);
            self.note(result);
        }
    }

    fn routes(&mut self, plan: &FallbackPlan, vxlan: Option<u32>) {
        let mut wanted = BTreeMap::new();
        // The end of the way, also for what the main table would send round in circles.
        let end = if self.mode.refuse { Hop::Unreachable } else { Hop::Blackhole };
        wanted.extend(Prefix::new(Ip::v4([0; 4]), 0).map(|any| (any, end)));
        for (prefix, way) in &plan.ranges {
            let (device, gateway) = match way {
                Way::Vxlan(node) => (vxlan, *node),
                Way::Direct(neighbour) => (plan.uplink, *neighbour),
            };
            wanted.extend(device.map(|ifindex| (*prefix, Hop::Out { ifindex, gateway: Some(gateway) })));
        }
        for (ip, pod) in &plan.pods {
            wanted.insert(Prefix::host(*ip), Hop::Out { ifindex: pod.ifindex, gateway: None });
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
    if let Some(device) = state.device(FALLBACK_VXLAN_IF).filter(|device| device.is_vxlan) {
        netlink.delete_link(device.ifindex)?;
    }
    for device in state.devices.iter().filter(|device| is_host_veth(&device.name)) {
        for (ifindex, ip) in state.neighbours.keys().filter(|(ifindex, _)| *ifindex == device.ifindex) {
            netlink.delete_neighbour(*ifindex, *ip)?;
        }
        release_pod(device);
    }
    if let Some(device) = state.device(HOST_ENGINE_IF) {
        ["forwarding", "accept_local", "rp_filter"].iter().for_each(|setting| reset(HOST_ENGINE_IF, setting));
        netlink.remove_guard(device.ifindex)?;
    }
    Ok(())
}

fn release_pod(device: &Device) {
    if is_host_veth(&device.name) && answers_arp(&device.name) {
        ["proxy_arp", "forwarding", "rp_filter"].iter().for_each(|setting| reset(&device.name, setting));
    }
}

/// Whether the loss of this device, or of something on it, concerns the fallback or the host network.
pub fn rests_on(device: &str) -> bool {
    device == FALLBACK_VXLAN_IF
        || device == HOST_ENGINE_IF
        || device == HOST_KERNEL_IF
        || is_host_veth(device)
}
