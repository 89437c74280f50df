//! Has packets to services reach the engine: from stations beyond the uplinks by the steering program, from the node's own
//! processes to its own node ports by cgroup programs. All else that is sent to such addresses stays with the kernel.

use fairway_pmd::node_ports::NodePorts;
use fairway_pmd::steering::{Frontend, Steering};
use fairway_tables::{NextHopKind, Prefix, ServiceKey, View};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Services are gone through at most so often; endpoints may change a thousand times a second.
const PERIOD: Duration = Duration::from_millis(100);

/// See the module's head.
pub(super) struct ServiceSteering {
    /// `None` where they cannot be attached.
    node_ports: Option<NodePorts>,
    /// When the services were last gone through, and the tables' changes up to then.
    last: Option<(Instant, u64)>,
}

impl ServiceSteering {
    /// Attaches what the node's own processes need; where that cannot be, the rest goes on without.
    pub(super) fn new() -> ServiceSteering {
        let node_ports = match (ServiceKey::NODE_PORTS.into(), ServiceKey::NODE_PORTS6.into()) {
            (IpAddr::V4(target), IpAddr::V6(target6)) => NodePorts::attach(target, target6)
                .inspect_err(|error| {
                    tracing::warn!(%error, "processes on this node cannot reach node ports on its own addresses");
                })
                .ok(),
            _ => None,
        };
        ServiceSteering { node_ports, last: None }
    }

    /// Brings steering in line with the services, if they may have changed.
    pub(super) fn sync(&mut self, steering: &mut Steering, tables: View<'_>) {
        let now = tables.change_count();
        if self.last.is_some_and(|(at, seen)| seen == now || at.elapsed() < PERIOD) {
            return;
        }
        self.last = Some((Instant::now(), now));
        let (from_uplinks, from_processes) = frontends(tables);
        let steered = steering.set_frontends(from_uplinks);
        let turned = self.node_ports.as_mut().map_or(Ok(()), |node_ports| node_ports.set(from_processes));
        if let Err(error) = steered.and(turned) {
            tracing::error!(%error, "not all packets to services are steered to the engine");
        }
    }

    /// Other tables are read from now on.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

/// Where services are reached: by stations beyond the uplinks, and, on the node's own addresses, by its own processes.
fn frontends(tables: View<'_>) -> (BTreeSet<Frontend>, BTreeSet<Frontend>) {
    let for_processes = [ServiceKey::NODE_PORTS, ServiceKey::NODE_PORTS6];
    let is_frontend = |key: &ServiceKey| key.is_port() && !for_processes.contains(&key.ip);
    let keys = || tables.services().map(|(key, _)| key).filter(is_frontend);
    let frontend = |key: ServiceKey| (key.ip.into(), key.port, key.proto);
    let is_node_port = |key: &ServiceKey| {
        let own = if key.ip.is_v4() { ServiceKey::NODE_PORTS } else { ServiceKey::NODE_PORTS6 };
        let hop = tables.exact_paths(&Prefix::host(key.ip)).and_then(|paths| paths.only());
        hop.is_some_and(|hop| hop.kind() == Some(NextHopKind::Host))
            && tables.service(&ServiceKey { ip: own, ..*key }).is_some()
    };
    (keys().map(frontend).collect(), keys().filter(is_node_port).map(frontend).collect())
}
