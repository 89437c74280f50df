//! The cluster in which paths are walked: two nodes, a client on the first, servers on both, and a service; in ENI mode
//! with the cloud's network around it.

use super::mode::Mode;
use super::paths::{Client, Outcome, Path, Server, Sights};
use super::seen::seen;
use crate::capture::Capture;
use crate::engines;
use crate::error::{Error, Result};
use crate::manifests::{EndpointSpec, ServiceSpec};
use crate::netns::Netns;
use crate::node::UPLINK;
use crate::pod::client::Summary;
use crate::process::wait_for;
use crate::testbed::{Options, POD_PORT, PodId, Testbed};
use crate::vpc::{OUTSIDE, Vpc};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);
/// How long captures may lag behind a conversation that is over.
const CAPTURE_LAG: Duration = Duration::from_secs(5);
const SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
/// First address of the first node's pod range, which the node itself has.
const NODE_IN_POD_RANGE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

/// See the module's head.
#[derive(Debug)]
pub struct Fabric {
    mode: Mode,
    // Before the nodes' namespaces, whose devices end in it.
    vpc: Option<Vpc>,
    testbed: Testbed,
    client: PodId,
    near: PodId,
    beside: Option<PodId>,
    far: PodId,
    service: ServiceSpec,
    /// Conversations captured so far, for the names of files.
    captured: u32,
}

/// A capture of a wire, with the name under which what it sees is told.
struct Wire(String, Capture);

impl Fabric {
    /// Builds and starts it.
    pub fn start(mode: Mode) -> Result<Fabric> {
        let mut testbed = Testbed::new(Options::default())?;
        testbed.manifests().namespace("shop")?;
        if let Some(pool) = mode.pool() {
            testbed.manifests().write("pool", &pool)?;
        }
        let mut vpc = if mode == Mode::Eni { Some(build_vpc(&testbed)?) } else { None };
        let mut pod = |testbed: &mut Testbed, name: &str, node: usize, eni: u8, host: u8| {
            let ip = match &mut vpc {
                Some(vpc) => vpc.assign(testbed, node, eni, host)?,
                None => Ipv4Addr::new(10, 244, node as u8 + 1, host),
            };
            testbed.add_pod(node, "shop", name, ip)
        };
        let client = pod(&mut testbed, "client", 0, 0, 10)?;
        let near = pod(&mut testbed, "near", 0, 0, 11)?;
        let beside = if mode == Mode::Eni { Some(pod(&mut testbed, "beside", 0, 1, 12)?) } else { None };
        let far = pod(&mut testbed, "far", 1, 0, 13)?;
        for server in [Some(near), beside, Some(far)].into_iter().flatten() {
            testbed.start_server(server)?;
        }
        let (namespace, name) = ("shop".into(), "web".into());
        let service =
            ServiceSpec { namespace, name, cluster_ip: SERVICE_IP, port: 80, target_port: POD_PORT };
        testbed.manifests().service(&service)?;
        testbed.start_nodes(1)?;
        // Without them, pods reach each other by the kernels, which other devices see.
        testbed.wait("the engines carry the traffic", READY, |testbed| engines::carry(testbed))?;
        Ok(Fabric { mode, vpc, testbed, client, near, beside, far, service, captured: 0 })
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

    pub(super) fn service_ip(&self) -> Ipv4Addr {
        self.service.cluster_ip
    }

    /// Addresses of the two nodes on the wire.
    pub(super) fn node_ips(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.testbed.nodes()[0].ip(), self.testbed.nodes()[1].ip())
    }

    fn server(&self, server: Server) -> PodId {
        match server {
            Server::Near => self.near,
            Server::Beside => self.beside.unwrap_or(self.near),
            Server::Far => self.far,
        }
    }

    pub(super) fn client_ip(&self, client: Client) -> Ipv4Addr {
        match client {
            Client::Pod => self.testbed.pod(self.client).ip(),
            Client::Node => NODE_IN_POD_RANGE,
            Client::Outside => OUTSIDE,
        }
    }

    pub(super) fn server_ip(&self, server: Server) -> Ipv4Addr {
        self.testbed.pod(self.server(server)).ip()
    }

    /// Namespace and device from which a client speaks.
    fn client_at(&self, client: Client) -> Result<(&Netns, &str)> {
        Ok(match (client, &self.vpc) {
            (Client::Node, _) => (self.testbed.nodes()[0].netns(), fairway_control::names::HOST_KERNEL_IF),
            (Client::Outside, Some(vpc)) => (vpc.netns(), vpc.port(0, 0)?),
            _ => (self.testbed.pod(self.client).netns(), "eth0"),
        })
    }

    /// Holds a conversation over a path, and compares what is seen of it with what should be.
    pub fn walk(&mut self, path: Path) -> Outcome {
        let wanted = path.sights(self);
        self.captured += 1;
        let result = self.try_walk(path, &wanted).map_err(|error| error.to_string()).and_then(|seen| {
            if seen == wanted { Ok(()) } else { Err(format!("seen {seen:?}, to be seen {wanted:?}")) }
        });
        Outcome { path, result }
    }

    fn try_walk(&self, path: Path, wanted: &Sights) -> Result<Sights> {
        let server = self.testbed.pod(self.server(path.server));
        let url = if path.by_service {
            self.set_backend(path.server)?;
            format!("http://{SERVICE_IP}:80/")
        } else {
            format!("http://{}:{POD_PORT}/", server.ip())
        };
        let (from, device) = self.client_at(path.client)?;
        let ask = || self.ask(from, &url, server.name());
        // Until it goes through, so that what is captured afterwards is one whole conversation.
        wait_for(&format!("{} answers", server.name()), READY, || Ok(ask()))?;
        let dir = self.testbed.dir();
        let at_client = Capture::start(from, device, dir, &self.file("client"))?;
        let at_server = Capture::start(server.netns(), "eth0", dir, &self.file("server"))?;
        let wires = self.wires()?;
        ask().map_err(|reason| Error::Answer { what: url.clone(), reason })?;
        let on_wires = || -> Result<BTreeSet<String>> {
            let mut all = BTreeSet::new();
            for Wire(name, capture) in &wires {
                all.extend(seen(&capture.so_far()?).into_iter().map(|sight| format!("{name} {sight}")));
            }
            Ok(all)
        };
        let so_far = || -> Result<Sights> {
            let (client, server) = (seen(&at_client.so_far()?), seen(&at_server.so_far()?));
            Ok(Sights { client, wires: on_wires()?, server })
        };
        // What is missing in the end is for the comparison to tell.
        let complete = wait_for("the captures are complete", CAPTURE_LAG, || {
            let seen = so_far()?;
            Ok(if seen == *wanted { Ok(()) } else { Err(format!("{seen:?}")) })
        });
        // What must not be there might come later still.
        std::thread::sleep(if complete.is_ok() { Duration::from_millis(100) } else { Duration::ZERO });
        so_far()
    }

    /// Name of a capture's file.
    fn file(&self, stage: &str) -> String {
        format!("matrix-{}-{stage}", self.captured)
    }

    /// Makes a server the service's only backend.
    fn set_backend(&self, server: Server) -> Result<()> {
        let pod = self.testbed.pod(self.server(server));
        let node = self.testbed.nodes()[pod.node()].name().to_owned();
        let endpoint = EndpointSpec { pod: pod.name().to_owned(), ip: pod.ip(), node };
        self.testbed.manifests().endpoints(&self.service, &[endpoint])
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
        let uplink = self.testbed.capture(self.node_ips().0, &self.file(UPLINK))?;
        let mut wires = vec![Wire(UPLINK.to_owned(), uplink)];
        for number in 0..2 {
            if let Some(vpc) = &self.vpc {
                let name = format!("eni{number}");
                let capture = vpc.capture(&self.testbed, 0, number, &self.file(&name))?;
                wires.push(Wire(name, capture));
            }
        }
        Ok(wires)
    }
}

/// The cloud's network with two ENIs on the first node and one on the second.
fn build_vpc(testbed: &Testbed) -> Result<Vpc> {
    let mut vpc = Vpc::create(testbed)?;
    vpc.add_eni(testbed, 0, 0)?;
    vpc.add_eni(testbed, 0, 1)?;
    vpc.add_eni(testbed, 1, 0)?;
    Ok(vpc)
}
