//! Node ports for the node's own processes: loading the cgroup programs, and their maps.
//!
//! A packet that a process sends to an address of its own node stays in the kernel, and no route or XDP program sees it.
//! So the programs (`pmd/bpf/node_ports.bpf.c`) act earlier, where a socket connects or sends: one that asks for a
//! node port on such an address is turned to an address that the kernel routes to the engine. Nothing but sockets of the
//! network namespace in which [`NodePorts::attach`] was called is touched, and all ends with the process, since
//! nothing is pinned.

// UNSAFETY: getsockopt takes a pointer.
#![allow(unsafe_code)]

use crate::steering::{Frontend, SteeringError, address_key, sync_frontends};
use aya::maps::{Array, HashMap as BpfHashMap, MapData};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Names of the programs in the object.
const PROGRAMS: [&str; 8] = [
    "fw_connect4",
    "fw_connect6",
    "fw_sendmsg4",
    "fw_sendmsg6",
    "fw_recvmsg4",
    "fw_recvmsg6",
    "fw_getpeer4",
    "fw_getpeer6",
];
/// `MAX_NODE_PORTS` of the programs.
const MAX_NODE_PORTS: usize = 65_536;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node_ports.bpf.o"));

/// Why the node's own processes cannot be turned to the engine.
#[derive(Debug, thiserror::Error)]
pub enum NodePortsError {
    /// There is no cgroup file system of version 2.
    #[error("no cgroup2 file system is mounted; mount one (Kubernetes: hostPath /sys/fs/cgroup)")]
    NoCgroup,
    /// It cannot be opened, or the network namespace not be told.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not take the programs.
    #[error(transparent)]
    Steering(#[from] SteeringError),
}

/// The attached programs. Dropping it detaches them.
pub struct NodePorts {
    _programs: Ebpf,
    map: BpfHashMap<MapData, [u32; 5], u32>,
    held: BTreeSet<Frontend>,
}

impl NodePorts {
    /// Attaches the programs for sockets of the caller's network namespace, which are turned to these addresses. Needs
    /// CAP_BPF and CAP_NET_ADMIN.
    pub fn attach(target: Ipv4Addr, target6: Ipv6Addr) -> Result<NodePorts, NodePortsError> {
        let cgroup = cgroup_root()?;
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(|error| SteeringError::load(&error))?;
        let object = |part| SteeringError::Object { part };
        let mut take = |part| ebpf.take_map(part).ok_or(object(part));
        let mut config: Array<MapData, [u32; 10]> =
            Array::try_from(take("fw_config")?).map_err(|error| SteeringError::load(&error))?;
        let map =
            BpfHashMap::try_from(take("fw_node_ports")?).map_err(|error| SteeringError::load(&error))?;
        let words = config_words(netns_cookie()?, target, target6);
        config.set(0, words, 0).map_err(|error| SteeringError::map("fw_config", &error))?;
        for name in PROGRAMS {
            let program: &mut CgroupSockAddr =
                ebpf.program_mut(name).ok_or(object(name))?.try_into().map_err(|_| object(name))?;
            program.load().map_err(|error| SteeringError::load(&error))?;
            // A link shares the cgroup with others always; the kernel refuses to be asked for that.
            let attached = program.attach(&cgroup, CgroupAttachMode::Single);
            attached.map_err(|error| SteeringError::load(&error))?;
        }
        Ok(NodePorts { _programs: ebpf, map, held: BTreeSet::new() })
    }

    /// Sets the node ports: addresses of this node, ports, and protocols. Replaces the previous setting by difference.
    ///
    /// # Errors
    /// [`SteeringError::TooManyFrontends`] if they do not fit; then nothing changes.
    pub fn set(&mut self, wanted: BTreeSet<Frontend>) -> Result<(), SteeringError> {
        sync_frontends(&mut self.map, "fw_node_ports", &mut self.held, wanted, MAX_NODE_PORTS)
    }
}

/// `struct config` of the programs.
fn config_words(cookie: u64, target: Ipv4Addr, target6: Ipv6Addr) -> [u32; 10] {
    let mut words = [0; 10];
    let bytes = cookie.to_ne_bytes();
    let (halves, _) = bytes.as_chunks::<4>();
    words[0] = u32::from_ne_bytes(halves[0]);
    words[1] = u32::from_ne_bytes(halves[1]);
    words[2..6].copy_from_slice(&address_key(target.into()));
    words[6..].copy_from_slice(&address_key(target6.into()));
    words
}

/// The root of the unified cgroup hierarchy, wherever it is mounted: every process is in it.
fn cgroup_root() -> Result<File, NodePortsError> {
    const MOUNTS: &str = "/proc/self/mounts";
    let io_error = |what: String| move |source| NodePortsError::Io { what, source };
    let mounts = std::fs::read_to_string(MOUNTS).map_err(io_error(format!("reading {MOUNTS}")))?;
    // Device, mount point, type, and more.
    let of_line = |line: &str| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    };
    let place = mounts.lines().find_map(of_line).ok_or(NodePortsError::NoCgroup)?;
    File::open(&place).map_err(io_error(format!("opening {}", place.display())))
}

/// The number by which the programs know this network namespace.
fn netns_cookie() -> Result<u64, NodePortsError> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let fail =
        |source| NodePortsError::Io { what: "asking for the network namespace's cookie".into(), source };
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .map_err(fail)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which lives through the call.
    let result = unsafe {
        let place = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(fail(io::Error::last_os_error())) }
}
