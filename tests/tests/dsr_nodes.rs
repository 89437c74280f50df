//! Direct server return over three nodes (docs/dsr.md): a client's packets come by either of two nodes without the backend,
//! answers leave the backend's own, and what a router says about answers comes to a node that never saw the connection.
//!
//! ```text
//!                                    ┌── node-1 ──┐
//!  client ──1500── router (MTU 1200 ─┼── node-2 ──┼── pods of the Service
//!                  to the client)    └── node-3 ──┘
//! ```

use fairway_tests::netns::{Netns, VethEnd};
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::stream::{ALL_OPEN, StreamSummary};
use fairway_tests::process::{Process, wait_for};
use fairway_tests::programs::{bin_dir, program};
use fairway_tests::testbed::{POD_PORT, STREAM_PORT};
use fairway_tests::{Options, Result, Testbed, engines, gate};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(60);
const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 9);
/// What the router's way to the client takes, though neither end knows.
const NARROW: usize = 1200;
const NODES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 168, 77, 1), Ipv4Addr::new(192, 168, 77, 2), Ipv4Addr::new(192, 168, 77, 3)];
/// The node with the backends.
const BACKENDS_AT: usize = 1;

struct World {
    testbed: Testbed,
    router: Netns,
    client: Netns,
}

impl World {
    fn start() -> Result<World> {
        let mut testbed = Testbed::new(Options { nodes: 3, ..Options::default() })?;
        let router = Netns::create(&format!("{}-router", testbed.name()))?;
        let client = Netns::create(&format!("{}-client", testbed.name()))?;
        testbed.join_switch(&router, ROUTER)?;
        let (inner, outer) = (VethEnd { name: "inner", mac: None }, VethEnd { name: "eth0", mac: None });
        router.add_veth(inner, &client, outer, 1500, 1)?;
        router.ip(["addr", "add", "203.0.113.1/24", "dev", "inner"])?;
        router.ip(["link", "set", "inner", "up"])?;
        client.ip(["addr", "add", &format!("{CLIENT}/24"), "dev", "eth0"])?;
        client.ip(["link", "set", "eth0", "up"])?;
        client.ip(["route", "add", "default", "via", "203.0.113.1"])?;
        let narrow = NARROW.to_string();
        router.ip(["route", "add", &CLIENT.to_string(), "dev", "inner", "mtu", &narrow])?;
        router.ip(["rule", "add", "iif", "inner", "lookup", "100"])?;
        set(&router, &["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"])?;
        for node in testbed.nodes() {
            node.netns().ip(["route", "add", "default", "via", &ROUTER.to_string()])?;
            set(node.netns(), &["net.ipv4.ip_forward=1"])?;
        }
        let mut ips = Vec::new();
        for (name, last) in [("web-1", 11), ("web-2", 12), ("web-3", 13)] {
            let ip = Ipv4Addr::new(10, 244, BACKENDS_AT as u8 + 1, last);
            let pod = testbed.add_pod(BACKENDS_AT, "shop", name, ip)?;
            testbed.start_server(pod)?;
            ips.push(ip);
        }
        // So that there is a pod on every node, by which its engine is known to carry packets.
        testbed.add_pod(0, "shop", "other-1", Ipv4Addr::new(10, 244, 1, 10))?;
        testbed.add_pod(2, "shop", "other-3", Ipv4Addr::new(10, 244, 3, 10))?;
        testbed.manifests().namespace("shop")?;
        testbed.manifests().write("web", &objects(&ips).to_string())?;
        testbed.start_nodes(1)?;
        testbed.wait("all engines carry packets", READY, |testbed| engines::carry(testbed))?;
        let mut world = World { testbed, router, client };
        for by in [0, 2] {
            world.route(by, 2 - by)?;
            let World { testbed, client, .. } = &mut world;
            testbed.wait("the Service is in force", READY, |testbed| {
                let url = format!("http://{VIP}:80/");
                let args = ["get", &url, "--no-keepalive", "--count", "3", "--timeout-ms", "1000"];
                let summary: Summary = testbed.client(client, &args, DEADLINE).map_err(|e| e.to_string())?;
                if summary.failures == 0 { Ok(()) } else { Err(format!("{:?}", summary.errors)) }
            })?;
        }
        Ok(world)
    }

    /// The client's packets to the Service go by one node, what the router itself sends there by another.
    fn route(&self, clients: usize, errors: usize) -> Result<()> {
        let (clients, errors) = (NODES[clients].to_string(), NODES[errors].to_string());
        self.router.ip(["route", "replace", "198.51.100.0/24", "via", &clients, "table", "100"])?;
        self.router.ip(["route", "replace", "198.51.100.0/24", "via", &errors])?;
        // What pods know of the way to the client is forgotten.
        for pod in self.testbed.pods() {
            pod.netns().ip(["route", "flush", "cache"])?;
        }
        Ok(())
    }

    fn counter(&self, node: usize, name: &str) -> u64 {
        let counters = self.testbed.nodes()[node].ask(&["counters"]).expect("counters");
        counters["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {counters}"))
    }

    /// Large answers to new connections that come by one node, with errors about them that come to another.
    fn download(&mut self, by: usize, errors: usize) -> Result<()> {
        self.route(by, errors)?;
        let url = format!("http://{VIP}:80/bytes/300000");
        let client = &self.client;
        let get = |testbed: &Testbed| -> Result<Summary> {
            let args =
                ["get", &url, "--no-keepalive", "--verify-bytes", "--count", "12", "--timeout-ms", "8000"];
            testbed.client(client, &args, DEADLINE)
        };
        let before = self.counter(by, "dsr-forwarded");
        let captures: Vec<_> = (0..NODES.len())
            .map(|node| self.testbed.capture(NODES[node], &format!("node-{}-by-{by}", node + 1)))
            .collect::<Result<_>>()?;
        let summary = get(&self.testbed)?;
        assert_eq!((summary.failures, summary.byte_exact), (0, Some(true)), "{:?}", summary.errors);
        assert!(self.counter(by, "dsr-forwarded") - before >= 12, "forwarded by node-{}", by + 1);
        let wires: Vec<_> = captures.into_iter().map(|capture| capture.stop()).collect::<Result<_>>()?;
        let count = |wire: usize, wanted: &dyn Fn(&[u8]) -> bool| {
            wires[wire].iter().filter(|frame| wanted(frame)).count()
        };
        let answer = |frame: &[u8]| is_between(frame, 14, VIP, CLIENT);
        let tunnelled_answer = |frame: &[u8]| is_between(frame, 64, VIP, CLIENT);
        let request = |frame: &[u8]| is_between(frame, 14, CLIENT, VIP);
        let error = |frame: &[u8]| is_error(frame, 14);
        let passed_on = |from: usize| {
            move |frame: &[u8]| is_between(frame, 14, NODES[from], NODES[BACKENDS_AT]) && is_error(frame, 64)
        };
        for node in 0..NODES.len() {
            let answers = count(node, &answer) + count(node, &tunnelled_answer);
            assert_eq!(answers > 0, node == BACKENDS_AT, "{answers} answers at node-{}", node + 1);
            assert_eq!(count(node, &request) > 0, node == by, "requests at node-{}", node + 1);
        }
        let (came, told) = (count(errors, &error), count(BACKENDS_AT, &passed_on(errors)));
        assert!(came > 0 && told == came, "{came} errors at node-{}, {told} passed on", errors + 1);
        println!("by node-{}: {came} errors at node-{}, all passed on to the pods' node", by + 1, errors + 1);
        Ok(())
    }

    /// Connections whose client's packets begin to come by another node, back and forth.
    fn wander(&mut self) -> Result<()> {
        self.route(0, 2)?;
        let mut command = self.client.command(program(&bin_dir()?, "fairway-pod")?);
        let target = format!("{VIP}:81");
        command.args(["streams", &target, "--count", "12", "--records", "60", "--record-bytes", "3000"]);
        command.args(["--interval-ms", "50", "--timeout-ms", "40000"]);
        let mut client = Process::spawn("streams", command, &self.testbed.dir().join("streams.log"), true)?;
        wait_for("all streams are open", READY, || {
            Ok(if client.log().contains(ALL_OPEN) { Ok(()) } else { Err(client.log()) })
        })?;
        for (by, errors) in [(2, 0), (0, 2), (2, 2)] {
            std::thread::sleep(Duration::from_millis(600));
            self.route(by, errors)?;
        }
        wait_for("the streams end", DEADLINE, || {
            Ok(client.ended().map(drop).ok_or("still running".to_owned()))
        })?;
        let log = client.log();
        let summary: StreamSummary =
            serde_json::from_str(log.lines().last().unwrap_or_default()).expect("a summary");
        assert_eq!((summary.streams, summary.byte_exact), (12, 12), "{:?}", summary.errors);
        assert!(summary.backends.len() > 1, "several pods were chosen: {:?}", summary.backends);
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        for node in 0..NODES.len() {
            self.testbed.node_mut(node).stop_dataplane()?;
            self.testbed.node_mut(node).stop_control()?;
        }
        Ok(())
    }
}

fn set(netns: &Netns, settings: &[&str]) -> Result<()> {
    let args = [&["-qw"], settings].concat();
    netns.run("sysctl", &args, READY)?.success().map(drop)
}

/// A Service with DSR by Maglev.
fn objects(backends: &[Ipv4Addr]) -> serde_json::Value {
    let node = format!("node-{}", BACKENDS_AT + 1);
    let endpoint = |ip: &Ipv4Addr| json!({"addresses": [ip], "nodeName": node});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": "shop", "name": "web",
                "annotations": {"fairway.io/forwarding": "dsr", "fairway.io/load-balancer": "maglev"},
            },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.2.7", "clusterIPs": ["10.96.2.7"],
                "ports": [{"name": "bytes", "port": 80}, {"name": "streams", "port": 81}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": VIP}]}},
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "bytes", "port": POD_PORT}, {"name": "streams", "port": STREAM_PORT}],
            "endpoints": backends.iter().map(endpoint).collect::<Vec<_>>(),
        },
    ]})
}

/// Whether an IPv4 packet at `at` of a frame goes from one address to the other.
fn is_between(frame: &[u8], at: usize, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let addresses = frame.get(at + 12..at + 20);
    frame.get(at) == Some(&0x45) && addresses == Some(&[from.octets(), to.octets()].concat())
}

/// Whether the router says there that an answer of the Service was too large.
fn is_error(frame: &[u8], at: usize) -> bool {
    is_between(frame, at, ROUTER, VIP)
        && frame.get(at + 9) == Some(&1)
        && frame.get(at + 20..at + 22) == Some(&[3, 4])
        && is_between(frame, at + 28, VIP, CLIENT)
}

#[test]
fn answers_and_errors_about_them_find_their_way_past_whichever_node_was_asked() {
    if !gate::may_run("dsr_nodes") {
        return;
    }
    let _alone = gate::alone();
    let run = || -> Result<()> {
        let mut world = World::start()?;
        for (by, errors) in [(0, 2), (2, 0)] {
            world.download(by, errors)?;
        }
        world.wander()?;
        world.stop()
    };
    run().unwrap_or_else(|error| panic!("{error}"));
}
