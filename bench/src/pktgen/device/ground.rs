//! The ground on which every AF_XDP device is measured: the testbed's two nodes, a client's and a server's pod
//! on the first, nothing running. The device runs on the first node. Generator and sinks are AF_XDP sockets in
//! the pods, and on the second node's end of the wire:
//!
//! ```text
//!  generator ─ client pod ─ veth ─┐                     ┌─ veth ─ server pod ─ sink
//!                                 ├─ device on node-1 ──┤
//!                                                       └─ uplink0 ─ bridge ─ uplink0 of node-2 ─ sink (tunnels only)
//! ```
//! The host ends of the pods' veths have the gateway's Ethernet address, so that the generator's frames are the
//! same for every device.

use super::DeviceError;
use crate::pktgen::paths::Site;
use crate::pktgen::ranges::Addresses;
use crate::pktgen::trial::{End, Ends};
use fairway_control::names;
use fairway_pmd::af_xdp::{AfXdp, AfXdpConfig, AfXdpQueue};
use fairway_pmd::steering::{PortClass, Steering};
use fairway_pmd::{Umem, UmemConfig};
use fairway_tables::Ip;
use fairway_tests::netns::Netns;
use fairway_tests::node::UPLINK;
use fairway_tests::{Options, PodId, Testbed};
use std::net::{IpAddr, Ipv4Addr};

/// Namespace of the pods in the Kubernetes sense.
pub const NAMESPACE: &str = "bench";
/// The generator's pod.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// The sink's pod.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 11);
/// First pod of the other node.
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 10);
/// Pods of the other node.
const REMOTE_PODS: u32 = 200;
/// First Service address.
pub const SERVICES: u32 = 0x0a60_000a; // 10.96.0.10
/// Most pods of the device's node.
pub const MAX_PODS: u16 = 250;
const DEVICE: &str = "eth0";
const FRAMES: u32 = 16_384;
const VXLAN_PORT: u16 = 4789;

/// The testbed, and the sockets of generator and sink once they are open.
pub struct Ground {
    // Sockets and programs go before the namespaces that they are in.
    ends: Option<Ends>,
    steering: Vec<Steering>,
    umem: Umem,
    testbed: Testbed,
    client: PodId,
    server: PodId,
    services: u32,
}

impl Ground {
    /// Builds the testbed for so many Services.
    ///
    /// # Errors
    /// Without root, or if a namespace cannot be made.
    pub fn new(services: u32) -> Result<Ground, DeviceError> {
        let mut testbed = Testbed::new(Options::default())?;
        testbed.manifests().namespace(NAMESPACE)?;
        let client = testbed.add_pod(0, NAMESPACE, "client", CLIENT)?;
        let server = testbed.add_pod(0, NAMESPACE, "server", SERVER)?;
        let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: true })?;
        let ground = Ground { ends: None, steering: Vec::new(), umem, testbed, client, server, services };
        for veth in [ground.client_veth(), ground.server_veth()] {
            let mac = names::GATEWAY_MAC.to_string();
            ground.node().ip(["link", "set", "dev", &veth, "address", &mac])?;
        }
        Ok(ground)
    }

    /// Adds pod number `n`, from 2 and below [`MAX_PODS`], whose port stays idle.
    ///
    /// # Errors
    /// If its namespace cannot be made.
    pub fn add_idle_pod(&mut self, n: u16) -> Result<(), DeviceError> {
        let [a, b, c, client] = CLIENT.octets();
        // Around the client's address and the server's, which follow one another.
        let host = n.min(MAX_PODS - 1) as u8;
        let ip = Ipv4Addr::new(a, b, c, if host < client { host } else { host + 2 });
        self.testbed.add_pod(0, NAMESPACE, &format!("idle-{n}"), ip)?;
        Ok(())
    }

    /// Opens the generator's and the sinks' sockets. From then on the server's pod answers nothing itself.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open_ends(&mut self) -> Result<(), DeviceError> {
        let (tx, client) = self.open(self.testbed.pod(self.client).netns(), DEVICE, PortClass::Pod)?;
        let (server, at_server) = self.open(self.testbed.pod(self.server).netns(), DEVICE, PortClass::Pod)?;
        let (wire, at_wire) = self.open(self.testbed.nodes()[1].netns(), UPLINK, PortClass::Uplink)?;
        self.steering.extend([client, at_server, at_wire]);
        self.ends = Some(Ends { tx, rx: vec![server, wire] });
        Ok(())
    }

    /// Opens the generator's socket, and the sink's at the other end of the generator's own veth.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn open_short_circuit(&mut self) -> Result<(), DeviceError> {
        let (tx, client) = self.open(self.testbed.pod(self.client).netns(), DEVICE, PortClass::Pod)?;
        let (rx, at_node) = self.open(self.node(), &self.client_veth(), PortClass::Pod)?;
        self.steering.extend([client, at_node]);
        self.ends = Some(Ends { tx, rx: vec![rx] });
        Ok(())
    }

    fn open(&self, netns: &Netns, device: &str, class: PortClass) -> Result<(End, Steering), DeviceError> {
        let (umem, node) = (&self.umem, IpAddr::V4(self.testbed.nodes()[1].ip()));
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
            steering.set_node(&[node], &[VXLAN_PORT])?;
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
        Site {
            client: CLIENT.octets(),
            client_mac: mac(CLIENT),
            server: SERVER.octets(),
            server_mac: mac(SERVER),
            gateway_mac: names::GATEWAY_MAC,
            remote_pods: Addresses { first: REMOTE.into(), count: REMOTE_PODS },
            services: Addresses { first: SERVICES, count: self.services },
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

    /// Host end of the client pod's veth.
    pub fn client_veth(&self) -> String {
        names::host_veth(NAMESPACE, "client")
    }

    /// Host end of the server pod's veth.
    pub fn server_veth(&self) -> String {
        names::host_veth(NAMESPACE, "server")
    }

    /// What the sinks' sockets and the XDP programs have seen, for a message.
    pub fn what_ends_saw(&self) -> String {
        let rx = self.ends.iter().flat_map(|ends| &ends.rx).map(|end| end.queue.stats().rx_packets);
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
