//! Pod to a Service whose backend is a pod on the same node: the destination is translated.

use super::{Around, Route, SERVICE_PORT, Site, from_client};
use crate::pktgen::ranges::Ports;

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.services, Ports::one(SERVICE_PORT))
}
