//! Network namespaces: made, entered, deleted, and swept up after runs that died without a chance to.

use crate::error::{Error, Result};
use crate::process::{self, Output};
use crate::sys;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NETNS_DIR: &str = "/run/netns";
const IP_DEADLINE: Duration = Duration::from_secs(20);

/// All names of namespaces and folders that testbeds make start with this.
pub(crate) const PREFIX: &str = "fairway-";

/// A named network namespace. Deleted, with every process in it, when dropped, unless released.
#[derive(Debug)]
pub struct Netns {
    name: String,
    released: bool,
}

/// One end of a veth.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address; `None`: the kernel draws one.
    pub mac: Option<&'a str>,
}

impl Netns {
    /// Makes a namespace with its loopback up, IPv6 and packet forwarding by the kernel off.
    ///
    /// IPv6 is off so that router solicitations and the like do not appear among the counters of a
    /// testbed that speaks IPv4; forwarding is off so that nothing but the engine can carry a packet
    /// from one device to another.
    pub fn create(name: &str) -> Result<Netns> {
        ip(["netns", "add", name])?;
        let netns = Netns { name: name.to_owned(), released: false };
        netns.inside(|| {
            let off = |path: &str, value: &str| match std::fs::write(path, value) {
                // A kernel without IPv6 has nothing to turn off.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other.map_err(Error::io(format!("set {path} to {value}"))),
            };
            off("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
            off("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
            off("/proc/sys/net/ipv4/ip_forward", "0")
        })??;
        netns.ip(["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run `program` inside the namespace.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }

    /// Runs a program inside the namespace to its end.
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str], deadline: Duration) -> Result<Output> {
        let mut command = self.command(program);
        command.args(args);
        process::run(command, deadline)
    }

    /// Runs `ip` upon the namespace.
    pub fn ip<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(args);
        process::run(command, IP_DEADLINE)?.success()
    }

    /// Adds a veth, up at neither end, whose peer is in another namespace.
    pub fn add_veth(
        &self,
        end: VethEnd<'_>,
        peer: &Netns,
        other: VethEnd<'_>,
        mtu: u32,
        queues: u32,
    ) -> Result<()> {
        let (mtu, queues) = (mtu.to_string(), queues.to_string());
        let what = |end: VethEnd<'_>| {
            let words = ["name", end.name, "mtu", &mtu, "numtxqueues", &queues, "numrxqueues", &queues];
            let mac = end.mac.into_iter().flat_map(|mac| ["address", mac]);
            words.into_iter().chain(mac).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "link", "add"]).args(what(end)).args(["type", "veth", "peer"]);
        command.args(what(other)).args(["netns", peer.name()]);
        process::run(command, IP_DEADLINE)?.success().map(drop)
    }

    /// Adds a bridge that forwards at once, and everything, as a switch does: no spanning tree, no multicast snooping, no packet
    /// filter.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        let quick = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "link", "add", "name", name, "type", "bridge"]).args(quick);
        process::run(command, IP_DEADLINE)?.success()?;
        self.inside(|| {
            for filter in ["iptables", "ip6tables", "arptables"] {
                // Without br_netfilter there is no such setting, and no need of it.
                let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{filter}"), "0");
            }
        })?;
        self.ip(["link", "set", name, "up"]).map(drop)
    }

    /// Calls `work` on a thread that is inside the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = path_of(&self.name);
        let file = File::open(&path).map_err(Error::io(format!("open {}", path.display())))?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                sys::enter_netns(&file).map_err(Error::io(format!("enter {}", path.display())))?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lets the namespace live on after this value is dropped.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.released {
            delete(&self.name);
        }
    }
}

/// Runs `ip` in this process's own namespace.
fn ip<const N: usize>(args: [&str; N]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(args);
    process::run(command, IP_DEADLINE)?.success()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Names of all namespaces on the machine that testbeds have made, dead or alive.
pub fn existing() -> Vec<String> {
    let entries = std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.sort();
    names
}

/// Process ids of all processes inside a namespace. A namespace that is gone has none.
pub fn pids(name: &str) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt;
    let Ok(target) = std::fs::metadata(path_of(name)) else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let netns = std::fs::metadata(format!("/proc/{pid}/ns/net"));
        netns.is_ok_and(|own| own.ino() == target.ino() && own.dev() == target.dev())
    })
    .collect()
}

/// Kills what still runs in a namespace and deletes it. Part of the way out: works on during a
/// termination signal, and goes on past whatever is already gone.
pub(crate) fn delete(name: &str) {
    for pid in pids(name) {
        let _ = sys::signal(pid, libc::SIGKILL);
    }
    // Not through `process::run`, which gives up once a termination signal has come.
    let output = Command::new("ip").args(["netns", "del", name]).output();
    if let Ok(output) = output
        && !output.status.success()
        && path_of(name).exists()
    {
        eprintln!("cannot delete namespace {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
}

/// The pid in a testbed's name, `fairway-<pid>-<number>…`; `None` for names of another form, such as
/// those of a testbed that was left running on purpose.
pub(crate) fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    Some(pid)
}

/// Deletes namespaces and folders of testbeds whose process has died without cleaning up, and returns
/// their names.
pub fn sweep() -> Vec<String> {
    let dead = |name: &String| owner(name).is_some_and(|pid| process::start_time(pid).is_none());
    let mut swept: Vec<String> = existing().into_iter().filter(dead).collect();
    for name in &swept {
        delete(name);
    }
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Two sweeps may meet at the same folder; the second finds it gone.
        if dead(&name) && std::fs::remove_dir_all(entry.path()).is_ok() {
            swept.push(name);
        }
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_pid_and_a_number_have_an_owner() {
        assert_eq!(owner("fairway-123-0-node-1"), Some(123));
        assert_eq!(owner("fairway-123-0"), Some(123));
        assert_eq!(owner("fairway-demo-node-1"), None);
        assert_eq!(owner("fairway-123-node"), None);
        assert_eq!(owner("other-123-0"), None);
    }
}
