//! From the manifests of Terway to network interfaces: its `Node` (network.alibabacloud.com/v1beta1) lists a node's ENIs
//! with the addresses of the pods that share them, or that have one each.

use crate::convert::{Checked, Problem, fail, ip, name_of};
use crate::object::Object;
use fairway_tables::{Ip, Mac, Prefix};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// A network interface of a node that its pods share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Eni {
    /// Its name at the cloud, `eni-…`.
    pub id: String,
    /// Its Ethernet address, by which its device is found.
    pub mac: Mac,
    /// The subnets of its vSwitch, at most one of each family.
    pub subnets: Vec<Prefix>,
    /// The addresses that it carries for pods.
    pub ips: BTreeSet<Ip>,
}

impl Eni {
    /// The gateway of its vSwitch in a family. The cloud keeps the third last address of every subnet for it; in IPv6 it
    /// tells a link-local address by router advertisements, and keeps the third last too.
    pub fn gateway(&self, is_v4: bool) -> Option<Ip> {
        let subnet = self.subnets.iter().find(|subnet| subnet.addr().is_v4() == is_v4)?;
        let bits = if is_v4 { 32 } else { 128 } - u32::from(subnet.len());
        let last = u128::from_be_bytes(subnet.addr().0) | ((1u128 << bits) - 1);
        Some(Ip((last - 2).to_be_bytes()))
    }
}

/// The network interfaces of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEnis {
    /// The node's name.
    pub node: String,
    /// Its interfaces that are in use.
    pub enis: Vec<Eni>,
    /// Whether each of them is in a pod of its own, whose addresses it carries.
    pub exclusive: bool,
}

/// Terway's label of nodes whose pods have an ENI each, and its value.
const EXCLUSIVE: (&str, &str) = ("k8s.aliyun.com/exclusive-mode-eni-type", "eniOnly");

/// Terway's `Node`, as far as it is used.
#[derive(Deserialize)]
pub struct NodeManifest {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    network_interfaces: BTreeMap<String, Nic>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Nic {
    id: String,
    status: String,
    mac_address: String,
    #[serde(rename = "ipv4CIDR")]
    ipv4_cidr: String,
    #[serde(rename = "ipv6CIDR")]
    ipv6_cidr: String,
    ipv4: BTreeMap<String, Address>,
    ipv6: BTreeMap<String, Address>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Address {
    ip: String,
}

/// Checks Terway's Node. Interfaces that are being detached do not count.
pub fn node(manifest: &NodeManifest) -> Checked<Object> {
    let node = name_of(&manifest.metadata)?;
    let in_use = manifest.status.network_interfaces.iter().filter(|(_, nic)| nic.status == "InUse");
    let enis = in_use.map(|(key, nic)| eni(key, nic)).collect::<Checked<Vec<Eni>>>()?;
    let label = manifest.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUSIVE.0));
    let exclusive = label.is_some_and(|value| value == EXCLUSIVE.1);
    Ok(Object::NodeEnis(NodeEnis { node, enis, exclusive }))
}

fn eni(key: &str, nic: &Nic) -> Checked<Eni> {
    let field = |name: &str| format!("status.networkInterfaces[{key}].{name}");
    let Ok(mac) = nic.mac_address.parse() else {
        return fail(field("macAddress"), Problem::BadMac(nic.mac_address.clone()));
    };
    let mut subnets = Vec::new();
    for (name, text, is_v4) in [("ipv4CIDR", &nic.ipv4_cidr, true), ("ipv6CIDR", &nic.ipv6_cidr, false)] {
        if text.is_empty() {
            continue;
        }
        match text.parse::<Prefix>() {
            Ok(subnet) if subnet.addr().is_v4() == is_v4 && subnet.len() <= if is_v4 { 29 } else { 125 } => {
                subnets.push(subnet);
            }
            _ => return fail(field(name), Problem::BadCidr(text.clone())),
        }
    }
    let mut ips = BTreeSet::new();
    for (name, addresses) in [("ipv4", &nic.ipv4), ("ipv6", &nic.ipv6)] {
        for (key, address) in addresses {
            let text = if address.ip.is_empty() { key } else { &address.ip };
            ips.insert(ip(field(&format!("{name}[{key}].ip")), text)?);
        }
    }
    let id = if nic.id.is_empty() { key.to_owned() } else { nic.id.clone() };
    Ok(Eni { id, mac, subnets, ips })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn the_gateway_of_a_vswitch_is_its_third_last_address() {
        let eni = |subnets: &[&str]| Eni {
            id: "eni-1".into(),
            mac: Mac::ZERO,
            subnets: subnets.iter().map(|text| text.parse().unwrap()).collect(),
            ips: BTreeSet::new(),
        };
        let ip = |text: &str| Some(Ip::from(text.parse::<IpAddr>().unwrap()));
        let both = eni(&["172.16.0.0/20", "fd00:5::/64"]);
        assert_eq!(both.gateway(true), ip("172.16.15.253"));
        assert_eq!(both.gateway(false), ip("fd00:5::ffff:ffff:ffff:fffd"));
        assert_eq!(eni(&["172.16.0.0/24"]).gateway(false), None);
    }
}
