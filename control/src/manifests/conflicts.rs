//! Rules that span objects: no two may claim one identity, address or range.

use super::error::{Claimant, FileProblem, Place};
use super::parse::{Parsed, Placed};
use crate::encapsulation::{Pool, holds};
use crate::enis::NodeEnis;
use crate::index::host_address;
use crate::object::{Kind, Node, Object, ObjectKey, Service};
use fairway_tables::{Ip, Prefix};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A file as it would be in force: its content, and whether that is new.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) content: Arc<Parsed>,
    pub(super) is_new: bool,
}

/// A rule broken by the object at `index` of `file`.
#[derive(Debug)]
pub(super) struct Conflict {
    pub(super) file: String,
    pub(super) index: usize,
    pub(super) problem: FileProblem,
}

/// One object in its file. The order says who yields: what is new to what is in force, the later file to the
/// earlier, the later document to the earlier.
#[derive(Clone, Copy)]
struct Party<'a> {
    is_new: bool,
    file: &'a str,
    index: usize,
    placed: &'a Placed,
}

impl<'a> Party<'a> {
    fn rank(&self) -> (bool, &'a str, usize) {
        (self.is_new, self.file, self.index)
    }

    fn place(&self) -> Place {
        Place { file: self.file.to_owned(), document: self.placed.document }
    }

    fn key(&self) -> ObjectKey {
        self.placed.object.key()
    }

    fn claimant(&self) -> Box<Claimant> {
        Box::new(Claimant { object: self.key(), place: self.place() })
    }

    fn conflict(&self, problem: FileProblem) -> Conflict {
        Conflict { file: self.file.to_owned(), index: self.index, problem }
    }
}

/// The one that yields, and the one that it yields to.
fn order<'a, T>(a: (Party<'a>, T), b: (Party<'a>, T)) -> ((Party<'a>, T), (Party<'a>, T)) {
    if a.0.rank() > b.0.rank() { (a, b) } else { (b, a) }
}

/// Every conflict among the files, each blamed on the object that yields.
pub(super) fn conflicts(files: &BTreeMap<String, Candidate>) -> Vec<Conflict> {
    let mut out = Vec::new();
    let parties = files.iter().flat_map(|(file, candidate)| {
        let is_new = candidate.is_new;
        candidate.content.objects.iter().enumerate().map(move |(index, placed)| Party {
            is_new,
            file,
            index,
            placed,
        })
    });
    let mut by_key: BTreeMap<ObjectKey, Party> = BTreeMap::new();
    for party in parties {
        // A repeated object says its other claims twice too; one error is enough.
        if let Some(other) = by_key.get(&party.key()) {
            let ((loser, ()), (winner, ())) = order((party, ()), (*other, ()));
            out.push(loser.conflict(FileProblem::Duplicate(winner.place())));
        } else {
            by_key.insert(party.key(), party);
        }
    }
    let nodes: BTreeMap<&str, (Party, &Node)> = by_key
        .values()
        .filter_map(|party| match &party.placed.object {
            Object::Node(node) => Some((node.name.as_str(), (*party, node))),
            _ => None,
        })
        .collect();
    node_conflicts(&nodes, &mut out);
    pod_conflicts(&by_key, &nodes, &mut out);
    service_conflicts(&by_key, &mut out);
    pool_conflicts(&by_key, &mut out);
    eni_conflicts(&by_key, &mut out);
    out
}

fn node_conflicts(nodes: &BTreeMap<&str, (Party, &Node)>, out: &mut Vec<Conflict>) {
    let mut ranges: BTreeMap<Prefix, Party> = BTreeMap::new();
    let mut addresses: BTreeMap<Ip, Party> = BTreeMap::new();
    let mut overlap = |a: (Party, Prefix), b: (Party, Prefix)| {
        let ((loser, cidr), (winner, other_cidr)) = order(a, b);
        out.push(loser.conflict(FileProblem::OverlappingPodCidr {
            cidr,
            other_cidr,
            other: winner.claimant(),
        }));
    };
    for (party, node) in nodes.values() {
        for cidr in &node.pod_cidrs {
            match ranges.get(cidr) {
                Some(other) if other.key() != party.key() => overlap((*party, *cidr), (*other, *cidr)),
                _ => drop(ranges.insert(*cidr, *party)),
            }
        }
    }
    // Of two ranges that overlap, one holds the other: look for every range among the shorter ones around it.
    for (cidr, party) in &ranges {
        for around in (0..cidr.len()).filter_map(|len| Prefix::new(cidr.addr(), len)) {
            if let Some(other) = ranges.get(&around) {
                overlap((*party, *cidr), (*other, around));
            }
        }
    }
    for (party, node) in nodes.values() {
        for ip in &node.internal_ips {
            let Some(other) = addresses.insert(*ip, *party).filter(|other| other.key() != party.key()) else {
                continue;
            };
            let ((loser, ()), (winner, ())) = order((*party, ()), (other, ()));
            out.push(loser.conflict(FileProblem::DuplicateNodeIp { ip: *ip, other: winner.claimant() }));
        }
    }
}

fn pod_conflicts(
    by_key: &BTreeMap<ObjectKey, Party>,
    nodes: &BTreeMap<&str, (Party, &Node)>,
    out: &mut Vec<Conflict>,
) {
    let mut addresses: BTreeMap<Ip, Party> = BTreeMap::new();
    let on_enis = on_enis(by_key);
    for party in by_key.values() {
        let Object::Pod(pod) = &party.placed.object else { continue };
        for ip in pod.ips.iter().filter(|_| pod.has_network()) {
            if let Some(other) = addresses.insert(*ip, *party).filter(|other| other.key() != party.key()) {
                let ((loser, ()), (winner, ())) = order((*party, ()), (other, ()));
                out.push(loser.conflict(FileProblem::DuplicatePodIp { ip: *ip, other: winner.claimant() }));
            }
            let Some((node_party, node)) = nodes.get(pod.node.as_str()) else { continue };
            // The cloud's network finds what is on an ENI.
            if on_enis.contains(&(pod.node.as_str(), *ip)) {
                continue;
            }
            if let Some(problem) = misplaced(*ip, node) {
                // The pod is the one to correct, unless it is in force and the node changed under it.
                let blamed = if party.is_new || !node_party.is_new { party } else { node_party };
                out.push(blamed.conflict(problem));
            }
        }
    }
}

/// The addresses that nodes' ENIs carry.
fn on_enis<'a>(by_key: &BTreeMap<ObjectKey, Party<'a>>) -> BTreeSet<(&'a str, Ip)> {
    let nodes = by_key.values().filter_map(|party| match &party.placed.object {
        Object::NodeEnis(node) => Some(node),
        _ => None,
    });
    let ips = nodes.flat_map(|node| node.enis.iter().map(|eni| (node.node.as_str(), &eni.ips)));
    ips.flat_map(|(node, ips)| ips.iter().map(move |ip| (node, *ip))).collect()
}

fn eni_conflicts(by_key: &BTreeMap<ObjectKey, Party>, out: &mut Vec<Conflict>) {
    let mut claims: BTreeMap<String, (Party, &str)> = BTreeMap::new();
    for party in by_key.values() {
        let Object::NodeEnis(node) = &party.placed.object else { continue };
        for (address, id) in addresses_of_enis(node) {
            let Some(other) = claims.insert(address.clone(), (*party, id)) else { continue };
            let ((loser, lost), (winner, kept)) = order((*party, id), other);
            let (eni, other_eni) = (lost.to_owned(), kept.to_owned());
            let other = winner.claimant();
            out.push(loser.conflict(FileProblem::DuplicateEniAddress { address, eni, other_eni, other }));
        }
    }
}

/// What an ENI alone may have, addresses and Ethernet address, with its name.
pub(super) fn addresses_of_enis(node: &NodeEnis) -> impl Iterator<Item = (String, &str)> {
    node.enis.iter().flat_map(|eni| {
        let addresses = eni.ips.iter().map(Ip::to_string).chain([eni.mac.to_string()]);
        addresses.map(|address| (address, eni.id.as_str()))
    })
}

/// What is wrong with this address for a pod on this node.
pub(super) fn misplaced(ip: Ip, node: &Node) -> Option<FileProblem> {
    let node_name = node.name.clone();
    match node.pod_cidrs.iter().find(|cidr| cidr.contains(ip)) {
        None => {
            let cidrs = node.pod_cidrs.iter().map(Prefix::to_string).collect::<Vec<_>>().join(", ");
            Some(FileProblem::OutsidePodCidr { ip, node: node_name, cidrs })
        }
        Some(cidr) if host_address(cidr) == ip => Some(FileProblem::HostAddress { ip, node: node_name }),
        Some(_) => None,
    }
}

fn service_conflicts(by_key: &BTreeMap<ObjectKey, Party>, out: &mut Vec<Conflict>) {
    let mut claims: BTreeMap<(Ip, u16, u8), Party> = BTreeMap::new();
    let mut node_ports: BTreeMap<(u16, u8), Party> = BTreeMap::new();
    for party in by_key.values() {
        let Object::Service(service) = &party.placed.object else { continue };
        for (port, proto) in node_ports_of(service) {
            let other = node_ports.insert((port, proto), *party).filter(|other| other.key() != party.key());
            let Some(other) = other else { continue };
            let ((loser, ()), (winner, ())) = order((*party, ()), (other, ()));
            let problem = FileProblem::DuplicateNodePort { port, proto, other: winner.claimant() };
            out.push(loser.conflict(problem));
        }
        for claim in addresses_of(service) {
            let Some(other) = claims.insert(claim, *party).filter(|o| o.key() != party.key()) else {
                continue;
            };
            let ((loser, ()), (winner, ())) = order((*party, ()), (other, ()));
            let (ip, port, proto) = claim;
            let problem = FileProblem::DuplicateServiceAddress { ip, port, proto, other: winner.claimant() };
            out.push(loser.conflict(problem));
        }
    }
}

/// Node ports, and health checks, which take a TCP port of the node too.
pub(super) fn node_ports_of(service: &Service) -> impl Iterator<Item = (u16, u8)> + '_ {
    let health = (service.health_check_node_port, 6);
    let of_ports = service.ports.iter().map(|port| (port.node_port, port.proto));
    of_ports.chain([health]).filter(|(port, _)| *port != 0)
}

/// Its cluster addresses with its ports and their protocols.
pub(super) fn addresses_of(service: &Service) -> impl Iterator<Item = (Ip, u16, u8)> + '_ {
    let with_ports = |ip: &Ip| {
        let ip = *ip;
        service.ports.iter().map(move |port| (ip, port.port, port.proto))
    };
    service.cluster_ips.iter().flat_map(with_ports)
}

fn pool_conflicts(by_key: &BTreeMap<ObjectKey, Party>, out: &mut Vec<Conflict>) {
    let mut pools: Vec<(Party, &Pool)> = Vec::new();
    for party in by_key.values() {
        let Object::Pool(pool) = &party.placed.object else { continue };
        for (other_party, other) in &pools {
            let ((loser, lost), (winner, kept)) = order((*party, pool), (*other_party, *other));
            let other = winner.claimant();
            if let Some((cidr, other_cidr)) = overlapping(lost, kept) {
                out.push(loser.conflict(FileProblem::OverlappingPool { cidr, other_cidr, other }));
            } else if lost.kind == Kind::FlannelConfig && kept.kind == Kind::FlannelConfig {
                out.push(loser.conflict(FileProblem::SecondFlannel { other }));
            }
        }
        pools.push((*party, pool));
    }
}

/// The first ranges of two pools that share addresses.
pub(super) fn overlapping(a: &Pool, b: &Pool) -> Option<(Prefix, Prefix)> {
    a.cidrs.iter().find_map(|cidr| {
        let hit = b.cidrs.iter().find(|other| holds(other, cidr) || holds(cidr, other));
        hit.map(|hit| (*cidr, *hit))
    })
}
