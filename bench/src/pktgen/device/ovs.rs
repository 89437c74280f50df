//! Open vSwitch's userspace datapath over DPDK's af_xdp driver, without hugepages: one poll-mode thread on the
//! device's core. OpenFlow rules route between the pods by address; Services are destination NAT in its own
//! connection tracking, one backend each. VXLAN would need the uplink in the bridge, and is left out.

use super::ground::{CLIENT, Ground, SERVER, SERVICES};
use super::{Device, DeviceError};
use crate::pktgen::cores::cores;
use crate::pktgen::paths::{BACKEND_PORT, SERVICE_PORT, Site};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::Ends;
use fairway_control::names;
use fairway_tables::Ip;
use fairway_tests::process::{Process, wait_for};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const DATABASE: &str = "/usr/sbin/ovsdb-server";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const READY: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(60);

/// OVS on a testbed.
pub struct OvsDevice {
    // Stopped in this order, before the ground is taken away.
    switch: Process,
    database: Process,
    ground: Ground,
}

impl OvsDevice {
    /// Starts database and switch, and gives the switch ports and rules.
    ///
    /// # Errors
    /// If it is not installed or does not start.
    pub fn start(scenario: &Scenario) -> Result<OvsDevice, DeviceError> {
        let tables = &scenario.tables;
        let changes = tables.changes_per_s + tables.route_changes_per_s;
        if tables.routes > 0 || changes > 0 || tables.backends > 1 || scenario.senders > 1 {
            let why = "it has one sender and one backend per Service here, and tables that do not change; set them so";
            return Err(DeviceError::Unfit { device: "ovs", why });
        }
        if !Path::new(SWITCH).exists() {
            let (device, program) = ("ovs", "ovs-vswitchd-dpdk");
            let package = "openvswitch-switch-dpdk librte-net-af-xdp23";
            return Err(DeviceError::MissingProgram { device, program, package });
        }
        let mut ground = Ground::new(scenario)?;
        let dir = ground.testbed().dir().join("ovs");
        std::fs::create_dir_all(&dir).map_err(DeviceError::io("make a folder for OVS"))?;
        let path = |name: &str| dir.join(name).display().to_string();
        let (socket, file) = (path("db.sock"), path("conf.db"));
        let node = ground.node();
        node.run("ovsdb-tool", &["create", &file, SCHEMA], DEADLINE)?.success()?;
        let mut command = node.command(DATABASE);
        command.args([&file, &format!("--remote=punix:{socket}"), &format!("--pidfile={}", path("db.pid"))]);
        let mut database = spawn("ovsdb-server", command, &dir)?;
        wait_for("OVS's database listens", READY, || {
            database.expect_alive()?;
            Ok(if Path::new(&socket).exists() { Ok(()) } else { Err("no socket yet".to_owned()) })
        })?;
        let vsctl = Vsctl { ground: &ground, db: format!("--db=unix:{socket}") };
        vsctl.run(&["init"])?;
        vsctl.run(&[
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            &dpdk_extra(&ground),
            &pmd_mask(),
        ])?;
        let mut command = ground.node().command(SWITCH);
        command.args([&format!("unix:{socket}"), &format!("--pidfile={}", path("switch.pid"))]);
        let mut switch = spawn("ovs-vswitchd", command, &dir)?;
        vsctl.run(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        for (number, veth) in [(1, ground.client_veth()), (2, ground.server_veth())] {
            let (name, devargs) =
                (format!("x{number}"), format!("options:dpdk-devargs=net_af_xdp{number},iface={veth}"));
            let port = format!("ofport_request={number}");
            vsctl.run(&[
                "add-port",
                "br0",
                &name,
                "--",
                "set",
                "Interface",
                &name,
                "type=dpdk",
                &devargs,
                &port,
            ])?;
        }
        wait_for("OVS has both ports", READY, || {
            switch.expect_alive()?;
            let added = switch.log().matches("bridge br0: added interface x").count();
            Ok(if added == 2 { Ok(()) } else { Err(format!("{added} ports")) })
        })?;
        let rules = dir.join("rules");
        std::fs::write(&rules, openflow(tables)).map_err(DeviceError::io("write OpenFlow rules"))?;
        let bridge = format!("unix:{}", path("br0.mgmt"));
        let args = ["-O", "OpenFlow13", "replace-flows", &bridge, &rules.display().to_string()];
        ground.node().run("ovs-ofctl", &args, DEADLINE)?.success()?;
        ground.open_ends()?;
        Ok(OvsDevice { switch, database, ground })
    }
}

fn spawn(name: &str, mut command: std::process::Command, dir: &Path) -> Result<Process, DeviceError> {
    // Sockets and files of a system-wide OVS are not touched.
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
        command.env(variable, dir);
    }
    Ok(Process::spawn(name, command, &dir.join(format!("{name}.log")), true)?)
}

/// The DPDK arguments. Without hugepages memory must be the old kind, or OVS asks for the new kind itself.
fn dpdk_extra(ground: &Ground) -> String {
    let prefix = ground.client_veth();
    format!("other_config:dpdk-extra=\"--no-huge --legacy-mem -m 512 --no-pci --file-prefix={prefix}\"")
}

fn pmd_mask() -> String {
    let core = cores().1.map_or(0, |core| core.id.min(63));
    format!("other_config:pmd-cpu-mask=0x{:x}", 1u64 << core)
}

struct Vsctl<'a> {
    ground: &'a Ground,
    db: String,
}

impl Vsctl<'_> {
    fn run(&self, args: &[&str]) -> Result<(), DeviceError> {
        let all: Vec<&str> =
            [self.db.as_str(), "--no-wait"].into_iter().chain(args.iter().copied()).collect();
        self.ground.node().run("ovs-vsctl", &all, DEADLINE)?.success()?;
        Ok(())
    }
}

/// Services to connection tracking, everything else, and what that has translated, by address.
fn openflow(tables: &TableSizes) -> String {
    let mut rules = String::from("table=0,priority=1,ip,actions=resubmit(,1)\n");
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(rules, "table=0,priority=10,ip,in_port=2,actions=ct(table=1,nat)");
    for n in 0..tables.services {
        let ip = Ipv4Addr::from(SERVICES + n);
        for protocol in ["udp", "tcp"] {
            let _ = writeln!(
                rules,
                "table=0,priority=20,{protocol},nw_dst={ip},tp_dst={SERVICE_PORT},actions=ct(commit,table=1,\
                 nat(dst={SERVER}:{BACKEND_PORT}))"
            );
        }
    }
    for (port, ip) in [(1, CLIENT), (2, SERVER)] {
        let (gateway, mac) = (names::GATEWAY_MAC, names::pod_mac(Ip::v4(ip.octets())));
        let _ = writeln!(
            rules,
            "table=1,priority=1,ip,nw_dst={ip},actions=mod_dl_src:{gateway},mod_dl_dst:{mac},dec_ttl,output:{port}"
        );
    }
    rules
}

impl Device for OvsDevice {
    fn name(&self) -> &'static str {
        "ovs"
    }

    fn site(&self) -> Site {
        self.ground.site()
    }

    fn ends(&mut self) -> &mut Ends {
        self.ground.ends()
    }

    fn hint(&mut self) -> String {
        format!("{}; OVS says: {}", self.ground.what_ends_saw(), self.switch.log_tail(10))
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        // How they end is their own affair.
        self.switch.stop();
        self.database.stop();
        self.ground.close_checked("ovs")
    }
}
