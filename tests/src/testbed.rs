//! The topology: nodes joined by a switch, pods on the nodes, and the manifests that describe both.
//!
//! ```text
//!  pod ──veth── node-1 ──uplink0 (veth, MTU 1500)── bridge in the switch ──uplink0── node-2 ──veth── pod
//! ```
//! Each box is a namespace. What a CNI plugin would do for a pod, [`Testbed::add_pod`] does.

use crate::capture::Capture;
use crate::dual_stack::{self, Family, ipv6_of};
use crate::error::{Error, Result};
use crate::kept::{self, KEPT};
use crate::manifests::Manifests;
use crate::netns::{self, Netns, VethEnd};
use crate::node::{Node, NodeSpec, UPLINK, UPLINK_MTU};
use crate::process::{Process, wait_for};
use crate::programs::{bin_dir, program, share_of_cores};
use crate::sys;
use fairway_control::names;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Port on which the servers in the pods listen.
pub const POD_PORT: u16 = 8080;
/// Port on which they send TCP streams back.
pub const STREAM_PORT: u16 = 8081;
/// The switch's bridge between the nodes.
pub(crate) const UPLINK_BRIDGE: &str = "br0";
const LOG_TAIL_LINES: usize = 40;

/// How a testbed is built.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes.
    pub nodes: u8,
    /// Queues of each uplink.
    pub uplink_queues: u8,
    /// Whether nodes and pods have IPv6 addresses too: those [beside](ipv6_of) their IPv4 ones.
    pub dual_stack: bool,
    /// Whether the two nodes are joined by a cable (one veth) instead of a switch, so that a measurement has nothing between
    /// them. Then nobody else can be joined, and no capture taken.
    pub cable: bool,
    /// Whether it may outlive this process; see [`Testbed::leave_running`].
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodes: 2, uplink_queues: 1, dual_stack: false, cable: false, keep: false }
    }
}

/// Number of a pod, in the order of [`Testbed::add_pod`]; not used again when the pod is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodId(usize);

/// A pod of a testbed.
#[derive(Debug)]
pub struct Pod {
    id: PodId,
    namespace: String,
    name: String,
    node: usize,
    ip: Ipv4Addr,
    server: Option<Process>,
    netns: Netns,
}

impl Pod {
    /// The pod's namespace in the Kubernetes sense.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of the node it runs on.
    pub fn node(&self) -> usize {
        self.node
    }

    /// The pod's address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

/// A running testbed. Dropping it stops every process and deletes every namespace and file.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    dir: PathBuf,
    bin_dir: PathBuf,
    options: Options,
    manifests: Manifests,
    // Dropped in this order, once `drop` below has stopped the processes.
    pods: Vec<Pod>,
    pods_made: usize,
    nodes: Vec<Node>,
    switch: Option<Netns>,
    left_running: bool,
}

impl Testbed {
    /// Builds the switch and the nodes and writes the nodes' manifests; starts nothing yet. First
    /// deletes what testbeds of dead processes have left.
    pub fn new(options: Options) -> Result<Testbed> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let uid = sys::effective_uid();
        if uid != 0 {
            return Err(Error::NotRoot { uid });
        }
        sys::catch_termination();
        netns::sweep();
        let (name, dir) = if options.keep {
            let dir = kept::dir();
            if dir.exists() || netns::existing().iter().any(|n| n.starts_with(KEPT)) {
                return Err(Error::AlreadyRunning { state: dir });
            }
            (KEPT.to_owned(), dir)
        } else {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}{}-{number}", netns::PREFIX, std::process::id());
            let dir = std::env::temp_dir().join(&name);
            (name, dir)
        };
        let bin_dir = bin_dir()?;
        let manifests = Manifests::create(&dir)?;
        let mut testbed = Testbed {
            name,
            dir,
            bin_dir,
            options,
            manifests,
            pods: Vec::new(),
            pods_made: 0,
            nodes: Vec::new(),
            switch: None,
            left_running: false,
        };
        if !testbed.options.cable {
            testbed.add_switch()?;
        }
        for number in 1..=testbed.options.nodes {
            testbed.add_node(number)?;
        }
        Ok(testbed)
    }

    fn add_switch(&mut self) -> Result<()> {
        let switch = Netns::create(&format!("{}-switch", self.name))?;
        switch.add_bridge(UPLINK_BRIDGE)?;
        self.switch = Some(switch);
        Ok(())
    }

    fn add_node(&mut self, number: u8) -> Result<()> {
        let name = format!("node-{number}");
        let netns = Netns::create(&format!("{}-{name}", self.name))?;
        let ip = Ipv4Addr::new(192, 168, 77, number);
        self.join_switch(&netns, ip)?;
        let pod_cidr = format!("10.244.{number}.0/24");
        let mut cidrs = vec![pod_cidr.clone()];
        if self.options.dual_stack {
            cidrs.push(format!("fd00:244:{number}::/64"));
        }
        self.manifests.node(&name, &self.addresses(ip), &cidrs)?;
        let spec = NodeSpec {
            dir: self.dir.join(&name),
            name,
            ip,
            pod_cidr,
            bin_dir: self.bin_dir.clone(),
            manifests: self.manifests.folder().to_owned(),
            die_with_parent: !self.options.keep,
        };
        self.nodes.push(Node::new(spec, netns)?);
        if self.options.cable && number == 2 {
            self.add_cable()?;
        }
        Ok(())
    }

    fn add_cable(&self) -> Result<()> {
        let end = VethEnd { name: UPLINK, mac: None };
        let [one, two] = [self.nodes[0].netns(), self.nodes[1].netns()];
        one.add_veth(end, two, end, UPLINK_MTU, self.options.uplink_queues.into())?;
        for node in &self.nodes {
            self.set_up_uplink(node.netns(), node.ip())?;
        }
        Ok(())
    }

    /// The families of which nodes and pods have addresses.
    pub fn families(&self) -> &'static [Family] {
        if self.options.dual_stack { &Family::ALL } else { &[Family::V4] }
    }

    /// The addresses of whom has this IPv4 address.
    fn addresses(&self, ip: Ipv4Addr) -> Vec<IpAddr> {
        self.families().iter().map(|family| family.of(ip)).collect()
    }

    /// Joins a namespace to the switch by the device [`UPLINK`] with this address of 192.168.77.0/24, and with the one
    /// beside it where both families are spoken.
    pub fn join_switch(&self, netns: &Netns, ip: Ipv4Addr) -> Result<()> {
        let Some(switch) = &self.switch else { return Ok(()) };
        let (port, queues) = (switch_port(ip), self.options.uplink_queues);
        let other = VethEnd { name: &port, mac: None };
        netns.add_veth(VethEnd { name: UPLINK, mac: None }, switch, other, UPLINK_MTU, queues.into())?;
        switch.ip(["link", "set", &port, "master", UPLINK_BRIDGE, "up"])?;
        self.set_up_uplink(netns, ip)
    }

    fn set_up_uplink(&self, netns: &Netns, ip: Ipv4Addr) -> Result<()> {
        netns.ip(["addr", "add", &format!("{ip}/24"), "dev", UPLINK])?;
        if self.options.dual_stack {
            dual_stack::allow_ipv6(netns, &["lo", UPLINK])?;
            netns.ip(["addr", "add", &format!("{}/64", ipv6_of(ip)), "dev", UPLINK, "nodad"])?;
        }
        netns.ip(["link", "set", UPLINK, "up"])?;
        // A wire carries whole checksums and no segments larger than its MTU.
        offloads_off(netns, UPLINK)
    }

    /// Captures what passes the switch to and from the station with this address.
    pub fn capture(&self, ip: Ipv4Addr, name: &str) -> Result<Capture> {
        Capture::start(self.switch()?, &switch_port(ip), &self.dir, name)
    }

    /// The switch's namespace.
    pub(crate) fn switch(&self) -> Result<&Netns> {
        let gone = || Error::Answer { what: "switch".into(), reason: "gone".into() };
        self.switch.as_ref().ok_or_else(gone)
    }

    /// Makes a pod's namespace and veth as a CNI plugin would, and writes its manifest.
    pub fn add_pod(&mut self, node: usize, namespace: &str, name: &str, ip: Ipv4Addr) -> Result<PodId> {
        let id = self.add_pod_with(node, namespace, name, ip, "eth0")?;
        let pod = &self.pod(id).netns;
        pod.ip(["addr", "add", &format!("{ip}/32"), "dev", "eth0"])?;
        let gateway = names::GATEWAY_IP.to_string();
        pod.ip(["route", "add", &gateway, "dev", "eth0", "scope", "link"])?;
        pod.ip(["route", "add", "default", "via", &gateway, "dev", "eth0", "onlink"])?;
        if self.options.dual_stack {
            dual_stack::add_address(self.pod(id), ipv6_of(ip))?;
        }
        Ok(id)
    }

    /// The same without addresses and routes; the pod's end of the veth is named `device`.
    pub fn add_pod_with(
        &mut self,
        node: usize,
        namespace: &str,
        name: &str,
        ip: Ipv4Addr,
        device: &str,
    ) -> Result<PodId> {
        let pod = Netns::create(&format!("{}-{namespace}-{name}", self.name))?;
        let host = &self.nodes[node];
        let veth = names::host_veth(namespace, name);
        let mac = names::pod_mac(ip.into()).to_string();
        let in_pod = VethEnd { name: device, mac: Some(&mac) };
        // One queue each: an AF_XDP socket sees only the queue that it is bound to.
        let of_host = VethEnd { name: &veth, mac: None };
        host.netns().add_veth(of_host, &pod, in_pod, names::pod_mtu(UPLINK_MTU), 1)?;
        host.netns().ip(["link", "set", &veth, "up"])?;
        offloads_off(&pod, device)?;
        pod.ip(["link", "set", device, "up"])?;
        self.manifests.pod(namespace, name, host.name(), &self.addresses(ip))?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let id = PodId(self.pods_made);
        self.pods_made += 1;
        self.pods.push(Pod { id, namespace, name, node, ip, server: None, netns: pod });
        Ok(id)
    }

    /// Ends a pod: its processes, its namespace, and with that its veth. Its manifest stays.
    pub fn delete_pod(&mut self, id: PodId) {
        self.pods.retain(|pod| pod.id != id);
    }

    /// Starts the server in a pod and waits until it listens on [`POD_PORT`].
    pub fn start_server(&mut self, id: PodId) -> Result<()> {
        let program = program(&self.bin_dir, "fairway-pod")?;
        let Some(pod) = self.pods.iter_mut().find(|pod| pod.id == id) else { return Ok(()) };
        let log = self.dir.join(format!("server-{}.log", pod.name));
        let mut command = pod.netns.command(program);
        let any = if self.options.dual_stack { "[::]" } else { "0.0.0.0" };
        let (listen, streams) = (format!("{any}:{POD_PORT}"), format!("{any}:{STREAM_PORT}"));
        command.args(["serve", "--listen", &listen, "--streams", &streams, "--name", &pod.name]);
        let name = format!("server in pod {}", pod.name);
        let mut server = Process::spawn(&name, command, &log, !self.options.keep)?;
        let ready = wait_for(&format!("the {name} listens"), Duration::from_secs(10), || {
            server.expect_alive()?;
            Ok(if server.log().contains("listening") { Ok(()) } else { Err("no word yet".to_owned()) })
        });
        pod.server = Some(server);
        ready
    }

    /// Runs `fairway-pod` with the given arguments in a namespace and returns its JSON answer.
    pub fn client<T: serde::de::DeserializeOwned>(
        &self,
        netns: &Netns,
        args: &[&str],
        deadline: Duration,
    ) -> Result<T> {
        let output = netns.run(program(&self.bin_dir, "fairway-pod")?, args, deadline)?;
        let command = output.command.clone();
        serde_json::from_str(&output.success()?)
            .map_err(|e| Error::Answer { what: command, reason: e.to_string() })
    }

    /// Starts `fairway-pod` with the given arguments in a pod; [`Testbed::finish_client`] takes its answer.
    pub fn start_client(&self, id: PodId, args: &[&str]) -> Result<Process> {
        let pod = self.pod(id);
        self.start_client_in(&pod.netns, &format!("pod {}", pod.name), args)
    }

    /// The same in any namespace, which is called `place`.
    pub fn start_client_in(&self, netns: &Netns, place: &str, args: &[&str]) -> Result<Process> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut command = netns.command(program(&self.bin_dir, "fairway-pod")?);
        command.args(args);
        let log = self.dir.join(format!("client-{number}.log"));
        Process::spawn(&format!("client in {place}"), command, &log, true)
    }

    /// Waits for the end of a client that was started in the background and returns its JSON answer.
    pub fn finish_client<T: serde::de::DeserializeOwned>(
        &mut self,
        mut client: Process,
        deadline: Duration,
    ) -> Result<T> {
        let what = format!("the {} ends", client.name());
        self.wait(&what, deadline, |_| client.ended().map(drop).ok_or("still running".to_owned()))?;
        let log = client.log();
        serde_json::from_str(&log)
            .map_err(|e| Error::Answer { what: client.name().to_owned(), reason: format!("{e}: {log}") })
    }

    /// Starts control and dataplane on every node. The nodes' workers start from different cores, as far as
    /// the machine has them.
    pub fn start_nodes(&mut self, workers: usize) -> Result<()> {
        let cores = sys::cores();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.start_control()?;
            node.start_dataplane(&["--cores", &share_of_cores(&cores, number, workers)])?;
        }
        Ok(())
    }

    /// Waits until `attempt` succeeds; gives up early when a process of a node has died.
    pub fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut attempt: impl FnMut(&mut Testbed) -> Result<T, String>,
    ) -> Result<T> {
        wait_for(what, deadline, || {
            for process in self.nodes.iter_mut().flat_map(Node::processes) {
                process.expect_alive()?;
            }
            Ok(attempt(self))
        })
    }

    /// The folder of manifests.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Name with which all its namespaces start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of its files and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node, to start and stop its processes.
    pub fn node_mut(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }

    /// A pod.
    ///
    /// # Panics
    /// If it has been deleted.
    pub fn pod(&self, id: PodId) -> &Pod {
        self.pods.iter().find(|pod| pod.id == id).expect("the pod has not been deleted")
    }

    /// All pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The last lines of every log, for a failure's message.
    pub fn log_tails(&mut self) -> String {
        let mut tails = String::new();
        let servers = self.pods.iter_mut().filter_map(|pod| pod.server.as_mut());
        for process in self.nodes.iter_mut().flat_map(Node::processes).chain(servers) {
            let tail = process.log_tail(LOG_TAIL_LINES);
            tails.push_str(&format!("── {} (pid {}) ──\n{tail}\n", process.name(), process.pid()));
        }
        tails
    }

    /// Leaves everything running when this process ends. Only for a testbed built with
    /// [`Options::keep`]; [`crate::kept::take_down`] ends it.
    pub fn leave_running(mut self) {
        self.left_running = self.options.keep;
        if self.left_running {
            self.nodes.iter_mut().flat_map(Node::processes).for_each(Process::release);
            self.pods.iter_mut().filter_map(|pod| pod.server.as_mut()).for_each(Process::release);
            self.pods.iter_mut().for_each(|pod| pod.netns.release());
            self.nodes.iter_mut().for_each(|node| node.netns_mut().release());
            self.switch.iter_mut().for_each(Netns::release);
        }
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if self.left_running {
            return;
        }
        if std::thread::panicking() {
            let tails = self.log_tails();
            eprintln!("the end of the logs of testbed {}:\n{tails}", self.name);
        }
        // All are asked first and waited for afterwards, so that they end at the same time.
        let servers = self.pods.iter_mut().filter_map(|pod| pod.server.as_mut());
        let mut all: Vec<&mut Process> =
            servers.chain(self.nodes.iter_mut().flat_map(Node::processes)).collect();
        for process in &mut all {
            // One that is already gone is no reason to stop cleaning up.
            let _ = process.signal(libc::SIGTERM);
        }
        for process in all {
            process.stop();
        }
        self.pods.clear();
        self.nodes.clear();
        self.switch = None;
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("cannot delete {}: {error}", self.dir.display());
        }
    }
}

/// The switch's end of the wire to the station with this address.
pub(crate) fn switch_port(ip: Ipv4Addr) -> String {
    format!("port{}", ip.octets()[3])
}

/// Turns off what an AF_XDP frame cannot carry: checksums left to the device, and segments larger than
/// the MTU.
pub(crate) fn offloads_off(netns: &Netns, device: &str) -> Result<()> {
    let args = ["-K", device, "tx", "off", "tso", "off", "gso", "off", "sg", "off"];
    netns.run("ethtool", &args, Duration::from_secs(10))?.success().map(drop)
}
