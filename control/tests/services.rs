//! From a Service and its slices to records: every address at which it is reached, the lists of backends under every
//! policy, source ranges, health checks, labels, and the errors of fields.

mod common;

use fairway_control::core::{Core, Options};
use fairway_control::index::NodePortAddresses;
use fairway_control::manifests::Folder;
use fairway_tables::{Capacities, Ip, NextHopKind, Prefix, Service, ServiceKey, Tables};
use serde_json::{Value, json};
use std::path::Path;

const CLUSTER: Ip = Ip::v4([10, 96, 0, 1]);
const NODE: Ip = Ip::v4([192, 0, 2, 1]);
const BALANCER: Ip = Ip::v4([203, 0, 113, 1]);
const EXTERNAL: Ip = Ip::v4([198, 51, 100, 1]);

fn service(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": ["198.51.100.1"],
            "ports": [{"port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    });
    let spec = spec.as_object().into_iter().flatten();
    spec.for_each(|(field, value)| object["spec"][field] = value.clone());
    object
}

/// Endpoint 10.244.N.9 on node N; 1 is this node, `a`.
fn slice(nodes: &[u8]) -> Value {
    let endpoint = |n: &u8| {
        let node = if *n == 1 { "a".to_owned() } else { format!("other-{n}") };
        json!({"addresses": [format!("10.244.{n}.9")], "nodeName": node})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
        },
        "ports": [{"port": 8080}], "endpoints": nodes.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

struct Node {
    core: Core,
}

impl Node {
    fn new(node_port_addresses: NodePortAddresses) -> Node {
        let (writer, _) = Tables::heap(Capacities::default());
        let options = Options { node_port_addresses, ..common::options(Path::new("/nowhere")) };
        let mut core = Core::new(options, writer);
        core.take(vec![], common::kernel(&[]));
        Node { core }
    }

    fn take(&mut self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let node = common::node("a", "10.244.1.0/24", "192.0.2.1");
        self.core.take(common::files(&[("node.yaml", node), ("shop.json", list)]), vec![]);
        assert_eq!(self.core.folder().errors(), vec![]);
    }

    /// Flags of an address and port, nodes of its backends for any client, and of those for clients from outside.
    fn record(&self, ip: Ip, port: u16) -> Option<(u32, Vec<u8>, Vec<u8>)> {
        let view = self.core.publisher().view().service(&ServiceKey::new(ip, port, 6))?;
        let nodes = |set: fairway_tables::BackendSet<'_>| set.iter().map(|b| b.ip.0[14]).collect();
        Some((view.service().flags, nodes(view.cluster()), nodes(view.local())))
    }

    fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> =
            self.core.publisher().view().services().map(|(_, view)| view.service().id).collect();
        ids.dedup();
        ids
    }
}

/// Every address of the service, the cluster's first.
const ADDRESSES: [(Ip, u16); 4] = [(CLUSTER, 80), (NODE, 30080), (BALANCER, 80), (EXTERNAL, 80)];

#[test]
fn policies_say_which_backends_each_address_leads_to() {
    const ELSEWHERE: u32 = Service::ENDPOINTS_ELSEWHERE;
    const ANY: u32 = Service::EXTERNAL | Service::MASQUERADE;
    const OWN: u32 = Service::EXTERNAL | Service::LOCAL;
    let (here, there, both) = (vec![1], vec![2, 3], vec![1, 2, 3]);
    let none = Vec::<u8>::new;
    // Internal and external policy, endpoints' nodes; then what the cluster address and the others lead to.
    let cases = [
        ("Cluster", "Cluster", &both, (0, both.clone(), none()), (ANY, both.clone(), none())),
        ("Cluster", "Cluster", &there, (0, there.clone(), none()), (ANY, there.clone(), none())),
        ("Cluster", "Cluster", &none(), (0, none(), none()), (ANY, none(), none())),
        ("Cluster", "Local", &both, (0, both.clone(), none()), (OWN, both.clone(), here.clone())),
        ("Cluster", "Local", &there, (0, there.clone(), none()), (OWN | ELSEWHERE, there.clone(), none())),
        ("Cluster", "Local", &none(), (0, none(), none()), (OWN, none(), none())),
        ("Local", "Cluster", &both, (0, here.clone(), none()), (ANY, both.clone(), none())),
        ("Local", "Cluster", &there, (ELSEWHERE, none(), none()), (ANY, there.clone(), none())),
        ("Local", "Local", &both, (0, here.clone(), none()), (OWN, both.clone(), here.clone())),
        ("Local", "Local", &there, (ELSEWHERE, none(), none()), (OWN | ELSEWHERE, there.clone(), none())),
        ("Local", "Local", &none(), (0, none(), none()), (OWN, none(), none())),
    ];
    let mut node = Node::new(NodePortAddresses::Primary);
    for (internal, external, nodes, cluster, others) in cases {
        let spec = json!({"internalTrafficPolicy": internal, "externalTrafficPolicy": external});
        node.take(&[service(&spec), slice(nodes)]);
        let what = format!("internal {internal}, external {external}, endpoints on {nodes:?}");
        let got: Vec<_> = ADDRESSES.iter().map(|(ip, port)| node.record(*ip, *port).expect(&what)).collect();
        assert_eq!(got, [cluster, others.clone(), others.clone(), others], "{what}");
        assert_eq!(node.ids().len(), 1, "all addresses of a service port share its number");
    }
}

#[test]
fn other_ports_of_a_cluster_address_are_known_as_the_services_and_lead_nowhere() {
    let mut node = Node::new(NodePortAddresses::Primary);
    node.take(&[service(&json!({})), slice(&[1])]);
    let backends = |node: &Node, ip: Ip| {
        let view = node.core.publisher().view().service(&ServiceKey::no_port(ip))?;
        Some((view.service().flags, view.cluster().len()))
    };
    assert_eq!(backends(&node, CLUSTER), Some((0, 0)));
    for other in [NODE, BALANCER, EXTERNAL] {
        assert_eq!(backends(&node, other), None, "{other} may be somebody else's too");
    }
    let listed = node.core.services();
    assert!(listed.iter().all(|service| service.port != 0), "nobody asked for it: {listed:?}");
    node.take(&[service(&json!({"clusterIP": "None"})), slice(&[1])]);
    assert_eq!(backends(&node, CLUSTER), None);
}

#[test]
fn addresses_of_no_service_in_the_services_range_lead_nowhere() {
    let (writer, _) = Tables::heap(Capacities::default());
    let service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    let options = Options { service_cidrs, ..common::options(Path::new("/nowhere")) };
    let mut core = Core::new(options, writer);
    let node = common::node("a", "10.244.1.0/24", "192.0.2.1");
    core.take(common::files(&[("node.yaml", node)]), common::kernel(&[]));
    let kind = |core: &Core, ip| core.publisher().view().route(ip).and_then(|hop| hop.kind());
    assert_eq!(kind(&core, CLUSTER), Some(NextHopKind::Blackhole));
    assert_eq!(kind(&core, EXTERNAL), Some(NextHopKind::Host));
}

#[test]
fn node_ports_answer_on_the_addresses_that_are_asked_for() {
    let second = Ip::v4([192, 0, 2, 77]);
    let with_second = |addresses: NodePortAddresses| {
        let mut node = Node::new(addresses);
        node.take(&[service(&json!({})), slice(&[1])]);
        let address = fairway_control::index::KernelEvent::Address(2, second);
        node.core.take(vec![], vec![fairway_control::kernel::Update::Event(address)]);
        node
    };
    let answers = |node: &Node| [NODE, second].map(|ip| node.record(ip, 30080).is_some());
    assert_eq!(answers(&with_second(NodePortAddresses::Primary)), [true, false]);
    let ranges =
        |list: &[&str]| NodePortAddresses::In(list.iter().map(|range| range.parse().unwrap()).collect());
    assert_eq!(answers(&with_second(ranges(&["192.0.2.64/26"]))), [false, true]);
    let mut node = with_second(ranges(&["0.0.0.0/0"]));
    assert_eq!(answers(&node), [true, true]);
    let gone = fairway_control::index::KernelEvent::AddressGone(2, second);
    node.core.take(vec![], vec![fairway_control::kernel::Update::Event(gone)]);
    assert_eq!(answers(&node), [true, false]);
}

#[test]
fn source_ranges_hold_at_the_load_balancers_address_and_admit_this_node() {
    let ranges = |node: &Node, ip: Ip, port: u16| -> Vec<String> {
        let view = node.core.publisher().view().service(&ServiceKey::new(ip, port, 6)).unwrap();
        assert_eq!(view.service().flags & Service::SOURCE_RANGES != 0, view.source_ranges().next().is_some());
        view.source_ranges().map(|range: Prefix| range.to_string()).collect()
    };
    let mut node = Node::new(NodePortAddresses::Primary);
    node.take(&[service(&json!({"loadBalancerSourceRanges": [" 10.0.0.0/8 ", "fd00::/8"]})), slice(&[1])]);
    assert_eq!(ranges(&node, BALANCER, 80), ["10.0.0.0/8"]);
    for (ip, port) in [(CLUSTER, 80), (NODE, 30080), (EXTERNAL, 80)] {
        assert_eq!(ranges(&node, ip, port), [""; 0]);
    }
    // This node is inside: so is the balancer's own address.
    node.take(&[service(&json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]})), slice(&[1])]);
    assert_eq!(ranges(&node, BALANCER, 80), ["192.0.2.0/24", "203.0.113.1/32"]);
}

#[test]
fn a_proxy_mode_address_and_services_for_others_are_left_alone() {
    let mut node = Node::new(NodePortAddresses::Primary);
    let mut proxied = service(&json!({}));
    proxied["status"]["loadBalancer"]["ingress"][0]["ipMode"] = "Proxy".into();
    node.take(&[proxied, slice(&[1])]);
    assert_eq!(node.record(BALANCER, 80), None);
    assert!(node.record(CLUSTER, 80).is_some());

    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let (mut other, mut endpoints) = (service(&json!({})), slice(&[1]));
        other["metadata"]["labels"][label] = "x".into();
        node.take(&[other, slice(&[1])]);
        assert_eq!(ADDRESSES.map(|(ip, port)| node.record(ip, port)), [None, None, None, None], "{label}");
        endpoints["metadata"]["labels"][label] = "x".into();
        node.take(&[service(&json!({})), endpoints]);
        assert_eq!(node.record(CLUSTER, 80), Some((0, vec![], vec![])), "{label}");
    }
}

#[test]
fn the_annotation_asks_for_maglev_at_every_address() {
    let mut node = Node::new(NodePortAddresses::Primary);
    let mut maglev = service(&json!({}));
    maglev["metadata"]["annotations"]["fairway.io/load-balancer"] = "maglev".into();
    node.take(&[maglev, slice(&[1, 2])]);
    for (ip, port) in ADDRESSES {
        let (flags, cluster, _) = node.record(ip, port).unwrap();
        assert_eq!((flags & Service::MAGLEV, cluster), (Service::MAGLEV, vec![1, 2]));
    }
}

#[test]
fn session_affinity_lasts_for_its_timeout_at_every_address() {
    let mut node = Node::new(NodePortAddresses::Primary);
    let config = json!({"clientIP": {"timeoutSeconds": 77}});
    for (spec, timeout_s) in [
        (json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}), 77),
        (json!({"sessionAffinity": "ClientIP"}), 10_800),
        (json!({"sessionAffinity": "None"}), 0),
        (json!({}), 0),
    ] {
        node.take(&[service(&spec), slice(&[1])]);
        for (ip, port) in ADDRESSES {
            let view = node.core.publisher().view().service(&ServiceKey::new(ip, port, 6));
            assert_eq!(view.map(|view| view.service().affinity_timeout_s), Some(timeout_s), "{spec} at {ip}");
        }
    }
}

#[test]
fn health_checks_count_this_nodes_ready_endpoints_once() {
    let mut node = Node::new(NodePortAddresses::Primary);
    let local = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    let mut endpoints = slice(&[1, 1, 2]);
    let mut starting = endpoints["endpoints"][0].clone();
    (starting["addresses"], starting["conditions"]) = (json!(["10.244.1.8"]), json!({"ready": false}));
    endpoints["endpoints"].as_array_mut().unwrap().push(starting);
    node.take(&[service(&local), endpoints]);
    let checks = node.core.new_health_checks().expect("they may have changed");
    assert_eq!(checks.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.1"]);
    let check = &checks.by_port[&32000];
    assert_eq!(
        (check.service.0.as_str(), check.service.1.as_str(), check.local_v4, check.local_v6),
        ("shop", "web", 1, 0)
    );
    assert_eq!(node.core.new_health_checks(), None);
    // Only load balancers ask, and only where it matters which node has endpoints.
    for spec in
        [json!({"healthCheckNodePort": 32000}), json!({"type": "NodePort", "externalTrafficPolicy": "Local"})]
    {
        node.take(&[service(&spec), slice(&[1])]);
        assert!(node.core.health_checks().by_port.is_empty(), "{spec}");
    }
}

#[test]
fn names_and_routes_of_the_node_know_every_address() {
    let mut node = Node::new(NodePortAddresses::Primary);
    node.take(&[service(&json!({})), slice(&[1])]);
    for (ip, port) in ADDRESSES {
        let key = ServiceKey::new(ip, port, 6);
        assert_eq!(node.core.index().service_named(&key), Some(("shop", "web", "")), "{ip}:{port}");
    }
    let plan = node.core.index().host_plan(&[]).unwrap();
    for (ip, routed) in
        [(CLUSTER, true), (BALANCER, true), (EXTERNAL, true), (ServiceKey::NODE_PORTS, true), (NODE, false)]
    {
        assert_eq!(plan.routes.contains_key(&Prefix::host(ip)), routed, "{ip}");
    }
}

#[test]
fn every_field_that_cannot_be_used_is_named_with_what_to_do() {
    let with = |pointer: &str, value: Value| {
        let mut object = service(&json!({}));
        *object.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        object
    };
    let spec = |field: &str, value: Value| service(&json!({ field: value }));
    let mut balancer = service(&json!({}));
    balancer["metadata"]["annotations"]["fairway.io/load-balancer"] = "round-robin".into();
    let mut mode = service(&json!({}));
    mode["status"]["loadBalancer"]["ingress"][0]["ipMode"] = "Direct".into();
    let health = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30080});
    let cases = [
        (spec("type", "Gateway".into()), "spec.type: 'Gateway' is not a type of Service; use ClusterIP, "),
        (
            spec("clusterIPs", json!(["10.96.0.1", "10.96.0.2"])),
            "spec.clusterIPs[1]: 10.96.0.2 is a second address of one family; give at most one IPv4 and one IPv6",
        ),
        (
            with("/spec/externalIPs/0", "127.0.0.1".into()),
            "spec.externalIPs[0]: 127.0.0.1 cannot be an address of a service",
        ),
        (with("/spec/externalIPs/0", "web".into()), "spec.externalIPs[0]: 'web' is not an IP address"),
        (
            with("/status/loadBalancer/ingress/0/ip", "224.0.0.1".into()),
            "status.loadBalancer.ingress[0].ip: 224.0.0.1 cannot be an address of a service",
        ),
        (mode, "status.loadBalancer.ingress[0].ipMode: 'Direct' is not a mode of a load balancer's address"),
        (
            spec("loadBalancerSourceRanges", json!(["10.0.0.1"])),
            "spec.loadBalancerSourceRanges[0]: '10.0.0.1' is not an address range",
        ),
        (
            spec("externalTrafficPolicy", "Nearby".into()),
            "spec.externalTrafficPolicy: 'Nearby' is not a traffic policy; use Cluster or Local",
        ),
        (with("/spec/ports/0/nodePort", 70_000.into()), "spec.ports[0].nodePort: 70000 is not a port number"),
        (
            spec(
                "ports",
                json!([{"name": "a", "port": 1, "nodePort": 9}, {"name": "b", "port": 2, "nodePort": 9}]),
            ),
            "spec.ports[1]: repeats an earlier port of this service",
        ),
        (service(&health), "spec.healthCheckNodePort: 30080 is a nodePort of this service too"),
        (
            balancer,
            "metadata.annotations[fairway.io/load-balancer]: 'round-robin' is not a way to choose backends; use random",
        ),
    ];
    for (object, wanted) in cases {
        let mut folder = Folder::default();
        folder.update([("web.json".to_owned(), Ok(object.to_string()))].into_iter().collect());
        let errors: Vec<String> = folder.errors().iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 1, "{wanted}: {errors:?}");
        assert!(errors[0].contains(&format!("Service shop/web: {wanted}")), "{}", errors[0]);
    }
}

#[test]
fn two_services_cannot_have_one_node_port() {
    let mut second = service(&json!({"clusterIP": "10.96.0.2"}));
    second["metadata"]["name"] = "other".into();
    let mut folder = Folder::default();
    let text = |object: &Value| Ok(object.to_string());
    let files = [("a.json".to_owned(), text(&service(&json!({})))), ("b.json".to_owned(), text(&second))];
    folder.update(files.into_iter().collect());
    let errors: Vec<String> = folder.errors().iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("nodePort 30080 TCP is also a port of Service shop/web"), "{}", errors[0]);
}
