//! The paths: who speaks to whom, by which address, and what each stage must see of it.

use super::fabric::{Fabric, NODE_IN_POD_RANGE};
use super::mode::Mode;
use crate::dual_stack::Family;
use crate::vpc::OUTSIDE;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// A pod of the first node, with shared ENIs on its first.
    Pod,
    /// The first node itself.
    Node,
    /// A station outside the cluster.
    Outside,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// A pod of the first node, with shared ENIs on its first.
    Near,
    /// A pod of the first node, on its second ENI.
    Beside,
    /// A pod of the second node.
    Far,
}

/// Which address is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The server's own.
    Pod,
    /// A service's cluster address.
    Cluster,
    /// A service's external address, with the traffic policy Cluster.
    External,
    /// A service's external address, with the traffic policy Local.
    Local,
}

/// A way through the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    name: &'static str,
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) asked: Asked,
}

/// What came of a path in a family; if something is wrong, in words.
#[derive(Debug)]
pub struct Outcome {
    /// The path.
    pub path: Path,
    /// The family.
    pub family: Family,
    /// Whether it was as it should be.
    pub result: Result<(), String>,
}

/// What each stage must see, in both directions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sights {
    pub(super) client: BTreeSet<String>,
    pub(super) wires: BTreeSet<String>,
    pub(super) server: BTreeSet<String>,
}

const fn path(name: &'static str, client: Client, server: Server, asked: Asked) -> Path {
    Path { name, client, server, asked }
}

impl Path {
    /// All of them.
    pub const ALL: [Path; 17] = [
        path("node → pod on it", Client::Node, Server::Near, Asked::Pod),
        path("node → pod on another node", Client::Node, Server::Far, Asked::Pod),
        path("pod ↔ pod, same node (same ENI)", Client::Pod, Server::Near, Asked::Pod),
        path("pod ↔ pod, another ENI of the node", Client::Pod, Server::Beside, Asked::Pod),
        path("pod ↔ pod, other node", Client::Pod, Server::Far, Asked::Pod),
        path("pod → ClusterIP, same node (same ENI)", Client::Pod, Server::Near, Asked::Cluster),
        path("pod → ClusterIP, another ENI of the node", Client::Pod, Server::Beside, Asked::Cluster),
        path("pod → ClusterIP, other node", Client::Pod, Server::Far, Asked::Cluster),
        path("node → ClusterIP, same node", Client::Node, Server::Near, Asked::Cluster),
        path("node → ClusterIP, other node", Client::Node, Server::Far, Asked::Cluster),
        path("pod → external IP, same node (same ENI)", Client::Pod, Server::Near, Asked::External),
        path("pod → external IP, another ENI", Client::Pod, Server::Beside, Asked::External),
        path("pod → external IP, other node", Client::Pod, Server::Far, Asked::External),
        path("outside → external IP, same node", Client::Outside, Server::Near, Asked::External),
        path("outside → external IP, other node", Client::Outside, Server::Far, Asked::External),
        path("outside → external IP, policy Local", Client::Outside, Server::Near, Asked::Local),
        path("outside → pod", Client::Outside, Server::Near, Asked::Pod),
    ];

    /// As the table has it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Whether there is such a path in a mode. From a node the other node's pods on ENIs are reached by the cloud's
    /// network without Fairway, from outside all pods with an ENI of their own; others are not known there.
    pub fn exists_in(self, mode: Mode) -> bool {
        match (self.client, self.server, self.asked) {
            (Client::Node, Server::Far, Asked::Pod) => !mode.is_eni(),
            (Client::Outside, _, Asked::Pod) | (_, Server::Beside, _) => mode == Mode::SharedEni,
            _ => true,
        }
    }

    /// The address that the server sees: the client's own wherever its answers come back by themselves to the engine that
    /// translated the destination, else one of the node's: that among its pods, or towards a cloud's network that on the
    /// uplink.
    fn source(self, fabric: &Fabric, family: Family) -> IpAddr {
        let client = fabric.client_ip(self.client, family);
        let nodes_own = if fabric.mode().is_eni() && self.server == Server::Far {
            fabric.node_ips(family).0
        } else {
            family.of(NODE_IN_POD_RANGE)
        };
        match (self.client, self.asked, fabric.mode()) {
            (_, Asked::Pod, _) => client,
            (Client::Pod, _, Mode::ExclusiveEni) => nodes_own,
            (Client::Pod, Asked::External, Mode::SharedEni) | (Client::Pod, Asked::Cluster, _) => client,
            (Client::Outside, Asked::Local, mode) if mode != Mode::ExclusiveEni => client,
            _ => nodes_own,
        }
    }

    /// The service's address is seen at the client only; wires carry what leaves the first node, each by the right one,
    /// and nothing else.
    pub(super) fn sights(self, fabric: &Fabric, family: Family) -> Sights {
        let (client, server) = (fabric.client_ip(self.client, family), fabric.server_ip(self.server, family));
        let (source, asked) =
            (self.source(fabric, family), fabric.asked_ip(self.asked, family).unwrap_or(server));
        let mut sights = Sights::default();
        let exchange = |at: &mut BTreeSet<String>, device: &str, a: IpAddr, b: IpAddr| {
            at.extend([format!("{device}{a}>{b}"), format!("{device}{b}>{a}")]);
        };
        // The two interfaces of pods with an ENI of their own.
        let has_own = fabric.mode() == Mode::ExclusiveEni;
        let at_client = match (self.client, self.asked) {
            (Client::Pod, Asked::Pod) if has_own => "eth0 ",
            (Client::Pod, _) if has_own => "eth1 ",
            _ => "",
        };
        let by_second = self.server == Server::Near && source == family.of(NODE_IN_POD_RANGE);
        let at_server = match by_second {
            _ if !has_own => "",
            true => "eth1 ",
            false => "eth0 ",
        };
        exchange(&mut sights.client, at_client, client, asked);
        exchange(&mut sights.server, at_server, source, server);
        if self.client == Client::Outside && self.asked != Asked::Pod {
            exchange(&mut sights.wires, "uplink0 ", family.of(OUTSIDE), asked);
            if self.server == Server::Far && fabric.mode().is_eni() {
                // The station is the cloud's network, which carries this on.
                exchange(&mut sights.client, at_client, source, server);
            }
        }
        let by_eni = source == client && fabric.mode().is_eni();
        match (self.server, fabric.mode()) {
            (Server::Near, Mode::SharedEni) if self.client == Client::Outside && self.asked == Asked::Pod => {
                exchange(&mut sights.wires, "eni0 ", source, server);
            }
            (Server::Far, Mode::SharedEni) if by_eni => exchange(&mut sights.wires, "eni0 ", source, server),
            // Past the node.
            (Server::Far, Mode::ExclusiveEni) if by_eni => {}
            (Server::Far, mode) => {
                // Tunnels run over the pods' own family.
                let (near, far) = fabric.node_ips(family);
                let mut carried = |nodes: (IpAddr, IpAddr), packet: String| {
                    sights.wires.insert(mode.on_uplink(nodes, &packet));
                };
                carried((near, far), format!("{source}>{server}"));
                carried((far, near), format!("{server}>{source}"));
            }
            _ => {}
        }
        sights
    }
}
