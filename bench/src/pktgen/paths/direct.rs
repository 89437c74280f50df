//! Pod to the pods of another node, without encapsulation.

use super::{Around, POD_PORTS, Route, Site, from_client};

pub(super) fn route(site: &Site, around: &Around) -> Route {
    from_client(site, around, around.direct_pods, POD_PORTS)
}
