//! Names and addresses that follow from a pod or node alone, so that the CNI plugin, the control process
//! of every node and the tests agree on them without asking each other.

use fairway_tables::{Ip, Mac};

/// The kernel's end of the host veth pair, which carries the node's own traffic to pods and services.
pub const HOST_KERNEL_IF: &str = "fwhost0";
/// The engine's end of the host veth pair.
pub const HOST_ENGINE_IF: &str = "fwhost1";
/// Next hop of the node's own routes out of [`HOST_KERNEL_IF`]. It is on no wire: its Ethernet address is set, so that
/// one neighbour entry serves all pods and services, and nobody is asked for each of them.
pub const HOST_NEXT_HOP: Ip = Ip::v4([169, 254, 1, 2]);
/// The VXLAN device through which the kernel carries pod traffic while the engine is not running.
pub const FALLBACK_VXLAN_IF: &str = "fairway.vxlan";
/// The same in Flannel's layout, where that is another.
pub const FALLBACK_FLANNEL_IF: &str = "fairway.flannel";
/// [`FALLBACK_VXLAN_IF`] over IPv6.
pub const FALLBACK_VXLAN6_IF: &str = "fairway.vxlan6";
/// [`FALLBACK_FLANNEL_IF`] over IPv6.
pub const FALLBACK_FLANNEL6_IF: &str = "fairway.flan6";
/// The same for IPIP.
pub const FALLBACK_IPIP_IF: &str = "fairway.ipip";
/// The gateway that every pod is given.
pub const GATEWAY_IP: Ip = Ip::v4([169, 254, 1, 1]);
/// The gateway that every pod is given for IPv6.
pub const GATEWAY_IP6: Ip = link_local(GATEWAY_MAC);
/// The gateway's Ethernet address, the same on every node.
pub const GATEWAY_MAC: Mac = Mac([0xee; 6]);
/// What VXLAN over IPv4 adds to an inner IP packet: Ethernet 14, VXLAN 8, UDP 8, IPv4 20 bytes.
pub const VXLAN_OVERHEAD: u32 = 50;

/// The IPv6 link-local address that follows from an Ethernet address (RFC 4291 appendix A).
pub const fn link_local(mac: Mac) -> Ip {
    let [a, b, c, d, e, f] = mac.0;
    Ip([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Largest IP packet that a pod may send so that its encapsulated form fits an uplink of this MTU.
pub fn pod_mtu(uplink_mtu: u32) -> u32 {
    uplink_mtu.saturating_sub(VXLAN_OVERHEAD)
}

/// Name of the host end of a pod's veth: `fw` and 11 hexadecimal digits, 13 of the 15 bytes that
/// IFNAMSIZ allows.
pub fn host_veth(namespace: &str, pod: &str) -> String {
    format!("fw{:011x}", stable_hash(&[namespace, pod]) >> 20)
}

/// Whether [`host_veth`] makes names like this one.
pub fn is_host_veth(name: &str) -> bool {
    let hash = name.strip_prefix("fw").unwrap_or_default();
    hash.len() == 11 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A pod's Ethernet address: `0a:58` and the IPv4 octets; for IPv6 the octets come from a hash.
pub fn pod_mac(ip: Ip) -> Mac {
    let [a, b, c, d] = ip.as_v4().unwrap_or_else(|| {
        let hash = stable_hash(&[&ip.to_string()]).to_be_bytes();
        [hash[0], hash[1], hash[2], hash[3]]
    });
    Mac([0x0a, 0x58, a, b, c, d])
}

/// A node's VTEP address: locally administered, from the node's name.
pub fn vtep_mac(node: &str) -> Mac {
    let h = stable_hash(&["vtep", node]).to_be_bytes();
    Mac([(h[0] & 0xfc) | 0x02, h[1], h[2], h[3], h[4], h[5]])
}

/// FNV-1a over the parts with a separator that no Kubernetes name holds, then the finaliser of
/// SplitMix64, because FNV-1a leaves the high bits of short inputs poorly mixed. Must never change: other
/// nodes compute the same.
fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.bytes().chain([b'/']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pinned_because_other_nodes_compute_them_too() {
        assert_eq!(host_veth("default", "web-0"), host_veth("default", "web-0"));
        assert_eq!(host_veth("default", "web-0"), "fw4c91463225b");
        assert_eq!(vtep_mac("node-1").to_string(), "ae:2a:cb:d5:cc:ab");
        assert_eq!(pod_mac(Ip::v4([10, 244, 1, 7])).to_string(), "0a:58:0a:f4:01:07");
        assert_eq!(GATEWAY_IP6.to_string(), "fe80::ecee:eeff:feee:eeee");
    }

    #[test]
    fn veth_names_fit_ifnamsiz_and_differ_by_namespace_and_pod() {
        let mut seen = std::collections::HashSet::new();
        for namespace in ["a", "b", "a-b", "default"] {
            for pod in 0..500 {
                let name = host_veth(namespace, &format!("p{pod}"));
                assert!(name.len() <= 15 && name.starts_with("fw"));
                assert!(is_host_veth(&name));
                assert!(seen.insert(name));
            }
        }
    }

    #[test]
    fn no_other_device_of_ours_has_a_pods_name() {
        for name in
            [HOST_KERNEL_IF, HOST_ENGINE_IF, FALLBACK_VXLAN_IF, "fw", "fwABCDEF01234", "eth4c91463225b"]
        {
            assert!(!is_host_veth(name), "{name}");
        }
    }

    #[test]
    fn vtep_macs_are_local_unicast() {
        for node in 0..200 {
            let mac = vtep_mac(&format!("n{node}"));
            assert_eq!(mac.0[0] & 3, 2);
        }
    }
}
