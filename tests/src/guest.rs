//! A Linux kernel of its own in QEMU, as a node with the tunnels that few test machines' kernels have: `tunl0` (RFC 2003),
//! with the address and routes that Calico gives it, `sit0` (RFC 4213), and an `ip6tnl` device for both families (RFC 2473).
//! The pod behind it is a [`Station`], which it forwards for:
//!
//! ```text
//!  switch ──eth0── guest (tunl0, sit0 or ip6tnl) ──eth1── bridge in the switch's namespace ──eth0── station
//! ```
//! The kernel is Debian's, fetched by `scripts/guest-kernel`; all else in the guest is busybox, this machine's `ip`, and the
//! script below. It needs no KVM: emulated it boots within some seconds.

use crate::dual_stack::allow_ipv6;
use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::{self, Process, wait_for};
use crate::station::{Peer, Station};
use crate::testbed::{Testbed, UPLINK_BRIDGE, offloads_off, switch_port};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";
/// Time for the kernel's download, the first time.
const FETCH_DEADLINE: Duration = Duration::from_secs(180);
/// Time for the guest to boot, on a machine that does other things too.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// Times to try: the emulator of some QEMU versions makes a kernel fail now and then while it boots.
const BOOT_ATTEMPTS: u32 = 6;
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// A kernel that panics ends QEMU. Without 16-byte compare-and-swap, which QEMU 7.2 emulates badly: kernels that use it in
/// their allocators crash.
const MACHINE: [&str; 16] = [
    "-machine",
    "q35",
    "-accel",
    "tcg",
    "-cpu",
    "qemu64,-cx16",
    "-m",
    "256",
    "-nodefaults",
    "-display",
    "none",
    "-no-reboot",
    "-serial",
    "stdio",
    "-append",
    "console=ttyS0 quiet panic=-1",
];
/// Modules in an order in which each finds what it needs.
const MODULES: [&str; 9] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "net/ipv4/tunnel4",
    "net/ipv4/ip_tunnel",
    "net/ipv4/ipip",
    "net/ipv6/sit",
    "net/ipv6/tunnel6",
    "net/ipv6/ip6_tunnel",
];
const READY: &str = "guest is ready";
/// Where the guest has this machine's `ip`.
const REAL_IP_DIR: &str = "/iproute2";
const POD_BRIDGE: &str = "br-guest";

/// By which tunnels the guest reaches pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnels {
    /// IPv4 in IPv4.
    Ipip,
    /// Both families in IPv4.
    OverIpv4,
    /// Both families in IPv6, between fd00:77::`number` and fd00:77::1.
    OverIpv6,
}

/// A guest that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    _qemu: Process,
}

impl Guest {
    /// The folder with the guest's kernel and modules. Downloads them if this machine has none yet.
    ///
    /// # Errors
    /// What is missing here: QEMU, busybox, or a mirror with the kernel.
    pub fn kernel() -> Result<PathBuf> {
        for program in [QEMU, BUSYBOX, "xz"] {
            shell(Path::new("/"), &format!("command -v {program}")).map_err(|_| Error::Answer {
                what: format!("command -v {program}"),
                reason: "it is not installed; scripts/install-deps installs it".to_owned(),
            })?;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-kernel");
        let folder = process::run(Command::new(script), FETCH_DEADLINE)?.success()?;
        Ok(PathBuf::from(folder.trim()))
    }

    /// Boots `kernel` as the node of `station`, with tunnels to the pods of `peer`, and waits until it forwards.
    pub fn boot(
        kernel: &Path,
        testbed: &Testbed,
        station: &Station,
        peer: &Peer,
        tunnels: Tunnels,
    ) -> Result<Guest> {
        let switch = testbed.switch()?;
        let number = station.ip().octets()[3];
        // Named as the switch names its end of other wires.
        let taps = [switch_port(station.ip()), format!("pod{number}")];
        join_station(switch, station)?;
        if tunnels != Tunnels::Ipip {
            give_ipv6(station)?;
        }
        for (tap, bridge) in taps.iter().zip([UPLINK_BRIDGE, POD_BRIDGE]) {
            switch.ip(["tuntap", "add", "dev", tap, "mode", "tap"])?;
            switch.ip(["link", "set", tap, "master", bridge, "up"])?;
        }
        let initramfs = pack(kernel, &testbed.dir().join("guest"), &init(station, peer, tunnels))?;
        let vmlinuz = find(&kernel.join("boot"), "vmlinuz-")?;
        let mut attempt = 1;
        loop {
            let mut command = switch.command(QEMU);
            command.args(MACHINE).arg("-kernel").arg(&vmlinuz).arg("-initrd").arg(&initramfs);
            for (index, tap) in taps.iter().enumerate() {
                // Frames as they are on a wire: no checksums or segments left to the other side.
                let backend = format!("tap,id=n{index},ifname={tap},script=no,downscript=no,vnet_hdr=off");
                let mac = format!("02:00:00:09:{index:02x}:{number:02x}");
                let device = format!("virtio-net-pci,netdev=n{index},mac={mac},romfile=");
                command.args(["-netdev", &backend, "-device", &device]);
            }
            let mut qemu = Process::spawn("guest", command, &testbed.dir().join("guest.log"), true)?;
            let booted = wait_for("the guest boots", BOOT_DEADLINE, || {
                qemu.expect_alive()?;
                Ok(if qemu.log().contains(READY) { Ok(()) } else { Err(qemu.log_tail(20)) })
            });
            match booted {
                Ok(()) => return Ok(Guest { _qemu: qemu }),
                Err(Error::Ended { .. }) if attempt < BOOT_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// The guest's address towards its pod: the first of the range that a peer of it routes to.
fn gateway(station: &Station) -> Ipv4Addr {
    let [a, b, c, _] = station.pod_ip().octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// The wire between the station and the guest.
fn join_station(switch: &Netns, station: &Station) -> Result<()> {
    let (netns, gateway, source) =
        (station.netns(), gateway(station).to_string(), station.pod_ip().to_string());
    switch.add_bridge(POD_BRIDGE)?;
    netns.ip(["link", "add", "eth0", "type", "veth", "peer", "name", "guest-pod", "netns", switch.name()])?;
    switch.ip(["link", "set", "guest-pod", "master", POD_BRIDGE, "up"])?;
    netns.ip(["link", "set", "eth0", "up"])?;
    offloads_off(netns, "eth0")?;
    netns.ip(["route", "add", &gateway, "dev", "eth0", "scope", "link", "src", &source])?;
    netns.ip(["route", "add", "default", "via", &gateway, "dev", "eth0", "src", &source]).map(drop)
}

/// The guest's IPv6 address towards its pod, and the pod's.
fn pods6(station: &Station) -> (String, String) {
    let [_, _, number, pod] = station.pod_ip().octets();
    (format!("fd00:244:{number}::1"), format!("fd00:244:{number}::{pod}"))
}

fn give_ipv6(station: &Station) -> Result<()> {
    let (netns, (gateway, pod)) = (station.netns(), pods6(station));
    allow_ipv6(netns, &["lo", "eth0"])?;
    netns.ip(["addr", "add", &format!("{pod}/128"), "dev", "eth0", "nodad"])?;
    netns.ip(["route", "add", &gateway, "dev", "eth0"])?;
    netns.ip(["route", "add", "default", "via", &gateway, "dev", "eth0"]).map(drop)
}

/// The first program that the guest's kernel runs.
fn init(station: &Station, peer: &Peer, tunnels: Tunnels) -> String {
    let (ip, gateway, pod) = (station.ip(), gateway(station), station.pod_ip());
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t devtmpfs dev /dev && mount -t proc proc /proc\n\
         exec > /dev/ttyS0 2>&1\n\
         for module in /modules/*; do insmod $module; done\n\
         ip link set lo up\n\
         ip addr add {ip}/24 dev eth0 && ip link set eth0 up\n\
         ip addr add {gateway}/32 dev eth1 && ip link set eth1 up && ip route add {pod}/32 dev eth1\n\
         echo 1 > /proc/sys/net/ipv4/ip_forward\n"
    );
    if tunnels != Tunnels::OverIpv6 {
        let _ = write!(
            script,
            "ip link set tunl0 up && ip addr add {gateway}/32 dev tunl0\n\
             ip route add {} via {} dev tunl0 onlink\n",
            peer.pod_cidr, peer.ip
        );
    }
    if tunnels != Tunnels::Ipip {
        script += &init6(station, peer, tunnels);
    }
    let _ = writeln!(script, "ip addr; ip route; ip -6 route; echo {READY}\nwhile :; do sleep 1000; done");
    script
}

/// The part of it that has to do with IPv6. Busybox's own `ip` knows no ip6tnl, and goes before any in the PATH.
fn init6(station: &Station, peer: &Peer, tunnels: Tunnels) -> String {
    let (number, peer_number) = (station.ip().octets()[3], peer.ip.octets()[3]);
    let (gateway, _) = pods6(station);
    let range = format!("fd00:244:{peer_number}::/64");
    let common = format!(
        "ip() {{ {REAL_IP_DIR}/ip \"$@\"; }}\n\
         echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad\n\
         echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n\
         ip addr add {gateway}/64 dev eth1 nodad\n"
    );
    common
        + &match tunnels {
            Tunnels::OverIpv6 => format!(
                "ip addr add fd00:77::{number}/64 dev eth0 nodad\n\
                 ip link add both type ip6tnl mode any local fd00:77::{number} remote fd00:77::{peer_number} dev eth0\n\
                 ip link set both up && ip addr add {v4_gateway}/32 dev both && ip addr add {gateway}/128 dev both nodad\n\
                 ip route add {} dev both && ip -6 route add {range} dev both\n",
                peer.pod_cidr,
                v4_gateway = self::gateway(station),
            ),
            _ => format!(
                "ip link set sit0 up && ip addr add {gateway}/128 dev sit0 nodad\n\
                 ip -6 route add {range} via ::{} dev sit0\n",
                peer.ip
            ),
        }
}

/// Packs the guest's files into an initramfs; returns its path.
fn pack(kernel: &Path, dir: &Path, init: &str) -> Result<PathBuf> {
    let root = dir.join("root");
    let make = |folder: &str| {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))
    };
    for folder in ["bin", "modules", "dev", "proc"] {
        make(folder)?;
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        std::fs::write(&path, bytes).map_err(Error::io(format!("write {}", path.display())))?;
        make_executable(&path)
    };
    write("init", init.as_bytes())?;
    write("bin/busybox", &std::fs::read(BUSYBOX).map_err(Error::io(format!("read {BUSYBOX}")))?)?;
    copy_ip(&root, dir)?;
    let modules = find(&kernel.join("lib/modules"), "")?.join("kernel");
    for (index, module) in MODULES.iter().enumerate() {
        let packed = modules.join(format!("{module}.ko.xz"));
        let name = module.rsplit('/').next().unwrap_or(module);
        let unpacked = root.join(format!("modules/{index}-{name}.ko"));
        shell(dir, &format!("xz -dc '{}' > '{}'", packed.display(), unpacked.display()))?;
    }
    shell(&root, &format!("find . | {BUSYBOX} cpio -o -H newc > ../initramfs"))?;
    Ok(dir.join("initramfs"))
}

/// Copies this machine's `ip` with the libraries that it needs.
fn copy_ip(root: &Path, dir: &Path) -> Result<()> {
    let to = root.display();
    let line = format!(
        "ip=$(readlink -f \"$(command -v ip)\") && mkdir -p {to}{REAL_IP_DIR} && cp \"$ip\" {to}{REAL_IP_DIR}/ip && \
         ldd \"$ip\" | grep -o '/[^ ]*' | while read -r library; do \
         mkdir -p \"{to}$(dirname \"$library\")\" && cp -L \"$library\" \"{to}$library\" || exit 1; done"
    );
    shell(dir, &line)
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).map_err(Error::io(format!("chmod {}", path.display())))
}

fn shell(dir: &Path, line: &str) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(dir);
    process::run(command, COMMAND_DEADLINE)?.success().map(drop)
}

/// The entry of a folder whose name begins so.
fn find(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(format!("read {}", folder.display())))?;
    let mut names = entries.flatten().map(|entry| entry.path());
    let found = names.find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
    });
    found.ok_or_else(|| Error::Answer {
        what: format!("kernel in {}", folder.display()),
        reason: format!("there is no {prefix}*"),
    })
}
