//! The ways through a device under test, one file each. A path says where packets go in and which addresses
//! they have by default; the device is set up for all paths alike. A new path is a file here, a line in
//! [`PathName::route`], and whatever the device must know for it.

mod clusterip;
mod same_node;
mod vxlan;

use crate::pktgen::ranges::{Addresses, Ports};
use fairway_tables::Mac;
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
    /// Pod to a pod on another node.
    Vxlan,
    /// Pod to a Service to a pod on the same node.
    #[serde(rename = "clusterip")]
    #[value(name = "clusterip")]
    ClusterIp,
}

/// Where the generator and the sinks stand, as the device under test knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The generator's pod.
    pub client: [u8; 4],
    /// Its Ethernet address.
    pub client_mac: Mac,
    /// The sink's pod on the same node.
    pub server: [u8; 4],
    /// Its Ethernet address.
    pub server_mac: Mac,
    /// Where pods send everything.
    pub gateway_mac: Mac,
    /// Pods of the other node, whose packets the second sink takes off the wire.
    pub remote_pods: Addresses,
    /// Service addresses.
    pub services: Addresses,
}

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
    /// IPv4 sources.
    pub sources: Addresses,
    /// IPv4 destinations.
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
    pub const ALL: [PathName; 3] = [PathName::SameNode, PathName::Vxlan, PathName::ClusterIp];

    /// As scenario files write it.
    pub fn name(self) -> &'static str {
        match self {
            PathName::SameNode => "same-node",
            PathName::Vxlan => "vxlan",
            PathName::ClusterIp => "clusterip",
        }
    }

    /// Its addresses at a site.
    pub fn route(self, site: &Site) -> Route {
        match self {
            PathName::SameNode => same_node::route(site),
            PathName::Vxlan => vxlan::route(site),
            PathName::ClusterIp => clusterip::route(site),
        }
    }
}

/// What all paths out of the client's pod have in common.
fn from_client(site: &Site, destinations: Addresses, destination_ports: Ports) -> Route {
    Route {
        src_mac: site.client_mac,
        dst_mac: site.gateway_mac,
        sources: Addresses::one(site.client),
        destinations,
        source_ports: Ports { first: 1024, count: 64_512 },
        destination_ports,
    }
}
