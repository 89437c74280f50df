//! The ground on which every AF_XDP device is measured: the testbed's two nodes, a client's and a server's pod
//! on the first, nothing running. The device runs on the first node. Generator and sinks are AF_XDP sockets in
//! the pods, and on the second node's end of the wire:
//!
//! ```text
//!  generator ─ client pod ─ veth ─┐                     ┌─ veth ─ server pod ─ sink
//!                                 ├─ device on node-1 ──┤
//!                                                       └─ uplink0 ─ veth ─ uplink0 of node-2 ─ sink
//! ```
//! Whatever leaves node-1 goes to node-2's end of the wire: the second node, two more with pods of other ways between
//! nodes, and the router to the outside all have its Ethernet address. From there the generator sends what comes from
//! outside. Further senders have pods of their own.
//!
//! The host ends of the pods' veths have the gateway's Ethernet address, so that the generator's frames are the
//! same for every device.

use super::DeviceError;
use crate::pktgen::paths::{Around, NODE_PORT, NODE_PORTS, REMOTE_SERVICES, Site};
use crate::pktgen::ranges::{Addresses, Ports};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::{End, Ends};
use fairway_control::names;
use fairway_pmd::af_xdp::{AfXdp, AfXdpConfig, AfXdpQueue};
use fairway_pmd::steering::{PortClass, Protocol, Steering};
use fairway_pmd::{Umem, UmemConfig};
use fairway_tables::{Ip, Mac};
use fairway_tests::dual_stack::{add_address, allow_ipv6};
use fairway_tests::netns::Netns;
use fairway_tests::node::{Node, UPLINK};
use fairway_tests::testbed::Pod;
use fairway_tests::{Options, PodId, Testbed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Namespace of the pods in the Kubernetes sense.
pub const NAMESPACE: &str = "bench";
/// The sink's pod.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// The generator's pod, and after it those of further senders.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 11);
/// Pods that other nodes have in each of their ranges, from the tenth address on.
const REMOTE_PODS: u32 = 200;
/// Pods reached without encapsulation, by node-direct.
pub const DIRECT_PODS: [&str; 2] = ["10.246.4.0/24", "fd00:246:4::/64"];
/// Pods reached by IPIP, by node-ipip.
pub const IPIP_PODS: &str = "10.245.3.0/24";
/// Stations outside.
const OUTSIDE: [&str; 2] = ["203.0.113.0/24", "2001:db8::/64"];
/// Addresses of the nodes with other pods and of the router to the outside.
pub const NODE_IPIP: &str = "192.168.77.3";
/// See [`NODE_IPIP`].
pub const NODE_DIRECT: &str = "192.168.77.4";
/// See [`NODE_IPIP`].
pub const ROUTERS: [&str; 2] = ["192.168.77.254", "fd00:77::fe"];
/// The device's node by IPv6.
pub const NODE6: &str = "fd00:77::1";
/// First Service address.
pub const SERVICES: u32 = 0x0a60_000a; // 10.96.0.10
/// First Service address of those with a backend on the other node.
const REMOTE_SERVICE: u32 = 0x0a61_000a; // 10.97.0.10
/// Longest time to put further routes into the kernel.
const ROUTES_DEADLINE: Duration = Duration::from_secs(120);
/// Most pods of the device's node.
pub const MAX_PODS: u16 = 250;
const DEVICE: &str = "eth0";
const FRAMES: u32 = 16_384;
const VXLAN_PORT: u16 = 4789;
const IPIP: u8 = 4;

/// The `n`th IPv6 address of a range, from 0.
fn v6(text: &str, n: u32) -> [u8; 16] {
    let first: Ipv6Addr = text.parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
    (u128::from(first) + u128::from(n)).to_be_bytes()
}

/// IPv6 address of the pod with this IPv4 address, on the device's node.
pub fn pod6(ip: Ipv4Addr) -> Ipv6Addr {
    v6("fd00:244:1::", u32::from(ip.octets()[3])).into()
}

/// IPv6 address of Service number `n`.
pub fn service6(n: u32) -> Ipv6Addr {
    v6("fd00:96::", 10 + n).into()
}

/// Addresses of Service number `n` of those with a backend on the other node, and of that backend.
pub fn remote_service(n: u32) -> [(String, String); 2] {
    let address = |text: &str, n| Ipv6Addr::from(v6(text, n)).to_string();
    [
        (
            Ipv4Addr::from(REMOTE_SERVICE + n).to_string(),
            Ipv4Addr::new(10, 244, 2, 10 + (n % 200) as u8).to_string(),
        ),
        (address("fd00:97::", 10 + n), address("fd00:244:2::", 10 + n % 200)),
    ]
}

/// Further route number `n` for `ip -batch`: to the router, or to one of the nodes.
fn route(n: u32, way: u64) -> String {
    let prefix = Ipv4Addr::from(0x0b00_0000 + (n << 8)); // 11.0.0.0
    let via = [ROUTERS[0], NODE_DIRECT][(way % 2) as usize];
    format!("route replace {prefix}/24 via {via} dev {UPLINK}\n")
}

/// The testbed, and the sockets of generator and sink once they are open.
pub struct Ground {
    // Sockets and programs go before the namespaces that they are in.
    ends: Option<Ends>,
    steering: Vec<Steering>,
    umem: Umem,
    testbed: Testbed,
    clients: Vec<PodId>,
    server: PodId,
    services: u32,
    node_mac: Mac,
    wire_mac: Mac,
}

impl Ground {
    /// Builds the testbed for a scenario's Services, senders and further routes.
    ///
    /// # Errors
    /// Without root, or if a namespace cannot be made.
    pub fn new(scenario: &Scenario) -> Result<Ground, DeviceError> {
        let mut testbed = Testbed::new(Options { cable: true, ..Options::default() })?;
        testbed.manifests().namespace(NAMESPACE)?;
        let server = testbed.add_pod(0, NAMESPACE, "server", SERVER)?;
        let mut clients = Vec::new();
        for n in 0..scenario.senders {
            let ip = Ipv4Addr::from(u32::from(CLIENT) + n);
            clients.push(testbed.add_pod(0, NAMESPACE, &client_name(n), ip)?);
        }
        let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: true })?;
        let macs = [mac_of(&testbed.nodes()[0])?, mac_of(&testbed.nodes()[1])?];
        let ground = Ground {
            ends: None,
            steering: Vec::new(),
            umem,
            testbed,
            clients,
            server,
            services: scenario.tables.services,
            node_mac: macs[0],
            wire_mac: macs[1],
        };
        for veth in ground.client_veths().into_iter().chain([ground.server_veth()]) {
            let mac = names::GATEWAY_MAC.to_string();
            ground.node().ip(["link", "set", "dev", &veth, "address", &mac])?;
        }
        ground.dual_stack()?;
        ground.others_on_the_wire()?;
        ground.add_routes(&scenario.tables)?;
        Ok(ground)
    }

    /// IPv6 on the device's node, its ports and the pods.
    fn dual_stack(&self) -> Result<(), DeviceError> {
        let mut devices = self.client_veths();
        devices.extend([self.server_veth(), UPLINK.to_owned(), "lo".to_owned()]);
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        allow_ipv6(self.node(), &devices)?;
        self.node().ip(["addr", "add", &format!("{NODE6}/64"), "dev", UPLINK, "nodad"])?;
        for pod in self.testbed.pods() {
            add_address(pod, pod6(pod.ip()))?;
        }
        Ok(())
    }

    /// Everybody whom node-1 reaches over the wire beside node-2 is at node-2's end of it.
    fn others_on_the_wire(&self) -> Result<(), DeviceError> {
        let (node, mac) = (self.node(), self.wire_mac.to_string());
        for other in [NODE_IPIP, NODE_DIRECT, ROUTERS[0], ROUTERS[1]] {
            node.ip(["neigh", "replace", other, "lladdr", &mac, "dev", UPLINK, "nud", "permanent"])?;
        }
        for router in ROUTERS {
            let family = if router.contains(':') { "-6" } else { "-4" };
            node.ip([family, "route", "add", "default", "via", router, "dev", UPLINK])?;
        }
        Ok(())
    }

    /// The scenario's further routes, in the kernel's main table.
    fn add_routes(&self, tables: &TableSizes) -> Result<(), DeviceError> {
        if tables.routes > 0 {
            let lines: String = (0..tables.routes).map(|n| route(n, 0)).collect();
            let file = self.testbed.dir().join("routes");
            std::fs::write(&file, lines).map_err(DeviceError::io("write routes"))?;
            let file = file.display().to_string();
            self.node().run("ip", &["-batch", &file], ROUTES_DEADLINE)?.success()?;
        }
        Ok(())
    }

    /// What changes further routes while packets flow, from another thread.
    pub fn route_changer(&self, tables: &TableSizes) -> RouteChanger {
        let file = self.testbed.dir().join("route-changes");
        RouteChanger { netns: self.node().name().to_owned(), file, routes: tables.routes.max(1) }
    }

    /// Adds pod number `n`, from 2 and below [`MAX_PODS`], whose port stays idle.
    ///
    /// # Errors
    /// If its namespace cannot be made.
    pub fn add_idle_pod(&mut self, n: u16) -> Result<(), DeviceError> {
        let [a, b, c, server] = SERVER.octets();
        // Around the server's address and the client's, which follow one another.
        let host = n.min(MAX_PODS - 1) as u8;
        let ip = Ipv4Addr::new(a, b, c, if host < server { host } else { host + 2 });
        self.testbed.add_pod(0, NAMESPACE, &format!("idle-{n}"), ip)?;
        Ok(())
    }

    /// Opens the generator's and the sinks' sockets. From then on the server's pod answers nothing itself.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open_ends(&mut self) -> Result<(), DeviceError> {
        let mut clients = Vec::new();
        for client in &self.clients {
            let (end, steering) = self.open(self.testbed.pod(*client).netns(), DEVICE, PortClass::Pod)?;
            clients.push(end);
            self.steering.push(steering);
        }
        let (server, at_server) = self.open(self.testbed.pod(self.server).netns(), DEVICE, PortClass::Pod)?;
        let (wire, at_wire) = self.open(self.testbed.nodes()[1].netns(), UPLINK, PortClass::Uplink)?;
        self.steering.extend([at_server, at_wire]);
        self.ends = Some(Ends { clients, sinks: vec![server, wire], wire: Some(1) });
        Ok(())
    }

    /// Opens the generator's sockets, and the sinks' at the other ends of the generator's own veths.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open_short_circuit(&mut self) -> Result<(), DeviceError> {
        let (mut clients, mut sinks) = (Vec::new(), Vec::new());
        for (client, veth) in self.clients.iter().zip(self.client_veths()) {
            let (end, in_pod) = self.open(self.testbed.pod(*client).netns(), DEVICE, PortClass::Pod)?;
            clients.push(end);
            let (end, at_node) = self.open(self.node(), &veth, PortClass::Pod)?;
            sinks.push(end);
            self.steering.extend([in_pod, at_node]);
        }
        self.ends = Some(Ends { clients, sinks, wire: None });
        Ok(())
    }

    fn open(&self, netns: &Netns, device: &str, class: PortClass) -> Result<(End, Steering), DeviceError> {
        let umem = &self.umem;
        let nodes = [self.testbed.nodes()[1].ip().to_string(), NODE_IPIP.to_owned(), NODE_DIRECT.to_owned()];
        let nodes: Vec<IpAddr> = nodes.iter().filter_map(|node| node.parse().ok()).collect();
        let bare: Vec<(IpAddr, u8)> = DIRECT_PODS.into_iter().chain(OUTSIDE).filter_map(prefix).collect();
        // Room for a burst longer than the engine's own rings.
        let config = AfXdpConfig {
            rx_ring: 2048,
            tx_ring: 2048,
            fill_ring: 2048,
            completion_ring: 2048,
            fill_target: 2048,
            fill_min: 2048,
            send_buffer_bytes: 16 << 20,
            ..AfXdpConfig::pod()
        };
        let open = move || -> Result<(AfXdpQueue, Steering), DeviceError> {
            let mut steering = Steering::load()?;
            steering.attach(device, class)?;
            steering.set_node(&nodes, &[VXLAN_PORT])?;
            steering.set_protocols(&[Protocol { number: IPIP, over_ipv6: false }])?;
            steering.set_pod_prefixes(&bare)?;
            // A registration of its own: sockets of different namespaces share none.
            let mut queues = AfXdp::new(umem).open(device, 0, &config)?;
            steering.register_queues(&queues)?;
            Ok((queues.remove(0), steering))
        };
        let (queue, steering) = netns.inside(open)??;
        Ok((End { queue: Box::new(queue), cache: self.umem.cache() }, steering))
    }

    /// The addresses around the device.
    pub fn site(&self) -> Site {
        let mac = |ip: Ipv4Addr| names::pod_mac(Ip::v4(ip.octets()));
        let tenth = |a, b, c| Addresses::v4(Ipv4Addr::new(a, b, c, 10).into(), REMOTE_PODS);
        let tenth6 = |range: &str| Addresses::v6(v6(range, 10), REMOTE_PODS);
        Site {
            client_mac: mac(CLIENT),
            server_mac: mac(SERVER),
            gateway_mac: names::GATEWAY_MAC,
            station_mac: self.wire_mac,
            node_mac: self.node_mac,
            node_ports: Ports { first: NODE_PORT, count: self.services.min(NODE_PORTS) },
            ipv4: Around {
                client: Addresses::one(CLIENT.octets()),
                server: Addresses::one(SERVER.octets()),
                node: Addresses::one(self.testbed.nodes()[0].ip().octets()),
                vxlan_pods: tenth(10, 244, 2),
                ipip_pods: tenth(10, 245, 3),
                direct_pods: tenth(10, 246, 4),
                outside: tenth(203, 0, 113),
                services: Addresses::v4(SERVICES, self.services),
                remote_services: Addresses::v4(REMOTE_SERVICE, self.services.min(REMOTE_SERVICES)),
            },
            ipv6: Around {
                client: Addresses::v6(pod6(CLIENT).octets(), 1),
                server: Addresses::v6(pod6(SERVER).octets(), 1),
                node: Addresses::v6(v6(NODE6, 0), 1),
                vxlan_pods: tenth6("fd00:244:2::"),
                ipip_pods: tenth6("fd00:244:2::"),
                direct_pods: tenth6("fd00:246:4::"),
                outside: tenth6("2001:db8::"),
                services: Addresses::v6(service6(0).octets(), self.services),
                remote_services: Addresses::v6(v6("fd00:97::", 10), self.services.min(REMOTE_SERVICES)),
            },
        }
    }

    /// The sockets.
    ///
    /// # Panics
    /// Before [`Ground::open_ends`].
    pub fn ends(&mut self) -> &mut Ends {
        self.ends.as_mut().expect("a device opens the ends before it is used")
    }

    /// The testbed.
    pub fn testbed(&mut self) -> &mut Testbed {
        &mut self.testbed
    }

    /// The device's node.
    pub fn node(&self) -> &Netns {
        self.testbed.nodes()[0].netns()
    }

    /// The other node's address on the wire.
    pub fn remote_node(&self) -> Ipv4Addr {
        self.testbed.nodes()[1].ip()
    }

    /// The pods.
    pub fn pods(&self) -> &[Pod] {
        self.testbed.pods()
    }

    /// Ethernet address of the other end of the wire.
    pub fn wire_mac(&self) -> Mac {
        self.wire_mac
    }

    /// Host end of the (first) client pod's veth.
    pub fn client_veth(&self) -> String {
        names::host_veth(NAMESPACE, &client_name(0))
    }

    /// Host ends of all client pods' veths.
    pub fn client_veths(&self) -> Vec<String> {
        (0..self.clients.len() as u32).map(|n| names::host_veth(NAMESPACE, &client_name(n))).collect()
    }

    /// Host end of the server pod's veth.
    pub fn server_veth(&self) -> String {
        names::host_veth(NAMESPACE, "server")
    }

    /// What the sinks' sockets and the XDP programs have seen, for a message.
    pub fn what_ends_saw(&self) -> String {
        let rx = self.ends.iter().flat_map(|ends| &ends.sinks).map(|end| end.queue.stats().rx_packets);
        let rx: Vec<String> = rx.map(|packets| packets.to_string()).collect();
        format!("the sinks' sockets have received {} frames", rx.join(" and "))
    }

    /// Closes the sockets, takes the testbed down, and checks that no frame of the generator is missing.
    ///
    /// # Errors
    /// If one is.
    pub fn close_checked(mut self, device: &str) -> Result<Vec<String>, DeviceError> {
        let umem = self.umem.clone();
        if let Some(mut ends) = self.ends.take() {
            ends.close();
        }
        drop(self);
        match umem.pool().missing() {
            0 => Ok(vec!["every frame of generator and sink is home".to_owned()]),
            missing => {
                let what = format!("{missing} frames of generator and sink are missing");
                Err(DeviceError::Broken { device: device.to_owned(), what })
            }
        }
    }
}

/// Moves one further route after the other between two next hops.
pub struct RouteChanger {
    netns: String,
    file: PathBuf,
    routes: u32,
}

impl RouteChanger {
    /// Makes these changes, by their numbers.
    ///
    /// # Errors
    /// If `ip` cannot be run, or the kernel refuses.
    pub fn change(&self, changes: std::ops::Range<u64>) -> Result<(), DeviceError> {
        if changes.is_empty() {
            return Ok(());
        }
        let routes = u64::from(self.routes);
        // The first time around, all go away from where they were.
        let lines: String = changes.map(|n| route((n % routes) as u32, 1 + n / routes)).collect();
        std::fs::write(&self.file, lines).map_err(DeviceError::io("write changes of routes"))?;
        let ended = Command::new("ip").args(["-n", &self.netns, "-batch"]).arg(&self.file).status();
        match ended.map_err(DeviceError::io("run ip"))? {
            status if status.success() => Ok(()),
            status => {
                let what = format!("ip refuses changes of routes: {status}");
                Err(DeviceError::Broken { device: "ground".to_owned(), what })
            }
        }
    }
}

fn client_name(n: u32) -> String {
    if n == 0 { "client".to_owned() } else { format!("client-{}", n + 1) }
}

/// Ethernet address of a node's uplink.
fn mac_of(node: &Node) -> Result<Mac, DeviceError> {
    let path = format!("/sys/class/net/{UPLINK}/address");
    let text = node.netns().run("cat", &[&path], Duration::from_secs(10))?.success()?;
    let mut mac = [0; 6];
    for (byte, word) in mac.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(word, 16)
            .map_err(|error| DeviceError::io(format!("read {path}"))(std::io::Error::other(error)))?;
    }
    Ok(Mac(mac))
}

/// An address and a length, as they are written.
fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, len) = text.split_once('/')?;
    Some((address.parse().ok()?, len.parse().ok()?))
}
