//! Giving queues that were open already to workers: those that a former image of this process left, or this
//! one's own after it could not be replaced.

use super::ports::class_of;
use crate::crew::Crew;
use fairway_pmd::Queue;
use fairway_pmd::af_xdp::AfXdpQueue;
use fairway_pmd::steering::{self, LinkState};
use fairway_tables::{Port, PortId, PortKind, View};
use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};

/// A port that workers serve with queues taken over, its attachment not yet taken over.
pub(super) struct Resumed {
    pub(super) id: PortId,
    pub(super) port: Port,
    pub(super) state: LinkState,
    pub(super) link: OwnedFd,
    /// Number and descriptor of each of its sockets.
    pub(super) sockets: Vec<(u32, RawFd)>,
}

/// Queues by port, in the order of their numbers.
fn by_port(queues: Vec<AfXdpQueue>) -> BTreeMap<u16, Vec<AfXdpQueue>> {
    let mut ports: BTreeMap<u16, Vec<AfXdpQueue>> = BTreeMap::new();
    for queue in queues {
        ports.entry(queue.port()).or_default().push(queue);
    }
    ports.values_mut().for_each(|queues| queues.sort_by_key(AfXdpQueue::queue_id));
    ports
}

/// A port and its queues, as workers take them.
type Given = (PortId, PortKind, Vec<Box<dyn Queue>>);

fn given(id: PortId, kind: PortKind, queues: Vec<AfXdpQueue>) -> Given {
    let boxed = |queue| Box::new(queue) as Box<dyn Queue>;
    (id, kind, queues.into_iter().map(boxed).collect())
}

/// Has workers serve the queues that a former image left, if the tables list their ports as they were and their
/// netdevs are the same. The rest is closed, and its frames come home.
pub(super) fn resume(
    queues: Vec<AfXdpQueue>,
    links: Vec<(LinkState, OwnedFd)>,
    tables: View<'_>,
    crew: &Crew,
) -> Vec<Resumed> {
    let mut links: BTreeMap<u32, (LinkState, OwnedFd)> =
        links.into_iter().map(|link| (link.0.attachment.ifindex, link)).collect();
    let (mut resumed, mut given_back, mut unfit) = (Vec::new(), Vec::new(), Vec::new());
    for (id, queues) in by_port(queues) {
        let id = PortId(id);
        let link = queues.first().and_then(|queue| links.remove(&queue.ifindex()));
        match (tables.port(id), link) {
            (Some(port), Some((state, link))) if fits(&port, &state, &queues) => {
                let sockets = steering::sockets(&queues);
                if let Some(kind) = port.kind() {
                    given_back.push(given(id, kind, queues));
                }
                resumed.push(Resumed { id, port, state, link, sockets });
            }
            (_, link) => {
                tracing::info!(port = id.0, "port is not what it was; it closes");
                unfit.push((link, queues));
            }
        }
    }
    // Packets have been waiting on all of them, and may be for any: all at once.
    crew.open_ports(given_back);
    // Closing takes its time: after all others forward again. Attachments first, so that packets go to the
    // kernel before their sockets are gone.
    drop(links);
    drop(unfit);
    resumed
}

fn fits(port: &Port, state: &LinkState, queues: &[AfXdpQueue]) -> bool {
    port.kind().map(class_of) == Some(state.class)
        && steering::is_unchanged(port.ifname(), &state.attachment)
        && queues.iter().map(AfXdpQueue::queue_id).eq(0..state.attachment.queues)
}

/// Has workers serve this process's own queues again. Those of ports that are no more are closed.
pub(super) fn go_on(queues: Vec<AfXdpQueue>, kind: impl Fn(PortId) -> Option<PortKind>, crew: &Crew) {
    let ports = by_port(queues).into_iter().map(|(id, queues)| (PortId(id), queues));
    crew.open_ports(ports.filter_map(|(id, queues)| Some(given(id, kind(id)?, queues))));
}
