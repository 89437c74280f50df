//! The cluster in which paths are walked: two nodes, a client on the first, servers on both, and a service; in ENI mode
//! with the cloud's network around it.

use super::mode::Mode;
use super::paths::{Asked, Client, Outcome, Path, Server, Sights};
use super::seen::seen;
use crate::capture::Capture;
use crate::dual_stack::{self, Family, ipv6_of};
use crate::engines;
use crate::error::{Error, Result};
use crate::manifests::{EndpointSpec, ServiceSpec};
use crate::netns::Netns;
use crate::node::UPLINK;
use crate::pod::client::Summary;
use crate::process::wait_for;
use crate::testbed::{Options, POD_PORT, PodId, Testbed};
use crate::vpc::{OUTSIDE, Vpc};
use fairway_tables::Prefix;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);
/// How long captures may lag behind a conversation that is over.
const CAPTURE_LAG: Duration = Duration::from_secs(5);
/// First address of the first node's pod range, which the node itself has.
pub(super) const NODE_IN_POD_RANGE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The router to the outside, on the switch.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);
/// Two services that differ in their policy towards the outside.
const SERVICES: [Web; 2] = [
    Web {
        name: "web",
        policy: "Cluster",
        cluster_ip: Ipv4Addr::new(10, 96, 0, 80),
        external_ip: Ipv4Addr::new(203, 0, 113, 80),
    },
    Web {
        name: "web-local",
        policy: "Local",
        cluster_ip: Ipv4Addr::new(10, 96, 0, 81),
        external_ip: Ipv4Addr::new(203, 0, 113, 81),
    },
];
/// What pods with an ENI of their own reach by their second interface.
const SERVICE_RANGES: [&str; 4] = ["10.96.0.0/16", "203.0.113.0/24", "fd00:96::/32", "fd00:0:113::/48"];

/// A service with a cluster address and an external one of each family.
struct Web {
    name: &'static str,
    policy: &'static str,
    cluster_ip: Ipv4Addr,
    external_ip: Ipv4Addr,
}

impl Web {
    fn spec(&self) -> ServiceSpec {
        let (namespace, name) = ("shop".into(), self.name.into());
        ServiceSpec { namespace, name, cluster_ip: self.cluster_ip, port: 80, target_port: POD_PORT }
    }

    fn manifest(&self) -> String {
        let Web { name, policy, cluster_ip, external_ip } = self;
        let (cluster_ip6, external_ip6) = (ipv6_of(*cluster_ip), ipv6_of(*external_ip));
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: shop\n  name: {name}\nspec:\n  type: ClusterIP\n  \
             clusterIP: {cluster_ip}\n  clusterIPs: [{cluster_ip}, '{cluster_ip6}']\n  externalIPs: [{external_ip}, \
             '{external_ip6}']\n  externalTrafficPolicy: {policy}\n  ports:\n  \
             - {{name: http, protocol: TCP, port: 80, targetPort: {POD_PORT}}}\n"
        )
    }

    /// The slice of its IPv6 endpoints, which is one.
    fn slice6(&self, backend: &EndpointSpec) -> String {
        let (name, ip, node) = (self.name, ipv6_of(backend.ip), &backend.node);
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: {name}-6\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv6\nports: [{{name: http, protocol: TCP, \
             port: {POD_PORT}}}]\nendpoints: [{{addresses: ['{ip}'], nodeName: {node}}}]\n"
        )
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Fabric {
    mode: Mode,
    // Before the nodes' namespaces, whose devices end in it.
    vpc: Option<Vpc>,
    /// The router to the outside, where that is not the cloud's network.
    router: Option<Netns>,
    testbed: Testbed,
    client: PodId,
    near: PodId,
    beside: Option<PodId>,
    far: PodId,
    /// Conversations captured so far, for the names of files.
    captured: u32,
}

/// A capture of a wire, with the name under which what it sees is told.
struct Wire(String, Capture);

impl Fabric {
    /// Builds and starts it.
    pub fn start(mode: Mode) -> Result<Fabric> {
        let mut testbed = Testbed::new(Options { dual_stack: true, ..Options::default() })?;
        testbed.manifests().namespace("shop")?;
        if let Some(pools) = mode.pools() {
            testbed.manifests().write("pools", &pools)?;
        }
        if mode == Mode::BeyondSubnet {
            put_nodes_apart(&testbed)?;
        }
        let mut vpc = if mode.is_eni() { Some(build_vpc(&testbed, mode)?) } else { None };
        let mut pod =
            |testbed: &mut Testbed, name: &str, node: usize, eni: u8, host: u8| match (&mut vpc, mode) {
                (Some(vpc), Mode::ExclusiveEni) => vpc.give(testbed, node, host, name, &SERVICE_RANGES),
                (Some(vpc), _) => {
                    let ip = vpc.assign(testbed, node, eni, host)?;
                    testbed.add_pod(node, "shop", name, ip)
                }
                (None, _) => {
                    let ip = Ipv4Addr::new(10, 244, node as u8 + 1, host);
                    testbed.add_pod(node, "shop", name, ip)
                }
            };
        let client = pod(&mut testbed, "client", 0, 0, 10)?;
        let near = pod(&mut testbed, "near", 0, 0, 11)?;
        let is_shared = mode == Mode::SharedEni;
        let beside = if is_shared { Some(pod(&mut testbed, "beside", 0, 1, 12)?) } else { None };
        let far = pod(&mut testbed, "far", 1, 0, 13)?;
        for server in [Some(near), beside, Some(far)].into_iter().flatten() {
            testbed.start_server(server)?;
        }
        for web in &SERVICES {
            testbed.manifests().write(&format!("service-shop-{}", web.name), &web.manifest())?;
        }
        let router = if vpc.is_some() { None } else { Some(build_router(&testbed)?) };
        let outside = vpc.as_ref().map(Vpc::netns).or(router.as_ref());
        outside.map_or(Ok(()), |outside| join_outside(&testbed, outside))?;
        testbed.start_nodes(1)?;
        // Without them, pods reach each other by the kernels, which other devices see.
        testbed.wait("the engines carry the traffic", READY, |testbed| engines::carry(testbed))?;
        Ok(Fabric { mode, vpc, router, testbed, client, near, beside, far, captured: 0 })
    }

    /// Stops everything in order; the engines insist that no frame and no packet is missing.
    pub fn stop(mut self) -> Result<()> {
        for node in 0..self.testbed.nodes().len() {
            self.testbed.node_mut(node).stop_dataplane()?;
            self.testbed.node_mut(node).stop_control()?;
        }
        Ok(())
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// The address that is asked, if it is a service's.
    pub(super) fn asked_ip(&self, asked: Asked, family: Family) -> Option<IpAddr> {
        let ip = match asked {
            Asked::Pod => return None,
            Asked::Cluster => SERVICES[0].cluster_ip,
            Asked::External => SERVICES[0].external_ip,
            Asked::Local => SERVICES[1].external_ip,
        };
        Some(family.of(ip))
    }

    /// Addresses of the two nodes on the wire.
    pub(super) fn node_ips(&self, family: Family) -> (IpAddr, IpAddr) {
        (family.of(self.testbed.nodes()[0].ip()), family.of(self.testbed.nodes()[1].ip()))
    }

    fn server(&self, server: Server) -> PodId {
        match server {
            Server::Near => self.near,
            Server::Beside => self.beside.unwrap_or(self.near),
            Server::Far => self.far,
        }
    }

    pub(super) fn client_ip(&self, client: Client, family: Family) -> IpAddr {
        family.of(match client {
            Client::Pod => self.testbed.pod(self.client).ip(),
            Client::Node => NODE_IN_POD_RANGE,
            Client::Outside => OUTSIDE,
        })
    }

    pub(super) fn server_ip(&self, server: Server, family: Family) -> IpAddr {
        family.of(self.testbed.pod(self.server(server)).ip())
    }

    /// Namespace and devices from which a client speaks, each with the name under which what it sees is told.
    fn client_at(&self, path: Path) -> Result<(&Netns, Vec<(&'static str, &str)>)> {
        Ok(match (path.client, path.asked, &self.vpc) {
            (Client::Node, ..) => {
                (self.testbed.nodes()[0].netns(), vec![("", fairway_control::names::HOST_KERNEL_IF)])
            }
            (Client::Outside, Asked::Pod, Some(vpc)) => (vpc.netns(), vec![("", vpc.port(0, 0)?)]),
            (Client::Outside, ..) => {
                let outside = self.vpc.as_ref().map(Vpc::netns).or(self.router.as_ref());
                (outside.unwrap_or(self.testbed.nodes()[0].netns()), vec![("", UPLINK)])
            }
            (Client::Pod, ..) => (self.testbed.pod(self.client).netns(), self.pods_devices()),
        })
    }

    /// The devices of a pod.
    fn pods_devices(&self) -> Vec<(&'static str, &'static str)> {
        if self.mode == Mode::ExclusiveEni {
            vec![("eth0 ", "eth0"), ("eth1 ", "eth1")]
        } else {
            vec![("", "eth0")]
        }
    }

    /// Captures of several devices of a namespace.
    fn capture(&self, netns: &Netns, devices: &[(&'static str, &str)], stage: &str) -> Result<Vec<Wire>> {
        let start = |(name, device): &(&'static str, &str)| {
            let file = self.file(&format!("{stage}-{device}"));
            Ok(Wire((*name).to_owned(), Capture::start(netns, device, self.testbed.dir(), &file)?))
        };
        devices.iter().map(start).collect()
    }

    /// Holds a conversation of each family over a path, and compares what is seen of it with what should be.
    pub fn walk(&mut self, path: Path) -> Vec<Outcome> {
        self.captured += 1;
        let wanted = Family::ALL.map(|family| (family, path.sights(self, family)));
        let seen = self.try_walk(path, &wanted).map_err(|error| error.to_string());
        let outcome = |(family, wanted): &(Family, Sights)| {
            let result = match &seen {
                Ok(seen) if seen.get(family) == Some(wanted) => Ok(()),
                Ok(seen) => Err(format!("seen {:?}, to be seen {wanted:?}", seen.get(family))),
                Err(error) => Err(error.clone()),
            };
            Outcome { path, family: *family, result }
        };
        wanted.iter().map(outcome).collect()
    }

    /// What is seen of both conversations; of one that nobody answers nothing.
    fn try_walk(&self, path: Path, wanted: &[(Family, Sights)]) -> Result<BTreeMap<Family, Sights>> {
        let server = self.testbed.pod(self.server(path.server));
        if path.asked != Asked::Pod {
            self.set_backend(path.server)?;
        }
        let url = |family| match self.asked_ip(path.asked, family) {
            Some(ip) => format!("http://{}/", SocketAddr::new(ip, 80)),
            None => format!("http://{}/", SocketAddr::new(self.server_ip(path.server, family), POD_PORT)),
        };
        let (from, devices) = self.client_at(path)?;
        let ask = |family| self.ask(from, &url(family), server.name());
        // Until it goes through, so that what is captured afterwards is one whole conversation.
        let answers = |family| {
            let what = format!("{} answers over {family}", server.name());
            wait_for(&what, READY, || Ok(ask(family)))
        };
        Family::ALL.into_iter().try_for_each(answers)?;
        let at_client = self.capture(from, &devices, "client")?;
        let at_server = self.capture(server.netns(), &self.pods_devices(), "server")?;
        let wires = self.wires()?;
        for family in Family::ALL {
            ask(family).map_err(|reason| Error::Answer { what: url(family), reason })?;
        }
        let all_of = |wires: &[Wire], family| -> Result<BTreeSet<String>> {
            let mut all = BTreeSet::new();
            for Wire(name, capture) in wires {
                all.extend(
                    seen(&capture.so_far()?, family).into_iter().map(|sight| format!("{name}{sight}")),
                );
            }
            Ok(all)
        };
        let of_family = |family| -> Result<Sights> {
            let [client, wires, server] =
                [&at_client, &wires, &at_server].map(|captures| all_of(captures, family));
            Ok(Sights { client: client?, wires: wires?, server: server? })
        };
        let so_far =
            || Family::ALL.into_iter().map(|family| Ok((family, of_family(family)?))).collect::<Result<_>>();
        // What is missing in the end is for the comparison to tell.
        let complete = wait_for("the captures are complete", CAPTURE_LAG, || {
            let seen: BTreeMap<Family, Sights> = so_far()?;
            let is_whole = wanted.iter().all(|(family, wanted)| seen.get(family) == Some(wanted));
            Ok(if is_whole { Ok(()) } else { Err(format!("{seen:?}")) })
        });
        // What must not be there might come later still.
        std::thread::sleep(if complete.is_ok() { Duration::from_millis(100) } else { Duration::ZERO });
        so_far()
    }

    /// Name of a capture's file.
    fn file(&self, stage: &str) -> String {
        format!("matrix-{}-{stage}", self.captured)
    }

    /// Makes a server the services' only backend.
    fn set_backend(&self, server: Server) -> Result<()> {
        let pod = self.testbed.pod(self.server(server));
        let node = self.testbed.nodes()[pod.node()].name().to_owned();
        let endpoint = EndpointSpec { pod: pod.name().to_owned(), ip: pod.ip(), node };
        let manifests = self.testbed.manifests();
        let set = |web: &Web| {
            manifests.endpoints(&web.spec(), std::slice::from_ref(&endpoint))?;
            manifests.write(&format!("endpoints6-shop-{}", web.name), &web.slice6(&endpoint))
        };
        SERVICES.iter().try_for_each(set)
    }

    /// One request; an error in words unless `server` answers it.
    fn ask(&self, from: &Netns, url: &str, server: &str) -> Result<(), String> {
        let args = ["get", url, "--no-keepalive", "--timeout-ms", "2000"];
        let summary: Summary =
            self.testbed.client(from, &args, Duration::from_secs(20)).map_err(|e| e.to_string())?;
        let answered: Vec<&str> = summary.backends.keys().map(String::as_str).collect();
        if answered == [server] { Ok(()) } else { Err(format!("{answered:?}, {:?}", summary.errors)) }
    }

    /// Captures of all wires of the first node.
    fn wires(&self) -> Result<Vec<Wire>> {
        let uplink = self.testbed.capture(self.testbed.nodes()[0].ip(), &self.file(UPLINK))?;
        let mut wires = vec![Wire(format!("{UPLINK} "), uplink)];
        for (number, vpc) in
            self.vpc.iter().filter(|_| self.mode == Mode::SharedEni).flat_map(|v| [(0, v), (1, v)])
        {
            let name = format!("eni{number}");
            let capture = vpc.capture(&self.testbed, 0, number, &self.file(&name))?;
            wires.push(Wire(format!("{name} "), capture));
        }
        Ok(wires)
    }
}

/// The cloud's network, for shared ENIs with two on the first node and one on the second.
fn build_vpc(testbed: &Testbed, mode: Mode) -> Result<Vpc> {
    let mut vpc = Vpc::create(testbed)?;
    if mode == Mode::SharedEni {
        vpc.add_eni(testbed, 0, 0)?;
        vpc.add_eni(testbed, 0, 1)?;
        vpc.add_eni(testbed, 1, 0)?;
    }
    Ok(vpc)
}

/// A router to the outside that has the address of a station there itself.
fn build_router(testbed: &Testbed) -> Result<Netns> {
    let netns = Netns::create(&format!("{}-router", testbed.name()))?;
    dual_stack::allow_ipv6(&netns, &["lo"])?;
    for family in Family::ALL {
        let prefix = Prefix::host(family.of(OUTSIDE).into()).to_string();
        netns.ip(["addr", "add", &prefix, "dev", "lo"])?;
    }
    Ok(netns)
}

/// Makes the outside the nodes' way to all that they do not know; there, the first node has the external addresses.
fn join_outside(testbed: &Testbed, outside: &Netns) -> Result<()> {
    testbed.join_switch(outside, ROUTER)?;
    for family in Family::ALL {
        let text = |ip| family.of(ip).to_string();
        let (router, node, source) = (text(ROUTER), text(testbed.nodes()[0].ip()), text(OUTSIDE));
        for web in &SERVICES {
            outside.ip(["route", "add", &text(web.external_ip), "via", &node, "src", &source])?;
        }
        let everything = if family.is_v4() { "0.0.0.0/0" } else { "::/0" };
        for node in testbed.nodes() {
            node.netns().ip(["route", "add", everything, "via", &router, "dev", UPLINK])?;
        }
    }
    Ok(())
}

/// Notes of each node, as Calico does, that nobody else is in its subnet.
fn put_nodes_apart(testbed: &Testbed) -> Result<()> {
    for node in testbed.nodes() {
        let (name, ip, cidr) = (node.name(), node.ip(), node.pod_cidr());
        let (ip6, number) = (ipv6_of(ip), ip.octets()[3]);
        let yaml = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n    \
             projectcalico.org/IPv4Address: {ip}/32\n    projectcalico.org/IPv6Address: '{ip6}/128'\nspec:\n  podCIDRs: [{cidr}, 'fd00:244:{number}::/64']\nstatus:\n  \
             addresses:\n  - {{type: InternalIP, address: {ip}}}\n  - {{type: InternalIP, address: '{ip6}'}}\n"
        );
        testbed.manifests().write(&format!("node-{name}"), &yaml)?;
    }
    Ok(())
}
