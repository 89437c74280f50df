//! How packets are carried between nodes.

use std::net::Ipv4Addr;

/// A mode of the pool that all pods are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// VXLAN to all nodes.
    Vxlan,
    /// IPv4 in IPv4 to all nodes.
    Ipip,
    /// No encapsulation.
    Direct,
    /// VXLAN beyond the subnet; both nodes are in one.
    CrossSubnet,
    /// A VPC with two shared ENIs on the first node and one on the second.
    Eni,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 5] = [Mode::Vxlan, Mode::Ipip, Mode::Direct, Mode::CrossSubnet, Mode::Eni];

    /// As the table's head has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Vxlan => "VXLAN",
            Mode::Ipip => "IPIP",
            Mode::Direct => "direct",
            Mode::CrossSubnet => "CrossSubnet",
            Mode::Eni => "shared ENI",
        }
    }

    /// Calico's IPPool that asks for it, if it is one that pools know.
    pub(super) fn pool(self) -> Option<String> {
        let (ipip, vxlan) = match self {
            Mode::Eni => return None,
            Mode::Vxlan => ("Never", "Always"),
            Mode::Ipip => ("Always", "Never"),
            Mode::Direct => ("Never", "Never"),
            Mode::CrossSubnet => ("Never", "CrossSubnet"),
        };
        Some(format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: pods\nspec:\n  cidr: 10.244.0.0/16\n  \
             ipipMode: {ipip}\n  vxlanMode: {vxlan}\n"
        ))
    }

    /// Where and how a pod's packet is seen that leaves the first node or comes to it.
    pub(super) fn on_wire(self, nodes: (Ipv4Addr, Ipv4Addr), packet: &str) -> String {
        match self {
            Mode::Vxlan => format!("uplink0 vxlan {}>{}: {packet}", nodes.0, nodes.1),
            Mode::Ipip => format!("uplink0 ipip {}>{}: {packet}", nodes.0, nodes.1),
            Mode::Direct | Mode::CrossSubnet => format!("uplink0 {packet}"),
            // That of the client's address.
            Mode::Eni => format!("eni0 {packet}"),
        }
    }
}
