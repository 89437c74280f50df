//! Source translation with real kernels at both ends (docs/nat.md): pods reach the outside with the node's address over
//! TCP, UDP and ICMP in both families, themselves through their Service, and one backend through several Services from one
//! port; errors find their way back; a restart of the engine in the middle ends nothing, neither do deaths with packets on their
//! way, through node ports too.

mod common;

use common::Cluster;
use common::load::{self, Streams};
use fairway_control::names;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::ping::ping;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::process::Process;
use fairway_tests::programs::{self, share_of_cores};
use fairway_tests::station::Station;
use fairway_tests::{sys, testbed};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE6: &str = "2001:db8::1";
const PORT6: u16 = 9090;
const CLIENT6: &str = "fd00:244:1::10";
const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const NODE6: &str = "fd00:77::1";
const NODE_PORT: u16 = 30080;

/// A cluster beside a router that leads out, which knows the nodes and nothing of pods.
struct World {
    cluster: Cluster,
    outside: Station,
    _server6: Process,
}

fn sysctl(netns: &Netns, settings: &[(&str, &str)]) {
    let settings: Vec<_> =
        settings.iter().map(|(path, value)| (format!("/proc/sys/net/{path}"), *value)).collect();
    let write = move || settings.iter().try_for_each(|(path, value)| std::fs::write(path, value));
    netns.inside(write).expect("namespace").expect("sysctl");
}

fn with_ipv6(netns: &Netns, device: &str) {
    let conf = |device: &str, name: &str| format!("ipv6/conf/{device}/{name}");
    for device in ["all", "lo", device] {
        let (dad, off) = (conf(device, "accept_dad"), conf(device, "disable_ipv6"));
        sysctl(netns, &[(&dad, "0"), (&off, "0")]);
    }
}

impl World {
    fn start(workers: u8) -> World {
        let mut cluster = Cluster::build(workers);
        let mut outside = Station::on_switch(&cluster.testbed, "outside", 254, OUTSIDE).expect("station");
        outside.start_server().expect("server");
        with_ipv6(outside.netns(), "uplink0");
        outside.netns().ip(["addr", "add", "fd00:77::fe/64", "dev", "uplink0", "nodad"]).expect("address");
        outside.netns().ip(["addr", "add", &format!("{OUTSIDE6}/128"), "dev", "lo"]).expect("address");
        let node = &cluster.testbed.nodes()[0];
        with_ipv6(node.netns(), "uplink0");
        node.netns().ip(["addr", "add", &format!("{NODE6}/64"), "dev", "uplink0", "nodad"]).expect("address");
        node.netns().ip(["route", "add", "default", "via", "192.168.77.254"]).expect("route");
        node.netns().ip(["-6", "route", "add", "default", "via", "fd00:77::fe"]).expect("route");
        let yaml = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec:\n  podCIDRs: [10.244.1.0/24, 'fd00:244:1::/64']\n\
             status:\n  addresses:\n  - {{type: InternalIP, address: {NODE}}}\n  - {{type: InternalIP, address: '{NODE6}'}}\n",
            node.name()
        );
        cluster.testbed.manifests().write(&format!("node-{}", node.name()), &yaml).expect("node");
        let server6 = World::add_client6(&cluster, &outside);
        cluster.testbed.start_nodes(usize::from(workers)).expect("start the nodes");
        cluster.wait_for_gateways();
        let mut world = World { cluster, outside, _server6: server6 };
        world.wait_for_outside();
        world
    }

    /// Gives the client pod an IPv6 address, and the outside a server to reach over it.
    fn add_client6(cluster: &Cluster, outside: &Station) -> Process {
        let pod = cluster.testbed.pod(cluster.client);
        with_ipv6(pod.netns(), "eth0");
        pod.netns().ip(["addr", "add", &format!("{CLIENT6}/128"), "dev", "eth0", "nodad"]).expect("address");
        let gateway = names::GATEWAY_IP6.to_string();
        pod.netns().ip(["route", "add", "default", "via", &gateway, "dev", "eth0"]).expect("route");
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: client}}\nspec: {{nodeName: node-1, containers: \
             []}}\nstatus: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: '{CLIENT6}'}}]}}\n",
            pod.ip()
        );
        cluster.testbed.manifests().write("pod-shop-client", &yaml).expect("pod");
        let program =
            programs::program(&programs::bin_dir().expect("programs"), "fairway-pod").expect("fairway-pod");
        let mut command = outside.netns().command(program);
        command.args(["serve", "--listen", &format!("[{OUTSIDE6}]:{PORT6}"), "--name", "outside6"]);
        let log = cluster.testbed.dir().join("server6-outside.log");
        Process::spawn("server outside", command, &log, true).expect("server")
    }

    fn wait_for_outside(&mut self) {
        let client = self.cluster.client;
        for url in [http(OUTSIDE.into(), testbed::POD_PORT), http(OUTSIDE6.parse().unwrap(), PORT6)] {
            let waited = self.cluster.testbed.wait(&format!("{url} answers"), READY, |testbed| {
                let args = ["get", url.as_str(), "--no-keepalive", "--timeout-ms", "1000"];
                let netns = testbed.pod(client).netns();
                let summary: Summary =
                    testbed.client(netns, &args, Duration::from_secs(10)).map_err(|e| e.to_string())?;
                if summary.failures == 0 { Ok(()) } else { Err(format!("{:?}", summary.errors)) }
            });
            waited.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    fn client(&self) -> &Netns {
        self.cluster.testbed.pod(self.cluster.client).netns()
    }

    /// The client's connections as `fairway flows` lists them: towards this address, by this protocol.
    fn flows(&self, ip: &str, proto: &str) -> Vec<serde_json::Value> {
        let args = ["flows", "--ip", ip, "--proto", proto];
        let answer = self.cluster.testbed.nodes()[0].ask(&args).unwrap_or_else(|error| panic!("{error}"));
        answer.as_array().expect("a list").clone()
    }

    /// Whoever is at this address sees the node, by a port of the range.
    fn is_seen_as_the_node(&self, ip: &str, node: &str, proto: &str) {
        let flows = self.flows(ip, proto);
        assert!(!flows.is_empty(), "{proto} to {ip}");
        for flow in flows {
            assert_eq!(flow["seen_as"]["ip"], node, "{flow}");
            let port = flow["seen_as"]["port"].as_u64().expect("a port");
            assert!((61_000..=65_535).contains(&port), "{flow}");
        }
    }
}

fn http(ip: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(ip, port))
}

/// What `ping` says about one echo request with these options.
fn one_ping(netns: &Netns, options: &[&str], target: &str) -> String {
    let mut args = vec!["-n", "-c", "1", "-W", "2"];
    args.extend(options);
    args.push(target);
    let output = netns.run("ping", &args, Duration::from_secs(10)).expect("ping runs");
    output.stdout + &output.stderr
}

#[test]
fn pods_reach_the_outside_with_the_nodes_address_and_the_node_itself_still_does() {
    if !gate::may_run("nat") {
        return;
    }
    let _alone = gate::alone();
    let world = World::start(2);
    for (ip, port, node) in
        [(OUTSIDE.to_string(), testbed::POD_PORT, NODE.to_string()), (OUTSIDE6.into(), PORT6, NODE6.into())]
    {
        let address: IpAddr = ip.parse().expect("an address");
        let (url, target) = (http(address, port), SocketAddr::new(address, port).to_string());
        let args = ["get", url.as_str(), "--no-keepalive", "--count", "50", "--concurrency", "8"];
        let summary: Summary = world.cluster.client(&args, Duration::from_secs(60));
        assert_eq!((summary.requests, summary.failures), (50, 0), "{:?}", summary.errors);
        let udp: serde_json::Value =
            world.cluster.client(&["udp-ping", target.as_str(), "--count", "20"], Duration::from_secs(30));
        assert_eq!(udp["received"], 20, "{udp}");
        let said = one_ping(world.client(), &[], &ip);
        assert!(said.contains("1 received"), "{said}");
        let icmp = if address.is_ipv4() { "1" } else { "58" };
        for proto in ["tcp", "udp", icmp] {
            world.is_seen_as_the_node(&ip, &node, proto);
        }
        // What the node's own stack sends is none of the engine's business, whatever identifier or port it has.
        let own = world.cluster.testbed.nodes()[0].netns();
        for identifier in ["7", "62000"] {
            let said = one_ping(own, &["-e", identifier], &ip);
            assert!(said.contains("1 received"), "identifier {identifier}: {said}");
        }
        let bound = if address.is_ipv4() { "0.0.0.0:62000" } else { "[::]:62000" };
        let echoed = own.inside(move || {
            let socket = UdpSocket::bind(bound)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.send_to(b"from a port of the range", SocketAddr::new(address, port))?;
            socket.recv_from(&mut [0; 64]).map(|(len, _)| len)
        });
        assert_eq!(echoed.expect("namespace").expect("the stack gets what is not the engine's"), 24);
    }
    world.cluster.stop_and_check_invariants();
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    if !gate::may_run("nat") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1"]);
    cluster.wait_for_backends(&["web-1"]);
    let (url, web) = (cluster.url("/bytes/1000000"), cluster.pod("web-1"));
    let args = ["get", url.as_str(), "--no-keepalive", "--verify-bytes", "--count", "20"];
    let netns = cluster.testbed.pod(web).netns();
    let summary: Summary = cluster.testbed.client(netns, &args, Duration::from_secs(60)).expect("client");
    assert_eq!((summary.failures, summary.byte_exact), (0, Some(true)), "{:?}", summary.errors);
    cluster.stop_and_check_invariants();
}

/// The classic collision: to the backend, both conversations are one and the same pair of address and port.
#[test]
fn one_port_reaches_one_backend_through_two_services_and_directly() {
    if !gate::may_run("nat") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let backend = cluster.testbed.pod(cluster.pod("web-2")).ip();
    let vips = [Ipv4Addr::new(10, 96, 0, 91), Ipv4Addr::new(10, 96, 0, 92)];
    for (n, vip) in vips.iter().enumerate() {
        let yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: twin-{n}}}\nspec:\n  clusterIP: {vip}\n  ports:\n  \
             - {{name: t, protocol: TCP, port: 80}}\n  - {{name: u, protocol: UDP, port: 80}}\n---\napiVersion: \
             discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: twin-{n}\n  labels: \
             {{kubernetes.io/service-name: twin-{n}}}\naddressType: IPv4\nports:\n- {{name: t, protocol: TCP, port: 8080}}\n- \
             {{name: u, protocol: UDP, port: 8080}}\nendpoints: [{{addresses: [{backend}]}}]\n"
        );
        cluster.testbed.manifests().write(&format!("twin-{n}"), &yaml).expect("service");
    }
    let client = cluster.client;
    let servers =
        [(vips[0], 80), (vips[1], 80), (backend, 8080)].map(|(ip, port)| SocketAddr::new(ip.into(), port));
    let waited = cluster.testbed.wait("both services answer", READY, |testbed| {
        let ask = move || servers.iter().try_for_each(|server| udp_echo(*server, 0).map(drop));
        testbed.pod(client).netns().inside(ask).map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let netns = cluster.testbed.pod(client).netns();
    // UDP: one socket, three conversations, each answered by whom it was sent to.
    let answers = netns.inside(move || -> std::io::Result<Vec<SocketAddr>> {
        let socket = UdpSocket::bind("0.0.0.0:40000")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut from = Vec::new();
        for _ in 0..10 {
            for server in servers {
                socket.send_to(b"who are you?", server)?;
                from.push(socket.recv_from(&mut [0; 64])?.1);
            }
        }
        Ok(from)
    });
    let answers = answers.expect("namespace").expect("every datagram is answered");
    assert_eq!(answers, servers.repeat(10));
    // TCP: three connections from one port, at once.
    let bodies = netns.inside(move || tcp_from_one_port(40_001, &servers));
    for body in bodies.expect("namespace").expect("every connection is answered") {
        assert!(body.ends_with("web-2\n") || body.ends_with("web-2"), "{body}");
    }
    cluster.stop_and_check_invariants();
}

fn udp_echo(server: SocketAddr, port: u16) -> std::io::Result<usize> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(b"hello", server)?;
    socket.recv_from(&mut [0; 64]).map(|(len, _)| len)
}

/// Opens a connection to each server from the same port, and then asks over each.
fn tcp_from_one_port(port: u16, servers: &[SocketAddr]) -> std::io::Result<Vec<String>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut streams = Vec::new();
        for server in servers {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
            let connected = tokio::time::timeout(Duration::from_secs(10), socket.connect(*server));
            streams.push(connected.await??);
        }
        let mut bodies = Vec::new();
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
            let mut body = String::new();
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut body)).await??;
            bodies.push(body);
        }
        Ok(bodies)
    })
}

#[test]
fn routers_outside_tell_pods_of_their_mtu_and_of_packets_that_expire() {
    if !gate::may_run("nat") {
        return;
    }
    let _alone = gate::alone();
    let world = World::start(1);
    // Behind the router is a network of a smaller MTU, where nobody is.
    let router = world.outside.netns();
    router.ip(["link", "add", "narrow", "type", "veth", "peer", "name", "narrow-end"]).expect("device");
    router.ip(["link", "set", "narrow-end", "up"]).expect("device");
    router.ip(["link", "set", "narrow", "mtu", "1300", "up"]).expect("device");
    router.ip(["route", "add", "198.51.100.0/24", "dev", "narrow"]).expect("route");
    router.ip(["-6", "route", "add", "2001:db8:ff::/64", "dev", "narrow"]).expect("route");
    sysctl(router, &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
    let said = one_ping(world.client(), &["-M", "do", "-s", "1372"], "198.51.100.9");
    assert!(said.contains("Frag needed and DF set (mtu = 1300)"), "{said}");
    assert!(said.contains("From 192.168.77.254"), "the router speaks for itself: {said}");
    let said = one_ping(world.client(), &["-M", "do", "-s", "1352"], "2001:db8:ff::9");
    assert!(said.contains("Packet too big: mtu=1300"), "{said}");
    let said = one_ping(world.client(), &["-t", "2"], "198.51.100.9");
    assert!(said.contains("From 192.168.77.254") && said.contains("Time to live exceeded"), "{said}");
    // A port where nobody listens, over UDP: the kernel tells the socket.
    let refused = world.client().inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((OUTSIDE, 9))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 8])
    });
    let error = refused.expect("namespace").expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    world.cluster.stop_and_check_invariants();
}

#[test]
fn a_restart_of_the_engine_ends_no_translated_connection() {
    if !gate::may_run("nat") {
        return;
    }
    let _alone = gate::alone();
    let mut world = World::start(1);
    let url = format!("http://{OUTSIDE}:{}/bytes/1000000000", testbed::POD_PORT);
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "80000"];
    let mut client = world.cluster.testbed.start_client(world.cluster.client, &args).expect("client");
    let established = |world: &World| -> Vec<serde_json::Value> {
        let flows = world.flows(&OUTSIDE.to_string(), "tcp");
        flows
            .into_iter()
            .filter(|flow| flow["state"] == "established")
            .map(|flow| flow["seen_as"].clone())
            .collect()
    };
    let waited = world.cluster.testbed.wait("the download runs", READY, |testbed| {
        let flows =
            testbed.nodes()[0].ask(&["flows", "--ip", &OUTSIDE.to_string(), "--state", "established"]);
        match flows.map_err(|e| e.to_string())?.as_array() {
            Some(flows) if !flows.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let before = established(&world);
    // In place, and then by a death.
    let node = world.cluster.testbed.node_mut(0);
    node.restart_dataplane().expect("restart").success().expect("restarted in place");
    let cores = share_of_cores(&sys::cores(), 0, 1);
    node.dataplane().expect("it runs").kill();
    assert!(client.ended().is_none(), "all this happens while the download runs: {}", client.log());
    node.start_dataplane(&["--cores", &cores]).expect("started again");
    let summary: Summary =
        world.cluster.testbed.finish_client(client, Duration::from_secs(100)).expect("summary");
    assert_eq!((summary.failures, summary.byte_exact), (0, Some(true)), "{:?}", summary.errors);
    assert_eq!(summary.bytes, 1_000_000_000);
    let after = world.flows(&OUTSIDE.to_string(), "tcp");
    assert!(after.iter().any(|flow| before.contains(&flow["seen_as"])), "{before:?} in {after:?}");
    assert!(ping(world.client(), OUTSIDE, 3, 84).expect("ping").complete());
    world.cluster.stop_and_check_invariants();
}

/// Streams that send a record every 50 ms while the engine is away for half a second.
const STREAMS: Streams =
    Streams { count: 20, records: 120, record_bytes: 200, interval_ms: 50, timeout_ms: 30_000 };

#[test]
fn a_death_of_the_engine_ends_no_connection_to_a_node_port() {
    if !gate::may_run("nat") {
        return;
    }
    let _alone = gate::alone();
    let mut world = World::start(1);
    // The client is on the uplink's own subnet, where answers go by the node's own stack, as on any node of Kubernetes.
    load::let_kernels_forward(&world.cluster);
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\nspec:\n  type: NodePort\n  \
         clusterIP: 10.96.0.80\n  ports: [{{name: http, port: 80, nodePort: {NODE_PORT}}}]\n"
    );
    world.cluster.testbed.manifests().write("service-shop-web", &service).expect("service");
    world.cluster.service.target_port = testbed::STREAM_PORT;
    world.cluster.set_backends(&["web-1", "web-2"]);
    let target = format!("{NODE}:{NODE_PORT}");
    let waited = world.cluster.testbed.wait("the node port answers", READY, |_| {
        let reached = world.outside.netns().inside(|| TcpStream::connect((NODE, NODE_PORT)).map(drop));
        reached.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let client = load::start_streams_in(&world.cluster, world.outside.netns(), &target, STREAMS);
    let node = world.cluster.testbed.node_mut(0);
    node.dataplane().expect("it runs").kill();
    // Every stream sends meanwhile; the node's own stack must not answer.
    std::thread::sleep(Duration::from_millis(500));
    node.start_dataplane(&["--cores", &share_of_cores(&sys::cores(), 0, 1)]).expect("started again");
    let summary: StreamSummary = load::answer(&mut world.cluster, client, Duration::from_secs(60));
    assert_eq!((summary.streams, summary.byte_exact), (STREAMS.count, STREAMS.count), "{:?}", summary.errors);
    assert!(summary.longest_stall_ms >= 400, "the engine was away: {summary:?}");
    world.cluster.stop_and_check_invariants();
}
