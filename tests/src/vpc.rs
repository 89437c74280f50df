//! A cloud's network (VPC) in a namespace: it routes between the subnets of nodes' ENIs, each subnet with its gateway, and
//! knows by itself behind which ENI an address is; nothing that pods or nodes say by ARP or NDP tells it. Where the testbed
//! speaks both families, so does the network, with an IPv6 subnet and gateway for each ENI.

use crate::capture::Capture;
use crate::dual_stack::{Family, allow_ipv6, ipv6_of};
use crate::error::{Error, Result};
use crate::netns::{Netns, VethEnd};
use crate::node::UPLINK_MTU;
use crate::testbed::{PodId, Testbed, offloads_off};
use fairway_control::names;
use fairway_tables::Prefix;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address that is in no subnet of the cluster; the network's own namespace has it.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// The subnet of an ENI, and its gateway: the third last address.
fn subnet_and_gateway(subnet: u8, family: Family) -> (Prefix, IpAddr) {
    let first = Ipv4Addr::new(172, 16, subnet, 0);
    let (gateway, len) = match family {
        Family::V4 => (IpAddr::from(first | Ipv4Addr::new(0, 0, 0, 253)), 24),
        Family::V6 => ((ipv6_of(first) | Ipv6Addr::from_bits(u128::from(u64::MAX) - 2)).into(), 64),
    };
    let subnet = Prefix::new(gateway.into(), len).unwrap_or_else(|| Prefix::host(gateway.into()));
    (subnet, gateway)
}

/// An address with the length of a host's prefix.
fn host_prefix(ip: IpAddr) -> String {
    Prefix::host(ip.into()).to_string()
}

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
        for family in testbed.families() {
            if !family.is_v4() {
                allow_ipv6(&netns, &["lo"])?;
            }
            netns.ip(["addr", "add", &host_prefix(family.of(OUTSIDE)), "dev", "lo"])?;
            let setting = if family.is_v4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
            let forward = move || std::fs::write(format!("/proc/sys/net/{setting}"), "1");
            netns.inside(forward)?.map_err(Error::io("let the VPC forward"))?;
        }
        Ok(Vpc { netns, enis: Vec::new() })
    }

    /// Its namespace, from which [`OUTSIDE`] speaks.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Gives a node its ENI `number` (below 10), `eni<number>`, in a subnet of its own. The device gets no address.
    pub fn add_eni(&mut self, testbed: &Testbed, node: usize, number: u8) -> Result<()> {
        let subnet = 10 * (node as u8 + 1) + number;
        let to = testbed.nodes()[node].netns();
        let eni = self.attach(testbed, to, &format!("eni{number}"), node, subnet)?;
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
        let mut eni = self.attach(testbed, pod, "eth0", node, subnet)?;
        eni.ips.push(ip);
        eni.is_pods = true;
        let number = node as u8 + 1;
        let of_node = [testbed.nodes()[node].ip(), Ipv4Addr::new(10, 244, number, 1)];
        for family in testbed.families() {
            let (prefix, gateway) = subnet_and_gateway(subnet, *family);
            let (source, gateway) = (family.of(ip).to_string(), gateway.to_string());
            let with_len = format!("{source}/{}", prefix.len());
            let everything = if family.is_v4() { "0.0.0.0/0" } else { "::/0" };
            pod.ip(["addr", "add", &with_len, "dev", "eth0"])?;
            pod.ip(["route", "add", everything, "via", &gateway, "dev", "eth0"])?;
            let engine = if family.is_v4() { names::GATEWAY_IP } else { names::GATEWAY_IP6 }.to_string();
            if family.is_v4() {
                pod.ip(["route", "add", &engine, "dev", "eth1", "scope", "link", "src", &source])?;
            } else {
                allow_ipv6(pod, &["eth1"])?;
            }
            let is_of = |range: &&&str| range.contains(':') != family.is_v4();
            let ranges = ranges.iter().filter(is_of).map(|range| (*range).to_owned());
            for range in ranges.chain(of_node.map(|ip| host_prefix(family.of(ip)))) {
                pod.ip(["route", "add", &range, "via", &engine, "dev", "eth1", "onlink", "src", &source])?;
            }
        }
        self.enis.push(eni);
        self.write_manifest(testbed, node)?;
        Ok(id)
    }

    /// Makes an ENI, the device in a namespace.
    fn attach(&self, testbed: &Testbed, to: &Netns, device: &str, node: usize, subnet: u8) -> Result<Eni> {
        let (device, port) = (device.to_owned(), format!("eni{subnet}"));
        let mac = format!("00:16:3e:00:00:{subnet:02x}");
        let end = VethEnd { name: &device, mac: Some(&mac) };
        to.add_veth(end, &self.netns, VethEnd { name: &port, mac: None }, UPLINK_MTU, 1)?;
        for family in testbed.families() {
            if !family.is_v4() {
                // Without an address, but for the one that it makes itself, from which it asks for neighbours.
                allow_ipv6(to, &[&device])?;
                allow_ipv6(&self.netns, &[&port])?;
            }
            let (prefix, gateway) = subnet_and_gateway(subnet, *family);
            self.netns.ip(["addr", "add", &format!("{gateway}/{}", prefix.len()), "dev", &port])?;
        }
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
        for family in testbed.families() {
            let (text, outside) = (family.of(ip).to_string(), family.of(OUTSIDE).to_string());
            let (to, port) = (&eni.mac, &eni.port);
            self.netns.ip(["neigh", "add", &text, "lladdr", to, "dev", port, "nud", "permanent"])?;
            self.netns.ip(["route", "add", &host_prefix(family.of(ip)), "dev", port, "src", &outside])?;
        }
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
                "    eni-{subnet}:\n      id: eni-{subnet}\n      status: InUse\n      macAddress: {mac}\n"
            );
            for family in testbed.families() {
                let number = if family.is_v4() { 4 } else { 6 };
                let (prefix, _) = subnet_and_gateway(*subnet, *family);
                let _ = write!(yaml, "      ipv{number}CIDR: '{prefix}'\n      ipv{number}:\n");
                let own = Some(Ipv4Addr::new(172, 16, *subnet, 1)).filter(|_| !is_pods);
                for (ip, primary) in
                    own.iter().map(|ip| (ip, true)).chain(ips.iter().map(|ip| (ip, *is_pods)))
                {
                    let ip = family.of(*ip);
                    let _ =
                        writeln!(yaml, "        '{ip}': {{ip: '{ip}', primary: {primary}, status: Valid}}");
                }
            }
        }
        testbed.manifests().write(&format!("enis-{name}"), &yaml)
    }

    /// Lets the gateway of an ENI's subnet fall silent, or answer again; what comes from the ENI is carried on either way.
    pub fn set_gateway(&self, testbed: &Testbed, node: usize, number: u8, answers: bool) -> Result<()> {
        let Eni { subnet, port, .. } = self.eni(node, number)?;
        // 8: for no address (Documentation/networking/ip-sysctl.rst). Without its address, the device would lose its routes.
        let setting = format!("/proc/sys/net/ipv4/conf/{port}/arp_ignore");
        let ignore = move || std::fs::write(setting, if answers { "0" } else { "8" });
        self.netns.inside(ignore)?.map_err(Error::io("set arp_ignore"))?;
        for family in testbed.families().iter().filter(|family| !family.is_v4()) {
            let (prefix, gateway) = subnet_and_gateway(*subnet, *family);
            let address = format!("{gateway}/{}", prefix.len());
            self.netns.ip(["addr", if answers { "add" } else { "del" }, &address, "dev", port])?;
        }
        Ok(())
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
