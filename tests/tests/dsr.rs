//! Direct server return, end to end (docs/dsr.md): clients outside ask node-1, and are answered by pods of node-2 past it,
//! under every kind of address, both families and every protocol, through VXLAN and IPIP. Captures on the wires of both
//! nodes say which way requests and answers went. Long connections last through restarts of either engine.

#[allow(dead_code, reason = "the comparison with kube-proxy uses more of it")]
#[path = "kube_proxy/ground.rs"]
mod ground;

use fairway_tests::kube::apiserver::NAMESPACE;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::stream::{ALL_OPEN, StreamSummary};
use fairway_tests::pod::witness::{Answer, Question, Transport};
use fairway_tests::process::{Process, wait_for};
use fairway_tests::programs::{bin_dir, program, share_of_cores};
use fairway_tests::{Result, engines, gate, sys};
use ground::{Asker, ENDPOINTS, Ground, NODE_IPS, OUTSIDE_IPS, PORTS, endpoint_ip};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(20);
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
/// Ports of the Service whose pods send streams back, and bytes.
const STREAMS: u16 = 81;
const BYTES: u16 = 82;
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];
/// Last byte of the addresses of the station on the nodes' subnet.
const ON_LINK: u8 = 8;

/// How the pods' addresses say that nodes are joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Vxlan,
    Ipip,
    /// Without encapsulation: what DSR then needs is VXLAN all the same.
    Direct,
}

impl Mode {
    fn manifest(self) -> Option<String> {
        let modes = match self {
            Mode::Vxlan => return None,
            Mode::Ipip => json!({"ipipMode": "Always", "vxlanMode": "Never"}),
            Mode::Direct => json!({"ipipMode": "Never", "vxlanMode": "Never"}),
        };
        let mut pool = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "pods"},
            "spec": {"cidr": "10.244.0.0/16", "natOutgoing": true},
        });
        modes.as_object().into_iter().flatten().for_each(|(key, value)| pool["spec"][key] = value.clone());
        Some(pool.to_string())
    }

    /// Where the packet inside begins, if a frame on the wire is of the tunnel that such packets take: over their own family,
    /// of which both nodes have addresses. No pool holds IPv6 pods, so they go by VXLAN.
    fn inside(self, frame: &[u8], is_v4: bool) -> Option<usize> {
        let (ethertype, protocol_at, l4) = if is_v4 { ([8, 0], 23, 34) } else { ([0x86, 0xdd], 20, 54) };
        let protocol = *frame.get(protocol_at)?;
        let port = u16::from_be_bytes([*frame.get(l4 + 2)?, *frame.get(l4 + 3)?]);
        let (is_tunnel, inner) = match self {
            Mode::Ipip if is_v4 => (protocol == 4, l4),
            _ => (protocol == 17 && port == 4789, l4 + 30),
        };
        (frame.get(12..14)? == ethertype && is_tunnel).then_some(inner)
    }
}

/// A kind of address at which the Service is reached from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Address {
    Balancer,
    External,
    NodePort,
}

impl Address {
    const ALL: [Address; 3] = [Address::Balancer, Address::External, Address::NodePort];

    fn at(self, is_v4: bool) -> SocketAddr {
        let text = match (self, is_v4) {
            (Address::NodePort, _) => NODE_IPS[if is_v4 { 0 } else { 2 }],
            (Address::Balancer, true) => "198.51.100.7",
            (Address::Balancer, false) => "2001:db8:51::64:7",
            (Address::External, true) => "198.51.101.7",
            (Address::External, false) => "2001:db8:51::65:7",
        };
        let port = if self == Address::NodePort { NODE_PORT } else { PORT };
        SocketAddr::new(text.parse().expect("an address"), port)
    }
}

/// The Service with DSR, with these of [`ENDPOINTS`] behind it.
fn objects(places: &[usize], long: &[usize]) -> Vec<Value> {
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "nodePort": NODE_PORT});
    let both = |address: Address| [true, false].map(|is_v4| address.at(is_v4).ip().to_string());
    let service = |name: &str, cluster: [&str; 2], ports: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": NAMESPACE, "name": name, "annotations": {"fairway.io/forwarding": "dsr"},
            },
            "spec": {
                "type": "LoadBalancer", "clusterIPs": cluster, "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"], "ports": ports,
            },
        })
    };
    let mut web = service("web", ["10.96.2.7", "fd00:96::2:7"], json!(["TCP", "UDP", "SCTP"].map(port)));
    web["spec"]["externalIPs"] = json!(both(Address::External));
    let ingress = both(Address::Balancer).map(|ip| json!({"ip": ip}));
    web["status"]["loadBalancer"]["ingress"] = json!(ingress);
    let ports = json!([{"name": "streams", "port": STREAMS}, {"name": "bytes", "port": BYTES}]);
    let mut bulk = service("bulk", ["10.96.2.8", "fd00:96::2:8"], ports);
    bulk["status"] = web["status"].clone();
    let slice = |name: &str, is_v4: bool, ports: Value, places: &[usize]| {
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        let endpoint = |place: &usize| {
            let node = format!("node-{}", ENDPOINTS[*place].1 + 1);
            json!({"addresses": [endpoint_ip(is_v4, *place)], "nodeName": node})
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "namespace": NAMESPACE, "name": format!("{name}-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": name},
            },
            "ports": ports, "endpoints": places.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    let witness =
        |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORTS[0]});
    let servers = json!([{"name": "streams", "port": 9091}, {"name": "bytes", "port": 9090}]);
    let mut out = vec![web, bulk];
    for is_v4 in [true, false] {
        out.push(slice("web", is_v4, json!(["TCP", "UDP", "SCTP"].map(witness)), places));
        out.push(slice("bulk", is_v4, servers.clone(), long));
    }
    out
}

/// The nodes, those who ask, and servers of long connections.
struct World {
    servers: Vec<Process>,
    on_link: Netns,
    ground: Ground,
    first_port: u16,
}

impl World {
    fn start(mode: Mode, places: &[usize], long: &[usize]) -> Result<World> {
        let ground = Ground::build()?;
        let on_link = ground.add_on_link(ON_LINK)?;
        ground.let_nodes_forward()?;
        if let Some(pool) = mode.manifest() {
            ground.testbed.manifests().write("pool", &pool)?;
        }
        let mut world = World { servers: Vec::new(), on_link, ground, first_port: 10_000 };
        world.publish(places, long)?;
        for name in ["local-2", "remote-2", "remote-3"] {
            let server = world.serve(name)?;
            world.servers.push(server);
        }
        world.ground.testbed.start_nodes(1)?;
        world.ground.testbed.wait("both engines carry packets", READY, |testbed| engines::carry(testbed))?;
        Ok(world)
    }

    fn publish(&self, places: &[usize], long: &[usize]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects(places, long)});
        self.ground.testbed.manifests().write("services", &list.to_string())
    }

    fn serve(&self, name: &str) -> Result<Process> {
        let mut command = self.ground.pod(name).netns().command(program(&bin_dir()?, "fairway-pod")?);
        command.args(["serve", "--listen", "[::]:9090", "--streams", "[::]:9091", "--name", name]);
        let log = self.ground.testbed.dir().join(format!("server-{name}.log"));
        let mut server = Process::spawn(&format!("server in {name}"), command, &log, true)?;
        wait_for("a server listens", READY, || {
            server.expect_alive()?;
            Ok(if server.log().contains("listening") { Ok(()) } else { Err("no word yet".to_owned()) })
        })?;
        Ok(server)
    }

    fn outside(&self) -> &Netns {
        self.ground.netns_of(Asker::Outside)
    }

    fn ask(
        &mut self,
        netns: impl Fn(&World) -> &Netns,
        from: &[&str],
        questions: &[Question],
    ) -> Result<Vec<Answer>> {
        let file = self.ground.testbed.dir().join("questions.json");
        std::fs::write(&file, serde_json::to_vec(questions).unwrap_or_default()).expect("questions");
        let (file, port) = (file.display().to_string(), self.first_port.to_string());
        self.first_port += 2_000;
        let mut args = vec!["ask", &file, "--first-port", &port];
        from.iter().for_each(|ip| args.extend(["--from", ip]));
        self.ground.testbed.client(netns(self), &args, DEADLINE)
    }

    fn counter(&self, node: usize, name: &str) -> u64 {
        let counters = self.ground.testbed.nodes()[node].ask(&["counters"]).expect("counters");
        counters["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {counters}"))
    }

    fn stop(mut self) -> Result<()> {
        self.ground.expect_alive()?;
        for node in 0..self.ground.testbed.nodes().len() {
            self.ground.testbed.node_mut(node).stop_dataplane()?;
            self.ground.testbed.node_mut(node).stop_control()?;
        }
        self.servers.clear();
        Ok(())
    }
}

fn questions() -> Vec<Question> {
    let targets = Address::ALL.into_iter().flat_map(|address| [true, false].map(|is_v4| address.at(is_v4)));
    targets.flat_map(|target| TRANSPORTS.map(|transport| Question { transport, target })).collect()
}

/// Who answered, and as whom they saw the client.
fn seen(answer: &Answer) -> (BTreeSet<SocketAddr>, BTreeSet<IpAddr>) {
    assert_eq!((answer.refused, answer.silent, answer.errors.len()), (0, 0, 0), "{answer:?}");
    let sources = answer.backends.values().flatten().copied().collect();
    (answer.backends.keys().copied().collect(), sources)
}

fn answers_at(places: &[usize], is_v4: bool) -> BTreeSet<SocketAddr> {
    places.iter().map(|place| SocketAddr::new(endpoint_ip(is_v4, *place), PORTS[0])).collect()
}

/// Source and destination of the IP packet at `at` of a frame, and its ports if it is no ICMP.
fn addresses(frame: &[u8], at: usize) -> Option<[SocketAddr; 2]> {
    let packet = frame.get(at..)?;
    let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()),
    };
    let (src, dst, protocol, l4) = match packet.first()? >> 4 {
        4 => (ip(packet.get(12..16)?), ip(packet.get(16..20)?), packet[9], 20),
        6 => (ip(packet.get(8..24)?), ip(packet.get(24..40)?), *packet.get(6)?, 40),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let has_ports = [6, 17, 132].contains(&protocol);
    let (sport, dport) = if has_ports { (port(l4)?, port(l4 + 2)?) } else { (0, 0) };
    Some([SocketAddr::new(src, sport), SocketAddr::new(dst, dport)])
}

/// What is inside a tunnel's frame.
fn inside(mode: Mode, frame: &[u8], is_v4: bool) -> Option<[SocketAddr; 2]> {
    addresses(frame, mode.inside(frame, is_v4)?)
}

/// Requests go through node-1 as they are, answers come from node-2 alone.
fn check_ways(mode: Mode, wires: &[Vec<Vec<u8>>; 2]) {
    let clients: Vec<IpAddr> = OUTSIDE_IPS.iter().map(|ip| ip.parse().expect("an address")).collect();
    for target in questions().into_iter().map(|question| question.target).collect::<BTreeSet<_>>() {
        let is_v4 = target.is_ipv4();
        let count = |wire: &[Vec<u8>], wanted: &dyn Fn(&[u8]) -> bool| {
            wire.iter().filter(|frame| wanted(frame)).count()
        };
        let is_request = |[src, dst]: [SocketAddr; 2]| clients.contains(&src.ip()) && dst == target;
        let is_answer = |[src, dst]: [SocketAddr; 2]| src == target && clients.contains(&dst.ip());
        let tunnelled = |frame: &[u8]| inside(mode, frame, is_v4).is_some_and(is_request);
        let answer = |frame: &[u8]| addresses(frame, 14).is_some_and(is_answer);
        let answer_inside =
            |frame: &[u8]| [34, 54, 64, 84].into_iter().any(|at| addresses(frame, at).is_some_and(is_answer));
        let [first, second] = wires;
        let (asked, passed_on) =
            (count(first, &|f| addresses(f, 14).is_some_and(is_request)), count(second, &tunnelled));
        assert!(
            asked > 0 && asked == passed_on,
            "{target}: {asked} requests, {passed_on} as they are to node-2"
        );
        assert!(count(second, &answer) > 0, "{target}: answers from node-2");
        assert_eq!(count(first, &answer) + count(first, &answer_inside), 0, "{target}: answers past node-1");
    }
}

fn every_address_from_everywhere(mode: Mode) -> Result<()> {
    const REMOTE: &[usize] = &[3];
    let mut world = World::start(mode, REMOTE, &[])?;
    let questions = questions();
    // Neighbours are known and services in force, so that no packet below is lost and sent again.
    world.ask(World::outside, &OUTSIDE_IPS, &questions)?;
    let (node_1, node_2) = (Ipv4Addr::new(192, 168, 77, 1), Ipv4Addr::new(192, 168, 77, 2));
    let captures =
        [world.ground.testbed.capture(node_1, "node-1")?, world.ground.testbed.capture(node_2, "node-2")?];
    for (question, answer) in questions.iter().zip(world.ask(World::outside, &OUTSIDE_IPS, &questions)?) {
        let is_v4 = question.target.is_ipv4();
        let client: IpAddr = OUTSIDE_IPS[usize::from(!is_v4)].parse().expect("an address");
        assert_eq!(seen(&answer), (answers_at(REMOTE, is_v4), [client].into()), "{mode:?} {question:?}");
    }
    let [first, second] = captures.map(|capture| capture.stop());
    check_ways(mode, &[first?, second?]);
    assert!(world.counter(0, "dsr-forwarded") > 0 && world.counter(1, "dsr-delivered") > 0);
    let shown = world.ground.testbed.nodes()[0].ask(&["services"])?;
    let shown = shown.as_array().into_iter().flatten().filter(|service| service["name"] == "web");
    let forwarding = |service: &Value| (service["external"] == true, service["forwarding"] == "dsr");
    assert!(shown.map(forwarding).all(|(external, dsr)| external == dsr));
    let flows = world.ground.testbed.nodes()[0].ask(&["flows", "--port", "80", "--proto", "tcp"])?;
    assert!(
        flows.as_array().is_some_and(|flows| flows.iter().any(|flow| flow["via"] == "192.168.77.2")),
        "{flows}"
    );

    // Backends on both nodes: all see the client, from wherever outside it comes.
    const BOTH: &[usize] = &[0, 3, 4];
    world.publish(BOTH, &[])?;
    let control = |node: usize| world.ground.testbed.nodes()[node].ask(&["services"]);
    wait_for("both nodes know the backends", READY, || {
        let has =
            |node: usize| control(node).is_ok_and(|all| all.to_string().matches("10.244.1.11").count() > 2);
        Ok(if has(0) && has(1) { Ok(()) } else { Err("not yet".to_owned()) })
    })?;
    for (question, answer) in questions.iter().zip(world.ask(World::outside, &OUTSIDE_IPS, &questions)?) {
        let is_v4 = question.target.is_ipv4();
        let client: IpAddr = OUTSIDE_IPS[usize::from(!is_v4)].parse().expect("an address");
        assert_eq!(seen(&answer), (answers_at(BOTH, is_v4), [client].into()), "{mode:?} {question:?}");
    }
    for (question, answer) in questions.iter().zip(world.ask(|world| &world.on_link, &[], &questions)?) {
        let is_v4 = question.target.is_ipv4();
        let client: IpAddr = if is_v4 { "192.168.77.8" } else { "fd00:77::8" }.parse().expect("an address");
        assert_eq!(
            seen(&answer),
            (answers_at(BOTH, is_v4), [client].into()),
            "{mode:?} on the link {question:?}"
        );
    }
    // Pods and the node itself go the ordinary way: backends see the node.
    let nodes: BTreeSet<IpAddr> = NODE_IPS.iter().map(|ip| ip.parse().expect("an address")).collect();
    let of_pod: Vec<_> =
        questions.iter().copied().filter(|question| question.transport == Transport::Tcp).collect();
    let askers: [fn(&World) -> &Netns; 2] =
        [|world| world.ground.netns_of(Asker::Pod), |world| world.ground.netns_of(Asker::Host)];
    for netns in askers {
        for (question, answer) in of_pod.iter().zip(world.ask(netns, &[], &of_pod)?) {
            let (backends, sources) = seen(&answer);
            assert_eq!(backends, answers_at(BOTH, question.target.is_ipv4()), "{question:?}");
            assert!(sources.is_subset(&nodes), "{question:?}: {sources:?}");
        }
    }
    world.stop()
}

/// Megabytes both ways, though the pod lets its peer believe in an MTU that the tunnel does not take; then connections
/// that last while the engines of both nodes are killed and replaced, and while new ones go to other pods.
fn long_connections_last(mode: Mode) -> Result<()> {
    const REMOTE_2: usize = 4;
    const REMOTE_3: usize = 5;
    let mut world = World::start(mode, &[3], &[REMOTE_2])?;
    let route =
        ["route", "change", "default", "via", "169.254.1.1", "dev", "eth0", "onlink", "advmss", "1460"];
    world.ground.pod("remote-2").netns().ip(route)?;
    let balancer = Address::Balancer.at(true).ip();
    let outside = world.outside();
    let url = format!("http://{balancer}:{BYTES}/bytes/5000000");
    let args =
        ["get", url.as_str(), "--no-keepalive", "--verify-bytes", "--count", "3", "--timeout-ms", "20000"];
    let summary: Summary = world.ground.testbed.client(outside, &args, DEADLINE)?;
    assert_eq!((summary.failures, summary.byte_exact), (0, Some(true)), "{:?}", summary.errors);
    let capture = world.ground.testbed.capture(Ipv4Addr::new(192, 168, 77, 1), "mtu")?;
    let target = format!("{balancer}:{STREAMS}");
    let streams = |records: &'static str, bytes: &'static str, interval: &'static str| {
        ["streams", "--count", "4", "--records", records, "--record-bytes", bytes, "--interval-ms", interval]
    };
    let args = [&streams("60", "20000", "2")[..], &["--timeout-ms", "40000", &target]].concat();
    let output = outside.run(program(&bin_dir()?, "fairway-pod")?, &args, DEADLINE)?.success()?;
    let summary: StreamSummary =
        serde_json::from_str(output.lines().last().unwrap_or_default()).expect("a summary");
    assert_eq!((summary.streams, summary.byte_exact), (4, 4), "{:?}", summary.errors);
    assert!(summary.bytes >= 4_800_000 && summary.backends.contains_key("remote-2"), "{summary:?}");
    // The engine of node-1 told the client which size fits its tunnel.
    let fits: u16 = if mode == Mode::Ipip { 1480 } else { 1450 };
    let told = |frame: &Vec<u8>| {
        frame.get(23) == Some(&1)
            && frame.get(34..36) == Some(&[3, 4])
            && frame.get(40..42) == Some(&fits.to_be_bytes())
    };
    assert!(capture.stop()?.iter().any(told), "fragmentation needed, MTU {fits}");

    let args = [&streams("80", "1000", "100")[..], &["--timeout-ms", "40000", &target]].concat();
    let mut command = outside.command(program(&bin_dir()?, "fairway-pod")?);
    command.args(&args);
    let mut client =
        Process::spawn("streams", command, &world.ground.testbed.dir().join("streams.log"), true)?;
    wait_for("all streams are open", READY, || {
        Ok(if client.log().contains(ALL_OPEN) { Ok(()) } else { Err(client.log()) })
    })?;
    // New connections go to a pod on either node; one that was forgotten would be reset there.
    world.publish(&[3], &[1, REMOTE_3])?;
    std::thread::sleep(Duration::from_millis(500));
    for node in [0, 1] {
        world.ground.testbed.node_mut(node).kill_dataplane();
        std::thread::sleep(Duration::from_millis(300));
        let cores = share_of_cores(&sys::cores(), node, 1);
        world.ground.testbed.node_mut(node).start_dataplane(&["--cores", &cores])?;
        world
            .ground
            .testbed
            .wait("the engine carries packets", READY, |testbed| engines::carries(testbed, node))?;
        let said = world.ground.testbed.nodes()[node].restart_dataplane()?.success()?;
        assert!(said.contains("restarted in place"), "{said}");
    }
    wait_for("the streams end", DEADLINE, || Ok(client.ended().map(drop).ok_or("still running".to_owned())))?;
    let log = client.log();
    let summary: StreamSummary =
        serde_json::from_str(log.lines().last().unwrap_or_default()).expect("a summary");
    assert_eq!((summary.streams, summary.byte_exact), (4, 4), "{:?}", summary.errors);
    assert_eq!(summary.backends.keys().collect::<Vec<_>>(), ["remote-2"]);
    world.stop()
}

fn in_mode(mode: Mode, test: fn(Mode) -> Result<()>) {
    if gate::may_run("dsr") {
        let _alone = gate::alone();
        test(mode).unwrap_or_else(|error| panic!("{mode:?}: {error}"));
    }
}

#[test]
fn every_address_is_answered_past_the_first_node_through_vxlan() {
    in_mode(Mode::Vxlan, every_address_from_everywhere);
}

#[test]
fn every_address_is_answered_past_the_first_node_through_ipip() {
    in_mode(Mode::Ipip, every_address_from_everywhere);
}

#[test]
fn every_address_is_answered_past_the_first_node_where_pods_go_without_encapsulation() {
    in_mode(Mode::Direct, every_address_from_everywhere);
}

#[test]
fn long_connections_last_through_restarts_of_either_engine_over_vxlan() {
    in_mode(Mode::Vxlan, long_connections_last);
}

#[test]
fn long_connections_last_through_restarts_of_either_engine_over_ipip() {
    in_mode(Mode::Ipip, long_connections_last);
}
