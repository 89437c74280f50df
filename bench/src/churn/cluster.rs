//! A cluster of a given size as Kubernetes objects, made one by one so that none but control's own copy is held.

use fairway_control::index::{Event, Facts, KernelEvent, KernelRoute, Link, Place};
use fairway_control::kernel::{NeighbourTrust, Update};
use fairway_control::names::{HOST_ENGINE_IF, HOST_KERNEL_IF, host_veth};
use fairway_control::object::Object;
use fairway_control::{convert, services};
use fairway_tables::{Ip, Mac, Prefix, ServiceKey};
use k8s_openapi::api::core::v1::{
    Node, NodeAddress, NodeSpec, NodeStatus, Pod, PodIP, PodSpec, PodStatus, Service, ServicePort,
    ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ChurnError;

/// Pods of a node, all of them endpoints of services.
pub const PODS_PER_NODE: usize = 20;
/// Services per node of the cluster.
const SERVICES_PER_NODE: usize = 2;
/// Most endpoints of a slice, as the EndpointSlice controller makes them.
pub const SLICE_ENDPOINTS: usize = 100;
/// Endpoints of a large service; one service in a thousand is one, and at least one.
const LARGE: usize = 1000;
/// Port of every service, and of every endpoint.
pub const SERVICE_PORT: u16 = 80;
/// See [`SERVICE_PORT`].
pub const TARGET_PORT: u16 = 8080;
/// Namespace of everything.
const NAMESPACE: &str = "default";

/// Its size; everything else follows.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// Nodes, this one included, which is number 0.
    pub nodes: usize,
}

/// An endpoint of a service as the benchmark changes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which pod of the cluster it is.
    pub pod: usize,
    /// Whether it is ready.
    pub ready: bool,
}

impl Cluster {
    /// Services in it.
    pub fn services(&self) -> usize {
        self.nodes * SERVICES_PER_NODE
    }

    /// Pods in it, each an endpoint of one service.
    pub fn pods(&self) -> usize {
        self.nodes * PODS_PER_NODE
    }

    /// How many services have a thousand endpoints; they are the first ones.
    pub fn large_services(&self) -> usize {
        (self.services() / 1000).max(1)
    }

    /// First pod and number of pods behind a service.
    fn pods_of(&self, service: usize) -> (usize, usize) {
        let large = self.large_services();
        if service < large {
            return (service * LARGE, LARGE);
        }
        let (rest, others) = (self.pods() - large * LARGE, self.services() - large);
        let each = rest / others;
        (large * LARGE + (service - large) * each, each)
    }

    /// The endpoints of a service at the beginning.
    pub fn members(&self, service: usize) -> Vec<Member> {
        let (first, count) = self.pods_of(service);
        (first..first + count).map(|pod| Member { pod, ready: true }).collect()
    }

    /// Name of a node.
    pub fn node_name(n: usize) -> String {
        format!("node-{n:05}")
    }

    /// A node's address on the network between nodes.
    pub fn node_ip(n: usize) -> [u8; 4] {
        let n = n + 10;
        [172, 16 + (n >> 16) as u8, (n >> 8) as u8, n as u8]
    }

    /// A node's pod range, and a pod's address in it.
    fn pod_net(n: usize, host: usize) -> [u8; 4] {
        [10, 64 + (n >> 8) as u8, n as u8, host as u8]
    }

    /// A pod's address.
    pub fn pod_ip(pod: usize) -> [u8; 4] {
        Self::pod_net(pod / PODS_PER_NODE, 2 + pod % PODS_PER_NODE)
    }

    /// A service's address.
    pub fn service_ip(service: usize) -> [u8; 4] {
        let n = service + 10;
        [10, 96 + (n >> 16) as u8, (n >> 8) as u8, n as u8]
    }

    /// Under what the tables hold a service.
    pub fn service_key(service: usize) -> ServiceKey {
        ServiceKey::new(Ip::v4(Self::service_ip(service)), SERVICE_PORT, 6)
    }

    /// The Node object.
    pub fn node(&self, n: usize) -> Node {
        let address = NodeAddress { type_: "InternalIP".into(), address: dotted(Self::node_ip(n)) };
        Node {
            metadata: meta(&Self::node_name(n), None),
            spec: Some(NodeSpec {
                pod_cidr: Some(format!("{}/24", dotted(Self::pod_net(n, 0)))),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() }),
        }
    }

    /// The Pod object.
    pub fn pod(&self, pod: usize) -> Pod {
        let ip = dotted(Self::pod_ip(pod));
        Pod {
            metadata: meta(&pod_name(pod), Some(NAMESPACE)),
            spec: Some(PodSpec {
                node_name: Some(Self::node_name(pod / PODS_PER_NODE)),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                pod_ip: Some(ip.clone()),
                pod_ips: Some(vec![PodIP { ip }]),
                phase: Some("Running".into()),
                ..PodStatus::default()
            }),
        }
    }

    /// The Service object.
    pub fn service(&self, service: usize) -> Service {
        let port = ServicePort {
            name: Some("http".into()),
            port: i32::from(SERVICE_PORT),
            protocol: Some("TCP".into()),
            ..ServicePort::default()
        };
        let ip = dotted(Self::service_ip(service));
        Service {
            metadata: meta(&service_name(service), Some(NAMESPACE)),
            spec: Some(ServiceSpec {
                cluster_ip: Some(ip.clone()),
                cluster_ips: Some(vec![ip]),
                ports: Some(vec![port]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// Slice number `part` of a service, with these endpoints.
    pub fn slice(&self, service: usize, part: usize, members: &[Member]) -> EndpointSlice {
        let mut metadata = meta(&format!("{}-{part}", service_name(service)), Some(NAMESPACE));
        let label = ("kubernetes.io/service-name".to_owned(), service_name(service));
        metadata.labels = Some([label].into());
        let port = EndpointPort {
            name: Some("http".into()),
            port: Some(i32::from(TARGET_PORT)),
            protocol: Some("TCP".into()),
            app_protocol: None,
        };
        let endpoint = |member: &Member| Endpoint {
            addresses: vec![dotted(Self::pod_ip(member.pod))],
            conditions: Some(EndpointConditions {
                ready: Some(member.ready),
                serving: Some(member.ready),
                terminating: Some(false),
            }),
            node_name: Some(Self::node_name(member.pod / PODS_PER_NODE)),
            ..Endpoint::default()
        };
        EndpointSlice {
            metadata,
            address_type: "IPv4".into(),
            ports: Some(vec![port]),
            endpoints: Some(members.iter().map(endpoint).collect()),
        }
    }

    /// All slices of a service.
    pub fn slices(&self, service: usize) -> Vec<EndpointSlice> {
        let members = self.members(service);
        members
            .chunks(SLICE_ENDPOINTS)
            .enumerate()
            .map(|(part, members)| self.slice(service, part, members))
            .collect()
    }

    /// Every object in turn, checked and converted as from any source.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        let nodes = (0..self.nodes).map(|n| upsert(convert::node(&self.node(n))));
        let pods = (0..self.pods()).map(|n| upsert(convert::pod(&self.pod(n))));
        let services = (0..self.services()).flat_map(|n| {
            let slices = self.slices(n);
            let slices = slices.into_iter().map(|slice| upsert(convert::endpoint_slice(&slice)));
            [upsert(services::service(&self.service(n)))].into_iter().chain(slices)
        });
        nodes.chain(pods).chain(services)
    }

    /// What the kernel of node 0 says: an uplink on which every other node answers, the host veth, and its pods' veths.
    pub fn kernel(&self) -> Update {
        let mut facts = Facts::default();
        let mac = |ifindex: u32| Mac([2, 0, 0, 0, (ifindex >> 8) as u8, ifindex as u8]);
        let link = |ifindex: u32, name: &str| {
            KernelEvent::Link(Link { ifindex, name: name.to_owned(), mac: mac(ifindex), mtu: 1500, up: true })
        };
        let any = Ip::v4([172, 16, 0, 0]);
        let network = Prefix::new(any, 12).unwrap_or(Prefix::host(any));
        let mut events = vec![
            link(2, "eth0"),
            link(3, HOST_KERNEL_IF),
            link(4, HOST_ENGINE_IF),
            KernelEvent::Address(2, Ip::v4(Self::node_ip(0))),
            KernelEvent::Route(network, 0, KernelRoute::direct(2), Place::Last),
        ];
        events.extend(
            (0..PODS_PER_NODE).map(|pod| link(10 + pod as u32, &host_veth(NAMESPACE, &pod_name(pod)))),
        );
        // One node more than there are, which the benchmark lets come and go.
        let others = (1..=self.nodes).map(|n| Ip::v4(Self::node_ip(n)));
        let mac_of = |ip: Ip| Mac([2, 1, ip.0[12], ip.0[13], ip.0[14], ip.0[15]]);
        events.extend(others.clone().map(|ip| KernelEvent::Neighbour(2, ip, Some(mac_of(ip)))));
        events.iter().for_each(|event| facts.apply(event));
        Update::Listing(facts, others.map(|ip| (2, ip, NeighbourTrust::Fresh)).collect())
    }
}

/// An event from a converted object.
///
/// # Panics
/// If control refuses the object: the generator is wrong then.
pub fn upsert(object: Result<Object, convert::FieldError>) -> Event {
    Event::Upsert(object.unwrap_or_else(|error| panic!("a generated object is refused: {error}")))
}

/// Any object as a YAML document.
///
/// # Errors
/// [`ChurnError::Object`] if it cannot be written.
pub fn yaml(object: &impl serde::Serialize) -> Result<String, ChurnError> {
    let text = serde_norway::to_string(object);
    Ok(format!(
        "---\n{}",
        text.map_err(|e| ChurnError::Object { object: "object".into(), reason: e.to_string() })?
    ))
}

/// Name of a service.
pub fn service_name(service: usize) -> String {
    format!("service-{service:05}")
}

fn pod_name(pod: usize) -> String {
    format!("pod-{pod:06}")
}

fn dotted(ip: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(ip).to_string()
}

fn meta(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        ..ObjectMeta::default()
    }
}
