//! Pod to pod on the same node. A thousand destination ports give room for 4 million flows.

use super::{Route, Site, from_client};
use crate::pktgen::ranges::{Addresses, Ports};

pub(super) fn route(site: &Site) -> Route {
    from_client(site, Addresses::one(site.server), Ports { first: 9000, count: 1000 })
}
