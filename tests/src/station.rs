//! Stations: nodes of the cluster that run no part of Fairway, only a kernel with its own tunnels and routes.

use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::{Process, wait_for};
use crate::programs::{bin_dir, program};
use crate::testbed::{POD_PORT, Testbed};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const VXLAN_IF: &str = "vxlan0";

/// A VXLAN network of the kernel's.
#[derive(Debug, Clone, Copy)]
pub struct VxlanLayout {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub udp_port: u16,
}

/// Another node, as a station knows it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address between the nodes.
    pub ip: Ipv4Addr,
    /// Its VTEP's Ethernet address.
    pub vtep_mac: String,
    /// Its pods.
    pub pod_cidr: String,
}

/// See the module's head. Deleted with its processes when dropped.
#[derive(Debug)]
pub struct Station {
    server: Option<Process>,
    netns: Netns,
    dir: PathBuf,
    ip: Ipv4Addr,
    pod_ip: Ipv4Addr,
}

impl Station {
    /// A station at `ip` that has the pod address `pod_ip` itself. Its device towards the others is the caller's work.
    pub fn new(testbed: &Testbed, name: &str, ip: Ipv4Addr, pod_ip: Ipv4Addr) -> Result<Station> {
        let netns = Netns::create(&format!("{}-{name}", testbed.name()))?;
        netns.ip(["addr", "add", &format!("{pod_ip}/32"), "dev", "lo"])?;
        Ok(Station { server: None, netns, dir: testbed.dir().to_owned(), ip, pod_ip })
    }

    /// A station on the switch, at 192.168.77.`number`.
    pub fn on_switch(testbed: &Testbed, name: &str, number: u8, pod_ip: Ipv4Addr) -> Result<Station> {
        let ip = Ipv4Addr::new(192, 168, 77, number);
        let station = Station::new(testbed, name, ip, pod_ip)?;
        testbed.join_switch(&station.netns, ip)?;
        Ok(station)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address between the nodes.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Its pod's address.
    pub fn pod_ip(&self) -> Ipv4Addr {
        self.pod_ip
    }

    /// Starts the server that pods run, and waits until it listens on [`POD_PORT`] of the pod's address.
    pub fn start_server(&mut self) -> Result<()> {
        self.server = Some(self.start_server_at(&format!("{}:{POD_PORT}", self.pod_ip))?);
        Ok(())
    }

    /// The same with the server at all of the station's addresses, of both families.
    pub fn serve_at_all_addresses(&mut self) -> Result<()> {
        self.server = Some(self.start_server_at(&format!("[::]:{POD_PORT}"))?);
        Ok(())
    }

    /// The same at another address and port, for as long as what is returned lives.
    pub fn start_server_at(&self, listen: &str) -> Result<Process> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut command = self.netns.command(program(&bin_dir()?, "fairway-pod")?);
        command.args(["serve", "--listen", listen, "--name", "station"]);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.join(format!("server-{}-{number}.log", self.netns.name()));
        let mut server = Process::spawn("server on the station", command, &log, true)?;
        wait_for("the station's server listens", Duration::from_secs(10), || {
            server.expect_alive()?;
            Ok(if server.log().contains("listening") { Ok(()) } else { Err("no word yet".to_owned()) })
        })?;
        Ok(server)
    }

    /// Makes the kernel's VXLAN device with the routes, neighbours and forwarding entries that Calico and Flannel
    /// give it: to each peer's pods through the first address of their range. Returns the device's Ethernet address.
    pub fn add_vxlan(&self, layout: VxlanLayout, underlay_if: &str, peers: &[Peer]) -> Result<String> {
        let (vni, port, local) = (layout.vni.to_string(), layout.udp_port.to_string(), self.ip.to_string());
        self.netns.ip([
            "link",
            "add",
            VXLAN_IF,
            "type",
            "vxlan",
            "id",
            &vni,
            "dstport",
            &port,
            "local",
            &local,
            "dev",
            underlay_if,
            "nolearning",
        ])?;
        self.netns.ip(["link", "set", VXLAN_IF, "up"])?;
        for peer in peers {
            let gateway = peer.pod_cidr.split('/').next().unwrap_or_default();
            let to = ["lladdr", &peer.vtep_mac, "dev", VXLAN_IF, "nud", "permanent"];
            self.netns.ip(["neigh", "add", gateway, to[0], to[1], to[2], to[3], to[4], to[5]])?;
            let source = self.pod_ip.to_string();
            self.netns.ip([
                "route",
                "add",
                &peer.pod_cidr,
                "via",
                gateway,
                "dev",
                VXLAN_IF,
                "onlink",
                "src",
                &source,
            ])?;
            let node = peer.ip.to_string();
            let fdb = ["fdb", "add", &peer.vtep_mac, "dev", VXLAN_IF, "dst", &node];
            self.netns.run("bridge", &fdb, Duration::from_secs(10))?.success()?;
        }
        let link = self.netns.ip(["-o", "link", "show", VXLAN_IF])?;
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        mac.map(ToOwned::to_owned).ok_or(Error::Answer { what: "ip link show".into(), reason: link.clone() })
    }

    /// Removes the VXLAN device, and with it what leads through it.
    pub fn remove_vxlan(&self) -> Result<()> {
        self.netns.ip(["link", "del", VXLAN_IF]).map(drop)
    }
}
