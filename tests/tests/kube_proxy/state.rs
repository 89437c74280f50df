//! Random states of a cluster: Services of all kinds that the API lets through, and EndpointSlices in every condition
//! that a controller could leave them in.

use crate::ground::{ENDPOINTS, NODE_IPS, PORTS, endpoint_ip, nodes};
use fairway_tests::kube::apiserver::NAMESPACE;
use fairway_tests::pod::witness::{Question, Transport};
use fastrand::Rng;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Services that a state may have. One keeps its addresses and families from state to state, so that kube-proxy
/// and Fairway see it change.
const SERVICES: u8 = 6;
const SERVICE_PORTS: [u16; 3] = [53, 80, 443];
/// Last byte of the sentinel's addresses.
const SENTINEL: u8 = 1;
/// Last byte of the addresses of Services; that of a twin comes [`TWIN`] later.
const FIRST: u8 = 10;
const TWIN: u8 = 100;
/// Last byte of an address that no Service has.
const NOBODY: u8 = 250;
/// A port that no Service has.
const NO_PORT: u16 = 7;
/// The first node port.
const NODE_PORTS: u16 = 30_000;
/// Ranges of sources: those of pods, of nodes, and of the outside.
const SOURCE_RANGES: [&str; 6] = [
    "10.244.1.0/24",
    "192.168.77.0/24",
    "203.0.113.0/24",
    "fd00:244:1::/64",
    "fd00:77::/64",
    "2001:db8:113::/64",
];

/// One state.
pub(crate) struct State {
    pub(crate) number: u32,
    /// Nodes, Services and EndpointSlices.
    pub(crate) objects: Vec<Value>,
    /// A Service and its slices that are written when all others are. Ports tell its state from others'.
    pub(crate) sentinel: Vec<Value>,
}

/// The IPv4 or IPv6 address of Services with this last byte.
fn service_ip(is_v4: bool, last: u8) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(10, 96, 1, last).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()).into()
    }
}

/// The families of a Service, the first one first.
fn families(service: u8) -> &'static [bool] {
    match service % 4 {
        0 => &[true, false],
        1 => &[true],
        2 => &[false],
        _ => &[false, true],
    }
}

/// One entry of `spec.ports`.
#[derive(Clone)]
struct Port {
    name: String,
    number: u16,
    protocol: &'static str,
}

impl State {
    /// The state of this number; the same for a seed on every run.
    pub(crate) fn random(seed: u64, number: u32) -> State {
        let mut rng = Rng::with_seed(seed ^ (u64::from(number) << 32));
        let mut objects = nodes();
        for service in 0..SERVICES {
            if rng.u8(0..4) > 0 {
                add_service(&mut rng, service, &mut objects);
            }
        }
        let mut state = State { number, objects, sentinel: Vec::new() };
        state.add_sentinel();
        state
    }

    fn add_sentinel(&mut self) {
        let port = Port { name: "p".to_owned(), number: self.sentinel_number(), protocol: "UDP" };
        let spec = json!({"ports": [port.as_json(None)]});
        self.sentinel.push(service("sentinel", &[true, false], SENTINEL, spec));
        for is_v4 in [true, false] {
            let local = json!({"addresses": [endpoint_ip(is_v4, 0)], "nodeName": "node-1"});
            let ports = json!([port.as_json(Some(self.sentinel_port()))]);
            self.sentinel.push(slice("sentinel", 0, is_v4, ports, json!([local])));
        }
    }

    fn sentinel_number(&self) -> u16 {
        10_000 + (self.number % 50_000) as u16
    }

    /// The port on which the sentinel's endpoint is asked.
    pub(crate) fn sentinel_port(&self) -> u16 {
        PORTS[self.number as usize % PORTS.len()]
    }

    /// Whom to ask whether this state is in force.
    pub(crate) fn sentinel_questions(&self) -> Vec<Question> {
        let target = |is_v4| SocketAddr::new(service_ip(is_v4, SENTINEL), self.sentinel_number());
        [true, false].map(|is_v4| Question { transport: Transport::Udp, target: target(is_v4) }).to_vec()
    }

    /// Every port of every address of every Service, its node ports on node-1, a port that none has at each address, and an address that no
    /// Service has.
    pub(crate) fn questions(&self) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut ask = |transport, ip, port| {
            questions.push(Question { transport, target: SocketAddr::new(ip, port) });
        };
        for service in self.objects.iter().filter(|object| object["kind"] == "Service") {
            let spec = &service["spec"];
            let cluster_ips: Vec<IpAddr> = ips(&spec["clusterIPs"]).collect();
            let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
            let ingress: Value = ingress.map(|entry| entry["ip"].clone()).collect();
            for port in spec["ports"].as_array().into_iter().flatten() {
                let transport = if port["protocol"] == "TCP" { Transport::Tcp } else { Transport::Udp };
                let number = |field: &str| port[field].as_u64().map(|number| number as u16);
                let all = cluster_ips.iter().copied().chain(ips(&spec["externalIPs"])).chain(ips(&ingress));
                all.for_each(|ip| ask(transport, ip, number("port").unwrap_or_default()));
                if let Some(number) = number("nodePort") {
                    for ip in &cluster_ips {
                        let node = if ip.is_ipv4() { NODE_IPS[0] } else { NODE_IPS[2] };
                        ask(transport, node.parse().expect("an address"), number);
                    }
                }
            }
            for ip in cluster_ips {
                ask(Transport::Tcp, ip, NO_PORT);
                ask(Transport::Udp, ip, NO_PORT);
            }
        }
        for is_v4 in [true, false] {
            ask(Transport::Tcp, service_ip(is_v4, NOBODY), 80);
            ask(Transport::Udp, service_ip(is_v4, NOBODY), 80);
        }
        questions
    }

    /// Where the same Service is asked without session affinity, if this one has it.
    pub(crate) fn twin(&self, question: &Question) -> Option<Question> {
        let has_affinity = |object: &&Value| {
            object["spec"]["sessionAffinity"] == "ClientIP"
                && ips(&object["spec"]["clusterIPs"]).any(|ip| ip == question.target.ip())
        };
        self.objects.iter().find(has_affinity)?;
        let ip = match question.target.ip() {
            IpAddr::V4(ip) => service_ip(true, ip.octets()[3] + TWIN),
            IpAddr::V6(ip) => service_ip(false, ip.octets()[15] + TWIN),
        };
        Some(Question { target: SocketAddr::new(ip, question.target.port()), ..*question })
    }
}

fn ips(list: &Value) -> impl Iterator<Item = IpAddr> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.filter_map(|text| text.parse().ok())
}

impl Port {
    /// As in a Service, or with the endpoints' number as in a slice.
    fn as_json(&self, target: Option<u16>) -> Value {
        json!({"name": self.name, "port": target.unwrap_or(self.number), "protocol": self.protocol})
    }
}

/// A Service of this name at the addresses with this last byte.
fn service(name: &str, families: &[bool], last: u8, mut spec: Value) -> Value {
    let ips: Vec<IpAddr> = families.iter().map(|is_v4| service_ip(*is_v4, last)).collect();
    spec["clusterIP"] = json!(ips[0]);
    spec["clusterIPs"] = json!(ips);
    spec["ipFamilies"] = families.iter().map(|is_v4| if *is_v4 { "IPv4" } else { "IPv6" }).collect();
    spec["ipFamilyPolicy"] = json!(if families.len() > 1 { "RequireDualStack" } else { "SingleStack" });
    let metadata = json!({"namespace": NAMESPACE, "name": name});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
}

fn slice(service: &str, number: u8, is_v4: bool, ports: Value, endpoints: Value) -> Value {
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE,
            "name": format!("{service}-{}-{number}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// Adds a random Service with its slices, and where it has session affinity its twin without.
fn add_service(rng: &mut Rng, number: u8, objects: &mut Vec<Value>) {
    let (name, families) = (format!("svc-{number}"), families(number));
    let mut ports: Vec<Port> = Vec::new();
    for i in 0..rng.usize(1..=3) {
        let (port, protocol) = (rng.choice(SERVICE_PORTS), rng.choice(["TCP", "UDP"]));
        if let (Some(number), Some(protocol)) = (port, protocol)
            && !ports.iter().any(|other| (other.number, other.protocol) == (number, protocol))
        {
            ports.push(Port { name: format!("p{i}"), number, protocol });
        }
    }
    let mut spec = json!({
        "ports": ports.iter().map(|port| port.as_json(None)).collect::<Vec<_>>(),
        "internalTrafficPolicy": if rng.u8(0..4) == 0 { "Local" } else { "Cluster" },
    });
    let with_affinity = rng.u8(0..5) == 0;
    let mut status = json!({"loadBalancer": {}});
    // All addresses of a Service share the memory of its affinity; such a one has cluster addresses only.
    if !with_affinity {
        add_outer_addresses(rng, number, families, &mut spec, &mut status);
    }
    let mut slices = Vec::new();
    for is_v4 in families {
        // What the first slice says of each endpoint.
        let mut first = [const { None }; ENDPOINTS.len()];
        let order = if rng.bool() { [0, 1] } else { [1, 0] };
        for number in &order[..rng.usize(0..=2)] {
            let (ports, endpoints) = (slice_ports(rng, &ports), endpoints(rng, *is_v4, &mut first));
            slices.push((*number, *is_v4, ports, endpoints));
        }
    }
    let mut add = |name: &str, last: u8, spec: Value| {
        let mut service = service(name, families, last, spec);
        service["status"] = status.clone();
        objects.push(service);
        let slices = slices.iter().cloned();
        objects.extend(slices.map(|(i, is_v4, ports, endpoints)| slice(name, i, is_v4, ports, endpoints)));
    };
    if with_affinity {
        add(&format!("{name}-twin"), FIRST + number + TWIN, spec.clone());
        let mut spec = spec;
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 600}});
        add(&name, FIRST + number, spec);
    } else {
        add(&name, FIRST + number, spec);
    }
}

/// Perhaps makes it a Service that is reached from outside: by type, external addresses, policy and source ranges.
fn add_outer_addresses(rng: &mut Rng, number: u8, families: &[bool], spec: &mut Value, status: &mut Value) {
    let kind = ["ClusterIP", "NodePort", "LoadBalancer"][rng.usize(0..3)];
    spec["type"] = json!(kind);
    let ips = |third: u8| -> Vec<IpAddr> {
        families.iter().map(|is_v4| outer_ip(*is_v4, third, FIRST + number)).collect()
    };
    let has_external = rng.bool();
    if has_external {
        spec["externalIPs"] = json!(ips(100));
    }
    if kind != "ClusterIP" || has_external {
        spec["externalTrafficPolicy"] = json!(if rng.u8(0..3) == 0 { "Local" } else { "Cluster" });
    }
    if kind == "ClusterIP" {
        return;
    }
    for (i, port) in spec["ports"].as_array_mut().into_iter().flatten().enumerate() {
        // Below those that the API server gives by itself.
        port["nodePort"] = json!(NODE_PORTS + 3 * u16::from(number) + i as u16);
    }
    if kind == "LoadBalancer" {
        let ingress = ips(101).into_iter().map(|ip| json!({"ip": ip}));
        status["loadBalancer"]["ingress"] = ingress.collect();
        if rng.u8(0..3) == 0 {
            let count = rng.usize(1..=3);
            spec["loadBalancerSourceRanges"] = json!(rng.choose_multiple(SOURCE_RANGES, count));
        }
    }
}

/// A load balancer's or external address with this last byte.
fn outer_ip(is_v4: bool, third: u8, last: u8) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(198, 51, third, last).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, third.into(), last.into()).into()
    }
}

/// Most of a Service's ports, each led to some port of the endpoints; now and then under another name or protocol.
fn slice_ports(rng: &mut Rng, ports: &[Port]) -> Value {
    let mut list = Vec::new();
    for port in ports {
        let mut port = port.clone();
        match rng.u8(0..12) {
            0 => continue,
            1 => port.name = format!("other-{}", port.name),
            2 => port.protocol = if port.protocol == "TCP" { "UDP" } else { "TCP" },
            _ => {}
        }
        list.push(port.as_json(rng.choice(PORTS)));
    }
    json!(list)
}

/// Some of the endpoints, in random conditions, with hints on none, some or all of them. Of an endpoint that is in the
/// first slice too, a second slice says the same, or that it terminates where it does not there: its address
/// has gone over to another pod. Anything else kube-proxy decides by chance.
fn endpoints(rng: &mut Rng, is_v4: bool, first: &mut [Option<Value>; ENDPOINTS.len()]) -> Value {
    let (zone_hints, node_hints) = (hinting(rng), hinting(rng));
    let mut list = Vec::new();
    for (place, (_, node)) in ENDPOINTS.into_iter().enumerate() {
        if rng.bool() {
            continue;
        }
        if let Some(earlier) = &first[place] {
            let mut endpoint = earlier.clone();
            if rng.bool() && earlier["conditions"]["terminating"] != true {
                endpoint["conditions"] = json!({"ready": false, "serving": rng.bool(), "terminating": true});
            }
            list.push(endpoint);
            continue;
        }
        let mut endpoint = json!({"addresses": [endpoint_ip(is_v4, place)], "conditions": conditions(rng)});
        // An endpoint need not be on a node that is known.
        if rng.u8(0..10) > 0 {
            endpoint["nodeName"] = json!(format!("node-{}", node + 1));
        }
        if rng.u8(0..10) < zone_hints {
            endpoint["hints"]["forZones"] = names(rng, &["a", "b", "c"]);
        }
        if rng.u8(0..10) < node_hints {
            endpoint["hints"]["forNodes"] = names(rng, &["node-1", "node-2"]);
        }
        first[place] = Some(endpoint.clone());
        list.push(endpoint);
    }
    json!(list)
}

/// How many of ten endpoints have a hint.
fn hinting(rng: &mut Rng) -> u8 {
    match rng.u8(0..8) {
        0..5 => 0,
        5 => 8,
        _ => 10,
    }
}

/// One or two of these names.
fn names(rng: &mut Rng, all: &[&str]) -> Value {
    let count = rng.usize(1..=2);
    let names = rng.choose_multiple(all, count);
    json!(names.into_iter().map(|name| json!({"name": name})).collect::<Vec<_>>())
}

/// Conditions as the EndpointSlice controller sets them, and as nobody should.
fn conditions(rng: &mut Rng) -> Value {
    let (ready, serving, terminating) = match rng.u8(0..20) {
        0..10 => (true, true, false),
        10 => return json!({}),
        11 | 12 => (false, false, false),
        13..16 => (false, true, true),
        16 | 17 => (false, false, true),
        18 => (true, true, true), // publishNotReadyAddresses
        _ => (rng.bool(), rng.bool(), rng.bool()),
    };
    json!({"ready": ready, "serving": serving, "terminating": terminating})
}
