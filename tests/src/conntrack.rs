//! The kernel's connection table of a namespace.

use crate::error::{Error, Result};
use crate::netns::Netns;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x0102;
/// `NLM_F_REQUEST` and `NLM_F_ACK`.
const FLAGS: u16 = 0x5;
/// Type of the message that says how a request ended.
const NLMSG_ERROR: u16 = 2;
/// A header, and a `nfgenmsg` of all families; no attribute, so that all connections are meant.
const LEN: usize = 20;

fn flush_request() -> [u8; LEN] {
    let mut request = [0; LEN];
    request[..4].copy_from_slice(&(LEN as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&DELETE.to_ne_bytes());
    request[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
    request
}

/// What an answer says of the request.
fn verdict(answer: &[u8]) -> io::Result<()> {
    match (answer.get(4..6), answer.get(16..LEN)) {
        (Some(kind), Some(&[a, b, c, d])) if kind == NLMSG_ERROR.to_ne_bytes() => {
            match i32::from_ne_bytes([a, b, c, d]) {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(-error)),
            }
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no acknowledgment")),
    }
}

/// Has the namespace's kernel forget all connections.
pub fn flush(netns: &Netns) -> Result<()> {
    let flush = || {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&flush_request(), 0)?;
        verdict(&socket.recv_from_full()?.0)
    };
    netns.inside(flush)?.map_err(Error::io("empty the kernel's connection table"))
}

/// How many connections the namespace's kernel knows.
pub fn count(netns: &Netns) -> Result<u32> {
    let read =
        || -> io::Result<u32> { std::fs::read_to_string(COUNT)?.trim().parse().map_err(io::Error::other) };
    netns.inside(read)?.map_err(Error::io(format!("read {COUNT}")))
}
