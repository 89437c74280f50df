//! Pod to the pods of another node, in IPv4 (RFC 2003). IPv4 only.

use super::{Around, POD_PORTS, Route, Site, from_client};

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.ipip_pods, POD_PORTS)
}
