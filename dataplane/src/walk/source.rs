//! May this packet come from where it came? (RFC 2827, RFC 1812 section 5.3.7/5.3.8.)

use crate::conntrack::Tuple;
use crate::family::Parcel;
use crate::parse::Ingress;
use crate::wire::{ipv4, ipv6};
use fairway_tables::{DropReason, Ip, NextHopKind, PortKind, View};

/// Refuses martians, pods that send from an address not theirs, nodes that send for pods not theirs, and a
/// host that sends from a pod's address.
pub(super) fn check(tables: View<'_>, ingress: &Ingress, packet: &impl Parcel) -> Result<(), DropReason> {
    let Tuple { src, dst, .. } = packet.tuple();
    if is_martian(src) || is_martian(dst) {
        return Err(DropReason::Martian);
    }
    let honest = match ingress.kind {
        PortKind::Pod => tables.endpoint(src).is_some_and(|endpoint| endpoint.port == ingress.port),
        PortKind::Host => tables.endpoint(src).is_none(),
        PortKind::Uplink => {
            let node = Ip::v4(packet.outer().to_ne_bytes());
            if tables.tunnel(node).is_none() {
                return Err(DropReason::UnknownVtep);
            }
            tables.route(src).is_some_and(|hop| hop.kind() == Some(NextHopKind::Tunnel) && hop.addr == node)
        }
    };
    if honest { Ok(()) } else { Err(DropReason::SpoofedSource) }
}

/// Whether no packet to forward may have this source or destination.
fn is_martian(ip: Ip) -> bool {
    match ip.as_v4() {
        Some(octets) => ipv4::is_martian(u32::from_ne_bytes(octets)),
        None => ipv6::is_martian(&ip.0),
    }
}
