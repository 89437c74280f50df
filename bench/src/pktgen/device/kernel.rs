//! The Linux kernel on the testbed's node: forwarding between the pods' veths, its vxlan device, and Services.
//! Their rules are written by kube-proxy itself ([`super::kube_proxy`]), or here in the layout of its nftables mode:
//! a map from address, protocol and port to the Service's chain, there a random backend. Connection tracking
//! is on for all paths, as on any node with kube-proxy.
//!
//! IPIP is left out: kernels of virtual machines often lack the module (`ipip`).
//!
//! The device's core takes the packets off the generator's veth by receive packet steering (RPS), since the
//! kernel would otherwise forward on the generator's core and leave the other one idle.

use super::churn::{Orders, Pace};
use super::ground::{
    DIRECT_PODS, Ground, NODE_DIRECT, NODE6, RouteChanger, SERVER, SERVICES, pod6, remote_service, service6,
};
use super::{Device, DeviceError, kube_proxy};
use crate::pktgen::cores::cores;
use crate::pktgen::paths::{BACKEND_PORT, NODE_PORT, NODE_PORTS, REMOTE_SERVICES, SERVICE_PORT, Site};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::Ends;
use fairway_control::names;
use fairway_tables::Ip;
use fairway_tests::conntrack;
use fairway_tests::dual_stack::allow_ipv6;
use fairway_tests::kube::KubeProxy;
use fairway_tests::netns::Netns;
use fairway_tests::node::UPLINK;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

const VNI: &str = "4096";
/// Network address of the other node's pods, which Calico's layout gives its VTEP.
const REMOTE_VTEP: &str = "10.244.2.0";
const REMOTE_VTEP6: &str = "fd00:244:2::1";
const NODE_DIRECT6: &str = "fd00:77::4";
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
    changer: Option<Changer>,
}

/// Moves routes while packets flow.
struct Changer {
    orders: Orders,
    thread: JoinHandle<Result<u64, DeviceError>>,
}

impl Changer {
    fn start(routes: RouteChanger, per_s: u32) -> Changer {
        let orders = Orders::new();
        let heard = orders.clone();
        let thread = std::thread::spawn(move || {
            let mut pace = Pace::new(per_s);
            while !heard.stopped() {
                routes.change(pace.due(&heard))?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(pace.made)
        });
        Changer { orders, thread }
    }
}

impl KernelDevice {
    /// Sets the node up.
    ///
    /// # Errors
    /// If nftables or kube-proxy is missing or the kernel refuses something.
    pub fn start(scenario: &Scenario, rules: Rules) -> Result<KernelDevice, DeviceError> {
        let (tables, device) = (&scenario.tables, rules.device());
        if tables.changes_per_s > 0 {
            let why = "tables.changes_per_s is for Fairway; set it to 0";
            return Err(DeviceError::Unfit { device, why });
        }
        if !Path::new("/usr/sbin/nft").exists() {
            let (program, package) = ("nft", "nftables");
            return Err(DeviceError::MissingProgram { device, program, package });
        }
        let mut ground = Ground::new(scenario)?;
        forwarding(&ground)?;
        vxlan(&ground)?;
        direct(&ground)?;
        let proxy = match rules {
            Rules::Own => {
                write_rules(&mut ground, tables)?;
                None
            }
            Rules::KubeProxy => Some(kube_proxy::start(&mut ground, tables)?),
        };
        ground.open_ends()?;
        let rate = tables.route_changes_per_s;
        let changer = (rate > 0).then(|| Changer::start(ground.route_changer(tables), rate));
        Ok(KernelDevice { proxy, ground, rules, changer })
    }
}

fn write_rules(ground: &mut Ground, tables: &TableSizes) -> Result<(), DeviceError> {
    let rules = ground.testbed().dir().join("services.nft");
    let node = ground.testbed().nodes()[0].ip();
    std::fs::write(&rules, ruleset(tables, node)).map_err(DeviceError::io("write the nftables rules"))?;
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
    for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        set(node, path, "1")?;
    }
    // Sources are checked against routes on every node with kube-proxy too, loosely or not at all.
    set(node, "/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    for pod in ground.pods() {
        let veth = names::host_veth(pod.namespace(), pod.name());
        set(node, &format!("/proc/sys/net/ipv4/conf/{veth}/rp_filter"), "0")?;
        let mac = names::pod_mac(Ip::v4(pod.ip().octets())).to_string();
        for ip in [pod.ip().to_string(), pod6(pod.ip()).to_string()] {
            node.ip(["route", "replace", &ip, "dev", &veth])?;
            node.ip(["neigh", "replace", &ip, "lladdr", &mac, "dev", &veth, "nud", "permanent"])?;
        }
    }
    if let (_, Some(core)) = cores() {
        let mask = format!("{:x}", 1u64 << core.id.min(31));
        for device in ground.client_veths().iter().map(String::as_str).chain([UPLINK]) {
            set(node, &format!("/sys/class/net/{device}/queues/rx-0/rps_cpus"), &mask)?;
        }
    }
    Ok(())
}

/// Pods of another node by its address, without encapsulation.
fn direct(ground: &Ground) -> Result<(), DeviceError> {
    let (node, mac) = (ground.node(), ground.wire_mac().to_string());
    for (range, via) in DIRECT_PODS.into_iter().zip([NODE_DIRECT, NODE_DIRECT6]) {
        node.ip(["route", "add", range, "via", via, "dev", UPLINK])?;
        node.ip(["neigh", "replace", via, "lladdr", &mac, "dev", UPLINK, "nud", "permanent"])?;
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
    for (range, vtep) in [("10.244.2.0/24", REMOTE_VTEP), ("fd00:244:2::/64", REMOTE_VTEP6)] {
        let family = if range.contains(':') { "-6" } else { "-4" };
        allow_ipv6(node, &["vxlan0"])?;
        node.ip([family, "route", "add", range, "via", vtep, "dev", "vxlan0", "onlink"])?;
        node.ip(["neigh", "replace", vtep, "lladdr", &remote_mac, "dev", "vxlan0", "nud", "permanent"])?;
    }
    let fdb = ["fdb", "add", &remote_mac, "dev", "vxlan0", "dst", &remote];
    node.run("bridge", &fdb, DEADLINE)?.success()?;
    Ok(())
}

/// Services in kube-proxy's layout, by cluster address and, as far as there are any, node port; and masquerading to the
/// outside. All backends are the server's pod, on different ports.
fn ruleset(tables: &TableSizes, node: Ipv4Addr) -> String {
    let service = |n: u32| Ipv4Addr::from(SERVICES + n).to_string();
    let four = family_rules(tables, "ip", &service, &SERVER.to_string(), &node.to_string(), "10.240.0.0/12");
    let service = |n: u32| service6(n).to_string();
    four + &family_rules(tables, "ip6", &service, &pod6(SERVER).to_string(), NODE6, "fd00::/8")
}

fn family_rules(
    tables: &TableSizes,
    family: &str,
    service: &dyn Fn(u32) -> String,
    server: &str,
    node: &str,
    cluster: &str,
) -> String {
    let mut rules = format!("table {family} services {{\n");
    let mut elements = Vec::new();
    for n in 0..tables.services {
        let backends: Vec<String> = (0..tables.backends)
            .map(|b| format!("{b} : {server} . {}", BACKEND_PORT + (b % 1000) as u16))
            .collect();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            rules,
            "  chain s{n} {{\n    meta l4proto {{ tcp, udp }} dnat {family} to numgen random mod {} map {{ {} }}\n  }}",
            tables.backends,
            backends.join(", ")
        );
        for protocol in ["tcp", "udp"] {
            elements.push(format!("{} . {protocol} . {SERVICE_PORT} : goto s{n}", service(n)));
            if n < NODE_PORTS {
                elements.push(format!("{node} . {protocol} . {} : goto s{n}", u32::from(NODE_PORT) + n));
            }
        }
    }
    for n in 0..tables.services.min(REMOTE_SERVICES) {
        let (ip, pod) = &remote_service(n)[usize::from(family == "ip6")];
        let to =
            if family == "ip" { format!("{pod}:{BACKEND_PORT}") } else { format!("[{pod}]:{BACKEND_PORT}") };
        let _ =
            writeln!(rules, "  chain r{n} {{\n    meta l4proto {{ tcp, udp }} dnat {family} to {to}\n  }}");
        for protocol in ["tcp", "udp"] {
            elements.push(format!("{ip} . {protocol} . {SERVICE_PORT} : goto r{n}"));
        }
    }
    let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    let _ = write!(
        rules,
        "  map services {{\n    type {address} . inet_proto . inet_service : verdict\n    elements = {{ {} }}\n  \
         }}\n  chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    {family} daddr . \
         meta l4proto . th dport vmap @services\n  }}\n  chain postrouting {{\n    type nat hook postrouting priority \
         srcnat; policy accept;\n    oifname \"{UPLINK}\" {family} saddr {cluster} {family} daddr != {cluster} \
         masquerade\n  }}\n}}\n",
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

    fn set_churn(&mut self, on: bool) -> bool {
        self.changer.iter().for_each(|changer| changer.orders.set(on));
        self.changer.is_some()
    }

    /// The kernel does nothing without packets, and kube-proxy next to nothing. A new namespace would know no connection.
    fn rest(&mut self) -> Result<bool, DeviceError> {
        conntrack::flush(self.ground.node())?;
        Ok(self.changer.is_none())
    }

    fn hint(&mut self) -> String {
        let said = self.proxy.as_ref().map_or_else(String::new, |proxy| format!("; {}", proxy.log_tail(5)));
        self.ground.what_ends_saw() + &said
    }

    fn finish(self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        drop(self.proxy);
        let mut words = Vec::new();
        if let Some(changer) = self.changer {
            changer.orders.stop();
            let device = self.rules.device().to_owned();
            let died =
                |_| DeviceError::Broken { device, what: "the thread that moves routes has died".to_owned() };
            words.push(format!(
                "{} changes of routes while packets flowed",
                changer.thread.join().map_err(died)??
            ));
        }
        words.extend(self.ground.close_checked(self.rules.device())?);
        Ok(words)
    }
}
