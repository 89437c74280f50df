//! The ways through a device under test, one file each. A path says where packets go in and which addresses
//! they have by default; the device is set up for all paths alike. A new path is a file here, a line in
//! [`PathName::route`], and whatever the device must know for it.

mod clusterip;
mod direct;
mod ipip;
mod masquerade;
mod nodeport;
mod same_node;
mod service_vxlan;
mod vxlan;

use crate::pktgen::ranges::{Addresses, Family, Ports};
use fairway_control::names;
use fairway_tables::{Ip, Mac};
use serde::{Deserialize, Serialize};

/// A path's name in scenario files and reports.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum PathName {
    /// Pod to pod on the same node.
    SameNode,
    /// Pod to a pod on another node, by VXLAN.
    Vxlan,
    /// The same by IPIP.
    Ipip,
    /// The same without encapsulation.
    Direct,
    /// Pod to a Service to a pod on the same node.
    #[serde(rename = "clusterip")]
    #[value(name = "clusterip")]
    ClusterIp,
    /// Pod to a Service to a pod on another node, by VXLAN.
    ServiceVxlan,
    /// From outside to a node port to a pod on the node.
    #[serde(rename = "nodeport")]
    #[value(name = "nodeport")]
    NodePort,
    /// Pod to the outside.
    Masquerade,
}

/// Where a path's packets go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The generator's pod.
    Pod,
    /// The wire to the node's uplink.
    Wire,
}

/// Where the generator and the sinks stand, as the device under test knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Ethernet address of the generator's pod.
    pub client_mac: Mac,
    /// Ethernet address of the sink's pod on the same node.
    pub server_mac: Mac,
    /// Where pods send everything.
    pub gateway_mac: Mac,
    /// Ethernet address of whatever is at the other end of the wire.
    pub station_mac: Mac,
    /// Ethernet address of the node's uplink.
    pub node_mac: Mac,
    /// Services' node ports.
    pub node_ports: Ports,
    /// The IPv4 addresses.
    pub ipv4: Around,
    /// The IPv6 addresses.
    pub ipv6: Around,
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// The generator's pod.
    pub client: Addresses,
    /// The sink's pod on the same node.
    pub server: Addresses,
    /// The device's node.
    pub node: Addresses,
    /// Pods of other nodes, whose packets the second sink takes off the wire: by VXLAN,
    pub vxlan_pods: Addresses,
    /// by IPIP,
    pub ipip_pods: Addresses,
    /// without encapsulation.
    pub direct_pods: Addresses,
    /// Stations outside the cluster.
    pub outside: Addresses,
    /// Addresses of Services whose backend is the sink's pod,
    pub services: Addresses,
    /// and of those whose backends are pods reached by VXLAN.
    pub remote_services: Addresses,
}

impl Site {
    /// As sender number `n` sees it: each has a pod of its own, by consecutive addresses.
    pub fn of_sender(&self, n: u32) -> Site {
        let mut site = *self;
        for client in [&mut site.ipv4.client, &mut site.ipv6.client] {
            client.first += n;
        }
        if n > 0 {
            site.client_mac = names::pod_mac(Ip::v4(site.ipv4.client.first.to_be_bytes()));
        }
        site
    }
}

/// First node port.
pub const NODE_PORT: u16 = 30_000;
/// Most node ports: Services beyond have none.
pub const NODE_PORTS: u32 = 2768;
/// Ports of pods and stations to which packets go.
const POD_PORTS: Ports = Ports { first: 9000, count: 1000 };
/// Most Services whose backends are on another node; each has one.
pub const REMOTE_SERVICES: u32 = 100;
/// Port of every Service.
pub const SERVICE_PORT: u16 = 80;
/// Port of every backend.
pub const BACKEND_PORT: u16 = 8080;

/// A path's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Ethernet source.
    pub src_mac: Mac,
    /// Ethernet destination.
    pub dst_mac: Mac,
    /// Sources.
    pub sources: Addresses,
    /// Destinations, of the sources' family.
    pub destinations: Addresses,
    /// Source ports.
    pub source_ports: Ports,
    /// Destination ports.
    pub destination_ports: Ports,
}

impl std::fmt::Display for PathName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PathName {
    /// All, in the order of reports.
    pub const ALL: [PathName; 8] = [
        PathName::SameNode,
        PathName::Vxlan,
        PathName::Ipip,
        PathName::Direct,
        PathName::ClusterIp,
        PathName::ServiceVxlan,
        PathName::NodePort,
        PathName::Masquerade,
    ];

    /// As scenario files write it.
    pub fn name(self) -> &'static str {
        match self {
            PathName::SameNode => "same-node",
            PathName::Vxlan => "vxlan",
            PathName::Ipip => "ipip",
            PathName::Direct => "direct",
            PathName::ClusterIp => "clusterip",
            PathName::ServiceVxlan => "service-vxlan",
            PathName::NodePort => "nodeport",
            PathName::Masquerade => "masquerade",
        }
    }

    /// Where its packets go in.
    pub fn entry(self) -> Entry {
        if self == PathName::NodePort { Entry::Wire } else { Entry::Pod }
    }

    /// Whether its packets come out in the sink's pod, and not on the wire.
    pub fn ends_in_pod(self) -> bool {
        matches!(self, PathName::SameNode | PathName::ClusterIp | PathName::NodePort)
    }

    /// Its addresses at a site.
    pub fn route(self, site: &Site, family: Family) -> Route {
        let around = match family {
            Family::Ipv4 => &site.ipv4,
            Family::Ipv6 => &site.ipv6,
        };
        match self {
            PathName::SameNode => same_node::route(site, around),
            PathName::Vxlan => vxlan::route(site, around),
            PathName::Ipip => ipip::route(site, around),
            PathName::Direct => direct::route(site, around),
            PathName::ClusterIp => clusterip::route(site, around),
            PathName::ServiceVxlan => service_vxlan::route(site, around),
            PathName::NodePort => nodeport::route(site, around),
            PathName::Masquerade => masquerade::route(site, around),
        }
    }
}

/// What all paths out of the client's pod have in common.
fn from_client(site: &Site, around: &Around, destinations: Addresses, destination_ports: Ports) -> Route {
    Route {
        src_mac: site.client_mac,
        dst_mac: site.gateway_mac,
        sources: around.client,
        destinations,
        source_ports: Ports { first: 1024, count: 64_512 },
        destination_ports,
    }
}
