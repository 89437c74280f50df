//! The ground of both worlds: nodes, pods and addresses, which are the same in both. Every pod that may be an endpoint
//! holds a witness.
//!
//! ```text
//!  client, local-1 … local-3 ── node-1 (zone a) ── switch ── node-2 (zone b) ── remote-1 … remote-3
//!                                                    └── outside, the nodes' default gateway
//! ```

use fairway_control::names;
use fairway_tables::Ip;
use fairway_tests::kube::apiserver::NAMESPACE;
use fairway_tests::netns::Netns;
use fairway_tests::node::UPLINK;
use fairway_tests::process::{Process, wait_for};
use fairway_tests::programs::{bin_dir, program};
use fairway_tests::testbed::Pod;
use fairway_tests::{Options, PodId, Result, Testbed, dual_stack};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Ports on which every witness listens.
pub(crate) const PORTS: [u16; 4] = [8080, 8081, 8082, 8083];
/// Names of the pods that may be endpoints, and the number of their node.
pub(crate) const ENDPOINTS: [(&str, usize); 6] =
    [("local-1", 0), ("local-2", 0), ("local-3", 0), ("remote-1", 1), ("remote-2", 1), ("remote-3", 1)];
/// The pod on node-1 that asks.
pub(crate) const CLIENT: &str = "client";
const ZONES: [&str; 2] = ["a", "b"];
const DEADLINE: Duration = Duration::from_secs(30);

/// As Kubernetes wants its nodes. The kernel gives away no port that a question is asked from.
const FORWARDING: [(&str, &str); 3] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/ip_local_port_range", "56000 60999"),
];
/// What makes the kernel take packets wherever they come from, and refuse as often as it is asked: the limits per
/// destination do not replace that of the whole namespace (50 errors at once, 1,000 a second), which holds for the types in the masks.
const NO_FILTERS: [(&str, &str); 6] = [
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv6/icmp/ratemask", ""),
];

/// The Node objects.
pub(crate) fn nodes() -> Vec<Value> {
    let node = |(index, zone): (usize, &&str)| {
        let number = index + 1;
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": format!("node-{number}"), "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {
                "podCIDR": format!("10.244.{number}.0/24"),
                "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")],
            },
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("192.168.77.{number}")},
                {"type": "InternalIP", "address": format!("fd00:77::{number}")},
            ]},
        })
    };
    ZONES.iter().enumerate().map(node).collect()
}

/// Last byte of the outside's addresses in the nodes' subnet.
const OUTSIDE: u8 = 9;
/// Addresses of the outside beyond that.
pub(crate) const OUTSIDE_IPS: [&str; 2] = ["203.0.113.9", "2001:db8:113::9"];
/// Addresses of node-1: among the nodes', and those that Fairway gives it among its pods.
pub(crate) const NODE_IPS: [&str; 4] = ["192.168.77.1", "10.244.1.1", "fd00:77::1", "fd00:244:1::1"];
/// Where Services are, other than on nodes' addresses.
const SERVICE_RANGES: [&str; 4] = ["10.96.0.0/16", "198.51.100.0/23", "fd00:96::/64", "2001:db8:51::/48"];

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Asker {
    /// The client pod of node-1.
    Pod,
    /// A process of node-1.
    Host,
    /// A station behind the nodes' router.
    Outside,
}

impl Asker {
    pub(crate) const ALL: [Asker; 3] = [Asker::Pod, Asker::Host, Asker::Outside];
}

/// See the module's head.
pub(crate) struct Ground {
    // Processes before the namespaces that they are in.
    witnesses: Vec<Process>,
    outside: Netns,
    pub(crate) testbed: Testbed,
}

impl Ground {
    /// Nodes and pods with two addresses each, and the witnesses. Nothing forwards yet.
    pub(crate) fn build() -> Result<Ground> {
        let mut testbed = Testbed::new(Options::default())?;
        testbed.manifests().namespace(NAMESPACE)?;
        for node in nodes() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            testbed.manifests().write(&format!("node-{name}"), &node.to_string())?;
        }
        let outside = Netns::create(&format!("{}-outside", testbed.name()))?;
        testbed.join_switch(&outside, Ipv4Addr::new(192, 168, 77, OUTSIDE))?;
        add_uplink_ip6(&outside, OUTSIDE)?;
        for node in testbed.nodes() {
            add_uplink_ip6(node.netns(), node.ip().octets()[3])?;
            node.netns().ip(["route", "add", "default", "via", &format!("192.168.77.{OUTSIDE}")])?;
            node.netns().ip(["route", "add", "default", "via", &format!("fd00:77::{OUTSIDE}")])?;
        }
        for ip in OUTSIDE_IPS {
            outside.ip(["addr", "add", ip, "dev", "lo"])?;
        }
        add_service_routes(&outside)?;
        let mut witnesses = Vec::new();
        for (place, (name, node)) in [(CLIENT, 0)].into_iter().chain(ENDPOINTS).enumerate() {
            let ip = Ipv4Addr::new(10, 244, node as u8 + 1, 10 + place as u8);
            let id = testbed.add_pod(node, NAMESPACE, name, ip)?;
            dual_stack::add_address(testbed.pod(id), ip6_of(testbed.pod(id)))?;
            write_pod(&testbed, id)?;
            witnesses.push(start_witness(&testbed, id)?);
        }
        Ok(Ground { witnesses, outside, testbed })
    }

    /// The namespace of node-1.
    pub(crate) fn node(&self) -> &Netns {
        self.testbed.nodes()[0].netns()
    }

    /// The namespace in which somebody asks.
    pub(crate) fn netns_of(&self, asker: Asker) -> &Netns {
        match asker {
            Asker::Pod => self.pod(CLIENT).netns(),
            Asker::Host => self.node(),
            Asker::Outside => &self.outside,
        }
    }

    /// The addresses with which somebody asks.
    pub(crate) fn ips_of(&self, asker: Asker) -> Vec<IpAddr> {
        let parse = |list: &[&str]| list.iter().map(|ip| ip.parse().expect("an address")).collect();
        match asker {
            Asker::Pod => self.addresses_of(CLIENT).to_vec(),
            Asker::Host => parse(&NODE_IPS),
            Asker::Outside => parse(&OUTSIDE_IPS),
        }
    }

    /// Has the nodes forward what they are handed.
    pub(crate) fn let_nodes_forward(&self) -> Result<()> {
        self.testbed.nodes().iter().try_for_each(|node| set(node.netns(), &FORWARDING))
    }

    /// A station in the nodes' own subnet, with this last number of its addresses and routes to services by node-1.
    pub(crate) fn add_on_link(&self, last: u8) -> Result<Netns> {
        let station = Netns::create(&format!("{}-on-link", self.testbed.name()))?;
        self.testbed.join_switch(&station, Ipv4Addr::new(192, 168, 77, last))?;
        add_uplink_ip6(&station, last)?;
        add_service_routes(&station)?;
        Ok(station)
    }

    /// The pod of this name.
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        let found = self.testbed.pods().iter().find(|pod| pod.name() == name);
        found.unwrap_or_else(|| panic!("there is no pod {name}"))
    }

    /// The addresses of a pod.
    pub(crate) fn addresses_of(&self, pod: &str) -> [IpAddr; 2] {
        let pod = self.pod(pod);
        [pod.ip().into(), ip6_of(pod).into()]
    }

    /// An error if a witness has ended.
    pub(crate) fn expect_alive(&mut self) -> Result<()> {
        self.witnesses.iter_mut().try_for_each(Process::expect_alive)
    }

    /// Has the kernels forward between the pods of both nodes, without encapsulation.
    pub(crate) fn forward(&self) -> Result<()> {
        self.let_nodes_forward()?;
        for (index, node) in self.testbed.nodes().iter().enumerate() {
            let netns = node.netns();
            set(netns, &NO_FILTERS)?;
            let other = 2 - index;
            netns.ip([
                "route",
                "add",
                &format!("10.244.{other}.0/24"),
                "via",
                &format!("192.168.77.{other}"),
            ])?;
            netns.ip([
                "route",
                "add",
                &format!("fd00:244:{other}::/64"),
                "via",
                &format!("fd00:77::{other}"),
            ])?;
        }
        for pod in self.testbed.pods() {
            join(self.testbed.nodes()[pod.node()].netns(), pod)?;
        }
        Ok(())
    }
}

fn set(netns: &Netns, settings: &[(&str, &str)]) -> Result<()> {
    for (setting, value) in settings {
        let set = format!("echo {value} > /proc/sys/net/{setting}");
        netns.run("sh", &["-c", &set], DEADLINE)?.success()?;
    }
    Ok(())
}

/// Has a station reach Services through node-1.
pub(crate) fn add_service_routes(netns: &Netns) -> Result<()> {
    for range in SERVICE_RANGES {
        let node = if range.contains(':') { NODE_IPS[2] } else { NODE_IPS[0] };
        netns.ip(["route", "add", range, "via", node])?;
    }
    Ok(())
}

pub(crate) fn add_uplink_ip6(netns: &Netns, last: u8) -> Result<()> {
    dual_stack::allow_ipv6(netns, &["lo", UPLINK])?;
    netns.ip(["addr", "add", &format!("fd00:77::{last}/64"), "dev", UPLINK, "nodad"]).map(drop)
}

/// Writes a pod's manifest anew, with both addresses.
fn write_pod(testbed: &Testbed, id: PodId) -> Result<()> {
    let pod = testbed.pod(id);
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": pod.namespace(), "name": pod.name()},
        "spec": {"nodeName": testbed.nodes()[pod.node()].name(), "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": pod.ip()}, {"ip": ip6_of(pod)}]},
    });
    testbed.manifests().write(&format!("pod-{}-{}", pod.namespace(), pod.name()), &manifest.to_string())
}

/// The IPv6 address of a pod, which ends as its IPv4 address does.
fn ip6_of(pod: &Pod) -> Ipv6Addr {
    let [_, _, node, last] = pod.ip().octets();
    Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, last.into())
}

/// The address of an endpoint of [`ENDPOINTS`].
pub(crate) fn endpoint_ip(is_v4: bool, place: usize) -> IpAddr {
    let (node, last) = (ENDPOINTS[place].1 as u8 + 1, place as u8 + 11);
    if is_v4 {
        Ipv4Addr::new(10, 244, node, last).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, last.into()).into()
    }
}

fn start_witness(testbed: &Testbed, id: PodId) -> Result<Process> {
    let pod = testbed.pod(id);
    let at = |ip: IpAddr| PORTS.map(|port| SocketAddr::new(ip, port).to_string()).join(",");
    let mut command = pod.netns().command(program(&bin_dir()?, "fairway-pod")?);
    command.args(["witness", "--listen", &at(pod.ip().into()), "--listen", &at(ip6_of(pod).into())]);
    let log = testbed.dir().join(format!("witness-{}.log", pod.name()));
    let mut witness = Process::spawn(&format!("witness in {}", pod.name()), command, &log, true)?;
    wait_for("a witness listens", DEADLINE, || {
        witness.expect_alive()?;
        Ok(if witness.log().contains("listening") { Ok(()) } else { Err("no word yet".to_owned()) })
    })?;
    Ok(witness)
}

/// Makes a pod and its node neighbours of each other, the node in the place of the gateway.
fn join(node: &Netns, pod: &Pod) -> Result<()> {
    let veth = names::host_veth(pod.namespace(), pod.name());
    let gateway_mac = names::GATEWAY_MAC.to_string();
    node.ip(["link", "set", "dev", &veth, "address", &gateway_mac])?;
    dual_stack::allow_ipv6(node, &[&veth])?;
    let pod_mac = names::pod_mac(Ip::v4(pod.ip().octets())).to_string();
    for ip in [pod.ip().to_string(), ip6_of(pod).to_string()] {
        node.ip(["route", "replace", &ip, "dev", &veth])?;
        node.ip(["neigh", "replace", &ip, "lladdr", &pod_mac, "dev", &veth, "nud", "permanent"])?;
    }
    for gateway in [names::GATEWAY_IP, names::GATEWAY_IP6] {
        let to = ["lladdr", &gateway_mac, "dev", "eth0", "nud", "permanent"];
        pod.netns().ip([
            "neigh",
            "replace",
            &gateway.to_string(),
            to[0],
            to[1],
            to[2],
            to[3],
            to[4],
            to[5],
        ])?;
    }
    Ok(())
}
