//! Real FRR daemons in namespaces, zebra and bgpd: a router's, which reflects routes. The configuration is that of
//! `docs/bgp.md`, with short timers.

use crate::bird::AS;
use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::{self, Process, wait_for};
use crate::testbed::Testbed;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const FOLDER: &str = "/usr/lib/frr";
const READY: Duration = Duration::from_secs(10);

/// zebra, which puts routes into the kernel, and bgpd. Stopped when dropped.
#[derive(Debug)]
pub struct Frr {
    bgpd: Process,
    zebra: Process,
}

impl Frr {
    /// Whether this machine has FRR.
    pub fn is_installed() -> bool {
        Path::new(FOLDER).join("bgpd").is_file()
    }

    /// Starts both daemons in a namespace, bgpd at this address.
    pub fn start(testbed: &Testbed, netns: &Netns, name: &str, ip: Ipv4Addr, config: &str) -> Result<Frr> {
        let dir = testbed.dir().join(format!("frr-{name}"));
        // The daemons work as a user of their own, to whom sockets and pid files belong.
        let mut make = Command::new("install");
        make.args(["-d", "-o", "frr", "-g", "frr"]).arg(&dir);
        process::run(make, READY)?.success()?;
        let socket = dir.join("zserv.api");
        // A former zebra's socket is no sign that this one is ready.
        let _ = std::fs::remove_file(&socket);
        let start = |daemon: &str, config: &str, args: &[&str]| {
            let conf = dir.join(format!("{daemon}.conf"));
            std::fs::write(&conf, config).map_err(Error::io(format!("write {}", conf.display())))?;
            let path = |suffix: &str| PathBuf::from(&dir).join(format!("{daemon}{suffix}"));
            let mut command = netns.command(Path::new(FOLDER).join(daemon));
            command.args(["--log", "stdout", "-P", "0", "-f"]).arg(&conf).arg("-z").arg(&socket);
            command.arg("-i").arg(path(".pid")).arg("--vty_socket").arg(&dir).args(args);
            Process::spawn(&format!("{daemon} of {name}"), command, &path(".log"), true)
        };
        let mut zebra = start("zebra", "hostname zebra\n", &[])?;
        wait_for("zebra takes clients", READY, || {
            zebra.expect_alive()?;
            Ok(if socket.exists() { Ok(()) } else { Err(zebra.log()) })
        })?;
        let bgpd = start("bgpd", config, &["-l", &ip.to_string()])?;
        Ok(Frr { bgpd, zebra })
    }

    /// Ends both as a crash would, bgpd first, on which zebra takes its routes out of the kernel.
    pub fn kill(mut self) {
        self.bgpd.kill();
        self.zebra.stop();
    }
}

/// The configuration of bgpd on a route reflector through which the nodes' packets go, too.
pub fn reflector_config(ip: Ipv4Addr, clients: &[Ipv4Addr]) -> String {
    let mut config = format!("router bgp {AS}\n bgp router-id {ip}\n");
    // Writing to a String cannot fail.
    for client in clients {
        let _ = write!(config, " neighbor {client} remote-as {AS}\n neighbor {client} timers connect 1\n");
    }
    config += " address-family ipv4 unicast\n";
    for client in clients {
        let _ = write!(
            config,
            "  neighbor {client} route-reflector-client\n  neighbor {client} next-hop-self force\n"
        );
    }
    config + " exit-address-family\n"
}
