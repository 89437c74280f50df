//! Pod to a Service whose backends are pods of another node: the destination is translated, and the packet encapsulated.

use super::{Around, Route, SERVICE_PORT, Site, from_client};
use crate::pktgen::ranges::Ports;

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.remote_services, Ports::one(SERVICE_PORT))
}
