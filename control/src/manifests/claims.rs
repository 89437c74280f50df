//! What the objects in force lay claim to: identities, addresses and ranges, kept by difference. It finds whether a
//! change conflicts with anything at a cost that follows the change. Which object then yields, and with which
//! words, is for [`super::conflicts`] to say, from all objects.

use super::conflicts::{addresses_of, addresses_of_enis, misplaced, node_ports_of, overlapping};
use crate::encapsulation::Pool;
use crate::object::{Kind, Node, Object, ObjectKey, Pod};
use fairway_tables::{Ip, Prefix};
use std::collections::{BTreeMap, BTreeSet};

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Claims {
    keys: BTreeSet<ObjectKey>,
    nodes: BTreeMap<String, Node>,
    ranges: BTreeMap<Prefix, String>,
    node_ips: BTreeMap<Ip, String>,
    pod_ips: BTreeMap<Ip, ObjectKey>,
    /// Addresses of the pods on each node, whether that is known or not.
    pods_on: BTreeMap<String, BTreeMap<ObjectKey, Vec<Ip>>>,
    /// Of services, with port and protocol.
    addresses: BTreeMap<(Ip, u16, u8), ObjectKey>,
    node_ports: BTreeMap<(u16, u8), ObjectKey>,
    /// A handful at most.
    pools: Vec<Pool>,
    /// What nodes' ENIs have, and of that the addresses by node.
    on_enis: BTreeSet<String>,
    eni_ips: BTreeMap<String, BTreeSet<Ip>>,
    /// Nodes whose pods may be misplaced now.
    unsettled: BTreeSet<String>,
}

impl Claims {
    /// The claims of objects that do not conflict.
    pub(super) fn of<'a>(objects: impl Iterator<Item = &'a Object>) -> Claims {
        let mut claims = Claims::default();
        for object in objects {
            claims.insert(object);
        }
        claims
    }

    /// Adds an object's claims. False if one of them conflicts with another's: then the claims are those of no set of
    /// objects any more, and must be made anew.
    pub(super) fn insert(&mut self, object: &Object) -> bool {
        let key = object.key();
        if !self.keys.insert(key.clone()) {
            return false;
        }
        match object {
            Object::Node(node) => self.insert_node(node),
            Object::Pod(pod) => self.insert_pod(key, pod),
            Object::Service(service) => {
                addresses_of(service).all(|claim| is_free(self.addresses.insert(claim, key.clone()), &key))
                    && node_ports_of(service)
                        .all(|port| is_free(self.node_ports.insert(port, key.clone()), &key))
            }
            Object::Pool(pool) => {
                let is_flannel = |pool: &Pool| pool.kind == Kind::FlannelConfig;
                let fits = |other: &Pool| {
                    overlapping(pool, other).is_none() && !(is_flannel(pool) && is_flannel(other))
                };
                let fits = self.pools.iter().all(fits);
                self.pools.push(pool.clone());
                fits
            }
            Object::NodeEnis(node) => {
                let ips = node.enis.iter().flat_map(|eni| eni.ips.iter().copied());
                self.eni_ips.insert(node.node.clone(), ips.collect());
                self.unsettled.insert(node.node.clone());
                addresses_of_enis(node).all(|(address, _)| self.on_enis.insert(address))
            }
            Object::Namespace(_) | Object::EndpointSlice(_) | Object::Masquerade(_) => true,
        }
    }

    /// Takes back the claims of an object that was inserted.
    pub(super) fn remove(&mut self, object: &Object) {
        let key = object.key();
        self.keys.remove(&key);
        match object {
            Object::Node(node) => {
                self.nodes.remove(&node.name);
                node.pod_cidrs.iter().for_each(|cidr| drop(self.ranges.remove(cidr)));
                node.internal_ips.iter().for_each(|ip| drop(self.node_ips.remove(ip)));
            }
            Object::Pod(pod) => {
                pod.ips.iter().filter(|_| pod.has_network()).for_each(|ip| drop(self.pod_ips.remove(ip)));
                if let Some(pods) = self.pods_on.get_mut(&pod.node) {
                    pods.remove(&key);
                    if pods.is_empty() {
                        self.pods_on.remove(&pod.node);
                    }
                }
            }
            Object::Service(service) => {
                addresses_of(service).for_each(|claim| drop(self.addresses.remove(&claim)));
                node_ports_of(service).for_each(|port| drop(self.node_ports.remove(&port)));
            }
            Object::Pool(_) => self.pools.retain(|other| other.key() != key),
            Object::NodeEnis(node) => {
                self.eni_ips.remove(&node.node);
                self.unsettled.insert(node.node.clone());
                for (address, _) in addresses_of_enis(node) {
                    self.on_enis.remove(&address);
                }
            }
            Object::Namespace(_) | Object::EndpointSlice(_) | Object::Masquerade(_) => {}
        }
    }

    fn insert_node(&mut self, node: &Node) -> bool {
        let name = &node.name;
        let mut fits = true;
        for cidr in &node.pod_cidrs {
            let around = (0..cidr.len()).filter_map(|len| Prefix::new(cidr.addr(), len));
            // Ranges inside come right after in order: they start at the same address or at a later one.
            let mut inside = self.ranges.range(cidr..).take_while(|(other, _)| cidr.contains(other.addr()));
            fits &= around.into_iter().all(|around| !self.ranges.contains_key(&around))
                && inside.all(|(other, owner)| other == cidr && owner == name);
            self.ranges.insert(*cidr, name.clone());
        }
        for ip in &node.internal_ips {
            fits &= is_free(self.node_ips.insert(*ip, name.clone()), name);
        }
        self.unsettled.insert(name.clone());
        self.nodes.insert(name.clone(), node.clone());
        fits
    }

    fn insert_pod(&mut self, key: ObjectKey, pod: &Pod) -> bool {
        if !pod.has_network() {
            return true;
        }
        let mut fits = true;
        for ip in &pod.ips {
            fits &= is_free(self.pod_ips.insert(*ip, key.clone()), &key);
        }
        if !pod.ips.iter().all(|ip| self.is_placed(&pod.node, *ip)) {
            self.unsettled.insert(pod.node.clone());
        }
        self.pods_on.entry(pod.node.clone()).or_default().insert(key, pod.ips.clone());
        fits
    }

    /// Whether a pod on a node may have this address: of the node's ranges, or of one of its ENIs.
    fn is_placed(&self, node: &str, ip: Ip) -> bool {
        self.nodes.get(node).is_none_or(|node| misplaced(ip, node).is_none())
            || self.eni_ips.get(node).is_some_and(|ips| ips.contains(&ip))
    }

    /// To be asked once a change's objects are all in: whether every pod is where its node is. As for
    /// [`Claims::insert`].
    pub(super) fn are_settled(&mut self) -> bool {
        let nodes = std::mem::take(&mut self.unsettled);
        nodes.iter().all(|node| {
            let mut ips = self.pods_on.get(node).into_iter().flat_map(BTreeMap::values).flatten();
            ips.all(|ip| self.is_placed(node, *ip))
        })
    }
}

/// Whether nobody had what was claimed, or its claimant itself.
fn is_free<T: PartialEq>(before: Option<T>, claimant: &T) -> bool {
    before.is_none_or(|owner| owner == *claimant)
}
