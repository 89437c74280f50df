//! How packets are carried between nodes.

use std::net::IpAddr;

/// A mode of the pool that all pods are in, or of the cloud's network that they are part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// VXLAN to all nodes.
    Vxlan,
    /// IP in IP of the same family to all nodes.
    Ipip,
    /// No encapsulation.
    Direct,
    /// VXLAN beyond the subnet; both nodes are in one.
    CrossSubnet,
    /// VXLAN beyond the subnet; each node is in one of its own, as Calico's annotations say.
    BeyondSubnet,
    /// A VPC with two shared ENIs on the first node and one on the second.
    SharedEni,
    /// A VPC in which every pod has an ENI of its own, and the engine is behind its second interface.
    ExclusiveEni,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 7] = [
        Mode::Vxlan,
        Mode::Ipip,
        Mode::Direct,
        Mode::CrossSubnet,
        Mode::BeyondSubnet,
        Mode::SharedEni,
        Mode::ExclusiveEni,
    ];

    /// As the table's head has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Vxlan => "VXLAN",
            Mode::Ipip => "IPIP",
            Mode::Direct => "direct",
            Mode::CrossSubnet => "CrossSubnet",
            Mode::BeyondSubnet => "… beyond it",
            Mode::SharedEni => "shared ENI",
            Mode::ExclusiveEni => "own ENI",
        }
    }

    /// Whether the cloud's network knows every pod.
    pub(super) fn is_eni(self) -> bool {
        matches!(self, Mode::SharedEni | Mode::ExclusiveEni)
    }

    /// Calico's IPPools that ask for it, if it is one that pools know.
    pub(super) fn pools(self) -> Option<String> {
        let (ipip, vxlan) = match self {
            Mode::SharedEni | Mode::ExclusiveEni => return None,
            Mode::Vxlan => ("Never", "Always"),
            Mode::Ipip => ("Always", "Never"),
            Mode::Direct => ("Never", "Never"),
            Mode::CrossSubnet | Mode::BeyondSubnet => ("Never", "CrossSubnet"),
        };
        let pool = |name: &str, cidr: &str| {
            format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: {name}\nspec:\n  cidr: '{cidr}'\n  \
                 ipipMode: {ipip}\n  vxlanMode: {vxlan}\n  natOutgoing: true\n"
            )
        };
        Some(format!("{}---\n{}", pool("pods", "10.244.0.0/16"), pool("pods6", "fd00:244::/32")))
    }

    /// How a packet between pods is seen that leaves the first node by its uplink or comes to it.
    pub(super) fn on_uplink(self, nodes: (IpAddr, IpAddr), packet: &str) -> String {
        match self {
            Mode::Ipip => format!("uplink0 ipip {}>{}: {packet}", nodes.0, nodes.1),
            Mode::Vxlan | Mode::BeyondSubnet => format!("uplink0 vxlan {}>{}: {packet}", nodes.0, nodes.1),
            Mode::Direct | Mode::CrossSubnet | Mode::SharedEni | Mode::ExclusiveEni => {
                format!("uplink0 {packet}")
            }
        }
    }
}
