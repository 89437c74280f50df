//! Turns off the transmit offloads of a device: AF_XDP carries no checksum state and no segments larger
//! than the MTU. (`ethtool -k` of Linux 6.18 goes on to show segmentation with AccECN, which this interface does not
//! reach; it does nothing without plain segmentation.)

// UNSAFETY: the ethtool settings are reached by ioctl(2) alone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// ETHTOOL_STXCSUM, ETHTOOL_SSG, ETHTOOL_STSO, ETHTOOL_SGSO (linux/ethtool.h). Segmentation comes first: it rests on
/// the others.
const COMMANDS: [(&str, u32); 4] =
    [("tso", 0x1f), ("gso", 0x24), ("scatter-gather", 0x19), ("tx checksum", 0x17)];
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// An offload stays on.
#[derive(Debug, thiserror::Error)]
#[error("cannot turn off {offload} of {device}: {error}; run fairway-control as root or with CAP_NET_ADMIN")]
pub struct OffloadError {
    offload: &'static str,
    device: String,
    error: io::Error,
}

/// struct ethtool_value.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Turns off checksum, scatter-gather and segmentation offloads of what the device sends.
pub(super) fn turn_off(device: &str) -> Result<(), OffloadError> {
    for (offload, set) in COMMANDS {
        // The command before "set" is "get". A veth whose peer has an XDP program has no segmentation left to
        // turn off, and the kernel refuses the request.
        let get = set - 1;
        let off = ethtool(device, get).and_then(|value| match value {
            0 => Ok(()),
            _ => ethtool(device, set).and_then(|_| match ethtool(device, get)? {
                0 => Ok(()),
                // The kernel may accept the request and leave the offload on.
                _ => Err(io::Error::other("the device does not let go of it")),
            }),
        });
        off.map_err(|error| OffloadError { offload, device: device.to_owned(), error })?;
    }
    Ok(())
}

/// Runs a command with the value 0 and returns the value that comes back.
fn ethtool(device: &str, command: u32) -> io::Result<u32> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut value = EthtoolValue { command, data: 0 };
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads an ifreq whose data points at an ethtool_value; both outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } {
        0 => Ok(value.data),
        _ => Err(io::Error::last_os_error()),
    }
}
