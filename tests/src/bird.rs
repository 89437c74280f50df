//! Real BIRD 2 daemons in namespaces: a node's, which announces its pods' block, and a router's, which reflects routes.
//! The configurations are those of `docs/bgp.md`, with short timers.

use crate::error::Result;
use crate::netns::Netns;
use crate::process::Process;
use crate::testbed::Testbed;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Number of the autonomous system; a private one (RFC 6996).
pub(crate) const AS: u32 = 64512;

/// A BIRD daemon. Stopped when dropped.
#[derive(Debug)]
pub struct Bird {
    process: Process,
    socket: PathBuf,
}

impl Bird {
    /// Starts BIRD in a namespace.
    pub fn start(testbed: &Testbed, netns: &Netns, name: &str, config: &str) -> Result<Bird> {
        let file = |suffix: &str| testbed.dir().join(format!("bird-{name}.{suffix}"));
        let (conf, socket) = (file("conf"), file("ctl"));
        std::fs::write(&conf, config).map_err(crate::Error::io(format!("write {}", conf.display())))?;
        let mut command = netns.command("bird");
        command.arg("-f").arg("-c").arg(&conf).arg("-s").arg(&socket);
        let process = Process::spawn(&format!("bird of {name}"), command, &file("log"), true)?;
        Ok(Bird { process, socket })
    }

    /// Ends it as a crash would: its sessions break, and what it put into the kernel stays.
    pub fn kill(mut self) {
        self.process.kill();
        // A crashed daemon's socket must not stand in the way of the next one.
        let _ = std::fs::remove_file(&self.socket);
    }

    /// An error if it has ended by itself.
    pub fn expect_alive(&mut self) -> Result<()> {
        self.process.expect_alive()
    }
}

/// The configuration of a node: it announces `pods` and takes all parts of `pool` from its neighbours.
pub fn node_config(ip: Ipv4Addr, pods: &str, pool: &str, neighbours: &[Ipv4Addr]) -> String {
    let mut config = format!(
        "log stderr all;\nrouter id {ip};\nprotocol device {{}}\n\
         protocol static pods {{\n  ipv4;\n  route {pods} blackhole;\n}}\n\
         protocol kernel {{\n  merge paths on;\n  ipv4 {{ import none; export where source = RTS_BGP; }};\n}}\n\
         template bgp fabric {{\n  local {ip} as {AS};\n  direct;\n{TIMERS}  ipv4 {{\n    \
         import where net ~ [ {pool}+ ];\n    export where proto = \"pods\";\n  }};\n}}\n"
    );
    for (number, neighbour) in neighbours.iter().enumerate() {
        config += &format!("protocol bgp peer{number} from fabric {{ neighbor {neighbour} as {AS}; }}\n");
    }
    config
}

/// The configuration of a route reflector through which the nodes' packets go, too.
pub fn reflector_config(ip: Ipv4Addr, clients: &[Ipv4Addr]) -> String {
    let mut config = format!(
        "log stderr all;\nrouter id {ip};\nprotocol device {{}}\n\
         protocol kernel {{\n  ipv4 {{ import none; export where source = RTS_BGP; }};\n}}\n\
         template bgp fabric {{\n  local {ip} as {AS};\n  direct;\n  rr client;\n{TIMERS}  \
         ipv4 {{ import all; export all; next hop self; }};\n}}\n"
    );
    for (number, client) in clients.iter().enumerate() {
        config += &format!("protocol bgp node{number} from fabric {{ neighbor {client} as {AS}; }}\n");
    }
    config
}

/// Sessions come back within a second or two.
const TIMERS: &str =
    "  connect delay time 1;\n  connect retry time 1;\n  error wait time 1, 2;\n  graceful restart off;\n";
