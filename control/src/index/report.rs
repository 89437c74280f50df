//! What the index can tell beside the tables: what is pending and why, what the node's own network
//! needs, and which neighbours must be resolved.

use super::{Index, host_address};
use crate::names;
use crate::object::{Kind, ObjectKey, Service, ServicePort};
use fairway_tables::{Ip, Prefix, ServiceKey};
use std::collections::{BTreeMap, BTreeSet};

/// Where the node's own processes find node ports.
const NODE_PORTS: [Ip; 2] = [ServiceKey::NODE_PORTS, ServiceKey::NODE_PORTS6];

/// Something that is asked for and cannot be given yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// What waits.
    pub what: String,
    /// What it waits for.
    pub reason: String,
}

/// What the node's own network needs so that the node and its pods reach each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPlan {
    /// Addresses of the kernel's end of the host veth: one per pod range of this node.
    pub addresses: BTreeSet<Ip>,
    /// Routes through the host veth, each with its source address: pod ranges and service addresses, cluster addresses
    /// as well as external and load balancers' ones.
    pub routes: BTreeMap<Prefix, Ip>,
    /// MTU of the host veth in bytes.
    pub mtu: u32,
}

impl Index {
    /// What the node's own network needs; `None` as long as this node's object is not known. Services are
    /// reached through `service_cidrs` if there are any, else one by one.
    pub fn host_plan(&self, service_cidrs: &[Prefix]) -> Option<HostPlan> {
        let local = self.nodes.get(&self.config.node)?;
        let addresses: BTreeSet<Ip> = local.pod_cidrs.iter().map(host_address).collect();
        let source = |of: Ip| addresses.iter().copied().find(|ip| ip.is_v4() == of.is_v4());
        let mut routes = BTreeMap::new();
        let on_enis = self.pods_on_enis().map(Prefix::host);
        let pods = self.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
        let one_by_one = service_cidrs.is_empty();
        let services = self.services.values().filter(|_| one_by_one).flat_map(|s| s.cluster_ips.iter());
        // The kernel takes packets to its own addresses for itself, whatever its routes say.
        let is_own = |ip: &&Ip| self.facts.addresses.iter().any(|(_, own)| own == *ip);
        let external = self.services.values().flat_map(|s| s.external_ips.iter().chain(&s.load_balancer_ips));
        let services = services.chain(external.filter(|ip| !is_own(ip)));
        let has_node_port = |s: &Service| s.ports.iter().any(|port| port.node_port != 0);
        let node_ports: &[Ip] = if self.services.values().any(has_node_port) { &NODE_PORTS } else { &[] };
        let services = services.chain(node_ports);
        let services = services.map(|ip| Prefix::host(*ip)).chain(service_cidrs.iter().copied());
        for prefix in pods.chain(services).chain(on_enis) {
            if let Some(source) = source(prefix.addr()) {
                routes.insert(prefix, source);
            }
        }
        // The stack answers the engine's own address through the engine (docs/nat.md); and on pods' veths it answers ARP
        // only for what it can route (docs/fallback.md).
        if let Some(source) = source(names::GATEWAY_IP) {
            routes.insert(Prefix::host(names::GATEWAY_IP), source);
        }
        Some(HostPlan { addresses, routes, mtu: self.pod_mtu() })
    }

    /// Number and name of the uplink.
    pub fn uplink(&self) -> Option<(u32, &str)> {
        let ifindex = self.uplink?;
        Some((ifindex, self.facts.links.get(&ifindex)?.name.as_str()))
    }

    /// The neighbours on uplinks that tunnels and routes lead through, each with its link.
    pub fn next_hops(&self) -> impl Iterator<Item = (u32, Ip)> + '_ {
        let of_tunnels = self.uplink.into_iter().flat_map(|uplink| {
            let only_theirs = |ip: &&Ip| !self.needed_neighbours.contains_key(&(super::UPLINK_PORT, **ip));
            self.next_hop_users.keys().filter(only_theirs).map(move |ip| (uplink, *ip))
        });
        let of_routes = self.needed_neighbours.keys();
        of_tunnels.chain(of_routes.filter_map(|(port, ip)| Some((self.uplink_ifindex(*port)?, *ip))))
    }

    /// Whether some tunnel or route leads through this neighbour.
    pub fn is_next_hop(&self, ifindex: u32, ip: Ip) -> bool {
        let of_tunnel = self.uplink == Some(ifindex) && self.next_hop_users.contains_key(&ip);
        let port = self.uplink_port(ifindex);
        of_tunnel || port.is_some_and(|port| self.needed_neighbours.contains_key(&(port, ip)))
    }

    /// How many objects of each kind are known.
    pub fn object_counts(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("nodes", self.nodes.len()),
            ("namespaces", self.namespaces.len()),
            ("pods", self.pods.len()),
            ("services", self.services.len()),
            ("endpointslices", self.slices.len()),
            ("pools", self.pools.len()),
            ("nodes_with_enis", self.enis.len()),
        ])
    }

    /// The object that an entry of the tables comes from.
    pub fn claimant(&self, key: &crate::model::Key) -> Option<String> {
        let object = |kind, namespace, name| ObjectKey::new(kind, namespace, name).to_string();
        Some(match self.claims.get(key)?.keys().next()? {
            super::Source::Local => object(Kind::Node, "", &self.config.node),
            super::Source::Node(name) => object(Kind::Node, "", name),
            super::Source::NextHop(_, ip) => format!("neighbour {ip}"),
            super::Source::Pools => "the pools".to_owned(),
            super::Source::Enis => object(Kind::NodeEnis, "", &self.config.node),
            super::Source::Kernel(prefix) => format!("the kernel's route {prefix}"),
            super::Source::Pod(namespace, name) => object(Kind::Pod, namespace, name),
            super::Source::Service(namespace, name) => object(Kind::Service, namespace, name),
        })
    }

    /// This node's pods for which there was no port number left.
    pub fn without_port(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.waiting_for_port.iter().map(|(namespace, name)| ObjectKey::new(Kind::Pod, namespace, name))
    }

    /// Namespace and name of the pod behind a veth of this node.
    pub fn pod_behind(&self, veth: &str) -> Option<(&str, &str)> {
        let (namespace, name) = self.pods_by_veth.get(veth)?.first()?;
        Some((namespace, name))
    }

    /// Name of the service that owns an address and port.
    pub fn service_named(&self, key: &ServiceKey) -> Option<(&str, &str, &str)> {
        let source = self.claims.get(&crate::model::Key::Service(*key))?.keys().next()?;
        let super::Source::Service(namespace, name) = source else { return None };
        let service = self.services.get(&(namespace.clone(), name.clone()))?;
        let by_node_port = self.node_port_ips.contains(&key.ip) || NODE_PORTS.contains(&key.ip);
        let is_it = |p: &&ServicePort| {
            (p.port == key.port || (by_node_port && p.node_port == key.port)) && p.proto == key.proto
        };
        let port = service.ports.iter().find(is_it)?;
        Some((service.namespace.as_str(), service.name.as_str(), port.name.as_str()))
    }

    /// Name of the remote node that has this underlay address.
    pub fn node_at(&self, vtep: Ip) -> Option<&str> {
        let node = self.nodes.values().find(|node| node.underlay().any(|ip| ip == vtep))?;
        Some(node.name.as_str())
    }

    /// Name of the remote node whose pods a route leads to.
    pub fn node_behind(&self, prefix: &Prefix) -> Option<&str> {
        match self.claims.get(&crate::model::Key::Route(*prefix))?.keys().next()? {
            super::Source::Node(name) => Some(name),
            _ => None,
        }
    }

    /// Names of the remote nodes that are reached through a neighbour.
    pub fn nodes_through(&self, next_hop: Ip) -> impl Iterator<Item = &str> {
        self.next_hop_users.get(&next_hop).into_iter().flatten().map(String::as_str)
    }

    /// Everything that waits, with what it waits for.
    pub fn pending(&self) -> Vec<Pending> {
        let mut out = Vec::new();
        let mut push = |what: String, reason: String| out.push(Pending { what, reason });
        let me = &self.config.node;
        if !self.nodes.contains_key(me) {
            let reason = "there is no such Node object; add it, or set --node to the name of one that exists";
            push(format!("Node {me}"), reason.into());
        }
        match (&self.config.uplink, self.uplink) {
            (_, Some(_)) => {}
            (Some(name), None) => push(format!("uplink {name}"), "there is no such device".into()),
            (None, None) => {
                let ips = self.nodes.get(me).map(|n| join(&n.internal_ips)).unwrap_or_default();
                push(
                    "uplink".into(),
                    format!("no device has the node's InternalIP {ips}; assign it, or set --uplink"),
                );
            }
        }
        for name in [names::HOST_KERNEL_IF, names::HOST_ENGINE_IF] {
            if self.facts.link_named(name).is_none() {
                push(format!("host veth {name}"), "the device is not there".into());
            }
        }
        for pod in self.pods.values().filter(|pod| self.is_local(pod)) {
            let key = ObjectKey::new(Kind::Pod, &pod.namespace, &pod.name);
            let veth = names::host_veth(&pod.namespace, &pod.name);
            let source = super::Source::Pod(pod.namespace.clone(), pod.name.clone());
            if pod.ips.is_empty() {
                push(key.to_string(), "it has no status.podIP".into());
            } else if self.facts.link_named(&veth).is_none() {
                push(key.to_string(), format!("its veth {veth} is not there"));
            } else if !self.contributions.contains_key(&source) {
                push(key.to_string(), format!("all {} ports are taken", self.config.max_ports));
            }
        }
        self.pending_tunnels(&mut push);
        self.pending_pools(&mut push);
        self.pending_kernel_routes(&mut push);
        self.pending_enis(&mut push);
        self.pending_masquerade(&mut push);
        self.pending_dsr(&mut push);
        out
    }

    fn pending_tunnels(&self, push: &mut impl FnMut(String, String)) {
        if !self.nodes.contains_key(&self.config.node) || self.uplink.is_none() {
            return;
        }
        for name in self.nodes.keys().filter(|name| **name != self.config.node) {
            let what = || format!("tunnel to Node {name}");
            let paths = self.paths_to(name);
            self.pending_families(name, push);
            if paths.is_empty() {
                push(what(), "it has no InternalIP of this node's address family".into());
            }
            for (_, vtep, next_hop) in paths {
                let Some(next_hop) = next_hop else {
                    push(what(), format!("the kernel has no route to {vtep} out of the uplink"));
                    continue;
                };
                let key = (self.uplink.unwrap_or_default(), next_hop);
                if !self.facts.neighbours.contains_key(&key) {
                    push(what(), format!("neighbour {next_hop} on the uplink does not answer yet"));
                }
            }
        }
    }
}

fn join(ips: &[Ip]) -> String {
    ips.iter().map(Ip::to_string).collect::<Vec<_>>().join(", ")
}
