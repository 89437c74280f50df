//! Fairway itself: `fairway-control` and `fairway-dataplane` on a node of the testbed, one busy worker.

use super::churn::{Orders, Pace};
use super::ground::{
    CLIENT, DIRECT_PODS, Ground, IPIP_PODS, NAMESPACE, NODE_DIRECT, NODE_IPIP, NODE6, RouteChanger, SERVER,
    SERVICES, pod6, remote_service, service6,
};
use super::{Device, DeviceError};
use crate::pktgen::cores::cores;
use crate::pktgen::cpu;
use crate::pktgen::paths::{BACKEND_PORT, NODE_PORT, NODE_PORTS, REMOTE_SERVICES, SERVICE_PORT, Site};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::Ends;
use fairway_control::names::GATEWAY_IP;
use fairway_tests::Testbed;
use fairway_tests::manifests::Manifests;
use fairway_tests::ping::ping;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::thread::JoinHandle;
use std::time::Duration;

const READY: Duration = Duration::from_secs(60);

/// Fairway on a testbed.
pub struct FairwayDevice {
    ground: Ground,
    editor: Option<Editor>,
    flows: u32,
}

/// How the engine's worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// It spins.
    Busy,
    /// It sleeps after some microseconds.
    Adaptive,
}

impl Poll {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Poll::Busy => "busy",
            Poll::Adaptive => "adaptive",
        }
    }
}

impl FairwayDevice {
    /// Starts it and waits until it serves both pods.
    ///
    /// # Errors
    /// If a program is missing or does not start.
    pub fn start(scenario: &Scenario) -> Result<FairwayDevice, DeviceError> {
        FairwayDevice::with_pods(scenario, 0)
    }

    /// The same with so many pod ports in all, of which all but the generator's and the sink's are idle.
    ///
    /// # Errors
    /// If a program is missing or does not start.
    pub fn with_pods(scenario: &Scenario, pods: u16) -> Result<FairwayDevice, DeviceError> {
        let tables = &scenario.tables;
        let flows: u32 = scenario.streams.iter().map(|stream| stream.flows).sum();
        let mut ground = Ground::new(scenario)?;
        (2..pods).try_for_each(|n| ground.add_idle_pod(n))?;
        let mut device = FairwayDevice { ground, editor: None, flows };
        device.start_programs(tables)?;
        device.ground.open_ends()?;
        if tables.changes_per_s + tables.route_changes_per_s > 0 {
            let (manifests, routes) =
                (device.ground.testbed().manifests().clone(), device.ground.route_changer(tables));
            device.editor = Some(Editor::start(manifests, routes, *tables));
        }
        Ok(device)
    }

    fn start_programs(&mut self, tables: &TableSizes) -> Result<(), DeviceError> {
        let senders = self.ground.client_veths().len() as u32;
        write_nodes(self.ground.testbed(), senders)?;
        write_services(self.ground.testbed().manifests(), 0..tables.services, tables.backends)?;
        write_remote_services(self.ground.testbed().manifests(), tables.services.min(REMOTE_SERVICES))?;
        self.ground.testbed().node_mut(0).start_control()?;
        self.start_engine(Poll::Busy)?;
        let gateway: Ipv4Addr = GATEWAY_IP.as_v4().unwrap_or_default().into();
        self.ground.testbed().wait("all pods reach their gateway", READY, |testbed| {
            testbed.pods().iter().try_for_each(|pod| match ping(pod.netns(), gateway, 1, 84) {
                Ok(summary) if summary.complete() => Ok(()),
                Ok(summary) => Err(summary.output),
                Err(error) => Err(error.to_string()),
            })
        })?;
        // A large table takes control some seconds to read from the kernel.
        self.ground.testbed().wait("all routes are in the tables", READY, |testbed| {
            let status = testbed.nodes()[0].ask(&["status"]).map_err(|error| error.to_string())?;
            let usage =
                status["tables"].as_array().into_iter().flatten().find(|usage| usage["table"] == "routes");
            let used = usage.and_then(|usage| usage["used"].as_u64()).unwrap_or(0);
            if used >= u64::from(tables.routes) {
                Ok(())
            } else {
                Err(format!("{used} of {}", tables.routes))
            }
        })?;
        Ok(())
    }

    fn start_engine(&mut self, poll: Poll) -> Result<(), DeviceError> {
        let (_, core) = cores();
        let core = core.map_or("0".to_owned(), |core| core.id.to_string());
        let flows = self.flows.max(262_144).to_string();
        let connections = (self.flows + self.flows / 8).max(1_000_000).to_string();
        let args =
            ["--cores", &core, "--poll", poll.name(), "--flows", &flows, "--connections", &connections];
        Ok(self.ground.testbed().node_mut(0).start_dataplane(&args)?)
    }

    /// Ends the engine, which checks its invariants, and starts it anew with another way of waiting.
    ///
    /// # Errors
    /// If it ends otherwise than in order, or does not start.
    pub fn set_poll(&mut self, poll: Poll) -> Result<(), DeviceError> {
        self.ground.testbed().node_mut(0).stop_dataplane()?;
        self.start_engine(poll)
    }

    /// Packets that the engine has received so far; those that the kernel forwards in its absence are not among them.
    ///
    /// # Errors
    /// If control does not answer.
    pub fn rx_packets(&mut self) -> Result<u64, DeviceError> {
        let counters = self.ground.testbed().nodes()[0].ask(&["counters"])?;
        Ok(counters["counters"]["rx-packets"].as_u64().unwrap_or(0))
    }

    /// CPU time of the engine's process and of control's so far, in nanoseconds.
    ///
    /// # Errors
    /// If one of them has ended.
    pub fn cpu_ns(&mut self) -> Result<[u64; 2], DeviceError> {
        let node = self.ground.testbed().node_mut(0);
        let pids =
            [node.dataplane().map(|process| process.pid()), node.control().map(|process| process.pid())];
        let mut spent = [0; 2];
        for (ns, pid) in spent.iter_mut().zip(pids) {
            let gone = || std::io::Error::other("it has ended");
            let read = pid.ok_or_else(gone).and_then(cpu::of_process);
            *ns = read.map_err(DeviceError::io("read a process's CPU time"))?;
        }
        Ok(spent)
    }
}

/// Writes the nodes with their ranges of both families, the pools that say which way goes to whom, and the pods' addresses.
fn write_nodes(testbed: &Testbed, senders: u32) -> Result<(), DeviceError> {
    let node = |name: &str, ranges: &str, addresses: &[&str]| {
        let addresses: String =
            addresses.iter().map(|ip| format!("  - {{type: InternalIP, address: '{ip}'}}\n")).collect();
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec:\n  podCIDRs: [{ranges}]\nstatus:\n  \
             addresses:\n{addresses}"
        )
    };
    let pool = |name: &str, cidr: &str, ipip: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: '{cidr}', \
             ipipMode: {ipip}, vxlanMode: Never}}\n---\n"
        )
    };
    let manifests = testbed.manifests();
    let own = testbed.nodes()[0].ip().to_string();
    let remote = testbed.nodes()[1].ip().to_string();
    let [direct, direct6] = DIRECT_PODS;
    let both = |four: &str, six: &str| format!("{four}, '{six}'");
    manifests
        .write("node-node-1", &node("node-1", &both("10.244.1.0/24", "fd00:244:1::/64"), &[&own, NODE6]))?;
    manifests.write("node-node-2", &node("node-2", &both("10.244.2.0/24", "fd00:244:2::/64"), &[&remote]))?;
    manifests.write("node-ipip", &node("node-ipip", IPIP_PODS, &[NODE_IPIP]))?;
    manifests.write("node-direct", &node("node-direct", &both(direct, direct6), &[NODE_DIRECT]))?;
    let pools = [("ipip", IPIP_PODS, "Always"), ("direct", direct, "Never"), ("direct6", direct6, "Never")];
    let pools: String = pools.into_iter().map(|(name, cidr, ipip)| pool(name, cidr, ipip)).collect();
    manifests.write("pools", &pools)?;
    let clients = (0..senders).map(|n| Ipv4Addr::from(u32::from(CLIENT) + n));
    for pod in
        testbed.pods().iter().filter(|pod| pod.ip() == SERVER || clients.clone().any(|ip| ip == pod.ip()))
    {
        let (name, ip) = (pod.name(), pod.ip());
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\nspec: {{nodeName: node-1, \
             containers: []}}\nstatus: {{phase: Running, podIPs: [{{ip: {ip}}}, {{ip: '{}'}}]}}\n",
            pod6(ip)
        );
        manifests.write(&format!("pod-{NAMESPACE}-{name}"), &yaml)?;
    }
    Ok(())
}

/// Writes Services and their EndpointSlices, one file for all kinds of a Service: UDP and TCP, both families, node ports
/// as far as there are any; all backends are the server's pod, on different ports.
fn write_services(
    manifests: &Manifests,
    services: impl Iterator<Item = u32>,
    backends: u32,
) -> Result<(), fairway_tests::Error> {
    for n in services {
        let families = [
            (4, Ipv4Addr::from(SERVICES + n).to_string(), SERVER.to_string()),
            (6, service6(n).to_string(), pod6(SERVER).to_string()),
        ];
        let [(_, ip, _), (_, ip6, _)] = &families;
        let (kind, node_port) = if n < NODE_PORTS {
            let policy = "NodePort\n  externalTrafficPolicy: Local";
            (policy, format!("\n    nodePort: {}", u32::from(NODE_PORT) + n))
        } else {
            ("ClusterIP", String::new())
        };
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {NAMESPACE}\n  name: s{n}\nspec:\n  type: \
             {kind}\n  clusterIP: {ip}\n  clusterIPs:\n  - {ip}\n  - '{ip6}'\n  ports:\n  - name: u\n    protocol: \
             UDP\n    port: {SERVICE_PORT}\n    targetPort: {BACKEND_PORT}{node_port}\n  - name: t\n    protocol: \
             TCP\n    port: {SERVICE_PORT}\n    targetPort: {BACKEND_PORT}{node_port}\n"
        );
        for (family, _, server) in &families {
            for b in 0..backends {
                let port = BACKEND_PORT + (b % 1000) as u16;
                // Writing to a String cannot fail.
                let _ = write!(
                    yaml,
                    "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: \
                     {NAMESPACE}\n  name: s{n}v{family}-{b}\n  labels:\n    kubernetes.io/service-name: \
                     s{n}\naddressType: IPv{family}\nports:\n- name: u\n  protocol: UDP\n  port: {port}\n- name: t\n  \
                     protocol: TCP\n  port: {port}\nendpoints:\n- addresses:\n  - '{server}'\n  nodeName: node-1\n  \
                     conditions:\n    ready: true\n"
                );
            }
        }
        manifests.write(&format!("service-{n}"), &yaml)?;
    }
    Ok(())
}

/// Writes Services whose backend is a pod of the other node.
fn write_remote_services(manifests: &Manifests, services: u32) -> Result<(), fairway_tests::Error> {
    let mut yaml = String::new();
    for (n, family, ip, pod) in (0..services).flat_map(|n| {
        let [(ip, pod), (ip6, pod6)] = remote_service(n);
        [(n, 4, ip, pod), (n, 6, ip6, pod6)]
    }) {
        // Writing to a String cannot fail.
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {NAMESPACE}, name: r{n}v{family}}}\nspec:\n  \
             clusterIP: '{ip}'\n  clusterIPs: ['{ip}']\n  ports:\n  - {{name: u, protocol: UDP, port: \
             {SERVICE_PORT}}}\n  - {{name: t, protocol: TCP, port: {SERVICE_PORT}}}\n---\napiVersion: \
             discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {NAMESPACE}\n  name: r{n}v{family}-1\n  \
             labels: {{kubernetes.io/service-name: r{n}v{family}}}\naddressType: IPv{family}\nports:\n- {{name: u, \
             protocol: UDP, port: {BACKEND_PORT}}}\n- {{name: t, protocol: TCP, port: {BACKEND_PORT}}}\nendpoints:\n- \
             addresses: ['{pod}']\n  nodeName: node-2\n  conditions: {{ready: true}}\n"
        );
    }
    manifests.write("remote-services", &yaml)
}

/// Takes and gives back a backend of one Service after the other, and moves one route after the other, as often as the
/// scenario asks.
struct Editor {
    orders: Orders,
    thread: Option<JoinHandle<Result<[u64; 2], DeviceError>>>,
}

impl Editor {
    fn start(manifests: Manifests, routes: RouteChanger, tables: TableSizes) -> Editor {
        let orders = Orders::new();
        let heard = orders.clone();
        let work = move || {
            let mut services = Pace::new(tables.changes_per_s);
            let mut moves = Pace::new(tables.route_changes_per_s);
            while !heard.stopped() {
                for edit in services.due(&heard) {
                    let n = (edit / 2) as u32 % tables.services;
                    let more = u32::from(edit.is_multiple_of(2));
                    write_services(&manifests, n..n + 1, tables.backends + more)?;
                }
                routes.change(moves.due(&heard))?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok([services.made, moves.made])
        };
        Editor { orders, thread: Some(std::thread::spawn(work)) }
    }

    /// Ends it; returns how many changes it made of Services and of routes, or `None` if it died.
    fn end(&mut self) -> Option<Result<[u64; 2], DeviceError>> {
        self.orders.stop();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        // Whether it failed has no bearing on the way out.
        let _ = self.end();
    }
}

impl Device for FairwayDevice {
    fn name(&self) -> &'static str {
        "fairway"
    }

    fn site(&self) -> Site {
        self.ground.site()
    }

    fn ends(&mut self) -> &mut Ends {
        self.ground.ends()
    }

    fn set_churn(&mut self, on: bool) -> bool {
        self.editor.iter().for_each(|editor| editor.orders.set(on));
        self.editor.is_some()
    }

    fn hint(&mut self) -> String {
        let saw = self.ground.what_ends_saw();
        let counters = match self.ground.testbed().nodes()[0].ask(&["counters"]) {
            Ok(json) => json.to_string(),
            Err(error) => error.to_string(),
        };
        format!("{saw}; the engine counts {counters}")
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        let broken = |what: String| DeviceError::Broken { device: "fairway".to_owned(), what };
        let mut words = Vec::new();
        if let Some(mut editor) = self.editor.take() {
            let died = || broken("the thread that edits manifests has died".to_owned());
            let [edits, moves] = editor.end().ok_or_else(died)??;
            words.push(format!("{edits} edits of Services and {moves} of routes while packets flowed"));
        }
        let node = self.ground.testbed().node_mut(0);
        let last_words = node.stop_dataplane()?;
        if last_words.is_empty() {
            return Err(broken("the engine ended without speaking of I1 and I2".to_owned()));
        }
        words.push("the engine ended with every frame home and every packet accounted for".to_owned());
        node.stop_control()?;
        words.extend(self.ground.close_checked("fairway")?);
        Ok(words)
    }
}
