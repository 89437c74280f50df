//! The index: the state of the cluster and of this node, fed by events, and the tables that follow from
//! it. Pure and synchronous: no I/O, no clock, nothing async. [`compile`] says what each source contributes; an
//! event recompiles only the sources that it touches, and the result always equals a compilation from
//! scratch (tests/properties.rs).

mod alloc;
mod compile;
mod dsr;
mod enis;
mod facts;
mod fallback;
mod kernel_routes;
mod masquerade;
mod pools;
mod report;
mod routes;
mod services;
mod settle;
mod ways;

pub use compile::{HOST_PORT, UPLINK_PORT, host_address, is_link_local};
pub use facts::{Facts, KernelEvent, Link};
pub use fallback::{FallbackPlan, Guarded, PodPlan, VxlanPlan, Way};
pub use report::{HostPlan, Pending};
pub use routes::{Hop, KernelRoute, Place, RouteKind, Routes};
pub use services::{HealthCheck, NodePortAddresses};

use crate::encapsulation::Pool;
use crate::enis::NodeEnis;
use crate::masquerade::{MasqueradeConfig, NatOptions};
use crate::model::{Change, Key, Model, Value};
use crate::names;
use crate::object::{EndpointSlice, Kind, Node, Object, ObjectKey, Pod, Service};
use alloc::Allocator;
use compile::Contribution;
use fairway_tables::{Ip, PortId, Prefix, Service as Record, ServiceKey};
use std::collections::{BTreeMap, BTreeSet};

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as in its Node object.
    pub node: String,
    /// The uplink's device name; without it, the device that holds the node's InternalIP.
    pub uplink: Option<String>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Whether the maximum segment size in TCP's SYNs is lowered to what their way takes.
    pub clamp_mss: bool,
    /// How many ports the tables hold.
    pub max_ports: u32,
    /// Ranges that hold all service addresses, where they are known.
    pub service_cidrs: Vec<Prefix>,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// What is translated, and how.
    pub nat: NatOptions,
    /// Who knows the way to pods that are reached without encapsulation.
    pub direct_routes: DirectRoutes,
}

/// Who knows the way to pods of other nodes that are reached without encapsulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum DirectRoutes {
    /// The Node objects: by the next hop towards the node's address.
    #[default]
    Nodes,
    /// The kernel's main table alone, where a routing daemon puts them.
    Kernel,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object was added or changed.
    Upsert(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// The kernel said something.
    Kernel(KernelEvent),
}

/// Who contributes entries. Where two sources claim the same entry, the lesser wins, whichever came first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Source {
    Local,
    Node(String),
    /// A neighbour on a link.
    NextHop(u32, Ip),
    Pod(String, String),
    Service(String, String),
    /// Ranges of pods of which no more is known.
    Pools,
    /// This node's ENIs.
    Enis,
    /// What the kernel's table says of a prefix. Contributes nothing, for there may be a million: see
    /// [`Index::winner`](kernel_routes).
    Kernel(Prefix),
}

/// Namespace and name.
type Name = (String, String);

/// See the module's head.
#[derive(Debug)]
pub struct Index {
    config: Config,
    nodes: BTreeMap<String, Node>,
    /// Every node by each of its addresses between the nodes.
    nodes_by_ip: BTreeSet<(Ip, String)>,
    namespaces: BTreeSet<String>,
    pods: BTreeMap<Name, Pod>,
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, EndpointSlice>,
    pools: BTreeMap<ObjectKey, Pool>,
    masquerade_configs: BTreeMap<ObjectKey, MasqueradeConfig>,
    /// Nodes' ENIs by the node's name.
    enis: BTreeMap<String, NodeEnis>,
    facts: Facts,

    /// Number of the uplink's link.
    uplink: Option<u32>,
    /// Addresses of this node on which node ports answer.
    node_port_ips: BTreeSet<Ip>,
    /// Services whose backends answer straight from their nodes.
    dsr_services: BTreeSet<Name>,
    /// Ports of the links that are this node's ENIs.
    eni_ports: BTreeMap<u32, PortId>,
    /// Slice names by the service that they belong to.
    slices_by_service: BTreeMap<Name, BTreeSet<String>>,
    /// This node's pods by the name of their veth.
    pods_by_veth: BTreeMap<String, BTreeSet<Name>>,
    /// Remote nodes by the neighbour that leads to them, and the reverse.
    next_hop_users: BTreeMap<Ip, BTreeSet<String>>,
    next_hop_of: BTreeMap<String, BTreeSet<Ip>>,
    /// How many nodes have no address of IPv6, and none of IPv4.
    lacking: [usize; 2],
    /// How many routes, or ports to which endpoints are bound, lead to a neighbour, by its port and address.
    needed_neighbours: BTreeMap<(PortId, Ip), usize>,
    /// Neighbours, by link, that began or ceased to be needed.
    neighbours_touched: BTreeSet<(u32, Ip)>,

    port_ids: Allocator<String>,
    /// Pods that found every port number taken.
    waiting_for_port: BTreeSet<Name>,
    freed_port: bool,
    service_ids: Allocator<ServiceKey>,
    contributions: BTreeMap<Source, Contribution>,
    claims: BTreeMap<Key, BTreeMap<Source, Value>>,
    model: Model,
}

/// More service ports than any table holds.
const MAX_SERVICE_IDS: u32 = 1 << 22;

impl Index {
    /// An empty index. Port and service numbers found in `published`, which is what the tables hold from an
    /// earlier run, stay with their owners.
    pub fn new(config: Config, published: &Model) -> Index {
        let ports = published.iter().filter_map(|(key, value)| match (key, value) {
            (Key::Port(id), Value::Port(port)) => Some((port.ifname().to_owned(), u32::from(id.0))),
            _ => None,
        });
        let services = published.iter().filter_map(|(key, value)| match (key, value) {
            // Other addresses of a service have the number of a cluster address.
            (Key::Service(key), Value::Service(service, _))
                if service.flags & Record::EXTERNAL == 0 && key.is_port() =>
            {
                Some((*key, service.id))
            }
            _ => None,
        });
        Index {
            port_ids: Allocator::new(2, config.max_ports.min(u32::from(u16::MAX)), ports),
            service_ids: Allocator::new(1, MAX_SERVICE_IDS, services),
            config,
            nodes: BTreeMap::new(),
            nodes_by_ip: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            pools: BTreeMap::new(),
            masquerade_configs: BTreeMap::new(),
            enis: BTreeMap::new(),
            facts: Facts::default(),
            uplink: None,
            node_port_ips: BTreeSet::new(),
            dsr_services: BTreeSet::new(),
            eni_ports: BTreeMap::new(),
            waiting_for_port: BTreeSet::new(),
            freed_port: false,
            slices_by_service: BTreeMap::new(),
            pods_by_veth: BTreeMap::new(),
            next_hop_users: BTreeMap::new(),
            next_hop_of: BTreeMap::new(),
            lacking: [0; 2],
            needed_neighbours: BTreeMap::new(),
            neighbours_touched: BTreeSet::new(),
            contributions: BTreeMap::new(),
            claims: BTreeMap::new(),
            model: Model::new(),
        }
    }

    /// What the tables should hold.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What the kernel said.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Frees the numbers that were held back for owners from an earlier run and that none of them has
    /// claimed. Call once, when every source has been read.
    pub fn release_unclaimed(&mut self) -> Vec<Change> {
        self.port_ids.release_unclaimed();
        self.service_ids.release_unclaimed();
        let waiting = std::mem::take(&mut self.waiting_for_port);
        let mut dirty = waiting.into_iter().map(|(namespace, name)| Source::Pod(namespace, name)).collect();
        self.find_enis(&mut dirty);
        self.settle(dirty)
    }

    /// Takes in one event and returns what changes in the tables.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        let mut dirty = BTreeSet::new();
        match event {
            Event::Upsert(object) => self.upsert(object, &mut dirty),
            Event::Delete(key) => self.delete(&key, &mut dirty),
            Event::Kernel(event) => self.kernel(&event, &mut dirty),
        }
        self.settle(dirty)
    }

    fn upsert(&mut self, object: Object, dirty: &mut BTreeSet<Source>) {
        let key = object.key();
        match object {
            Object::Node(node) => {
                let name = node.name.clone();
                let ips = node.underlay().map(|ip| (ip, name.clone())).collect();
                let old = self.nodes.insert(name.clone(), node.clone());
                self.list_node_ips(old.as_ref(), ips);
                if self.count_lacking(old.as_ref(), Some(&node)) {
                    dirty.insert(Source::Local);
                }
                if old.as_ref() != self.nodes.get(&name) {
                    self.dsr_touched(dirty);
                    if name == self.config.node {
                        self.services_touched(dirty);
                    }
                }
                self.node_touched(&name, dirty);
            }
            Object::Namespace(name) => {
                self.namespaces.insert(name);
            }
            Object::Pool(pool) => {
                self.pools.insert(pool.key(), pool);
                self.everything_on_the_uplink(dirty);
            }
            Object::Masquerade(config) => {
                self.masquerade_configs.insert(key, config);
                self.everything_on_the_uplink(dirty);
            }
            Object::NodeEnis(enis) => {
                self.enis.insert(enis.node.clone(), enis);
                self.enis_touched(dirty);
            }
            Object::Pod(pod) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                self.forget_veth(&key);
                if self.is_local(&pod) {
                    let veth = names::host_veth(&pod.namespace, &pod.name);
                    self.pods_by_veth.entry(veth).or_default().insert(key.clone());
                }
                self.pods.insert(key.clone(), pod);
                dirty.insert(Source::Pod(key.0, key.1));
            }
            Object::Service(service) => {
                let key = (service.namespace.clone(), service.name.clone());
                self.services.insert(key.clone(), service);
                self.track_dsr(&key, dirty);
                dirty.insert(Source::Service(key.0, key.1));
            }
            Object::EndpointSlice(slice) => {
                let key = (slice.namespace.clone(), slice.name.clone());
                self.forget_slice(&key, dirty);
                let service = (slice.namespace.clone(), slice.service.clone());
                if !service.1.is_empty() {
                    self.slices_by_service.entry(service.clone()).or_default().insert(key.1.clone());
                    dirty.insert(Source::Service(service.0, service.1));
                }
                self.slices.insert(key, slice);
            }
        }
    }

    fn delete(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Source>) {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Node => {
                let old = self.nodes.remove(&key.name);
                self.list_node_ips(old.as_ref(), BTreeSet::new());
                if old.is_some() {
                    self.dsr_touched(dirty);
                }
                if self.count_lacking(old.as_ref(), None) {
                    dirty.insert(Source::Local);
                }
                if key.name == self.config.node && old.is_some() {
                    self.services_touched(dirty);
                }
                self.node_touched(&key.name, dirty);
            }
            Kind::Namespace => {
                self.namespaces.remove(&key.name);
            }
            Kind::IpPool | Kind::FlannelConfig => {
                self.pools.remove(key);
                self.everything_on_the_uplink(dirty);
            }
            Kind::MasqueradeConfig => {
                self.masquerade_configs.remove(key);
                self.everything_on_the_uplink(dirty);
            }
            Kind::NodeEnis => {
                self.enis.remove(&key.name);
                self.enis_touched(dirty);
            }
            Kind::Pod => {
                self.forget_veth(&name);
                self.pods.remove(&name);
                dirty.insert(Source::Pod(name.0, name.1));
            }
            Kind::Service => {
                self.services.remove(&name);
                self.track_dsr(&name, dirty);
                dirty.insert(Source::Service(name.0, name.1));
            }
            Kind::EndpointSlice => {
                self.forget_slice(&name, dirty);
                self.slices.remove(&name);
            }
        }
    }

    fn kernel(&mut self, event: &KernelEvent, dirty: &mut BTreeSet<Source>) {
        match event {
            KernelEvent::Link(link) => {
                // A name moved between two links: its old holder is gone, its event is only late.
                let holder = self.facts.link_named(&link.name).map(|l| l.ifindex);
                if let Some(old) = holder.filter(|i| *i != link.ifindex) {
                    self.kernel(&KernelEvent::LinkGone(old), dirty);
                }
                self.link_touched(link.ifindex, dirty);
                self.facts.apply(event);
                self.link_touched(link.ifindex, dirty);
            }
            KernelEvent::LinkGone(ifindex) => {
                self.link_touched(*ifindex, dirty);
                self.facts.apply(event);
            }
            KernelEvent::Address(ifindex, _) | KernelEvent::AddressGone(ifindex, _) => {
                self.facts.apply(event);
                if self.uplink == Some(*ifindex) {
                    dirty.insert(Source::Local);
                }
            }
            KernelEvent::Route(prefix, ..)
            | KernelEvent::RouteGone(prefix, ..)
            | KernelEvent::Routes(prefix, ..) => {
                self.facts.apply(event);
                if prefix.is_empty() {
                    dirty.insert(Source::Local);
                }
                dirty.insert(Source::Kernel(*prefix));
                dirty.extend(self.nodes_inside(*prefix).map(|name| Source::Node(name.to_owned())));
            }
            KernelEvent::Neighbour(ifindex, ip, _) => {
                self.facts.apply(event);
                dirty.insert(Source::NextHop(*ifindex, *ip));
            }
        }
        let uplink = self.find_uplink();
        self.set_uplink(uplink, dirty);
        if matches!(event, KernelEvent::Link(_) | KernelEvent::LinkGone(_)) {
            self.find_enis(dirty);
        }
    }

    fn set_uplink(&mut self, uplink: Option<u32>, dirty: &mut BTreeSet<Source>) {
        if uplink != self.uplink {
            self.everything_on_the_uplink(dirty);
            self.uplink = uplink;
            self.everything_on_the_uplink(dirty);
            if self.has_enis() {
                self.enis_touched(dirty);
            }
        }
    }

    fn list_node_ips(&mut self, old: Option<&Node>, new: BTreeSet<(Ip, String)>) {
        for (ip, name) in old.iter().flat_map(|node| node.underlay().map(|ip| (ip, node.name.clone()))) {
            self.nodes_by_ip.remove(&(ip, name));
        }
        self.nodes_by_ip.extend(new);
    }

    /// Names of the nodes with an address in a range.
    fn nodes_inside(&self, range: Prefix) -> impl Iterator<Item = &str> {
        let from = self.nodes_by_ip.range((range.addr(), String::new())..);
        from.take_while(move |(ip, _)| range.contains(*ip)).map(|(_, name)| name.as_str())
    }

    /// A change of this node itself concerns every tunnel; of another, only its own.
    fn node_touched(&mut self, name: &str, dirty: &mut BTreeSet<Source>) {
        dirty.insert(Source::Node(name.to_owned()));
        if name == self.config.node {
            self.set_uplink(self.find_uplink(), dirty);
            self.everything_on_the_uplink(dirty);
        }
    }

    /// A change of this node concerns every service: its zone by endpoints' hints, its addresses by node ports and source
    /// ranges.
    fn services_touched(&self, dirty: &mut BTreeSet<Source>) {
        dirty.extend(
            self.services.keys().map(|(namespace, name)| Source::Service(namespace.clone(), name.clone())),
        );
    }

    fn everything_on_the_uplink(&self, dirty: &mut BTreeSet<Source>) {
        dirty.insert(Source::Local);
        dirty.extend(self.nodes.keys().map(|name| Source::Node(name.clone())));
        dirty.insert(Source::Pools);
        self.dsr_touched(dirty);
        for ifindex in self.uplink.iter().chain(self.eni_ports.keys()) {
            dirty.extend(self.facts.routes.through(*ifindex).map(Source::Kernel));
        }
        dirty.extend(self.next_hops().map(|(ifindex, ip)| Source::NextHop(ifindex, ip)));
    }

    /// Marks what depends on a link under its present name.
    fn link_touched(&self, ifindex: u32, dirty: &mut BTreeSet<Source>) {
        let Some(link) = self.facts.links.get(&ifindex) else { return };
        if self.uplink == Some(ifindex)
            || link.name == names::HOST_KERNEL_IF
            || link.name == names::HOST_ENGINE_IF
        {
            dirty.insert(Source::Local);
        }
        if self.eni_ports.contains_key(&ifindex) {
            self.everything_on_enis(dirty);
        }
        dirty.extend(self.facts.routes.through(ifindex).map(Source::Kernel));
        // Its neighbours and routes may go with it.
        if self.uplink == Some(ifindex) {
            self.everything_on_the_uplink(dirty);
        }
        for (namespace, name) in self.pods_by_veth.get(&link.name).into_iter().flatten() {
            dirty.insert(Source::Pod(namespace.clone(), name.clone()));
        }
    }

    fn find_uplink(&self) -> Option<u32> {
        if let Some(name) = &self.config.uplink {
            return self.facts.link_named(name).map(|link| link.ifindex);
        }
        let node = self.nodes.get(&self.config.node)?;
        let is_wire = |ifindex: &u32| {
            let name = self.facts.links.get(ifindex).map(|link| link.name.as_str());
            name.is_some_and(|name| name != names::HOST_KERNEL_IF && name != names::HOST_ENGINE_IF)
        };
        let holders = self.facts.addresses.iter().filter(|(ifindex, _)| is_wire(ifindex));
        let holds = |ip: &Ip| holders.clone().find(|(_, held)| held == ip).map(|(ifindex, _)| *ifindex);
        node.underlay().find_map(|ip| holds(&ip))
    }

    fn forget_veth(&mut self, key: &Name) {
        let veth = names::host_veth(&key.0, &key.1);
        if let Some(pods) = self.pods_by_veth.get_mut(&veth) {
            pods.remove(key);
            if pods.is_empty() {
                self.pods_by_veth.remove(&veth);
            }
        }
    }

    fn forget_slice(&mut self, key: &Name, dirty: &mut BTreeSet<Source>) {
        let Some(old) = self.slices.get(key) else { return };
        let service = (old.namespace.clone(), old.service.clone());
        if let Some(names) = self.slices_by_service.get_mut(&service) {
            names.remove(&key.1);
            if names.is_empty() {
                self.slices_by_service.remove(&service);
            }
            dirty.insert(Source::Service(service.0, service.1));
        }
    }
}
