//! The XDP steering program: loading it, attaching it to netdevs, and its maps.
//!
//! The program (`pmd/bpf/steering.bpf.c`) is loaded once and attached to every port through a bpf_link, which
//! the kernel detaches when the process ends in whatever way, SIGKILL included. It decides by the class of the
//! netdev which packets go to Fairway's sockets; all else, and everything while no socket is registered,
//! passes to the kernel.
//!
//! Nothing is pinned, so no bpffs is needed. Netdevs are told apart by ifindex, hence one `Steering` serves
//! netdevs of one network namespace: the caller's, at the time of each call.

mod bare;
mod error;
mod frontends;
mod handover;
mod link;
mod snat;

pub use bare::Protocol;
pub use error::SteeringError;
pub use frontends::Frontend;
pub(crate) use frontends::sync_frontends;
pub use handover::{LinkState, is_unchanged, sockets};

use crate::af_xdp::AfXdpQueue;
use crate::af_xdp::netdev;
use aya::EbpfLoader;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuArray, XskMap};
use aya::programs::{ProgramFd, Xdp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Name of the program in the object.
const PROGRAM: &str = "fairway_steer";
/// Slots of the XSKMAP (`MAX_SOCKETS` of the program).
const MAX_SOCKETS: u32 = 4096;
/// `MAX_NODE_ADDRESSES` of the program.
const MAX_NODE_ADDRESSES: usize = 256;
/// `MAX_TUNNEL_PORTS` of the program.
const MAX_TUNNEL_PORTS: usize = 16;
/// `MAX_PROTOCOLS` of the program.
const MAX_PROTOCOLS: usize = 4;
/// `MAX_POD_PREFIXES` of the program.
const MAX_POD_PREFIXES: usize = 1024;
/// `MAX_FRONTENDS` of the program.
const MAX_FRONTENDS: usize = 131_072;
/// `MAX_SNAT_ADDRESSES` of the program.
const MAX_SNAT_ADDRESSES: usize = 16;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steering.bpf.o"));

/// What a netdev is to Fairway: which of its packets it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PortClass {
    /// A NIC: only tunnels addressed to this node (see [`Steering::set_node`], [`Steering::set_protocols`]), answers to
    /// what left with a translated source (see [`Steering::set_snat`]), packets to pods that come without tunnel (see
    /// [`Steering::set_pod_prefixes`]), and to services (see [`Steering::set_frontends`]).
    Uplink,
    /// The host end of a pod's veth: everything.
    Pod,
    /// Fairway's veth into the host's namespace: everything.
    Host,
}

impl PortClass {
    fn number(self) -> u32 {
        match self {
            PortClass::Uplink => 1,
            PortClass::Pod => 2,
            PortClass::Host => 3,
        }
    }
}

/// How the program came to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachMode {
    /// In the driver, before the kernel makes an skb.
    Native,
    /// In the kernel's receive path, for drivers without XDP: slower, and AF_XDP works in copy mode only.
    Generic,
}

/// What [`Steering::attach`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Index of the netdev.
    pub ifindex: u32,
    /// Its receive queues, each of which can have a socket.
    pub queues: u32,
    /// How the program is attached.
    pub mode: AttachMode,
}

/// What became of packets since the program was loaded, over all netdevs and CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteeringStats {
    /// Given to a socket of Fairway.
    pub redirected: u64,
    /// Not Fairway's: left to the kernel.
    pub passed: u64,
    /// Fairway's, but its queue has no socket: left to the kernel.
    pub fallback: u64,
    /// Came in on a netdev that has no class (any more): left to the kernel.
    pub unknown: u64,
}

struct Port {
    attachment: Attachment,
    class: PortClass,
    xsk_base: u32,
    /// Detaches when dropped.
    link: OwnedFd,
}

/// The loaded program and where it is attached. Dropping it detaches it everywhere.
pub struct Steering {
    program: ProgramFd,
    xsks: XskMap<MapData>,
    port_map: BpfHashMap<MapData, u32, [u32; 3]>,
    node_addrs: BpfHashMap<MapData, [u32; 4], u32>,
    tunnel_ports: BpfHashMap<MapData, u16, u32>,
    protocols: BpfHashMap<MapData, u32, u32>,
    pod_prefixes: LpmTrie<MapData, [u8; 16], u32>,
    /// The map of frontends, and what it holds.
    frontends: (BpfHashMap<MapData, [u32; 5], u32>, BTreeSet<Frontend>),
    snat: BpfHashMap<MapData, [u32; 4], [u16; 2]>,
    outcomes: PerCpuArray<MapData, u64>,
    ports: BTreeMap<u32, Port>,
    /// What the address and port maps hold.
    node: (BTreeSet<IpAddr>, BTreeSet<u16>),
    /// What the map of protocols and that of prefixes hold.
    bare: (BTreeSet<Protocol>, BTreeSet<(IpAddr, u8)>),
    /// What the map of translated sources holds.
    snat_held: BTreeMap<IpAddr, [u16; 2]>,
}

impl Steering {
    /// Loads the program. Needs CAP_BPF and CAP_NET_ADMIN.
    pub fn load() -> Result<Steering, SteeringError> {
        let wanted = [netdev::CAP_BPF, netdev::CAP_NET_ADMIN];
        if let Some(missing) = netdev::missing_capabilities(&wanted) {
            return Err(SteeringError::MissingCapability { missing });
        }
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(|error| SteeringError::load(&error))?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .ok_or(SteeringError::Object { part: PROGRAM })?
            .try_into()
            .map_err(|_| SteeringError::Object { part: PROGRAM })?;
        program.load().map_err(|error| SteeringError::load(&error))?;
        let program = program.fd().map_err(|error| SteeringError::load(&error))?;
        let program = program.try_clone().map_err(|source| SteeringError::load(&source))?;
        let mut take = |part| ebpf.take_map(part).ok_or(SteeringError::Object { part });
        Ok(Steering {
            xsks: XskMap::try_from(take("fw_xsks")?).map_err(|error| SteeringError::load(&error))?,
            port_map: BpfHashMap::try_from(take("fw_ports")?).map_err(|error| SteeringError::load(&error))?,
            node_addrs: BpfHashMap::try_from(take("fw_node_addrs")?)
                .map_err(|error| SteeringError::load(&error))?,
            tunnel_ports: BpfHashMap::try_from(take("fw_tunnel_ports")?)
                .map_err(|error| SteeringError::load(&error))?,
            protocols: BpfHashMap::try_from(take("fw_protocols")?)
                .map_err(|error| SteeringError::load(&error))?,
            pod_prefixes: LpmTrie::try_from(take("fw_pod_prefixes")?)
                .map_err(|error| SteeringError::load(&error))?,
            frontends: (
                BpfHashMap::try_from(take("fw_frontends")?).map_err(|error| SteeringError::load(&error))?,
                BTreeSet::new(),
            ),
            snat: BpfHashMap::try_from(take("fw_snat")?).map_err(|error| SteeringError::load(&error))?,
            outcomes: PerCpuArray::try_from(take("fw_outcomes")?)
                .map_err(|error| SteeringError::load(&error))?,
            ports: BTreeMap::new(),
            node: Default::default(),
            bare: Default::default(),
            snat_held: BTreeMap::new(),
            program,
        })
    }

    /// Attaches the program to a netdev: native if the driver can, else generic, with a warning. Its packets
    /// pass to the kernel until sockets are registered.
    pub fn attach(&mut self, ifname: &str, class: PortClass) -> Result<Attachment, SteeringError> {
        let no_interface = || SteeringError::NoInterface { ifname: ifname.to_owned() };
        let ifindex = netdev::ifindex(ifname).ok_or_else(no_interface)?;
        if self.ports.contains_key(&ifindex) {
            return Err(SteeringError::AlreadyAttached { ifname: ifname.to_owned() });
        }
        let queues = netdev::rx_queues(ifname)
            .map_err(|source| SteeringError::Queues { ifname: ifname.to_owned(), source })?;
        let xsk_base = self.free_slots(queues).ok_or(SteeringError::Full { queues, slots: MAX_SOCKETS })?;
        let (link, mode) = self.link(ifname, ifindex)?;
        let attachment = Attachment { ifindex, queues, mode };
        // The link is dropped, and so detached, if this fails.
        self.port_map
            .insert(ifindex, [class.number(), xsk_base, queues], 0)
            .map_err(|error| SteeringError::map("fw_ports", &error))?;
        self.ports.insert(ifindex, Port { attachment, class, xsk_base, link });
        tracing::info!(ifname, ifindex, queues, ?class, ?mode, "steering program attached");
        Ok(attachment)
    }

    fn link(&self, ifname: &str, ifindex: u32) -> Result<(OwnedFd, AttachMode), SteeringError> {
        let native = match link::attach(self.program.as_fd(), ifindex, false) {
            Ok(link) => return Ok((link, AttachMode::Native)),
            Err(error) => error,
        };
        if matches!(native.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
            return Err(SteeringError::Occupied { ifname: ifname.to_owned() });
        }
        match link::attach(self.program.as_fd(), ifindex, true) {
            Ok(link) => {
                let reason = native.to_string();
                tracing::warn!(
                    ifname,
                    reason,
                    "no native XDP; using generic mode, which is slower and copies each packet"
                );
                Ok((link, AttachMode::Generic))
            }
            Err(generic) => Err(SteeringError::Attach { ifname: ifname.to_owned(), native, generic }),
        }
    }

    /// First of `count` consecutive slots that no port has.
    fn free_slots(&self, count: u32) -> Option<u32> {
        let mut taken: Vec<(u32, u32)> =
            self.ports.values().map(|port| (port.xsk_base, port.attachment.queues)).collect();
        taken.sort_unstable();
        let mut base = 0;
        for (start, len) in taken {
            if start - base >= count {
                break;
            }
            base = start + len;
        }
        (base + count <= MAX_SOCKETS).then_some(base)
    }

    fn slot(&self, ifindex: u32, queue: u32) -> Result<u32, SteeringError> {
        let port = self.ports.get(&ifindex).ok_or(SteeringError::NotAttached { ifindex })?;
        let queues = port.attachment.queues;
        if queue >= queues {
            return Err(SteeringError::NoQueue { ifindex, queue, queues });
        }
        Ok(port.xsk_base + queue)
    }

    /// From now on, packets of this queue that are Fairway's go to the socket `fd`, which must be bound to
    /// that queue. Ends by itself when the socket is closed.
    pub fn register(&mut self, ifindex: u32, queue: u32, fd: RawFd) -> Result<(), SteeringError> {
        let slot = self.slot(ifindex, queue)?;
        self.xsks.set(slot, fd, 0).map_err(|error| SteeringError::map("fw_xsks", &error))
    }

    /// [`Steering::register`] for each of a port's queues.
    pub fn register_queues<'a>(
        &mut self,
        queues: impl IntoIterator<Item = &'a AfXdpQueue>,
    ) -> Result<(), SteeringError> {
        for queue in queues {
            self.register(queue.ifindex(), queue.queue_id(), queue.raw_fd())?;
        }
        Ok(())
    }

    /// From now on, packets of this queue pass to the kernel. Does nothing if no socket is registered.
    pub fn unregister(&mut self, ifindex: u32, queue: u32) -> Result<(), SteeringError> {
        let slot = self.slot(ifindex, queue)?;
        match self.xsks.unset(slot) {
            Err(error) if !error::is_absent(&error) => Err(SteeringError::map("fw_xsks", &error)),
            _ => Ok(()),
        }
    }

    /// Takes the program off a netdev. Does nothing if it is not on it.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        let Some(port) = self.ports.get(&ifindex) else { return Ok(()) };
        for queue in 0..port.attachment.queues {
            self.unregister(ifindex, queue)?;
        }
        match self.port_map.remove(&ifindex) {
            Err(error) if !error::is_absent(&error) => return Err(SteeringError::map("fw_ports", &error)),
            _ => {}
        }
        // Dropping the link detaches, also where the netdev is gone already.
        self.ports.remove(&ifindex);
        tracing::info!(ifindex, "steering program detached");
        Ok(())
    }

    /// What is attached: ifindex, class and attachment.
    pub fn attached(&self) -> impl Iterator<Item = (PortClass, Attachment)> + '_ {
        self.ports.values().map(|port| (port.class, port.attachment))
    }

    /// Sets what uplinks take: UDP to one of `addresses` (this node's) with a destination port in
    /// `tunnel_ports` (4789 for VXLAN). Replaces the previous setting by difference, so that traffic which
    /// stays the same is never interrupted.
    pub fn set_node(&mut self, addresses: &[IpAddr], tunnel_ports: &[u16]) -> Result<(), SteeringError> {
        let addresses: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        let ports: BTreeSet<u16> = tunnel_ports.iter().copied().collect();
        if addresses.len() > MAX_NODE_ADDRESSES || ports.len() > MAX_TUNNEL_PORTS {
            let (addresses, ports) = (addresses.len(), ports.len());
            return Err(SteeringError::TooMany { addresses, ports });
        }
        // Removals first: the maps have room for the new set, not for both.
        for address in self.node.0.clone().difference(&addresses) {
            let removed = self.node_addrs.remove(&address_key(*address));
            removed.map_err(|error| SteeringError::map("fw_node_addrs", &error))?;
            self.node.0.remove(address);
        }
        for port in self.node.1.clone().difference(&ports) {
            let removed = self.tunnel_ports.remove(&port.to_be());
            removed.map_err(|error| SteeringError::map("fw_tunnel_ports", &error))?;
            self.node.1.remove(port);
        }
        for address in addresses {
            if !self.node.0.contains(&address) {
                let added = self.node_addrs.insert(address_key(address), 1, 0);
                added.map_err(|error| SteeringError::map("fw_node_addrs", &error))?;
                self.node.0.insert(address);
            }
        }
        for port in ports {
            if !self.node.1.contains(&port) {
                let added = self.tunnel_ports.insert(port.to_be(), 1, 0);
                added.map_err(|error| SteeringError::map("fw_tunnel_ports", &error))?;
                self.node.1.insert(port);
            }
        }
        Ok(())
    }

    /// What became of packets so far.
    pub fn stats(&self) -> Result<SteeringStats, SteeringError> {
        let sum = |outcome: u32| {
            let values =
                self.outcomes.get(&outcome, 0).map_err(|error| SteeringError::map("fw_outcomes", &error))?;
            Ok(values.iter().sum())
        };
        Ok(SteeringStats { redirected: sum(0)?, passed: sum(1)?, fallback: sum(2)?, unknown: sum(3)? })
    }
}

/// The key of an address: IPv6, or IPv4 mapped into it, as words in network order.
pub(crate) fn address_key(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let (words, _) = octets.as_chunks::<4>();
    std::array::from_fn(|index| u32::from_ne_bytes(words[index]))
}
