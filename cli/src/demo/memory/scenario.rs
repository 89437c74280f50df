//! The topology of the demo over the memory driver, and its steps: the story of the demo with real pods.

use super::capture::Capture;
use super::error::{MemoryError, Result};
use super::http::Reply;
use super::node::NodeAddress;
use super::simulation::{Finished, Pings, Simulation, StackSpec};
use crate::demo::screen::Screen;
use fairway_control::names;
use fairway_tables::{DropReason, Mac};
use fairway_tests::manifests::{EndpointSpec, Manifests, ServiceSpec};
use fairway_tests::testbed::POD_PORT;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

const NAMESPACE: &str = "demo";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// An address of node-1's range that no pod has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 250);
const READY: Duration = Duration::from_secs(10);
const PINGS: u16 = 20;
const PING_BYTES: usize = 84;
/// Largest packet of a pod: the wire's 1500 bytes less what VXLAN adds.
const POD_MTU_BYTES: usize = 1450;
const REQUESTS: usize = 40;
const DOWNLOAD_BYTES: u64 = 4_000_000;
/// Downloads until each backend has served one; that it takes more has odds of one to half a million.
const MAX_DOWNLOADS: usize = 20;
/// An edit must take effect in this time.
const EFFECT: Duration = Duration::from_secs(1);
/// Requests go on for so long before an edit, and after it.
const LEAD: Duration = Duration::from_millis(300);
const TAIL: Duration = Duration::from_millis(1500);
/// And so many are made before and after at least, so that each of three backends gets some.
const MIN_REQUESTS: usize = 40;
/// Between two requests while manifests are edited.
const PACE: Duration = Duration::from_millis(5);
/// Frames that a step records, and that the downloads record.
const STEP_FRAMES: u64 = 20_000;
const DOWNLOAD_FRAMES: u64 = 2_000;

/// Stacks by number, in the order in which they are made.
const HOST_1: usize = 0;
const CLIENT: usize = 2;
const WEB: [usize; 3] = [3, 4, 5];

/// The demo under way.
pub(super) struct Scenario {
    simulation: Simulation,
    screen: Screen,
    manifests: Manifests,
    service: ServiceSpec,
    addresses: Vec<NodeAddress>,
    specs: Vec<StackSpec>,
    started: Instant,
}

fn topology() -> (Vec<NodeAddress>, Vec<StackSpec>) {
    let address = |n: u8| NodeAddress {
        name: format!("node-{n}"),
        ip: Ipv4Addr::new(192, 168, 77, n),
        mac: Mac([0x02, 0, 0, 0, 0, n]),
    };
    // The kernel's own end of the host veth has the first address of the node's range.
    let host = |node: usize| StackSpec {
        node,
        name: format!("node-{}", node + 1),
        ip: Ipv4Addr::new(10, 244, node as u8 + 1, 1),
        ifname: names::HOST_ENGINE_IF.to_owned(),
        label: "host".to_owned(),
    };
    let pod = |node: usize, name: &str, last| StackSpec {
        node,
        name: name.to_owned(),
        ip: Ipv4Addr::new(10, 244, node as u8 + 1, last),
        ifname: names::host_veth(NAMESPACE, name),
        label: format!("pod {NAMESPACE}/{name}"),
    };
    let pods = [pod(0, "client", 10), pod(0, "web-1", 11), pod(1, "web-2", 12), pod(1, "web-3", 13)];
    let specs = [host(0), host(1)].into_iter().chain(pods).collect();
    (vec![address(1), address(2)], specs)
}

fn pod_cidr(node: usize) -> String {
    format!("10.244.{}.0/24", node + 1)
}

impl Scenario {
    /// Writes the manifests into a folder in `dir` and starts both nodes.
    pub(super) fn start(dir: &Path, pcap: &Path, screen: Screen) -> Result<Scenario> {
        let started = Instant::now();
        let capture = Capture::create(pcap)?;
        let (addresses, specs) = topology();
        let manifests = Manifests::create(dir)?;
        let service = ServiceSpec {
            namespace: NAMESPACE.to_owned(),
            name: "web".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 96, 0, 80),
            port: 80,
            target_port: POD_PORT,
        };
        manifests.namespace(NAMESPACE)?;
        for (number, address) in addresses.iter().enumerate() {
            manifests.node(&address.name, &[address.ip.into()], &[pod_cidr(number)])?;
        }
        for spec in &specs[CLIENT..] {
            manifests.pod(NAMESPACE, &spec.name, &addresses[spec.node].name, &[spec.ip.into()])?;
        }
        manifests.service(&service)?;
        let simulation = Simulation::start(&addresses, &specs, &manifests, capture)?;
        let scenario = Scenario { simulation, screen, manifests, service, addresses, specs, started };
        scenario.set_backends(&WEB[..2])?;
        Ok(scenario)
    }

    /// Makes these pods, and no others, the service's backends.
    fn set_backends(&self, stacks: &[usize]) -> Result<()> {
        let endpoint = |stack: &usize| {
            let StackSpec { name, ip, node, .. } = &self.specs[*stack];
            EndpointSpec { pod: name.clone(), ip: *ip, node: self.addresses[*node].name.clone() }
        };
        let endpoints: Vec<EndpointSpec> = stacks.iter().map(endpoint).collect();
        Ok(self.manifests.endpoints(&self.service, &endpoints)?)
    }

    /// All steps, in order; the first that fails ends it.
    pub(super) fn steps(&mut self) -> Result<()> {
        let screen = self.screen;
        self.introduce();
        screen.heading("What works");
        self.step("start", STEP_FRAMES, Scenario::ready)?;
        self.step("pod → gateway", STEP_FRAMES, Scenario::gateway)?;
        self.step("pod → pod, same node", STEP_FRAMES, |s| s.pod_to_pod(WEB[0]))?;
        self.step("pod → pod, over VXLAN", STEP_FRAMES, |s| s.pod_to_pod(WEB[1]))?;
        self.step("pod → ClusterIP", STEP_FRAMES, Scenario::service_spread)?;
        self.step("download by ClusterIP", DOWNLOAD_FRAMES, Scenario::downloads)?;
        self.step("host → pod", STEP_FRAMES, Scenario::host_to_pod)?;
        screen.heading("Editing the manifests while it runs");
        self.step("add a backend", STEP_FRAMES, Scenario::add_backend)?;
        self.step("remove a backend", STEP_FRAMES, Scenario::remove_backend)?;
        screen.heading("What does not work says why");
        self.step("address without a pod", STEP_FRAMES, Scenario::nobody_there)
    }

    fn step(
        &mut self,
        title: &str,
        frames: u64,
        work: impl FnOnce(&mut Scenario) -> Result<String>,
    ) -> Result<()> {
        self.simulation.capture.begin(title, frames);
        let screen = self.screen;
        screen.step(title, || work(self))
    }

    /// Stops everything and checks the invariants.
    pub(super) fn finish(self) -> Result<Finished> {
        self.simulation.finish()
    }

    fn introduce(&self) {
        let screen = &self.screen;
        screen.heading(
            "Two engines over the memory driver, joined by a wire (MTU 1500); every pod is a TCP/IP stack",
        );
        for (number, NodeAddress { name, ip, .. }) in self.addresses.iter().enumerate() {
            let pods = self.specs[CLIENT..].iter().filter(|spec| spec.node == number);
            let pods: Vec<String> = pods.map(|spec| format!("{} {}", spec.name, spec.ip)).collect();
            screen.line(&format!("  {name}  {ip}  pods {}: {}", pod_cidr(number), pods.join(", ")));
        }
        let ServiceSpec { namespace, name, cluster_ip, port, .. } = &self.service;
        screen.line(&format!(
            "  Service {namespace}/{name}  {cluster_ip}:{port} → web-1 on node-1, web-2 on node-2"
        ));
        screen.line(&format!("  fed from {}", self.manifests.folder().display()));
    }

    fn ready(&mut self) -> Result<String> {
        for web in WEB {
            self.simulation.stacks[web].serve(POD_PORT);
        }
        self.simulation.wait("every pod has its port", READY, |simulation| {
            Ok(simulation.nodes.iter().all(|node| node.is_complete()).then_some(()))
        })?;
        let node = |node: &super::node::Node| {
            format!("{} {} ports, {} table entries", node.address().name, node.ports.len(), node.entries())
        };
        let nodes: Vec<String> = self.simulation.nodes.iter().map(node).collect();
        Ok(format!("{} ({} ms)", nodes.join("; "), self.started.elapsed().as_millis()))
    }

    /// Pings from the client and insists on every answer.
    fn ping(&mut self, target: Ipv4Addr, packet_bytes: usize) -> Result<Pings> {
        let pings = self.simulation.ping(CLIENT, target, PINGS, packet_bytes)?;
        if pings.received == pings.sent {
            return Ok(pings);
        }
        let reason = format!("{}/{} answered", pings.received, pings.sent);
        Err(MemoryError::check(format!("ping {target}, {packet_bytes} bytes"), reason))
    }

    fn gateway(&mut self) -> Result<String> {
        let Pings { sent, received, mean } = self.ping(GATEWAY, PING_BYTES)?;
        Ok(format!("ping {GATEWAY}: {received}/{sent} answered, {} µs", mean.as_micros()))
    }

    fn pod_to_pod(&mut self, target: usize) -> Result<String> {
        let StackSpec { name, ip, .. } = &self.specs[target];
        let (name, ip) = (name.clone(), *ip);
        let small = self.ping(ip, PING_BYTES)?;
        let large = self.ping(ip, POD_MTU_BYTES)?;
        self.get_from(CLIENT, target)?;
        Ok(format!(
            "ping {name} {ip}: {}/{} answered, {} µs; {POD_MTU_BYTES} bytes unfragmented: {}/{}; HTTP 200",
            small.received,
            small.sent,
            small.mean.as_micros(),
            large.received,
            large.sent
        ))
    }

    /// A request straight to a pod, which must answer itself.
    fn get_from(&mut self, from: usize, target: usize) -> Result<Reply> {
        let StackSpec { name, ip, .. } = &self.specs[target];
        let (name, host) = (name.clone(), SocketAddrV4::new(*ip, POD_PORT));
        let reply = self.simulation.get(from, host, "/")?;
        if reply.backend == name {
            return Ok(reply);
        }
        Err(MemoryError::check(format!("GET http://{host}/"), format!("{} answered", reply.backend)))
    }

    fn service_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.service.cluster_ip, self.service.port)
    }

    fn service_spread(&mut self) -> Result<String> {
        let host = self.service_address();
        let mut spread: BTreeMap<String, usize> = BTreeMap::new();
        let mut times = Vec::new();
        for _ in 0..REQUESTS {
            let reply = self.simulation.get(CLIENT, host, "/")?;
            *spread.entry(reply.backend).or_default() += 1;
            times.push(reply.took);
        }
        let got: Vec<&str> = spread.keys().map(String::as_str).collect();
        if got != ["web-1", "web-2"] {
            return Err(MemoryError::check(
                format!("{REQUESTS} requests to {host}"),
                format!("{got:?} answered"),
            ));
        }
        times.sort_unstable();
        let spread: Vec<String> = spread.iter().map(|(name, count)| format!("{name} {count}")).collect();
        Ok(format!(
            "{REQUESTS}/{REQUESTS} requests to http://{host}/ answered: {}; median {} µs",
            spread.join(", "),
            times[REQUESTS / 2].as_micros()
        ))
    }

    /// Downloads through the ClusterIP until both backends have served one.
    fn downloads(&mut self) -> Result<String> {
        let (host, path) = (self.service_address(), format!("/bytes/{DOWNLOAD_BYTES}"));
        let mut rates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for _ in 0..MAX_DOWNLOADS {
            let reply = self.simulation.get(CLIENT, host, &path)?;
            if reply.bytes != DOWNLOAD_BYTES {
                let reason = format!("{} bytes of {DOWNLOAD_BYTES}", reply.bytes);
                return Err(MemoryError::check(format!("GET http://{host}{path}"), reason));
            }
            let mbit_s = reply.bytes as f64 * 8.0 / reply.took.as_secs_f64() / 1e6;
            rates.entry(reply.backend).or_default().push(mbit_s);
            if rates.contains_key("web-1") && rates.contains_key("web-2") {
                let shown = rates.iter().map(|(name, rates)| {
                    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
                    format!("{} from {name}, {mean:.0} Mbit/s", rates.len())
                });
                let shown: Vec<String> = shown.collect();
                return Ok(format!(
                    "{} MB each, byte-exact: {}",
                    DOWNLOAD_BYTES / 1_000_000,
                    shown.join("; ")
                ));
            }
        }
        let got: Vec<&String> = rates.keys().collect();
        Err(MemoryError::check(
            format!("{MAX_DOWNLOADS} downloads from {host}"),
            format!("{got:?} served all"),
        ))
    }

    fn host_to_pod(&mut self) -> Result<String> {
        let mut done = Vec::new();
        for web in [WEB[0], WEB[1]] {
            for _ in 0..10 {
                self.get_from(HOST_1, web)?;
            }
            done.push(format!("{} 10/10", self.specs[web].name));
        }
        Ok(format!("requests from node-1's own network: {}", done.join(", ")))
    }

    /// Makes requests all the while and writes other backends in the middle. Returns how many requests were
    /// made, and when those that `pod` answered began, from the edit on; before it, all count as zero.
    fn edit(&mut self, backends: &[usize], pod: &str) -> Result<(usize, Vec<Duration>)> {
        let host = self.service_address();
        let (mut since, mut edited) = (Instant::now(), None::<Instant>);
        let (mut requests, mut requests_before, mut answered) = (0, 0, Vec::new());
        loop {
            let enough = requests - requests_before >= MIN_REQUESTS;
            match edited {
                None if enough && since.elapsed() > LEAD => {
                    self.set_backends(backends)?;
                    (since, requests_before) = (Instant::now(), requests);
                    edited = Some(since);
                }
                Some(_) if enough && since.elapsed() > TAIL => break,
                _ => {}
            }
            let begun = Instant::now();
            let reply = self.simulation.get(CLIENT, host, "/")?;
            requests += 1;
            if reply.backend == pod {
                answered.push(edited.map_or(Duration::ZERO, |edited| begun.duration_since(edited)));
            }
            self.simulation.pause(PACE)?;
        }
        Ok((requests, answered))
    }

    fn in_time(what: &str, after: Duration) -> Result<()> {
        if after < EFFECT {
            return Ok(());
        }
        Err(MemoryError::check(
            what,
            format!("took effect after {} ms, not within a second", after.as_millis()),
        ))
    }

    fn add_backend(&mut self) -> Result<String> {
        let (requests, answered) = self.edit(&WEB, "web-3")?;
        let Some(after) = answered.first() else {
            return Err(MemoryError::check(
                "adding web-3",
                format!("it answered none of {requests} requests"),
            ));
        };
        Self::in_time("adding web-3", *after)?;
        let after_ms = after.as_millis();
        Ok(format!("web-3 answers {after_ms} ms after the edit; {requests} requests meanwhile, none failed"))
    }

    fn remove_backend(&mut self) -> Result<String> {
        let (requests, answered) = self.edit(&WEB[1..], "web-1")?;
        let Some(after) = answered.last() else {
            let reason = format!("it answered none of {requests} requests, even before");
            return Err(MemoryError::check("removing web-1", reason));
        };
        Self::in_time("removing web-1", *after)?;
        let after_ms = after.as_millis();
        Ok(format!(
            "web-1 gets its last new connection {after_ms} ms after the edit; {requests} requests meanwhile, none failed"
        ))
    }

    fn nobody_there(&mut self) -> Result<String> {
        let dropped =
            |simulation: &Simulation| simulation.nodes[0].engine.snapshot().drops(DropReason::NoEndpoint);
        let before = dropped(&self.simulation);
        for _ in 0..3 {
            if self.simulation.echo(CLIENT, NOBODY, PING_BYTES)?.is_some() {
                return Err(MemoryError::check(format!("ping {NOBODY}"), "somebody answered"));
            }
        }
        let grown = self.simulation.wait("the drops are counted", READY, |simulation| {
            let grown = dropped(simulation) - before;
            Ok((grown >= 3).then_some(grown))
        })?;
        Ok(format!("ping {NOBODY}: {grown} packets dropped, reason {}", DropReason::NoEndpoint))
    }
}
