//! One node: the control process's own core fed with manifests and kernel facts, its tables in heap memory, and
//! an engine whose ports are kept in step with them.

use super::engine::{Engine, MAX_PORTS};
use super::error::{MemoryError, Result};
use fairway_control::core::{Core, Options};
use fairway_control::index::{Facts, KernelEvent, KernelRoute, Link, Place};
use fairway_control::kernel::Update;
use fairway_control::manifests::Look;
use fairway_control::names;
use fairway_pmd::Umem;
use fairway_pmd::memory::MemoryPeer;
use fairway_tables::{Capacities, Ip, Mac, PortId, Prefix, Tables};
use fairway_tests::node::{UPLINK, UPLINK_MTU};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

const VNI: u32 = 4096;
const VXLAN_PORT: u16 = 4789;

/// What the far end of a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Far {
    /// The wire between the nodes.
    Wire,
    /// A simulated stack, by its number.
    Stack(usize),
}

/// A device of the node, as the kernel would know it.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// Its name.
    pub(super) ifname: String,
    /// What is at its other end.
    pub(super) far: Far,
    /// Its interface in the capture.
    pub(super) interface: u32,
}

/// A port that is open.
pub(super) struct OpenPort {
    pub(super) far: Far,
    pub(super) interface: u32,
    pub(super) peer: MemoryPeer,
}

/// A node on the wire.
#[derive(Clone, Debug)]
pub(super) struct NodeAddress {
    /// Its name in the manifests.
    pub(super) name: String,
    /// Its address on the wire.
    pub(super) ip: Ipv4Addr,
    /// Ethernet address of its uplink.
    pub(super) mac: Mac,
}

/// See the module's head.
pub(super) struct Node {
    address: NodeAddress,
    core: Core,
    devices: Vec<Device>,
    generation: Option<u64>,
    pub(super) engine: Engine,
    pub(super) ports: BTreeMap<PortId, OpenPort>,
    /// Frames put into its ports.
    pub(super) given: u64,
    /// Frames taken from its ports.
    pub(super) taken: u64,
}

impl Node {
    /// Starts control and engine. `host_mac` is the kernel's end of the host veth.
    pub(super) fn start(
        address: NodeAddress,
        others: &[NodeAddress],
        host_mac: Mac,
        devices: Vec<Device>,
        umem: &Umem,
    ) -> Result<Node> {
        let capacities = Capacities { ports: MAX_PORTS as u32, ..Capacities::default() };
        let (writer, readers) = Tables::heap(capacities);
        let alone = Options::alone(Path::new(""), &address.name, capacities.ports);
        let options = Options { vni: VNI, vxlan_port: VXLAN_PORT, ..alone };
        let mut core = Core::new(options, writer);
        let facts = kernel_facts(&address, others, host_mac, &devices);
        core.take(Vec::new(), vec![Update::Listing(facts, Vec::new())]);
        let engine = Engine::start(umem, &readers)?;
        let ports = BTreeMap::new();
        Ok(Node { address, core, devices, generation: None, engine, ports, given: 0, taken: 0 })
    }

    /// The node's name and addresses.
    pub(super) fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Takes in what was seen of the manifests folder, and opens the ports that the tables then list.
    pub(super) fn take(&mut self, look: Look) -> Result<()> {
        self.core.take(vec![Ok(look)], Vec::new());
        let manifests = self.core.folder().errors().into_iter().map(|error| error.to_string());
        let errors: Vec<String> = manifests.chain(self.core.errors()).collect();
        if !errors.is_empty() {
            return Err(MemoryError::Manifests {
                node: self.address.name.clone(),
                reason: errors.join("; "),
            });
        }
        self.open_ports()
    }

    fn open_ports(&mut self) -> Result<()> {
        let view = self.core.publisher().view();
        if self.generation == Some(view.generation()) {
            return Ok(());
        }
        self.generation = Some(view.generation());
        for (id, port) in view.ports() {
            // No step takes a port away.
            if self.ports.contains_key(&id) {
                continue;
            }
            let device = self.devices.iter().find(|device| device.ifname == port.ifname());
            let (Some(device), Some(kind)) = (device, port.kind()) else {
                let (node, ifname) = (self.address.name.clone(), port.ifname().to_owned());
                return Err(MemoryError::NoDevice { node, ifname });
            };
            let peer = self.engine.open(id, kind);
            self.ports.insert(id, OpenPort { far: device.far, interface: device.interface, peer });
        }
        Ok(())
    }

    /// Whether all its devices are ports.
    pub(super) fn is_complete(&self) -> bool {
        self.ports.len() == self.devices.len()
    }

    /// How many entries its tables hold.
    pub(super) fn entries(&self) -> usize {
        self.core.publisher().published().len()
    }
}

/// What rtnetlink would say on such a node: its links, the uplink's address and route, and its neighbours.
fn kernel_facts(own: &NodeAddress, others: &[NodeAddress], host_mac: Mac, devices: &[Device]) -> Facts {
    let mut facts = Facts::default();
    let names: BTreeSet<&str> = devices.iter().map(|device| device.ifname.as_str()).collect();
    for (ifname, number) in names.into_iter().chain([names::HOST_KERNEL_IF]).zip(2u32..) {
        let local = Mac([0x02, 0, 0, 1, 0, number as u8]);
        let (mac, mtu) = match ifname {
            UPLINK => (own.mac, UPLINK_MTU),
            names::HOST_KERNEL_IF => (host_mac, names::pod_mtu(UPLINK_MTU)),
            _ => (local, names::pod_mtu(UPLINK_MTU)),
        };
        facts.apply(&KernelEvent::Link(Link {
            ifindex: number,
            name: ifname.to_owned(),
            mac,
            mtu,
            up: true,
        }));
    }
    let Some(uplink) = facts.link_named(UPLINK).map(|link| link.ifindex) else { return facts };
    let ip = |ip: Ipv4Addr| Ip::v4(ip.octets());
    facts.apply(&KernelEvent::Address(uplink, ip(own.ip)));
    let wire = Prefix::new(ip(own.ip.to_bits().wrapping_shr(8).wrapping_shl(8).into()), 24);
    if let Some(wire) = wire {
        facts.apply(&KernelEvent::Route(wire, 0, KernelRoute::direct(uplink), Place::Last));
    }
    for other in others.iter().filter(|other| other.name != own.name) {
        facts.apply(&KernelEvent::Neighbour(uplink, ip(other.ip), Some(other.mac)));
    }
    facts
}
