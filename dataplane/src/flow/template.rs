//! What goes in front of a packet, prepared once per destination: an Ethernet header, or a whole VXLAN
//! encapsulation. A worker has few templates (pods here, nodes there), so they stay in its L1 and L2 caches.

use super::Binding;
use crate::wire::over_ipv6::{self, Outer6};
use crate::wire::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ipip, proto, put16, udp_tunnel, vxlan};
use fairway_tables::{Ip, Mac, NextHopKind, PortId};
use std::collections::HashMap;

/// Index of a template.
pub type TemplateId = u16;

/// Length of a template: two cache lines, of which most take the first alone.
const LEN: usize = 2 * vxlan::HEADER_LEN;

/// Header bytes: 64 for VXLAN, 42 for bare IP in UDP, 34 for IP in IP, 20 more where the outer header is IPv6; 14 for
/// Ethernet alone.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template(pub [u8; LEN]);

impl Template {
    /// An Ethernet header for IPv4.
    pub fn ethernet(dst: Mac, src: Mac) -> Template {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&dst.0);
        bytes[6..12].copy_from_slice(&src.0);
        put16(&mut bytes, ETH_LEN - 2, ETHERTYPE_IPV4);
        Template(bytes)
    }

    /// The same for IPv6 packets; `encapsulation` are the flags of a flow entry, or 0.
    pub fn for_ipv6(mut self, encapsulation: u32) -> Template {
        const VXLAN6: u32 = Binding::VXLAN | Binding::OVER_IPV6;
        const IPIP6: u32 = Binding::IPIP | Binding::OVER_IPV6;
        match encapsulation {
            0 => put16(&mut self.0, ETH_LEN - 2, ETHERTYPE_IPV6),
            Binding::VXLAN => put16(&mut self.0, vxlan::HEADER_LEN - 2, ETHERTYPE_IPV6),
            VXLAN6 => put16(&mut self.0, over_ipv6::INNER_ETHERTYPE, ETHERTYPE_IPV6),
            Binding::IPIP => ipip::set_proto(&mut self.0, proto::IPV6),
            IPIP6 => self.0[over_ipv6::NEXT_HEADER] = proto::IPV6,
            // In bare UDP the inner header itself says which it is.
            _ => {}
        }
        self
    }

    /// VXLAN.
    pub fn vxlan(encap: &vxlan::Encap) -> Template {
        Template::padded(&encap.template())
    }

    /// IPv4 in IPv4.
    pub fn ipip(outer: &ipip::Outer) -> Template {
        Template::padded(&outer.template())
    }

    /// A bare IP packet in UDP to this port.
    pub fn udp_tunnel(outer: &ipip::Outer, udp_port: u16) -> Template {
        Template::padded(&udp_tunnel::template(outer, udp_port))
    }

    /// VXLAN over IPv6.
    pub fn vxlan_over_ipv6(outer: &Outer6, network: &over_ipv6::Vxlan) -> Template {
        Template::padded(&outer.vxlan(network))
    }

    /// IPv4 in IPv6.
    pub fn ip_in_ipv6(outer: &Outer6) -> Template {
        Template::padded(&outer.ip_in_ip())
    }

    /// A bare IP packet in UDP over IPv6 to this port.
    pub fn udp_over_ipv6(outer: &Outer6, udp_port: u16) -> Template {
        Template::padded(&outer.udp(udp_port))
    }

    fn padded(header: &[u8]) -> Template {
        let mut bytes = [0; LEN];
        bytes[..header.len()].copy_from_slice(header);
        Template(bytes)
    }
}

/// Address family of the packets that a template goes in front of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a template leads to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TemplateKey {
    /// A pod of this node.
    Pod(Ip),
    /// A remote node, by one of its encapsulations.
    Node(Ip, NextHopKind),
    /// A neighbour on a link.
    Neighbour(Ip, PortId),
    /// The host's own stack.
    Host,
}

/// A worker's templates. Flow entries hold indices, which stay valid until [`Templates::clear`].
pub struct Templates {
    bytes: Vec<Template>,
    index: HashMap<(TemplateKey, Family), TemplateId>,
}

impl Templates {
    /// Most templates that indices can name.
    pub const CAPACITY: usize = 1 << 15;

    /// No templates, with room for all that will come (nothing is allocated later).
    pub fn new() -> Templates {
        Templates { bytes: Vec::with_capacity(Self::CAPACITY), index: HashMap::with_capacity(Self::CAPACITY) }
    }

    /// The template's bytes.
    #[inline(always)]
    pub fn get(&self, id: TemplateId) -> Option<&Template> {
        self.bytes.get(usize::from(id))
    }

    /// Stores what leads to `key`, and returns its index; `None` if there is no room, upon which the caller
    /// clears templates and flows.
    pub fn set(&mut self, key: TemplateKey, family: Family, template: Template) -> Option<TemplateId> {
        let key = (key, family);
        if let Some(&id) = self.index.get(&key) {
            self.bytes[usize::from(id)] = template;
            return Some(id);
        }
        if self.bytes.len() == Self::CAPACITY {
            return None;
        }
        let id = self.bytes.len() as TemplateId;
        self.bytes.push(template);
        self.index.insert(key, id);
        Some(id)
    }

    /// Forgets every template; every flow entry must be forgotten with them.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.index.clear();
    }
}

impl Default for Templates {
    fn default() -> Templates {
        Templates::new()
    }
}
