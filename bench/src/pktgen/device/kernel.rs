//! The Linux kernel on the testbed's node: IPv4 forwarding between the pods' veths, its vxlan device, and Services.
//! Their rules are written by kube-proxy itself ([`super::kube_proxy`]), or here in the layout of its nftables mode:
//! a map from address, protocol and port to the Service's chain, there a random backend. Connection tracking
//! is on for all paths, as on any node with kube-proxy.
//!
//! The device's core takes the packets off the generator's veth by receive packet steering (RPS), since the
//! kernel would otherwise forward on the generator's core and leave the other one idle.

use super::ground::{CLIENT, Ground, SERVER, SERVICES};
use super::{Device, DeviceError, kube_proxy};
use crate::pktgen::cores::cores;
use crate::pktgen::paths::{BACKEND_PORT, SERVICE_PORT, Site};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::Ends;
use fairway_control::names;
use fairway_tables::Ip;
use fairway_tests::kube::KubeProxy;
use fairway_tests::netns::Netns;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

const VNI: &str = "4096";
/// Network address of the other node's pods, which Calico's layout gives its VTEP.
const REMOTE_VTEP: &str = "10.244.2.0";
const DEADLINE: Duration = Duration::from_secs(60);

/// Who writes the rules of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// This file.
    Own,
    /// kube-proxy.
    KubeProxy,
}

impl Rules {
    /// The device's name.
    fn device(self) -> &'static str {
        match self {
            Rules::Own => "kernel",
            Rules::KubeProxy => "kube-proxy",
        }
    }
}

/// The kernel on a testbed.
pub struct KernelDevice {
    // Ends before the namespace that it is in.
    proxy: Option<KubeProxy>,
    ground: Ground,
    rules: Rules,
}

impl KernelDevice {
    /// Sets the node up.
    ///
    /// # Errors
    /// If nftables or kube-proxy is missing or the kernel refuses something.
    pub fn start(scenario: &Scenario, rules: Rules) -> Result<KernelDevice, DeviceError> {
        let (tables, device) = (&scenario.tables, rules.device());
        if tables.routes > 0 || tables.changes_per_s > 0 {
            let why = "tables.routes and changes_per_s are for Fairway; set them to 0";
            return Err(DeviceError::Unfit { device, why });
        }
        if !Path::new("/usr/sbin/nft").exists() {
            let (program, package) = ("nft", "nftables");
            return Err(DeviceError::MissingProgram { device, program, package });
        }
        let mut ground = Ground::new(tables.services)?;
        forwarding(&ground)?;
        vxlan(&ground)?;
        let proxy = match rules {
            Rules::Own => {
                write_rules(&mut ground, tables)?;
                None
            }
            Rules::KubeProxy => Some(kube_proxy::start(&mut ground, tables)?),
        };
        ground.open_ends()?;
        Ok(KernelDevice { proxy, ground, rules })
    }
}

fn write_rules(ground: &mut Ground, tables: &TableSizes) -> Result<(), DeviceError> {
    let rules = ground.testbed().dir().join("services.nft");
    std::fs::write(&rules, ruleset(tables)).map_err(DeviceError::io("write the nftables rules"))?;
    let rules = rules.display().to_string();
    ground.node().run("nft", &["-f", &rules], DEADLINE)?.success()?;
    Ok(())
}

fn set(netns: &Netns, path: &str, value: &str) -> Result<(), DeviceError> {
    // Through `ip netns exec`, which mounts the namespace's own /sys.
    let script = format!("echo {value} > {path}");
    netns.run("sh", &["-c", &script], DEADLINE)?.success()?;
    Ok(())
}

fn forwarding(ground: &Ground) -> Result<(), DeviceError> {
    let node = ground.node();
    let (client, server) = (ground.client_veth(), ground.server_veth());
    set(node, "/proc/sys/net/ipv4/ip_forward", "1")?;
    // Sources are checked against routes on every node with kube-proxy too, loosely or not at all.
    for device in ["all", &client, &server] {
        set(node, &format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    for (ip, veth) in [(CLIENT, &client), (SERVER, &server)] {
        let mac = names::pod_mac(Ip::v4(ip.octets())).to_string();
        let ip = ip.to_string();
        node.ip(["route", "replace", &ip, "dev", veth])?;
        node.ip(["neigh", "replace", &ip, "lladdr", &mac, "dev", veth, "nud", "permanent"])?;
    }
    if let (_, Some(core)) = cores() {
        let mask = format!("{:x}", 1u64 << core.id.min(31));
        set(node, &format!("/sys/class/net/{client}/queues/rx-0/rps_cpus"), &mask)?;
    }
    Ok(())
}

fn vxlan(ground: &Ground) -> Result<(), DeviceError> {
    let (node, remote) = (ground.node(), ground.remote_node().to_string());
    let (local_mac, remote_mac) =
        (names::vtep_mac("node-1").to_string(), names::vtep_mac("node-2").to_string());
    node.ip([
        "link",
        "add",
        "vxlan0",
        "address",
        &local_mac,
        "mtu",
        "1450",
        "type",
        "vxlan",
        "id",
        VNI,
        "dstport",
        "4789",
        "local",
        "192.168.77.1",
        "nolearning",
    ])?;
    node.ip(["addr", "add", "10.244.1.0/32", "dev", "vxlan0"])?;
    node.ip(["link", "set", "vxlan0", "up"])?;
    node.ip(["route", "add", "10.244.2.0/24", "via", REMOTE_VTEP, "dev", "vxlan0", "onlink"])?;
    node.ip(["neigh", "add", REMOTE_VTEP, "lladdr", &remote_mac, "dev", "vxlan0", "nud", "permanent"])?;
    let fdb = ["fdb", "add", &remote_mac, "dev", "vxlan0", "dst", &remote];
    node.run("bridge", &fdb, DEADLINE)?.success()?;
    Ok(())
}

/// Services in kube-proxy's layout. All backends are the server's pod, on different ports.
fn ruleset(tables: &TableSizes) -> String {
    let mut rules = String::from("table ip services {\n");
    let mut elements = Vec::new();
    for n in 0..tables.services {
        let backends: Vec<String> = (0..tables.backends)
            .map(|b| format!("{b} : {SERVER} . {}", BACKEND_PORT + (b % 1000) as u16))
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            rules,
            "  chain s{n} {{\n    meta l4proto {{ tcp, udp }} dnat ip to numgen random mod {} map {{ {} }}\n  }}",
            tables.backends,
            backends.join(", ")
        );
        let ip = Ipv4Addr::from(SERVICES + n);
        for protocol in ["tcp", "udp"] {
            elements.push(format!("{ip} . {protocol} . {SERVICE_PORT} : goto s{n}"));
        }
    }
    let _ = write!(
        rules,
        "  map services {{\n    type ipv4_addr . inet_proto . inet_service : verdict\n    elements = {{ {} }}\n  \
         }}\n  chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    ip daddr . \
         meta l4proto . th dport vmap @services\n  }}\n}}\n",
        elements.join(", ")
    );
    rules
}

impl Device for KernelDevice {
    fn name(&self) -> &'static str {
        self.rules.device()
    }

    fn site(&self) -> Site {
        self.ground.site()
    }

    fn ends(&mut self) -> &mut Ends {
        self.ground.ends()
    }

    fn hint(&mut self) -> String {
        let said = self.proxy.as_ref().map_or_else(String::new, |proxy| format!("; {}", proxy.log_tail(5)));
        self.ground.what_ends_saw() + &said
    }

    fn finish(self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        drop(self.proxy);
        self.ground.close_checked(self.rules.device())
    }
}
