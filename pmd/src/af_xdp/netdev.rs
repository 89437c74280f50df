//! What the driver asks about a netdev: its index, its receive queues, its interrupt deferral; and whether
//! the process may open sockets on it.

// UNSAFETY: `if_nametoindex` and the ethtool ioctl take pointers.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GRXRINGS: u32 = 0x2d;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Index of a netdev in the caller's network namespace, or `None` if there is no such netdev.
pub fn ifindex(ifname: &str) -> Option<u32> {
    let name = CString::new(ifname).ok()?;
    // SAFETY: a NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// The head of `struct ethtool_rxnfc`, padded to its size.
#[repr(C)]
struct RxRings {
    cmd: u32,
    flow_type: u32,
    data: u64,
    rest: [u64; 32],
}

/// Number of receive queues of a netdev. A driver that reports none has one.
pub(crate) fn rx_queues(ifname: &str) -> io::Result<u32> {
    let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: `Channels` is the structure that this command reads and writes.
    match unsafe { ethtool(ifname, (&raw mut channels).cast()) } {
        Ok(()) => return Ok((channels.rx + channels.combined).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    let mut rings = RxRings { cmd: ETHTOOL_GRXRINGS, flow_type: 0, data: 0, rest: [0; 32] };
    // SAFETY: `RxRings` is at least as long as the structure that this command reads and writes.
    match unsafe { ethtool(ifname, (&raw mut rings).cast()) } {
        Ok(()) => Ok((rings.data as u32).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(error),
    }
}

/// # Safety
/// `data` points to the structure of the ethtool command in its first word.
unsafe fn ethtool(ifname: &str, data: *mut libc::c_char) -> io::Result<()> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that nobody else knows.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: integers, arrays and a pointer, for all of which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if ifname.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data;
    // SAFETY: `request` is complete, and `data` is what the command wants (the caller).
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets how long the kernel leaves the netdev's interrupts off between busy polls. Sysfs may be mounted for
/// another network namespace and show another netdev under this name, so the index is compared first.
pub(super) fn defer_interrupts(ifname: &str, ifindex: u32, polls: u32, timeout_ns: u64) -> io::Result<()> {
    let dir: PathBuf = Path::new("/sys/class/net").join(ifname);
    let shown = std::fs::read_to_string(dir.join("ifindex"))?;
    if shown.trim().parse() != Ok(ifindex) {
        return Err(io::Error::other("/sys is mounted for another network namespace"));
    }
    std::fs::write(dir.join("napi_defer_hard_irqs"), polls.to_string())?;
    std::fs::write(dir.join("gro_flush_timeout"), timeout_ns.to_string())
}

/// A capability by number and name (`linux/capability.h`).
pub(crate) type Capability = (u32, &'static str);
pub(crate) const CAP_NET_ADMIN: Capability = (12, "CAP_NET_ADMIN");
pub(crate) const CAP_NET_RAW: Capability = (13, "CAP_NET_RAW");
pub(crate) const CAP_BPF: Capability = (39, "CAP_BPF");
const CAP_SYS_ADMIN: u32 = 21;

/// Those of `wanted` that the calling thread lacks, by name, joined by commas; `None` if it has them all.
pub(crate) fn missing_capabilities(wanted: &[Capability]) -> Option<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    let has = |number: u32| effective & 1 << number != 0;
    let missing: Vec<&str> = wanted
        .iter()
        // CAP_SYS_ADMIN includes what CAP_BPF was split from.
        .filter(|(number, _)| !(has(*number) || *number == CAP_BPF.0 && has(CAP_SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}
