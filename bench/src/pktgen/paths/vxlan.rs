//! Pod to the pods of another node, by VXLAN over IPv4.

use super::{Around, POD_PORTS, Route, Site, from_client};

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.vxlan_pods, POD_PORTS)
}
