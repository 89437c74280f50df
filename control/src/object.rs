//! The cluster's objects as Fairway needs them: checked, plain and owned. Sources make them from
//! Kubernetes objects ([`crate::convert`]); the index knows nothing else of Kubernetes.

use crate::encapsulation::Pool;
use crate::enis::NodeEnis;
use crate::masquerade::MasqueradeConfig;
use fairway_tables::{Ip, Mac, Prefix};
use std::fmt;

/// Kinds of objects that the index knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
pub enum Kind {
    /// v1 Node.
    Node,
    /// v1 Namespace.
    Namespace,
    /// v1 Pod.
    Pod,
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// projectcalico.org/v3 IPPool.
    IpPool,
    /// The v1 ConfigMap of Flannel.
    FlannelConfig,
    /// The v1 ConfigMap of ip-masq-agent.
    MasqueradeConfig,
    /// network.alibabacloud.com/v1beta1 Node: a node's ENIs.
    NodeEnis,
}

/// Identity of an object. The namespace of a Node or Namespace is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// What it is.
    pub kind: Kind,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{:?} {}", self.kind, self.name)
        } else {
            write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `spec.podCIDRs` (or `spec.podCIDR`); at least one.
    pub pod_cidrs: Vec<Prefix>,
    /// `status.addresses` of type InternalIP; at least one, the first is the VTEP.
    pub internal_ips: Vec<Ip>,
    /// Label `topology.kubernetes.io/zone`; empty if it has none.
    pub zone: String,
    /// What other network plugins noted of it.
    pub hints: NodeHints,
}

/// What Calico and Flannel noted of a node in its annotations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeHints {
    /// `projectcalico.org/IPv4Address`: its address between the nodes, and the subnet that holds it.
    pub subnet: Option<(Ip, Prefix)>,
    /// `projectcalico.org/IPv6Address`.
    pub subnet6: Option<(Ip, Prefix)>,
    /// `projectcalico.org/VXLANTunnelMACAddr`.
    pub calico_vtep_mac: Option<Mac>,
    /// `projectcalico.org/VXLANTunnelMACAddrV6`: the same over IPv6.
    pub calico_vtep_mac6: Option<Mac>,
    /// `flannel.alpha.coreos.com/public-ip`: its address between the nodes.
    pub flannel_ip: Option<Ip>,
    /// `flannel.alpha.coreos.com/public-ipv6`.
    pub flannel_ip6: Option<Ip>,
    /// `VtepMAC` of `flannel.alpha.coreos.com/backend-data`.
    pub flannel_vtep_mac: Option<Mac>,
    /// `VtepMAC` of `flannel.alpha.coreos.com/backend-v6-data`.
    pub flannel_vtep_mac6: Option<Mac>,
}

impl Node {
    /// The node's addresses between the nodes, best first: what other plugins noted, then its InternalIPs.
    pub fn underlay(&self) -> impl Iterator<Item = Ip> + '_ {
        let NodeHints { subnet, subnet6, flannel_ip, flannel_ip6, .. } = self.hints;
        let calico = [subnet, subnet6].into_iter().flatten().map(|(ip, _)| ip);
        let hints = calico.chain(flannel_ip).chain(flannel_ip6);
        hints.chain(self.internal_ips.iter().copied())
    }
}

/// A pod, wherever it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: String,
    /// `status.podIPs` (or `status.podIP`); empty while it has none.
    pub ips: Vec<Ip>,
    /// `spec.hostNetwork`: the pod uses its node's own network and needs no port.
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its address may belong to another pod by now.
    pub finished: bool,
}

impl Pod {
    /// Whether the pod has a network of its own, and so a claim on its addresses.
    pub fn has_network(&self) -> bool {
        !self.host_network && !self.finished
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// `name`; empty if it has none.
    pub name: String,
    /// `port`, 1–65535.
    pub port: u16,
    /// IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
    pub proto: u8,
    /// `nodePort`; 0 if it has none.
    pub node_port: u16,
}

/// A Service with cluster addresses, or without (headless, ExternalName, left to another proxy: it then produces
/// nothing).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterIPs` (or `spec.clusterIP`); empty for a headless or ExternalName service.
    pub cluster_ips: Vec<Ip>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`; 0 without session affinity.
    pub affinity_timeout_s: u32,
    /// `spec.internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is Local, and the service is reached from outside.
    pub external_local: bool,
    /// `spec.externalIPs`.
    pub external_ips: Vec<Ip>,
    /// `status.loadBalancer.ingress[].ip` of mode VIP: packets come addressed to them.
    pub load_balancer_ips: Vec<Ip>,
    /// `spec.loadBalancerSourceRanges`; empty: all are admitted.
    pub source_ranges: Vec<Prefix>,
    /// `spec.healthCheckNodePort`, where it is to be answered; else 0.
    pub health_check_node_port: u16,
    /// Annotation `fairway.io/load-balancer` is maglev.
    pub maglev: bool,
    /// Annotation `fairway.io/forwarding` is dsr.
    pub dsr: bool,
}

impl Service {
    /// Whether it is reached at other addresses than cluster addresses.
    pub fn is_external(&self) -> bool {
        let node_ports = self.ports.iter().any(|port| port.node_port != 0);
        node_ports || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Whether backends on other nodes are to answer clients outside themselves. Under `externalTrafficPolicy: Local` there
    /// are none.
    pub fn uses_dsr(&self) -> bool {
        self.dsr && !self.external_local && self.is_external()
    }
}

/// One entry of an EndpointSlice's `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// `name`; empty if it has none.
    pub name: String,
    /// `port`, 1–65535.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// One entry of an EndpointSlice's `endpoints`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// The first of `addresses`; the API says that further ones are interchangeable with it.
    pub ip: Ip,
    /// `conditions.ready`; true where it is not given.
    pub ready: bool,
    /// `conditions.serving`; true where it is not given.
    pub serving: bool,
    /// `conditions.terminating`; false where it is not given.
    pub terminating: bool,
    /// `nodeName`; empty where it is not given.
    pub node: Box<str>,
    /// `hints.forNodes[].name`.
    pub for_nodes: Box<[Box<str>]>,
    /// `hints.forZones[].name`.
    pub for_zones: Box<[Box<str>]>,
}

impl SliceEndpoint {
    /// A ready endpoint, of which nothing else is known.
    pub fn ready(ip: Ip) -> SliceEndpoint {
        SliceEndpoint {
            ip,
            ready: true,
            serving: true,
            terminating: false,
            node: Box::default(),
            for_nodes: Box::default(),
            for_zones: Box::default(),
        }
    }
}

/// Endpoints of a service, of one address family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Label `kubernetes.io/service-name`; empty if it belongs to no service.
    pub service: String,
    /// `addressType` is IPv4.
    pub is_v4: bool,
    /// `ports` that have a number.
    pub ports: Vec<SlicePort>,
    /// `endpoints` with an address.
    pub endpoints: Vec<SliceEndpoint>,
}

/// An object of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A node.
    Node(Node),
    /// A namespace, by name.
    Namespace(String),
    /// A pod.
    Pod(Pod),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// A range of pod addresses.
    Pool(Pool),
    /// Whose sources are translated.
    Masquerade(MasqueradeConfig),
    /// Network interfaces of a node that its pods share.
    NodeEnis(NodeEnis),
}

impl Object {
    /// The object's identity.
    pub fn key(&self) -> ObjectKey {
        match self {
            Object::Node(n) => ObjectKey::new(Kind::Node, "", &n.name),
            Object::Namespace(name) => ObjectKey::new(Kind::Namespace, "", name),
            Object::Pod(p) => ObjectKey::new(Kind::Pod, &p.namespace, &p.name),
            Object::Service(s) => ObjectKey::new(Kind::Service, &s.namespace, &s.name),
            Object::EndpointSlice(s) => ObjectKey::new(Kind::EndpointSlice, &s.namespace, &s.name),
            Object::Pool(pool) => pool.key(),
            Object::Masquerade(m) => ObjectKey::new(Kind::MasqueradeConfig, &m.namespace, &m.name),
            Object::NodeEnis(enis) => ObjectKey::new(Kind::NodeEnis, "", &enis.node),
        }
    }
}
