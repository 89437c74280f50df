//! A cloud's network (VPC) in a namespace: it routes between the subnets of nodes' ENIs, each subnet with its gateway, and
//! knows by itself behind which ENI an address is; nothing that pods or nodes say by ARP tells it.

use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::netns::{Netns, VethEnd};
use crate::node::UPLINK_MTU;
use crate::testbed::{PodId, Testbed, offloads_off};
use fairway_control::names;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// An address that is in no subnet of the cluster; the network's own namespace has it.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// An ENI of a node.
#[derive(Debug)]
struct Eni {
    node: usize,
    device: String,
    mac: String,
    /// Second last octet of its subnet, 172.16.x.0/24.
    subnet: u8,
    /// The network's end of it.
    port: String,
    ips: Vec<Ipv4Addr>,
    /// Whether it is in a pod.
    is_pods: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct Vpc {
    netns: Netns,
    enis: Vec<Eni>,
}

impl Vpc {
    /// A network without subnets.
    pub fn create(testbed: &Testbed) -> Result<Vpc> {
        let netns = Netns::create(&format!("{}-vpc", testbed.name()))?;
        netns.ip(["addr", "add", &format!("{OUTSIDE}/32"), "dev", "lo"])?;
        let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        netns.inside(forward)?.map_err(Error::io("let the VPC forward"))?;
        Ok(Vpc { netns, enis: Vec::new() })
    }

    /// Its namespace, from which [`OUTSIDE`] speaks.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Gives a node its ENI `number` (below 10), `eni<number>`, in a subnet of its own. The device gets no address.
    pub fn add_eni(&mut self, testbed: &Testbed, node: usize, number: u8) -> Result<()> {
        let subnet = 10 * (node as u8 + 1) + number;
        let eni = self.attach(testbed.nodes()[node].netns(), &format!("eni{number}"), node, subnet)?;
        self.enis.push(eni);
        Ok(())
    }

    /// Makes a pod with an ENI of its own, `eth0`, in the subnet 172.16.x.0/24 of `number` (10 to 19) and the node. The pod's
    /// second interface, `eth1`, leads to the engine; by it go packets to its node and to these ranges.
    pub fn give(
        &mut self,
        testbed: &mut Testbed,
        node: usize,
        number: u8,
        name: &str,
        ranges: &[&str],
    ) -> Result<PodId> {
        let subnet = 10 * (node as u8 + 1) + number;
        let ip = Ipv4Addr::new(172, 16, subnet, 10);
        let id = testbed.add_pod_with(node, "shop", name, ip, "eth1")?;
        let pod = testbed.pod(id).netns();
        let mut eni = self.attach(pod, "eth0", node, subnet)?;
        eni.ips.push(ip);
        eni.is_pods = true;
        let (text, gateway) = (ip.to_string(), format!("172.16.{subnet}.253"));
        pod.ip(["addr", "add", &format!("{ip}/24"), "dev", "eth0"])?;
        pod.ip(["route", "add", "default", "via", &gateway, "dev", "eth0"])?;
        let engine = names::GATEWAY_IP.to_string();
        pod.ip(["route", "add", &engine, "dev", "eth1", "scope", "link", "src", &text])?;
        let of_node = &testbed.nodes()[node];
        let (own, among_pods) = (of_node.ip().to_string(), format!("10.244.{}.1", node + 1));
        for range in ranges.iter().copied().chain([own.as_str(), &among_pods]) {
            pod.ip(["route", "add", range, "via", &engine, "dev", "eth1", "onlink", "src", &text])?;
        }
        self.enis.push(eni);
        self.write_manifest(testbed, node)?;
        Ok(id)
    }

    /// Makes an ENI, the device in a namespace.
    fn attach(&self, to: &Netns, device: &str, node: usize, subnet: u8) -> Result<Eni> {
        let (device, port) = (device.to_owned(), format!("eni{subnet}"));
        let mac = format!("00:16:3e:00:00:{subnet:02x}");
        let end = VethEnd { name: &device, mac: Some(&mac) };
        to.add_veth(end, &self.netns, VethEnd { name: &port, mac: None }, UPLINK_MTU, 1)?;
        self.netns.ip(["addr", "add", &format!("172.16.{subnet}.253/24"), "dev", &port])?;
        for (netns, device) in [(to, &device), (&self.netns, &port)] {
            offloads_off(netns, device)?;
            netns.ip(["link", "set", device, "up"])?;
        }
        Ok(Eni { node, device, mac, subnet, port, ips: Vec::new(), is_pods: false })
    }

    fn eni(&self, node: usize, number: u8) -> Result<&Eni> {
        let device = format!("eni{number}");
        let found = self.enis.iter().find(|eni| eni.node == node && eni.device == device);
        found.ok_or(Error::Answer { what: device, reason: "there is no such ENI".into() })
    }

    /// Gives an ENI the address 172.16.x.`host` of its subnet, for a pod, and tells the nodes.
    pub fn assign(&mut self, testbed: &Testbed, node: usize, number: u8, host: u8) -> Result<Ipv4Addr> {
        let eni = self.eni(node, number)?;
        let ip = Ipv4Addr::new(172, 16, eni.subnet, host);
        let (text, outside) = (ip.to_string(), OUTSIDE.to_string());
        self.netns.ip(["neigh", "add", &text, "lladdr", &eni.mac, "dev", &eni.port, "nud", "permanent"])?;
        self.netns.ip(["route", "add", &text, "dev", &eni.port, "src", &outside])?;
        let device = eni.device.clone();
        for eni in self.enis.iter_mut().filter(|eni| eni.node == node && eni.device == device) {
            eni.ips.push(ip);
        }
        self.write_manifest(testbed, node)?;
        Ok(ip)
    }

    /// Terway's Node of a node.
    fn write_manifest(&self, testbed: &Testbed, node: usize) -> Result<()> {
        let name = testbed.nodes()[node].name();
        let of_node = || self.enis.iter().filter(|eni| eni.node == node);
        let exclusive = of_node().any(|eni| eni.is_pods);
        let labels =
            if exclusive { "  labels: {k8s.aliyun.com/exclusive-mode-eni-type: eniOnly}\n" } else { "" };
        let mut yaml = format!(
            "apiVersion: network.alibabacloud.com/v1beta1\nkind: Node\nmetadata:\n  name: {name}\n{labels}status:\n  \
             networkInterfaces:\n"
        );
        // Writing to a String cannot fail.
        for Eni { mac, subnet, ips, is_pods, .. } in of_node() {
            let _ = write!(
                yaml,
                "    eni-{subnet}:\n      id: eni-{subnet}\n      status: InUse\n      macAddress: {mac}\n      \
                 ipv4CIDR: 172.16.{subnet}.0/24\n      ipv4:\n"
            );
            let own = Some(Ipv4Addr::new(172, 16, *subnet, 1)).filter(|_| !is_pods);
            for (ip, primary) in own.iter().map(|ip| (ip, true)).chain(ips.iter().map(|ip| (ip, *is_pods))) {
                let _ = writeln!(yaml, "        {ip}: {{ip: {ip}, primary: {primary}, status: Valid}}");
            }
        }
        testbed.manifests().write(&format!("enis-{name}"), &yaml)
    }

    /// Captures what passes between an ENI and the network.
    pub fn capture(&self, testbed: &Testbed, node: usize, number: u8, name: &str) -> Result<Capture> {
        Capture::start(&self.netns, &self.eni(node, number)?.port, testbed.dir(), name)
    }

    /// The network's end of an ENI.
    pub fn port(&self, node: usize, number: u8) -> Result<&str> {
        Ok(&self.eni(node, number)?.port)
    }
}
