//! Leaving attachments to the process's next image: what replaces it by exec.
//!
//! Only the links go across. They keep the former program attached, and that keeps its maps, through which
//! packets reach the sockets all the while. The next image loads its own program, which may be a newer one, fills
//! its maps, and then has each link change over: an exchange of one pointer, no packet sees a netdev without
//! program, and drivers do not reset for it.

use super::{Attachment, Port, PortClass, Steering, SteeringError, link};
use crate::af_xdp::{AfXdpQueue, netdev};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// All about an attachment that its link does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// The link.
    pub fd: RawFd,
    /// What is attached.
    pub attachment: Attachment,
    /// What the netdev is to Fairway.
    pub class: PortClass,
}

impl Steering {
    /// What the next image has to know of each attachment.
    pub fn links(&self) -> Vec<LinkState> {
        let state = |port: &Port| LinkState {
            fd: port.link.as_raw_fd(),
            attachment: port.attachment,
            class: port.class,
        };
        self.ports.values().map(state).collect()
    }

    /// Has a link of a former image of this process attach the program loaded here instead of the former one,
    /// with these sockets. Set what uplinks take (see [`Steering::set_node`]) before.
    ///
    /// # Errors
    /// If the netdev is gone, has other queues now, or the kernel refuses; then it is detached, and its packets
    /// pass to the kernel.
    pub fn adopt<'a>(
        &mut self,
        ifname: &str,
        state: &LinkState,
        link: OwnedFd,
        queues: impl IntoIterator<Item = &'a (u32, RawFd)>,
    ) -> Result<(), SteeringError> {
        let Attachment { ifindex, queues: count, .. } = state.attachment;
        if netdev::ifindex(ifname) != Some(ifindex) {
            return Err(SteeringError::NoInterface { ifname: ifname.to_owned() });
        }
        let slots = super::MAX_SOCKETS;
        let xsk_base = self.free_slots(count).ok_or(SteeringError::Full { queues: count, slots })?;
        self.port_map
            .insert(ifindex, [state.class.number(), xsk_base, count], 0)
            .map_err(|error| SteeringError::map("fw_ports", &error))?;
        let (attachment, class) = (state.attachment, state.class);
        self.ports.insert(ifindex, Port { attachment, class, xsk_base, link });
        let changed_over = queues
            .into_iter()
            .try_for_each(|(queue, fd)| self.register(ifindex, *queue, *fd))
            .and_then(|()| self.change_over(ifname, ifindex));
        if changed_over.is_err() {
            self.detach(ifindex)?;
        }
        changed_over
    }

    fn change_over(&self, ifname: &str, ifindex: u32) -> Result<(), SteeringError> {
        let port = self.ports.get(&ifindex).ok_or(SteeringError::NotAttached { ifindex })?;
        link::replace(port.link.as_fd(), self.program.as_fd())
            .map_err(|source| SteeringError::Replace { ifname: ifname.to_owned(), source })
    }
}

/// Whether a netdev is what it was when the program was attached.
pub fn is_unchanged(ifname: &str, attachment: &Attachment) -> bool {
    netdev::ifindex(ifname) == Some(attachment.ifindex)
        && netdev::rx_queues(ifname).is_ok_and(|queues| queues == attachment.queues)
}

/// Queue and socket of each of a port's queues, for [`Steering::adopt`].
pub fn sockets<'a>(queues: impl IntoIterator<Item = &'a AfXdpQueue>) -> Vec<(u32, RawFd)> {
    queues.into_iter().map(|queue| (queue.queue_id(), queue.raw_fd())).collect()
}
