//! The Services of the matrix, the ways to them, and the rules that say what becomes of each.

use crate::ground::{Asker, ENDPOINTS, PORTS, endpoint_ip};
use fairway_tests::kube::apiserver::NAMESPACE;
use fairway_tests::pod::witness::{Question, Transport};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const PORT: u16 = 80;
/// A port that no Service has.
const NO_PORT: u16 = 7;
const FIRST_NODE_PORT: u16 = 30_100;
const FIRST_HEALTH_PORT: u16 = 30_200;
/// node-1, through which all clients go.
const NODE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1))];

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Type {
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// A kind of address at which a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Address {
    Cluster,
    NodePort,
    LoadBalancer,
    External,
}

/// Where the backends are, seen from node-1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Backends {
    SameNode,
    OtherNode,
    Both,
    None,
}

impl Backends {
    pub(crate) const ALL: [Backends; 4] =
        [Backends::SameNode, Backends::OtherNode, Backends::Both, Backends::None];

    /// Places in [`ENDPOINTS`].
    fn places(self) -> &'static [usize] {
        match self {
            Backends::SameNode => &[0],
            Backends::OtherNode => &[3],
            Backends::Both => &[0, 3],
            Backends::None => &[],
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Client {
    /// A pod of node-1.
    Pod,
    /// A process of node-1.
    Host,
    /// A station behind the nodes' router.
    Outside,
    /// A station of the nodes' own subnet that is neither a node nor the router.
    OnLink,
}

impl Client {
    pub(crate) const ALL: [Client; 4] = [Client::Pod, Client::Host, Client::Outside, Client::OnLink];

    /// As one whom every ground has.
    pub(crate) fn asker(self) -> Option<Asker> {
        match self {
            Client::Pod => Some(Asker::Pod),
            Client::Host => Some(Asker::Host),
            Client::Outside => Some(Asker::Outside),
            Client::OnLink => None,
        }
    }
}

/// Whose address a backend sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Source {
    Clients,
    Nodes,
    Another,
}

/// What becomes of the connections of one way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Each of these answers, and sees this source.
    Answered(BTreeMap<SocketAddr, Source>),
    Refused,
    Dropped,
    /// Neither always.
    Mixed(String),
}

/// One Service of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Service {
    pub(crate) kind: Type,
    /// Both traffic policies.
    pub(crate) is_local: bool,
    pub(crate) backends: Backends,
    number: u8,
}

/// One way to a Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Way {
    pub(crate) service: Service,
    pub(crate) address: Address,
    pub(crate) is_v4: bool,
    pub(crate) transport: Transport,
    /// Whether it asks for a port that the address does not have.
    pub(crate) is_unknown_port: bool,
}

/// Everything that is asked.
pub(crate) struct Plan {
    pub(crate) services: Vec<Service>,
    ways: Vec<Way>,
}

impl Plan {
    pub(crate) fn all() -> Plan {
        let mut services = Vec::new();
        for kind in [Type::ClusterIP, Type::NodePort, Type::LoadBalancer] {
            for is_local in [false, true] {
                for backends in Backends::ALL {
                    let number = services.len() as u8 + 1;
                    services.push(Service { kind, is_local, backends, number });
                }
            }
        }
        let ways = services.iter().flat_map(|service| service.ways()).collect();
        Plan { services, ways }
    }

    /// What can be asked at the same time: SCTP's refusals, which come to all sockets with the same peer, apart from what is
    /// answered.
    pub(crate) fn batches(&self) -> Vec<Vec<Way>> {
        let apart = |way: &&Way| {
            way.transport == Transport::Sctp
                && (way.is_unknown_port || way.service.backends == Backends::None)
        };
        let (refused, others): (Vec<&Way>, Vec<&Way>) = self.ways.iter().partition(apart);
        [others, refused].map(|ways| ways.into_iter().copied().collect()).into()
    }
}

impl Service {
    pub(crate) fn name(&self) -> String {
        let policy = if self.is_local { "local" } else { "cluster" };
        format!("{:?}-{policy}-{:?}", self.kind, self.backends).to_lowercase()
    }

    fn addresses(&self) -> &'static [Address] {
        match self.kind {
            Type::ClusterIP => &[Address::Cluster, Address::External],
            Type::NodePort => &[Address::Cluster, Address::NodePort],
            Type::LoadBalancer => {
                &[Address::Cluster, Address::NodePort, Address::LoadBalancer, Address::External]
            }
        }
    }

    fn ways(&self) -> Vec<Way> {
        let mut ways = Vec::new();
        for address in self.addresses() {
            for is_v4 in [true, false] {
                for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
                    let way =
                        Way { service: *self, address: *address, is_v4, transport, is_unknown_port: false };
                    ways.push(way);
                    // Enough once for each kind of backends.
                    if *address == Address::Cluster && self.kind == Type::ClusterIP {
                        ways.push(Way { is_unknown_port: true, ..way });
                    }
                }
            }
        }
        ways
    }

    fn ip(&self, address: Address, is_v4: bool) -> IpAddr {
        let n = self.number;
        match (address, is_v4) {
            (Address::NodePort, _) => NODE[usize::from(!is_v4)],
            (Address::Cluster, true) => Ipv4Addr::new(10, 96, 2, n).into(),
            (Address::LoadBalancer, true) => Ipv4Addr::new(198, 51, 100, n).into(),
            (Address::External, true) => Ipv4Addr::new(198, 51, 101, n).into(),
            (Address::Cluster, false) => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 2, n.into()).into(),
            (Address::LoadBalancer, false) => {
                Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 100, n.into()).into()
            }
            (Address::External, false) => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 101, n.into()).into(),
        }
    }

    /// Where a load balancer asks whether node-1 has endpoints, if it matters.
    pub(crate) fn health_check_port(&self) -> Option<u16> {
        (self.kind == Type::LoadBalancer && self.is_local).then(|| FIRST_HEALTH_PORT + u16::from(self.number))
    }

    /// Endpoints on node-1.
    pub(crate) fn local_endpoints(&self) -> usize {
        self.backends.places().iter().filter(|place| ENDPOINTS[**place].1 == 0).count()
    }

    fn node_port(&self) -> u16 {
        FIRST_NODE_PORT + u16::from(self.number)
    }

    /// The Service and its slices.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let has = |address| self.addresses().contains(&address);
        let both = |address| [true, false].map(|is_v4| self.ip(address, is_v4));
        let protocols = ["TCP", "UDP", "SCTP"];
        let port = |protocol: &str| {
            let mut port = json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT});
            if has(Address::NodePort) {
                port["nodePort"] = self.node_port().into();
            }
            port
        };
        let policy = if self.is_local { "Local" } else { "Cluster" };
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": self.name()},
            "spec": {
                "type": format!("{:?}", self.kind), "clusterIPs": both(Address::Cluster),
                "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "internalTrafficPolicy": policy, "ports": protocols.map(port),
            },
        });
        if has(Address::External) {
            service["spec"]["externalIPs"] = json!(both(Address::External));
        }
        if self.kind != Type::ClusterIP || has(Address::External) {
            service["spec"]["externalTrafficPolicy"] = policy.into();
        }
        if let Some(port) = self.health_check_port() {
            service["spec"]["healthCheckNodePort"] = port.into();
        }
        if has(Address::LoadBalancer) {
            let ingress = both(Address::LoadBalancer).map(|ip| json!({"ip": ip}));
            service["status"]["loadBalancer"]["ingress"] = json!(ingress);
        }
        let mut objects = vec![service];
        for is_v4 in [true, false] {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORTS[0]});
            let endpoint = |place: &usize| {
                let node = format!("node-{}", ENDPOINTS[*place].1 + 1);
                json!({"addresses": [endpoint_ip(is_v4, *place)], "nodeName": node})
            };
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {
                    "namespace": NAMESPACE, "name": format!("{}-{family}", self.name()).to_lowercase(),
                    "labels": {"kubernetes.io/service-name": self.name()},
                },
                "ports": protocols.map(port),
                "endpoints": self.backends.places().iter().map(endpoint).collect::<Vec<_>>(),
            }));
        }
        objects
    }
}

impl Way {
    pub(crate) fn question(&self) -> Question {
        let port = match self.address {
            _ if self.is_unknown_port => NO_PORT,
            Address::NodePort => self.service.node_port(),
            _ => PORT,
        };
        Question {
            transport: self.transport,
            target: SocketAddr::new(self.service.ip(self.address, self.is_v4), port),
        }
    }

    /// What kube-proxy does (docs/services.md, "Which backends, and as whom").
    pub(crate) fn expected(&self, client: Client) -> Outcome {
        let Service { is_local, backends, .. } = self.service;
        let is_cluster = self.address == Address::Cluster;
        if client == Client::Host && self.address == Address::NodePort && self.transport == Transport::Sctp {
            // The kernel asks no program where SCTP's sockets connect to.
            return Outcome::Dropped;
        }
        if self.is_unknown_port || backends == Backends::None {
            return Outcome::Refused;
        }
        let is_outside = matches!(client, Client::Outside | Client::OnLink);
        // Pods and the node itself take a short cut past externalTrafficPolicy: Local.
        let only_local = is_local && (is_cluster || is_outside);
        let source = match client {
            Client::Host => Source::Nodes,
            Client::Pod if is_cluster || is_local => Source::Clients,
            Client::Pod => Source::Nodes,
            _ if is_local && !is_cluster => Source::Clients,
            _ => Source::Nodes,
        };
        let usable = backends.places().iter().filter(|place| ENDPOINTS[**place].1 == 0 || !only_local);
        let answer = |place: &usize| (SocketAddr::new(endpoint_ip(self.is_v4, *place), PORTS[0]), source);
        let answers: BTreeMap<SocketAddr, Source> = usable.map(answer).collect();
        if answers.is_empty() { Outcome::Dropped } else { Outcome::Answered(answers) }
    }
}
