//! Pod to the pods of another node, encapsulated on the way.

use super::{Route, Site, from_client};
use crate::pktgen::ranges::Ports;

pub(super) fn route(site: &Site) -> Route {
    from_client(site, site.remote_pods, Ports { first: 9000, count: 1000 })
}
