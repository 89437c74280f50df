//! Pod to pod on the same node. A thousand destination ports give room for 4 million flows.

use super::{Around, POD_PORTS, Route, Site, from_client};

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.server, POD_PORTS)
}
