//! Leaving open sockets to the process's next image: what replaces it by exec, and finds the descriptors still
//! open but all memory gone.
//!
//! A socket's rings are the kernel's memory and are mapped again (Linux 6.4 or later allows that for a bound
//! socket); the cursors are in them. The frames' memory has a descriptor of its own. What only the process knew is
//! where each chunk is: that goes across as one owner per chunk, so that a chunk cannot come to be in two places
//! whatever the account says, and none comes back that had been lost (invariant I1).

use super::fill::Fill;
use super::held::{BoundSocket, InKernel};
use super::open::RingSizes;
use super::queue::{AfXdpQueue, Rings};
use super::sys::Socket;
use super::{AfXdp, AfXdpError, Mode};
use crate::lent::Lent;
use crate::pool::FrameCache;
use crate::queue::QueueStats;
pub use crate::umem::{HOME, LOST, Owner};
use crate::umem::{Umem, UmemConfig, UmemError};
use serde::{Deserialize, Serialize};
use std::os::fd::{OwnedFd, RawFd};

/// All about a queue that its socket and the frames' owners do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The socket.
    pub fd: RawFd,
    /// Index of the netdev.
    pub ifindex: u32,
    /// Its receive queue.
    pub queue: u32,
    /// Number under which the tables know the port.
    pub port: u16,
    zero_copy: bool,
    rings: RingSizes,
    fill: Fill,
    filling: u32,
    sending: u32,
    busy_poll: bool,
    stats: QueueStats,
}

impl AfXdpQueue {
    /// What the next image has to know. The queue must not be used any more if it takes over.
    pub fn state(&self) -> QueueState {
        QueueState {
            fd: self.socket.fd,
            ifindex: self.kernel.ifindex,
            queue: self.kernel.queue,
            port: self.port,
            zero_copy: self.mode == Mode::ZeroCopy,
            rings: self.rings.sizes(),
            fill: self.fill,
            filling: self.filling,
            sending: self.sending,
            busy_poll: self.busy_poll,
            stats: self.stats,
        }
    }

    /// Gives the kernel up to `frames` more to receive into, as far as its ring has room: for a time in which nobody
    /// looks after the queue. They come home as packets come.
    pub fn stock_up(&mut self, cache: &mut FrameCache, frames: u32) {
        self.filling += self.rings.prefill(&mut self.kernel.lent, cache, frames);
    }

    fn adopt(af_xdp: &AfXdp, state: &QueueState, fd: OwnedFd, lent: Lent) -> Result<AfXdpQueue, AfXdpError> {
        let QueueState { ifindex, queue, port, .. } = *state;
        let mode = if state.zero_copy { Mode::ZeroCopy } else { Mode::Copy };
        let socket = Socket::adopt(fd);
        let rings = Rings::map(&socket, &state.rings).map_err(|source| AfXdpError::Kernel {
            ifname: format!("with index {ifindex}"),
            queue,
            step: "mapping the rings of an open socket (Linux 6.4 or later)",
            source,
        })?;
        let fd = socket.raw_fd();
        let registry = af_xdp.registry.clone();
        registry.lock().of(mode).push(fd);
        Ok(AfXdpQueue {
            rings,
            socket: BoundSocket { socket: Some(socket), fd, mode, registry },
            kernel: InKernel {
                lent,
                umem: af_xdp.umem.clone(),
                ifindex,
                queue,
                probe: Socket::new().ok(),
                confirm: false,
            },
            port,
            mode,
            fill: state.fill,
            filling: state.filling,
            sending: state.sending,
            busy_poll: state.busy_poll,
            polls_pay: false,
            closed: false,
            down: false,
            skip_kicks: 0,
            stats: state.stats,
        })
    }
}

/// Where each chunk of the UMEM is while no worker runs: at home, with one of `queues` (by place), or lost.
pub fn owners(umem: &Umem, queues: &[&AfXdpQueue]) -> Vec<Owner> {
    let mut owners = umem.owners();
    for (number, queue) in queues.iter().enumerate() {
        let number = Owner::try_from(number).ok().filter(|number| *number < LOST);
        for chunk in queue.kernel.lent.chunks() {
            owners[chunk] = number.unwrap_or(LOST);
        }
    }
    owners
}

/// Takes over frames and sockets from a former image of this process: `memory` is the UMEM's descriptor and
/// `sockets` the queues', each with what was known of it, in the order that `owners` counts them.
///
/// # Errors
/// If any of it does not fit together, or the kernel can't map the rings of a bound socket. Then nothing is
/// taken over, and the process had better begin again without these descriptors: some of the memory may
/// still be in use by the kernel.
pub fn adopt(
    memory: OwnedFd,
    config: UmemConfig,
    owners: &[Owner],
    sockets: Vec<(QueueState, OwnedFd)>,
) -> Result<(AfXdp, Vec<AfXdpQueue>), AdoptError> {
    let (umem, lent) = Umem::adopt(memory, config, owners, sockets.len())?;
    let af_xdp = AfXdp::new(&umem);
    let mut queues = Vec::with_capacity(sockets.len());
    for ((state, fd), lent) in sockets.into_iter().zip(lent) {
        queues.push(AfXdpQueue::adopt(&af_xdp, &state, fd, lent)?);
    }
    Ok((af_xdp, queues))
}

/// Why frames and sockets were not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The frames' memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] AfXdpError),
}
