//! This node's ENIs: further uplinks, to each of which some pods' addresses belong (docs/eni.md).

use super::compile::Contribution;
use super::facts::Link;
use super::{Index, Source};
use crate::enis::Eni;
use crate::model::{Key, Value};
use crate::names;
use fairway_tables::{Endpoint, Ip, Mac, Port, PortId, PortKind};
use std::collections::{BTreeMap, BTreeSet};

/// Where what belongs to an ENI without a port is sent: to no port, rather than out of another uplink.
const NO_PORT: PortId = PortId(u16::MAX - 1);

impl Index {
    /// The ENIs of this node that its pods share.
    fn own_enis(&self) -> impl Iterator<Item = &Eni> {
        let node = self.enis.get(&self.config.node).filter(|node| !node.exclusive);
        node.into_iter().flat_map(|node| &node.enis)
    }

    /// The ENIs in pods of this node.
    fn pods_enis(&self) -> impl Iterator<Item = &Eni> {
        let node = self.enis.get(&self.config.node).filter(|node| node.exclusive);
        node.into_iter().flat_map(|node| &node.enis)
    }

    /// Whether this node has ENIs that its pods share.
    pub fn has_enis(&self) -> bool {
        self.own_enis().next().is_some()
    }

    /// The ENI behind a link.
    fn eni_of(&self, link: &Link) -> Option<&Eni> {
        self.own_enis().find(|eni| eni.mac == link.mac)
    }

    /// The link of an ENI: of several with its Ethernet address (a bridge above it has the same) the first. Those that
    /// are Fairway's own are none.
    fn link_of(&self, eni: &Eni) -> Option<&Link> {
        let is_own = |name: &str| {
            [names::HOST_KERNEL_IF, names::HOST_ENGINE_IF].contains(&name) || names::is_host_veth(name)
        };
        self.facts.links.values().find(|link| link.mac == eni.mac && !is_own(&link.name))
    }

    pub(super) fn enis_touched(&mut self, dirty: &mut BTreeSet<Source>) {
        dirty.insert(Source::Local);
        self.find_enis(dirty);
        self.everything_on_enis(dirty);
    }

    /// Finds the links of the ENIs and gives them ports.
    pub(super) fn find_enis(&mut self, dirty: &mut BTreeSet<Source>) {
        let links =
            self.own_enis().filter_map(|eni| self.link_of(eni)).filter(|l| Some(l.ifindex) != self.uplink);
        let links: Vec<(u32, String)> = links.map(|link| (link.ifindex, link.name.clone())).collect();
        let number =
            |(ifindex, name): (u32, String)| Some((ifindex, PortId(self.port_ids.claim(&name)? as u16)));
        let ports: BTreeMap<u32, PortId> = links.into_iter().filter_map(number).collect();
        if ports != self.eni_ports {
            self.everything_on_enis(dirty);
            self.eni_ports = ports;
            self.everything_on_enis(dirty);
        }
    }

    pub(super) fn everything_on_enis(&self, dirty: &mut BTreeSet<Source>) {
        dirty.insert(Source::Enis);
        self.everything_on_the_uplink(dirty);
        let pods = self.pods_by_veth.values().flatten();
        dirty.extend(pods.map(|(namespace, name)| Source::Pod(namespace.clone(), name.clone())));
    }

    /// The record of an uplink, with its gateways if it is an ENI.
    pub(super) fn uplink_record(&self, link: &Link) -> Option<Port> {
        let port = Port::new(&link.name, PortKind::Uplink, link.mtu, link.mac, Mac::ZERO)?;
        let eni = self.eni_of(link);
        let gateway = |is_v4| eni.and_then(|eni| eni.gateway(is_v4)).unwrap_or(Ip::UNSPECIFIED);
        Some(Port { gateway: gateway(true), gateway6: gateway(false), ..port })
    }

    pub(super) fn compile_enis(&self) -> Contribution {
        let link = |ifindex| self.facts.links.get(ifindex);
        let ports = self
            .eni_ports
            .iter()
            .filter_map(|(ifindex, id)| Some((*id, self.uplink_record(link(ifindex)?)?)));
        ports.map(|(id, port)| (Key::Port(id), Value::Port(port))).collect()
    }

    /// The uplink that an address belongs to.
    pub(super) fn endpoint_uplink(&self, ip: Ip) -> PortId {
        if self.pods_enis().any(|eni| eni.ips.contains(&ip)) {
            return Endpoint::OWN_NIC;
        }
        let Some(eni) = self.own_enis().find(|eni| eni.ips.contains(&ip)) else { return PortId::NONE };
        let link = self.link_of(eni).filter(|link| link.up);
        link.and_then(|link| self.uplink_port(link.ifindex)).unwrap_or(NO_PORT)
    }

    /// The addresses of this node's pods that belong to ENIs.
    pub(super) fn pods_on_enis(&self) -> impl Iterator<Item = Ip> + '_ {
        let local = self.pods_by_veth.values().flatten().filter_map(|key| self.pods.get(key));
        let has_any = self.enis.contains_key(&self.config.node);
        let ips = local.filter(move |_| has_any).flat_map(|pod| pod.ips.iter().copied());
        ips.filter(|ip| self.own_enis().chain(self.pods_enis()).any(|eni| eni.ips.contains(ip)))
    }

    pub(super) fn pending_enis(&self, push: &mut impl FnMut(String, String)) {
        for eni in self.own_enis() {
            let mut push = |reason: String| push(format!("ENI {}", eni.id), reason);
            match self.link_of(eni) {
                None => push(format!("no device has its Ethernet address {}", eni.mac)),
                Some(link) if !link.up => push(format!("its device {} is down", link.name)),
                Some(link) if self.uplink_port(link.ifindex).is_none() => {
                    push(format!("all {} ports are taken", self.config.max_ports));
                }
                Some(_) => {}
            }
            for is_v4 in [true, false] {
                if eni.gateway(is_v4).is_none() && eni.ips.iter().any(|ip| ip.is_v4() == is_v4) {
                    let field = if is_v4 { "ipv4CIDR" } else { "ipv6CIDR" };
                    push(format!("it has no {field}, from which the gateway of its pods would follow"));
                }
            }
        }
    }
}
