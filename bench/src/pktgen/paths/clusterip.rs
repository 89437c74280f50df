//! Pod to a Service whose backend is a pod on the same node: the destination is translated.

use super::{Route, SERVICE_PORT, Site, from_client};
use crate::pktgen::ranges::Ports;

pub(super) fn route(site: &Site) -> Route {
    from_client(site, site.services, Ports::one(SERVICE_PORT))
}
