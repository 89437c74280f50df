//! The paths: who speaks to whom, and what each stage must see of it.

use super::fabric::Fabric;
use super::mode::Mode;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// A pod of the first node, in ENI mode on its first ENI.
    Pod,
    /// The first node itself.
    Node,
    /// A station outside the cluster.
    Outside,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// A pod of the first node, in ENI mode on its first ENI.
    Near,
    /// A pod of the first node, on its second ENI.
    Beside,
    /// A pod of the second node.
    Far,
}

/// A way through the cluster: who asks, who answers, and whether by a service's ClusterIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    name: &'static str,
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) by_service: bool,
}

/// What came of a path; if something is wrong, in words.
#[derive(Debug)]
pub struct Outcome {
    /// The path.
    pub path: Path,
    /// Whether it was as it should be.
    pub result: Result<(), String>,
}

/// What each stage must see, in both directions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sights {
    pub(super) client: BTreeSet<String>,
    pub(super) wires: BTreeSet<String>,
    pub(super) server: BTreeSet<String>,
}

fn both_ways(a: Ipv4Addr, b: Ipv4Addr) -> BTreeSet<String> {
    BTreeSet::from([format!("{a}>{b}"), format!("{b}>{a}")])
}

const fn path(name: &'static str, client: Client, server: Server, by_service: bool) -> Path {
    Path { name, client, server, by_service }
}

impl Path {
    /// All of them.
    pub const ALL: [Path; 11] = [
        path("node → pod on it", Client::Node, Server::Near, false),
        path("node → pod on another node", Client::Node, Server::Far, false),
        path("pod ↔ pod, same node (same ENI)", Client::Pod, Server::Near, false),
        path("pod ↔ pod, another ENI of the node", Client::Pod, Server::Beside, false),
        path("pod ↔ pod, other node", Client::Pod, Server::Far, false),
        path("pod → ClusterIP, same node (same ENI)", Client::Pod, Server::Near, true),
        path("pod → ClusterIP, another ENI of the node", Client::Pod, Server::Beside, true),
        path("pod → ClusterIP, other node", Client::Pod, Server::Far, true),
        path("node → ClusterIP, same node", Client::Node, Server::Near, true),
        path("node → ClusterIP, other node", Client::Node, Server::Far, true),
        path("outside → pod", Client::Outside, Server::Near, false),
    ];

    /// As the table has it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Whether there is such a path in a mode. From a node the other node's pods on ENIs are reached by the cloud's
    /// network without Fairway; from outside only ENIs are.
    pub fn exists_in(self, mode: Mode) -> bool {
        let is_eni = mode == Mode::Eni;
        match (self.client, self.server) {
            (Client::Node, Server::Far) => !is_eni,
            (Client::Outside, _) | (_, Server::Beside) => is_eni,
            _ => true,
        }
    }

    /// The service's address is seen at the client only; the server sees the client's own address; wires carry what
    /// leaves the first node, each by the right one, and nothing else.
    pub(super) fn sights(self, fabric: &Fabric) -> Sights {
        let (client, server) = (fabric.client_ip(self.client), fabric.server_ip(self.server));
        let asked = if self.by_service { fabric.service_ip() } else { server };
        let (near, far) = fabric.node_ips();
        let leaves = self.server == Server::Far || self.client == Client::Outside;
        let wires = if leaves {
            BTreeSet::from([
                fabric.mode().on_wire((near, far), &format!("{client}>{server}")),
                fabric.mode().on_wire((far, near), &format!("{server}>{client}")),
            ])
        } else {
            BTreeSet::new()
        };
        Sights { client: both_ways(client, asked), wires, server: both_ways(client, server) }
    }
}
