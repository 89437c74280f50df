//! Why steering failed, and how aya's errors are read.

use aya::maps::MapError;
use std::error::Error;
use std::io;

/// Why the steering program could not be loaded, attached or changed.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The process may not load or attach XDP programs.
    #[error(
        "loading the XDP steering program needs {missing}, which this process lacks; run as root or grant it (Kubernetes: securityContext.capabilities.add)"
    )]
    MissingCapability {
        /// Names of the capabilities.
        missing: String,
    },
    /// The kernel did not take the program.
    #[error(
        "the kernel refuses the XDP steering program: {reason}; it needs Linux 5.18 or later with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS"
    )]
    Load {
        /// The kernel's answer, with the verifier's log if there is one.
        reason: String,
    },
    /// The embedded object is not the one this code belongs to.
    #[error("the embedded XDP object has no {part}; rebuild Fairway")]
    Object {
        /// Program or map that is missing.
        part: &'static str,
    },
    /// There is no netdev of this name.
    #[error(
        "interface {ifname}: no such interface in this network namespace; check its name with `ip link` and that Fairway runs in the right namespace"
    )]
    NoInterface {
        /// Name asked for.
        ifname: String,
    },
    /// Fairway's program is on the netdev already.
    #[error("interface {ifname}: it is a port of Fairway already; list it once")]
    AlreadyAttached {
        /// Name asked for.
        ifname: String,
    },
    /// Another XDP program is on the netdev.
    #[error(
        "interface {ifname}: another XDP program is attached to it (`ip link show {ifname}` and `bpftool net` name it); remove it or leave the interface out"
    )]
    Occupied {
        /// Name asked for.
        ifname: String,
    },
    /// The netdev takes the program in neither mode.
    #[error(
        "interface {ifname}: the XDP program can be attached neither natively ({native}) nor in generic mode ({generic}); a veth needs at least as many rx queues as its peer has tx queues, and `dmesg` may say more"
    )]
    Attach {
        /// Name asked for.
        ifname: String,
        /// Why not natively.
        native: io::Error,
        /// Why not in generic mode.
        generic: io::Error,
    },
    /// The program attached by a former image of this process could not be exchanged.
    #[error("interface {ifname}: the kernel refuses to exchange its XDP program: {source}")]
    Replace {
        /// Name of the netdev.
        ifname: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The number of receive queues could not be had.
    #[error("interface {ifname}: asking for its number of queues: {source}; check it with `ethtool -l`")]
    Queues {
        /// Name asked for.
        ifname: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket map is full.
    #[error(
        "{queues} more receive queues do not fit into the {slots} that steering has room for; lower the number of queues (`ethtool -L`) or of ports"
    )]
    Full {
        /// Queues of the netdev to be attached.
        queues: u32,
        /// Places in the map.
        slots: u32,
    },
    /// The program is not on this netdev.
    #[error("interface with index {ifindex}: the steering program is not attached to it; attach it first")]
    NotAttached {
        /// Index asked for.
        ifindex: u32,
    },
    /// The netdev has no such queue.
    #[error("interface with index {ifindex}: it has no queue {queue}, only {queues}")]
    NoQueue {
        /// Index of the netdev.
        ifindex: u32,
        /// Queue asked for.
        queue: u32,
        /// Queues that it has.
        queues: u32,
    },
    /// More node addresses or tunnel ports than the program has room for.
    #[error(
        "{addresses} node addresses and {ports} tunnel ports: steering has room for 256 and 16; leave some out"
    )]
    TooMany {
        /// Addresses asked for.
        addresses: usize,
        /// Ports asked for.
        ports: usize,
    },
    /// More addresses and ports of services than the program has room for.
    #[error(
        "{frontends} addresses and ports of services: steering has room for {room}; node ports on fewer addresses (fairway-control --nodeport-addresses) need fewer"
    )]
    TooManyFrontends {
        /// Frontends asked for.
        frontends: usize,
        /// Places in the map.
        room: usize,
    },
    /// More IP protocols or pod prefixes than the program has room for.
    #[error(
        "{protocols} IP protocols and {prefixes} pod prefixes: steering has room for 4 and 1024; leave some out"
    )]
    TooManyDestinations {
        /// Protocols asked for.
        protocols: usize,
        /// Prefixes asked for.
        prefixes: usize,
    },
    /// More translated sources than the program has room for.
    #[error("{addresses} source addresses for translated packets: steering has room for 16; leave some out")]
    TooManySources {
        /// Addresses asked for.
        addresses: usize,
    },
    /// The kernel refused a change of a map.
    #[error("changing the map {map} of the steering program: {reason}")]
    Map {
        /// Which map.
        map: &'static str,
        /// The kernel's answer.
        reason: String,
    },
}

impl SteeringError {
    pub(crate) fn load(error: &(dyn Error + 'static)) -> SteeringError {
        SteeringError::Load { reason: describe(error) }
    }

    pub(crate) fn map(map: &'static str, error: &MapError) -> SteeringError {
        SteeringError::Map { map, reason: describe(error) }
    }
}

/// An error with all its causes in one line.
fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The kernel's answer at the bottom of an error.
fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        cause = error.source();
    }
    None
}

/// Whether the error says that there was nothing to remove.
pub(super) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || errno(error) == Some(libc::ENOENT)
}
