//! Pod to stations outside the cluster: the source is translated to the node's address and another port.

use super::{Around, POD_PORTS, Route, Site, from_client};

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.outside, POD_PORTS)
}
