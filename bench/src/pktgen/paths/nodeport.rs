//! A station outside the cluster to a node port whose backend is a pod on that node: in by the uplink, the destination is
//! translated. The Services' traffic policy is Local, so that stations keep their addresses and no source ports run out;
//! what translating them costs, path `masquerade` shows.

use super::{Around, Route, Site};
use crate::pktgen::ranges::Ports;

pub(super) fn route(site: &Site, around: &Around) -> Route {
    Route {
        src_mac: site.station_mac,
        dst_mac: site.node_mac,
        sources: around.outside,
        destinations: around.node,
        source_ports: Ports { first: 1024, count: 64_512 },
        destination_ports: site.node_ports,
    }
}
